"""The two bird commands as the grader gives them: what they write, in which order, that they repeat themselves, go on
where they were stopped, and end in time."""
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
import types

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import FullDisk, refused

EPOCHS, SIZE = 12, 48  # as in the flags of `bird_fast`


def _labels(path):
    content = path.read_bytes()
    assert re.fullmatch(rb"Predicted_Label\n(\d+\n)*", content)
    return [int(line) for line in content.split()[1:]]


def _epochs(out):
    """Numbers of the epochs whose lines stand in `out`."""
    return [int(number) for number in re.findall(r"^epoch +(\d+)\b.*photos/s", out, re.M)]


def _files(folder):
    return sorted(os.listdir(str(folder)))


def _longer_than(minutes, err):
    """Whether stderr is the one line that says that --minutes could not be kept."""
    return re.fullmatch(rf"bird\.py: warning: training took [\d.]+ s, --minutes {re.escape(minutes)} allows [\d.]+ s: "
                        r"all photos are read, one step and one validation made in any case\n", err)


@pytest.fixture(scope="module")
def truth(bird_data):
    """Labels of the unseen photos in the order of torchvision's ImageFolder."""
    folder = pytest.importorskip("torchvision").datasets.ImageFolder(str(bird_data.test))
    assert folder.classes == bird_data.classes
    return folder.targets


@pytest.fixture
def image_folder():
    """torchvision's own class, the reference for classes, indices and order."""
    return pytest.importorskip("torchvision").datasets.ImageFolder


# ------------------------------------------------------------------------------------------------------------- outputs

def test_the_kinds_are_learned_and_the_rows_stand_in_the_order_of_image_folder(bird_trained, truth):
    """The photos of a class lie in folders of several depths: in another order the labels would not fit."""
    labels = np.array(_labels(bird_trained.csv))
    assert labels.shape == (24,) and np.mean(labels == truth) >= 0.8


def test_a_row_holds_the_label_of_its_own_photo(bird_trained, bird_data, image_folder, bird_call, tmp_path):
    """Each photo alone gets what it got among the others."""
    samples, labels = image_folder(str(bird_data.test)).samples, _labels(bird_trained.csv)
    for row in (0, 7, 16, 23):
        found = bird_call(samples[row][0], "test", bird_trained.model)
        assert (found.code, found.err) == (0, "")
        assert _labels(tmp_path / "bird.csv") == [labels[row]]


def test_what_a_grader_loads_predicts_what_the_command_wrote(bird, bird_trained, bird_data, image_folder):
    """The bare network, loaded in the starter code's way, on the two views of test, by hand."""
    model = bird.BirdClassifier()
    model.load_state_dict(torch.load(str(bird_trained.model)))
    model.eval()
    side = round(bird.DECODED_SIZE * SIZE)
    photos = np.stack([bird.decode_photo(path, side) for path, _ in image_folder(str(bird_data.test)).samples])
    margin = round(0.1 * side)
    middle = torch.from_numpy(photos).float()[:, :, margin:-margin, margin:-margin] / 255
    view = torch.nn.functional.interpolate(middle, (SIZE, SIZE), mode="bilinear", antialias=True)
    with torch.no_grad():
        found = (model(view).softmax(1) + model(view.flip(3)).softmax(1)).argmax(1).numpy()
    assert np.mean(found == np.array(_labels(bird_trained.csv))) >= 0.95  # half precision may turn a tie


def test_whole_photos_in_one_view_get_the_labels_of_the_command(bird, bird_call, bird_data, bird_fast, image_folder,
                                                                tmp_path):
    """The starter code's way. Crops of one size, because twelve epochs are too few to learn a second one."""
    assert bird_call(bird_data.train, "train", "bird.pth", *bird_fast, "--image-size", "32").code == 0
    assert bird_call(bird_data.test, "test", "bird.pth").code == 0
    model = bird.BirdClassifier()
    model.load_state_dict(torch.load("bird.pth"))
    model.eval()
    photos = np.stack([bird.decode_photo(path, 32) for path, _ in image_folder(str(bird_data.test)).samples])
    with torch.no_grad():
        found = model(torch.from_numpy(photos).float() / 255).argmax(1).numpy()
    assert np.mean(found == np.array(_labels(tmp_path / "bird.csv"))) >= 0.8


