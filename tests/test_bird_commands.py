"""The two bird commands as the grader gives them: what they write, in which order, that training is reproducible, can
be resumed and ends in time."""
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import FullDisk, files, read_labels, refused, touch
from sklearn.metrics import f1_score

EPOCHS, SIZE = 12, 48  # as in the flags of `bird_fast`
OUTPUTS = ["bird.pth", "bird_history.json"]


def _epochs(out):
    return [int(number) for number in re.findall(r"^epoch +(\d+)\b.*photos/s", out, re.M)]


def _took_longer(minutes, err):
    """Whether stderr is the one line that says that --minutes could not be kept."""
    return re.fullmatch(rf"bird\.py: warning: training took [\d.]+ s, --minutes {re.escape(minutes)} allows [\d.]+ s: "
                        r"all photos are read, one step and one validation made in any case\n", err)


def _average_f1(true, predicted):
    return np.mean([f1_score(true, predicted, average=average) for average in ("macro", "micro")])


@pytest.fixture(scope="module")
def image_folder():
    return pytest.importorskip("torchvision").datasets.ImageFolder


@pytest.fixture(scope="module")
def unseen(image_folder, bird_data):
    return image_folder(str(bird_data.test))


@pytest.fixture(scope="module")
def history(bird_trained):
    return json.loads(bird_trained.history.read_text())


def test_rows_are_in_the_order_of_image_folder_and_the_score_is_printed(bird_trained, bird_data, unseen):
    """The photos of a class lie in folders of several depths: in another order the labels would not fit."""
    labels = np.array(read_labels(bird_trained.csv))
    assert unseen.classes == bird_data.classes and labels.shape == (24,) and np.mean(labels == unseen.targets) >= 0.8
    assert f"{_average_f1(unseen.targets, labels):.4f}" in bird_trained.processes[1].stdout


def test_labels_do_not_depend_on_the_rest_of_the_dataset(bird_trained, bird_data, bird_call, unseen, tmp_path):
    """One photo, a flat folder, folders of some classes, a folder that is no class of training, which is reported."""
    labels, rows = np.array(read_labels(bird_trained.csv)), np.arange(24).reshape(4, 6)
    touch(tmp_path, ["flat/notes.txt", *(f"{dataset}/{name}/notes.txt" for dataset, names in (
        ("some", ("10", "9")), ("renamed", ("1", "eagle", "2", "9"))) for name in names)])
    for row, (path, label) in enumerate(unseen.samples):
        name = bird_data.classes[label]
        for folder in ("flat", f"some/{name}", f"renamed/{'eagle' if name == '10' else name}"):
            if (tmp_path / folder).exists():
                shutil.copy(path, str(tmp_path / folder / f"{row:02}.jpg"))
    for dataset, expected in ((unseen.samples[7][0], rows[1, 1:2]), ("flat", rows), ("some", rows[[1, 3]]),
                              ("renamed", rows[[0, 2, 3, 1]])):
        found = bird_call(dataset, "test", bird_trained.model)
        assert found.code == 0 and read_labels(tmp_path / "bird.csv") == labels[expected.flatten()].tolist()
        assert ("average F1" in found.out) == (dataset == "some")
        if dataset == "renamed":
            assert len(found.err.splitlines()) == 1 and "warning" in found.err and "eagle" in found.err
        else:
            assert found.err == ""


def _predictions(bird, path, photos, views):
    """Labels of photos (B, 3, S, S) in [0, 1], by the bare network, loaded as the starter code loads it."""
    model = bird.BirdClassifier()
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 10)  # the classes of the course
    model.load_state_dict(torch.load(str(path)))
    with torch.no_grad():
        return sum(model.eval()(view(photos)).softmax(1) for view in views).argmax(1).numpy()


def _decoded(bird, folder, side):
    return torch.from_numpy(np.stack([bird.decode_photo(path, side) for path, _ in folder.samples])).float() / 255


