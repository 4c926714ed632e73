"""Bad input to bird.py: exit code 2, one line that names the culprit, every old file as it was and no new one."""
import io
import json
import os
import pickle
import random
import resource
import shutil
import zipfile

import numpy as np
import pytest
import torch
from refusals import SENTINEL, contents, refused

OUTPUTS = ("bird.pth", "bird_history.json", "bird.csv")


@pytest.fixture
def old_outputs(tmp_path):
    """The folder of `bird_call` with every output there already."""
    for name in OUTPUTS:
        (tmp_path / name).write_bytes(SENTINEL)
    return tmp_path


@pytest.fixture
def refuse(bird_call, old_outputs):
    """refuse(name, *words): runs the command, asserts that it is refused with what was expected and found, and that it
    changes no file."""
    def refuse(name, *words):
        before = contents(old_outputs)
        found = bird_call(*words)
        refused(found, name)
        assert "expected" in found.err and "found" in found.err
        assert contents(old_outputs) == before
        return found

    return refuse


@pytest.fixture
def train(bird_fast):
    """train(dataset, model): the words of that command."""
    flags = (*bird_fast, "--epochs", "1", "--image-size", "32")
    return lambda dataset, model="bird.pth": (dataset, "train", model, *flags)


# ------------------------------------------------------------------------------------------------------------- dataset

@pytest.mark.parametrize("place", ["missing", "missing/photos", "bird.csv/photos"])
def test_no_dataset_there(refuse, train, bird_untrained, place):
    refuse(place, *train(place))
    refuse(place, place, "test", bird_untrained)


def test_a_file_to_train_on(refuse, train, bird_data, old_outputs):
    shutil.copy(str(bird_data.test / "1" / "0.jpg"), str(old_outputs / "photo.jpg"))
    refuse("photo.jpg", *train("photo.jpg"))


DATASETS = {
    "an empty folder": [],
    "flat photos": ["0.jpg", "1.jpg"],
    "one class": ["a/0.jpg", "a/1.jpg"],
    "one class with photos": ["a/0.jpg", "a/1.jpg", "b/notes.txt", "c/Thumbs.db"],
    "hidden files alone": ["a/._0.jpg", "b/.0.jpg"],
    "hidden folders": ["a/0.jpg", ".b/0.jpg", "__MACOSX/0.jpg"],
    "no photo in any class": ["a/0.txt", "b/0.gif"],
}


def _fill(folder, names, photo):
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(photo), str(folder / name))


@pytest.mark.parametrize("kind", sorted(DATASETS))
def test_folders_that_cannot_be_trained_on(refuse, train, bird_data, old_outputs, kind):
    _fill(old_outputs / "photos", DATASETS[kind], bird_data.test / "1" / "0.jpg")
    refuse("photos", *train("photos"))


@pytest.mark.parametrize("kind", ["an empty folder", "hidden files alone", "no photo in any class"])
def test_folders_without_a_photo_to_test_on(refuse, bird_data, bird_untrained, old_outputs, kind):
    _fill(old_outputs / "photos", DATASETS[kind], bird_data.test / "1" / "0.jpg")
    refuse("photos", "photos", "test", bird_untrained)


@pytest.mark.parametrize("name", ["photos.zip", "bird.pth", "notes"])
def test_a_file_that_is_no_photo_to_test_on(refuse, bird_untrained, old_outputs, name):
    (old_outputs / name).write_bytes(SENTINEL)
    refuse(name, name, "test", bird_untrained)


@pytest.mark.parametrize("readable", [[], ["a"]], ids=["none", "one class"])
def test_too_few_readable_photos_to_train_on(bird_call, bird_draw, train, old_outputs, readable):
    """The photos that cannot be read are warned of first."""
    bird_draw(old_outputs / "photos", {f"{name}/{i}.jpg": 0 for name in readable for i in range(3)})
    for name in "ab":
        (old_outputs / "photos" / name).mkdir(parents=True, exist_ok=True)
        (old_outputs / "photos" / name / "bad0.jpg").write_bytes(b"no photo")
    before = contents(old_outputs)
    found = bird_call(*train("photos"))
    warning, error = found.err.splitlines()
    assert found.code == 2 and warning.startswith("bird.py: warning: ") and "bad0.jpg" in warning
    assert "photos" in error and "expected" in error and "found" in error
    assert contents(old_outputs) == before


