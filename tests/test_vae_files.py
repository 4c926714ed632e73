"""Reading images in every form they come in, and keeping models and mixtures."""
import os
from pathlib import Path

import numpy as np
import pytest

MODELS = Path(__file__).resolve().parent.parent / "models"
CONTAINERS = {
    "npz": lambda path, array: np.savez(path + ".npz", data=array),
    "compressed npz": lambda path, array: np.savez_compressed(path + ".npz", data=array),
    "npz with labels": lambda path, array: np.savez(path + ".npz", labels=np.arange(len(array)), data=array),
    "npz with another key": lambda path, array: np.savez(path + ".npz", images=array),
    "npz with another key and labels": lambda path, array: np.savez(path + ".npz", x=array, labels=np.zeros(2)),
    "npz with other arrays": lambda path, array: np.savez(path + ".npz", other=np.zeros(3), data=array),
    "npz with objects beside": lambda path, array: np.savez(path + ".npz", data=array, other=np.array([{}, None])),
    "npy": lambda path, array: np.save(path + ".npy", array),
}
SCALES = {
    "uint8": lambda array: array,
    "int64": lambda array: array.astype(np.int64),
    "float32 to 1": lambda array: array.astype(np.float32) / 255,
    "float64 to 1": lambda array: array / 255,
    "float32 to 255": lambda array: array.astype(np.float32),
    "float64 to 255": lambda array: array.astype(np.float64),
    "big-endian": lambda array: array.astype(">f8"),
    "column-major": lambda array: np.asfortranarray(array),
}
SHAPES = {"rows": (-1, 784), "images": (-1, 28, 28), "channel first": (-1, 1, 28, 28), "channel last": (-1, 28, 28, 1)}


@pytest.mark.parametrize("container, scale, shape", [
    *((container, "uint8", "images") for container in CONTAINERS),
    *(("npz", scale, shape) for scale in SCALES for shape in SHAPES)])
def test_every_form_of_a_file_gives_the_same_images(vae, tmp_path, container, scale, shape):
    """In one memory order too: sums in another order have other last bits, and so would the model."""
    array = np.random.default_rng(0).permutation(np.arange(5 * 784) % 256).astype(np.uint8)  # pixels of every value
    CONTAINERS[container](str(tmp_path / "images"), SCALES[scale](array.reshape(SHAPES[shape])))
    found = vae.load_images(str(tmp_path / os.listdir(str(tmp_path))[0]))
    assert found.dtype == np.float32 and found.shape == (5, 784) and found.flags.c_contiguous
    assert found == pytest.approx(array.reshape(5, 784) / 255, abs=1e-6)


@pytest.mark.parametrize("shape", [(28, 28), (1, 784)])
def test_one_image(vae, draw, tmp_path, shape):
    array = draw([2])
    np.savez(str(tmp_path / "one.npz"), data=array.reshape(shape))
    assert vae.load_images(str(tmp_path / "one.npz")) == pytest.approx(array.reshape(1, 784) / 255, abs=1e-6)


def test_bool_images_are_black_and_white(vae, draw, tmp_path):
    ink = draw([0, 1]) > 0
    np.savez(str(tmp_path / "bool.npz"), data=ink)
    assert (vae.load_images(str(tmp_path / "bool.npz")) == ink.reshape(2, 784)).all()


@pytest.mark.parametrize("labels", [
    np.array([7, -3, 7]), np.array([7, 3, 7], np.uint8), np.array([7.0, 3.0, 7.0]), np.array([[7], [3], [7]])],
    ids=["int64, one negative", "uint8", "whole floats", "column"])
def test_labels_in_every_form(vae, draw, tmp_path, labels):
    np.savez(str(tmp_path / "val.npz"), data=draw([0, 1, 0]), labels=labels)
    images, found = vae.load_labelled(str(tmp_path / "val.npz"))
    assert images.shape == (3, 784) and found.dtype == np.int64 and (found == labels.flatten()).all()


# ------------------------------------------------------------------------------------------------------ kept and reread

def test_a_mixture_is_reread_as_it_was_kept(vae, tmp_path):
    X = np.random.default_rng(0).normal(size=(200, 2))
    mixture = vae.GaussianMixture().fit(X, [[-1, 0], [1, 0]])
    (tmp_path / "m.pkl").write_bytes(vae.mixture_bytes(mixture, np.array([4, 900])))
    again, labels = vae.load_mixture(str(tmp_path / "m.pkl"))
    assert labels.tolist() == [4, 900]
    assert (again.predict_log_proba(X) == mixture.predict_log_proba(X)).all()


def test_the_committed_model_loads_and_predicts(vae):
    path = MODELS / "vae.pth"
    model, (mixture, labels) = vae.load_model(str(path)), vae.load_mixture(str(MODELS / "gmm_params.pkl"))
    assert path.stat().st_size < 4_000_000 and labels.tolist() == [1, 4, 8]
    drawn = model.decode(vae.torch.tensor(mixture.means_, dtype=vae.torch.float32)).detach().numpy()
    assert drawn.shape == (3, 784) and drawn.max() > 0.5
    found = vae.classify(model, mixture, labels, vae.reconstruct(model, drawn, refined=False).reshape(-1, 784))
    assert found.shape == (3,) and set(found) <= {1, 4, 8}