def test_the_state_dict_gives_a_grader_the_labels_of_the_command(bird, bird_trained, bird_data, unseen, history):
    """On the two views of test; classes, counts and image size are stored with the weights."""
    assert bird.load_model(str(bird_trained.model)).metadata == {
        "classes": bird_data.classes, "counts": history["counts"], "image_size": SIZE}
    side = round(bird.DECODED_SIZE * SIZE)
    middle = slice(round(0.1 * side), -round(0.1 * side))
    view = torch.nn.functional.interpolate(_decoded(bird, unseen, side)[:, :, middle, middle], (SIZE, SIZE),
                                           mode="bilinear", antialias=True)
    found = _predictions(bird, bird_trained.model, view, [lambda x: x, lambda x: x.flip(3)])
    assert np.mean(found == np.array(read_labels(bird_trained.csv))) >= 0.95  # half precision may turn a tie


def test_whole_photos_in_one_view_get_the_labels_of_the_command(bird, bird_call, bird_data, bird_fast, unseen):
    """The starter code's way. Crops of one size, because twelve epochs are too few to learn a second one."""
    assert bird_call(bird_data.train, "train", "bird.pth", *bird_fast, "--image-size", "32").code == 0
    assert bird_call(bird_data.test, "test", "bird.pth").code == 0
    found = _predictions(bird, "bird.pth", _decoded(bird, unseen, 32), [lambda x: x])
    assert np.mean(found == np.array(read_labels("bird.csv"))) >= 0.8


def test_history_holds_settings_and_the_metrics_of_each_epoch(bird, bird_trained, history, bird_data):
    out, wanted = bird_trained.processes[0].stdout, {"epoch", "train_loss", "train_accuracy", "val_loss",
                                                     "val_accuracy", "val_f1", "lr", "seconds"}
    assert history["classes"] == bird_data.classes and f"{history['parameters']:,} parameters" in out
    assert {field.name for field in dataclasses.fields(bird.Config)} <= set(history["settings"])
    assert (history["settings"]["epochs"], history["settings"]["image_size"]) == (EPOCHS, SIZE)
    assert [row["epoch"] for row in history["epochs"]] == list(range(1, EPOCHS + 1)) == _epochs(out)
    for row in history["epochs"]:
        assert wanted <= set(row) and all(np.isfinite(value) for value in row.values())
        assert all(0 <= row[name] <= 1 for name in ("train_accuracy", "val_accuracy", "val_f1"))
    largest = [row for row in history["epochs"] if row["crop_size"] == SIZE]
    assert history["epochs"][history["best_epoch"] - 1]["val_loss"] == min(row["val_loss"] for row in largest)
    assert not history["time_limited"] and "shortened" not in out


def test_history_holds_the_split_and_the_confusion_matrix_of_validation(history, bird_data):
    train, val = history["split"]["train"], history["split"]["validation"]
    assert not set(train) & set(val) and history["split"]["unreadable"] == []
    assert sorted(train + val) == sorted(str(path.relative_to(bird_data.train)).replace(os.sep, "/")
                                         for path in bird_data.train.rglob("*.jpg"))
    true = [history["classes"].index(path.split("/")[0]) for path in val]
    held_out, matrix = np.bincount(true, minlength=4), np.array(history["validation"]["confusion"])
    assert (np.abs(held_out - np.array(bird_data.counts) / 10) < 1).all()
    assert history["counts"] == (np.array(bird_data.counts) - held_out).tolist()
    assert matrix.shape == (4, 4) and matrix.sum(1).tolist() == held_out.tolist()
    rows, columns = (np.repeat(part, matrix.flatten()) for part in np.indices((4, 4)).reshape(2, -1))
    assert history["validation"]["average_f1"] == pytest.approx(_average_f1(rows, columns))


