"""Bad input: exit code 2, one line that names the culprit, and every file as it was."""
import io
import os
import pickle
import random
import resource
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from refusals import SENTINEL, contents, refused

OUTPUTS = ("vae.pth", "gmm_params.pkl", "vae.csv", "vae_reconstructed.npz")


@pytest.fixture
def old_outputs(tmp_path):
    """The folder of `call` with every output there already."""
    for name in OUTPUTS:
        (tmp_path / name).write_bytes(SENTINEL)
    return tmp_path


@pytest.fixture
def refuse(call, old_outputs):
    """refuse(name, *words): runs the command, asserts that it is refused and changes no file."""
    def refuse(name, *words):
        before = contents(old_outputs)
        found = call(*words)
        refused(found, name)
        assert contents(old_outputs) == before
        return found

    return refuse


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
    "truncated at the start": GOOD[:10],
    "truncated at the end": GOOD[:-30],
    "damaged": GOOD[:2000] + b"\xff" * 500 + GOOD[2500:],
    "encrypted": _encrypted(GOOD),
    "truncated npy": _npy(IMAGES)[:1000],
    "npy with half a header": _npy(IMAGES).replace(b"(4, 28, 28)", b"(4, 28, 28 "),
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
    "dates": _npz(np.zeros((3, 784), "datetime64[s]")),
    "complex": _npz(IMAGES.astype(complex)),
    "records": _npz(np.zeros(4, [("x", float)])),
    "a number": _npz(np.float64(3)),
    "one dimension": _npz(np.zeros(784)),
    "too narrow": _npz(np.zeros((4, 27, 28))),
    "colour": _npz(np.zeros((4, 3, 28, 28))),
    "other rows": _npz(np.zeros((4, 783))),
    "five dimensions": _npz(np.zeros((4, 1, 1, 28, 28))),
    "no images": _npz(np.zeros((0, 28, 28))),
    "no rows": _npz(np.zeros((0, 784), np.uint8)),
    "NaN": _with(np.nan),
    "infinity": _with(np.inf),
    "minus infinity": _with(-np.inf),
    "negative": _with(-0.01),
    "above 255": _with(255.5),
    "negative integers": _npz((IMAGES * 9).astype(np.int8) - 5),
    "integers above 255": _npz(np.full((4, 784), 256)),
}


@pytest.fixture(params=sorted(BAD_IMAGES))
def bad_images(request, old_outputs):
    (old_outputs / "broken.npz").write_bytes(BAD_IMAGES[request.param])
    return "broken.npz"


def test_bad_images_to_train_on(refuse, data, bad_images):
    refuse(bad_images, bad_images, data.val, "train", "vae.pth", "gmm_params.pkl")


def test_bad_images_to_validate_on(refuse, data, bad_images):
    refuse(bad_images, data.train, bad_images, "train", "vae.pth", "gmm_params.pkl")


def test_bad_images_to_reconstruct(refuse, trained, bad_images):
    refuse(bad_images, bad_images, "test_reconstruction", trained.model)


def test_bad_images_to_classify(refuse, trained, bad_images):
    refuse(bad_images, bad_images, "test_classifier", trained.model, trained.mixture)


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


def test_a_path_of_many_lines_is_still_one_line(refuse, trained):
    refuse("no images [31m", "no\nimages\x1b[31m.npz", "test_classifier", trained.model, trained.mixture)


@pytest.mark.parametrize("place", ["missing.npz", "missing/folder.npz", "folder"])
def test_no_file_there(refuse, data, trained, old_outputs, place):
    (old_outputs / "folder").mkdir()
    refuse(place, place, data.val, "train", "vae.pth", "gmm_params.pkl")
    refuse(place, data.train, place, "train", "vae.pth", "gmm_params.pkl")
    refuse(place, place, "test_reconstruction", trained.model)
    refuse(place, place, "test_classifier", trained.model, trained.mixture)
    refuse(place, data.test, "test_reconstruction", place)
    refuse(place, data.test, "test_classifier", place, trained.mixture)
    refuse(place, data.test, "test_classifier", trained.model, place)


# -------------------------------------------------------------------------------------------------------------- labels

BAD_LABELS = {
    "none": _npz(data=IMAGES),
    "npy": _npy(IMAGES),
    "one class": _npz(data=IMAGES, labels=np.full(4, 7)),
    "too few": _npz(data=IMAGES, labels=np.arange(3)),
    "too many": _npz(data=IMAGES, labels=np.arange(5)),
    "one-hot": _npz(data=IMAGES, labels=np.eye(4)),
    "a number": _npz(data=IMAGES, labels=np.int64(3)),
    "fractions": _npz(data=IMAGES, labels=np.array([0.5, 1, 2, 3])),
    "NaN": _npz(data=IMAGES, labels=np.array([np.nan, 1, 2, 3])),
    "infinite": _npz(data=IMAGES, labels=np.array([np.inf, 1, 2, 3])),
    "beyond int64": _npz(data=IMAGES, labels=np.array([1e300, 1, 2, 3])),
    "words": _npz(data=IMAGES, labels=np.array(["one", "four", "eight", "one"])),
    "objects": _npz(data=IMAGES, labels=np.array([1, None, 2, 3])),
    "text in the archive": _zip(data_npy=_npy(IMAGES), labels="1 2 3 4"),
}


