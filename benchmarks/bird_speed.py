"""How fast bird.py trains and predicts, beside the usual loops around the same network, in one run.

    python -m benchmarks.bird_speed [DATASET] [--rounds 3] [--seconds 20] [--device auto]

The usual training loop: ImageFolder, torchvision transforms a photo, DataLoader with a worker a core, float32,
contiguous. The usual test loop: one photo at a time, with as many views. Both on the device that bird.py takes; on a
GPU the training of bird.py is also timed in float32. Without DATASET 400 drawn photos of 1,200 px, the size of the
course's, are used. The loops alternate; a ratio is of the medians. bird.py decodes once, before the first epoch: that
is given apart.
"""
import argparse
import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import bird


def draw_photos(folder, number=400, classes=10, width=1200, height=800):
    """Smooth random photos with grain, as heavy to decode as real ones, in class folders."""
    rng = np.random.default_rng(0)
    for index in range(number):
        small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((width, height), Image.BICUBIC), np.int16)
        pixels = pixels + rng.integers(-12, 13, pixels.shape, dtype=np.int16)
        place = Path(folder, str(index % classes), f"{index}.jpg")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place, quality=90)


def usual_training(dataset, recipe, workers, device):
    """Generator of the usual loop: yields the number of photos of each step it has done."""
    prepare = transforms.Compose([
        transforms.RandomResizedCrop(recipe.image_size, scale=(recipe.area, 1)), transforms.RandomHorizontalFlip(),
        transforms.RandomRotation(recipe.rotate), transforms.ColorJitter(recipe.colour, recipe.colour, recipe.colour),
        transforms.ToTensor()])
    folder = ImageFolder(dataset, prepare)
    loader = DataLoader(folder, recipe.batch, shuffle=True, num_workers=workers, drop_last=True,
                        persistent_workers=True)
    model = bird.new_classifier(folder.classes, np.bincount(folder.targets).tolist(), recipe).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    while True:
        for photos, labels in loader:
            logits = model(photos.to(device))
            loss = F.cross_entropy(logits, labels.to(device), label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield len(photos)


class _Enough(Exception):
    pass


def our_training(images, labels, classes, recipe, device, seconds):
    """Photos a second of `train_classifier` in about so many seconds, the first steps left out. All lie in one epoch,
    for the usual loop does not validate either."""
    rows, times = torch.arange(len(labels)), []
    long = rows.repeat(1 + 100_000 // len(rows))

    def follow(average, model, decay):
        followed(average, model, decay)
        times.append(time.perf_counter())
        if times[-1] - times[0] > seconds:
            raise _Enough

    followed, bird.update_average = bird.update_average, follow
    try:
        model = bird.new_classifier(classes, torch.bincount(labels).tolist(), recipe)
        bird.train_classifier(model, images, labels, long, rows[:recipe.batch], recipe, device, 1e6,
                              lambda schedule: None, lambda state, schedule: None)
    except _Enough:
        pass
    finally:
        bird.update_average = followed
    return (len(times) - 1 - 3) * recipe.batch / (times[-1] - times[3])


def measure_usual_training(dataset, recipe, workers, device, seconds):
    """Photos a second of the usual loop over about so many seconds, the first steps left out."""
    steps = usual_training(dataset, recipe, workers, device)
    for _ in range(4):
        next(steps)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += next(steps)
    spent = time.perf_counter() - began
    steps.close()
    return done / spent


def measure_usual_test(classes, recipe, paths, views, device):
    """Photos a second of the usual test loop: decode, resize, predict, each photo and view by itself, in float32."""
    model, labels = bird.new_classifier(classes, [1] * len(classes), recipe).eval().to(device), []
    began = time.perf_counter()
    with torch.no_grad():
        for path in paths:
            with Image.open(path) as image:
                image, total = image.convert("RGB"), 0.0
            side = model.about["image_size"]
            for share, mirrored in views:
                whole = image.resize((round(side / share),) * 2, Image.BICUBIC)
                photo = transforms.functional.to_tensor(transforms.functional.center_crop(whole, side))[None].to(device)
                total = total + model(photo.flip(3) if mirrored else photo).softmax(1)
            labels.append(int(total.argmax()))
    return len(labels) / (time.perf_counter() - began)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.dataset is None:
            draw_photos(folder)
        compare(args.dataset or folder, args.rounds, args.seconds, bird.pick_device(args.device))


def compare(dataset, rounds, seconds, device):
    """Prints the tables."""
    recipe = dataclasses.replace(bird.Recipe(), progressive=())  # the usual loop has one size
    workers = os.cpu_count() or 1
    classes, photos = bird.list_photos(dataset)
    paths, labels = [path for path, _ in photos], torch.tensor([label for _, label in photos])
    with Image.open(paths[0]) as image:
        size = image.size
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device
    print(f"{len(paths)} photos, the first of {size[0]} x {size[1]} px; {where}, {torch.get_num_threads()} threads; "
          f"crops of {recipe.image_size} px, batches of {recipe.batch}; ours in {bird.pick_precision(device)}")
    began = time.perf_counter()
    images, _ = bird.decode_photos(paths, round(bird.MARGIN * recipe.image_size), workers)
    print(f"decoded once: {len(paths) / (time.perf_counter() - began):.0f} photos/s")
    images = bird.images_to_device(images, device)

    model = bird.new_classifier(classes, torch.bincount(labels).tolist(), recipe).eval()
    model = bird.to_device(model, device)
    some = list(itertools.islice(itertools.cycle(paths), 600))
    training, slower, found = ([], []), [], {views: ([], []) for views in (((1.0, False),), bird.TEST_VIEWS)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:  # where bird.py has set nothing
        for _ in range(rounds):
            training[0].append(apart.submit(measure_usual_training, dataset, recipe, workers, device, seconds).result())
            training[1].append(our_training(images, labels, classes, recipe, device, seconds))
            if device.type == "cuda":
                with mock.patch.object(bird, "pick_precision", lambda device: torch.float32):
                    slower.append(our_training(images, labels, classes, recipe, device, seconds))
            for views, (usual, ours) in found.items():
                few = some[:200 // len(views)]
                usual.append(apart.submit(measure_usual_test, classes, recipe, few, views, device).result())
                began = time.perf_counter()
                bird.classify(model, some, workers, views)
                ours.append(len(some) / (time.perf_counter() - began))
    report("training", *training)
    if slower:
        report("training, ours in float32", training[0], slower)
    for views, (usual, ours) in found.items():
        report(f"test, {len(views)} view{'s' * (len(views) > 1)} a photo", usual, ours)


def report(what, usual, ours):
    a, b = statistics.median(usual), statistics.median(ours)
    print(f"{what}: usual {a:.0f} photos/s, bird.py {b:.0f} photos/s, {b / a:.1f} times as fast "
          f"(usual {min(usual):.0f}-{max(usual):.0f}, ours {min(ours):.0f}-{max(ours):.0f}, {len(ours)} rounds)")


if __name__ == "__main__":
    main()
