"""The table "effect of model optimisation": bird.py trained with its recipe and without one technique at a time.

All trainings have the same number of epochs; without --epochs it is what the time allows, learned from one epoch of
the recipe. Accuracy and F1 are those of photos that took no part in training: those of TEST or, without it, a fifth of
TRAIN set aside before anything else. FIGURES/ablation.json is rewritten after each training: a second call with the
same data and settings resumes where the first one stopped.
"""
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path
from unittest import mock

import torch
from tqdm import tqdm

import bird
from common.errors import InputError, bad_input_of
from common.files import read_json, write_files
from handin.scores import all_scores, read_birds

EXAMPLE = "python -m handin ablate birds/train --minutes 60 --seeds 2 --out figures"

# What changes: fields of bird.Recipe, other names of bird.py; "last" keeps the last epoch's weights
VARIANTS = {
    "the recipe": {},
    "no augmentation": {"area": 1.0, "aspect": 1.0, "rotate": 0.0, "mirror": False, "colour": 0.0, "tint": 0.0,
                        "mixup": 0.0, "cutmix": 0.0},
    "no batch normalisation": {"BATCH_NORM": False},
    "AdamW in place of Muon": {"Muon": torch.optim.AdamW},
    "no weight decay": {"weight_decay": 0.0},
    "no dropout": {"dropout": 0.0},
    "no label smoothing": {"label_smoothing": 0.0},
    "no mixup, no CutMix": {"mixup": 0.0, "cutmix": 0.0},
    "no running average": {"average": 0.0},
    "no early stopping": {"patience": 1.0, "last": True},
    "no class weights": {"class_weights": False},
    "no crops": {"area": 1.0, "aspect": 1.0},
    "no rotation": {"rotate": 0.0},
    "no mirroring": {"mirror": False},
    "no colour changes": {"colour": 0.0, "tint": 0.0},
    "mean pooling alone": {"POOLING": ("mean",)},
    "maximum pooling alone": {"POOLING": ("amax",)},
    "batches of 128": {"batch": 128},
    "half as wide": {"STEM": (16, 32), "WIDTHS": (32, 64, 128, 256)},
    "twice as deep": {"DEPTHS": (2, 2, 2, 2)},
    "whole photos at test": {"TEST_VIEWS": ((1.0, False), (1.0, True))},
    "no mirrored view at test": {"TEST_VIEWS": ((0.8, False),)},
}
USUAL = list(VARIANTS)[:11]


@dataclasses.dataclass
class Photos:
    """Decoded photos, their labels, and the indices of those to train on and of those to score."""
    images: object
    labels: torch.Tensor
    classes: list
    learn: torch.Tensor
    score: torch.Tensor


def read_photos(train, test, image_size, workers=4):
    """Photos of TRAIN, and of TEST or a fifth of TRAIN to be scored. Raises InputError."""
    classes, photos = bird.list_photos(train)
    extra = [] if test is None else zip(*read_birds(test, classes))
    paths, labels = zip(*photos, *extra) if photos else ((), ())
    images, unreadable = bird.decode_photos(paths, round(bird.MARGIN * image_size), workers)
    labels, index = torch.tensor(labels, dtype=torch.long), torch.arange(len(paths))
    readable = ~torch.isin(index, torch.tensor(unreadable, dtype=torch.long))
    learn, score = index[readable & (index < len(photos))], index[readable & (index >= len(photos))]
    if test is None:
        rest, apart = bird.stratified_split(labels[learn], 0.2, torch.Generator().manual_seed(20))
        learn, score = learn[rest], learn[apart]
    if len(score) == 0 or len(labels[learn].unique()) < 2:
        raise InputError(f"{test or train}: expected readable photos of at least two classes to learn and some to "
                         f"score, found {len(learn)} and {len(score)}")
    return Photos(images, labels, classes, learn, score)


def train_variant(photos, name, seed, epochs, image_size, device, each_epoch=lambda: None):
    """One training; returns {"accuracy", "f1" (average F1), "minutes"} on the scored photos."""
    fields = {field.name for field in dataclasses.fields(bird.Recipe)}
    changes = {key: value for key, value in VARIANTS[name].items() if key in fields}
    others = {key: value for key, value in VARIANTS[name].items() if key not in fields and key != "last"}
    recipe = dataclasses.replace(bird.Recipe(), epochs=epochs, image_size=image_size, seed=seed, **changes)
    began, last = time.monotonic(), {}

    def after_epoch(state, schedule):
        last.update(state["average"])
        each_epoch()

    with mock.patch.dict(vars(bird), others):
        parts = bird.stratified_split(photos.labels[photos.learn], recipe.held_out, torch.Generator().manual_seed(seed))
        train, val = (photos.learn[part] for part in parts)
        counts = torch.bincount(photos.labels[train], minlength=len(photos.classes)).tolist()
        model = bird.new_classifier(photos.classes, counts, recipe)
        best, _ = bird.train_classifier(model, photos.images, photos.labels, train, val if len(val) else train, recipe,
                                        device, 1e9, lambda schedule: None, after_epoch)
        model.load_state_dict(last if "last" in VARIANTS[name] else best)
        model.eval()
        found = torch.cat([bird.predict_probabilities(model, photos.images[part], bird.TEST_VIEWS).argmax(1)
                           for part in photos.score.split(128)])
    scores = all_scores(photos.labels[photos.score].numpy(), found.numpy())
    return {"accuracy": scores["accuracy"], "f1": scores["average_f1"], "minutes": (time.monotonic() - began) / 60}


