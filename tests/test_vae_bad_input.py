"""Bad input of vae.py: exit code 2, one line that names the file, and no file changed. What both scripts refuse is in
test_both_scripts.py."""
import io
import pickle
import random
import zipfile

import numpy as np
import pytest
import torch
from refusals import Bomb, refuser, saved


@pytest.fixture
def refuse(call, folder):
    return refuser(call, folder)


@pytest.fixture
def commands(data, trained):
    """commands(train=, val=, test=): the words of the three commands."""
    def commands(train=data.train, val=data.val, test=data.test):
        return ((train, val, "train", "vae.pth", "gmm_params.pkl", "--epochs", "2", "--device", "cpu"),
                (test, "test_reconstruction", trained.model),
                (test, "test_classifier", trained.model, trained.mixture))

    return commands


def _written(write, *args, **named):
    buffer = io.BytesIO()
    write(buffer, *args, **named)
    return buffer.getvalue()


def _npz(array=None, **arrays):
    return _written(np.savez, **(arrays if array is None else {"data": array}))


def _zip(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_npy", ".npy"), content)
    return buffer.getvalue()


def _encrypted(content):
    """The archive with the encryption flag of its only member set."""
    content, directory = bytearray(content), content.rindex(b"PK\x01\x02")
    content[6] |= 1
    content[directory + 8] |= 1
    return bytes(content)


IMAGES = np.random.default_rng(0).random((4, 28, 28))
GOOD, HUGE = _npz(IMAGES), b"(4000000000000, 28, 28), }"

BAD_IMAGES = {
    "empty file": b"",
    "text": b"these are not images\n",
    "HTML": b"<!DOCTYPE html>\n<html><body>404: file not found</body></html>\n",
    "truncated": GOOD[:len(GOOD) // 2],
    "encrypted": _encrypted(GOOD),
    "npy that promises too much": _written(np.save, IMAGES).replace(b"(4, 28, 28), }" + b" " * 12, HUGE)[:4000],
    "npz with labels alone": _npz(labels=np.arange(4)),
    "npz of two arrays without data": _npz(a=IMAGES, b=IMAGES),
    "zip of a text file": _zip(readme="hello"),
    "zip with a text named data": _zip(data="hello"),
    "zip with a text for an array": _zip(data_npy="hello"),
    "object array": _npz(np.array([{}, {}, "x", None], dtype=object)),
    "pickle": pickle.dumps(IMAGES),
    "strings": _npz(np.array([["1"] * 784] * 3)),
    "a number": _npz(np.float64(3)),
    "too narrow": _npz(np.zeros((4, 27, 28))),
    "no images": _npz(np.zeros((0, 28, 28))),
    "NaN": _npz(IMAGES * [np.nan]),
    "above 255": _npz(IMAGES + 255),
}


@pytest.mark.parametrize("kind", ["npz", "compressed", "npy"])
def test_damaged_files_are_read_or_refused(vae, kind, tmp_path):
    """With a byte changed at random, nothing but an InputError is raised."""
    path, arrays = str(tmp_path / "damaged"), {"data": IMAGES > 0.5, "labels": np.array([1, 2, 1, 2])}
    good = {"npz": _written(np.savez, **arrays), "compressed": _written(np.savez_compressed, **arrays),
            "npy": _written(np.save, IMAGES)}[kind]
    places = {"npz": [*range(200), *range(len(good) - 500, len(good))], "compressed": range(len(good)),
              "npy": range(128)}[kind]  # the headers: a changed byte of a plain image is a pixel
    chance, refused = random.Random(0), 0
    for _ in range(600):
        damaged = bytearray(good)
        damaged[chance.choice(places)] = chance.randrange(256)
        with open(path, "wb") as file:
            file.write(damaged)
        try:
            assert vae.load_digits(path, labelled=kind != "npy")[0][0].shape == (28, 28)
        except vae.InputError as error:
            refused += 1
            assert path in str(error) and "\n" not in str(error)
    assert refused > 100


BAD_LABELS = {
    "none": _npz(data=IMAGES),
    "npy": _written(np.save, IMAGES),
    "one class": _npz(data=IMAGES, labels=np.full(4, 7)),
    "too few": _npz(data=IMAGES, labels=np.arange(3)),
    "one-hot": _npz(data=IMAGES, labels=np.eye(4)),
    "fractions": _npz(data=IMAGES, labels=np.array([0.5, 1, 2, 3])),
    "NaN": _npz(data=IMAGES, labels=np.array([np.nan, 1, 2, 3])),
    "words": _npz(data=IMAGES, labels=np.array(["one", "four", "eight", "one"])),
    "objects": _npz(data=IMAGES, labels=np.array([1, None, 2, 3])),
    "text in the archive": _zip(data_npy=_written(np.save, IMAGES), labels="1 2 3 4"),
}


@pytest.mark.parametrize("kind, content, labelled", [*((kind, BAD_IMAGES[kind], False) for kind in BAD_IMAGES),
                                                     *((kind, BAD_LABELS[kind], True) for kind in BAD_LABELS)])
def test_bad_images_and_labels(vae, refuse, commands, folder, kind, content, labelled):
    """The message is our own: NumPy's advises to load the file with allow_pickle."""
    (folder / "broken.npz").write_bytes(content)
    words = commands(val="broken.npz")[0] if labelled else commands(test="broken.npz")[1]
    assert "pickle" not in refuse("broken.npz", *words).err
    if not labelled:
        with pytest.raises(vae.InputError, match="broken.npz"):
            vae.load_digits("broken.npz", labelled=True)


def test_each_command_refuses_bad_images_and_training_fewer_than_classes(refuse, commands, folder):
    (folder / "broken.npz").write_bytes(BAD_IMAGES["NaN"])
    np.savez(str(folder / "few.npz"), data=IMAGES[:2])
    for words in (*commands(train="broken.npz", test="broken.npz"), commands(val="broken.npz")[0]):
        refuse("broken.npz", *words)
    refuse("few.npz", *commands(train="few.npz")[0])


PARTS = {"weights": np.array([0.25, 0.25, 0.5]), "means": np.array([[0.0, 0], [4, 0], [0, 4]]),
         "covariances": np.array([np.eye(2)] * 3), "labels": np.array([1, 4, 8])}
SAVED = pickle.dumps(PARTS, protocol=4)


def _changed(**parts):
    return pickle.dumps({**PARTS, **parts})


BAD_MIXTURES = {
    "empty file": b"",
    "text": b"this is no mixture\n",
    "truncated": SAVED[:len(SAVED) // 2],
    "truncated at the end": SAVED[:-1],
    "an empty dict": pickle.dumps({}),
    **{f"a hostile pickle, protocol {n}": pickle.dumps(Bomb("marker"), n) for n in range(pickle.HIGHEST_PROTOCOL + 1)},
    "a hostile part": _changed(extra=Bomb("marker")),
    "a hostile label": _changed(labels=np.array([Bomb("marker"), 4, 8], dtype=object)),
    "a function of the system": b"cos\nsystem\n(S'mkdir marker'\ntR.",
    "a function of numpy": _changed(extra=np.load),
    "getattr": b"cbuiltins\ngetattr\n(cnumpy\nndarray\nS'tofile'\ntR.",
    "an array of a terabyte": b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(L1000000000000L\ntS'b'\ntR.",
    **{f"no {key}": pickle.dumps({other: PARTS[other] for other in PARTS if other != key}) for key in PARTS},
    **{f"{key} {fault}": _changed(**{key: change(PARTS[key])}) for key in PARTS for fault, change in {
        "of another length": lambda part: np.concatenate([part, part[:1]]), "without entries": lambda part: part[:0],
        "of NaN": lambda part: part * np.nan, "infinite": lambda part: part + np.inf,
        "of words": lambda part: np.full(part.shape, "x"), "of None": lambda part: None}.items()},
    "no component": pickle.dumps({key: PARTS[key][:0] for key in PARTS}),
    "means in three dimensions": _changed(means=np.zeros((3, 3)), covariances=np.array([np.eye(3)] * 3)),
    "a negative weight": _changed(weights=np.array([-0.5, 0.5, 1])),
    "weights of zero": _changed(weights=np.zeros(3)),
    "weights whose sum is not 1": _changed(weights=np.array([0.5, 0.6, 0.1])),
    "the latents of another model": _changed(model=np.zeros(32, np.uint8)),
    "a covariance that is not symmetric": _changed(covariances=PARTS["covariances"] + [[0, 0.1], [0, 0]]),
    "as many components as another model has": _changed(
        **{key: PARTS[key][:2] for key in ("means", "covariances", "labels")}, weights=np.array([0.5, 0.5])),
    "a covariance that is none": _changed(covariances=np.array([np.eye(2), -np.eye(2), np.eye(2)])),
}
EXPLAINED = {"a negative weight": "positive", "no means": "no 'means'", "weights of another length": "(4,)",
             "a covariance that is none": "positive definite"}


@pytest.mark.parametrize("name", BAD_MIXTURES)
def test_bad_mixture(refuse, data, trained, folder, name):
    (folder / "broken.pkl").write_bytes(BAD_MIXTURES[name])
    found = refuse("broken.pkl", data.test, "test_classifier", trained.model, "broken.pkl")
    assert not (folder / "marker").exists() and EXPLAINED.get(name, "") in found.err


def test_the_mixture_that_the_bad_ones_change_is_good(call, data, trained, tmp_path):
    """Lists in place of arrays as well."""
    for content in (SAVED, pickle.dumps({key: part.tolist() for key, part in PARTS.items()})):
        (tmp_path / "good.pkl").write_bytes(content)
        assert call(data.test, "test_classifier", trained.model, "good.pkl").code == 0


def test_model_and_mixture_in_one_file_and_a_model_of_complex_weights(refuse, data, trained, folder):
    refuse("both", data.train, data.val, "train", "both", "both", "--epochs", "1", "--device", "cpu", "--quiet")
    state = torch.load(str(trained.model), weights_only=True)
    (folder / "broken.pth").write_bytes(saved({name: part.to(torch.complex64) for name, part in state.items()}))
    refuse("broken.pth", data.test, "test_reconstruction", "broken.pth")


@pytest.mark.parametrize("error", [
    MemoryError("Unable to allocate 9 TiB for an array"), torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to "
    "allocate 2 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory:\nyou tried to allocate 9 bytes")])
def test_too_little_memory(vae, call, refuse, commands, monkeypatch, error):
    def fail(*_, **__):
        raise error

    for part in ("train_vae", "reconstruct", "classify"):
        monkeypatch.setattr(vae, part, fail)
    for words in commands():
        refuse("memory", *words, "--quiet")
    error = RuntimeError("another fault")
    with pytest.raises(RuntimeError, match="another fault"):
        call(*commands()[1])
