"""Bad input that bird.py alone can get: exit code 2, one line that names the culprit, every old file as it was and no
new one. What vae.py refuses too is in test_both_scripts.py."""
import json
import pickle
import shutil

import pytest
import torch
from refusals import Bomb, contents, files, refused, refuser, saved


@pytest.fixture
def refuse(bird_call, folder):
    return refuser(bird_call, folder)


@pytest.fixture
def train(bird_fast):
    """train(dataset, model): the words of that command."""
    flags = (*bird_fast, "--epochs", "1", "--image-size", "32")
    return lambda dataset, model="bird.pth": (dataset, "train", model, *flags)


DATASETS = {
    "flat photos": ["0.jpg", "1.jpg"],
    "one class with photos": ["a/0.jpg", "a/1.jpg", "b/notes.txt", "c/Thumbs.db"],
    "hidden files alone": ["a/._0.jpg", "b/.0.jpg"],
    "hidden folders": ["a/0.jpg", ".b/0.jpg", "__MACOSX/0.jpg"],
    "no photo in any class": ["a/0.txt", "b/0.gif"],
}


@pytest.mark.parametrize("kind", DATASETS)
def test_folders_without_enough_photos(refuse, train, bird_data, bird_untrained, folder, kind):
    for name in DATASETS[kind]:
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(str(bird_data.test / "1" / "0.jpg"), str(folder / "photos" / name))
    refuse("photos", *train("photos"))
    if kind in ("hidden files alone", "no photo in any class"):
        refuse("photos", "photos", "test", bird_untrained)


@pytest.mark.parametrize("readable", [[], ["a"]], ids=["none", "one class"])
def test_too_few_readable_photos_to_train_on(bird_call, bird_draw, train, folder, readable):
    bird_draw(folder / "photos", {f"{name}/{i}.jpg": 0 for name in readable for i in range(3)})
    for name in "ab":
        (folder / "photos" / name).mkdir(parents=True, exist_ok=True)
        (folder / "photos" / name / "bad0.jpg").write_bytes(b"no photo")
    before, found = contents(folder), bird_call(*train("photos"))
    warning, error = found.err.splitlines()
    assert found.code == 2 and warning.startswith("bird.py: warning: ") and "bad0.jpg" in warning
    assert "photos" in error and "expected" in error and "found" in error and contents(folder) == before


BAD_METADATA = {  # changes of what is stored with the weights: of its entries, or of the bytes themselves
    "no classes": {"classes": [], "counts": []},
    "fewer counts than classes": {"counts": [1, 2]},
    "more classes than outputs": {"classes": list("abcd"), "counts": [1] * 4},
    "numbers for class names": {"classes": [1, 2, 3]},
    "words for counts": {"counts": ["1", "2", "3"]},
    "no size": {"image_size": None},
    "a size beyond all memory": {"image_size": 10 ** 9},
    "senseless bytes": lambda old: old * 0 + 255,
    "floats": lambda old: old.float() + 0.5,
    "nothing": None,
    "other names, which is fine": {"classes": list("xyz")},
}


@pytest.mark.parametrize("name", BAD_METADATA)
def test_a_model_with_bad_metadata(refuse, bird_call, bird_data, bird_untrained, folder, name):
    state, change = torch.load(str(bird_untrained), weights_only=True), BAD_METADATA[name]
    old = state.pop("_extra_state")
    if isinstance(change, dict):
        metadata = json.dumps({**json.loads(bytes(old.tolist()).decode()), **change})
        state["_extra_state"] = torch.tensor(list(metadata.encode()), dtype=torch.uint8)
    elif change:
        state["_extra_state"] = change(old)
    (folder / "broken.pth").write_bytes(saved(state))
    words = (bird_data.test / "1" / "0.jpg", "test", "broken.pth")
    if "fine" in name:
        assert bird_call(*words).code == 0
    else:
        refuse("broken.pth", *words)


def test_a_model_of_complex_weights(refuse, bird_data, bird_untrained, folder):
    state = torch.load(str(bird_untrained), weights_only=True)
    state["head.bias"] = state["head.bias"].to(torch.complex64)
    (folder / "broken.pth").write_bytes(saved(state))
    refuse("broken.pth", bird_data.test / "1" / "0.jpg", "test", "broken.pth")


@pytest.mark.parametrize("content", [
    b"", saved([1, 2]), saved({}), saved({"head.weight": torch.zeros(2, 2)}), saved({"key": "0123", "epoch": 3}),
    pickle.dumps(Bomb("marker"), protocol=2), saved({"key": Bomb("marker")})],
    ids=["empty file", "a list", "an empty dict", "a model", "another training", "hostile pickle", "hostile state"])
def test_bad_checkpoint(refuse, train, bird_few, folder, content):
    (folder / "bird_checkpoint.pth").write_bytes(content)
    refuse("bird_checkpoint.pth", *train(bird_few), "--resume")
    assert not (folder / "marker").exists()


@pytest.mark.parametrize("name", ["bird_history.json", "bird_checkpoint.pth"])
def test_a_folder_in_place_of_a_file_next_to_the_model(bird_call, train, bird_few, tmp_path, name):
    (tmp_path / name).mkdir()
    found = bird_call(*train(bird_few))
    refused(found, name)
    assert found.out == "" and files(tmp_path) == [name]


def test_files_that_are_no_dataset_outputs_over_a_photo_and_bad_flags(refuse, train, bird_data, bird_untrained, folder):
    """A slip of the shell's completion must not cost a photo."""
    shutil.copytree(str(bird_data.test), str(folder / "photos"))
    refuse("0.jpg", *train("photos/1/0.jpg"))
    refuse("bird.pth", "bird.pth", "test", bird_untrained)
    refuse("0.jpg", *train("photos", "photos/1/0.jpg"))
    refuse("0.jpg", "photos", "test", bird_untrained, "--output", "photos/1/0.jpg")
    for flags in ("--minutes -5", "--minutes inf", "--minutes long", "--image-size 31", "--image-size 100000",
                  "--image-size 48x48", "--resume --resume=yes"):
        refuse("bird.py", *train("photos"), *flags.split())