def test_classes_counts_and_size_come_back_with_the_weights(bird, bird_trained, bird_data):
    history = json.loads(bird_trained.history.read_text())
    model = bird.load_model(str(bird_trained.model))
    assert model.metadata == {"classes": bird_data.classes, "counts": history["counts"], "image_size": SIZE}
    assert model(torch.zeros(2, 3, SIZE, SIZE)).shape == (2, 4)


def test_bare_model_has_the_ten_classes_of_the_course(bird):
    assert bird.BirdClassifier().eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


def test_training_reports_every_epoch_with_its_speed(bird_trained):
    assert _epochs(bird_trained.processes[0].stdout) == list(range(1, EPOCHS + 1))
    parameters = json.loads(bird_trained.history.read_text())["parameters"]
    assert f"{parameters:,} parameters" in bird_trained.processes[0].stdout


def test_testing_prints_the_score_where_the_folders_tell_the_truth(bird_trained, truth):
    metrics = pytest.importorskip("sklearn.metrics")
    labels = _labels(bird_trained.csv)
    expected = np.mean([metrics.f1_score(truth, labels, average=average) for average in ("macro", "micro")])
    assert f"{expected:.4f}" in bird_trained.processes[1].stdout


# ------------------------------------------------------------------------------------------------------------- history

@pytest.fixture(scope="module")
def history(bird_trained):
    return json.loads(bird_trained.history.read_text())


def test_history_has_numbers_for_each_epoch(history):
    wanted = {"epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_f1", "lr", "seconds"}
    assert [row["epoch"] for row in history["epochs"]] == list(range(1, EPOCHS + 1))
    for row in history["epochs"]:
        assert wanted <= set(row) and all(np.isfinite(value) for value in row.values())
        assert all(0 <= row[name] <= 1 for name in ("train_accuracy", "val_accuracy", "val_f1"))


def test_history_holds_settings_and_classes(bird, history, bird_data):
    assert history["classes"] == bird_data.classes
    assert {field.name for field in dataclasses.fields(bird.Config)} <= set(history["settings"])
    assert (history["settings"]["epochs"], history["settings"]["image_size"]) == (EPOCHS, SIZE)


def test_split_covers_all_photos_once_and_a_tenth_of_each_class(history, bird_data):
    train, val = history["split"]["train"], history["split"]["validation"]
    assert not set(train) & set(val) and history["split"]["unreadable"] == []
    assert sorted(train + val) == sorted(str(path.relative_to(bird_data.train)).replace(os.sep, "/")
                                         for path in bird_data.train.rglob("*.jpg"))
    for name, count, trained_on in zip(bird_data.classes, bird_data.counts, history["counts"]):
        held_out = sum(path.startswith(name + "/") for path in val)
        assert abs(held_out - count / 10) < 1 and trained_on == count - held_out


def test_history_holds_the_confusion_matrix_of_the_validation_photos(history):
    metrics, matrix = pytest.importorskip("sklearn.metrics"), np.array(history["validation"]["confusion"])
    true = [history["classes"].index(path.split("/")[0]) for path in history["split"]["validation"]]
    assert matrix.shape == (4, 4) and matrix.sum(1).tolist() == np.bincount(true, minlength=4).tolist()
    rows, columns = (np.repeat(part, matrix.flatten()) for part in np.indices((4, 4)).reshape(2, -1))
    expected = np.mean([metrics.f1_score(rows, columns, average=average) for average in ("macro", "micro")])
    assert history["validation"]["average_f1"] == pytest.approx(expected)


def test_the_epoch_that_is_kept_has_the_lowest_loss_on_the_validation_photos(history):
    """Of those that were validated at the size of test."""
    largest = [row for row in history["epochs"] if row["crop_size"] == SIZE]
    assert history["epochs"][history["best_epoch"] - 1]["val_loss"] == min(row["val_loss"] for row in largest)


# ------------------------------------------------------------------------------------------- order, against ImageFolder

NAMES = ["1/a.jpg", "10/a.jpg", "11/a.jpg", "12/a.jpg", "2/a.jpg", "2/B.jpg", "2/b.JPG", "2/10.png", "2/9.png",
         "2/_.bmp", "2/é.jpg", "2/x/1.jpg", "2/x.jpg", "2/x y.jpg", "2/x-y/1.TIFF", "2/x/deep/1.webp", "2/X/1.ppm",
         "3/only/below.pgm", "4/a.tif", "5/a.Jpeg", "6/a.jpg", "7/a.jpg", "8/a.jpg", "9/a.jpg", "Aa/a.jpg", "a/a.jpg"]


