"""`python -m handin grade` of one script: right scripts pass, each known mistake is named, cheats learn nothing."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent

import peers

from common.errors import InputError
from handin.__main__ import main
from handin.grading import contract, grade, probe, rules, sandbox
from handin.grading.data import load_birds, load_digits
from handin.grading.script import Settings, compare, grade_script

KIND = sandbox.choose("auto", "")
SHORT = Settings({"birds": 1.0, "digits": 1.0}, 1.0, 4e9, sandbox=KIND)
needs_bwrap = pytest.mark.skipif(KIND.kind != "bwrap", reason="bubblewrap is not available")


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    return peers.write_birds(tmp_path_factory.mktemp("birds"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return peers.write_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def bird_photos(birds, tmp_path_factory):
    return load_birds(tmp_path_factory.mktemp("copies"), birds.train, birds.test)


@pytest.fixture(scope="module")
def digit_images(digits, tmp_path_factory):
    return load_digits(tmp_path_factory.mktemp("copies"), digits.train, digits.val, digits.test)


def graded(part, source, data, tmp_path, settings=SHORT):
    """Result of a script with this source."""
    path = tmp_path / f"{part}.py"
    path.write_text(source)
    return grade_script(part, path, data, settings)


def rows_of(result):
    return {row.check: row for row in result.rows}


def faults(rows):
    return [(row.check, row.status, row.detail) for row in rows if row.status != "pass"]


# ------------------------------------------------------------------------------------------------------- right scripts

def test_a_right_pair_passes_everything_and_scores_in_full(birds, digits, tmp_path, capsys):
    """Through the command line; the birds with a submitted model, which is compared with a retrained one."""
    import torch
    torch.save({"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3)}, str(tmp_path / "bird.pth"))
    (tmp_path / "b.py").write_text(peers.BIRD)
    (tmp_path / "v.py").write_text(peers.VAE)
    code = main(["grade", "--birds", str(birds.train), str(birds.test), "--bird", str(tmp_path / "b.py"), "--digits",
                 str(digits.train), str(digits.val), str(digits.test), "--vae", str(tmp_path / "v.py"), "--bird-model",
                 str(tmp_path / "bird.pth"), "--json", str(tmp_path / "out.json"), "--minutes-birds", "1"])
    out, err = capsys.readouterr()
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row for row in found["rows"] if row["status"] != "pass"] == []
    assert code == 0 and found["passed"] and "0 failed, 0 warnings, 0 skipped" in out
    assert found["scores"]["birds"]["average_f1"] == found["scores"]["birds"]["retrained"]["average_f1"] == 1
    assert found["scores"]["digits"]["ssim"] > 0.6 and found["scores"]["digits"]["parameters"] == 10
    assert {row["check"] for row in found["rows"]} >= {"same scores retrained", "retrained: fresh model loads",
                                                       "training time", "parameters", "latent"}
    assert "birds: train, at most 1 min" in err and "\033" not in out + err


def test_a_perfect_script_scores_in_full_on_bytes_that_are_0_and_1(tmp_path):
    for name, number in (("train", 60), ("val", 15), ("test", 40)):
        images = np.random.default_rng(0).integers(0, 2, (number, 28, 28)).astype(np.uint8)
        np.savez(str(tmp_path / f"{name}.npz"), data=images, labels=images[:, 0, 0].astype(int))
    (tmp_path / "copies").mkdir()
    data = load_digits(tmp_path / "copies", *(tmp_path / f"{name}.npz" for name in ("train", "val", "test")))
    source = peers.changed(peers.without_torch(peers.VAE), ("decoded.astype", "(images * 1.000001).astype"))
    result = graded("digits", source, data, tmp_path)
    assert rows_of(result)["vae_reconstructed.npz range"].status == "pass"
    assert result.scores["ssim"] > 0.9999 and result.scores["one_minus_mse"] > 0.9999
    assert "images with exchanged quarters come back" in rows_of(result)["reconstruction"].detail


def test_our_own_scripts_pass(data, bird_data, bird_script, script_path, bird_fast, fast, tmp_path):
    test, copies = tmp_path / "test.npz", tmp_path / "copies"
    copies.mkdir()
    with np.load(str(data.test)) as content:
        np.savez(str(test), data=content["data"], labels=data.test_labels)
    shared = {"minutes": {"birds": 3.0, "digits": 3.0}, "minutes_test": 2.0, "memory": 8e9, "sandbox": KIND}
    for result in (
            grade_script("birds", bird_script, load_birds(copies, bird_data.train, bird_data.test),
                         Settings(train_flags=bird_fast, **shared)),
            grade_script("digits", script_path, load_digits(copies, data.train, data.val, test),
                         Settings(train_flags=fast, **shared))):
        assert faults(result.rows) == [] and result.scores["average_f1"] > 0.6
        assert result.scores["parameters"] > 10 ** 5


def test_what_the_course_does_not_forbid_costs_nothing(digits, digit_images, tmp_path):
    """plt.show(), a model class that takes arguments, pandas, files next to the script and at home: warnings at most.
    The course reconstructs 10 images, others than those that it classifies."""
    few = tmp_path / "few.npz"
    np.savez(str(few), data=np.load(str(digits.test))["data"][:10])
    (tmp_path / "copies").mkdir()
    data = load_digits(tmp_path / "copies", digits.train, digits.val, digits.test, few)
    source = peers.changed(
        peers.VAE, ("def __init__(self):", "def __init__(self, width):"), ("VAE()", "VAE(3)"),
        ("import numpy as np\n", "import numpy as np\nimport os\n"),
        ("sum(0) * images[:, :1, :1]", "sum(0) * images[np.arange(10), :1, :1]"),
        ("        train(*sys.argv[4:])", "        train(*sys.argv[4:])\n"
         "        import pandas, matplotlib.pyplot as plt\n        plt.plot([1, 2])\n        plt.show()\n"
         "        open(os.path.expanduser('~/x'), 'w').write('x')\n"
         "        open(os.path.join(os.path.dirname(__file__), 'log.txt'), 'w').write('x')"))
    result = graded("digits", source, data, tmp_path)
    assert {(check, status) for check, status, _ in faults(result.rows)} == {
        ("no plt.show()", "warn"), ("fresh model loads", "warn")}
    assert result.scores["average_f1"] == 1 and result.scores["ssim"] > 0.6


# -------------------------------------------------------------------------------------------------------------- cheats

@needs_bwrap
@pytest.mark.parametrize("cheat", peers.CHEATS)
def test_the_answers_are_out_of_reach(cheat, birds, digits, tmp_path):
    """Through the command line, which names the folder with the answers. What finds it works without a sandbox."""
    part, replacements = peers.CHEATS[cheat]
    path, found = tmp_path / "script.py", []
    path.write_text(peers.changed(peers.without_torch(peers.BIRD if part == "birds" else peers.VAE), *replacements))
    data = {"birds": ["--birds", birds.train, birds.test, "--bird", path],
            "digits": ["--digits", digits.train, digits.val, digits.test, "--vae", path]}[part]
    for kind in ("bwrap", "none") if cheat in peers.STOPPED_BY_SANDBOX else ("bwrap",):
        command = [sys.executable, "-m", "handin", "grade", *data, "--sandbox", kind, "--json", tmp_path / "out.json"]
        subprocess.run(list(map(str, command)), cwd=str(ROOT), capture_output=True, check=False)
        found.append(json.loads((tmp_path / "out.json").read_text())["scores"][part].get("average_f1", 0))
    assert found[0] < 0.6 and found[1:] in ([], [1]), found


def test_the_labels_that_a_script_gets_tell_nothing(birds, digits, bird_photos, digit_images):
    """TRAIN's are there, in another order; TEST's are not; photos lie in the wrong folders, without their names, times
    and inodes."""
    train, copy = (np.load(str(path)) for path in (digits.train, digit_images.paths["train"]))
    test, shuffled = (np.load(str(path))["data"] for path in (digits.test, digit_images.paths["test"]))
    assert (digit_images.test_labels == shuffled[:, 0, 0]).all() and (test[:, 0, 0] != shuffled[:, 0, 0]).any()
    assert (copy["data"] == train["data"]).all() and sorted(copy["labels"]) == sorted(train["labels"])
    assert (copy["labels"] == train["labels"]).mean() < 0.7
    assert np.load(str(digit_images.paths["test"])).files == ["data"]
    paths = sorted(bird_photos.paths["test"].rglob("*.jpg"))
    classes = sorted(path.name for path in birds.test.iterdir())
    assert [classes[label] for label in bird_photos.test_labels] == [path.read_text() for path in paths]
    assert np.mean([path.read_text() == path.parent.name for path in paths]) < 0.7
    assert {path.name for path in paths} == {f"{i:06d}.jpg" for i in range(36)}
    assert {path.stat().st_mtime for path in paths} == {0} and {path.stat().st_nlink for path in paths} == {1}


def test_photos_of_train_may_be_links(birds, tmp_path):
    """To folders of their own, which a sandbox would not show."""
    for photo in birds.train.rglob("*.jpg"):
        link, real = tmp_path / "train" / photo.parent.name / photo.name, tmp_path / "real" / photo.name
        link.parent.mkdir(parents=True, exist_ok=True)
        real.parent.mkdir(exist_ok=True)
        real.write_text(photo.read_text())
        link.symlink_to(real)
    (tmp_path / "copies").mkdir()
    data = load_birds(tmp_path / "copies", tmp_path / "train", birds.test)
    source = peers.changed(peers.without_torch(peers.BIRD), ("def train(path):\n", "def train(path):\n"
                           "    assert all(open(path).read() for path, _ in photos(sys.argv[1]))\n"))
    assert rows_of(graded("birds", source, data, tmp_path))["train"].status == "pass"
    for photo in birds.test.rglob("*.jpg"):
        link = tmp_path / "test" / photo.parent.name / photo.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(next((tmp_path / "real").iterdir()))
    (tmp_path / "more").mkdir()
    with pytest.raises(InputError, match="found links of both to"):
        load_birds(tmp_path / "more", tmp_path / "train", tmp_path / "test")


@needs_bwrap
def test_a_script_sees_and_changes_nothing_but_its_own(birds, tmp_path, monkeypatch):
    """No other process, no home folder, no data, no project; it writes nowhere else; its children end with it."""
    hidden, own = tmp_path / "hidden", tmp_path / "own"
    for folder in (hidden, own):
        folder.mkdir()
    (hidden / "answers").write_text("x")
    secrets = [str(hidden / "answers"), str(ROOT / "bird.py"), os.path.expanduser("~/.bashrc")]
    code = f"""
