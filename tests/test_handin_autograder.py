"""Gradescope's autograder, laid out on this machine, and models behind links. Neither Gradescope nor Drive is reached:
a local server and a stand-in for gdown take their place."""
import ast
import hashlib
import http.server
import inspect
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import jsonschema
import numpy as np
import peers
import psutil
import pytest
from peers import write_all

from common.errors import InputError
from handin.__main__ import main
from handin.grading import fetch, gradescope, sandbox
from handin.grading.sandbox import Sandbox

ROOT = Path(__file__).resolve().parent.parent
ENTRY, MODEL = "2021CS10123", b"\x80weights"
BIRD = peers.changed(  # reads all that it is given
    peers.BIRD, peers.first("test(folder)", "open(sys.argv[3], 'rb').read()"),
    peers.first("train(path)", "classify([path for path, _ in photos(sys.argv[1])])"))
FORMAT = {"enum": ["text", "html", "simple_format", "md", "ansi"]}
RESULTS = {  # https://gradescope-autograders.readthedocs.io/en/latest/specs/
    "type": "object", "required": ["score", "tests"], "additionalProperties": False, "properties": {
        "score": {"type": "number", "minimum": 0}, "execution_time": {"type": "integer"}, "output": {"type": "string"},
        "output_format": FORMAT, "test_output_format": FORMAT, "extra_data": {"type": "object"},
        "leaderboard": {"type": "array", "items": {"required": ["name", "value"]}},
        "tests": {"type": "array", "items": {
            "type": "object", "required": ["name", "output"], "additionalProperties": False, "properties": {
                "score": {"type": "number"}, "max_score": {"type": "number"}, "status": {"enum": ["passed", "failed"]},
                "name": {"type": "string"}, "output": {"type": "string"}, "output_format": {"const": "text"},
                "visibility": {"enum": ["hidden", "after_due_date", "after_published", "visible"]}}}}}}


def right(*replacements):
    """The files of a submission that is right, but for replacements in BIRD."""
    return {"bird.py": peers.changed(BIRD, *replacements), "bird.pth": "weights"}


@pytest.fixture(scope="module")
def given(peer_birds, peer_digits):
    """Words that give data of a part to a command."""
    return {"birds": ["--birds", *map(str, peer_birds)], "digits": ["--digits", *map(str, peer_digits)]}


@pytest.fixture(scope="module")
def archive(given, tmp_path_factory):
    """An autograder for the birds."""
    path = tmp_path_factory.mktemp("autograder") / "autograder.zip"
    assert main(["autograder", "--out", str(path), *given["birds"], "--per-class", "5"]) == 0
    return path


@pytest.fixture
def lay_out(tmp_path, archive):
    """lay_out(files, metadata): Gradescope's folders below tmp_path."""
    def made(files, **metadata):
        shutil.unpack_archive(str(archive), str(tmp_path / "source"), "zip")
        (tmp_path / "results").mkdir()
        write_all(tmp_path / "submission", files)
        metadata = {"created_at": "2026-03-02T20:00:00Z", **metadata}
        write_all(tmp_path, {"submission_metadata.json": json.dumps(metadata)})
    return made


@pytest.fixture
def graded(tmp_path, lay_out):
    """graded(files, metadata): results.json and {name: test} of a submission; without files, of what is laid out."""
    def run(files=None, code=0, **metadata):
        if files:
            lay_out(files, **metadata)
        assert gradescope.main(tmp_path) == code
        return read_results(tmp_path / "results" / "results.json")
    return run


def read_results(path):
    """Content of a results.json, checked, and {name: test}."""
    results = json.loads(path.read_text())
    jsonschema.validate(results, RESULTS)
    points = [test["score"] for test in results["tests"] if "score" in test]
    assert results["score"] == pytest.approx(sum(points), abs=0.02) or results["extra_data"] == {"not_counted": True}
    return results, {test["name"]: test for test in results["tests"]}


