"""The speed of a training epoch of the study `fashion`, and of the usual loop around the same network, in one run.

    python -m benchmarks.fashion_speed [DATA] [--rounds 3] [--images N]

The usual loop: a torchvision dataset with ToTensor, DataLoader, one worker per core, Adam, float32. The loops
alternate; each trains two epochs, of which the second is timed; a ratio is of the medians. The study's time is from
the start of its second epoch to that of a third one, so that its checkpoint is counted.
"""
import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from studies import data, fashion, losses, training


def write_idx(images, folder):
    """Images as the raw training files of torchvision's FashionMNIST below a folder."""
    raw = Path(folder, "FashionMNIST", "raw")
    raw.mkdir(parents=True)
    for name, array in {"train-images-idx3": images.pixels[:, 0], "train-labels-idx1": images.labels.byte()}.items():
        header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        for part in (name, name.replace("train", "t10k")):
            (raw / f"{part}-ubyte").write_bytes(header + array.numpy().tobytes())


def usual_epoch(folder, settings, workers):
    """Seconds of the second epoch of the usual loop."""
    dataset = datasets.FashionMNIST(folder, train=True, transform=transforms.ToTensor())
    loader = DataLoader(dataset, settings.batch_size, shuffle=True, num_workers=workers, persistent_workers=True)
    model = fashion.VAE().to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters(), settings.lr)
    for _ in range(2):
        began, total = time.perf_counter(), 0.0
        for x, _ in loader:
            mean, log_variance = model.posterior(x)
            y = model.decode(losses.reparameterize(mean, log_variance))
            loss = F.binary_cross_entropy(y, x, reduction="sum") + losses.kl_divergence(mean, log_variance).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
    return time.perf_counter() - began


def study_epoch(folder, images, settings):
    """Seconds of the second epoch of the study's training, nothing held out."""
    starts, watch = [], Callback()
    watch.on_train_epoch_start = lambda trainer, module: starts.append(time.perf_counter())
    training.Run(folder, "cpu", overwrite=True).fit(
        "vae", fashion.VAE(), images, epochs=3, batch_size=settings.batch_size, callbacks=[watch])
    return starts[2] - starts[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="FashionMNIST")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=60_000, help="so many of the training images, at most")
    args = parser.parse_args()
    settings, workers = fashion.Settings(), os.cpu_count() or 1
    images = data.read_split([args.data], settings.side, 1)[0].subsample(args.images, 0)
    print(f"{len(images):,} images, batches of {settings.batch_size}, {torch.get_num_threads()} threads, "
          f"{workers} workers")
    seconds = {"usual": [], "study": []}
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        write_idx(images, folder)
        for _ in range(args.rounds):
            seconds["usual"].append(apart.submit(usual_epoch, folder, settings, workers).result())
            seconds["study"].append(study_epoch(folder, images, settings))
    usual = statistics.median(seconds["usual"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name}: {median:.2f} s an epoch ({min(values):.2f} to {max(values):.2f}), "
              f"{len(images) / median:,.0f} images/s, {usual / median:.2f} times as fast as usual")


if __name__ == "__main__":
    main()