import glob, os, subprocess, sys
print([path for path in {secrets!r} if os.path.exists(path)])
print(len(glob.glob('/proc/[0-9]*')) < 5)
import ctypes
print(ctypes.CDLL(None).umount2({str(hidden)!r}.encode(), 2), os.path.exists({secrets[0]!r}))
for path in ('/tmp/x', '/etc/x', {str(birds.train / 'x')!r}, {str(own / 'x')!r}):
    try:
        open(path, 'w').write('x')
        print('wrote', os.path.dirname(path))
    except OSError as error:
        print(error.strerror)
open('pid', 'w').write(str(subprocess.Popen(['sleep', '100'], start_new_session=True, env={{}}).pid))
"""
    environment = sandbox.clean_environment(own, own)
    outcome = KIND.run(["-c", code], own, environment, sandbox.Limits(30), [own], [birds.train], [hidden])
    lines = outcome.tail.splitlines()
    assert lines == ["[]", "True", "-1 False", "wrote /tmp", *["Read-only file system"] * 2, f"wrote {own}"], lines
    assert not Path("/tmp/x").exists()
    assert not [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "100"]]


# ------------------------------------------------------------------------------------------------------------ mistakes

@pytest.mark.parametrize("mistake", peers.BIRD_MISTAKES)
def test_each_mistake_of_a_bird_script_is_named(mistake, bird_photos, tmp_path):
    replacements, check, words = peers.BIRD_MISTAKES[mistake]
    listed = os.listdir(str(bird_photos.paths["test"]))
    if mistake == "listing unsorted" and listed in (sorted(listed), sorted(listed, key=int)):
        pytest.skip("this file system lists in order")
    if mistake in peers.READ_ONLY and KIND.kind != "bwrap":
        pytest.skip("bubblewrap is not available")
    settings = Settings({"birds": 1.0}, 0.02 if mistake == "hang" else 1.0, 2e8 if mistake == "memory" else 4e9,
                        sandbox=KIND)
    start = time.monotonic()
    rows = rows_of(graded("birds", peers.changed(peers.without_torch(peers.BIRD), *replacements), bird_photos, tmp_path,
                          settings))
    assert rows[check].status == "fail" and words in rows[check].detail, rows[check]
    assert time.monotonic() - start < 30 and all("\n" not in row.detail for row in rows.values())
    if check == "train":  # what depends on it is skipped
        assert rows["test"].status == "skip"
    if check in ("bird.csv header", "bird.csv columns"):  # graded in spite of it
        assert float(rows["average F1"].value) == 1 and rows["row order"].status == "pass"


@pytest.mark.parametrize("kind", peers.WEAK)
def test_a_weak_model_is_a_low_score_and_no_failed_check(kind, bird_photos, tmp_path):
    replacements, words = peers.WEAK[kind]
    result = graded("birds", peers.changed(peers.without_torch(peers.BIRD), *replacements), bird_photos, tmp_path)
    rows = rows_of(result)
    assert rows["row order"].status == "warn" and words in rows["row order"].detail
    of_the_stand_in = {"torch.manual_seed(0)", "bird.pth state_dict"}  # it has no torch, which spares seconds
    assert {row.check for row in result.rows if row.status == "fail"} == of_the_stand_in
    assert result.scores["average_f1"] < 0.5


@pytest.mark.parametrize("mistake", peers.VAE_MISTAKES)
def test_each_mistake_of_a_digit_script_is_named(mistake, digit_images, tmp_path):
    replacements, check, words = peers.VAE_MISTAKES[mistake]
    source = peers.changed(peers.without_torch(peers.VAE), *replacements)
    rows = rows_of(graded("digits", source, digit_images, tmp_path))
    assert rows[check].status == "fail" and words in rows[check].detail, rows[check]
    other = "SSIM" if check.startswith(("vae.csv", "test_classifier")) else "average F1"
    assert float(rows[other].value) > 0.6  # the rest is graded


@pytest.mark.parametrize("seconds, cpu, stopped", [(1, 1.0, "time"), (3, 0.0, "time"), (1, 0.2, "")])
def test_time_that_a_busy_machine_takes_is_not_counted(seconds, cpu, stopped, tmp_path, monkeypatch):
    """A command is stopped where both its wall time and its CPU time, or three times the limit, are over."""
    monkeypatch.setattr(sandbox, "_usage", lambda processes, limit: (0, cpu * sandbox_clock()))
    start = time.monotonic()

    def sandbox_clock():
        return time.monotonic() - start

    outcome = sandbox.run_bounded([sys.executable, "-c", f"import time; time.sleep({seconds + 1})"], tmp_path,
                                  dict(os.environ), sandbox.Limits(1))
    assert outcome.stopped == stopped and outcome.counted <= outcome.seconds


@pytest.mark.parametrize("saved, check, words", [
    ("Net()", "peer.pth state_dict", "found peer.Net, "),
    ("{'epoch': 3, 'state': Net().state_dict()}", "peer.pth state_dict", "'epoch', 'state'"),
    ("[1, 2]", "peer.pth state_dict", "found a list"),
    ("{'other': torch.zeros(3)}", "fresh model loads", "layer.weight")])
def test_a_model_file_that_no_fresh_model_loads_is_named(saved, check, words, tmp_path, monkeypatch):
    """In this process, which has torch already."""
    script, model = tmp_path / "peer.py", tmp_path / "peer.pth"
    script.write_text(peers.changed(peers.BIRD, ("Net().state_dict()", saved)))
    monkeypatch.setattr(sys, "argv", ["peer.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "peer", None)
    probe.probe(str(script), "")
    sys.modules["peer"].train(str(model))
    rows = contract.Rows("birds")
    contract.check_probe(rows, "peer.pth", probe.probe(str(script), str(model)))
    (failed,) = [row for row in rows if row.status == "fail"]
    assert failed.check == check and words in failed.detail, failed


def test_a_model_too_large_or_not_made_without_arguments_is_named_by_the_quick_check(tmp_path):
    script = tmp_path / "vae.py"
    script.write_text(peers.changed(peers.VAE, ("Linear(4, 2)", "Linear(4, 5_000_000, device='meta')"),
                                    ("def train(", "class Other(torch.nn.Module):\n    def __init__(self, width):\n"
                                                   "        pass\n\ndef train(")))
    rows = {row.check: row for row in grade_script("digits", script, None, SHORT).rows}
    assert rows["parameters"].status == "fail" and "25,000,000" in rows["parameters"].detail
    assert rows["model class"].value == "VAE()"
    for why, status in (("TypeError: __init__() missing 1 required positional argument: 'width'", "warn"),
                        ("ValueError: no", "fail")):
        found = contract.Rows("digits")
        contract.check_probe(found, None, {**contract.PROBE, "classes": {"VAE": why}})
        assert (found[1].check, found[1].status) == ("model class", status) and why in found[1].detail


def test_a_latent_of_more_than_two_dimensions_is_named(tmp_path, monkeypatch):
    import torch
    monkeypatch.setattr(sys, "argv", ["peer.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "peer", None)
    model, rows = tmp_path / "vae.pth", contract.Rows("digits")
    (tmp_path / "peer.py").write_text("import torch")
    for latent, status in ((2, "pass"), (3, "fail")):
        torch.save({"fc.weight": torch.zeros(2 * latent, 9), "decoder.weight": torch.zeros(9, latent)}, str(model))
        contract.check_probe(rows, "vae.pth", probe.probe(str(tmp_path / "peer.py"), str(model)))
        assert [row.status for row in rows if row.check == "latent"][-1] == status


def test_a_retrained_model_that_scores_otherwise_is_named():
    rows = contract.Rows("digits")
    compare(rows, {"average_f1": 0.99, "ssim": 0.8}, {"average_f1": 0.91, "ssim": 0.79})
    (row,) = rows
    assert row.status == "fail" and row.detail.endswith("apart: average F1 0.9900, retrained 0.9100")


@pytest.mark.parametrize("content, words", [(b"", "found an empty file"), (b"\xff\xfe", "expected text"),
                                            ("\ufeffPredicted_Label\n1\n".encode(), "byte order mark"),
                                            (b"Predicted_Label\n" + b"1\n" * 9000, "found 0.0 MB"),
                                            (b"Predicted_Label\n1\nnan\n", "found nan")])
def test_a_broken_csv_is_named(content, words, tmp_path):
    path = tmp_path / "vae.csv"
    path.write_bytes(content)
    rows = contract.Rows("digits")
    contract.check_labels(rows, path, 2, [1, 4, 8])
    assert any(words in row.detail for row in rows if row.status == "fail"), rows


def test_a_broken_reconstruction_is_named(tmp_path):
    path = tmp_path / "vae_reconstructed.npz"
    good = np.full((3, 28, 28), 0.5, np.float32)
    for arrays, words in (({"data": good * np.nan}, "not finite"), ({"data": np.array([{}])}, "Object arrays"),
                          ({"data": np.zeros(2 ** 21)}, "found 17 MB"), ({"data": good, "z": good}, "'data', 'z'"),
                          ({"a": good, "b": good}, "'a', 'b'"), ({"data": good - 1}, "-0.5 to -0.5"),
                          ({"data": good.astype(float) * 1e200}, "5e+199")):
        np.savez(str(path), **arrays)
        rows = contract.Rows("digits")
        contract.check_reconstruction(rows, path, 3)
        assert any(words in row.detail for row in rows if row.status == "fail"), (words, rows)
    path.write_bytes(b"PK broken")
    assert contract.check_reconstruction(rows, path, 3) is None and rows[-1].status == "fail"


# --------------------------------------------------------------------------------------------------------------- rules

@pytest.mark.parametrize("mistake", peers.RULE_BREAKERS)
def test_each_broken_rule_is_named(mistake):
    part, source, check, words = peers.RULE_BREAKERS[mistake]
    row = {row.check: row for row in rules.check_rules(part, source)}[check]
    warns = check in peers.WARNINGS or mistake in ("two seeds", "download", "request")
    assert row.status == ("warn" if warns else "fail") and words in row.detail, row


def test_a_gpu_that_is_assumed_is_a_warning():
    """Known from public solutions; it breaks no rule."""
    row = _named(rules.check_rules("digits", "import torch\nmodel.to('cuda')"))["device"]
    assert row.status == "warn" and "line 2: model.to('cuda')" in row.detail
    asked = "device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')\nmodel.to('cuda')"
    assert _named(rules.check_rules("digits", asked))["device"].status == "pass"


def _named(rows):
    return {row.check: row for row in rows}


def test_outputs_that_depend_on_the_images_around_are_noticed(digit_images, tmp_path):
    """A reconstruction drawn from a sampled latent, though its seed is fixed."""
    noisy = ("data=decoded.astype(np.float32)",
             "data=np.clip(decoded + np.random.default_rng(0).normal(0, .1, images.shape), 0, 1).astype('f4')")
    for replaced, status in (([noisy], "warn"), ([], "pass")):
        source = peers.changed(peers.without_torch(peers.VAE), *replaced)
        rows = rows_of(graded("digits", source, digit_images, tmp_path))
        assert rows["order of images"].status == status, rows["order of images"]
    assert noisy[0] in peers.VAE


def test_harmless_scripts_break_no_rule():
    assert faults(rules.check_rules("digits", peers.HARMLESS)) == []
    for source in peers.SEEDS:
        assert faults(rules.check_rules("digits", source)) == [], source


@pytest.mark.parametrize("source", peers.UNSURE_SEEDS)
def test_a_seed_that_cannot_be_followed_is_a_warning(source):
    assert _named(rules.check_rules("birds", source))["torch.manual_seed(0)"].status == "warn"


# ------------------------------------------------------------------------------------------------------------- sandbox

def test_no_child_outlives_a_stopped_command_and_no_secret_reaches_it(tmp_path, monkeypatch):
    """Without a sandbox, too."""
    monkeypatch.setenv("HANDIN_TEST_SECRET", "abc")
    code = ("import os, subprocess, sys, time\nprint(os.environ.get('HANDIN_TEST_SECRET'), os.environ['HOME'])\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], start_new_session=True)\n"
            "print(child.pid, flush=True)\ntime.sleep(100)")
    outcome = sandbox.run_bounded([sys.executable, "-c", code], tmp_path,
                                  sandbox.clean_environment(tmp_path, tmp_path), sandbox.Limits(1))
    secret, home, pid = outcome.tail.split()
    assert (outcome.code, outcome.stopped, secret, home) == (-9, "time", "None", str(tmp_path))
    assert not _running(int(pid))


def _running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _commands_of(folder):
    return [one for one in psutil.process_iter(["cmdline"]) if f"{str(folder)!r}; time" in str(one.info["cmdline"])]


@needs_bwrap
def test_what_a_killed_grader_has_started_ends_with_it(tmp_path):
    """A worker of Dask that kill -9 ends: the script that it was running must not go on."""
    code = f"import time; open('started', 'w'); {str(tmp_path)!r}; time.sleep(300)"
    worker = ("import os, sys\nfrom handin.grading import sandbox\ncode, cwd = sys.argv[1:]\n"
              "environment = sandbox.clean_environment(cwd, cwd)\n"
              "sandbox.Sandbox('bwrap').run(['-c', code], cwd, environment, sandbox.Limits(300), [cwd])")
    process = subprocess.Popen([sys.executable, "-c", worker, code, str(tmp_path)], cwd=str(ROOT))
    start = time.monotonic()
    while not (tmp_path / "started").exists() and time.monotonic() - start < 60:
        time.sleep(0.1)
    process.kill()
    process.wait()
    while _commands_of(tmp_path) and time.monotonic() - start < 90:
        time.sleep(0.1)
    assert not _commands_of(tmp_path)


def test_an_error_is_quoted_in_one_clean_line():
    text = "Traceback:\n  x\nValueError: \x1b[31mred\x1b[0m\a\nwarning: something after it\n"
    assert sandbox.error_line(text) == "ValueError: red"
    assert sandbox.error_line("usage: x\nno such mode\n\n") == "no such mode"


# ----------------------------------------------------------------------------------------------------------- containers

FAKE_DOCKER = """#!/bin/sh
echo "$@" >> "$LOG"
[ "$1" = run ] || exit 0
while [ "$1" != IMAGE ]; do shift; done
shift 2
exec "$PYTHON" "$@"
"""


def test_commands_run_in_a_container_without_network_and_with_data_read_only(bird_photos, birds, tmp_path, monkeypatch):
    (tmp_path / "docker").write_text(FAKE_DOCKER)
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    settings = Settings({"birds": 1.0}, 1.0, 4e9, sandbox=sandbox.Sandbox("container", "IMAGE"))
    result = graded("birds", peers.without_torch(peers.BIRD), bird_photos, tmp_path, settings)
    assert result.scores["average_f1"] == 1
    ran = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("run ")]
    assert len(ran) >= 2 and all("--network none" in line and "--memory 4000000000b" in line for line in ran)
    copy = bird_photos.paths["test"]
    assert f"--volume {copy}:{copy}:ro" in ran[-1] and not any(str(birds.test) in line for line in ran)
    assert (tmp_path / "log").read_text().count("rm --force handin_") == len(ran)


def test_where_there_is_no_container_engine_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    assert main(["grade", "--quick", "--container", "IMAGE"]) == 2
    assert capsys.readouterr().err == "--container: expected docker or podman on the PATH, found neither\n"


# -------------------------------------------------------------------------------------------------------- command line

def test_a_script_of_the_other_part_is_refused_at_once(birds, capsys):
    assert main(["grade", "--birds", str(birds.train), str(birds.test), "--bird", str(ROOT / "vae.py")]) == 2
    error = capsys.readouterr().err
    assert "vae.py: expected a script of the birds" in error and error.count("\n") == 1


def test_bad_input_is_one_line_and_exit_code_2(birds, digits, tmp_path, capsys):
    for words in (["grade"], ["grade", "--csv", "x.csv"], ["grade", "--birds", str(tmp_path / "no"), str(birds.test)],
                  ["grade", "--birds", str(birds.train), str(tmp_path)], ["grade", "--quick", "--bird", "none.py"],
                  ["grade", "--digits", str(digits.train), str(digits.train), "none.npz"],
                  ["grade", "--birds", str(birds.train), str(birds.test), "--train-flags", "'a b"],
                  ["grade", "--birds", str(birds.train), str(birds.test), "--bird-model", str(tmp_path / "none.pth")],
                  ["grade", "--quick", "--submissions", str(tmp_path), "--csv", str(tmp_path / "x.csv")]):
        assert main(words) == 2, words
        assert capsys.readouterr().err.count("\n") == 1 and os.listdir(str(tmp_path)) == []


def test_the_example_of_the_help_is_a_command_that_is_understood():
    import argparse
    parser = argparse.ArgumentParser()
    grade.add_arguments(parser)
    parser.parse_args(grade.EXAMPLE.split()[4:])
    done = subprocess.run([sys.executable, "-m", "handin", "grade", "--help"], cwd=str(ROOT), stdout=subprocess.PIPE,
                          encoding="utf-8", check=False)
    assert done.returncode == 0 and grade.EXAMPLE in done.stdout