def test_order_is_that_of_image_folder_for_1_to_12_nested_and_mixed_names(bird, image_folder, tmp_path):
    for name in [*NAMES, "2/notes.txt", "2/a.gif", "2/jpg", "2/x/list.csv", "loose.jpg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    reference = image_folder(str(tmp_path))
    classes, photos = bird.list_photos(str(tmp_path))
    assert len(photos) == len(NAMES)
    assert (classes, photos) == (reference.classes, reference.samples)
    with pytest.warns(RuntimeWarning, match="no row, as in ImageFolder: loose.jpg$"):
        assert photos == bird.list_test_photos(str(tmp_path))[1]


@given(names=st.lists(st.lists(st.text("aB1_ -é", min_size=1, max_size=3).map(lambda name: name.strip() or "x"),
                               min_size=2, max_size=4), min_size=1, max_size=12))
def test_order_is_that_of_image_folder_for_any_names(bird, tmp_path_factory, names):
    image_folder = pytest.importorskip("torchvision").datasets.ImageFolder
    root = tmp_path_factory.mktemp("names")
    for parts in names:
        path = root.joinpath("class" + parts[0], *parts[1:-1], parts[-1] + ".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert bird.list_photos(str(root)) == (image_folder(str(root)).classes, image_folder(str(root)).samples)


def test_linked_folders_are_followed_as_image_folder_follows_them(bird, image_folder, bird_data, tmp_path):
    for name in bird_data.classes[:2]:
        os.symlink(str(bird_data.test / name), str(tmp_path / name))
    (tmp_path / "third").mkdir()
    os.symlink(str(bird_data.test / "2"), str(tmp_path / "third" / "inner"))
    assert bird.list_photos(str(tmp_path))[1] == image_folder(str(tmp_path)).samples


# --------------------------------------------------------------------------------------------------- datasets at test

def _test(bird_call, bird_trained, dataset, folder, *flags):
    found = bird_call(dataset, "test", bird_trained.model, *flags)
    assert found.code == 0
    return found, _labels(folder / "bird.csv")


def test_missing_classes_leave_the_other_labels_as_they_are(bird_call, bird_trained, bird_data, truth, tmp_path):
    """Labels are indices into the classes of training, whatever folders there are at test."""
    for name in ("10", "9"):
        shutil.copytree(str(bird_data.test / name), str(tmp_path / "some" / name))
    found, labels = _test(bird_call, bird_trained, "some", tmp_path)
    whole = _labels(bird_trained.csv)
    assert labels == whole[6:12] + whole[18:] and found.err == ""
    assert np.mean(np.array(labels) == np.array(truth)[[*range(6, 12), *range(18, 24)]]) >= 0.8


def test_folders_that_contradict_the_training_classes_are_reported(bird_call, bird_trained, bird_data, tmp_path):
    for old, new in zip(bird_data.classes, ("1", "eagle", "2", "9")):
        shutil.copytree(str(bird_data.test / old), str(tmp_path / "other" / new))
    found, labels = _test(bird_call, bird_trained, "other", tmp_path)
    assert len(found.err.splitlines()) == 1 and "warning" in found.err and "eagle" in found.err
    assert len(labels) == 24 and "average F1" not in found.out


def test_flat_folder_of_photos(bird_call, bird_trained, bird_data, tmp_path):
    (tmp_path / "flat").mkdir()
    expected = {}
    for label, name in enumerate(bird_data.classes):
        for path in (bird_data.test / name).glob("*.jpg"):
            new = f"{9 - label}{path.name}"
            shutil.copy(str(path), str(tmp_path / "flat" / new))
            expected[new] = label
    (tmp_path / "flat" / "notes.txt").write_text("no photo")
    found, labels = _test(bird_call, bird_trained, "flat", tmp_path)
    assert found.err == "" and len(labels) == len(expected)
    assert np.mean([expected[name] == label for name, label in zip(sorted(expected), labels)]) >= 0.8


def test_names_beyond_ascii_pass_a_terminal_that_knows_ascii_alone(bird, bird_call, bird_data, monkeypatch, tmp_path):
    model = bird.BirdClassifier(["Eule", "M\u00f6we"], [1, 1], 32)
    (tmp_path / "m\u00f6we.pth").write_bytes(bird.serialized(model.state_dict()))
    shutil.copytree(str(bird_data.test / "1"), str(tmp_path / "V\u00f6gel" / "Eule"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    found = bird_call("V\u00f6gel", "test", "m\u00f6we.pth", "--output", "\u00e4.csv")
    assert (found.code, found.err) == (0, "")
    assert len(_labels(tmp_path / "\u00e4.csv")) == 6


# ------------------------------------------------------------------------------------------------------- repeatability

SHORT = ("--epochs", "6", "--image-size", "32", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="session")
def words(bird_few):
    """The command of a training that takes seconds."""
    return (bird_few, "train", "bird.pth", *SHORT)


@pytest.fixture(scope="session")
def uninterrupted(once, bird_alone, words, run):
    """The bytes of the model of that command, run in a process of its own."""
    def train(folder):
        process = run(bird_alone, *words, cwd=folder)
        assert (process.returncode, process.stderr) == (0, "")
        return (folder / "bird.pth").read_bytes()

    return once("uninterrupted", train)


def test_training_repeats_itself_to_the_bit(bird_call, words, uninterrupted, tmp_path):
    """In another process, from another folder."""
    assert bird_call(*words).code == 0
    assert (tmp_path / "bird.pth").read_bytes() == uninterrupted


def test_another_seed_gives_another_model(bird_call, words, uninterrupted, tmp_path):
    assert bird_call(*words, "--seed", "1").code == 0
    assert (tmp_path / "bird.pth").read_bytes() != uninterrupted


def test_images_in_a_temporary_file_change_no_bit(bird, bird_call, words, uninterrupted, monkeypatch, tmp_path):
    monkeypatch.setattr(bird, "MAX_IN_MEMORY", 0)
    assert bird_call(*words).code == 0
    assert (tmp_path / "bird.pth").read_bytes() == uninterrupted
    assert _files(tmp_path) == ["bird.pth", "bird_history.json"]


# ----------------------------------------------------------------------------------------------- stopping, and going on

@pytest.fixture(scope="session")
def stopped(once, bird_alone, words, environment):
    """stopped(number): folder, exit code and stderr of a training that got signal `number` after its first epochs."""
    def stop(folder, number):
        command = list(map(str, (sys.executable, bird_alone, *words)))
        with subprocess.Popen(command, cwd=str(folder), env=environment, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True) as process:
            try:
                for line in process.stdout:
                    if _epochs(line) == [2]:
                        break
                assert (folder / "bird_checkpoint.pth").exists()
                process.send_signal(number)
                err = process.communicate(timeout=600)[1]
            finally:
                process.kill()
        return types.SimpleNamespace(folder=folder, code=process.returncode, err=err)

    return lambda number: once(f"stopped{int(number)}", lambda folder: stop(folder, number))


@pytest.fixture
def half_way(stopped, tmp_path):
    """The folder of `bird_call` with the resume file of a training that was stopped."""
    shutil.copy(str(stopped(signal.SIGTERM).folder / "bird_checkpoint.pth"), str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_a_stopped_training_is_one_line_and_leaves_its_resume_file_alone(stopped, number, code):
    found = stopped(number)
    assert found.code == code
    assert found.err.startswith("bird.py: interrupted") and len(found.err.splitlines()) == 1
    assert "--resume" in found.err
    assert _files(found.folder) == ["bird_checkpoint.pth"]


def test_a_stopped_training_goes_on_to_the_same_bits(half_way, uninterrupted, bird_call, words):
    found = bird_call(*words, "--resume")
    assert (found.code, found.err) == (0, "")
    assert _epochs(found.out)[0] > 1
    assert (half_way / "bird.pth").read_bytes() == uninterrupted
    assert _files(half_way) == ["bird.pth", "bird_history.json"]
    history = json.loads((half_way / "bird_history.json").read_text())
    assert [row["epoch"] for row in history["epochs"]] == list(range(1, len(history["epochs"]) + 1))


def test_a_killed_training_goes_on_to_the_same_bits_by_the_real_command(stopped, uninterrupted, run, bird_alone,
                                                                        words):
    found = stopped(signal.SIGKILL)
    assert found.code == -signal.SIGKILL and "bird.pth" not in _files(found.folder)
    process = run(bird_alone, *words, "--resume", cwd=found.folder)
    assert (process.returncode, process.stderr) == (0, "")
    assert (found.folder / "bird.pth").read_bytes() == uninterrupted
    assert not (found.folder / "bird_checkpoint.pth").exists()


def _at_the_last_validation(bird, monkeypatch, act):
    """The one after the last epoch; the first only measures how long one takes."""
    calls, evaluate = [], bird.evaluate

    def counted(*args):
        calls.append(1)
        if len(calls) == 8:  # SHORT's epochs and 2
            act()
        return evaluate(*args)

    monkeypatch.setattr(bird, "evaluate", counted)


def test_a_training_stopped_after_its_last_epoch_goes_on_to_the_same_bits(bird, uninterrupted, bird_call, words,
                                                                          monkeypatch, tmp_path):
    """The signal comes when nothing but the last prediction and the writing is left."""
    with monkeypatch.context() as patched:
        _at_the_last_validation(bird, patched, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert bird_call(*words).code == 143
    assert _files(tmp_path) == ["bird_checkpoint.pth"]
    assert bird_call(*words, "--resume").code == 0
    assert (tmp_path / "bird.pth").read_bytes() == uninterrupted


def test_a_signal_while_a_model_loads_is_no_broken_model(bird_call, bird_trained, bird_data, monkeypatch, tmp_path):
    def slow(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        return {}

    monkeypatch.setattr(torch, "load", slow)
    found = bird_call(bird_data.test, "test", bird_trained.model)
    assert (found.code, found.err) == (130, "bird.py: interrupted\n")
    assert _files(tmp_path) == []


def test_interrupted_at_test_the_photos_that_wait_are_not_decoded(bird, bird_call, bird_trained, bird_draw, monkeypatch,
                                                                  tmp_path):
    photos = tmp_path / "photos"
    bird_draw(photos, {f"{number:03}.jpg": 0 for number in range(200)})
    decoded = []

    def slow(path, size):
        if len(decoded) == 3:  # by now all of a batch wait
            os.kill(os.getpid(), signal.SIGINT)
        decoded.append(path)
        time.sleep(0.05)

    monkeypatch.setattr(bird, "decode_photo", slow)
    assert bird_call(photos, "test", bird_trained.model, "--threads", "1").code == 130
    assert len(decoded) < 50


def test_another_training_is_not_gone_on_with(bird, bird_call, bird_data, half_way, words, monkeypatch):
    """Of other photos, with another setting, of another network."""
    for other in ((bird_data.test, *words[1:]), (*words, "--epochs", "7"), (*words, "--image-size", "48"),
                  (*words, "--seed", "5")):
        refused(bird_call(*other, "--resume"), "bird_checkpoint.pth")
    monkeypatch.setattr(bird, "WIDTHS", (8, 8, 8, 8))
    refused(bird_call(*words, "--resume"), "bird_checkpoint.pth")
    assert _files(half_way) == ["bird_checkpoint.pth"]


def test_a_resume_file_that_vanished_costs_nothing(bird, bird_call, words, monkeypatch, tmp_path):
    _at_the_last_validation(bird, monkeypatch, (tmp_path / "bird_checkpoint.pth").unlink)
    found = bird_call(*words)
    assert (found.code, found.err) == (0, "")
    assert _files(tmp_path) == ["bird.pth", "bird_history.json"]


def test_a_second_ctrl_c_while_the_first_is_told_is_still_one_line(bird, bird_call, bird_trained, bird_data,
                                                                   monkeypatch, tmp_path):
    class Impatient(io.StringIO):
        def write(self, text):
            os.kill(os.getpid(), signal.SIGINT)
            return super().write(text)

    monkeypatch.setattr(bird, "predict_proba", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    monkeypatch.setattr(sys, "stderr", Impatient())
    assert bird_call(bird_data.test, "test", bird_trained.model).code == 130
    assert sys.stderr.getvalue() == "bird.py: interrupted\n"
    assert _files(tmp_path) == []


def test_a_checkpoint_that_finds_no_room_does_not_abort_training(bird, bird_call, words, monkeypatch, tmp_path):
    def full_open(path, mode="r", *rest, **options):
        return FullDisk() if "bird_checkpoint" in str(path) and mode[0] in "wx" else open(path, mode, *rest, **options)

    monkeypatch.setattr(bird, "open", full_open, raising=False)
    found = bird_call(*words)
    assert found.code == 0 and _files(tmp_path) == ["bird.pth", "bird_history.json"]
    assert all("without a checkpoint" in line for line in found.err.splitlines()) and found.err


def test_nothing_to_resume_begins_anew_with_a_warning(bird_call, words, tmp_path):
    found = bird_call(*words, "--epochs", "1", "--resume", "--quiet")
    assert found.code == 0 and found.out == "" and len(found.err.splitlines()) == 1
    assert "no checkpoint to resume" in found.err and _files(tmp_path) == ["bird.pth", "bird_history.json"]


def test_without_resume_an_unfinished_training_begins_anew_with_a_warning(half_way, bird_call, words):
    found = bird_call(*words, "--epochs", "1")
    assert found.code == 0 and len(found.err.splitlines()) == 1 and "without --resume" in found.err
    assert _epochs(found.out) == [1]
    assert _files(half_way) == ["bird.pth", "bird_history.json"]


def test_warnings_that_python_makes_errors_stop_nothing(bird_alone, words, environment, tmp_path):
    shutil.copytree(str(words[0]), str(tmp_path / "photos"))
    (tmp_path / "photos" / "1" / "broken.jpg").write_bytes(b"no photo")
    command = [sys.executable, "-W", "error", str(bird_alone), "photos", *map(str, words[1:]), "--epochs", "1"]
    done = subprocess.run(command, cwd=str(tmp_path), env=environment, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "cannot be read" in done.stderr


def test_a_resumed_training_keeps_to_the_time_of_the_whole(half_way, bird_call, words):
    """What it took before counts: the time is up, so what there is gets written."""
    found = bird_call(*words, "--resume", "--minutes", "0.01")
    assert found.code == 0 and _longer_than("0.01", found.err)
    assert _epochs(found.out) == []
    assert _files(half_way) == ["bird.pth", "bird_history.json"]


# ---------------------------------------------------------------------------------------------------------------- time

SLOW = """
import dataclasses, sys, time
import concurrent.futures, torch
sys.path.insert(0, sys.argv[1])
seconds = 0.0
time.monotonic = lambda: seconds  # a machine whose steps take one second each, whatever else this one has to do
import bird

@dataclasses.dataclass(frozen=True)
class Config(bird.Config):
    batch_size: int = 8

bird.Config, quick = Config, bird.augment

def slow(*args):
    global seconds
    seconds += 1
    return quick(*args)

bird.augment = slow
sys.exit(bird.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("minutes, most_epochs", [("0.75", 14), ("0.2", 5)])
def test_a_slow_machine_shortens_the_schedule_and_says_so(bird_alone, bird_few, run, tmp_path, minutes, most_epochs):
    """It ends in time with a learning rate near 0. The whole schedule would take more than a minute."""
    (tmp_path / "slow.py").write_text(SLOW)
    process = run(tmp_path / "slow.py", bird_alone.parent, bird_few, "train", "bird.pth", *SHORT, "--epochs", "15",
                  "--minutes", minutes, cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    history = json.loads((tmp_path / "bird_history.json").read_text())
    assert history["time_limited"] and 0.9 * float(minutes) < history["minutes"] <= float(minutes)
    (line,) = [line for line in process.stdout.splitlines() if "shortened" in line]
    assert f"--minutes {minutes}" in line and "15 epochs" in line and "not reproducible" in line
    rates = [row["lr"] for row in history["epochs"]]
    assert 1 < len(rates) <= most_epochs and rates[-1] < 0.1 * max(rates)


def test_with_time_enough_nothing_is_said_of_it(bird_trained, history):
    assert not history["time_limited"] and "shortened" not in bird_trained.processes[0].stdout


def test_hardly_any_time_still_gives_a_model(bird_call, bird_data, words):
    """Reading the photos alone may take longer, and a fast machine finishes in time."""
    found = bird_call(*words, "--minutes", "0.01")
    assert found.code == 0 and (_longer_than("0.01", found.err) or not found.err)
    assert bird_call(bird_data.test / "1" / "0.jpg", "test", "bird.pth").code == 0


def test_time_that_reading_used_up_still_gives_a_model(bird, bird_call, bird_data, words, monkeypatch):
    read = bird.decode_photos

    def slow(*args):
        images = read(*args)
        monkeypatch.setattr(bird.time, "monotonic", lambda now=bird.time.monotonic: now() + 3600)
        return images

    monkeypatch.setattr(bird, "decode_photos", slow)
    found = bird_call(*words, "--minutes", "1")
    assert found.code == 0 and _longer_than("1", found.err)
    assert bird_call(bird_data.test / "1" / "0.jpg", "test", "bird.pth").code == 0
