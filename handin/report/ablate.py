"""The table "effect of model optimisation": bird.py trained unchanged and without one technique at a time.

All training runs have the same number of epochs, unless stopped early; without --epochs it is what the time allows,
estimated from one epoch of the baseline. Accuracy and F1 are of photos that were not trained on: those of TEST or,
without it, a fifth of TRAIN. FIGURES/ablation.json is rewritten after each training run: a second call with the same
data and settings resumes where the first one stopped.
"""
import dataclasses
import hashlib
import json
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from tqdm import tqdm

import bird
from common.command_line import number
from common.errors import InputError, convert_input_errors
from common.files import read_json, write_files
from handin.grading.scores import all_scores, read_birds

EXAMPLE = "python -m handin ablate birds/train --minutes 60 --seeds 2 --out figures"

# Changed fields of bird.Config and other names of bird.py; "last" keeps the last epoch's weights
VARIANTS = {
    "baseline": {},
    "no augmentation": {"crop_scale": 1.0, "crop_ratio": 1.0, "rotate": 0.0, "hflip": 0.0, "color_jitter": 0.0,
                        "channel_jitter": 0.0, "mixup": 0.0, "cutmix": 0.0},
    "no batch normalization": {"BATCH_NORM": False},
    "AdamW instead of Muon": {"Muon": torch.optim.AdamW, "lr": 2e-3},
    "no weight decay": {"weight_decay": 0.0},
    "no dropout": {"dropout": 0.0},
    "no label smoothing": {"label_smoothing": 0.0},
    "no mixup, no CutMix": {"mixup": 0.0, "cutmix": 0.0},
    "no EMA": {"ema_decay": 0.0},
    "no early stopping": {"patience": 10 ** 6},
    "last epoch, not the best": {"patience": 10 ** 6, "last": True},
    "no class weights": {"class_weights": False},
    "no crops": {"crop_scale": 1.0, "crop_ratio": 1.0},
    "no rotation": {"rotate": 0.0},
    "no flips": {"hflip": 0.0},
    "no color jitter": {"color_jitter": 0.0, "channel_jitter": 0.0},
    "no progressive resizing": {"progressive": ()},
    "batches of 128": {"batch_size": 128},
    "half as wide": {"WIDTHS": (32, 64, 128, 256)},
    "no center crop at test": {"TEST_VIEWS": ((1.0, False), (1.0, True))},
    "no flipped view at test": {"TEST_VIEWS": ((0.8, False),)},
}
DEFAULT_VARIANTS = list(VARIANTS)[:10]


@dataclasses.dataclass
class AblationData:
    """A bird.PhotoDataset, and the indices of the photos to train on and of those to score."""
    dataset: bird.PhotoDataset
    classes: list
    train_idx: np.ndarray
    test_idx: np.ndarray


def read_photos(train, test, image_size):
    """AblationData of TRAIN, and of TEST or a fifth of TRAIN for the scores. Raises InputError."""
    classes, photos = bird.list_photos(train)
    extra = [] if test is None else zip(*read_birds(test, classes))
    paths, labels = zip(*photos, *extra) if photos else ((), ())
    decoded, unreadable = bird.decode_photos(paths, round(bird.DECODED_SIZE * image_size))
    labels = np.array(labels, dtype=np.int64)
    readable = np.setdiff1d(np.arange(len(paths)), unreadable)
    train_idx, test_idx = readable[readable < len(photos)], readable[readable >= len(photos)]
    if test is None:
        train_idx, test_idx = (train_idx[part] for part in bird.stratified_split(labels[train_idx], 0.2, seed=20))
    if len(test_idx) == 0 or len(np.unique(labels[train_idx])) < 2:
        raise InputError(f"{test or train}: expected readable photos of at least two classes to learn and some to "
                         f"score, found {len(train_idx)} and {len(test_idx)}")
    return AblationData(bird.PhotoDataset(decoded, labels), classes, train_idx, test_idx)


def train_variant(photos, name, seed, epochs, image_size, device, on_epoch=lambda: None):
    """One training run; returns {"accuracy", "f1" (average F1), "epochs", "minutes"}, scores of the photos test_idx."""
    fields = {field.name for field in dataclasses.fields(bird.Config)}
    changes = {key: value for key, value in VARIANTS[name].items() if key in fields}
    others = {key: value for key, value in VARIANTS[name].items() if key not in fields and key != "last"}
    config = dataclasses.replace(bird.Config(), epochs=epochs, image_size=image_size, seed=seed, **changes)
    start, labels = time.monotonic(), photos.dataset.labels.numpy()
    with mock.patch.dict(vars(bird), others):
        parts = bird.stratified_split(labels[photos.train_idx], config.val_fraction, seed)
        train_idx, val_idx = (photos.train_idx[part] for part in parts)
        counts = np.bincount(labels[train_idx], minlength=len(photos.classes)).tolist()
        state = bird.TrainState(photos.classes, counts, config, device)
        val_idx = val_idx if len(val_idx) else train_idx
        for _ in bird.train_classifier(state, photos.dataset, train_idx, val_idx, config):
            on_epoch()
        model = state.ema_model
        if "last" not in VARIANTS[name]:
            model.load_state_dict(state.best["weights"])
        predicted = torch.cat([bird.predict_proba(model.eval(), batch, bird.TEST_VIEWS).argmax(1)
                               for batch, _ in bird.batches(photos.dataset, photos.test_idx)])
    scores = all_scores(labels[photos.test_idx], predicted.numpy())
    return {"accuracy": scores["accuracy"], "f1": scores["average_f1"], "epochs": len(state.history),
            "minutes": (time.monotonic() - start) / 60}


