"""Gradescope's autograder, laid out on this machine, and models behind links. Neither Gradescope nor Drive is reached:
a local server and a stand-in for gdown take their place."""
import hashlib
import http.server
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
import peers
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from handin.__main__ import main
from handin.grading import fetch, gradescope, sandbox
from handin.grading.sandbox import Limits, Sandbox

ENTRY = "2021CS10123"
BIRD, VAE = peers.without_torch(peers.BIRD), peers.without_torch(peers.VAE)
RESULTS = {  # https://gradescope-autograders.readthedocs.io/en/latest/specs/
    "type": "object", "required": ["score", "tests"], "additionalProperties": False, "properties": {
        "score": {"type": "number", "minimum": 0}, "execution_time": {"type": "integer"}, "output": {"type": "string"},
        "output_format": {"enum": ["text", "html", "simple_format", "md", "ansi"]},
        "test_output_format": {"enum": ["text", "html", "simple_format", "md", "ansi"]},
        "extra_data": {"type": "object"},
        "leaderboard": {"type": "array", "items": {"required": ["name", "value"]}},
        "tests": {"type": "array", "items": {
            "type": "object", "required": ["name", "output"], "additionalProperties": False, "properties": {
                "score": {"type": "number"}, "max_score": {"type": "number"}, "status": {"enum": ["passed", "failed"]},
                "name": {"type": "string"}, "output": {"type": "string"}, "output_format": {"const": "text"},
                "visibility": {"enum": ["hidden", "after_due_date", "after_published", "visible"]}}}}}}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Words that give data of both parts to a command."""
    folder = tmp_path_factory.mktemp("data")
    birds, digits = peers.write_birds(folder), peers.write_digits(folder)
    return {"birds": ["--birds", birds.train, birds.test],
            "digits": ["--digits", digits.train, digits.val, digits.test]}


def words(*arguments):
    return list(map(str, arguments))


@pytest.fixture(scope="module")
def archive(data, tmp_path_factory):
    """An autograder for the birds."""
    path = tmp_path_factory.mktemp("autograder") / "autograder.zip"
    assert main(words("autograder", "--out", path, *data["birds"], "--per-class", 5)) == 0
    return path


def submission(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def results_of(archive, handed_in, tmp_path):
    """results.json of a trial, checked, with {name: test}."""
    assert main(words("autograder", "--try", archive, handed_in, "--out", tmp_path / "results.json")) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    jsonschema.validate(results, RESULTS)
    points = [test["score"] for test in results["tests"] if "score" in test]
    assert results["score"] == pytest.approx(sum(points), abs=0.02)
    return results, {test["name"]: test for test in results["tests"]}


# ---------------------------------------------------------------------------------------------------------- autograder

def test_the_zip_has_what_gradescope_needs(data, tmp_path, capsys):
    path = tmp_path / "autograder.zip"
    assert main(words("autograder", "--out", path, *data["birds"], *data["digits"], "--per-class", 2, "--images", 20,
                      "--visibility", "hidden", "--daily", 3)) == 0
    with zipfile.ZipFile(str(path)) as found:
        names = found.namelist()
        for name in ("setup.sh", "run_autograder"):
            assert stat.S_IMODE(found.getinfo(name).external_attr >> 16) == 0o755
            script = tmp_path / name
            script.write_bytes(found.read(name))
            assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
        assert sum(name.startswith("data/birds/test/10/") for name in names) == 2
        assert {"bird.py", "vae.py", "handin/grading/gradescope.py", "rubric.yaml"} <= set(names)
        settings, readme = json.loads(found.read("settings.json")), found.read("README.md").decode()
    assert settings["visibility"] == "hidden" and settings["daily"] == 3 and "{" not in readme
    assert "bird.py, vae.py" in readme and "40 minutes" in readme and "3 submissions in 24 hours" in readme
    before = path.read_bytes()
    assert main(words("autograder", "--out", path, *data["birds"], *data["digits"], "--per-class", 2, "--images", 20,
                      "--visibility", "hidden", "--daily", 3)) == 0
    assert path.read_bytes() == before


def test_right_scripts_with_models_score_in_full(data, tmp_path):
    """At any depth, as Gradescope unpacks them."""
    path = tmp_path / "autograder.zip"
    assert main(words("autograder", "--out", path, *data["birds"], *data["digits"])) == 0
    results, tests = results_of(path, submission(tmp_path / "in", {
        f"{ENTRY}/bird.py": BIRD, f"{ENTRY}/bird.pth": "weights", f"{ENTRY}/group.txt": ENTRY, f"{ENTRY}/vae.py": VAE,
        f"{ENTRY}/vae.pth": "weights", f"{ENTRY}/gmm_params.pkl": "weights"}), tmp_path)
    assert tests["birds: average F1"]["score"] == 90 and tests["birds: report"]["score"] == 0
    assert tests["digits: average F1"]["score"] == 45 and tests["digits: SSIM"]["score"] > 25
    assert tests["birds: average F1"]["visibility"] == "after_published"
    assert tests["birds: bird.csv rows"] == {
        "name": "birds: bird.csv rows", "status": "passed", "output": "36", "output_format": "text",
        "visibility": "visible"}
    assert "birds: same scores retrained" not in tests and "birds: retrained: average F1" not in tests
    assert {one["name"]: one["value"] for one in results["leaderboard"]}["birds: average F1"] == 1
    assert results["extra_data"]["birds"]["scores"]["average_f1"] == 1


@pytest.mark.parametrize("files, score, name, output", [
    ({"bird.py": peers.changed(BIRD, ("Predicted_Label", "Label")), "bird.pth": "weights"}, 63, "bird.csv header",
     "expected Predicted_Label"),
    ({"bird.py": BIRD + "\nif False:\n    import torchvision.models\n", "bird.pth": "weights"}, 45, "no model zoo",
     "torchvision.models"),
    ({"bird.py": peers.changed(BIRD, ("def test(folder):", "def test(folder):\n    raise ValueError('no')")),
      "bird.pth": "weights"}, 0, "test", "ValueError: no"),
    ({"bird.py": BIRD}, 0, "average F1", "no submitted model was scored"),
    ({"notebook.ipynb": "{}"}, 0, "bird.py", "hand in the script as .py"),
], ids=["header", "model zoo", "test fails", "no model", "a notebook"])
def test_what_is_wrong_is_said(archive, tmp_path, files, score, name, output):
    results, tests = results_of(archive, submission(tmp_path / "in", files), tmp_path)
    assert results["score"] == score and output in tests[f"birds: {name}"]["output"], results
    assert tests[f"birds: {name}"]["status"] == "failed"
    assert ("bird.pth" in results["output"]) == (name in ("average F1", "test"))


def test_when_time_runs_out_what_was_found_is_there(archive, tmp_path):
    """And a training that is too slow for the few minutes there is no fault."""
    source = tmp_path / "source"
    shutil.unpack_archive(str(archive), str(source), "zip")
    settings = json.loads((source / "settings.json").read_text())
    (source / "settings.json").write_text(json.dumps({**settings, "minutes": 0.3}))
    slow = peers.changed(BIRD, (
        "def train(path):", "def train(path):\n    import time\n    open(path, 'w').write('-')\n    time.sleep(99)"))
    start = time.monotonic()
    results, tests = results_of(source, submission(tmp_path / "in", {"bird.py": slow, "bird.pth": "weights"}), tmp_path)
    assert time.monotonic() - start < 60
    assert results["score"] == 72  # 10 % each for two faults of the stand-in, which has no torch
    assert "warning" in tests["birds: train"]["output"] and tests["birds: train"]["status"] == "passed"
    assert "no time was left" in tests["birds: commands"]["output"]


SPY = """
def test(folder):
    import glob
    found = []
    for place in ("{root}/source/data/birds/test/*/*", "/tmp/autograder_*/source/data/birds/test/*/*"):
        found += glob.glob(place)
    for path in ("{root}/results/results.json", *glob.glob("/tmp/autograder_*/results/*")):
        try:
            open(path, "w").write('{{"score": 100}}')
        except OSError:
            pass
    raise ValueError(f"found {{len(found)}}")
