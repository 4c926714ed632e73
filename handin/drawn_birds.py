"""Drawn birds: generated photos that need no download. The species do not exist; a score on them shows that the program
works, not how well it does on real photos."""
import numpy as np

# back, breast, wing, crest?, long tail?, long beak?
KINDS = {
    "0": ((60, 110, 190), (225, 120, 50), (40, 80, 160), False, False, True),    # blue and orange, long beak
    "1": ((95, 160, 70), (150, 190, 90), (70, 130, 60), False, True, True),      # green, long tail, long beak
    "2": ((95, 160, 70), (235, 215, 70), (70, 130, 60), False, False, False),    # yellow breast, short tail and beak
    "3": ((200, 140, 90), (215, 165, 120), (35, 35, 35), True, False, True),     # fawn with a crest
    "4": ((200, 140, 90), (240, 240, 235), (35, 35, 35), False, True, False),    # white breast, long tail
}
SCALE = 2  # drawn larger and scaled down: smooth edges


def draw_bird(kind, rng, width=240, height=160):
    """A picture (PIL.Image) of one bird of KINDS[kind], with random position, size, direction, light and background."""
    from PIL import Image, ImageDraw, ImageFilter
    back, breast, wing, crest, long_tail, long_beak = KINDS[kind]
    background = rng.integers(30, 220, 3)
    small = np.clip(background + rng.integers(-50, 51, (4, 6, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(small).resize((width * SCALE, height * SCALE), Image.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 6)):  # twigs
        ends = rng.uniform(0, 1, 4) * [width, height, width, height] * SCALE
        draw.line(ends.tolist(), fill=tuple(rng.integers(20, 120, 3).tolist()), width=int(rng.integers(2, 7)))
    size = rng.uniform(0.16, 0.34) * height * SCALE                 # half the length of the body
    x, y = rng.uniform(0.3, 0.7) * width * SCALE, rng.uniform(0.35, 0.65) * height * SCALE
    bird = Image.new("RGBA", image.size)
    draw, light = ImageDraw.Draw(bird), rng.uniform(0.75, 1.2)

    def color(rgb):
        return (*(min(255, int(channel * light + rng.integers(-10, 11))) for channel in rgb), 255)

    def oval(cx, cy, rx, ry, rgb):
        draw.ellipse([x + (cx - rx) * size, y + (cy - ry) * size, x + (cx + rx) * size, y + (cy + ry) * size],
                     fill=color(rgb))

    def polygon(points, rgb):
        draw.polygon([(x + px * size, y + py * size) for px, py in points], fill=color(rgb))

    tail = 2.3 if long_tail else 1.3
    polygon([(-0.7, -0.15), (-0.7, 0.15), (-tail, 0.5), (-tail, 0.25)], back)
    for leg in (-0.1, 0.15):
        draw.line([(x + leg * size, y + 0.4 * size), (x + leg * size, y + 0.95 * size)], fill=(70, 50, 40, 255),
                  width=max(2, int(0.06 * size)))
    oval(0, 0, 1.0, 0.5, back)
    oval(0.2, 0.15, 0.75, 0.38, breast)
    oval(-0.2, -0.05, 0.6, 0.3, wing)
    oval(0.85, -0.45, 0.36, 0.34, back)
    beak = 0.9 if long_beak else 0.35
    polygon([(1.1, -0.58), (1.1, -0.36), (1.15 + beak, -0.42)], (60, 50, 45))
    if crest:
        polygon([(0.6, -0.65), (1.0, -0.72), (0.45, -1.25)], back)
        polygon([(0.52, -1.05), (0.62, -1.0), (0.42, -1.3)], (30, 30, 30))
    oval(0.95, -0.5, 0.07, 0.07, (15, 15, 15))
    bird = bird.rotate(rng.uniform(-20, 20), center=(x, y), resample=Image.BICUBIC)
    image.paste(bird, (0, 0), bird)
    image = image.resize((width, height), Image.LANCZOS).filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))
    if rng.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    noisy = np.asarray(image, np.float32) + rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def write_photos(folder, per_class, seed):
    """Writes `per_class` JPEG files of each kind into folder/<kind>/."""
    rng = np.random.default_rng(seed)
    for kind in KINDS:
        path = folder / kind
        path.mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            draw_bird(kind, rng).save(path / f"drawn_{index:03}.jpg", quality=90)