@pytest.mark.parametrize("labels", sorted(BAD_LABELS))
def test_bad_validation_labels(refuse, data, old_outputs, labels):
    (old_outputs / "broken.npz").write_bytes(BAD_LABELS[labels])
    refuse("broken.npz", data.train, "broken.npz", "train", "vae.pth", "gmm_params.pkl", "--epochs", "1")


# --------------------------------------------------------------------------------------------------------------- model

class Hostile:
    """A pickle that makes a folder called `marker` when it is loaded without care."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


def _saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _tar():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return buffer.getvalue()


def _state(vae, **changes):
    """A state_dict with some entries replaced: a value, or a function of the old one."""
    state = vae.stored_weights(vae.VAE())
    for name, change in changes.items():
        name = name.replace("__", ".")
        state[name] = change(state[name]) if callable(change) else change
    return state


BAD_MODELS = {
    "empty file": lambda vae: b"",
    "text": lambda vae: b"this is no model\n",
    "truncated": lambda vae: _saved(_state(vae))[:100_000],
    "truncated at the end": lambda vae: _saved(_state(vae))[:-200],
    "another architecture": lambda vae: _saved(torch.nn.Linear(784, 2).state_dict()),
    "one layer missing": lambda vae: _saved({k: v for k, v in _state(vae).items() if k != "decoder.0.bias"}),
    "one layer too many": lambda vae: _saved(_state(vae, extra=torch.zeros(3))),
    "one layer of another width": lambda vae: _saved(_state(vae, decoder__0__bias=torch.zeros(3))),
    "NaN": lambda vae: _saved(_state(vae, decoder__0__bias=lambda old: old * np.nan)),
    "infinite": lambda vae: _saved(_state(vae, encoder__0__bias=lambda old: old + np.inf)),
    "negative variances": lambda vae: _saved(_state(vae, encoder__1__running_var=lambda old: -1 - old)),
    "words for weights": lambda vae: _saved(_state(vae, decoder__0__bias="zero")),
    "a list": lambda vae: _saved([1, 2, 3]),
    "a tensor": lambda vae: _saved(torch.zeros(3)),
    "nothing": lambda vae: _saved(None),
    "a whole module": lambda vae: _saved(torch.nn.Linear(3, 3)),
    "an npz": lambda vae: GOOD,
    "a tar": lambda vae: _tar(),
    "a pickle of arrays": lambda vae: pickle.dumps({"a": np.zeros(3)}, protocol=4),
    "a hostile pickle": lambda vae: pickle.dumps(Hostile(), protocol=2),
    "a hostile pickle, protocol 4": lambda vae: pickle.dumps(Hostile(), protocol=4),
    "a hostile model": lambda vae: _saved(Hostile()),
    "a hostile state": lambda vae: _saved(_state(vae, extra=Hostile())),
    "a hostile model of the old format": lambda vae: _saved(Hostile(), _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("name", sorted(BAD_MODELS))
def test_bad_model(vae, refuse, data, trained, old_outputs, name):
    (old_outputs / "broken.pth").write_bytes(BAD_MODELS[name](vae))
    refuse("broken.pth", data.test, "test_reconstruction", "broken.pth")
    refuse("broken.pth", data.test, "test_classifier", "broken.pth", trained.mixture)
    assert not (old_outputs / "marker").exists()


def test_the_message_for_a_hostile_model_does_not_tell_how_to_run_it(vae, refuse, data, old_outputs):
    """torch's own advice is to try again without its guard."""
    (old_outputs / "broken.pth").write_bytes(_saved(Hostile()))
    found = refuse("broken.pth", data.test, "test_reconstruction", "broken.pth")
    assert "weights_only" not in found.err and "trust" not in found.err


# ------------------------------------------------------------------------------------------------------------- mixture

PARTS = {"weights": np.array([0.5, 0.5]), "means": np.array([[0.0, 0], [4, 0]]),
         "covariances": np.array([np.eye(2)] * 2), "labels": np.array([1, 4])}
KEPT = pickle.dumps(PARTS, protocol=4)