"""


def test_data_and_results_are_out_of_reach(archive, tmp_path):
    if sandbox.choose("auto", "").kind != "bwrap":
        pytest.skip("bubblewrap is not available")
    spy = BIRD.split("def test(folder):")[0] + SPY.format(root="/autograder") + "\nif __name__" + BIRD.split(
        "\nif __name__")[1]
    results, tests = results_of(archive, submission(tmp_path / "in", {"bird.py": spy, "bird.pth": "weights"}), tmp_path)
    assert results["score"] == 0 and "found 0" in tests["birds: test"]["output"]


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can run a script as another user")
def test_another_user_reads_and_writes_only_what_is_given(tmp_path_factory, monkeypatch):
    """As on Gradescope where bubblewrap does not work; what it leaves running ends."""
    monkeypatch.setattr(sys, "executable", shutil.which("python3", path="/usr/bin:/usr/local/bin"))  # of everyone
    if not sys.executable:
        pytest.skip("there is no Python that every user may run")
    folder = Path(tmp_path_factory.mktemp("user"))
    for path in folder.parents:
        if path != Path("/tmp") and Path("/tmp") in path.parents:
            path.chmod(0o711)
    own, given, closed = folder / "own", folder / "given", folder / "closed"
    for path in (own, given, closed):
        path.mkdir()
        (path / "file").write_text("content")
    closed.chmod(0o700)
    code = f"""