def test_the_zip_has_what_gradescope_needs(given, tmp_path, handin):
    path = tmp_path / "autograder.zip"
    command = ["autograder", "--out", path, *given["birds"], *given["digits"], "--per-class", 2, "--digits-per-file",
               20, "--visibility", "visible", "--max-per-day", 3]
    assert handin(*command).code == 0
    with zipfile.ZipFile(str(path)) as found:
        names = found.namelist()
        for name in ("setup.sh", "run_autograder"):
            assert stat.S_IMODE(found.getinfo(name).external_attr >> 16) == 0o755
            assert subprocess.run(["bash", "-n"], input=found.read(name), check=False).returncode == 0
        assert sum(name.startswith("data/birds/test/10/") for name in names) == 2
        assert {"bird.py", "vae.py", "handin/grading/gradescope.py", "rubric.yaml"} <= set(names)
        settings, readme = json.loads(found.read("settings.json")), found.read("README.md").decode()
        packed = [ast.parse(found.read(name)) for name in names if name.endswith(".py")]
        required = found.read("requirements.txt").decode().split()
    assert settings["visibility"] == "visible" and settings["max_per_day"] == 3 and "{" not in readme
    for text in ("100 for bird.py, 100 for vae.py", "40 minutes", "after 38.5", "In 24 hours 3", "6 GB", "at once and"):
        assert text in readme, text
    imported = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
                for tree in packed for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))}
    known = {"skimage": "scikit-image", "sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml",
             "dateutil": "python-dateutil"}
    elsewhere = {"torch", "torchvision", "handin", "common", "bird", "vae", "dask", "distributed", "copydetect"}
    needed = {known.get(name, name) for name in imported - set(getattr(sys, "stdlib_module_names", imported))}
    assert needed - elsewhere - {"requests"} <= set(required)  # requests comes with gdown
    before = path.read_bytes()
    assert handin(*command).code == 0 and path.read_bytes() == before


def test_right_scripts_with_models_score_in_full(given, tmp_path, handin):
    """At any depth, as Gradescope unpacks them."""
    path = tmp_path / "autograder.zip"
    assert handin("autograder", "--out", path, *given["birds"], *given["digits"]).code == 0
    handed_in = write_all(tmp_path / "in", {f"{ENTRY}/{name}": content for name, content in {
        **right(), "group.txt": ENTRY, "vae.py": peers.VAE, "vae.pth": "weights", "gmm_params.pkl": "weights"}.items()})
    assert handin("autograder", "--try", path, handed_in, "--out", tmp_path / "results.json").code == 0
    results, tests = read_results(tmp_path / "results.json")
    assert tests["birds: average F1"]["score"] == 90 and tests["birds: report"]["score"] == 0
    assert tests["digits: average F1"]["score"] == 45 and tests["digits: SSIM"]["score"] > 25
    assert "digits: retrained: SSIM" not in tests
    assert tests["birds: average F1"]["visibility"] == "after_published"
    assert tests["birds: bird.csv rows"] == {
        "name": "birds: bird.csv rows", "status": "passed", "output": "36", "output_format": "text",
        "visibility": "visible"}
    assert "birds: same scores retrained" not in tests and "birds: retrained: average F1" not in tests
    assert results["leaderboard"] == []
    visible = [test["name"] for test in results["tests"] if test["visibility"] == "visible"]
    assert not [name for name in visible if "F1" in name or "SSIM" in name or "MSE" in name]
    assert results["extra_data"]["birds"]["scores"]["average_f1"] == 1


@pytest.mark.parametrize("files, score, name, said, output", [
    (right(("Predicted_Label", "Label")), 63, "bird.csv header", "expected Predicted_Label", ""),
    (right(("SEED =", "if False: import torchvision.models\nSEED =")), 45, "no model zoo", "torchvision.models", ""),
    (right(peers.first("test(folder)", "raise ValueError('no')")), 0, "test", "ValueError: no", "could not be scored"),
    ({"bird.py": BIRD}, 0, "average F1", "no submitted model was scored", "hand in bird.pth"),
    (right(("SEED =", "def f(:")), 0, "syntax", "invalid syntax", gradescope.UNPARSABLE.strip()),
    ({"b{1}.zip": b"PK no zip"}, 0, "bird.py", "b{1}.zip: expected a zip", ""),
    ({"notes.txt": "x"}, 0, "bird.py", "found notes.txt", ""),
    ({"bird.ipynb": "{}"}, 0, "bird.py", "hand in the script as .py", "")])
def test_what_is_wrong_is_said(files, score, name, said, output, graded):
    results, tests = graded(files)
    assert results["score"] == score and said in tests[f"birds: {name}"]["output"], results
    assert tests[f"birds: {name}"]["status"] == "failed"
    assert output in results["output"] and bool(output) == bool(results["output"])


