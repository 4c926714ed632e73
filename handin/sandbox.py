"""One command of a stranger's script, bounded by time, memory and output, with nothing left behind it.

It keeps honest mistakes in bounds (a hang, a flood, a leak, a forgotten process). It is no jail: the script runs with
the rights of the user, so a hand-in that might be malicious belongs in a container (`contained`).
"""
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import site
import subprocess
import threading
import time
import uuid
from pathlib import Path

import psutil

from common.errors import InputError

KEPT_TAIL = 8192        # bytes of output
POLL = 0.1              # seconds between two looks
LOOKING_SHARE = 0.05    # most of the time that the looks themselves may take: training is timed
MARK = "HANDIN_SANDBOX"  # in the environment of the command and of all that it starts: they are found by it at the end
PASSED_ON = re.compile("PATH|LANG|LANGUAGE|LC_.*|LD_LIBRARY_PATH|DYLD_.*|TZ|SYSTEMROOT|WINDIR|COMSPEC|PATHEXT|"
                       "VIRTUAL_ENV|CONDA_PREFIX|(CUDA|NVIDIA|OMP|MKL|OPENBLAS|ROCR|HIP|HSA)_.*")
DEAD_PROXY = "http://127.0.0.1:9"  # nothing listens there: a download fails at once instead of hanging


@dataclasses.dataclass(frozen=True)
class Limits:
    """Most that a command may take: wall time in seconds, resident memory of its process tree and output, in bytes."""
    seconds: float
    memory: float = 8e9
    output: float = 64e6


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code (negative: the signal), wall time in seconds, peak memory in bytes, the last
    8 kB of its output, and `stopped`: "" or what it had too much of, "time", "memory" or "output"."""
    code: int
    seconds: float
    peak: int
    tail: str
    stopped: str

    @property
    def failure(self):
        """One line that says what went wrong, with the last line of the script's own error; "" when nothing did."""
        if self.stopped:
            return {"time": f"still running after {duration(self.seconds)}: stopped",
                    "memory": f"took {self.peak / 1e9:.1f} GB of memory: stopped",
                    "output": "flooded its output: stopped"}[self.stopped] + _quoted(self.tail)
        if self.code == 0:
            return ""
        said = error_line(self.tail)
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-self.code).name}" + _quoted(self.tail)
        return said or f"exit code {self.code} without a word"


def duration(seconds):
    """12 s, 5.2 min."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def printable(text, most=200):
    """Text on one line without control characters, of `most` characters: a stranger's output may hold anything."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else text[:most - 3] + "..."


def error_line(text):
    """Last line of a traceback or, without one, of the text."""
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    errors = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)(:|$)", line)]
    return printable((errors or lines or [""])[-1])


def _quoted(tail):
    return f"; its last line: {error_line(tail)}" if error_line(tail) else ""


def clean_environment(home, temporary):
    """Environment with fresh HOME and TMPDIR folders, without a display, a way to the network or the user's secrets."""
    kept = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name.upper())}
    return {**kept, "HOME": str(home), "USERPROFILE": str(home), "TMPDIR": str(temporary), "TEMP": str(temporary),
            "TMP": str(temporary), "PYTHONUSERBASE": site.getuserbase(), "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONIOENCODING": "utf-8:backslashreplace", "MPLBACKEND": "Agg", "http_proxy": DEAD_PROXY,
            "https_proxy": DEAD_PROXY, "HTTP_PROXY": DEAD_PROXY, "HTTPS_PROXY": DEAD_PROXY}


def container_engine():
    """Path of Docker or Podman. Raises InputError where neither is installed."""
    found = shutil.which("docker") or shutil.which("podman")
    if not found:
        raise InputError("--container: expected docker or podman on the PATH, found neither")
    return found