BAD_MIXTURES = {
    "empty file": b"",
    "text": b"this is no mixture\n",
    "truncated": KEPT[:len(KEPT) // 2],
    "truncated at the end": KEPT[:-1],
    "an npz": GOOD,
    "a list": pickle.dumps([1, 2, 3]),
    "nothing": pickle.dumps(None),
    "an empty dict": pickle.dumps({}),
    "a hostile pickle": pickle.dumps(Hostile()),
    "a hostile part": pickle.dumps({**PARTS, "extra": Hostile()}),
    "a hostile label": pickle.dumps({**PARTS, "labels": np.array([Hostile(), 4], dtype=object)}),
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


@pytest.mark.parametrize("name", sorted(BAD_MIXTURES))
def test_bad_mixture(refuse, data, trained, old_outputs, name):
    (old_outputs / "broken.pkl").write_bytes(BAD_MIXTURES[name])
    refuse("broken.pkl", data.test, "test_classifier", trained.model, "broken.pkl")
    assert not (old_outputs / "marker").exists()


def test_the_parts_that_the_bad_mixtures_change_are_good(call, data, trained, tmp_path):
    (tmp_path / "good.pkl").write_bytes(KEPT)
    assert call(data.test, "test_classifier", trained.model, "good.pkl").code == 0


# ------------------------------------------------------------------------------------------------------------- outputs

@pytest.mark.parametrize("place", ["missing/file", "folder", "vae.csv/file"])
def test_output_that_cannot_be_written(refuse, data, trained, old_outputs, place):
    """Said before the work, not after: training is not even begun."""
    (old_outputs / "folder").mkdir()
    assert refuse(place, data.train, data.val, "train", place, "gmm_params.pkl").out == ""
    assert refuse(place, data.train, data.val, "train", "vae.pth", place).out == ""
    refuse(place, data.test, "test_reconstruction", trained.model, "--output", place)
    refuse(place, data.test, "test_classifier", trained.model, trained.mixture, "--output", place)


def test_models_without_a_name_or_behind_a_broken_link(refuse, data, old_outputs):
    os.symlink("missing/file", str(old_outputs / "broken"))
    for place in ("", "broken"):
        assert refuse(place, data.train, data.val, "train", place, "gmm_params.pkl").out == ""
        assert refuse(place, data.train, data.val, "train", "vae.pth", place).out == ""


def test_the_script_is_no_output(vae):
    with pytest.raises(vae.InputError, match="vae.py: expected a file of its own"):
        vae.check_output(vae.__file__)


@pytest.mark.parametrize("name", ["vae_reconstructed.npz", "vae.csv"])
def test_a_folder_where_the_output_should_be(call, data, trained, tmp_path, name):
    (tmp_path / name).mkdir()
    words = {"vae_reconstructed.npz": ("test_reconstruction", trained.model),
             "vae.csv": ("test_classifier", trained.model, trained.mixture)}[name]
    refused(call(data.test, *words), name)
    assert os.listdir(str(tmp_path)) == [name]


def _small_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))


@pytest.mark.parametrize("mode", ["train", "test_reconstruction"])
def test_full_disk(alone, run, data, trained, fast, old_outputs, mode):
    before = contents(old_outputs)
    words = (data.train, data.val, "train", "vae.pth", "gmm_params.pkl", *fast) if mode == "train" else (
        data.test, "test_reconstruction", trained.model)
    process = run(alone, *words, cwd=old_outputs, preexec_fn=_small_disk)
    name = "vae.pth" if mode == "train" else "vae_reconstructed.npz"
    assert process.returncode == 2 and len(process.stderr.splitlines()) == 1 and name in process.stderr
    assert contents(old_outputs) == before


def test_full_disk_at_the_second_file_keeps_the_old_pair(vae, refuse, data, monkeypatch):
    """A new model beside an old mixture would classify at random and say nothing."""
    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(28, "No space left on device")

        def fileno(self):
            raise OSError(28, "No space left on device")

    def full_open(path, mode="r", *rest, **options):
        if "gmm_params" in str(path) and mode[0] in "wx":
            return Full()
        return open(path, mode, *rest, **options)

    monkeypatch.setattr(vae, "open", full_open, raising=False)
    refuse("gmm_params.pkl", data.train, data.val, "train", "vae.pth", "gmm_params.pkl", "--epochs", "1",
           "--device", "cpu", "--quiet")


@pytest.mark.parametrize("mode", ["train", "test_reconstruction", "test_classifier"])
def test_interrupted_while_writing(call, data, trained, old_outputs, monkeypatch, mode):
    def interrupted(*_):
        raise KeyboardInterrupt

    words = {"train": (data.train, data.val, "train", "vae.pth", "gmm_params.pkl", "--epochs", "1", "--device", "cpu"),
             "test_reconstruction": (data.test, "test_reconstruction", trained.model),
             "test_classifier": (data.test, "test_classifier", trained.model, trained.mixture)}[mode]
    before = contents(old_outputs)
    monkeypatch.setattr(os, "replace", interrupted)
    refused(call(*words), "vae.py: interrupted", code=130)
    assert contents(old_outputs) == before


