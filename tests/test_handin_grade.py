"""`python -m handin grade`: right scripts pass, and each known mistake is caught and named."""
import csv
import json
import os
import subprocess
import sys
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import peers

from handin import contract, grade, grading, probe, rules, sandbox, submissions
from handin.__main__ import main

SHORT = grading.Settings({"birds": 1.0, "digits": 1.0}, 1.0, 4e9)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Two folders of classes whose order as strings, as numbers and as listed differ, with photos that hold the name of
    their class."""
    folder = tmp_path_factory.mktemp("birds")
    for part, number in (("train", 4), ("test", 9)):
        for name in ("2", "10", "9", "1"):  # listed forwards, backwards or by hash
            (folder / part / name).mkdir(parents=True)
            for index in range(number):
                (folder / part / name / f"{index}{name}.jpg").write_text(name)
    return types.SimpleNamespace(train=folder / "train", test=folder / "test")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Three files of noise whose first pixel is the label: 1, 4 or 8. The last test image is bright all over."""
    folder, rng, found = tmp_path_factory.mktemp("digits"), np.random.default_rng(0), types.SimpleNamespace()
    for name, number in (("train", 60), ("val", 15), ("test", 40)):
        labels = np.array([1, 8, 4])[np.arange(number) % 3] if name != "test" else np.array([1, 8])[np.arange(40) % 2]
        images = rng.integers(0, 256, (number, 28, 28)).astype(np.uint8)
        images[:, 0, 0], images[-1, 1:] = labels, 255
        np.savez(str(folder / f"{name}.npz"), data=images, labels=labels.astype(np.int64))
        setattr(found, name, folder / f"{name}.npz")
    return found


@pytest.fixture(scope="module")
def bird_photos(birds):
    return grading.load_birds(birds.train, birds.test)


@pytest.fixture(scope="module")
def digit_images(digits):
    return grading.load_digits(digits.train, digits.val, digits.test)


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
    assert found["scores"]["digits"]["ssim"] > 0.9999 and found["scores"]["digits"]["parameters"] == 15
    assert {row["check"] for row in found["rows"]} >= {"same average F1 retrained", "retrained: fresh model loads",
                                                       "training time", "parameters", "writes elsewhere"}
    assert "birds: train, at most 1 min" in err and "\033" not in out + err


def test_a_perfect_script_scores_in_full_on_bytes_that_are_0_and_1(tmp_path):
    for name, number in (("train", 60), ("val", 15), ("test", 40)):
        images = np.random.default_rng(0).integers(0, 2, (number, 28, 28)).astype(np.uint8)
        np.savez(str(tmp_path / f"{name}.npz"), data=images, labels=images[:, 0, 0].astype(int))
    script = tmp_path / "vae.py"
    script.write_text(peers.changed(peers.without_torch(peers.VAE), ("images / 255", "images * 1.000001")))
    data = grading.load_digits(*(tmp_path / f"{name}.npz" for name in ("train", "val", "test")))
    result = grading.grade_script("digits", script, data, SHORT)
    assert rows_of(result)["vae_reconstructed.npz range"].status == "pass"
    assert result.scores["ssim"] > 0.9999 and result.scores["one_minus_mse"] > 0.9999


def test_our_own_scripts_pass(data, bird_data, bird_script, script_path, bird_fast, fast, tmp_path):
    test = tmp_path / "test.npz"
    with np.load(str(data.test)) as content:
        np.savez(str(test), data=content["data"], labels=data.test_labels)
    shared = {"minutes": {"birds": 3.0, "digits": 3.0}, "minutes_test": 2.0, "memory": 8e9}
    for result in (
            grading.grade_script("birds", bird_script, grading.load_birds(bird_data.train, bird_data.test),
                               grading.Settings(train_flags=bird_fast, **shared)),
            grading.grade_script("digits", script_path, grading.load_digits(data.train, data.val, test),
                               grading.Settings(train_flags=fast, **shared))):
        assert faults(result.rows) == [] and result.scores["average_f1"] > 0.6
        assert result.scores["parameters"] > 10 ** 5


# ------------------------------------------------------------------------------------------------------------ mistakes

