"""Bad input that bird.py alone can get: exit code 2, one line that names the culprit, every old file as it was and no
new one. What vae.py refuses too is in test_both_scripts.py."""
import json
import os
import pickle
import shutil

import pytest
import torch
from refusals import SENTINEL, Bomb, contents, refused, refuser, saved


@pytest.fixture
def old_outputs(tmp_path):
    """The folder of `bird_call` with every output there already."""
    for name in ("bird.pth", "bird_history.json", "bird.csv"):
        (tmp_path / name).write_bytes(SENTINEL)
    return tmp_path


@pytest.fixture
def refuse(bird_call, old_outputs):
    return refuser(bird_call, old_outputs)


@pytest.fixture
def train(bird_fast):
    """train(dataset, model): the words of that command."""
    flags = (*bird_fast, "--epochs", "1", "--image-size", "32")
    return lambda dataset, model="bird.pth": (dataset, "train", model, *flags)


# ------------------------------------------------------------------------------------------------------------- dataset

def test_a_file_to_train_on(refuse, train, bird_data):
    refuse("0.jpg", *train(bird_data.test / "1" / "0.jpg"))


DATASETS = {
    "flat photos": ["0.jpg", "1.jpg"],
    "one class with photos": ["a/0.jpg", "a/1.jpg", "b/notes.txt", "c/Thumbs.db"],
    "hidden files alone": ["a/._0.jpg", "b/.0.jpg"],
    "hidden folders": ["a/0.jpg", ".b/0.jpg", "__MACOSX/0.jpg"],
    "no photo in any class": ["a/0.txt", "b/0.gif"],
}


@pytest.mark.parametrize("kind", DATASETS)
def test_folders_without_photos_enough(refuse, train, bird_data, bird_untrained, old_outputs, kind):
    for name in DATASETS[kind]:
        (old_outputs / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(bird_data.test / "1" / "0.jpg"), str(old_outputs / "photos" / name))
    refuse("photos", *train("photos"))
    if kind in ("hidden files alone", "no photo in any class"):
        refuse("photos", "photos", "test", bird_untrained)


def test_a_file_that_is_no_photo_to_test_on(refuse, bird_untrained):
    refuse("bird.pth", "bird.pth", "test", bird_untrained)


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

BAD_ABOUT = {  # changes of what travels with the weights: of its entries, or the bytes themselves
    "no classes": {"classes": [], "counts": []},
    "fewer counts than classes": {"counts": [1, 2]},
    "more classes than outputs": {"classes": list("abcd"), "counts": [1] * 4},
    "numbers for class names": {"classes": [1, 2, 3]},
    "words for counts": {"counts": ["1", "2", "3"]},
    "no size": {"image_size": None},
    "a size of nothing": {"image_size": 0},
    "a size beyond all memory": {"image_size": 10 ** 9},
    "senseless bytes": lambda old: old * 0 + 255,
    "floats": lambda old: old.float() + 0.5,
    "words": lambda old: "a, b, c",
    "nothing": None,
    "other names, which is well": {"classes": list("xyz")},
}


@pytest.mark.parametrize("name", BAD_ABOUT)
def test_a_model_with_bad_news_of_its_classes(refuse, bird_call, bird_data, bird_untrained, old_outputs, name):
    state, change = torch.load(str(bird_untrained), weights_only=True), BAD_ABOUT[name]
    old = state.pop("_extra_state")
    if isinstance(change, dict):
        about = json.dumps({**json.loads(bytes(old.tolist()).decode()), **change})
        state["_extra_state"] = torch.tensor(list(about.encode()), dtype=torch.uint8)
    elif change:
        state["_extra_state"] = change(old)
    (old_outputs / "broken.pth").write_bytes(saved(state))
    words = (bird_data.test / "1" / "0.jpg", "test", "broken.pth")
    if "well" in name:
        assert bird_call(*words).code == 0
    else:
        refuse("broken.pth", *words)


# -------------------------------------------------------------------------------------------------------------- resume

BAD_RESUMES = {
    "empty file": b"", "a list": saved([1, 2]), "an empty dict": saved({}),
    "a model": saved({"head.weight": torch.zeros(2, 2)}), "another training": saved({"key": "0123", "epoch": 3}),
    "a hostile pickle": pickle.dumps(Bomb("marker"), protocol=2), "a hostile state": saved({"key": Bomb("marker")}),
}


@pytest.mark.parametrize("name", BAD_RESUMES)
def test_bad_resume_file(refuse, train, bird_few, old_outputs, name):
    (old_outputs / "bird_checkpoint.pth").write_bytes(BAD_RESUMES[name])
    refuse("bird_checkpoint.pth", *train(bird_few), "--resume")
    assert not (old_outputs / "marker").exists()


def test_a_bad_resume_file_is_no_obstacle_to_a_new_training(bird_call, train, bird_few, tmp_path):
    (tmp_path / "bird_checkpoint.pth").write_bytes(b"this is no training\n")
    assert bird_call(*train(bird_few)).code == 0
    assert sorted(os.listdir(str(tmp_path))) == ["bird.pth", "bird_history.json"]


# ------------------------------------------------------------------------------------------------------------- outputs

@pytest.mark.parametrize("name", ["bird_history.json", "bird_checkpoint.pth"])
def test_a_folder_where_a_file_beside_the_model_should_be(bird_call, train, bird_few, tmp_path, name):
    (tmp_path / name).mkdir()
    found = bird_call(*train(bird_few))
    refused(found, name)
    assert found.out == "" and os.listdir(str(tmp_path)) == [name]


def test_output_over_a_photo_of_the_dataset(refuse, train, bird_data, bird_untrained, old_outputs):
    """A slip of the shell's completion must not cost a photo."""
    shutil.copytree(str(bird_data.test), str(old_outputs / "photos"))
    refuse("0.jpg", *train("photos", "photos/1/0.jpg"))
    refuse("0.jpg", "photos", "test", bird_untrained, "--output", "photos/1/0.jpg")


# ----------------------------------------------------------------------------------------------------------- arguments

@pytest.mark.parametrize("flags", [
    "--minutes 0", "--minutes -5", "--minutes nan", "--minutes inf", "--minutes long", "--image-size 31",
    "--image-size 100000", "--image-size 48x48", "--resume --resume=yes"])
def test_bad_flags(refuse, flags):
    refuse("bird.py", "photos", "train", "bird.pth", *flags.split())