def test_when_time_runs_out_what_was_found_is_there(graded, monkeypatch):
    monkeypatch.setattr(gradescope.time, "monotonic", lambda real=time.monotonic: real() + 60 * shift[0])
    shift, run = [0], Sandbox.run
    def slow(self, arguments, *rest):
        shift[0] += 38.5 * (arguments[2] == "train")
        return run(self, arguments, *rest)
    monkeypatch.setattr(Sandbox, "run", slow)
    results, tests = graded({"all.zip": {"a/bird.py": BIRD, "a/bird.pth": "weights"}})
    assert results["score"] == 72  # 10 % each for two faults of the stand-in, which has no torch
    assert "no time was left" in tests["birds: commands"]["output"] and "status" not in tests["birds: commands"]
    assert "birds: retrained: test" not in tests


def test_a_training_that_is_too_slow_is_a_warning(graded, monkeypatch):
    """And what it leaves half done is not tested."""
    slow = peers.first("train(path)", "import time", "open(path, 'w').write('-')", "time.sleep(99)")
    monkeypatch.setattr(gradescope, "MINUTES_TRAIN", 0.01)
    results, tests = graded(right(slow))
    assert "warning" in tests["birds: train"]["output"] and tests["birds: train"]["status"] == "passed"
    assert results["score"] == 72 and "status" not in tests["birds: retrained: test"]


def test_data_and_results_are_out_of_reach(graded, tmp_path, monkeypatch):
    """All of Gradescope's folders are hidden; the labels of TEST are in no file that a script gets."""
    seen = []
    monkeypatch.setattr(gradescope.classroom, "grade_part", lambda *args, **_: seen.extend(args) or 1 / 0)
    graded({"bird.py": BIRD}, code=1)
    _, _, _, _, data, _, settings, _ = seen
    assert settings.hidden == (str(tmp_path),) and settings.smoke_test
    assert all(tmp_path not in path.parents for path in data["birds"].paths.values())


@pytest.fixture
def other_user(monkeypatch):
    """A Sandbox of another user, with a Python that every user may run."""
    path = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    if not path or not hasattr(os, "getuid") or os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("only root can run a script as another user, with a Python that every user may run")
    monkeypatch.setattr(sys, "executable", path)
    return Sandbox("user", user=54321)


def test_another_user_reads_and_writes_only_what_is_given(other_user, tmp_path):
    """As on Gradescope where bubblewrap does not work; what it leaves running ends."""
    own, given, closed = files = [tmp_path / name / "file" for name in ("own", "given", "closed")]
    write_all(tmp_path, {f"{path.parent.name}/file": "content" for path in files})
    for path in files:
        path.chmod(0o600)
    closed.parent.chmod(0o700)
    code = f"""
import subprocess
for path in {list(map(str, files))!r}:
    for mode in "ra":
        try:
            print(bool(open(path, mode)))
        except OSError:
            print(False)
subprocess.Popen(["sleep", "987"], start_new_session=True)
"""
    found = other_user.run(["-c", code], own.parent, sandbox.clean_environment(own.parent, own.parent),
                           sandbox.Limits(60), [own.parent], [given.parent])
    assert found.output_tail.split() == ["True", "True", "True", "False", "False", "False"], found.output_tail
    assert not [one for one in psutil.process_iter(["uids"]) if one.info["uids"].real == other_user.user
                and one.status() != psutil.STATUS_ZOMBIE]
    assert closed.stat().st_uid == 0


def test_a_submission_is_graded_as_another_user(lay_out, graded, other_user, tmp_path, monkeypatch):
    """Who can read the photos, the model and nothing of the autograder, whose files are closed."""
    lay_out(right(peers.first("test(folder)", f"assert not os.access({str(tmp_path / 'source')!r}, os.R_OK)")))
    subprocess.run(["chmod", "-R", "go-rwx", *(tmp_path / name for name in ("source", "results", "submission"))],
                   check=True)
    monkeypatch.setattr(gradescope, "gradescope_sandbox", lambda: other_user)
    results, tests = graded()
    assert tests["birds: average F1"]["score"] == 90 and tests["birds: retrained: test"]["status"] == "passed", results


def test_without_isolation_nothing_is_graded(monkeypatch):
    """But in a trial."""
    def choose(name, image):
        if name == "bwrap":
            raise InputError("no")
        return Sandbox()
    monkeypatch.setattr(gradescope.sandbox, "choose_sandbox", choose)
    monkeypatch.setattr(gradescope, "STUDENT", "nobody-of-this-name")
    monkeypatch.delenv("AUTOGRADER", raising=False)
    with pytest.raises(InputError, match="expected bubblewrap or the user"):
        gradescope.gradescope_sandbox()
    monkeypatch.setenv("AUTOGRADER", "/x")
    assert gradescope.gradescope_sandbox().kind == "none"


