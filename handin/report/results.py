"""The contents of FIGURES/numbers.json, which `figures` writes and `report` reads, and the histories of the scripts."""
import dataclasses
import functools
import operator
from pathlib import Path
from typing import Optional

import numpy as np

from common.errors import InputError
from common.files import read_json
from common.text import one_line


@dataclasses.dataclass
class BirdResults:
    """Part I. Scores are of the test photos unless named after the validation photos."""
    classes: list            # names
    photos: int
    scores: dict             # of handin.grading.scores.all_scores
    accuracy_interval: list  # 95 % (Wilson)
    per_class: list          # {"class", "precision", "recall", "f1", "photos"}
    confusions: list         # [true class, predicted class, photos] of the most frequent ones
    layers: list             # {"name", "shape", "parameters"} of the network, from input to output
    parameters: int
    image_size: int          # px
    settings: dict           # bird.Config
    crop_sizes: list         # px, that the training used, ascending
    epochs: int
    history: list            # {"epoch", "train_accuracy", "val_accuracy", "val_loss"} of each epoch
    time_limited: bool       # whether the time limit shortened the schedule
    best_epoch: int
    minutes: float
    device: str
    train_photos: int
    validation_photos: int   # 0 if there were too few and the training photos were used instead
    validation_accuracy: float
    validation_f1: float
    grad_cam: list           # {"class", "right", "wrong"}, each None or {"photos", "centre", "entropy"}


@dataclasses.dataclass
class DigitResults:
    """Part II, of the test images unless named otherwise."""
    classes: list            # digits
    images: int
    scores: Optional[dict]   # of handin.grading.scores.all_scores; None if the test file has no labels
    accuracy_interval: Optional[list]
    validation: dict         # the same scores, of the labelled images
    labelled_images: int
    validation_ssim: dict    # {digit: mean SSIM of its labelled images, refined}
    ssim: float              # of the refined reconstructions
    ssim_sd: float           # standard deviation over images
    ssim_from_mean: float    # of model(x)
    one_minus_mse: float     # of the refined reconstructions
    manifold: dict           # facts on the grid, see figures_digits.describe_manifold
    inside_grid: float       # share of the means within the grid over the quantiles of N(0, I)
    aggregate_mean: list     # of all means (2,)
    aggregate_covariance: list  # (2, 2)
    scatter_of: str          # "training", or "test" without training images
    scatter_images: int
    pairs: list              # of components, see figures_digits.component_pairs
    within: list             # shares of the scattered means within 1, 2 and 3 standard deviations of their component
    layers: list             # {"name", "shape", "parameters"} of the networks, from image to reconstruction
    parameters: int
    history: list            # {"epoch", "reconstruction", "KL", "SSIM"} of each epoch
    training_images: int
    minutes: float
    device: str
    elbo: dict               # {"test", "training"}: mean in nats per image; only the first without training images
    elbo_gap: Optional[list]  # between training and test images, see figures_digits.elbo_gap
    settings: dict           # vae.Config, and the prior


PARTS = {"birds": BirdResults, "digits": DigitResults}
COMMANDS = {"birds": "python -m handin figures birds TEST --model bird.pth",
          "digits": "python -m handin figures digits VAL TEST --train TRAIN --model vae.pth --mixture gmm_params.pkl"}


def read_history(path, script, row_keys, keys):
    """The record that a script's training writes next to its model, with `keys` ("a.b" is nested) and, of each row of
    its "epochs", finite `row_keys`. Raises InputError."""
    expected = f"the history that {script}'s train writes next to its model"
    record = read_json(path, expected)
    try:
        for key in keys:
            functools.reduce(operator.getitem, key.split("."), record)
        rows = [[float(row[key]) for key in row_keys] for row in record["epochs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: expected {expected}, found one without {one_line(error)}") from None
    if not np.isfinite(rows).all():
        raise InputError(f"{path}: expected {expected}, found values that are not finite")
    return record


def read_numbers(folder):
    """The content of FIGURES/numbers.json, {part: dict}; {} if it is missing. Raises InputError."""
    path = Path(folder, "numbers.json")
    return read_json(path, "the numbers that `python -m handin figures` writes") if path.exists() else {}


def read_results(folder, part):
    """The BirdResults or DigitResults of a folder of figures. Raises InputError."""
    path, command = Path(folder, "numbers.json"), COMMANDS[part]
    found, kind = read_numbers(folder).get(part), PARTS[part]
    expected = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(found, dict) or set(found) != expected:
        raise InputError(f"{path}: expected the {part} numbers as `{command}` writes them, found "
                         + ("none" if not isinstance(found, dict) else "others"))
    return kind(**found)