# --------------------------------------------------------------------------------------------------------------- model

class Hostile:
    """A pickle that makes a folder called `marker` when it is loaded without care."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


def _saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def _about(state, **changes):
    """The state with a change in what travels with the weights."""
    (key,) = [key for key in state if key.endswith("_extra_state")]
    about = {**json.loads(bytes(state[key].tolist()).decode()), **changes}
    state[key] = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
    return state


def _with(state, part, change):
    """The state with the first entry whose name contains `part` replaced: by a value, or by a function of the old."""
    name = [name for name in state if part in name][0]
    state[name] = change(state[name]) if callable(change) else change
    return state


def _without(state, part):
    return {name: value for name, value in state.items() if part not in name}


def _npz():
    buffer = io.BytesIO()
    np.savez(buffer, data=np.zeros(3))
    return buffer.getvalue()


def _zip():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("readme.txt", "hello")
    return buffer.getvalue()


BAD_MODELS = {
    "empty file": lambda state: b"",
    "text": lambda state: b"this is no model\n",
    "truncated": lambda state: _saved(state)[:100_000],
    "truncated at the end": lambda state: _saved(state)[:-200],
    "an empty dict": lambda state: _saved({}),
    "another architecture": lambda state: _saved(torch.nn.Linear(784, 2).state_dict()),
    "one layer missing": lambda state: _saved(_without(state, "head.bias")),
    "one layer too many": lambda state: _saved({**state, "extra": torch.zeros(3)}),
    "one layer of another width": lambda state: _saved(_with(state, "head.weight", torch.zeros(3, 7))),
    "nothing about the classes": lambda state: _saved(_without(state, "_extra_state")),
    "senseless bytes about the classes": lambda state: _saved(_with(state, "_extra_state", lambda old: old * 0 + 255)),
    "floats about the classes": lambda state: _saved(_with(state, "_extra_state", lambda old: old.float() + 0.5)),
    "words about the classes": lambda state: _saved(_with(state, "_extra_state", "a, b, c")),
    "no classes": lambda state: _saved(_about(state, classes=[], counts=[])),
    "fewer counts than classes": lambda state: _saved(_about(state, counts=[1, 2])),
    "more classes than outputs": lambda state: _saved(_about(state, classes=list("abcd"), counts=[1] * 4)),
    "numbers for class names": lambda state: _saved(_about(state, classes=[1, 2, 3])),
    "words for counts": lambda state: _saved(_about(state, counts=["1", "2", "3"])),
    "no size": lambda state: _saved(_about(state, image_size=None)),
    "a size of nothing": lambda state: _saved(_about(state, image_size=0)),
    "a size beyond all memory": lambda state: _saved(_about(state, image_size=10 ** 9)),
    "NaN": lambda state: _saved(_with(state, "head.bias", lambda old: old * np.nan)),
    "NaN statistics": lambda state: _saved(_with(state, "running_mean", lambda old: old * np.nan)),
    "infinite": lambda state: _saved(_with(state, "head.weight", lambda old: old + np.inf)),
    "negative variances": lambda state: _saved(_with(state, "running_var", lambda old: -1 - old)),
    "words for weights": lambda state: _saved(_with(state, "head.bias", "zero")),
    "a list": lambda state: _saved([1, 2, 3]),
    "a tensor": lambda state: _saved(torch.zeros(3)),
    "nothing": lambda state: _saved(None),
    "a whole module": lambda state: _saved(torch.nn.Linear(3, 3)),
    "an npz": lambda state: _npz(),
    "another zip": lambda state: _zip(),
    "a pickle of arrays": lambda state: pickle.dumps({"a": np.zeros(3)}, protocol=4),
    "a hostile pickle": lambda state: pickle.dumps(Hostile(), protocol=2),
    "a hostile pickle, protocol 4": lambda state: pickle.dumps(Hostile(), protocol=4),
    "a hostile model": lambda state: _saved(Hostile()),
    "a hostile state": lambda state: _saved({**state, "extra": Hostile()}),
    "a hostile model of the old format": lambda state: _saved(Hostile(), _use_new_zipfile_serialization=False),
}


@pytest.fixture
def state(bird_untrained):
    return dict(torch.load(str(bird_untrained), weights_only=True))


@pytest.mark.parametrize("name", sorted(BAD_MODELS))
def test_bad_model(refuse, bird_data, state, old_outputs, name):
    (old_outputs / "broken.pth").write_bytes(BAD_MODELS[name](state))
    found = refuse("broken.pth", bird_data.test, "test", "broken.pth")
    assert not (old_outputs / "marker").exists()
    assert "weights_only" not in found.err and "trust" not in found.err  # torch's own advice is to run what is in it


def test_the_state_that_the_bad_models_change_is_good(bird_call, bird_data, state, tmp_path):
    state = _about(_with(state, "head.bias", lambda old: old + 0), classes=list("xyz"))
    (tmp_path / "good.pth").write_bytes(_saved(state))
    assert bird_call(bird_data.test / "1" / "0.jpg", "test", "good.pth").code == 0


@pytest.mark.parametrize("place", ["missing.pth", "missing/bird.pth", "folder"])
def test_no_model_there(refuse, bird_data, old_outputs, place):
    (old_outputs / "folder").mkdir()
    refuse(place, bird_data.test, "test", place)


def test_damaged_model_files_are_read_or_refused(bird, bird_untrained, tmp_path):
    """A byte changed at random where it is no weight: nothing but InputError comes out."""
    good, path, chance, refused = bird_untrained.read_bytes(), tmp_path / "damaged.pth", random.Random(0), 0
    places = [*range(3000), *range(len(good) - 3000, len(good))]
    for _ in range(40):
        damaged = bytearray(good)
        for _ in range(3):
            damaged[chance.choice(places)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(bird.load_model(str(path)), bird.BirdClassifier)
        except bird.InputError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    path.unlink()
    assert refused > 10


# -------------------------------------------------------------------------------------------------------------- resume

BAD_RESUMES = {
    "empty file": b"", "text": b"this is no training\n", "a list": _saved([1, 2]), "an empty dict": _saved({}),
    "a model": _saved({"head.weight": torch.zeros(2, 2)}), "another training": _saved({"key": "0123", "epoch": 3}),
    "a hostile pickle": pickle.dumps(Hostile(), protocol=2), "a hostile state": _saved({"key": Hostile()}),
}


@pytest.mark.parametrize("name", sorted(BAD_RESUMES))
def test_bad_resume_file(refuse, train, bird_data, old_outputs, name):
    (old_outputs / "bird_resume.pth").write_bytes(BAD_RESUMES[name])
    refuse("bird_resume.pth", *train(bird_data.train), "--resume")
    assert not (old_outputs / "marker").exists()


def test_a_bad_resume_file_is_no_obstacle_to_a_new_training(bird_call, train, bird_data, tmp_path):
    (tmp_path / "bird_resume.pth").write_bytes(b"this is no training\n")
    assert bird_call(*train(bird_data.train)).code == 0
    assert sorted(os.listdir(str(tmp_path))) == ["bird.pth", "bird_history.json"]


# ------------------------------------------------------------------------------------------------------------- outputs

@pytest.mark.parametrize("place", ["missing/file.pth", "folder", "bird.csv/file.pth", "", "dangling.pth"])
def test_model_that_cannot_be_written(refuse, train, bird_data, old_outputs, place):
    """Said before the work, not after: training is not even begun."""
    (old_outputs / "folder").mkdir()
    os.symlink("missing/bird.pth", str(old_outputs / "dangling.pth"))
    assert refuse(place, *train(bird_data.train, place)).out == ""


@pytest.mark.parametrize("name", ["bird_history.json", "bird_resume.pth"])
def test_a_folder_where_a_file_beside_the_model_should_be(bird_call, train, bird_data, tmp_path, name):
    (tmp_path / name).mkdir()
    found = bird_call(*train(bird_data.train))
    refused(found, name)
    assert found.out == "" and os.listdir(str(tmp_path)) == [name]


@pytest.mark.parametrize("place", ["missing/file.csv", "folder", "bird.csv/file.csv"])
def test_table_that_cannot_be_written(refuse, bird_data, bird_untrained, old_outputs, place):
    (old_outputs / "folder").mkdir()
    refuse(place, bird_data.test, "test", bird_untrained, "--output", place)


def test_a_folder_where_the_table_should_be(bird_call, bird_data, bird_untrained, tmp_path):
    (tmp_path / "bird.csv").mkdir()
    refused(bird_call(bird_data.test, "test", bird_untrained), "bird.csv")
    assert os.listdir(str(tmp_path)) == ["bird.csv"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_closed_to_writing(bird_call, train, bird_data, bird_untrained, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    try:
        refused(bird_call(*train(bird_data.train, closed / "bird.pth")), "closed")
        refused(bird_call(bird_data.test, "test", bird_untrained, "--output", closed / "bird.csv"), "closed")
        assert os.listdir(str(closed)) == []
    finally:
        closed.chmod(0o700)


@pytest.mark.parametrize("output", ["{model}", "./{model}", "link.pth"])
def test_table_over_the_model(refuse, bird_data, bird_untrained, old_outputs, output):
    shutil.copy(str(bird_untrained), str(old_outputs / "mine.pth"))
    os.symlink("mine.pth", str(old_outputs / "link.pth"))
    output = output.format(model="mine.pth")
    refuse(output, bird_data.test, "test", "mine.pth", "--output", output)


def test_the_script_is_no_output(bird, refuse, train, bird_data, bird_untrained, monkeypatch, old_outputs):
    (old_outputs / "script.py").write_bytes(SENTINEL)
    monkeypatch.setattr(bird, "__file__", str(old_outputs / "script.py"))
    refuse("script.py", *train(bird_data.train, "script.py"))
    refuse("script.py", bird_data.test, "test", bird_untrained, "--output", "script.py")


def test_table_over_the_photo_that_it_is_about(refuse, bird_data, bird_untrained, old_outputs):
    shutil.copy(str(bird_data.test / "1" / "0.jpg"), str(old_outputs / "photo.jpg"))
    refuse("photo.jpg", "photo.jpg", "test", bird_untrained, "--output", "photo.jpg")


@pytest.mark.parametrize("mode", ["train", "test"])
def test_output_over_a_photo_of_the_dataset(refuse, train, bird_data, bird_untrained, old_outputs, mode):
    """A slip of the shell's completion must not cost a photo."""
    shutil.copytree(str(bird_data.test), str(old_outputs / "photos"))
    words = {"train": train("photos", "photos/1/0.jpg"),
             "test": ("photos", "test", bird_untrained, "--output", "photos/1/0.jpg")}[mode]
    refuse("0.jpg", *words)


