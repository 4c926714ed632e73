"""`python -m handin grade` of one script: right scripts pass, each known mistake is named, cheats learn nothing."""
import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import peers
import psutil
import pytest
import torch

from common.errors import InputError
from handin.grading import contract, grade, probe, rules, sandbox
from handin.grading.data import load_birds, load_digits
from handin.grading.script import Settings, compare_scores, grade_script

ROOT = Path(__file__).resolve().parent.parent
KIND = sandbox.choose_sandbox("auto", "")
SHORT = Settings({"birds": 1.0, "digits": 1.0}, 1.0, 4e9, sandbox=KIND)
needs_bwrap = pytest.mark.skipif(KIND.kind != "bwrap", reason="bubblewrap is not available")


@pytest.fixture(scope="module")
def given(peer_birds, peer_digits, tmp_path_factory):
    """{part: its Data}"""
    return {"birds": load_birds(tmp_path_factory.mktemp("copies"), *peer_birds),
            "digits": load_digits(tmp_path_factory.mktemp("copies"), *peer_digits)}


@pytest.fixture
def copies(tmp_path):
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies"


@pytest.fixture
def graded(given, tmp_path):
    """graded(part, *replacements in BIRD or VAE): the Result, {name: its row}."""
    def run(part, *replacements, data=None, settings=SHORT):
        path = tmp_path / f"{part}.py"
        path.write_text(peers.changed(peers.SOURCES[part], *replacements))
        result = grade_script(part, path, data or given[part], settings)
        return result, {row.check: row for row in result.rows}
    return run


def faults(rows):
    return {(row.check, row.status) for row in rows if row.status != "pass"}


def test_a_right_pair_passes_everything_and_scores_in_full(peer_birds, peer_digits, tmp_path, handin):
    """The birds with a submitted model, which is compared with a retrained one."""
    torch.save({"layer.weight": torch.zeros(3, 4), "layer.bias": torch.zeros(3)}, str(tmp_path / "bird.pth"))
    (tmp_path / "b.py").write_text(peers.BIRD_TORCH)
    (tmp_path / "v.py").write_text(peers.VAE_TORCH)
    done = handin("grade", "--birds", *peer_birds, "--bird", tmp_path / "b.py", "--digits", *peer_digits, "--vae",
                  tmp_path / "v.py", "--bird-model", tmp_path / "bird.pth", "--json", tmp_path / "out.json",
                  "--minutes-birds", 1)
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row for row in found["rows"] if row["status"] != "pass"] == []
    assert done.code == 0 and found["passed"] and "0 failed, 0 warnings, 0 skipped" in done.out
    assert found["scores"]["birds"]["average_f1"] == found["scores"]["birds"]["retrained"]["average_f1"] == 1
    assert found["scores"]["digits"]["ssim"] > 0.6 and found["scores"]["digits"]["parameters"] == 10
    assert {row["check"] for row in found["rows"]} >= {
        "same scores retrained", "retrained: fresh model loads", "training time", "parameters", "latent"}
    assert "birds: train, at most 1 min" in done.err and "\033" not in done.out + done.err


def test_a_perfect_script_scores_in_full_on_bytes_that_are_0_and_1(graded, copies, tmp_path):
    paths = [tmp_path / name for name in ("train.npz", "val.npz", "test.npz")]
    for path, number in zip(paths, (60, 15, 40)):
        images = np.random.default_rng(0).integers(0, 2, (number, 28, 28)).astype(np.uint8)
        np.savez(str(path), data=images, labels=images[:, 0, 0].astype(int))
    result, rows = graded("digits", ("decoded.astype", "(images * 1.000001).astype"), data=load_digits(copies, *paths))
    assert rows["vae_reconstructed.npz range"].status == "pass"
    assert result.scores["ssim"] > 0.9999 and result.scores["one_minus_mse"] > 0.9999
    assert "images with exchanged quarters are reproduced" in rows["reconstruction"].detail