@contextlib.contextmanager
def contained(image, command, cwd, environment, limits, place, shown):
    """The command, a Python one, that runs `command` in a container of `image`: no network, the folder `place` at its
    own path, the paths `shown` read-only, the limits' memory, the environment's HOME and TMPDIR. The container is
    removed at the end, also where the command was killed."""
    engine, name = container_engine(), f"handin_{uuid.uuid4().hex[:12]}"
    user = ["--user", f"{os.getuid()}:{os.getgid()}"] if hasattr(os, "getuid") else []
    yield [engine, "run", "--rm", "--name", name, "--network", "none", "--memory", f"{limits.memory:.0f}b", *user,
           "--volume", f"{place}:{place}", *(word for path in shown for word in ("--volume", f"{path}:{path}:ro")),
           "--workdir", cwd, *(word for key in ("HOME", "TMPDIR", "MPLBACKEND", "PYTHONDONTWRITEBYTECODE")
                               for word in ("--env", f"{key}={environment[key]}")), image, "python", *command[1:]]
    subprocess.run([engine, "rm", "--force", name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


class _Drain(threading.Thread):
    """Reads a pipe to its end or up to `limit` bytes; counts, and keeps the tail."""

    def __init__(self, pipe, limit):
        super().__init__(daemon=True)
        self.pipe, self.limit, self.total, self.tail = pipe, limit, 0, b""

    def run(self):
        with contextlib.suppress(OSError, ValueError):
            while self.total <= self.limit:
                chunk = os.read(self.pipe.fileno(), 65536)
                if not chunk:
                    break
                self.tail = (self.tail + chunk)[-KEPT_TAIL:]
                self.total += len(chunk)


def _tree(pid):
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _sum(processes, measure):
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            total += measure(process)
    return total


def _memory(processes, limit):
    """Resident bytes of the processes. Pages that forked workers share count once each in RSS: above the limit the
    slower proportional measure decides, where the system has it."""
    resident = _sum(processes, lambda process: process.memory_info().rss)
    if resident <= limit or not hasattr(psutil.Process, "memory_maps"):
        return resident
    proportional = _sum(processes, lambda process: getattr(process.memory_full_info(), "pss", 0))
    return proportional or resident


def _marked(token):
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == token:
                yield process


def _end(process, seen, token):
    """Kills the command, its group, and whatever it started, also what left the group or lost its parent."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    for _ in range(20):  # a process may be starting another while it is being looked at
        alive = {p for p in [*_tree(process.pid), *seen, *_marked(token)] if p.is_running()
                 and _status(p) not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)}
        for other in alive:
            with contextlib.suppress(psutil.Error):
                other.kill()
        process.poll()
        if not alive:
            break
        psutil.wait_procs(list(alive), timeout=0.5)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)


def _status(process):
    with contextlib.suppress(psutil.Error):
        return process.status()
    return psutil.STATUS_DEAD


def run_bounded(command, cwd, environment, limits, watch=lambda seconds, memory: None):
    """Outcome of a command run in `cwd`. `watch` is called about ten times a second. Whatever ends the command or this
    function, all that it started is killed."""
    token = uuid.uuid4().hex
    began, peak, stopped, seen = time.monotonic(), 0, "", set()
    process = subprocess.Popen([str(word) for word in command], cwd=str(cwd), env={**environment, MARK: token},
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               start_new_session=True)
    drain = _Drain(process.stdout, limits.output)
    try:
        drain.start()
        pause = POLL
        while True:
            looked = time.monotonic()
            tree = _tree(process.pid)
            seen.update(tree)
            memory = _memory(tree, limits.memory)
            peak = max(peak, memory)
            pause = max(POLL, (time.monotonic() - looked) / LOOKING_SHARE)
            watch(time.monotonic() - began, memory)
            stopped = ("memory" if memory > limits.memory else "output" if drain.total > limits.output else
                       "time" if time.monotonic() - began > limits.seconds else "")
            if stopped:
                break
            try:
                process.wait(timeout=max(0.0, min(pause, began + limits.seconds + 0.01 - time.monotonic())))
                break
            except subprocess.TimeoutExpired:
                pass
        seconds = time.monotonic() - began
    finally:
        _end(process, seen, token)
        drain.join(timeout=5)
        process.stdout.close()
    if drain.total > limits.output and not stopped:
        stopped = "output"
    return Outcome(process.returncode if process.returncode is not None else -9, seconds, peak,
                   drain.tail.decode("utf-8", "replace"), stopped)


def listing(folder):
    """{path below `folder`: (size, time of change in ns)} of its files, caches passed over."""
    found = {}
    for root, folders, files in os.walk(str(folder)):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            path = os.path.join(root, name)
            with contextlib.suppress(OSError):
                status = os.lstat(path)
                found[Path(path).relative_to(str(folder)).as_posix()] = status.st_size, status.st_mtime_ns
    return found


def changes(before, after):
    """[(what, path)] between two listings, what being "wrote", "changed" or "deleted"."""
    return ([("wrote", path) for path in sorted(after.keys() - before.keys())]
            + [("changed", path) for path in sorted(after.keys() & before.keys()) if after[path] != before[path]]
            + [("deleted", path) for path in sorted(before.keys() - after.keys())])
