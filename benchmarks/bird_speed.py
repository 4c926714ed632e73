"""How fast bird.py trains and predicts, compared with the usual loops around the same network, in one run.

    python -m benchmarks.bird_speed [DATASET] [--rounds 3] [--seconds 20] [--device auto]

The usual training loop: ImageFolder, torchvision transforms per photo, DataLoader with a worker per core, float32,
contiguous. The usual test loop: one photo at a time, with the same views. Both on the device that bird.py takes; on a
GPU the training of bird.py is also timed in float32. Without DATASET 400 drawn photos of 1,200 px, the size of the
course's photos, are used. The loops alternate; a ratio is of the medians. bird.py decodes once, before the first epoch:
that is reported separately.
"""
import argparse
import contextlib
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
    """Smooth random photos with grain, as slow to decode as real ones, in class folders."""
    rng = np.random.default_rng(0)
    for index in range(number):
        small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
        pixels = np.asarray(small.resize((width, height), Image.BICUBIC), np.int16)
        pixels = pixels + rng.integers(-12, 13, pixels.shape, dtype=np.int16)
        place = Path(folder, str(index % classes), f"{index}.jpg")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place, quality=90)


def usual_training(dataset, config, workers, device):
    """Generator of the usual loop: yields the batch size after each step."""
    prepare = transforms.Compose([
        transforms.RandomResizedCrop(config.image_size, scale=(config.crop_scale, 1)),
        transforms.RandomHorizontalFlip(config.hflip), transforms.RandomRotation(config.rotate),
        transforms.ColorJitter(config.color_jitter, config.color_jitter, config.color_jitter), transforms.ToTensor()])
    folder = ImageFolder(dataset, prepare)
    loader = DataLoader(folder, config.batch_size, shuffle=True, num_workers=workers, drop_last=True,
                        persistent_workers=True)
    model = bird.BirdClassifier(folder.classes, np.bincount(folder.targets).tolist()).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    while True:
        for photos, labels in loader:
            logits = model(photos.to(device))
            loss = F.cross_entropy(logits, labels.to(device), label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield len(photos)


class _Enough(Exception):
    pass


def our_training(dataset, classes, config, device, seconds):
    """Photos per second of `train_classifier` over about `seconds`, without the first steps. All are in one epoch,
    because the usual loop does not validate either."""
    times = []

    def timed(ema_model, model, decay):
        update_ema(ema_model, model, decay)
        times.append(time.perf_counter())
        if times[-1] - times[0] > seconds:
            raise _Enough

    update_ema, counts = bird.update_ema, torch.bincount(dataset.labels).tolist()
    state, index = bird.TrainState(classes, counts, config, device), np.arange(len(dataset))
    with mock.patch.object(bird, "update_ema", timed), contextlib.suppress(_Enough):
        next(bird.train_classifier(state, dataset, np.tile(index, 1 + 100_000 // len(index)), index, config))
    return (len(times) - 1 - 3) * config.batch_size / (times[-1] - times[3])


def measure_usual_training(dataset, config, workers, device, seconds):
    """Photos per second of the usual loop over about so many seconds, the first steps left out."""
    steps = usual_training(dataset, config, workers, device)
    for _ in range(4):
        next(steps)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += next(steps)
    seconds = time.perf_counter() - start
    steps.close()
    return done / seconds


def measure_usual_test(classes, config, paths, views, device):
    """Photos per second of the usual test loop: decode, resize, predict, one photo and view at a time, in float32."""
    model, labels = bird.BirdClassifier(classes, [1] * len(classes)).eval().to(device), []
    start = time.perf_counter()
    with torch.no_grad():
        for path in paths:
            with Image.open(path) as image:
                image, total = image.convert("RGB"), 0.0
            side = model.metadata["image_size"]
            for fraction, flipped in views:
                whole = image.resize((round(side / fraction),) * 2, Image.BICUBIC)
                photo = transforms.functional.to_tensor(transforms.functional.center_crop(whole, side))[None].to(device)
                total = total + model(photo.flip(3) if flipped else photo).softmax(1)
            labels.append(int(total.argmax()))
    return len(labels) / (time.perf_counter() - start)


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
    config = dataclasses.replace(bird.Config(), progressive=())  # the usual loop has one size
    workers = os.cpu_count() or 1
    classes, photos = bird.list_photos(dataset)
    paths, labels = [path for path, _ in photos], torch.tensor([label for _, label in photos])
    with Image.open(paths[0]) as image:
        size = image.size
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else device
    print(f"{len(paths)} photos, the first of {size[0]} x {size[1]} px; {where}, {torch.get_num_threads()} threads; "
          f"crops of {config.image_size} px, batches of {config.batch_size}; ours in {bird.pick_precision(device)}")
    start = time.perf_counter()
    size = round(bird.DECODED_SIZE * config.image_size)
    data = bird.PhotoDataset(bird.decode_photos(paths, size, bird.augmentation_device(device))[0], labels)
    print(f"decoded once: {len(paths) / (time.perf_counter() - start):.0f} photos/s")

    model = bird.to_device(bird.BirdClassifier(classes, torch.bincount(labels).tolist()).eval(), device)
    some = list(itertools.islice(itertools.cycle(paths), 600))
    training, slower, found = ([], []), [], {views: ([], []) for views in (((1.0, False),), bird.TEST_VIEWS)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # without what bird.py sets globally
        for _ in range(rounds):
            training[0].append(pool.submit(measure_usual_training, dataset, config, workers, device, seconds).result())
            training[1].append(our_training(data, classes, config, device, seconds))
            if device.type == "cuda":
                with mock.patch.object(bird, "pick_precision", lambda device: torch.float32):
                    slower.append(our_training(data, classes, config, device, seconds))
            for views, (usual, ours) in found.items():
                few = some[:200 // len(views)]
                usual.append(pool.submit(measure_usual_test, classes, config, few, views, device).result())
                start = time.perf_counter()
                bird.classify(model, some, views)
                ours.append(len(some) / (time.perf_counter() - start))
    report("training", *training)
    if slower:
        report("training, ours in float32", training[0], slower)
    for views, (usual, ours) in found.items():
        report(f"test, {len(views)} view{'s' * (len(views) > 1)} per photo", usual, ours)


def report(what, usual, ours):
    a, b = statistics.median(usual), statistics.median(ours)
    print(f"{what}: usual {a:.0f} photos/s, bird.py {b:.0f} photos/s, {b / a:.1f} times as fast "
          f"(usual {min(usual):.0f}-{max(usual):.0f}, ours {min(ours):.0f}-{max(ours):.0f}, {len(ours)} rounds)")


if __name__ == "__main__":
    main()