def test_our_own_scripts_pass(data, bird_data, bird_script, script_path, bird_fast, fast, copies, tmp_path):
    test = tmp_path / "test.npz"
    np.savez(str(test), data=np.load(str(data.test))["data"], labels=data.test_labels)
    for part, script, given, flags in (
            ("birds", bird_script, load_birds(copies, bird_data.train, bird_data.test), bird_fast),
            ("digits", script_path, load_digits(copies, data.train, data.val, test), fast)):
        result = grade_script(part, script, given, Settings({part: 3.0}, 2.0, 8e9, train_flags=flags, sandbox=KIND))
        assert faults(result.rows) == set() and result.scores["average_f1"] > 0.6
        assert result.scores["parameters"] > 10 ** 5


def test_what_the_course_does_not_forbid_costs_nothing(peer_digits, copies, tmp_path):
    """Warnings at most. The course reconstructs 10 images, others than those that it classifies."""
    few, script = tmp_path / "few.npz", tmp_path / "vae.py"
    np.savez(str(few), data=np.load(str(peer_digits.test))["data"][:10])
    script.write_text(peers.changed(
        peers.VAE_TORCH, ("def __init__(self):", "def __init__(self, width):"), ("VAE()", "VAE(3)"),
        ("import numpy as np\n", "import numpy as np\nimport os\n"),
        ("sum(0) * images[:, :1, :1]", "sum(0) * images[np.arange(10), :1, :1]"),
        peers.first("train(model, mixture)", "import pandas, matplotlib.pyplot as plt", "plt.plot([1, 2])",
                    "plt.show()", "open(os.path.expanduser('~/x'), 'w').write('x')",
                    "open(os.path.join(os.path.dirname(__file__), 'log.txt'), 'w').write('x')")))
    result = grade_script("digits", script, load_digits(copies, *peer_digits, few), SHORT)
    assert faults(result.rows) == {("no plt.show()", "warn"), ("fresh model loads", "warn")}
    assert result.scores["average_f1"] == 1 and result.scores["ssim"] > 0.6


@needs_bwrap
@pytest.mark.parametrize("cheat", peers.CHEATS)
def test_the_answers_are_out_of_reach(cheat, peer_birds, peer_digits, run, tmp_path):
    """Through the command line, which names the folder with the answers. What finds it works without a sandbox."""
    part, works_without, *replacements = peers.CHEATS[cheat]
    path, found = tmp_path / "script.py", []
    path.write_text(peers.changed(peers.SOURCES[part], *replacements))
    data = ["--birds", *peer_birds, "--bird"] if part == "birds" else ["--digits", *peer_digits, "--vae"]
    for kind in ("bwrap", "none") if works_without else ("bwrap",):
        run("-m", "handin", "grade", *data, path, "--sandbox", kind, "--json", tmp_path / "out.json", cwd=ROOT)
        found.append(json.loads((tmp_path / "out.json").read_text())["scores"][part].get("average_f1", 0))
    assert found[0] < 0.6 and found[1:] in ([], [1]), found


def test_the_labels_that_a_script_gets_tell_nothing(peer_birds, peer_digits, given):
    """TRAIN's are in another order; photos lie in the wrong folders, without their names, times and inodes."""
    photos, digits = given["birds"], given["digits"]
    train, copy = (np.load(str(path)) for path in (peer_digits.train, digits.paths["train"]))
    test, shuffled = (np.load(str(path))["data"] for path in (peer_digits.test, digits.paths["test"]))
    assert (digits.test_labels == shuffled[:, 0, 0]).all() and (test[:, 0, 0] != shuffled[:, 0, 0]).any()
    assert (copy["data"] == train["data"]).all() and sorted(copy["labels"]) == sorted(train["labels"])
    assert (copy["labels"] == train["labels"]).mean() < 0.7
    assert np.load(str(digits.paths["test"])).files == ["data"]
    paths = sorted(photos.paths["test"].rglob("*.jpg"))
    classes = sorted(path.name for path in peer_birds.test.iterdir())
    assert [classes[label] for label in photos.test_labels] == [path.read_text() for path in paths]
    assert np.mean([path.read_text() == path.parent.name for path in paths]) < 0.7
    assert {path.name for path in paths} == {f"{i:06d}.jpg" for i in range(36)}
    assert {path.stat().st_mtime for path in paths} == {0} and {path.stat().st_nlink for path in paths} == {1}


