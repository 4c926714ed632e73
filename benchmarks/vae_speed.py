"""Training and prediction time and memory of vae.py, compared in one run.

    python -m benchmarks.vae_speed TRAIN.npz VAL.npz [--sizes 15000 150000 1000000] [--threads N]

1. One epoch of vae.py, one of the usual solution (benchmarks/plain_vae.py), alternating; medians of 5 after a warm-up.
   Then the batches of one epoch alone: vae.py's DataLoader, a DataLoader that collates single images, and indexing a
   tensor.
2. `test_classifier` on 10,000 images and `python -c "import torch"`, alternating: seconds and peak memory, medians of
   5.
3. The real commands at growing sizes (the images of TRAIN, each copy translated differently): seconds per image of
   `train --epochs 1` and `test_classifier` without those of `import torch`, and peak memory.
"""
import argparse
import dataclasses
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def run(command, folder):
    """Seconds and peak MB of a command."""
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def compare_epochs(train_path, threads, rounds=6):
    """Prints the seconds of an epoch of both solutions, and of the batches alone."""
    import torch
    from torch.utils.data import DataLoader

    import vae
    from benchmarks import plain_vae
    torch.set_num_threads(threads)
    digits = vae.load_digits(train_path)
    images = digits[:][0].flatten(1)
    ours, usual, ends = [], [], []
    config = dataclasses.replace(vae.Config(), epochs=rounds)

    def log(*_):  # after each epoch of vae.py, one of the usual loop
        ours.append(time.perf_counter() - ends[-1] if ends else 0)
        start = time.perf_counter()
        plain_vae.train(images.numpy(), epochs=1)
        usual.append(time.perf_counter() - start)
        ends.append(time.perf_counter())

    vae.train_vae(digits, 3, config, log=log)
    a, b = statistics.median(ours[1:]), statistics.median(usual[1:])
    print(f"one epoch: vae.py {a:.2f} s, the usual solution {b:.2f} s, ratio {a / b:.2f}")
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(images), generator=generator).split(256)
    batches = {"vae.py's DataLoader": vae.batches(digits, 256, generator),
               "a DataLoader of single images": DataLoader(digits, 256, shuffle=True),
               "indexing a float32 tensor": (images[i] for i in order)}
    for name, loader in batches.items():
        start = time.perf_counter()
        for _ in loader:
            pass
        print(f"batches of one epoch, {name}: {time.perf_counter() - start:.3f} s")


def enlarged(images, n, seed=0):
    """n images uint8: copies of all images, each copy translated by up to 6 px in its own way."""
    moves, copies = list(itertools.product(range(-6, 7), repeat=2)), -(-n // len(images))
    order = np.random.default_rng(seed).permutation(len(moves))
    out = np.empty((copies * len(images), 28, 28), np.uint8)
    for k in range(copies):
        out[k * len(images):][:len(images)] = np.roll(images, moves[order[k]], axis=(1, 2))
    return out[:n]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("val")
    parser.add_argument("--sizes", type=int, nargs="*", default=[15_000, 150_000, 1_000_000])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    train, val = os.path.abspath(args.train), os.path.abspath(args.val)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    compare_epochs(train, args.threads)
    script, import_torch = [sys.executable, str(ROOT / "vae.py")], [sys.executable, "-c", "import torch"]
    model = ["vae.pth", "gmm_params.pkl"]
    with np.load(train) as content:
        images = content["data"].reshape(-1, 28, 28)
    with tempfile.TemporaryDirectory() as folder:
        run([*script, train, val, "train", *model, "--epochs", "1", "--quiet"], folder)
        np.save(os.path.join(folder, "test.npy"), enlarged(images, 10_000))
        command = [*script, "test.npy", "test_classifier", *model, "--quiet"]
        rows = [(*run(command, folder), *run(import_torch, folder)) for _ in range(5)]
        seconds, memory, bare_seconds, bare_memory = (statistics.median(column) for column in zip(*rows))
        print(f"test_classifier on 10,000 images: {seconds:.2f} s and {memory:.0f} MB; import torch alone "
              f"{bare_seconds:.2f} s and {bare_memory:.0f} MB", flush=True)
        print("| images | as uint8 | train --epochs 1 | per image | memory | test_classifier | per image | memory |\n"
              "|---|---|---|---|---|---|---|---|", flush=True)
        for n in args.sizes:
            np.savez(os.path.join(folder, "many.npz"), data=enlarged(images, n))
            cells = []
            for words in (["many.npz", val, "train", *model, "--epochs", "1"], ["many.npz", "test_classifier", *model]):
                seconds, memory = run([*script, *words, "--quiet"], folder)
                cells.append(f"{seconds:.1f} s | {(seconds - bare_seconds) / n * 1e6:.0f} µs | {memory:.0f} MB")
            print(f"| {n:,} | {n * 784 / 2 ** 20:.0f} MB | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