import os, subprocess, sys
for path in ({str(own / 'file')!r}, {str(given / 'file')!r}, {str(closed / 'file')!r}):
    for mode in "ra":
        try:
            print(bool(open(path, mode)))
        except OSError:
            print(False)
subprocess.Popen(["sleep", "987"], start_new_session=True)
"""
    found = Sandbox("user", user="nobody").run(["-c", code], own, sandbox.clean_environment(own, own), Limits(60),
                                               [own], [given])
    assert found.tail.split() == ["True", "True", "True", "False", "False", "False"], found.tail
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert "sleep 987" not in listed and (closed / "file").stat().st_uid == 0


def test_the_daily_limit_and_lateness():
    def earlier(hour, score, refused=False):
        return {"submission_time": f"2026-03-01T{hour:02}:00:00.000000+05:30", "score": score,
                "results": {"extra_data": {"refused": refused}}}

    metadata = {"created_at": "2026-03-01T20:00:00.000000+05:30",
                "previous_submissions": [earlier(8, 10.0), earlier(10, 30.5), earlier(12, 30.5, True)]}
    assert gradescope.daily_limit(metadata, 0) is None and gradescope.daily_limit(metadata, 3) is None
    refusal = gradescope.daily_limit(metadata, 2)
    assert refusal["score"] == 30.5 and refusal["extra_data"] == {"refused": True}
    assert "02 March, 08:00" in refusal["output"]
    metadata["created_at"] = "2026-03-02T09:00:00.000000+05:30"
    assert gradescope.daily_limit(metadata, 2) is None


def test_late_submissions_lose_points_by_the_due_date(archive, tmp_path):
    shutil.unpack_archive(str(archive), str(tmp_path / "source"), "zip")
    submission(tmp_path / "submission", {"bird.py": BIRD, "bird.pth": "weights"})
    (tmp_path / "results").mkdir()
    (tmp_path / "submission_metadata.json").write_text(json.dumps({
        "created_at": "2026-03-02T20:00:00.365935+05:30", "users": [{"id": 5, "name": "A", "email": None}],
        "assignment": {"due_date": "2026-03-01T20:00:01.000000+05:30"}}))
    assert gradescope.main(tmp_path) == 0
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    jsonschema.validate(results, RESULTS)
    assert [test for test in results["tests"] if test["output"] == "late by 1 day"]
    (total,) = [test["score"] for test in results["tests"] if test["name"] == "birds: deductions in all"]
    assert total == pytest.approx(-27)  # 10 % a day, 10 % for each of two faults of the stand-in


# --------------------------------------------------------------------------------------------------------------- links

class Handler(http.server.BaseHTTPRequestHandler):
    """Serves a few files, and remembers what was asked for."""

    def do_GET(self):
        self.server.paths.append(self.path)
        if self.path == "/hang":
            time.sleep(20)
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        self.wfile.write(content or b"")

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    with zipfile.ZipFile(str(tmp_path / "models.zip"), "w") as archive:
        archive.writestr("models/vae.pth", "v")
        archive.writestr("models/gmm_params.pkl", "g")
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.files = {"/bird.pth": b"weights", "/page": b"<!DOCTYPE html>", "/big": b"0" * 3000,
                   "/models.zip": (tmp_path / "models.zip").read_bytes()}
    found.paths, found.url = [], f"http://127.0.0.1:{found.server_port}"
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
    open(output, "w").write(id)
    return output

def download_folder(url=None, id=None, output=None, quiet=False, use_cookies=True, skip_download=False):
    assert skip_download and not use_cookies
    return [File(name, f"a/{name}", "") for name in ("vae.pth", "gmm_params.pkl", "notes.txt")] if id == "both" else []
'''
DRIVE = "https://drive.google.com"


@pytest.fixture
def drive(tmp_path, monkeypatch):
    (tmp_path / "gdown.py").write_text(GDOWN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(fetch, "PAUSE", 0)


def test_what_a_link_gives_is_kept_with_its_hash_and_not_downloaded_twice(server, tmp_path):
    for _ in range(2):
        (path,) = fetch.fetch(f"{server.url}/bird.pth", ("bird.pth",), tmp_path / ENTRY)
        assert path.read_bytes() == b"weights"
    record = json.loads((tmp_path / ENTRY / "bird.pth.json").read_text())
    assert record["files"]["bird.pth"] == {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert record["link"] == f"{server.url}/bird.pth" and record["time"].startswith("20")
    assert server.paths == ["/bird.pth"]
    paths = fetch.fetch(f"{server.url}/models.zip", ("vae.pth", "gmm_params.pkl"), tmp_path / ENTRY)
    assert [path.read_text() for path in paths] == ["v", "g"]
    assert sorted(path.name for path in (tmp_path / ENTRY).iterdir()) == [
        "bird.pth", "bird.pth.json", "gmm_params.pkl", "vae.pth", "vae.pth.json"]


@pytest.mark.parametrize("link, why", [
    ("{server}/nothing", "404|web page"), ("{server}/page", "found a web page"),
    ("http://127.0.0.1:1/x", "no connection to 127"), ("{server}/hang", "not downloaded within")])
def test_why_a_link_gives_nothing(link, why, server, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "MOST_SECONDS", 8)
    with pytest.raises(fetch.FetchError, match=why):
        fetch.fetch(link.format(server=server.url), ("bird.pth",), tmp_path / ENTRY)
    assert list((tmp_path / ENTRY).iterdir()) == []


def test_a_file_that_is_too_large_is_not_kept(server, tmp_path):
    code = ("import sys; from handin.grading import fetch; fetch.MOST_BYTES = 2000; "
            f"sys.exit(fetch.main([{server.url + '/big'!r}, {str(tmp_path)!r}, 'bird.pth']))")
    done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "more than 0.002 MB" in done.stderr


@pytest.mark.parametrize("link, names, contents", [
    ("/file/d/shared-1/view?usp=sharing", ["bird.pth"], ["shared-1"]),
    ("/open?id=shared-1", ["bird.pth"], ["shared-1"]),
    ("/uc?export=download&id=shared-1", ["bird.pth"], ["shared-1"]), ("/file/d/busy-1/view", ["bird.pth"], ["busy-1"]),
    ("/drive/folders/both?usp=sharing", ["vae.pth", "gmm_params.pkl"], ["vae.pth", "gmm_params.pkl"]),
    ("/drive/u/0/folders/both", ["vae.pth", "gmm_params.pkl"], ["vae.pth", "gmm_params.pkl"])])
def test_links_of_drive(link, names, contents, drive, tmp_path):
    paths = fetch.fetch(DRIVE + link, names, tmp_path / ENTRY)
    assert [path.read_text() for path in paths] == contents


@pytest.mark.parametrize("link, names, why", [
    ("/file/d/private-1/view", ["bird.pth"], "not shared with anyone who has the link"),
    ("/drive/folders/empty", ["vae.pth", "gmm_params.pkl"], "expected vae.pth and gmm_params.pkl in the "
     "folder, found no files"),
    ("/file/d/shared-1/view", ["vae.pth", "gmm_params.pkl"], "expected a folder or a zip")])
def test_why_drive_gives_nothing(link, names, why, drive, tmp_path):
    with pytest.raises(fetch.FetchError, match=why):
        fetch.fetch(DRIVE + link, names, tmp_path / ENTRY)


def test_a_class_with_links(server, data, tmp_path, capsys):
    """A model is downloaded once; a link that gives nothing is a warning, and is tried again."""
    submission(tmp_path / "class", {
        "good/bird.py": BIRD, "good/group.txt": ENTRY, "good/model_path.txt": f"{server.url}/bird.pth",
        "bad/bird.py": BIRD, "bad/group.txt": "2021CS10124", "bad/model_path.txt": f"{server.url}/nothing"})
    command = words("grade", "--submissions", tmp_path / "class", "--csv", tmp_path / "grades.csv", *data["birds"],
                    "--fetch-models", tmp_path / "models")
    main(command)
    state = json.loads((tmp_path / "grades.json").read_text())
    (good,), (bad,) = (state[name]["results"] for name in ("good", "bad"))
    assert good["scores"]["retrained"]["average_f1"] == 1 and "retrained" not in bad["scores"]
    (row,) = [row for row in bad["rows"] if row["check"] == "model link"]
    assert row["status"] == "warn" and "404" in row["detail"]
    assert (tmp_path / "models" / ENTRY / "bird.pth").read_bytes() == b"weights"
    server.files["/nothing"] = b"now shared"
    main(command)
    assert "good: graded before" in capsys.readouterr().err
    state = json.loads((tmp_path / "grades.json").read_text())
    assert state["bad"]["results"][0]["scores"]["retrained"]["average_f1"] == 1
    assert server.paths.count("/bird.pth") == 1
