"""How fast an epoch of the study `fashion` is, beside the usual loop around the same network, in one run.

    python -m benchmarks.fashion_speed [DATA] [--rounds 3] [--images N]

The usual loop: a torchvision dataset with ToTensor, DataLoader with a worker a core, torch's own layers and optimizer,
float32. The study's, on the same network, exchanges what studies/layers.py computes faster. The loops alternate; a
ratio is of the medians of their epochs, the first epoch of each left out. Beside them stands the speed of the network's
arithmetic, and that of its largest convolution alone, forwards, which is about as fast as the machine gets. DATA:
FashionMNIST (default) or any other name or idx folder that the studies take.
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
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

from studies import data, engine, fashion, losses


def write_idx(images, folder):
    """Images as the raw files of torchvision's FashionMNIST below a folder."""
    raw = Path(folder, "FashionMNIST", "raw")
    raw.mkdir(parents=True)
    for stem in ("train", "t10k"):
        for kind, array in {"images-idx3": images.pixels[:, 0], "labels-idx1": images.labels.byte()}.items():
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (raw / f"{stem}-{kind}-ubyte").write_bytes(header + array.numpy().tobytes())


def usual_epochs(folder, settings, workers, epochs):
    """Seconds of each of so many epochs of the usual loop, but the first."""
    dataset = datasets.FashionMNIST(folder, train=True, transform=transforms.ToTensor())
    loader = DataLoader(dataset, settings.batch, shuffle=True, num_workers=workers, persistent_workers=True)
    model, seconds = fashion.ConvVAE(settings), []
    optimizer = torch.optim.Adam(model.parameters(), settings.rate)
    for _ in range(epochs):
        began, total = time.perf_counter(), 0.0
        for x, _ in loader:
            logits, mean, log_variance = model(x, torch.randn(len(x), settings.latent))
            loss = losses.negative_elbo(logits, x, mean, log_variance, settings.beta)[0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        seconds.append(time.perf_counter() - began)
    return seconds[1:]


def our_epochs(folder, images, settings, precision, epochs):
    """Seconds of each of so many epochs of the study's own training but the first, nothing held out, from the end of
    one to the end of the next: its checkpoint is counted too."""
    ends = []
    bench = engine.open_bench(folder, "cpu", precision=precision, quiet=True)
    fashion.train_one(bench, f"vae_{precision}", settings, images, None, 0, settings.latent, settings.beta, epochs,
                      lambda modules, epoch: ends.append(time.perf_counter()))
    return [end - begin for begin, end in zip(ends, ends[1:])]


def flops_per_image(settings):
    """Floating-point operations of one image's forward and backward pass, by the convolutions and linear layers."""
    model, counter = fashion.ConvVAE(settings), FlopCounterMode(display=False)
    with counter:
        x = torch.rand(2, 1, settings.side, settings.side)
        logits, mean, log_variance = model(x, torch.randn(2, settings.latent))
        losses.negative_elbo(logits, x, mean, log_variance)[0].sum().backward()
    return counter.get_total_flops() / 2


def convolution_speed(settings, dtype, repeats=50):
    """Floating-point operations a second of the second convolution, forwards, at the fastest of some repeats."""
    layer, side, seconds = fashion.ConvVAE(settings).encoder[3], settings.side // 2, []
    layer = layer.to(dtype=dtype, memory_format=torch.channels_last)
    x = torch.randn(settings.batch, layer.in_channels, side, side).to(dtype).to(memory_format=torch.channels_last)
    for _ in range(repeats):
        began = time.perf_counter()
        with torch.no_grad():
            y = layer(x)
        seconds.append(time.perf_counter() - began)
    return 2 * layer.weight.numel() * y.numel() / layer.out_channels / min(seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", default="FashionMNIST")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, help="so many of the training images; all without")
    args = parser.parse_args()
    settings, workers = fashion.Settings(), os.cpu_count() or 1
    images = data.read_images(args.data, settings.side, 1)
    images = data.at_most(images, args.images or len(images), 0)
    print(f"{len(images):,} images, batches of {settings.batch}, {torch.get_num_threads()} threads, {workers} workers")
    names = {"ours, 32-true": "32-true", "ours, bf16-mixed": "bf16-mixed"}
    seconds = {name: [] for name in ("usual", *names)}
    with tempfile.TemporaryDirectory() as folder:
        write_idx(images, folder)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:  # where the engine has set nothing
            for _ in range(args.rounds):
                seconds["usual"] += apart.submit(usual_epochs, folder, settings, workers, 2).result()
                for name, precision in names.items():
                    seconds[name] += our_epochs(folder, images, settings, precision, 2)
    usual, flops = statistics.median(seconds["usual"]), flops_per_image(settings)
    alone = {dtype: convolution_speed(settings, dtype) for dtype in (torch.float32, torch.bfloat16)}
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:18} {median:6.2f} s an epoch ({min(values):.2f} to {max(values):.2f}), "
              f"{len(images) / median:7,.0f} images/s, {usual / median:.2f} times as fast as usual, "
              f"{flops * len(images) / median / 1e9:.0f} GFLOP/s")
    print("the second convolution alone: "
          + ", ".join(f"{speed / 1e9:.0f} GFLOP/s in {dtype}" for dtype, speed in alone.items()))


if __name__ == "__main__":
    main()