def _small_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))


def test_full_disk_for_the_table(bird_alone, run, bird_data, bird_untrained, old_outputs):
    before, photo = contents(old_outputs), bird_data.test / "1" / "0.jpg"
    process = run(bird_alone, photo, "test", bird_untrained, cwd=old_outputs, preexec_fn=_small_disk)
    assert process.returncode == 2 and len(process.stderr.splitlines()) == 1 and "bird.csv" in process.stderr
    assert contents(old_outputs) == before


class Full(io.BytesIO):
    """A file on a full disk."""

    def write(self, _):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("name", ["bird_resume.pth", "bird.pth.", "bird_history.json"])
def test_full_disk_in_training_keeps_the_old_pair(bird, bird_call, train, bird_data, old_outputs, monkeypatch, name):
    """A new model beside an old history would tell a wrong story. What was learned by then waits for --resume."""
    def full_open(path, mode="r", *rest, **options):
        return Full() if name in str(path) and mode[0] in "wx" else open(path, mode, *rest, **options)

    before = contents(old_outputs)
    monkeypatch.setattr(bird, "open", full_open, raising=False)
    refused(bird_call(*train(bird_data.train), "--quiet"), name.rstrip("."))
    left = contents(old_outputs)
    assert left.pop(str(old_outputs / "bird_resume.pth"), None) or name == "bird_resume.pth"
    assert left == before


