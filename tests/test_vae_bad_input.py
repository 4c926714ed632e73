"""Bad input that vae.py alone can get: exit code 2, one line that names the culprit, and every file as it was. What
bird.py refuses too is in test_both_scripts.py."""
import io
import pickle
import random
import zipfile

import numpy as np
import pytest
from refusals import SENTINEL, Bomb, refuser


@pytest.fixture
def old_outputs(tmp_path):
    """The folder of `call` with every output there already."""
    for name in ("vae.pth", "gmm_params.pkl", "vae.csv", "vae_reconstructed.npz"):
        (tmp_path / name).write_bytes(SENTINEL)
    return tmp_path


@pytest.fixture
def refuse(call, old_outputs):
    return refuser(call, old_outputs)


# -------------------------------------------------------------------------------------------------------------- images

def _npz(array=None, **arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **(arrays if array is None else {"data": array}))
    return buffer.getvalue()


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _zip(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_npy", ".npy"), content)
    return buffer.getvalue()


def _encrypted(content):
    """The archive with the flag of encryption set on its only member."""
    content, directory = bytearray(content), content.rindex(b"PK\x01\x02")
    content[6] |= 1
    content[directory + 8] |= 1
    return bytes(content)


IMAGES = np.random.default_rng(0).random((4, 28, 28))
GOOD = _npz(IMAGES)


def _with(value):
    images = IMAGES.copy()
    images[1, 2, 3] = value
    return _npz(images)


BAD_IMAGES = {
    "empty file": b"",
    "text": b"these are not images\n",
    "truncated": GOOD[:len(GOOD) // 2],
    "encrypted": _encrypted(GOOD),
    "npy that promises too much": _npy(IMAGES).replace(b"(4, 28, 28), }        ", b"(4000000000000, 28, 28), }")[:4000],
    "npz without arrays": _npz(**{}),
    "npz with labels alone": _npz(labels=np.arange(4)),
    "npz of two arrays without data": _npz(a=IMAGES, b=IMAGES),
    "zip of a text file": _zip(readme="hello"),
    "zip with a text named data": _zip(data="hello"),
    "zip with a text for an array": _zip(data_npy="hello"),
    "object array": _npz(np.array([{}, {}, "x", None], dtype=object)),
    "pickle": pickle.dumps(IMAGES),
    "strings": _npz(np.array([["1"] * 784] * 3)),
    "complex": _npz(IMAGES.astype(complex)),
    "a number": _npz(np.float64(3)),
    "too narrow": _npz(np.zeros((4, 27, 28))),
    "colour": _npz(np.zeros((4, 3, 28, 28))),
    "no images": _npz(np.zeros((0, 28, 28))),
    "NaN": _with(np.nan),
    "infinity": _with(np.inf),
    "minus infinity": _with(-np.inf),
    "negative": _with(-0.01),
    "above 255": _with(255.5),
    "integers above 255": _npz(np.full((4, 784), 256)),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images(vae, refuse, trained, old_outputs, kind):
    (old_outputs / "broken.npz").write_bytes(BAD_IMAGES[kind])
    refuse("broken.npz", "broken.npz", "test_reconstruction", trained.model)
    with pytest.raises(vae.InputError, match="broken.npz"):
        vae.load_labelled("broken.npz")


@pytest.mark.parametrize("place", range(4))
def test_each_command_reads_its_images_that_way(refuse, data, trained, old_outputs, place):
    (old_outputs / "broken.npz").write_bytes(BAD_IMAGES["NaN"])
    refuse("broken.npz", *(("broken.npz", data.val, "train", "vae.pth", "gmm_params.pkl"),
                           (data.train, "broken.npz", "train", "vae.pth", "gmm_params.pkl"),
                           ("broken.npz", "test_classifier", trained.model, trained.mixture),
                           ("broken.npz", "test_reconstruction", trained.model))[place])


@pytest.mark.parametrize("kind", ["npz", "compressed", "npy"])
def test_damaged_files_are_read_or_refused(vae, kind, tmp_path):
    """A byte changed at random: whatever NumPy and zipfile make of it, nothing but InputError comes out."""
    labels, buffer, path = np.array([1, 2, 1, 2]), io.BytesIO(), str(tmp_path / "damaged")
    {"npz": lambda: np.savez(buffer, data=IMAGES, labels=labels),
     "compressed": lambda: np.savez_compressed(buffer, data=IMAGES[:, :, :] > 0.5, labels=labels),
     "npy": lambda: np.save(buffer, IMAGES)}[kind]()
    good, chance, refused = buffer.getvalue(), random.Random(0), 0
    places = {"npz": [*range(200), *range(len(good) - 500, len(good))], "compressed": range(len(good)),
              "npy": range(128)}[kind]  # the headers: a byte of a plain image is a pixel
    for _ in range(600):
        damaged = bytearray(good)
        damaged[chance.choice(places)] = chance.randrange(256)
        with open(path, "wb") as file:
            file.write(damaged)
        try:
            images = vae.load_images(path) if kind == "npy" else vae.load_labelled(path)[0]
            assert images.shape[1] == 784
        except vae.InputError as error:
            refused += 1
            assert path in str(error) and "\n" not in str(error)
    assert refused > 100


# -------------------------------------------------------------------------------------------------------------- labels

BAD_LABELS = {
    "none": _npz(data=IMAGES),
    "npy": _npy(IMAGES),
    "one class": _npz(data=IMAGES, labels=np.full(4, 7)),
    "too few": _npz(data=IMAGES, labels=np.arange(3)),
    "one-hot": _npz(data=IMAGES, labels=np.eye(4)),
    "fractions": _npz(data=IMAGES, labels=np.array([0.5, 1, 2, 3])),
    "NaN": _npz(data=IMAGES, labels=np.array([np.nan, 1, 2, 3])),
    "infinite": _npz(data=IMAGES, labels=np.array([np.inf, 1, 2, 3])),
    "words": _npz(data=IMAGES, labels=np.array(["one", "four", "eight", "one"])),
    "objects": _npz(data=IMAGES, labels=np.array([1, None, 2, 3])),
    "text in the archive": _zip(data_npy=_npy(IMAGES), labels="1 2 3 4"),
}


@pytest.mark.parametrize("labels", BAD_LABELS)
def test_bad_validation_labels(refuse, data, old_outputs, labels):
    (old_outputs / "broken.npz").write_bytes(BAD_LABELS[labels])
    refuse("broken.npz", data.train, "broken.npz", "train", "vae.pth", "gmm_params.pkl", "--epochs", "1")


def test_fewer_images_than_classes(refuse, data, old_outputs):
    np.savez(str(old_outputs / "few.npz"), data=np.load(str(data.train))["data"][:2])
    refuse("few.npz", "few.npz", data.val, "train", "vae.pth", "gmm_params.pkl")


# ------------------------------------------------------------------------------------------------------------- mixture

PARTS = {"weights": np.array([0.5, 0.5]), "means": np.array([[0.0, 0], [4, 0]]),
         "covariances": np.array([np.eye(2)] * 2), "labels": np.array([1, 4])}
KEPT = pickle.dumps(PARTS, protocol=4)

BAD_MIXTURES = {
    "empty file": b"",
    "text": b"this is no mixture\n",
    "truncated": KEPT[:len(KEPT) // 2],
    "truncated at the end": KEPT[:-1],
    "nothing": pickle.dumps(None),
    "an empty dict": pickle.dumps({}),
    "a hostile pickle": pickle.dumps(Bomb("marker")),
    "a hostile part": pickle.dumps({**PARTS, "extra": Bomb("marker")}),
    "a hostile label": pickle.dumps({**PARTS, "labels": np.array([Bomb("marker"), 4], dtype=object)}),
    "a function of the system": b"cos\nsystem\n(S'mkdir marker'\ntR.",
    "a function of numpy": pickle.dumps({**PARTS, "extra": np.load}),
    "getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
    "an array of a terabyte": b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L1000000000000L\ntS'b'\ntR.",
    **{f"no {key}": pickle.dumps({other: PARTS[other] for other in PARTS if other != key}) for key in PARTS},
    **{f"{key} of another length": pickle.dumps({**PARTS, key: np.concatenate([PARTS[key], PARTS[key][:1]])})
       for key in PARTS},
    **{f"{key} without entries": pickle.dumps({**PARTS, key: PARTS[key][:0]}) for key in PARTS},
    **{f"{key} of NaN": pickle.dumps({**PARTS, key: PARTS[key] * np.nan}) for key in PARTS},
    **{f"{key} infinite": pickle.dumps({**PARTS, key: PARTS[key] + np.inf}) for key in PARTS},
    **{f"{key} of words": pickle.dumps({**PARTS, key: np.full(PARTS[key].shape, "x")}) for key in PARTS},
    **{f"{key} of None": pickle.dumps({**PARTS, key: None}) for key in PARTS},
    "no component": pickle.dumps({key: PARTS[key][:0] for key in PARTS}),
    "means in three dimensions": pickle.dumps(
        {**PARTS, "means": np.zeros((2, 3)), "covariances": np.array([np.eye(3)] * 2)}),
    "a negative weight": pickle.dumps({**PARTS, "weights": np.array([-0.5, 1.5])}),
    "a covariance that is none": pickle.dumps({**PARTS, "covariances": np.array([np.eye(2), -np.eye(2)])}),
}


@pytest.mark.parametrize("name", BAD_MIXTURES)
def test_bad_mixture(refuse, data, trained, old_outputs, name):
    (old_outputs / "broken.pkl").write_bytes(BAD_MIXTURES[name])
    refuse("broken.pkl", data.test, "test_classifier", trained.model, "broken.pkl")
    assert not (old_outputs / "marker").exists()


def test_the_parts_that_the_bad_mixtures_change_are_good(call, data, trained, tmp_path):
    (tmp_path / "good.pkl").write_bytes(KEPT)
    assert call(data.test, "test_classifier", trained.model, "good.pkl").code == 0


def test_model_and_mixture_in_one_file(refuse, data):
    """The second would overwrite the first."""
    refuse("both", data.train, data.val, "train", "both", "both", "--epochs", "1", "--device", "cpu", "--quiet")