@pytest.mark.parametrize("mistake", peers.BIRD_MISTAKES)
def test_each_mistake_of_a_bird_script_is_named(mistake, bird_photos, birds, tmp_path):
    replacements, check, words = peers.BIRD_MISTAKES[mistake]
    listed = os.listdir(str(birds.test))
    if mistake == "listing unsorted" and listed in (sorted(listed), sorted(listed, key=int)):
        pytest.skip("this file system lists in order")
    script = tmp_path / "bird.py"
    script.write_text(peers.changed(peers.without_torch(peers.BIRD), *replacements))
    settings = grading.Settings({"birds": 1.0}, 0.02 if mistake == "hang" else 1.0, 2e8 if mistake == "memory" else 4e9)
    began = time.monotonic()
    rows = rows_of(grading.grade_script("birds", script, bird_photos, settings))
    for added in birds.test.rglob("*.json"):
        added.unlink()
    assert rows[check].status == "fail" and words in rows[check].detail, rows[check]
    assert time.monotonic() - began < 30 and all("\n" not in row.detail for row in rows.values())
    if check == "train":  # what depends on it is skipped
        assert rows["test"].status == "skip" and rows["writes elsewhere"].status == "pass"
    if check in ("bird.csv header", "bird.csv columns"):  # graded in spite of it
        assert float(rows["average F1"].value) == 1 and rows["row order"].status == "pass"


@pytest.mark.parametrize("kind", peers.WEAK)
def test_a_weak_model_is_a_low_score_and_no_failed_check(kind, bird_photos, tmp_path):
    replacements, words = peers.WEAK[kind]
    script = tmp_path / "bird.py"
    script.write_text(peers.changed(peers.without_torch(peers.BIRD), *replacements))
    result = grading.grade_script("birds", script, bird_photos, SHORT)
    rows = rows_of(result)
    assert rows["row order"].status == "warn" and words in rows["row order"].detail
    of_the_stand_in = {"torch.manual_seed(0)", "bird.pth state_dict"}  # it has no torch, which spares seconds
    assert {row.check for row in result.rows if row.status == "fail"} == of_the_stand_in
    assert result.scores["average_f1"] < 0.5


@pytest.mark.parametrize("mistake", peers.VAE_MISTAKES)
def test_each_mistake_of_a_digit_script_is_named(mistake, digit_images, tmp_path):
    replacements, check, words = peers.VAE_MISTAKES[mistake]
    script = tmp_path / "vae.py"
    script.write_text(peers.changed(peers.without_torch(peers.VAE), *replacements))
    rows = rows_of(grading.grade_script("digits", script, digit_images, SHORT))
    assert rows[check].status == "fail" and words in rows[check].detail, rows[check]
    other = "SSIM" if check.startswith(("vae.csv", "test_classifier")) else "average F1"
    assert float(rows[other].value) > 0.99  # the rest is graded


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
    script.write_text(peers.changed(peers.VAE, ("Linear(4, 3)", "Linear(4, 5_000_000, device='meta')"),
                                    ("def train(", "class Other(torch.nn.Module):\n    def __init__(self, width):\n"
                                                   "        pass\n\ndef train(")))
    rows = {row.check: row for row in grading.grade_script("digits", script, None, SHORT).rows}
    assert rows["parameters"].status == "fail" and "25,000,000" in rows["parameters"].detail
    assert rows["model class"].value == "VAE()"
    made = {"import": "", "classes": {"VAE": "TypeError: missing 'width'"}, "file": "", "loads": "", "parameters": 0}
    found = contract.Rows("digits")
    contract.check_probe(found, None, made)
    row = found[1]
    assert (row.check, row.status) == ("model class", "fail") and "missing 'width'" in row.detail


def test_a_retrained_model_that_scores_otherwise_is_named():
    found = types.SimpleNamespace(rows=contract.Rows("digits"))
    grading.Grading.compare(found, {"average_f1": 0.99, "ssim": 0.8}, {"average_f1": 0.95, "ssim": 0.79})
    f1, ssim = found.rows
    assert (f1.status, ssim.status) == ("fail", "pass") and "submitted 0.9900, retrained 0.9500" in f1.detail


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
                          ({"a": good, "b": good}, "'a', 'b'"), ({"data": good - 1}, "-0.5 to -0.5")):
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
    assert row.status == ("warn" if check in ("map_location", "imports") else "fail") and words in row.detail, row


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
    noisy = ("data=(images / 255).astype(np.float32)",
             "data=np.clip(images / 255 + np.random.default_rng(0).normal(0, .1, images.shape), 0, 1).astype('f4')")
    script = tmp_path / "vae.py"
    for replaced, status in (([noisy], "warn"), ([], "pass")):
        script.write_text(peers.changed(peers.without_torch(peers.VAE), *replaced))
        rows = rows_of(grading.grade_script("digits", script, digit_images, SHORT))
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

def test_nothing_outlives_the_sandbox_and_no_secret_enters_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HANDIN_TEST_SECRET", "abc")
    code = ("import os, subprocess, sys\nprint(os.environ.get('HANDIN_TEST_SECRET'), os.environ['HOME'])\n"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], start_new_session=True)\n"
            "print(child.pid, flush=True)\nos._exit(0)")
    outcome = sandbox.run_bounded([sys.executable, "-c", code], tmp_path,
                                  sandbox.clean_environment(tmp_path, tmp_path), sandbox.Limits(30))
    secret, home, pid = outcome.tail.split()
    assert (outcome.code, outcome.stopped, secret, home) == (0, "", "None", str(tmp_path))
    assert not _running(int(pid))


