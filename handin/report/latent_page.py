"""The page latent.html: the decoded image and the class probabilities of the latent under the pointer.

One file that needs no network: the decoder's weights and the images are embedded, and the decoder runs in the page's
JavaScript (handin/report/latent.html, into which this module inserts one JSON).
"""
import base64
import io
import json
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image

import vae
from common.plots import PALETTE

TEMPLATE = Path(__file__).resolve().parent / "latent.html"
PLACEHOLDER = "LATENT_PAGE_DATA"  # of the JSON in the template
MAX_POINTS = 2000                 # points of the plane, each with its image
N_STRIP_IMAGES = 20                 # test images below the plane
SPRITE_COLUMNS = 50               # images per row of the PNG with all of them


class Points(NamedTuple):
    """Encoded images."""
    images: np.ndarray   # (N, 28, 28) in [0, 1]
    means: np.ndarray    # (N, 2), the encoder's means
    classes: np.ndarray  # (N,)


class TestImages(NamedTuple):
    """Test images as in Points, their classes None if unknown, and their refined latents (N, 2) with the SSIM (N,)
    of the reconstructions from the mean and of the refined ones."""
    images: np.ndarray
    classes: Optional[np.ndarray]
    means: np.ndarray
    refined: np.ndarray
    ssim_from_mean: np.ndarray
    ssim: np.ndarray


def _base64_halves(tensor):
    """Base64 text of a tensor as little-endian float16, in C order: the precision of vae.pth."""
    return base64.b64encode(tensor.detach().numpy().astype("<f2").tobytes()).decode()


def _sprite(images):
    """Data URI of one grey PNG with all images (N, 28, 28) in [0, 1], SPRITE_COLUMNS per row."""
    rows = -(-len(images) // SPRITE_COLUMNS)
    tiles = np.zeros((rows * SPRITE_COLUMNS, vae.SIDE, vae.SIDE), np.uint8)
    tiles[:len(images)] = np.round(255 * images)
    tiles = tiles.reshape(rows, SPRITE_COLUMNS, vae.SIDE, vae.SIDE).transpose(0, 2, 1, 3)
    buffer = io.BytesIO()
    Image.fromarray(tiles.reshape(rows * vae.SIDE, SPRITE_COLUMNS * vae.SIDE)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _rounded(array):
    return np.round(np.asarray(array, dtype=np.float64), 5).tolist()


def page_bytes(model, mixture, labels, points, val, test, grid_limit, from_training=True, predicted=False):
    """The page, UTF-8, the same bytes for the same input, of a VAE on the CPU and a mixture with the label (K,) of each
    component.

    `points`, of which up to MAX_POINTS are shown, and `val` are Points, `test` is TestImages; the assignment's grid
    ends at +-`grid_limit`. `from_training`: the points are training images, not test images as a substitute.
    `predicted`: the classes of the points are the mixture's."""
    n_points = len(points.images)
    kept = np.linspace(0, n_points - 1, min(MAX_POINTS, n_points)).round().astype(int)
    points = Points(*(array[kept] for array in points))
    known = [] if test.classes is None else test.classes.tolist()
    classes = sorted({*labels.tolist(), *points.classes.tolist(), *val.classes.tolist(), *known})
    spread = 3 * np.sqrt(np.diagonal(mixture.covariances_, axis1=1, axis2=2))
    shown = np.vstack([points.means, val.means, test.means, test.refined, mixture.means_ - spread,
                       mixture.means_ + spread, [[-grid_limit, -grid_limit], [grid_limit, grid_limit]]])
    (x, y), half = (shown.min(0) + shown.max(0)) / 2, 0.55 * np.ptp(shown, axis=0).max()  # a square with a margin
    data = {
        "side": vae.SIDE, "colours": [PALETTE[i % len(PALETTE)] for i in range(len(classes))], "classes": classes,
        "reach": grid_limit, "view": _rounded([x - half, x + half, y - half, y + half]), "trainedOn": from_training,
        "predicted": predicted, "allPoints": n_points,
        "decoder": {"priorMeans": model.prior_means.tolist(), "radius": vae.RADIUS * model.prior_std.item(),
                    "frequencies": _base64_halves(model.frequencies),
                    "layers": [{"inputs": layer.in_features, "outputs": layer.out_features,
                                "weights": _base64_halves(layer.weight), "biases": _base64_halves(layer.bias)}
                               for layer in model.decoder[::2]]},  # with a ReLU between them
        "mixture": {"weights": mixture.weights_.tolist(), "means": mixture.means_.tolist(),
                    "covariances": mixture.covariances_.tolist(), "labels": labels.tolist()},
        "sprite": _sprite(np.concatenate([points.images, val.images, test.images])), "columns": SPRITE_COLUMNS,
        "points": {"means": _rounded(points.means), "classes": points.classes.tolist()},
        "val": {"means": _rounded(val.means), "classes": val.classes.tolist()},
        "test": {"means": _rounded(test.means), "refined": _rounded(test.refined), "classes": known,
                 "ssimFromMean": _rounded(test.ssim_from_mean), "ssim": _rounded(test.ssim)}}
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no </script> among the data
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACEHOLDER, text).encode()