def test_photos_of_train_may_be_links(peer_birds, graded, copies, tmp_path):
    """To folders of their own, which a sandbox would not show; those of TEST may not lead there, too."""
    (tmp_path / "real").mkdir()
    for part, source in (("train", peer_birds.train), ("test", peer_birds.test)):
        for photo in source.rglob("*.jpg"):
            link, real = tmp_path / part / photo.parent.name / photo.name, tmp_path / "real" / photo.name
            link.parent.mkdir(parents=True, exist_ok=True)
            real.write_text(photo.read_text())
            link.symlink_to(real)
    data = load_birds(copies, tmp_path / "train", peer_birds.test)
    _, rows = graded("birds", peers.first(
        "train(path)", "assert all(open(path).read() for path, _ in photos(sys.argv[1]))"), data=data)
    assert rows["train"].status == "pass"
    (tmp_path / "more").mkdir()
    with pytest.raises(InputError, match="found links of both to"):
        load_birds(tmp_path / "more", tmp_path / "train", tmp_path / "test")


@needs_bwrap
def test_a_script_sees_and_changes_nothing_but_its_own(peer_birds, tmp_path):
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
for path in ('/tmp/x', '/etc/x', {str(peer_birds.train / 'x')!r}, {str(own / 'x')!r}):
    try:
        open(path, 'w').write('x')
        print('wrote', os.path.dirname(path))
    except OSError as error:
        print(error.strerror)
