"""Images and labels in every form that they come in; model and mixture files."""
import os
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

CONTAINERS = {
    "npz": lambda path, array: np.savez(path + ".npz", data=array),
    "compressed npz": lambda path, array: np.savez_compressed(path + ".npz", data=array),
    "npz with labels": lambda path, array: np.savez(path + ".npz", labels=np.arange(len(array)), data=array),
    "npz with another key": lambda path, array: np.savez(path + ".npz", images=array),
    "npz with another key and labels": lambda path, array: np.savez(path + ".npz", x=array, labels=np.zeros(2)),
    "npz with other arrays": lambda path, array: np.savez(path + ".npz", other=np.zeros(3), data=array),
    "npz with objects": lambda path, array: np.savez(path + ".npz", data=array, other=np.array([{}, None])),
    "npy": lambda path, array: np.save(path + ".npy", array),
}
FORMS = [  # dtype, divisor, memory order
    ("uint8", 1, "C"), ("int64", 1, "C"), ("float32", 255, "C"), ("float64", 255, "C"), ("float32", 1, "C"),
    ("float64", 1, "C"), (">f8", 1, "C"), ("uint8", 1, "F")]
SHAPES = {"rows": (-1, 784), "images": (-1, 28, 28), "channel first": (-1, 1, 28, 28), "channel last": (-1, 28, 28, 1)}


@pytest.mark.parametrize("container, form, shape, n", [
    *((container, FORMS[0], "images", 5) for container in CONTAINERS),
    *(("npz", form, shape, 5) for form in FORMS for shape in SHAPES),
    *(("npz", FORMS[0], shape, 1) for shape in (*SHAPES, (28, 28)))])
def test_every_form_of_a_file_gives_the_same_images(vae, tmp_path, container, form, shape, n):
    """Also in the same memory order: sums in another order differ in their last bits, and so would the model."""
    array = np.random.default_rng(0).permutation(np.arange(n * 784) % 256).astype(np.uint8)  # pixels of every value
    (dtype, divisor, order), reshaped = form, array.reshape(SHAPES.get(shape, shape))
    stored = (reshaped / divisor if divisor > 1 else reshaped).astype(dtype, order=order)
    CONTAINERS[container](str(tmp_path / "images"), stored)
    digits = vae.load_digits(str(tmp_path / os.listdir(str(tmp_path))[0]))
    images, index = digits[range(n)]
    assert digits.images.flags.c_contiguous and images.dtype == torch.float32 and images.shape == (n, 28, 28)
    assert images.numpy() == pytest.approx(array.reshape(n, 28, 28) / 255, abs=1e-6)
    assert index.tolist() == list(range(n))


@pytest.mark.parametrize("pixels, scale", [
    (np.array([0, 1], np.uint8), 1), (np.array([0, 1]), 1), (np.array([False, True]), 1), (np.zeros(1), 1),
    (np.array([0, 1.000001]), 1), (np.array([-1e-4, 1], np.float32), 1), (np.array([0, 255], np.uint8), 255),
    (np.array([128]), 255), (np.array([0, 0.5, 255]), 255), (np.array([0.0, 40]), 255),
    *((np.array([0, high]), None) for high in (2, 10, 15.9, 256, np.nan, np.inf)), (np.array([-0.01, 1]), None)])
def test_pixel_scale(vae, tmp_path, pixels, scale):
    images, path = np.resize(pixels, (2, 28, 28)), str(tmp_path / "images.npz")
    np.savez(path, data=images)
    if scale:
        digits = vae.load_digits(path)
        assert vae.pixel_scale(images) == digits.scale == scale
        assert digits[0][0].numpy() == pytest.approx(np.clip(images[0] / scale, 0, 1))
    else:
        with pytest.raises(ValueError, match=r"0\.\.1 or 0\.\.255"):
            vae.pixel_scale(images)
        with pytest.raises(vae.InputError, match="images.npz: expected .* found .*0..255"):
            vae.load_digits(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("labels", [
    np.array([7, -3, 7]), np.array([7, 3, 7], np.uint8), np.array([7.0, 3.0, 7.0]), np.array([[7], [3], [7]]),
    np.array([True, False, True])], ids=["int64, one negative", "uint8", "whole floats", "column", "bool"])
def test_labels_in_every_form(vae, draw, tmp_path, labels):
    np.savez(str(tmp_path / "val.npz"), data=draw([0, 1, 0]), labels=labels)
    digits = vae.load_digits(str(tmp_path / "val.npz"), labelled=True)
    assert digits.labels.dtype == np.int64 and digits.labels.tolist() == labels.flatten().tolist()


@pytest.mark.parametrize("labels", [None, [4, 8, 1, 1, 4, 8, 8]])
def test_batches_are_the_items_one_by_one(vae, draw, labels):
    digits = vae.DigitDataset(draw(np.arange(7) % 4), labels)
    images, expected = torch.stack([digits[i][0] for i in range(7)]), labels or list(range(7))
    assert len(digits) == 7 and [int(digits[i][1]) for i in range(7)] == expected
    for loader in (vae.batches(digits, 3), DataLoader(digits, batch_size=3), [digits[[0, 1, 2, 3]], digits[[4, 5, 6]]]):
        found = [torch.cat(part) for part in zip(*loader)]
        assert torch.equal(found[0], images) and found[1].tolist() == expected and found[1].dtype == torch.int64
    shuffled = list(vae.batches(vae.DigitDataset(digits.images), 3, torch.Generator().manual_seed(0)))
    index = torch.cat([index for _, index in shuffled])
    assert [len(x) for x, _ in shuffled] == [3, 3] and len(set(index.tolist())) == 6
    assert torch.equal(torch.cat([x for x, _ in shuffled]), images[index])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_mixture_files_of_every_pickle_protocol(vae, tmp_path, protocol):
    """Below protocol 4 with the module names of NumPy 1."""
    X, path, model = np.random.default_rng(0).normal(size=(200, 2)), tmp_path / "gmm_params.pkl", vae.VAE(2)
    mixture = vae.GaussianMixture().fit(X, [[-1, 0], [1, 0]])
    vae.write_files({str(path): lambda file: vae.save_mixture(mixture, np.array([4, 900]), model, file)})
    content = pickle.loads(path.read_bytes())
    content["means"] = np.asfortranarray(content["means"])
    content = pickle.dumps(content, protocol)
    path.write_bytes(content if protocol > 3 else content.replace(b"numpy._core", b"numpy.core"))
    again, labels = vae.load_mixture(str(path), model)
    assert labels.tolist() == [4, 900]
    assert (again.predict_log_proba(X) == mixture.predict_log_proba(X)).all()
    with pytest.raises(vae.InputError, match="another model"):
        vae.load_mixture(str(path), vae.VAE(2))