def affordable_epochs(photos, trainings, seconds, image_size, device):
    """Epochs that each of so many trainings may have: 1 to those of the recipe. Trains one to learn its time."""
    epoch = 60 * train_variant(photos, "the recipe", 0, 1, image_size, device)["minutes"]
    return max(1, min(bird.Recipe.epochs, int(0.95 * (seconds - epoch) / (epoch * trainings))))


def table(runs):
    """Rows of the table from the runs: a dict a variant, in the order of VARIANTS, those not yet trained left out:
    "accuracy", "f1" and "minutes" are means, "accuracy_sd" and "f1_sd" None for one seed."""
    rows = []
    for name in sorted({run["variant"] for run in runs}, key=list(VARIANTS).index):
        found = sorted((run for run in runs if run["variant"] == name), key=lambda run: run["seed"])
        row = {"variant": name, "seeds": [run["seed"] for run in found]}
        for key in ("accuracy", "f1", "minutes"):
            values = [run[key] for run in found]
            row[key] = statistics.fmean(values)
            row[f"{key}_sd"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows


def markdown(results):
    """The table as text."""
    def both(row, key):
        return f"{row[key]:.4f}" + ("" if row[f"{key}_sd"] is None else f" ± {row[f'{key}_sd']:.4f}")

    return "\n".join([
        "| training | accuracy | average F1 | minutes | seeds |", "|---|---|---|---|---|",
        *(f"| {row['variant']} | {both(row, 'accuracy')} | {both(row, 'f1')} | {row['minutes']:.1f} | "
          f"{len(row['seeds'])} |" for row in results["rows"]),
        f"\nOn {results['photos']} photos that took no part in training; F1 = (macro + micro) / 2; {results['epochs']} "
        f"epochs at {results['image_size']} px; mean ± standard deviation over seeds; {results['device']}."])


def add_arguments(parser):
    parser.add_argument("train", metavar="TRAIN", help="class folders of photos")
    parser.add_argument("test", metavar="TEST", nargs="?", help="class folders to score (default: a fifth of TRAIN)")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all trainings together (default 60)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="trainings a variant (default 1)")
    parser.add_argument("--variants", nargs="+", metavar="NAME", default=USUAL,
                        help=f"'all' or some of: {', '.join(VARIANTS)}")
    parser.add_argument("--epochs", type=int, metavar="N", help="of every training (default: what the time allows)")
    parser.add_argument("--image-size", type=int, metavar="PX", default=96, help="side of the crops (default 96)")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps (default: the best there)")
    parser.add_argument("--out", type=Path, default=Path("figures"), metavar="FOLDER", help="default: figures")


@bad_input_of(bird)
def run(args):
    """Trains what is missing; returns 0, or 1 when the time was not enough for all."""
    end = time.monotonic() + 60 * args.minutes
    names = list(VARIANTS) if args.variants == ["all"] else list(dict.fromkeys(["the recipe", *args.variants]))
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise InputError(f"ablate: expected variants of --help, found '{unknown[0]}'")
    if min(args.minutes, args.seeds, args.epochs or 1) <= 0 or not 32 <= args.image_size <= 1024:
        raise InputError("ablate: expected --minutes, --seeds and --epochs above 0 and --image-size from 32 to 1024, "
                         f"found {args.minutes}, {args.seeds}, {args.epochs} and {args.image_size}")
    device = bird.pick_device(args.device)
    photos = read_photos(args.train, args.test, args.image_size)
    settings = {"data": [str(Path(path).resolve()) for path in (args.train, args.test) if path],
                "photos": len(photos.score), "image_size": args.image_size, "device": str(device),
                "torch": torch.__version__, "threads": torch.get_num_threads()}
    path, results = args.out / "ablation.json", {**settings, "epochs": args.epochs, "runs": [], "rows": []}
    if path.exists():
        results = read_json(path, "an earlier ablation")
        if {**results, **settings, "epochs": args.epochs or results.get("epochs")} != results:
            raise InputError(f"{path}: expected an ablation of the same photos, size and epochs to go on with, found "
                             "another; move it away or name another --out")
    wanted = [(name, seed) for seed in range(args.seeds) for name in names]
    done = {(run["variant"], run["seed"]): run["minutes"] for run in results["runs"]}
    missing = [key for key in wanted if key not in done]
    if missing and results["epochs"] is None:
        results["epochs"] = affordable_epochs(photos, len(missing), end - time.monotonic(), args.image_size, device)
    with tqdm(total=len(missing) * (results["epochs"] or 0), unit="epoch", file=sys.stderr, disable=None) as bar:
        for number, (name, seed) in enumerate(missing):
            if end - time.monotonic() < 60 * max(done.values(), default=0):  # this one might not end in time
                print(f"ablate: {len(missing) - number} trainings are left for another call", file=sys.stderr)
                break
            bar.set_description(f"{name}, seed {seed}")
            found = train_variant(photos, name, seed, results["epochs"], args.image_size, device, bar.update)
            done[name, seed] = found["minutes"]
            results["runs"].append({"variant": name, "seed": seed, **found})
            results["rows"] = table(results["runs"])
            write_files({str(path): (json.dumps(results, indent=1) + "\n").encode()})
    print(markdown(results))
    return int(not done.keys() >= set(wanted))