open('pid', 'w').write(str(subprocess.Popen(['sleep', '100'], start_new_session=True, env={{}}).pid))
"""
    environment = sandbox.clean_environment(own, own)
    outcome = KIND.run(["-c", code], own, environment, sandbox.Limits(30), [own], [peer_birds.train], [hidden])
    lines = outcome.output_tail.splitlines()
    assert lines == ["[]", "True", "-1 False", "wrote /tmp", *["Read-only file system"] * 2, f"wrote {own}"], lines
    assert not Path("/tmp/x").exists()
    assert not [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] == ["sleep", "100"]]


@pytest.mark.parametrize("mistake", peers.BIRD_MISTAKES)
def test_each_mistake_of_a_bird_script_is_named(mistake, graded, given):
    check, words, *replacements = peers.BIRD_MISTAKES[mistake]
    listed = os.listdir(str(given["birds"].paths["test"]))
    if mistake == "listing unsorted" and listed in (sorted(listed), sorted(listed, key=int)):
        pytest.skip("this file system lists in order")
    if words == "Read-only file system" and KIND.kind != "bwrap":
        pytest.skip("bubblewrap is not available")
    settings = Settings({"birds": 1.0}, 0.02 if mistake == "hang" else 1.0, 2e8 if mistake == "memory" else 4e9,
                        sandbox=KIND)
    start, weak = time.monotonic(), words in peers.OF_WEAK_MODELS
    result, rows = graded("birds", *replacements, settings=settings)
    assert rows[check].status == ("warn" if weak else "fail") and words in rows[check].detail, rows[check]
    assert time.monotonic() - start < 30 and all("\n" not in row.detail for row in rows.values())
    if check == "train":  # what depends on it is skipped
        assert rows["test"].status == "skip"
    if check in ("bird.csv header", "bird.csv columns"):  # graded in spite of it
        assert float(rows["average F1"].value) == 1 and rows["row order"].status == "pass"
    if weak:  # a low score and no failed check, but for those of a peer without torch
        assert {name for name, row in rows.items() if row.status == "fail"} == {
            "torch.manual_seed(0)", "bird.pth state_dict"} and result.scores["average_f1"] < 0.5


@pytest.mark.parametrize("mistake", peers.VAE_MISTAKES)
def test_each_mistake_of_a_digit_script_is_named(mistake, graded):
    check, words, *replacements = peers.VAE_MISTAKES[mistake]
    _, rows = graded("digits", *replacements)
    assert rows[check].status == ("warn" if mistake == "sampled latent" else "fail"), rows[check]
    assert words in rows[check].detail, rows[check]
    other = "SSIM" if check.startswith(("vae.csv", "test_classifier")) else "average F1"
    assert float(rows[other].value) > 0.6  # the rest is graded


@pytest.mark.parametrize("seconds, cpu, limit, stopped", [
    (60, 1.0, 0.5, "time"), (60, 0.0, 0.5, "time"), (2.5, 0.1, 2, "")])
def test_time_that_a_busy_machine_takes_is_not_counted(seconds, cpu, limit, stopped, tmp_path, monkeypatch):
    """A command is stopped where both its wall time and its CPU time, or three times the limit, are over."""
    start = time.monotonic()
    monkeypatch.setattr(sandbox, "_usage", lambda processes, limit: (0, cpu * (time.monotonic() - start)))
    outcome = sandbox.run_with_limits([sys.executable, "-c", f"import time; time.sleep({seconds})"], tmp_path,
                                      dict(os.environ), sandbox.Limits(limit))
    assert outcome.stopped == stopped and outcome.counted <= outcome.seconds


LATENT_3 = "{'fc.weight': torch.zeros(6, 9), 'decoder.weight': torch.zeros(9, 3)}"


@pytest.mark.parametrize("part, saved, failing", [
    ("birds", "Net()", {"peer.pth state_dict": "found peer.Net, "}),
    ("birds", "{'epoch': 3, 'state': Net().state_dict()}", {"peer.pth state_dict": "'epoch', 'state'"}),
    ("birds", "[1, 2]", {"peer.pth state_dict": "found a list"}),
    ("birds", "{'other': torch.zeros(3)}", {"fresh model loads": "layer.weight"}),
    ("digits", LATENT_3, {"fresh model loads": "layer.weight", "latent": "with a side below 3"})])
def test_what_is_wrong_with_a_model_file_is_named(part, saved, failing, tmp_path, monkeypatch):
    """In this process, which has torch already."""
    script, model, rows = tmp_path / "peer.py", tmp_path / "peer.pth", contract.Rows(part)
    script.write_text(peers.changed(peers.BIRD_TORCH, ("Net().state_dict()", saved)))
    monkeypatch.setattr(sys, "argv", ["peer.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "peer", None)
    probe.probe(str(script), "")
    sys.modules["peer"].train(str(model))
    contract.check_probe(rows, "peer.pth", probe.probe(str(script), str(model)))
    failed = {row.check: row.detail for row in rows if row.status == "fail"}
    assert failed.keys() == failing.keys() and all(words in failed[check] for check, words in failing.items()), failed


def test_the_quick_check_names_large_models_and_classes_with_arguments(tmp_path):
    script = tmp_path / "vae.py"
    other = "class Other(torch.nn.Module):\n    def __init__(self, width): pass\n\ndef train("
    script.write_text(peers.changed(
        peers.VAE_TORCH, ("Linear(4, 2)", "Linear(4, 5_000_000, device='meta')"), ("def train(", other)))
    rows = {row.check: row for row in grade_script("digits", script, None, SHORT).rows}
    assert rows["parameters"].status == "fail" and "25,000,000" in rows["parameters"].detail
    assert rows["model class"].value == "VAE()"
    for why, status in (("TypeError: missing 1 required positional argument: 'x'", "warn"), ("No: no", "fail")):
        found = contract.Rows("digits")
        contract.check_probe(found, None, {**contract.EMPTY_REPORT, "classes": {"VAE": why}})
        assert (found[1].check, found[1].status) == ("model class", status) and why in found[1].detail


def test_a_retrained_model_that_scores_otherwise_is_named():
    rows = contract.Rows("digits")
    compare_scores(rows, {"average_f1": 0.99, "ssim": 0.8}, {"average_f1": 0.91, "ssim": 0.79})
    (row,) = rows
    assert row.status == "fail" and row.detail.endswith("apart: average F1 0.9900, retrained 0.9100")


GOOD = np.full((3, 28, 28), 0.5, np.float32)


@pytest.mark.parametrize("name, content, words", [
    ("vae.csv", b"", "found an empty file"), ("vae.csv", b"\xff\xfe", "expected text"),
    ("vae.csv", "\ufeffPredicted_Label\n1\n".encode(), "byte order mark"),
    ("vae.csv", b"Predicted_Label\n" + b"1\n" * 900, "found 0.0 MB"),
    ("vae.csv", b"Predicted_Label\n1\nnan\n", "found nan"), ("x.npz", b"PK broken", "expected a .npz file"),
    ("x.npz", {"data": GOOD * np.nan}, "not finite"), ("x.npz", {"data": np.array([{}])}, "Object arrays"),
    ("x.npz", {"data": np.zeros(2 ** 21)}, "found 17 MB"), ("x.npz", {"data": GOOD, "z": GOOD}, "'data', 'z'"),
    ("x.npz", {"a": GOOD, "b": GOOD}, "'a', 'b'"), ("x.npz", {"data": GOOD - 1}, "-0.5 to -0.5"),
    ("x.npz", {"data": GOOD.astype(float) * 1e200}, "5e+199")])
def test_a_broken_output_is_named(name, content, words, tmp_path):
    path, rows = tmp_path / name, contract.Rows("digits")
    path.write_bytes(content) if isinstance(content, bytes) else np.savez(str(path), **content)
    if name == "vae.csv":
        contract.check_labels(rows, path, 2, [1, 4, 8])
    else:
        contract.check_reconstruction(rows, path, 3)
    assert any(words in row.detail for row in rows if row.status == "fail"), rows


@pytest.mark.parametrize("status, check, words, source", peers.RULE_BREAKERS)
def test_each_broken_rule_is_named(status, check, words, source):
    row = {row.check: row for row in rules.check_rules("digits", source)}[check]
    assert row.status == status and words in row.detail, row


def test_harmless_scripts_break_no_rule():
    assert [faults(rules.check_rules("digits", source)) for source in peers.HARMLESS] == [set()] * len(peers.HARMLESS)


def test_no_child_outlives_a_stopped_command_and_no_secret_reaches_it(tmp_path, monkeypatch):
    """Without a sandbox, too."""
    monkeypatch.setenv("HANDIN_TEST_SECRET", "abc")
    code = ("import os, subprocess, sys, time\nprint(os.environ.get('HANDIN_TEST_SECRET'), os.environ['HOME'])\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], start_new_session=True)\n"
            "print(child.pid, flush=True)\ntime.sleep(100)")
    outcome = sandbox.run_with_limits([sys.executable, "-c", code], tmp_path,
                                  sandbox.clean_environment(tmp_path, tmp_path), sandbox.Limits(1))
    secret, home, pid = outcome.output_tail.split()
    assert (outcome.exit_code, outcome.stopped, secret, home) == (-9, "time", "None", str(tmp_path))
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE


@needs_bwrap
def test_what_a_killed_grader_has_started_ends_with_it(tmp_path):
    """A worker of Dask that kill -9 ends: the script that it was running must not go on."""
    code = f"import time; open('started', 'w'); '{tmp_path}'; time.sleep(300)"
    worker = ("import os, sys\nfrom handin.grading import sandbox\ncode, cwd = sys.argv[1:]\n"
              "environment = sandbox.clean_environment(cwd, cwd)\n"
              "sandbox.Sandbox('bwrap').run(['-c', code], cwd, environment, sandbox.Limits(300), [cwd])")
    def commands():
        return [one for one in psutil.process_iter(["cmdline"]) if one.info["cmdline"] and code in one.info["cmdline"]]
    process = subprocess.Popen([sys.executable, "-c", worker, code, str(tmp_path)], cwd=str(ROOT))
    start = time.monotonic()
    while not (tmp_path / "started").exists() and time.monotonic() - start < 60:
        time.sleep(0.1)
    process.kill()
    process.wait()
    while commands() and time.monotonic() - start < 90:
        time.sleep(0.1)
    assert not commands()


@pytest.mark.parametrize("text, line", [
    ("Traceback:\n  x\nValueError: \x1b[31mred\x1b[0m\a\nwarning: something after it\n", "ValueError: red"),
    ("usage: x\nno such mode\n\n", "no such mode")])
def test_an_error_is_quoted_in_one_clean_line(text, line):
    assert sandbox.error_line(text) == line


FAKE_DOCKER = """#!/bin/sh
echo "$@" >> "$LOG"
[ "$1" = run ] || exit 0
while [ "$1" != IMAGE ]; do shift; done
shift 2
exec "$PYTHON" "$@"
"""


def test_a_container_has_no_network_and_reads_the_data_only(graded, given, peer_birds, tmp_path, monkeypatch):
    (tmp_path / "docker").write_text(FAKE_DOCKER)
    (tmp_path / "docker").chmod(0o755)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    settings = Settings({"birds": 1.0}, 1.0, 4e9, sandbox=sandbox.Sandbox("container", "IMAGE"))
    assert graded("birds", settings=settings)[0].scores["average_f1"] == 1
    ran = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("run ")]
    assert len(ran) >= 2 and all("--network none" in line and "--memory 4000000000b" in line for line in ran)
    copy = given["birds"].paths["test"]
    assert f"--volume {copy}:{copy}:ro" in ran[-1] and not any(str(peer_birds.test) in line for line in ran)
    assert (tmp_path / "log").read_text().count("rm --force handin_") == len(ran)


@pytest.mark.parametrize("words, said", [
    ("", "expected --birds TRAIN TEST"), ("--csv x.csv", "--submissions"), ("--birds {folder}/no {test}", "/no: "),
    ("--birds {train} {folder}", ""), ("--quick --bird none.py", "none.py"),
    ("--digits {npz} {npz} none.npz", "none.npz"),
    ("--birds {train} {test} --train-flags 'a", "--train-flags"),
    ("--birds {train} {test} --bird-model {folder}/none.pth", "none.pth"),
    ("--birds {train} {test} --bird {vae}", "vae.py: expected a birds script"),
    ("--quick --submissions {folder} --csv {folder}/x.csv", "expected submissions, found none"),
    *((f"--quick {words}", "expected together with --submissions, which is missing") for words in (
        "--csv x.csv", "--models x", "--rubric x", "--regrade x", "--anonymous", "--similar", "--scheduler x",
        "--jobs 2")),
    ("--quick --submissions x", "--submissions: expected together with --csv, which is missing"),
    ("--quick --container IMAGE", "--container: expected docker or podman on the PATH, found neither")])
def test_bad_input_is_one_line_and_exit_code_2(words, said, peer_birds, peer_digits, tmp_path, handin, monkeypatch):
    if "--container" in words:
        monkeypatch.setenv("PATH", "")
    done = handin("grade", *words.format(**peer_birds._asdict(), npz=peer_digits.train, folder=tmp_path,
                                         vae=ROOT / "vae.py").split())
    assert done.code == 2 and done.err.count("\n") == 1 and said in done.err and os.listdir(str(tmp_path)) == []


def test_the_example_of_the_help_is_a_command_that_is_understood(handin, capsys):
    parser = argparse.ArgumentParser()
    grade.add_arguments(parser)
    parser.parse_args(grade.EXAMPLE.split()[4:])
    with pytest.raises(SystemExit):
        handin("grade", "--help")
    assert grade.EXAMPLE in capsys.readouterr().out
