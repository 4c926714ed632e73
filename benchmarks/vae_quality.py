"""Scores of vae.py and what each of its parts contributes: cross-validation on the labeled training file.

    python -m benchmarks.vae_quality TRAIN.npz                    the default on folds 3 and 4, seeds 0 and 1
    python -m benchmarks.vae_quality TRAIN.npz --variants all --epochs 12        and every variant, in short trainings
    python -m benchmarks.vae_quality TRAIN.npz --test TEST.npz --seeds 0 1 2 3 4     trained on all of TRAIN
    python -m benchmarks.vae_quality TRAIN.npz --model models/vae.pth     `digits` of a model, purity of pseudo-labels

The file is split into five folds (permutation of seed 123). Hyper-parameters were chosen on fold 0; figures are
reported on folds 3 and 4. Labels have two uses: 15 images (5 per class) start the mixture, drawn five times from the
first 500 held-out images, and the held-out images after those are scored (with --test: drawn from the first half, all
but those 15 scored). F1 is the mean over the draws, `lowest` the lowest
draw. `digits`: fraction of the cells of the assignment's 20 x 20 grid whose image has an SSIM of 0.5 or more with one
of 1,500 training images, and a pixel over 0.8. `inside`: fraction of the scored images whose mean lies within that
grid; `moments`: the largest difference between their latents' mean and covariance and those of N(0, I).
"""
import argparse
import dataclasses
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

STILL = {"rotate": 0.0, "translate": 0.0, "scale": 0.0, "shear": 0.0}
VARIANTS = {  # what differs from vae.Config(); `components`: of the prior, instead of one per class
    "default": {},
    "usual": None,              # benchmarks/plain_vae.py: the plain VAE in the usual loop, always 83 epochs
    "plain": "plain",           # --plain: the assignment's loss in vae.py's own loop
    "one component": {"components": 1},
    "fixed pseudo-labels": {"label_ema": 0.0},
    "cross-entropy": {"gce_q": 0.0},
    "no augmentation": STILL,
    "twice the augmentation": {"rotate": 20.0, "translate": 1.5, "scale": 0.2, "shear": 0.2},
    "no SSIM term": {"ssim_weight": 0.0},
    "beta 3": {"beta": 3.0},
    "no moment term": {"moment_weight": 0.0},
    "no Fourier features": {"frequency_scale": 0.0},
}
DRAWS, POOL, PER_CLASS = 5, 500, 5


def split(n, fold):
    """Indices trained on and held out."""
    folds = np.array_split(np.random.RandomState(123).permutation(n), 5)
    return np.sort(np.concatenate([part for k, part in enumerate(folds) if k != fold])), folds[fold]


def train(digits, name, n_classes, seed, epochs, minutes):
    """The model of a variant."""
    import vae
    from benchmarks import plain_vae
    changes = VARIANTS[name]
    if changes is None:
        return plain_vae.train(digits[:][0].flatten(1).numpy(), seed)
    changes = dict({**vae.PLAIN, "components": 1} if changes == "plain" else changes)
    components = changes.pop("components", n_classes)
    config = dataclasses.replace(vae.Config(), seed=seed, **changes)
    config = dataclasses.replace(config, epochs=epochs or config.epochs)
    return vae.train_vae(digits, components, config, deadline=time.monotonic() + 60 * minutes)


def digit_cells(model, images):
    """Fraction of the assignment's 20 x 20 grid that shows digits, for training images (N, 784)."""
    import torch
    from scipy.stats import norm

    import vae
    grid = torch.from_numpy(norm.ppf(np.linspace(0.05, 0.95, 20))).float()
    cells = model.decode(torch.cartesian_prod(grid, grid))
    best = torch.stack([vae.ssim(cell.expand(len(images), -1), images).max() for cell in cells])
    return float(((best >= 0.5) & (cells.max(1)[0] > 0.8)).float().mean())


def describe(train_path, model_path):
    """Prints `digits` of a model, and the fraction of TRAIN whose pseudo-label is that of most images of its digit."""
    import torch

    import vae
    data = vae.load_digits(train_path, labelled=True)
    with torch.no_grad():
        cells = digit_cells(vae.load_checkpoint(model_path), data[:1500][0].flatten(1))
    clusters = vae.pseudo_labels(data, len(np.unique(data.labels)), torch.Generator().manual_seed(0)).numpy()
    most = sum(np.unique(data.labels[clusters == k], return_counts=True)[1].max() for k in np.unique(clusters))
    print(f"{model_path}: digits {cells:.4f}; pseudo-labels of {train_path}: purity {most / len(data):.4f}")