def test_model_and_mixture_in_one_file(refuse, data):
    """The second would overwrite the first."""
    refuse("both", data.train, data.val, "train", "both", "both", "--epochs", "1", "--device", "cpu", "--quiet")


@pytest.mark.parametrize("which", [0, 1])
def test_output_over_an_input(refuse, data, old_outputs, which):
    """Training must not replace the images that it was given."""
    for name in ("train.npz", "val.npz"):
        (old_outputs / name).write_bytes((data.folder / name).read_bytes())
    name = ("train.npz", "val.npz")[which]
    refuse(name, "train.npz", "val.npz", "train", name, "gmm_params.pkl", "--epochs", "1", "--device", "cpu", "--quiet")


# ----------------------------------------------------------------------------------------------------------- arguments

TRAIN = ("train.npz", "val.npz", "train", "vae.pth", "gmm_params.pkl")
CLASSIFY = ("test.npz", "test_classifier", "vae.pth", "gmm_params.pkl")
RECONSTRUCT = ("test.npz", "test_reconstruction", "vae.pth")


@pytest.mark.parametrize("words", [
    (), ("train",), ("test.npz",), ("test.npz", "test", "vae.pth"), ("test.npz", "TEST_CLASSIFIER", *CLASSIFY[2:]),
    ("train.npz", "train", "vae.pth", "gmm_params.pkl"), TRAIN[:4], (*TRAIN, "more"), CLASSIFY[:3], CLASSIFY[:2],
    (*CLASSIFY, "more"), RECONSTRUCT[:2], (*RECONSTRUCT, "more"), (*CLASSIFY, "--unknown"), (*CLASSIFY, "-x"),
    (*CLASSIFY, "--unknown", "3"), (*TRAIN, "--epochs"), (*TRAIN, "--epochs", "0"), (*TRAIN, "--epochs", "-1"),
    (*TRAIN, "--epochs", "2.5"), (*TRAIN, "--epochs", "many"), (*TRAIN, "--seed", "-1"), (*TRAIN, "--seed", "x"),
    (*TRAIN, "--seed", str(2 ** 32)), (*TRAIN, "--threads", "0"), (*TRAIN, "--threads", str(2 ** 32 - 1)),
], ids=" ".join)
def test_bad_arguments(refuse, words):
    refuse("vae.py", *words)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:x", "", "meta", ":", "cuda:"])
def test_bad_device(refuse, data, trained, device):
    refuse("vae.py", data.train, data.val, "train", "vae.pth", "gmm_params.pkl", "--device", device)
    refuse("vae.py", data.test, "test_reconstruction", trained.model, "--device", device)
    refuse("vae.py", data.test, "test_classifier", trained.model, trained.mixture, "--device", device)


@pytest.mark.parametrize("flag, limit", [("--seed", 2 ** 32), ("--threads", 2 ** 40)])
def test_a_number_too_large_is_not_called_too_small(refuse, flag, limit):
    assert "at least" not in refuse(flag, *TRAIN, flag, str(limit)).err


def test_help_shows_the_three_commands(call, capsys):
    with pytest.raises(SystemExit) as end:
        call("--help")
    out = capsys.readouterr().out
    assert not end.value.code
    for word in ("train", "test_reconstruction", "test_classifier", "--epochs", "--device", "--seed"):
        assert word in out


# -------------------------------------------------------------------------------------------------- as a user sees them

def _hostile_mixture(folder):
    (folder / "broken.pkl").write_bytes(BAD_MIXTURES["a hostile pickle"])


def _hostile_model(folder):
    (folder / "broken.pth").write_bytes(pickle.dumps(Hostile(), protocol=4))


@pytest.mark.parametrize("prepare, name, words", [
    (None, "missing.npz", ("missing.npz", "{val}", "train", "vae.pth", "gmm_params.pkl")),
    (_hostile_mixture, "broken.pkl", ("{test}", "test_classifier", "{model}", "broken.pkl")),
    (_hostile_model, "broken.pth", ("{test}", "test_reconstruction", "broken.pth")),
], ids=["missing images", "hostile mixture", "hostile model"])
def test_refusal_of_the_command_itself(alone, run, data, trained, old_outputs, prepare, name, words):
    """Some of the above in a process of its own, where nothing of this suite can hide a second line."""
    if prepare:
        prepare(old_outputs)
    before, places = contents(old_outputs), {"val": data.val, "test": data.test, "model": trained.model}
    process = run(alone, *(word.format(**places) for word in words), cwd=old_outputs)
    assert process.returncode == 2 and process.stdout == ""
    assert len(process.stderr.splitlines()) == 1 and name in process.stderr
    assert contents(old_outputs) == before