def affordable_epochs(photos, n_runs, seconds, image_size, device):
    """Epochs per training run that fit into `seconds`, 1 to those of the config. Times one epoch of the baseline."""
    epoch = 60 * train_variant(photos, "baseline", 0, 1, image_size, device)["minutes"]
    return max(1, min(bird.Config.epochs, int(0.95 * (seconds - epoch) / (epoch * n_runs))))


def summarize(runs):
    """Rows of the table from the runs: a dict per variant, in the order of VARIANTS, except those not yet trained:
    "accuracy", "f1", "epochs" and "minutes" are means, "accuracy_sd" and "f1_sd" None for one seed."""
    rows = []
    for name in sorted({run["variant"] for run in runs}, key=list(VARIANTS).index):
        found = sorted((run for run in runs if run["variant"] == name), key=lambda run: run["seed"])
        row = {"variant": name, "seeds": [run["seed"] for run in found]}
        for key in ("accuracy", "f1", "epochs", "minutes"):
            values = [run[key] for run in found]
            row[key] = statistics.fmean(values)
            row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def markdown(results):
    """The table as text."""
    def mean_sd(row, key):
        return f"{row[key]:.4f}" + ("" if row[f"{key}_sd"] is None else f" ± {row[f'{key}_sd']:.4f}")

    return "\n".join([
        "| training | accuracy | average F1 | epochs | minutes | seeds |", "|---|---|---|---|---|---|",
        *(f"| {row['variant']} | {mean_sd(row, 'accuracy')} | {mean_sd(row, 'f1')} | {row['epochs']:.0f} | "
          f"{row['minutes']:.1f} | "
          f"{len(row['seeds'])} |" for row in results["rows"]),
        f"\nOn {results['photos']} photos that were not trained on; F1 = (macro + micro) / 2; {results['epochs']} "
        f"epochs at {results['image_size']} px; mean ± standard deviation over seeds; {results['device']}."])


def add_arguments(parser):
    parser.add_argument("train", metavar="TRAIN", help="class folders of photos")
    parser.add_argument("test", metavar="TEST", nargs="?", help="class folders to score (default: a fifth of TRAIN)")
    parser.add_argument("--minutes", type=number(float, 0, strict=True), default=60.0,
                        help="for all training runs together (default 60)")
    parser.add_argument("--seeds", type=number(int, 1), default=1, metavar="N",
                        help="training runs per variant (default 1)")
    parser.add_argument("--variants", nargs="+", metavar="NAME", default=DEFAULT_VARIANTS,
                        help=f"'all' or some of: {', '.join(VARIANTS)}")
    parser.add_argument("--epochs", type=number(int, 1), metavar="N",
                        help="of every training run (default: what the time allows)")
    parser.add_argument("--image-size", type=number(int, 32, 1024), metavar="PX", default=96,
                        help="side of the crops (default 96)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps (default: the best available)")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="FOLDER", help="default: figures")


@convert_input_errors(bird)
def run(args):
    """Trains the missing variants; returns 0, or 1 if the time was not sufficient for all."""
    end = time.monotonic() + 60 * args.minutes
    names = list(VARIANTS) if args.variants == ["all"] else list(dict.fromkeys(["baseline", *args.variants]))
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise InputError(f"ablate: expected --variants that --help lists, found '{unknown[0]}'")
    device = bird.pick_device(args.device)
    photos = read_photos(args.train, args.test, args.image_size)
    settings = {"data": [str(Path(path).resolve()) for path in (args.train, args.test) if path],
                "photos": len(photos.test_idx), "image_size": args.image_size, "device": str(device),
                "torch": torch.__version__, "threads": torch.get_num_threads(),
                "bird.py": hashlib.sha256(Path(bird.__file__).read_bytes()).hexdigest()}
    path, results = args.out / "ablation.json", {**settings, "epochs": args.epochs, "runs": [], "rows": []}
    if path.exists():
        results = read_json(path, "an earlier ablation")
        if {**results, **settings, "epochs": args.epochs or results.get("epochs")} != results:
            raise InputError(f"{path}: expected an ablation of the same photos, size and epochs to resume, found "
                             "another; move it or choose another --out")
    required = [(name, seed) for seed in range(args.seeds) for name in names]
    done = {(run["variant"], run["seed"]): run["minutes"] for run in results["runs"]}
    missing = [key for key in required if key not in done]
    if missing and results["epochs"] is None:
        results["epochs"] = affordable_epochs(photos, len(missing), end - time.monotonic(), args.image_size, device)
    with tqdm(total=len(missing) * (results["epochs"] or 0), unit="epoch", file=sys.stderr, disable=None) as bar:
        for n_done, (name, seed) in enumerate(missing):
            if end - time.monotonic() < 60 * max(done.values(), default=0):  # the next might not end in time
                print(f"ablate: {len(missing) - n_done} training runs remain; call again to continue", file=sys.stderr)
                break
            bar.set_description(f"{name}, seed {seed}")
            found = train_variant(photos, name, seed, results["epochs"], args.image_size, device, bar.update)
            done[name, seed] = found["minutes"]
            results["runs"].append({"variant": name, "seed": seed, **found})
            results["rows"] = summarize(results["runs"])
            write_files({str(path): (json.dumps(results, indent=1) + "\n").encode()})
    print(markdown(results))
    return int(not done.keys() >= set(required))
