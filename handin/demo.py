"""The main job on data that needs no download: the graders' five commands, their scores and the figures.

Digits: those of scikit-learn, real, 8 x 8, brought to MNIST's form: scaled to 20 x 20 and set into 28 x 28.
Birds: drawn (handin/drawn_birds.py), so that their score tells nothing about photos.
"""
import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from handin import figures
from handin.drawn_birds import KINDS, write_photos
from handin.scores import average_f1, mean_ssim, one_minus_mse, read_labels

EXAMPLE = "python -m handin demo"
ROOT = Path(__file__).resolve().parent.parent
CLASSES = (1, 4, 8)
VAL_PER_CLASS = 5
BIRDS_PER_CLASS = {"train": 100, "test": 40}
DIGIT_FLAGS = ()
BIRD_EPOCHS, BIRD_SIZE, BIRD_MINUTES = 40, 96, 3  # a slow machine gets a shorter schedule


def write_files(folder):
    """Writes train.npz (images alone), val.npz (5 a class) and test.npz of digits 1, 4, 8 into `folder`."""
    from skimage.transform import resize
    from sklearn.datasets import load_digits
    digits = load_digits()
    chosen = np.isin(digits.target, CLASSES)
    labels = digits.target[chosen].astype(np.int64)
    images = np.stack([np.pad(resize(image / 16, (20, 20), order=1), 4) for image in digits.images[chosen]])
    images = np.round(images * 255).clip(0, 255).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(labels))
    val = np.concatenate([order[labels[order] == c][:VAL_PER_CLASS] for c in CLASSES])
    rest = np.setdiff1d(order, val)
    rest = rest[np.random.default_rng(1).permutation(len(rest))]
    test, train = rest[: len(rest) // 3], rest[len(rest) // 3:]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "train.npz", data=images[train])
    for name, index in (("val", val), ("test", test)):
        np.savez(folder / f"{name}.npz", data=images[index], labels=labels[index])


def command(folder, script, *words):
    """Runs a script in `folder` as a grader would."""
    print(f"\n$ python {script} {' '.join(words)}", flush=True)
    done = subprocess.run([sys.executable, str(ROOT / script), *words], cwd=str(folder), check=False)
    if done.returncode:
        sys.exit(done.returncode)


def digits(folder):
    """Trains and tests vae.py in `folder`; prints the scores."""
    write_files(folder)
    print(f"digits {CLASSES} of sklearn.datasets.load_digits, 28 x 28, in {folder}")
    command(folder, "vae.py", "train.npz", "val.npz", "train", "vae.pth", "gmm_params.pkl", *DIGIT_FLAGS)
    command(folder, "vae.py", "test.npz", "test_reconstruction", "vae.pth")
    command(folder, "vae.py", "test.npz", "test_classifier", "vae.pth", "gmm_params.pkl")
    with np.load(folder / "test.npz") as test, np.load(folder / "vae_reconstructed.npz") as made:
        truth, labels, drawn = test["data"] / 255.0, test["labels"], made["data"].astype(np.float64)
    print(f"\nscores on {len(labels)} digits that were not trained on")
    print(f"  average F1  {average_f1(labels, read_labels(folder / 'vae.csv')):.4f}")
    print(f"  SSIM        {mean_ssim(truth, drawn):.4f}")
    print(f"  1 - MSE     {one_minus_mse(truth, drawn):.4f}")


def birds(folder):
    """Trains and tests bird.py in `folder` on drawn birds; prints the score."""
    for seed, (part, per_class) in enumerate(BIRDS_PER_CLASS.items()):
        shutil.rmtree(str(folder / f"birds_{part}"), ignore_errors=True)
        write_photos(folder / f"birds_{part}", per_class, seed)
    print(f"\nbirds of {len(KINDS)} kinds, DRAWN by a program, in {folder}")
    command(folder, "bird.py", "birds_train", "train", "bird.pth", "--epochs", str(BIRD_EPOCHS),
            "--image-size", str(BIRD_SIZE), "--minutes", str(BIRD_MINUTES))
    command(folder, "bird.py", "birds_test", "test", "bird.pth")
    truth = np.repeat(np.arange(len(KINDS)), BIRDS_PER_CLASS["test"])
    print(f"\nscore on {len(truth)} drawn birds that were not trained on (a sign of life, not of skill with photos)")
    print(f"  average F1  {average_f1(truth, read_labels(folder / 'bird.csv')):.4f}")


def draw_figures(folder):
    """Draws the figures of both parts into folder/figures."""
    for words in (("birds", "birds_test", "--model", "bird.pth"),
                  ("digits", "val.npz", "test.npz", "--train", "train.npz", "--model", "vae.pth", "--mixture",
                   "gmm_params.pkl")):
        print(f"\n$ python -m handin figures {' '.join(words)}", flush=True)
        parser = argparse.ArgumentParser()
        figures.add_arguments(parser)
        here = [str(folder / word) if (folder / word).exists() else word for word in words]
        figures.run(parser.parse_args([*here, "--out", str(folder / "figures")]))


def add_arguments(parser):
    parser.add_argument("--out", type=Path, default=ROOT / "demo", metavar="FOLDER", help="where to work")


def run(args):
    """Runs the demo; returns the exit code."""
    digits(args.out)
    birds(args.out)
    draw_figures(args.out)
    return 0
