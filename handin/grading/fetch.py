"""python -m handin.grading.fetch LINK FOLDER NAME...

Downloads submitted models from the link of a model_path.txt, with gdown: a file on Google Drive or anywhere else, a
folder of Drive, or a zip. This command does it without limits on time; `fetch` runs it in a process of its own, with
them.
"""
import contextlib
import datetime
import errno
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.parse
import zipfile
from pathlib import Path

from common.errors import one_line
from common.files import read_json, write_files
from handin.grading.sandbox import ROOT, printable

MOST_BYTES = 5 * 10 ** 8  # of a file
MOST_SECONDS = 600        # of a download
TRIES, PAUSE = 3, 20      # Drive refuses for a while what is downloaded often; seconds between two tries
BUSY = "downloaded too often at the moment"
OFFLINE = "no connection to"
NOT_SHARED = "not shared with anyone who has the link, or downloaded too often"


class FetchError(Exception):
    """Why models cannot be downloaded, in one line."""


def fetch(link, names, folder):
    """Paths of the models `names`, downloaded from a link into `folder`, which also gets bird.pth.json or vae.pth.json:
    the link, the time, and size and SHA-256 of each file. What came from the same link before is not downloaded again.
    Raises FetchError."""
    folder = Path(folder)
    paths, record = [folder / name for name in names], folder / f"{names[0]}.json"
    with contextlib.suppress(Exception):  # no record, or a broken one
        if read_json(record, "")["link"] == link and all(path.is_file() for path in paths):
            return paths
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for attempt in range(TRIES):
            reason = _download_apart(link, temporary, names)
            if BUSY not in reason or attempt == TRIES - 1:
                break
            time.sleep(PAUSE)
        if reason:
            raise FetchError(f"{link}: {reason}")
        contents = [Path(temporary, name).read_bytes() for name in names]
    files = {name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
             for name, content in zip(names, contents)}
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    write_files({**dict(zip(paths, contents)),
                 record: json.dumps({"link": link, "time": now, "files": files}, indent=1).encode()})
    return paths


def _download_apart(link, folder, names):
    """Downloads in a process of its own. Returns why it failed, or ""."""
    try:
        done = subprocess.run([sys.executable, "-m", "handin.grading.fetch", link, folder, *names], cwd=str(ROOT),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=MOST_SECONDS)
    except subprocess.TimeoutExpired:
        return f"not downloaded within {MOST_SECONDS // 60} min"
    lines = done.stderr.splitlines()
    return printable(lines[-1] if lines else f"exit code {done.returncode}") if done.returncode else ""


def download(link, folder, names):
    """Downloads the files `names` from a link into a folder. Raises ValueError and many other exceptions."""
    import gdown
    options, url = {"quiet": True, "use_cookies": False}, urllib.parse.urlsplit(link)
    on_drive = url.hostname in ("drive.google.com", "docs.google.com")
    found = re.search(r"/(folders|d)/([-\w]+)|[?&](id)=([-\w]+)", link) if on_drive else None
    kind, drive_id = (found[1] or found[3], found[2] or found[4]) if found else ("", "")
    if kind == "folders":
        listed = {Path(file.path).name: file.id for file in gdown.download_folder(
            id=drive_id, output=str(folder), skip_download=True, **options) or ()}
        if not set(names) <= set(listed):
            raise ValueError(f"expected {' and '.join(names)} in the folder, found {', '.join(listed) or 'no files'}")
        for name in names:
            _download_file(gdown, {"id": listed[name]}, folder / name, options)
        return
    file = folder / "download"
    _download_file(gdown, {"id": drive_id} if drive_id else {"url": link}, file, options)
    members = {}
    if zipfile.is_zipfile(file):  # as a file of torch.save is
        with zipfile.ZipFile(file) as archive:
            members = {Path(member.filename).name: member for member in archive.infolist() if not member.is_dir()}
            for name in set(names) & set(members):
                with archive.open(members[name]) as source, open(folder / name, "wb") as target:
                    shutil.copyfileobj(source, target)
    if not set(names) <= set(members):
        if len(names) > 1:
            raise ValueError(f"expected a folder or a zip with {' and '.join(names)}, found another file")
        file.rename(folder / names[0])


def _download_file(gdown, what, path, options):
    if gdown.download(**what, output=str(path), **options) is None:  # versions before 5 raise nothing
        raise ValueError(NOT_SHARED)
    with open(path, "rb") as file:
        if file.read(200).lstrip()[:1] in (b"<", b""):
            raise ValueError("expected a file, found a web page or nothing")


def explain(error, link):
    """Why a download failed, in one line."""
    import requests
    text = one_line(error)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return f"{OFFLINE} {urllib.parse.urlsplit(link).hostname}"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return f"more than {MOST_BYTES / 1e6:g} MB"
    if "Too many users" in text or "quota" in text.lower():
        return BUSY
    return NOT_SHARED if "permission" in text or "Cannot retrieve" in text else text


def main(argv):
    """Exit code 0, or 1 with the reason on stderr."""
    link, folder, *names = argv
    with contextlib.suppress(ImportError):  # not on Windows
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_BYTES, MOST_BYTES))
    try:
        download(link, Path(folder), names)
    except ImportError:
        print("expected the package gdown (pip install gdown), found none", file=sys.stderr)
        return 1
    except Exception as error:  # of gdown, requests, zipfile ...
        print(explain(error, link), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