def measure(train_path, test_path, fold, seed, name, threads, epochs, minutes):
    """One training; returns a dict of scores."""
    import torch
    torch.set_num_threads(threads)
    import vae
    from handin.grading.scores import average_f1, mean_ssim, one_minus_mse
    data = vae.load_digits(train_path, labelled=True)
    if test_path:
        digits, held = vae.DigitDataset(data.images), vae.load_digits(test_path, labelled=True)
        pool = len(held) // 2
    else:
        kept, out = split(len(data), fold)
        digits, held = vae.DigitDataset(data.images[kept]), vae.DigitDataset(data.images[out], data.labels[out])
        pool = POOL
    truth, classes = held.labels, np.unique(held.labels)
    start = time.time()
    model = train(digits, name, len(classes), seed, epochs, minutes)
    seconds = time.time() - start
    latents, held_latents, f1 = vae.encode_means(model, digits), vae.encode_means(model, held), []
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        val = np.concatenate([rng.choice(np.where(truth[:pool] == c)[0], PER_CLASS, replace=False) for c in classes])
        mixture, labels = vae.fit_classifier(latents, held_latents[val], truth[val])
        scored = np.setdiff1d(np.arange(len(held)), val) if test_path else np.arange(pool, len(held))
        f1.append(average_f1(truth[scored], labels[mixture.predict(held_latents[scored])]))
    scored = vae.DigitDataset(held.images[0 if test_path else pool:])
    images, codes = scored[:][0].numpy(), vae.encode_means(model, scored)
    with torch.no_grad():
        from_mean = model.decode(torch.from_numpy(codes).float()).view(-1, 28, 28).numpy()
        refined = from_mean if VARIANTS[name] is None else vae.reconstruct(model, scored)
        cells = digit_cells(model, digits[:1500][0].flatten(1))
    moments = np.concatenate([codes.mean(0), (np.cov(codes.T) - np.eye(2)).ravel()])
    return {"F1": np.mean(f1), "lowest": min(f1), "SSIM": mean_ssim(images, refined),
            "SSIM of model(x)": mean_ssim(images, from_mean), "1 - MSE": one_minus_mse(images, refined),
            "digits": cells, "inside": float((np.abs(codes) <= 1.645).all(1).mean()),
            "moments": float(np.abs(moments).max()), "seconds": seconds, "n": len(images)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("--test")
    parser.add_argument("--model", help="describe this checkpoint, train nothing")
    parser.add_argument("--folds", type=int, nargs="+", default=[3, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", default=["default"], choices=[*VARIANTS, "all"])
    parser.add_argument("--epochs", type=int, help="of vae.py's trainings (default: vae.py's)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="time limit of vae.py's trainings")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each training")
    args = parser.parse_args()
    if args.model:
        return describe(args.train, args.model)
    names = list(VARIANTS) if args.variants == ["all"] else args.variants
    folds = [None] if args.test else args.folds
    print(f"{args.jobs} training(s) at a time, {args.threads} thread(s) each; mean ± standard deviation over "
          f"{len(folds) * len(args.seeds)} trainings (folds {folds}, seeds {args.seeds})")
    columns = ("F1", "lowest", "SSIM", "SSIM of model(x)", "1 - MSE", "digits", "inside", "moments", "seconds")
    print("| variant | " + " | ".join(columns) + " | n |\n|---" + "|---" * (len(columns) + 1) + "|", flush=True)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # NumPy's threads, too
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        runs = {name: [pool.submit(measure, args.train, args.test, fold, seed, name, args.threads, args.epochs,
                                   args.minutes)
                       for fold in folds for seed in args.seeds] for name in names}
        for name, futures in runs.items():
            results = [future.result() for future in futures]
            cells = []
            for column in columns:
                values = np.array([result[column] for result in results])
                digits = {"seconds": 0, "inside": 2, "digits": 3}.get(column, 4)
                summary = f"{values.mean():.{digits}f} ± {values.std(ddof=min(1, len(values) - 1)):.{digits}f}"
                cells.append({"lowest": f"{values.min():.4f}", "moments": f"{values.max():.2f}"}.get(column, summary))
            n = sum(result["n"] for result in results) // len(args.seeds)
            print(f"| {name} | " + " | ".join(cells) + f" | {n} |", flush=True)


if __name__ == "__main__":
    from vae import InputError
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
