"""What each ingredient of bird.py is worth: one training a variant and seed, scored on photos that took no part.

    python -m benchmarks.bird_quality TRAIN TEST                        the recipe, seed 0
    python -m benchmarks.bird_quality TRAIN TEST --variants all --epochs 15 --seeds 0 1 --jobs 2 --threads 1

TRAIN and TEST are folders of class folders with the same names. As in the real command a fifth of TRAIN is held out to
choose the epoch; TEST is only scored. F1 is (macro + micro) / 2. Finished trainings are appended to --log and not run
again, so that an interrupted table goes on.
"""
import argparse
import dataclasses
import importlib
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

# Fields of bird.Recipe, and in capitals constants of bird.py
VARIANTS = {
    "the recipe": {},
    "mean pooling alone": {"POOLING": ("mean",)},
    "maximum pooling alone": {"POOLING": ("amax",)},
    "twice as deep": {"DEPTHS": (2, 2, 2, 2)},
    "half as wide": {"STEM": (16, 32), "WIDTHS": (32, 64, 128, 256)},
    "no label smoothing": {"label_smoothing": 0.0},
    "no mixup, no CutMix": {"mixup": 0.0, "cutmix": 0.0},
    "no running average": {"average": 0.0},
    "no class weights": {"class_weights": False},
    "no weight decay": {"weight_decay": 0.0},
    "no dropout": {"dropout": 0.0},
    "no crops (whole photos)": {"area": 1.0, "aspect": 1.0},
    "no rotation": {"rotate": 0.0},
    "no mirroring": {"mirror": False},
    "no colour changes": {"colour": 0.0, "tint": 0.0},
    "no augmentation at all": {"area": 1.0, "aspect": 1.0, "rotate": 0.0, "mirror": False, "colour": 0.0, "tint": 0.0,
                               "mixup": 0.0, "cutmix": 0.0},
    "batches of 64": {"batch": 64},
    "batches of 128": {"batch": 128},
}


def measure(train_folder, test_folder, name, seed, epochs, size, threads):
    """One training; returns a dict of numbers."""
    import torch
    torch.set_num_threads(threads)
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import bird
    importlib.reload(bird)  # a variant before this one may have changed constants
    for constant, value in VARIANTS[name].items():
        if constant.isupper():
            setattr(bird, constant, value)
    changes = {"epochs": epochs, "image_size": size, **VARIANTS[name], "seed": seed}
    changes = {key: value for key, value in changes.items() if value is not None and not key.isupper()}
    recipe, device = dataclasses.replace(bird.Recipe(), **changes), bird.pick_device("auto")
    classes, photos = bird.list_photos(train_folder)
    test_classes, test_photos = bird.list_photos(test_folder)
    if test_classes != classes:
        sys.exit(f"{test_folder}: expected the class folders of {train_folder}")
    bank, unreadable = bird.read_bank([path for path, _ in photos], round(bird.MARGIN * recipe.image_size),
                                      2 * threads)
    if unreadable:
        sys.exit(f"{photos[unreadable[0]][0]}: expected readable photos only")
    labels = torch.tensor([label for _, label in photos])
    train, val = bird.stratified_split(labels, recipe.held_out, torch.Generator().manual_seed(seed))
    model = bird.new_classifier(classes, torch.bincount(labels[train], minlength=len(classes)).tolist(), recipe)
    model.mean[:, 0, 0], model.std[:, 0, 0] = bird.channel_statistics(bank, train)
    began = time.monotonic()
    best, history = bird.train_classifier(model, bank, labels, train, val, recipe, device, 1e9,
                                          lambda schedule: None, lambda state, schedule: None)
    seconds = time.monotonic() - began
    model.load_state_dict(best)
    truth, result = torch.tensor([label for _, label in test_photos]), {}
    for column, views in (("F1", bird.TEST_VIEWS), ("F1, one view", ((1.0, False),))):
        found, _ = bird.classify(model, [path for path, _ in test_photos], 2 * threads, views)
        result[column] = bird.average_f1(bird.confusion(truth, torch.from_numpy(found), len(classes)))
    return {**result, "validation F1": max(row["val_f1"] for row in history), "minutes": seconds / 60,
            "n": len(truth), "device": str(device)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--variants", nargs="+", default=["the recipe"], help="names, or: all")
    parser.add_argument("--epochs", type=int, help="of every training (default: the recipe's)")
    parser.add_argument("--image-size", type=int, help="of every training (default: the recipe's)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each training")
    parser.add_argument("--log", default="bird_quality.jsonl")
    args = parser.parse_args()
    names = list(VARIANTS) if args.variants == ["all"] else args.variants
    log = Path(args.log)
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["variant"], row["seed"], row["epochs"], row["image_size"], row["train"]): row for row in rows}
    print(f"mean ± standard deviation over seeds {args.seeds}; {args.jobs} training(s) at a time, {args.threads} "
          f"thread(s) each; epochs: {args.epochs or 'the recipe'}, crops: {args.image_size or 'the recipe'}")
    columns = ("F1", "F1, one view", "validation F1", "minutes")
    print("| variant | " + " | ".join(columns) + " | n |\n" + "|---" * (len(columns) + 2) + "|", flush=True)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        keys = [(name, seed, args.epochs, args.image_size, args.train) for name in names for seed in args.seeds]
        jobs = {key: pool.submit(measure, args.train, args.test, *key[:4], args.threads)
                for key in keys if key not in done}
        for name in names:
            results = []
            for key in (key for key in keys if key[0] == name):
                if key in jobs:
                    done[key] = {"variant": name, "seed": key[1], "epochs": key[2], "image_size": key[3],
                                 "train": key[4], **jobs[key].result()}
                    with log.open("a") as file:
                        file.write(json.dumps(done[key]) + "\n")
                results.append(done[key])
            cells = []
            for column in columns:
                values, digits = np.array([row[column] for row in results]), 1 if column == "minutes" else 4
                spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
                cells.append(f"{values.mean():.{digits}f}{spread}")
            print(f"| {name} | " + " | ".join(cells) + f" | {len(results)} x {results[0]['n']} |", flush=True)


if __name__ == "__main__":
    main()