def test_no_more_than_so_many_submissions_in_a_day_are_graded(lay_out, graded, tmp_path):
    def earlier(hour, score, **results):
        return {"submission_time": f"2026-03-01T{hour:02}:00:00.000000+05:30", "score": score, "results": results}
    before = {"tests": [{"name": "birds: average F1", "output": "0.9", "visibility": "after_published"}]}
    metadata = {"created_at": "2026-03-01T20:00:00.000000+05:30", "previous_submissions": [
        earlier(7, 5.0), earlier(8, 10.0), earlier(10, 30.5, **before), earlier(11, None),
        earlier(12, 30.5, extra_data={"not_counted": True})]}
    assert gradescope.daily_limit_result(metadata, 0) is None and gradescope.daily_limit_result(metadata, 4) is None
    lay_out({"bird.py": BIRD}, **metadata)
    settings = tmp_path / "source" / "settings.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_per_day": 2}))
    refusal, _ = graded()
    assert refusal["score"] == 30.5 and refusal["extra_data"] == {"not_counted": True}
    assert refusal["tests"] == before["tests"] and "02 March 2026, 08:00 (UTC+0530)" in refusal["output"]
    metadata["created_at"] = "2026-03-02T09:00:00.000000+05:30"
    assert gradescope.daily_limit_result(metadata, 2) is None


def test_late_submissions_lose_points_by_the_due_date(graded):
    results, tests = graded(
        right(), created_at="2026-03-02T20:00:00.365935+05:30",
        users=[{"id": 5, "name": "A", "email": None, "assignment": {"due_date": "2026-03-01T20:00:01.000000+05:30"}}],
        previous_submissions=None, assignment={"due_date": "2026-02-01T20:00:01.000000+05:30"})
    assert [test for test in results["tests"] if test["output"] == "late by 1 day"]
    # 10 % a day, 10 % for each of two faults of the stand-in
    assert tests["birds: total deductions"]["score"] == pytest.approx(-27)


@pytest.mark.parametrize("broken", ["submission_metadata.json", "source/settings.json", "source/rubric.yaml"])
def test_a_fault_of_the_autograder_is_shown_as_one(lay_out, graded, tmp_path, broken, capfd):
    lay_out({"bird.py": BIRD})
    (tmp_path / broken).write_text("[")
    results, _ = graded(code=1)
    assert "not your fault" in results["output"] and results["extra_data"] == {"not_counted": True}
    assert "Traceback" in capfd.readouterr().err


def test_scores_are_written_before_training_and_are_rounded_once(lay_out, graded, tmp_path, monkeypatch):
    """A score with many places is no deduction."""
    lay_out(right(("labels = classify(", "open('x', 'w')\n    labels = [0] + classify("),
                  ("for label in labels", "for label in labels[:-1]")))
    written, write = [], gradescope.write_files
    monkeypatch.setattr(gradescope, "write_files", lambda files: written.extend(
        json.loads(content) for content in files.values()) or write(files))
    rubric = tmp_path / "source" / "rubric.yaml"
    rubric.write_text(rubric.read_text().replace('"*": 10', '"*": 0'))
    results, tests = graded()
    assert 0 < results["score"] < 90 and not [name for name in tests if "deduction" in name]
    during = [one for one in written if "birds: train" not in [test["name"] for test in one["tests"]]]
    assert during[-1]["score"] == results["score"] and "did not finish" in during[-1]["output"]


@pytest.mark.parametrize("arguments, said", [
    ("--out x.zip", "--birds TRAIN TEST"), ("--out x --birds a b", "ends with .zip"),
    ("--out x.zip --digits a", "TRAIN VAL TEST"), ("--out x.zip --minutes 50", "from 5 to 40"),
    ("--out x.zip --per-class 0", "1 or more"), ("--try none.zip none", "none.zip: expected a zip"),
    ("--out x.zip --birds a a/b", "expected a folder apart from"),
    ("--out x.zip --digits {train} {train} bare.npz", "expected labels")])
