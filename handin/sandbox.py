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
import sys
import tempfile
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
# Reads a pipe that ends when this process dies, even by kill -9, and then ends the command's process group.
GUARD = "import os, signal, sys; sys.stdin.read(); os.killpg(int(sys.argv[1]), signal.SIGKILL)"


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
        said = error_line(self.tail)
        if not self.stopped and self.code >= 0:
            return (said or f"exit code {self.code} without a word") if self.code else ""
        names = {one.value: one.name for one in signal.Signals}
        how = {"time": f"still running after {duration(self.seconds)}: stopped",
               "memory": f"took {self.peak / 1e9:.1f} GB of memory: stopped",
               "output": "flooded its output: stopped",
               "": f"killed by {names.get(-self.code, f'signal {-self.code}')}"}
        return how[self.stopped] + (f"; its last line: {said}" if said else "")


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


def clean_environment(home, temporary):
    """Environment with fresh HOME and TMPDIR folders, without a display, a way to the network or the user's secrets."""
    kept = {name: value for name, value in os.environ.items() if PASSED_ON.fullmatch(name.upper())}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), DEAD_PROXY)
    return {**kept, **proxies, **dict.fromkeys(("HOME", "USERPROFILE"), str(home)),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)), "PYTHONUSERBASE": site.getuserbase(),
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8:backslashreplace", "MPLBACKEND": "Agg"}


def container_engine():
    """Path of Docker or Podman. Raises InputError where neither is installed."""
    found = shutil.which("docker") or shutil.which("podman")
    if not found:
        raise InputError("--container: expected docker or podman on the PATH, found neither")
    return found


@contextlib.contextmanager
def contained(image, command, cwd, environment, limits, place, shown):
    """A Python command and its environment that run `command` in a container of `image`: no network, the folder `place`
    at its own path, the paths `shown` read-only, the limits' memory, HOME and TMPDIR. The container is removed at the
    end, also where the command was killed. Without an image, the command and the environment themselves."""
    if not image:
        yield command, environment
        return
    engine, name = container_engine(), f"handin_{uuid.uuid4().hex[:12]}"
    options = ["--rm", "--name", name, "--network", "none", "--memory", f"{limits.memory:.0f}b", "--workdir", cwd]
    options += ["--user", f"{os.getuid()}:{os.getgid()}"] if hasattr(os, "getuid") else []
    for volume in (f"{place}:{place}", *(f"{path}:{path}:ro" for path in shown)):
        options += ["--volume", volume]
    for key in ("HOME", "TMPDIR", "MPLBACKEND", "PYTHONDONTWRITEBYTECODE"):
        options += ["--env", f"{key}={environment[key]}"]
    try:
        yield [engine, "run", *options, image, "python", *command[1:]], dict(os.environ)
    finally:
        subprocess.run([engine, "rm", "--force", name], capture_output=True, check=False)


def _memory(pid, limit):
    """Resident bytes of a process and all below it. Pages that forked workers share count once each in RSS: above the
    limit the slower proportional measure decides, where the system has it."""
    resident = proportional = 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        processes = [process, *process.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.Error):
                resident += process.memory_info().rss
        for process in processes if resident > limit else ():
            with contextlib.suppress(psutil.Error):
                proportional += getattr(process.memory_full_info(), "pss", 0)
    return proportional or resident


def _end(process, token):
    """Kills the command, its group, and whatever it started, also what left the group or lost its parent."""
    with contextlib.suppress(OSError, AttributeError):  # no groups on Windows
        os.killpg(process.pid, signal.SIGKILL)
    for _ in range(20):  # a process may be starting another while it is being looked at
        alive = []
        for other in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if other.environ().get(MARK) == token:
                    other.kill()
                    alive.append(other)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        if not alive:
            break
        psutil.wait_procs(alive, timeout=0.5)


def run_bounded(command, cwd, environment, limits):
    """Outcome of a command run in `cwd`. Whatever ends the command, this function or this process, all that it started
    is killed."""
    token, start, peak, stopped, pause = uuid.uuid4().hex, time.monotonic(), 0, "", POLL
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([str(word) for word in command], cwd=str(cwd), env={**environment, MARK: token},
                                   stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        guard = subprocess.Popen([sys.executable, "-I", "-S", "-c", GUARD, str(process.pid)], stdin=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            while process.poll() is None and not stopped:
                looked = time.monotonic()
                memory = _memory(process.pid, limits.memory)
                peak = max(peak, memory)
                stopped = ("memory" if memory > limits.memory else
                           "output" if os.fstat(output.fileno()).st_size > limits.output else
                           "time" if time.monotonic() - start > limits.seconds else "")
                pause = max(POLL, (time.monotonic() - looked) / LOOKING_SHARE)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0 if stopped else pause)
            seconds = time.monotonic() - start
        finally:
            guard.kill()  # before the group's number may be another's
            _end(process, token)
            guard.communicate()
        size = os.fstat(output.fileno()).st_size
        output.seek(max(0, size - KEPT_TAIL))
        tail = output.read(KEPT_TAIL).decode("utf-8", "replace")
    return Outcome(process.returncode if process.returncode is not None else -9, seconds, peak, tail,
                   stopped or ("output" if size > limits.output else ""))


def listing(folders):
    """{path: (size, time of change in ns)} of the files below some folders, caches passed over."""
    found = {}
    for root, names, files in (step for folder in folders for step in os.walk(str(folder))):
        names[:] = [name for name in names if name != "__pycache__"]
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(root, name))
                found[Path(root, name)] = status.st_size, status.st_mtime_ns
    return found


def changes(before, after):
    """[(what, path)] between two listings, what being "wrote", "changed" or "deleted"."""
    return ([("changed" if path in before else "wrote", path) for path in sorted(after)
             if before.get(path) != after[path]] + [("deleted", path) for path in sorted(before.keys() - after.keys())])