def _running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_what_a_killed_grader_has_started_ends_with_it(tmp_path):
    """A worker of Dask that kill -9 ends: the script that it was running must not go on."""
    script = "import os, time; open('new', 'w').write(str(os.getpid())); os.rename('new', 'pid'); time.sleep(300)"
    worker = ("import os, sys\nfrom handin import sandbox\n"
              "sandbox.run_bounded([sys.executable, '-c', sys.argv[1]], sys.argv[2], dict(os.environ), "
              "sandbox.Limits(300))")
    process = subprocess.Popen([sys.executable, "-c", worker, script, str(tmp_path)], cwd=str(ROOT))
    began = time.monotonic()
    while not (tmp_path / "pid").exists() and time.monotonic() - began < 60:
        time.sleep(0.1)
    time.sleep(1)  # the guard is started after the script
    process.kill()
    process.wait()
    pid = int((tmp_path / "pid").read_text())
    while _running(pid) and time.monotonic() - began < 90:
        time.sleep(0.1)
    assert not _running(pid)


def test_an_error_is_quoted_in_one_clean_line():
    text = "Traceback:\n  x\nValueError: \x1b[31mred\x1b[0m\a\nwarning: something after it\n"
    assert sandbox.error_line(text) == "ValueError: red"
    assert sandbox.error_line("usage: x\nno such mode\n\n") == "no such mode"


# --------------------------------------------------------------------------------------------------------- submissions

