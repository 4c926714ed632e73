"""python -m handin.grading.fetch LINK FOLDER NAME...

Downloads submitted models from the link of a model_path.txt, with gdown: a file on Google Drive or another server, a
folder of Drive, or a zip. This command has no time limit; `fetch` runs it in a subprocess with one.
"""
import contextlib
import datetime
import errno
import hashlib
import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

from common.files import read_json, write_files
from common.text import one_line
from handin.grading.sandbox import ROOT

MAX_BYTES = 5 * 10 ** 8  # of a file
MAX_SECONDS = 600        # of a download
STALL_SECONDS = 60       # without a response or a byte, after which a download ends
MAX_TRIES, PAUSE = 3, 20  # of a file whose quota is exceeded; seconds between two tries
LOCAL_LINKS_VARIABLE = "HANDIN_LOCAL_LINKS"  # if set, links may lead to this machine and to private networks
QUOTA = "Drive's download quota of this file is exceeded; try later"
OFFLINE = "no connection to"
NOT_SHARED = 'not shared publicly (set it to "Anyone with the link"), or Drive\'s download quota is exceeded'


class FetchError(Exception):
    """Why models cannot be downloaded, in one line."""


def fetch(link, names, folder, seconds=MAX_SECONDS):
    """Paths of the models `names`, downloaded from a link into `folder` within so many seconds. The folder also gets
    bird.pth.json or vae.pth.json: the link, the time, and size and SHA-256 of each file. Unchanged files
    of the same link are not downloaded again; those of another link are kept, and a second folder, FOLDER_HASH, is
    used. Raises FetchError."""
    folder, end = Path(folder), time.monotonic() + seconds
    record = read_record(folder, names)
    if record and record.get("link") != link:
        folder = folder.with_name(f"{folder.name}_{hashlib.sha256(link.encode()).hexdigest()[:8]}")
        record = read_record(folder, names)
    if record and record.get("files") == file_digests(folder, names):
        return [folder / name for name in names]
    print(f"downloading {' and '.join(names)} from {one_line(link)}", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for attempt in range(MAX_TRIES):
            reason = _download_in_subprocess(link, temporary, names, end - time.monotonic())
            if QUOTA not in reason or attempt == MAX_TRIES - 1 or end - time.monotonic() < PAUSE:
                break
            time.sleep(PAUSE)
        if reason:
            raise FetchError(f"{link}: {reason}")
        for name in names:
            os.replace(Path(temporary, name), folder / name)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    content = {"link": link, "time": now, "files": file_digests(folder, names)}
    write_files({folder / f"{names[0]}.json": json.dumps(content, indent=1).encode()})
    return [folder / name for name in names]


def read_record(folder, names):
    """The record that `fetch` wrote of the models in a folder; {} if it is missing or unreadable."""
    with contextlib.suppress(Exception):
        return read_json(folder / f"{names[0]}.json", "")
    return {}


def file_digests(folder, names):
    """{name: {"bytes", "sha256"}} of files in a folder, None for missing ones."""
    digests = dict.fromkeys(names)
    for path in (folder / name for name in names if (folder / name).is_file()):
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            for block in iter(lambda file=file: file.read(2 ** 20), b""):
                digest.update(block)
        digests[path.name] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    return digests


def _download_in_subprocess(link, folder, names, seconds):
    """Why a download failed, or ""."""
    try:
        done = subprocess.run([sys.executable, "-m", "handin.grading.fetch", link, folder, *names], cwd=str(ROOT),
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=max(1, seconds))
    except subprocess.TimeoutExpired:
        return f"not downloaded within {max(1, seconds):.0f} s"
    lines = done.stderr.splitlines()
    return one_line(lines[-1] if lines else f"exit code {done.returncode}") if done.returncode else ""


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
            _download_file({"id": listed[name]}, folder / name, options)
        return
    file, members = folder / "download", {}
    _download_file({"id": drive_id} if drive_id else {"url": link}, file, options)
    if zipfile.is_zipfile(file):  # as a file of torch.save is
        with zipfile.ZipFile(file) as archive:
            members = {Path(member.filename).name: member for member in archive.infolist() if not member.is_dir()}
            for name in set(names) & set(members):
                with archive.open(members[name]) as source, open(folder / name, "wb") as target:
                    shutil.copyfileobj(source, target)
    if not set(names) <= set(members):
        is_torch_file = any(name.endswith("data.pkl") for name in members)
        if len(names) > 1 or members and not is_torch_file:
            raise ValueError(f"expected a folder of Drive or a zip with {' and '.join(names)}, found " + (
                f"a zip of {', '.join(list(members)[:5])}, without {' and '.join(set(names) - set(members))}"
                if members else "another file"))
        file.rename(folder / names[0])


def check_models(folder, names):
    """Raises ValueError for files that are neither zips, as those of torch.save are, nor pickles."""
    for name in names:
        with open(folder / name, "rb") as file:
            if file.read(2)[:1] not in (b"P", b"\x80"):
                raise ValueError(f"expected a model, found that {name} is another file, such as a text or a web page")


def _download_file(source, path, options):
    import gdown
    if gdown.download(**source, output=str(path), **options) is None:
        raise ValueError(NOT_SHARED)
    with open(path, "rb") as file:
        start = file.read(200).lstrip()[:1]
    if start == b"":
        raise ValueError("expected a model, found an empty file")
    if start == b"<":
        raise ValueError("expected a file, found a web page: is it the link of a page with a download button?")


def explain(error, link):
    """Why a download failed, in one line."""
    import requests
    text = one_line(error)
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server responded with {error.response.status_code} {error.response.reason}"
    if "a private network" in str(error):
        return "expected a public server, found one in a private network"
    if isinstance(error, requests.TooManyRedirects):
        return "the server redirects without end"
    if isinstance(error, requests.exceptions.InvalidSchema):
        return "expected links that begin with https://, found a redirect to another"
    if isinstance(error, requests.ReadTimeout) or "Read timed out" in text:
        return f"the server sent nothing for {STALL_SECONDS} s"
    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
        return f"{OFFLINE} {urllib.parse.urlsplit(link).hostname}"
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return f"expected at most {MAX_BYTES / 1e6:g} MB, found more"
    if "received bytes" in text or "incomplete" in text.lower():
        return "the download broke off"
    if "Too many users" in text or "quota" in text.lower():
        return QUOTA
    return NOT_SHARED if "permission" in text or "Cannot retrieve" in text else text


def refuse_private_networks():
    """Makes every connection to this machine or to a private network fail, also after a redirect: links come from
    students. Not behind a proxy, which may be in a private network."""
    resolve = socket.getaddrinfo

    def public(*args, **kwargs):
        found = resolve(*args, **kwargs)
        if not all(ipaddress.ip_address(address[0].split("%")[0]).is_global for *_, address in found):
            raise OSError("a private network")
        return found

    if not urllib.request.getproxies() and LOCAL_LINKS_VARIABLE not in os.environ:
        socket.getaddrinfo = public


def limit_stalls():
    """Gives every request without a time limit one for the response and for each part of it."""
    import requests
    send = requests.Session.send
    requests.Session.send = lambda session, request, **options: send(
        session, request, **{**options, "timeout": options.get("timeout") or STALL_SECONDS})


def main(argv):
    """Exit code 0, or 1 with the reason on stderr."""
    link, folder, *names = argv
    with contextlib.suppress(ImportError):  # not on Windows
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_BYTES, MAX_BYTES))
    refuse_private_networks()
    try:
        limit_stalls()
        download(link, Path(folder), names)
        check_models(Path(folder), names)
    except ImportError:
        print("expected the package gdown (pip install gdown), found none", file=sys.stderr)
        return 1
    except Exception as error:  # of gdown, requests, zipfile ...
        print(explain(error, link), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
