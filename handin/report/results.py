"""What `figures` writes to FIGURES/numbers.json and `report` reads there."""
import dataclasses
from pathlib import Path
from typing import Optional

from common.errors import InputError
from common.files import read_json


@dataclasses.dataclass
class BirdResults:
    """Part I. Scores are those of the test photos unless they are named after the validation photos."""
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
    epochs: int
    history: list            # {"epoch", "train_accuracy", "val_accuracy", "val_loss"} of each epoch
    time_limited: bool       # whether the time limit shortened the schedule
    best_epoch: int
    minutes: float
    device: str
    train_photos: int
    validation_photos: int   # 0 if there were too few, so that the training photos took their place
    validation_accuracy: float
    validation_f1: float
    grad_cam: list           # {"class", "right", "wrong"}, each None or {"photos", "centre", "entropy"}


@dataclasses.dataclass
class DigitResults:
    """Part II, of the test images unless named otherwise."""
    classes: list            # digits
    images: int
    scores: Optional[dict]   # of handin.grading.scores.all_scores; None where the test file has no labels
    accuracy_interval: Optional[list]
    validation: dict         # the same scores, of the labelled images
    labelled_images: int
    validation_ssim: dict    # {digit: mean SSIM of its labelled images, refined}
    ssim: float              # of the refined reconstructions
    ssim_sd: float           # standard deviation over images
    ssim_from_mean: float    # of model(x)
    one_minus_mse: float     # of the refined reconstructions
    manifold: dict           # what is drawn on the grid, see figures_digits.describe_manifold
    inside_grid: float       # share of the means within the grid over the quantiles of N(0, I)
    aggregate_mean: list     # of all means (2,)
    aggregate_covariance: list  # (2, 2)
    scatter_of: str          # "training", or "test" where no training images were given
    scatter_images: int
    pairs: list              # of components, see figures_digits.component_pairs
    within: list             # shares of the scattered means within 1, 2 and 3 standard deviations of their component
    layers: list             # {"name", "shape", "parameters"} of the networks, from image to reconstruction
    parameters: int
    history: list            # {"epoch", "reconstruction", "KL", "SSIM"} of each epoch
    training_images: int
    minutes: float
    device: str
    elbo: dict               # {"test", "training"}: mean in nats per image; without training images the first alone
    elbo_gap: Optional[list]  # between training and test images, see figures_digits.elbo_gap
    settings: dict           # vae.Config, and the prior


PARTS = {"birds": BirdResults, "digits": DigitResults}
MAKERS = {"birds": "python -m handin figures birds TEST --model bird.pth",
          "digits": "python -m handin figures digits VAL TEST --train TRAIN --model vae.pth --mixture gmm_params.pkl"}


def read_numbers(folder):
    """What FIGURES/numbers.json holds, {part: dict}; empty where it is not there. Raises InputError."""
    path = Path(folder, "numbers.json")
    return read_json(path, "the numbers that `python -m handin figures` writes") if path.exists() else {}


def read_results(folder, part):
    """The BirdResults or DigitResults of a folder of figures. Raises InputError."""
    path, maker = Path(folder, "numbers.json"), MAKERS[part]
    found, kind = read_numbers(folder).get(part), PARTS[part]
    wanted = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(found, dict) or set(found) != wanted:
        raise InputError(f"{path}: expected the numbers of the {part} as `{maker}` writes them, found "
                         + ("none" if not isinstance(found, dict) else "others"))
    return kind(**found)