def test_bad_arguments_are_one_line(arguments, said, peer_digits, tmp_path, monkeypatch, handin):
    monkeypatch.chdir(tmp_path)
    np.savez("bare.npz", data=np.load(str(peer_digits.train))["data"])
    err = handin("autograder", *arguments.format(train=peer_digits.train).split()).err
    assert said in err and err.count("\n") == 1, err


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a few files, and remembers what was asked for."""

    def do_GET(self):
        self.server.paths.append(self.path)
        if self.path == "/hang":
            time.sleep(20)
        content = self.server.files.get(self.path)
        self.send_response(302 if self.path == "/loop" else 404 if content is None else 200)
        self.send_header("Location", "/loop")
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.files = {"/bird.pth": MODEL, "/text": b"sign in, please", "/page": b"<!DOCTYPE html>", "/empty": b"",
                   "/big": b"0" * 3000, "/other.zip": peers.as_bytes({"model.pth": "PK"}),
                   "/models.zip": peers.as_bytes({"models/vae.pth": "PKv", "models/gmm_params.pkl": b"\x80g"})}
    found.paths, found.url = [], f"http://127.0.0.1:{found.server_port}"
    monkeypatch.setenv(fetch.LOCAL_LINKS_VARIABLE, "1")
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()


GDOWN = '''"""A stand-in for gdown, and for Drive."""
import os
from collections import namedtuple
File = namedtuple("File", "id path local_path")

def download(url=None, output=None, quiet=False, use_cookies=True, id=None):
    tries = os.path.join(os.path.dirname(__file__), "tries")
    open(tries, "a").write("x")
    if id.startswith("private"):
        raise RuntimeError("Cannot retrieve the public link of the file. You may need to change the permission to "
                           "'Anyone with the link', or have had many accesses.")
    if id.startswith("busy") and len(open(tries).read()) < 3:
        raise RuntimeError("Too many users have viewed or downloaded this file recently.")
    assert not use_cookies
    open(output, "w").write("PK" + id)
    return output

def download_folder(url=None, id=None, output=None, quiet=False, use_cookies=True, skip_download=False):
    assert skip_download and not use_cookies
    return [File(name, f"a/{name}", "") for name in ("vae.pth", "gmm_params.pkl", "notes.txt")] if id == "both" else []
'''
NAMES = ["vae.pth", "gmm_params.pkl"]


@pytest.fixture
def drive(tmp_path, monkeypatch):
    write_all(tmp_path, {"gdown.py": GDOWN})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(fetch, "PAUSE", 0)
    return "https://drive.google.com"


def test_what_a_link_gives_is_kept_with_its_hash_and_downloaded_once(server, tmp_path):
    def fetched(name, *names):
        return fetch.fetch(f"{server.url}/{name}", names or ("bird.pth",), tmp_path / ENTRY)
    for _ in range(2):
        (path,) = fetched("bird.pth")
        assert path.read_bytes() == MODEL
    record = json.loads((tmp_path / ENTRY / "bird.pth.json").read_text())
    assert record["files"]["bird.pth"] == {"bytes": 8, "sha256": hashlib.sha256(MODEL).hexdigest()}
    assert record["link"] == f"{server.url}/bird.pth" and record["time"].startswith("20")
    assert server.paths == ["/bird.pth"]
    server.files["/other.pth"] = b"PKothers"  # a new link does not get the old model, nor the other way round
    (other,) = fetched("other.pth")
    assert other.read_bytes() == b"PKothers" and path.read_bytes() == MODEL
    path.write_bytes(b"changed")
    (path,) = fetched("bird.pth")
    assert path.read_bytes() == MODEL and server.paths.count("/bird.pth") == 2
    assert [path.read_bytes() for path in fetched("models.zip", *NAMES)] == [b"PKv", b"\x80g"]
    assert sorted(path.name for path in (tmp_path / ENTRY).iterdir()) == [
        "bird.pth", "bird.pth.json", "gmm_params.pkl", "vae.pth", "vae.pth.json"]


@pytest.mark.parametrize("link, why", [
    ("{0}/nothing", "404|web page"), ("{0}/page", "found a web page"), ("{0}/text", "expected a model"),
    ("{0}/other.zip", "found a zip of model.pth"), ("{0}/empty", "an empty file"),
    ("{0}/loop", "redirects without end"), ("http://127.0.0.1:1/x", "no connection to 127"),
    ("{0}/hang", "not downloaded within")])
def test_why_a_link_gives_nothing(link, why, server, tmp_path):
    with pytest.raises(fetch.FetchError, match=why):
        fetch.fetch(link.format(server.url), ("bird.pth",), tmp_path / ENTRY, 3)
    assert list((tmp_path / ENTRY).iterdir()) == []


def test_a_server_that_sends_nothing_ends_the_download(server, monkeypatch):
    import requests
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.3)
    monkeypatch.setattr(requests.Session, "send", requests.Session.send)
    fetch.limit_stalls()
    with pytest.raises(requests.ReadTimeout) as found:
        requests.get(f"{server.url}/hang")
    assert fetch.explain(found.value, server.url) == "the server sent nothing for 0.3 s"


def test_a_file_that_is_too_large_is_not_kept(server, run, tmp_path):
    code = ("import sys; from handin.grading import fetch; fetch.MAX_BYTES = 2000; "
            f"sys.exit(fetch.main([{server.url + '/big'!r}, {str(tmp_path)!r}, 'bird.pth']))")
    done = run("-c", code, cwd=ROOT)
    assert done.returncode == 1 and "expected at most 0.002 MB" in done.stderr


def test_links_to_this_machine_are_refused(server, tmp_path, monkeypatch):
    for name in (fetch.LOCAL_LINKS_VARIABLE, "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy",
                 "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(fetch.FetchError, match="found one in a private network"):
        fetch.fetch(f"{server.url}/bird.pth", ("bird.pth",), tmp_path / ENTRY)
    assert server.paths == []


def test_the_stand_in_for_gdown_takes_what_gdown_takes():
    import gdown
    stand_in = {}
    exec(GDOWN, stand_in)
    for name in ("download", "download_folder"):
        taken = set(inspect.signature(stand_in[name]).parameters)
        assert taken <= set(inspect.signature(getattr(gdown, name)).parameters)


@pytest.mark.parametrize("link, names, contents", [
    ("/file/d/a-1/view?usp=sharing", ["bird.pth"], ["a-1"]), ("/open?id=a-1", ["bird.pth"], ["a-1"]),
    ("/uc?export=download&id=a-1", ["bird.pth"], ["a-1"]), ("/file/d/busy-1/view", ["bird.pth"], ["busy-1"]),
    ("/drive/folders/both?usp=sharing", NAMES, NAMES), ("/drive/u/0/folders/both", NAMES, NAMES)])
def test_links_of_drive(link, names, contents, drive, tmp_path):
    paths = fetch.fetch(drive + link, names, tmp_path / ENTRY)
    assert [path.read_text() for path in paths] == ["PK" + content for content in contents]


@pytest.mark.parametrize("link, names, why", [
    ("/file/d/private-1/view", ["bird.pth"], "not shared publicly"),
    ("/drive/folders/empty", NAMES, "expected vae.pth and gmm_params.pkl in the folder, found no files"),
    ("/file/d/shared-1/view", NAMES, "expected a folder of Drive or a zip")])
def test_why_drive_gives_nothing(link, names, why, drive, tmp_path):
    with pytest.raises(fetch.FetchError, match=why):
        fetch.fetch(drive + link, names, tmp_path / ENTRY)


def test_a_class_with_links(server, given, tmp_path, handin):
    """A model is downloaded once; a link that gives nothing is a warning, and is tried again."""
    write_all(tmp_path / "class", {
        "good/bird.py": BIRD, "good/group.txt": ENTRY, "good/model_path.txt": f"{server.url}/bird.pth",
        "bad/bird.py": BIRD, "bad/group.txt": "2021CS10124", "bad/model_path.txt": f"{server.url}/nothing"})
    def grade():
        done = handin("grade", "--submissions", tmp_path / "class", "--csv", tmp_path / "grades.csv", *given["birds"],
                      "--fetch-models", tmp_path / "models")
        state = json.loads((tmp_path / "grades.json").read_text())
        return done.err, *(state[name]["results"][0] for name in ("good", "bad"))
    _, good, bad = grade()
    assert good["scores"]["retrained"]["average_f1"] == 1 and "retrained" not in bad["scores"]
    (row,) = [row for row in bad["rows"] if row["check"] == "model link"]
    assert row["status"] == "warn" and "404" in row["detail"]
    assert (tmp_path / "models" / ENTRY / "bird.pth").read_bytes() == MODEL
    server.files["/nothing"] = b"PK now shared"
    err, _, bad = grade()
    assert "good: graded before" in err and bad["scores"]["retrained"]["average_f1"] == 1
    assert server.paths.count("/bird.pth") == 1
