"""The page latent.html: what the decoder and the mixture make of the point of the latent plane under the pointer.

One file that needs no network: the decoder's weights and the images are embedded, and the decoder runs in the page's
JavaScript (handin/latent.html, in which this module fills in one JSON).
"""
import base64
import io
import json
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
from PIL import Image
from torch import nn

import vae
from handin.plots import PALETTE

TEMPLATE = Path(__file__).resolve().parent / "latent.html"
MARK = "LATENT_PAGE_DATA"  # where in the template the JSON goes
MOST = 2000                # points of the plane, each with its image
STRIP = 20                 # test images below the plane
COLUMNS = 50               # images in a row of the picture that holds them all


class Points(NamedTuple):
    """Encoded images."""
    images: np.ndarray               # (N, 784) in [0, 1]
    means: np.ndarray                # (N, 2), the encoder's means
    classes: np.ndarray              # (N,)


class Reconstructed(NamedTuple):
    """Test images and what their two reconstructions are worth."""
    images: np.ndarray               # (N, 784) in [0, 1]
    classes: Optional[np.ndarray]    # (N,), or None where they are unknown
    means: np.ndarray                # (N, 2), the encoder's means
    refined: np.ndarray              # (N, 2), the latents of the refined reconstructions
    ssim_from_mean: np.ndarray       # (N,)
    ssim: np.ndarray                 # (N,), of the refined reconstructions


def base64_halves(array):
    """Base64 text of an array as little-endian float16, in C order: as vae.pth stores it, so nothing is lost."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f2").tobytes()).decode()


def decoder_data(model):
    """What the page needs to decode: {"frequencies": base64 of (2, F), "layers": [{"inputs", "outputs", "weights":
    base64 of (outputs, inputs), "biases": base64 of (outputs,)}]}, with a ReLU between two layers. Raises ValueError
    for a decoder that is not made of nn.Linear and nn.ReLU in turn."""
    modules = list(model.decoder)
    if [type(module) for module in modules] != ([nn.Linear, nn.ReLU] * len(modules))[:len(modules) // 2 * 2 + 1]:
        raise ValueError(f"expected a decoder of nn.Linear and nn.ReLU in turn, found {modules}")
    layers = [{"inputs": layer.in_features, "outputs": layer.out_features,
               "weights": base64_halves(layer.weight.detach().cpu()),
               "biases": base64_halves(layer.bias.detach().cpu())} for layer in modules[::2]]
    return {"frequencies": base64_halves(model.frequencies.cpu()), "layers": layers}


def sprite(images):
    """Data URI of one grey PNG with all images (N, 784) in [0, 1], COLUMNS in a row."""
    rows = -(-len(images) // COLUMNS)
    tiles = np.zeros((rows * COLUMNS, vae.SIDE, vae.SIDE), np.uint8)
    tiles[:len(images)] = np.round(255 * images).reshape(-1, vae.SIDE, vae.SIDE)
    tiles = tiles.reshape(rows, COLUMNS, vae.SIDE, vae.SIDE).transpose(0, 2, 1, 3)
    buffer = io.BytesIO()
    Image.fromarray(tiles.reshape(rows * vae.SIDE, COLUMNS * vae.SIDE)).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def square_view(points, share=0.05):
    """(left, right, bottom, top) of the smallest square around points (N, 2), with a margin of `share` of its side."""
    low, high = points.min(0), points.max(0)
    half = (0.5 + share) * (high - low).max() + 1e-6
    x, y = (low + high) / 2
    return [x - half, x + half, y - half, y + half]


def _rounded(array):
    return np.round(np.asarray(array, dtype=np.float64), 5).tolist()


def page_bytes(model, mixture, labels, points, val, test, reach, trained_on=True, predicted=False):
    """The page, UTF-8, the same bytes for the same input, of a VAE on the CPU and a mixture with the label (K,) of each
    component.

    `points`, of which up to MOST are shown, and `val` are Points, `test` is Reconstructed; the assignment's grid ends
    at +-`reach`. `trained_on`: the points are training images, not test images that stand in for them. `predicted`:
    the classes of the points are the mixture's."""
    n_points = len(points.images)
    kept = np.linspace(0, n_points - 1, min(MOST, n_points)).round().astype(int)
    points = Points(*(array[kept] for array in points))
    known = [] if test.classes is None else test.classes.tolist()
    classes = sorted({*labels.tolist(), *points.classes.tolist(), *val.classes.tolist(), *known})
    spread = 3 * np.sqrt(np.diagonal(mixture.covariances_, axis1=1, axis2=2))
    corners = [points.means, val.means, test.means, test.refined, mixture.means_ - spread, mixture.means_ + spread,
               [[-reach, -reach], [reach, reach]]]
    data = {
        "side": vae.SIDE, "colours": [PALETTE[i % len(PALETTE)] for i in range(len(classes))], "classes": classes,
        "reach": reach, "view": _rounded(square_view(np.vstack(corners))),
        "trainedOn": trained_on, "predicted": predicted, "allPoints": n_points, "decoder": decoder_data(model),
        "mixture": {"weights": mixture.weights_.tolist(), "means": mixture.means_.tolist(),
                    "covariances": mixture.covariances_.tolist(), "labels": labels.tolist()},
        "sprite": sprite(np.concatenate([points.images, val.images, test.images])), "columns": COLUMNS,
        "points": {"means": _rounded(points.means), "classes": points.classes.tolist()},
        "val": {"means": _rounded(val.means), "classes": val.classes.tolist()},
        "test": {"means": _rounded(test.means), "refined": _rounded(test.refined), "classes": known,
                 "ssimFromMean": _rounded(test.ssim_from_mean), "ssim": _rounded(test.ssim)}}
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")  # no </script> among the data
    return TEMPLATE.read_text(encoding="utf-8").replace(MARK, text).encode()