@pytest.mark.parametrize("mode", ["train", "test"])
def test_interrupted_while_writing(bird, bird_call, train, bird_data, bird_untrained, old_outputs, monkeypatch, mode):
    def interrupted(*_):
        raise bird.Stopped(2)

    words = train(bird_data.train) if mode == "train" else (bird_data.test / "1" / "0.jpg", "test", bird_untrained)
    before = contents(old_outputs)
    monkeypatch.setattr(os, "replace", interrupted)
    refused(bird_call(*words), "bird.py: interrupted", code=130)
    assert contents(old_outputs) == before


# ----------------------------------------------------------------------------------------------------------- arguments

TRAIN = ("photos", "train", "bird.pth")
TEST = ("photos", "test", "bird.pth")


@pytest.mark.parametrize("words", [
    (), ("train",), ("photos",), ("photos", "train"), ("photos", "test"), ("train", "bird.pth"), (*TRAIN, "more"),
    (*TEST, "more"), ("photos", "Train", "bird.pth"), ("photos", "predict", "bird.pth"), ("photos", "bird.pth", "test"),
    (*TEST, "--unknown"), (*TEST, "-x"), (*TEST, "--unknown", "3"), (*TRAIN, "--epochs"), (*TRAIN, "--epochs", "0"),
    (*TRAIN, "--epochs", "-1"), (*TRAIN, "--epochs", "2.5"), (*TRAIN, "--epochs", "many"), (*TRAIN, "--epochs", ""),
    (*TRAIN, "--minutes", "0"), (*TRAIN, "--minutes", "-5"), (*TRAIN, "--minutes", "nan"), (*TRAIN, "--minutes", "inf"),
    (*TRAIN, "--minutes", "long"), (*TRAIN, "--seed", "-1"), (*TRAIN, "--seed", "x"), (*TRAIN, "--seed", str(2 ** 64)),
    (*TRAIN, "--threads", "0"), (*TRAIN, "--threads", str(2 ** 32)), (*TRAIN, "--workers", "0"),
    (*TRAIN, "--workers", "-2"), (*TRAIN, "--image-size", "0"), (*TRAIN, "--image-size", "31"),
    (*TRAIN, "--image-size", "100000"), (*TRAIN, "--image-size", "48x48"), (*TRAIN, "--resume", "--resume=yes"),
], ids=" ".join)
def test_bad_arguments(refuse, words):
    refuse("bird.py", *words)


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "cpu:x", "", "meta", ":", "cuda:", "CPU!"])
def test_bad_device(refuse, train, bird_data, bird_untrained, device):
    refuse("bird.py", *train(bird_data.train), "--device", device)
    refuse("bird.py", bird_data.test, "test", bird_untrained, "--device", device)


def test_an_argument_of_many_lines_is_still_one_line(refuse):
    refuse("bird.py", "photos", "what\never", "bird.pth")


def test_a_path_of_many_lines_is_still_one_line(refuse, train, bird_untrained):
    refuse("no photos [31m", *train("no\nphotos\x1b[31m"))
    refuse("no photos [31m", "no\nphotos\x1b[31m", "test", bird_untrained)


# -------------------------------------------------------------------------------------------------- as a user sees them

@pytest.mark.parametrize("name, words", [
    ("missing", ("missing", "train", "bird.pth")),
    ("broken.pth", ("{test}", "test", "broken.pth")),
], ids=["missing photos", "hostile model"])
def test_refusal_of_the_command_itself(bird_alone, run, bird_data, old_outputs, name, words):
    """Some of the above in a process of its own, where nothing of this suite can hide a second line."""
    (old_outputs / "broken.pth").write_bytes(pickle.dumps(Hostile(), protocol=4))
    before = contents(old_outputs)
    process = run(bird_alone, *(word.format(test=bird_data.test) for word in words), cwd=old_outputs)
    assert process.returncode == 2 and process.stdout == ""
    assert len(process.stderr.splitlines()) == 1 and name in process.stderr
    assert contents(old_outputs) == before