NAMES = ["1/a.jpg", "10/a.jpg", "11/a.jpg", "12/a.jpg", "2/a.jpg", "2/B.jpg", "2/b.JPG", "2/10.png", "2/9.png",
         "2/_.bmp", "2/é.jpg", "2/x/1.jpg", "2/x.jpg", "2/x y.jpg", "2/x-y/1.TIFF", "2/x/deep/1.webp", "2/X/1.ppm",
         "3/only/below.pgm", "4/a.tif", "5/a.Jpeg", "6/a.jpg", "7/a.jpg", "8/a.jpg", "9/a.jpg", "Aa/a.jpg", "a/a.jpg"]


def test_order_is_that_of_image_folder_with_nested_mixed_and_linked_names(bird, image_folder, tmp_path):
    touch(tmp_path, [*NAMES, "2/notes.txt", "2/a.gif", "2/jpg", "2/x/list.csv", "loose.jpg"])
    os.symlink("2", str(tmp_path / "linked"))
    os.symlink("../2/x", str(tmp_path / "3" / "linked"))
    reference = image_folder(str(tmp_path))
    classes, photos = bird.list_photos(str(tmp_path))
    assert (classes, photos) == (reference.classes, reference.samples)
    with pytest.warns(RuntimeWarning, match="no row, as in ImageFolder: loose.jpg$"):
        assert photos == bird.list_test_photos(str(tmp_path))[1]


@given(names=st.lists(st.lists(st.text("aB1_ -é", min_size=1, max_size=3).map(lambda name: name.strip() or "x"),
                               min_size=2, max_size=4), min_size=1, max_size=12))
def test_order_is_that_of_image_folder_for_any_names(bird, image_folder, tmp_path_factory, names):
    root = tmp_path_factory.mktemp("names")
    touch(root, ["/".join(("class" + first, *rest)) + ".jpg" for first, *rest in names])
    assert bird.list_photos(str(root)) == (image_folder(str(root)).classes, image_folder(str(root)).samples)


def test_names_beyond_ascii_decomposed_and_on_an_ascii_terminal(bird, bird_call, bird_draw, monkeypatch, tmp_path):
    """macOS may list names decomposed that were composed where the model was trained."""
    model = bird.BirdClassifier(["M\u00f6we", "Uhu"], [1, 1], 32)
    (tmp_path / "m\u00f6we.pth").write_bytes(bird.serialized(model.state_dict()))
    bird_draw(tmp_path / "V\u00f6gel", {"Mo\u0308we/0.jpg": 0, "Uhu/1.jpg": 1})
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    found = bird_call("V\u00f6gel", "test", "m\u00f6we.pth", "--output", "\u00e4.csv")
    assert (found.code, found.err) == (0, "") and b"average F1" in sys.stdout.buffer.getvalue()
    assert len(read_labels(tmp_path / "\u00e4.csv")) == 2