def _zip(path, members):
    with zipfile.ZipFile(str(path), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _rows(path):
    with open(str(path), newline="") as file:
        return {row["submission"]: row for row in csv.DictReader(file)}


ENTRY = "2021CS10123"
WHOLE = {f"{ENTRY}/bird.py": peers.without_torch(peers.BIRD), f"{ENTRY}/group.txt": ENTRY,
         f"{ENTRY}/model_path.txt": "https://a.example/b", f"{ENTRY}/{ENTRY}.pdf": b"%PDF"}


def test_a_class_gives_a_row_each_and_goes_on_where_it_stopped(birds, tmp_path, capsys):
    """Flat zips, folders and an export of Gradescope; first quick, then in full, then in part."""
    folder, target = tmp_path / "class", tmp_path / "out" / "grades.csv"
    (folder / "submission_7").mkdir(parents=True)
    (folder / "g").mkdir()
    _zip(folder / "a.zip", WHOLE)
    _zip(folder / "b.zip", {"x/bird.py": WHOLE[f"{ENTRY}/bird.py"].replace("Predicted_Label", "label")})
    (folder / "c.zip").write_bytes(b"PK\x03\x04 broken")
    _zip(folder / "d.zip", {"../../evil.py": "", **WHOLE})
    _zip(folder / "e.zip", {"x/bomb.bin": bytes(300_000_000), **WHOLE})
    _zip(folder / "f.zip", {"x/main.py": WHOLE[f"{ENTRY}/bird.py"]})
    (folder / "g" / "bird.py").write_text(WHOLE[f"{ENTRY}/bird.py"])
    _zip(folder / "submission_7" / "submission.zip", WHOLE)
    (folder / "submission_metadata.yml").write_text(
        "submission_7:\n  :submitters:\n  - :name: Asha <Rao>\n    :sid: 1\n  :score: 0\n")
    names = [*(f"{letter}.zip" for letter in "abcdef"), "g", "submission_7/submission.zip"]
    command = ["grade", "--submissions", str(folder), "--csv", str(target), "--jobs", "2"]
    assert main([*command, "--quick"]) == 1
    quick = _rows(target)
    assert list(quick) == names and all(row["graded_by"].startswith("quick") for row in quick.values())
    data = ["--birds", str(birds.train), str(birds.test)]
    assert main([*command, *data]) == 1
    rows = _rows(target)
    assert list(rows) == names and not (tmp_path / "evil.py").exists()
    assert all(row["graded_by"].startswith("full") for row in rows.values())
    for name in ("a.zip", "submission_7/submission.zip"):
        row = rows[name]
        assert (row["entries"], row["warnings"], row["average_f1"]) == (ENTRY, "", "1.0000"), row
    assert rows["submission_7/submission.zip"]["names"] == "Asha <Rao>" and rows["g"]["average_f1"] == "1.0000"
    for name, words in zip("bcdef", ("bird.csv header: expected Predicted_Label, found 'label'", "zip: expected a zip",
                                     "path that leads out", "of 300 MB", "expected one script")):
        assert words in rows[f"{name}.zip"]["failed"], rows[f"{name}.zip"]
    assert "missing: " in rows["b.zip"]["warnings"] and "group.txt" in rows["b.zip"]["warnings"]
    page = (target.parent / "report.html").read_text()
    assert "Asha &lt;Rao&gt;" in page and "bird.csv header" in page and "birds: average F1" in page
    log = target.parent / rows["b.zip"]["log"]
    assert "Predicted_Label" in log.read_text() and f'href="{rows["b.zip"]["log"]}"' in page

    kept = [line for line in target.read_text().splitlines(keepends=True) if not line.startswith(("b.zip", "f.zip"))]
    target.write_text("".join(kept))  # as an interruption leaves it
    capsys.readouterr()
    assert main([*command, *data]) == 1
    out, err = capsys.readouterr()
    assert err.count("graded before") == 6 and {line.split(":")[0] for line in out.splitlines()} == {"b.zip", "f.zip"}
    assert main([*command, "--quick"]) == 1 and capsys.readouterr().err.count("graded before") == 8


def test_submitted_models_are_found_where_they_lie(tmp_path):
    alone, flat, models = tmp_path / "submission_1", tmp_path / "flat", tmp_path / "models" / "2021CS10001"
    for folder in (alone, flat / "a", models):
        folder.mkdir(parents=True)
        (folder / "bird.pth").write_bytes(b"")
    for path in (alone / "submission.zip", flat / "a.zip", flat / "b.zip"):
        path.write_bytes(b"")
    (flat / "bird.pth").write_bytes(b"")  # whose it is, of two zips, nobody knows
    find = submissions.find_models
    assert find(alone / "submission.zip", "birds", [], None) == [alone / "bird.pth"]
    assert find(flat / "a.zip", "birds", [], None) == [flat / "a" / "bird.pth"]
    assert find(flat / "b.zip", "birds", [], None) == [] == find(alone, "digits", [], None)
    assert find(flat / "b.zip", "birds", ["2021CS10001"], models.parent) == [models / "bird.pth"]
    assert find(alone, "birds", [], None) == [alone / "bird.pth"]


def grade_or_die(path, place):
    """Stands in for grade_one: a submission named "twice" kills its worker always, "once" the first time."""
    tries = Path(place, f"{path}.tries")
    tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
    time.sleep(0.3)  # no grading is over before the last one's result has been fetched
    if path == "twice" or path == "once" and len(tries.read_text()) == 1:
        os.kill(os.getpid(), 9)
    return {"result": "pass"}, path


def test_a_worker_that_dies_loses_nothing_but_its_own_submission(tmp_path, monkeypatch):
    monkeypatch.setattr(submissions, "grade_one", grade_or_die)
    work = {name: (name, str(tmp_path)) for name in ("a", "once", "twice", "b", "c", "d")}
    found = dict(submissions.in_parallel(work, 2, None))
    assert {name for name, result in found.items() if isinstance(result, Exception)} == {"twice"}
    assert all(found[name] == ({"result": "pass"}, name) for name in ("a", "b", "c", "d", "once"))
    tries = {path.stem: len(path.read_text()) for path in tmp_path.glob("*.tries")}
    assert tries == {"a": 1, "b": 1, "c": 1, "d": 1, "once": 2, "twice": 2}


def test_a_running_scheduler_does_the_work(tmp_path, monkeypatch):
    from distributed import LocalCluster
    monkeypatch.setattr(submissions, "grade_one", grade_or_die)
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, processes=False) as cluster:
        found = dict(submissions.in_parallel({"a": ("a", str(tmp_path))}, 1, cluster.scheduler_address))
    assert found == {"a": ({"result": "pass"}, "a")}
    with pytest.raises(submissions.InputError, match="--scheduler: expected the address"):
        list(submissions.in_parallel({"a": ("a", str(tmp_path))}, 1, "tcp://127.0.0.1:9"))


def test_no_cell_is_taken_for_a_formula():
    assert submissions._safe("=1+1") == "'=1+1" and submissions._safe("a\nb") == "a b"


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
    script = tmp_path / "bird.py"
    script.write_text(peers.without_torch(peers.BIRD))
    settings = grading.Settings({"birds": 1.0}, 1.0, 4e9, container="IMAGE")
    assert grading.grade_script("birds", script, bird_photos, settings).scores["average_f1"] == 1
    ran = [line for line in (tmp_path / "log").read_text().splitlines() if line.startswith("run ")]
    assert len(ran) >= 2 and all("--network none" in line and "--memory 4000000000b" in line for line in ran)
    assert all(f"--volume {birds.test}:{birds.test}:ro" in line for line in ran)
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