SHORT = ("--epochs", "6", "--image-size", "32", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def words(bird_few):
    return (bird_few, "train", "bird.pth", *SHORT)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, bird_alone, words, run):
    """The bytes of the model of that command, run in a process of its own."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = run(bird_alone, *words, cwd=folder)
    assert (process.returncode, process.stderr) == (0, "")
    return (folder / "bird.pth").read_bytes()


@pytest.fixture(scope="module")
def stop(tmp_path_factory, bird_alone, words, environment):
    """stop(number, *options): folder, exit code and stderr of a training that gets the signal after two epochs."""
    def stop(number, *options):
        folder = tmp_path_factory.mktemp("stopped")
        command = list(map(str, (sys.executable, *options, bird_alone, *words, "--resume")))
        with subprocess.Popen(command, cwd=str(folder), env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as process:
            try:
                next(line for line in process.stdout if _epochs(line) == [2])
                process.send_signal(number)
                return folder, process.wait(timeout=600), process.stderr.read()
            finally:
                process.kill()

    return stop


@pytest.fixture(scope="module")
def killed(stop):
    folder, code, _ = stop(signal.SIGKILL)
    assert code == -signal.SIGKILL and "bird.pth" not in files(folder)
    return folder / "bird_checkpoint.pth"


@pytest.fixture
def half_way(killed, tmp_path):
    """The folder of `bird_call` with the checkpoint of a training that was killed."""
    shutil.copy(str(killed), str(tmp_path))
    return tmp_path


def test_training_repeats_to_the_byte_without_its_checkpoint(bird, bird_call, words, uninterrupted, monkeypatch):
    monkeypatch.setattr(bird, "print_line",
                        lambda line, *_: "epoch   6/6" in line and os.remove("bird_checkpoint.pth"))
    found = bird_call(*words)
    assert (found.code, found.err) == (0, "") and files(".") == OUTPUTS
    assert Path("bird.pth").read_bytes() == uninterrupted


def test_photos_on_disk_and_a_full_disk_change_no_byte(bird, bird_call, words, uninterrupted, monkeypatch):
    """Too full for checkpoints."""
    def full_open(path, mode="r", *rest, **options):
        return FullDisk() if "bird_checkpoint" in str(path) and mode[0] in "wx" else open(path, mode, *rest, **options)

    monkeypatch.setattr(bird, "open", full_open, raising=False)
    monkeypatch.setattr(bird, "MAX_IN_MEMORY", 0)
    found = bird_call(*words)
    assert found.code == 0 and files(".") == OUTPUTS and Path("bird.pth").read_bytes() == uninterrupted
    assert all("without a checkpoint" in line for line in found.err.splitlines()) and found.err


def test_ctrl_c_in_training_is_one_line_and_leaves_a_checkpoint(stop):
    """Also with `python -W error`: the warning that there was nothing to resume has not stopped the training."""
    folder, code, err = stop(signal.SIGINT, "-W", "error")
    warning, interrupted = err.splitlines()
    assert code == 130 and files(folder) == ["bird_checkpoint.pth"] and "no checkpoint" in warning
    assert interrupted.startswith("bird.py: interrupted") and "--resume" in interrupted


def test_a_killed_training_resumes_to_the_same_bytes(half_way, uninterrupted, bird_call, words):
    found = bird_call(*words, "--resume")
    assert (found.code, found.err) == (0, "") and _epochs(found.out)[0] > 1
    assert (half_way / "bird.pth").read_bytes() == uninterrupted and files(half_way) == OUTPUTS
    history = json.loads((half_way / "bird_history.json").read_text())
    assert [row["epoch"] for row in history["epochs"]] == list(range(1, len(history["epochs"]) + 1))


def test_a_training_stopped_after_its_last_epoch_resumes(bird, uninterrupted, bird_call, words, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(bird, "print_line",
                        lambda line, *_: "epoch   6/6" in line and os.kill(os.getpid(), signal.SIGTERM))
        found = bird_call(*words)
        assert found.code == 143 and len(found.err.splitlines()) == 1 and "--resume" in found.err
    assert files(".") == ["bird_checkpoint.pth"]
    assert bird_call(*words, "--resume").code == 0 and Path("bird.pth").read_bytes() == uninterrupted


def test_only_the_same_training_is_resumed(bird, bird_call, bird_data, half_way, words, monkeypatch):
    """Not one of other photos, with another setting, of another network."""
    for other in ((bird_data.test, *words[1:]), (*words, "--epochs", "7"), (*words, "--image-size", "48"),
                  (*words, "--seed", "5")):
        refused(bird_call(*other, "--resume"), "bird_checkpoint.pth")
    monkeypatch.setattr(bird, "WIDTHS", (8, 8, 8, 8))
    refused(bird_call(*words, "--resume"), "bird_checkpoint.pth")
    assert files(half_way) == ["bird_checkpoint.pth"]


def test_training_from_scratch_warns_of_a_checkpoint_that_is_not_used(half_way, bird_call, words):
    """Whatever it holds, or that there is none to resume; the seed matters."""
    models = []
    for leftover, flags, said in ((None, (), "without --resume"), (b"no checkpoint\n", ("--seed", "1"),
                                  "without --resume"), (None, ("--resume",), "no checkpoint to resume")):
        if leftover:
            (half_way / "bird_checkpoint.pth").write_bytes(leftover)
        found = bird_call(*words, "--epochs", "1", *flags)
        assert found.code == 0 and len(found.err.splitlines()) == 1 and said in found.err
        assert _epochs(found.out) == [1] and files(half_way) == OUTPUTS
        models.append((half_way / "bird.pth").read_bytes())
    assert models[0] == models[2] != models[1]


@pytest.mark.parametrize("module, step", [("torch", "load"), ("bird", "predict_proba")])
def test_ctrl_c_twice_at_test_is_one_line(bird, bird_call, bird_untrained, bird_data, monkeypatch, module, step):
    """Not a broken model either; the second comes while the first is reported."""
    class Impatient(io.StringIO):
        def write(self, text):
            os.kill(os.getpid(), signal.SIGINT)
            return super().write(text)

    monkeypatch.setattr(sys.modules[module], step, lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(sys, "stderr", Impatient())
    assert bird_call(bird_data.test, "test", bird_untrained).code == 130
    assert sys.stderr.getvalue() == "bird.py: interrupted\n" and files(".") == []


def test_ctrl_c_at_test_leaves_the_other_photos_undecoded(bird, bird_call, bird_untrained, monkeypatch, tmp_path):
    decoded = []

    def slow(path, size):
        if len(decoded) == 3:  # by now all of a batch wait
            os.kill(os.getpid(), signal.SIGINT)
        decoded.append(path)
        time.sleep(0.05)

    monkeypatch.setattr(bird, "decode_photo", slow)
    touch(tmp_path, [f"photos/{number}.jpg" for number in range(200)])
    assert bird_call("photos", "test", bird_untrained, "--threads", "1").code == 130 and len(decoded) < 50


def test_a_slow_machine_shortens_the_schedule_and_says_so(bird, bird_call, words, monkeypatch, tmp_path):
    """It ends in time with a learning rate near 0. The whole schedule would take more than a minute."""
    clock, augment = [0.0], bird.augment

    def slow(*args):
        clock[0] += 1
        return augment(*args)

    monkeypatch.setattr(bird.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(bird, "augment", slow)
    monkeypatch.setattr(bird, "Config", dataclasses.make_dataclass("Config", [("batch_size", int, 8)],
                                                                   bases=(bird.Config,), frozen=True))
    found = bird_call(*words, "--epochs", "15", "--minutes", "0.2")
    assert (found.code, found.err) == (0, "")
    history = json.loads((tmp_path / "bird_history.json").read_text())
    assert history["time_limited"] and 0.9 * 0.2 < history["minutes"] <= 0.2
    (line,) = [line for line in found.out.splitlines() if "shortened" in line]
    assert "--minutes 0.2" in line and "15 epochs" in line and "not reproducible" in line
    rates = [row["lr"] for row in history["epochs"]]
    assert 1 < len(rates) <= 5 and rates[-1] < 0.1 * max(rates)


def test_a_resumed_training_keeps_to_the_time_of_the_whole(half_way, bird_call, words):
    found = bird_call(*words, "--resume", "--minutes", "0.01", "--quiet")
    assert found.code == 0 and found.out == "" and _took_longer("0.01", found.err) and files(half_way) == OUTPUTS
    assert len(json.loads((half_way / "bird_history.json").read_text())["epochs"]) < 6


def test_time_that_reading_used_up_still_gives_a_model(bird, bird_call, bird_data, words, monkeypatch):
    read = bird.decode_photos

    def slow(*args):
        images = read(*args)
        monkeypatch.setattr(bird.time, "monotonic", lambda now=bird.time.monotonic: now() + 3600)
        return images

    monkeypatch.setattr(bird, "decode_photos", slow)
    found = bird_call(*words, "--minutes", "1")
    assert found.code == 0 and _took_longer("1", found.err)
    assert bird_call(bird_data.test / "1" / "0.jpg", "test", "bird.pth").code == 0
