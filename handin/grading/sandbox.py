"""Runs one command of an untrusted script in isolation, with limits on time, memory and output.

bubblewrap (Linux, Debian package bubblewrap) gives it its own processes, users and network, and a file system that is
read-only outside of its folders and in which home folders and hidden paths are empty. Its child processes end with it.
If the grader is root in a container that allows no namespaces, a script runs as another user, who cannot read the
answers. Otherwise it runs with the rights of the grader's user.
"""
import contextlib
import dataclasses
import glob
import os
import platform
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
from common.text import one_line

TAIL_BYTES = 8192       # of the output, kept
POLL_SECONDS = 0.1      # between two measurements
POLL_SHARE = 0.05       # maximum share of the time spent on measuring: training is timed
MAX_PROCESSES = 512     # of another user
MAX_WALL_FACTOR = 3     # times the limit: wall time after which even a command that uses no CPU is stopped
INHERITED_VARIABLES = re.compile(
    "PATH|LANG|LANGUAGE|LC_.*|LD_LIBRARY_PATH|DYLD_.*|TZ|SYSTEMROOT|WINDIR|COMSPEC|PATHEXT|"
    "VIRTUAL_ENV|CONDA_PREFIX|(CUDA|NVIDIA|OMP|MKL|OPENBLAS|ROCR|HIP|HSA)_.*")
DEAD_PROXY = "http://127.0.0.1:9"  # an unused port: a download fails at once instead of hanging
PRIVATE = ("~", "/home", "/root", "/mnt", "/media", "/run", "/var/tmp", "/dev/shm")  # empty in a sandbox
DEVICES = ("/dev/nvidia*", "/dev/dri", "/dev/kfd", "/dev/dxg")  # of GPUs
ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one command: seconds, and bytes of resident memory of its process tree and of output. A command
    is stopped when both wall time and CPU time exceed the limit, so that a busy machine does not affect a grade, and in
    any case after three times the limit or `max_wall_seconds`."""
    seconds: float
    memory: float = 8e9
    output: float = 64e6
    max_wall_seconds: float = float("inf")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended: exit code (negative: the signal), wall time and CPU time in seconds, peak memory in bytes,
    the last 8 kB of its output, and `stopped`: the limit that it exceeded, "time", "memory" or "output", or ""."""
    exit_code: int
    seconds: float
    cpu_seconds: float
    peak_memory: int
    output_tail: str
    stopped: str

    @property
    def counted(self):
        """Seconds that count against the limit."""
        return min(self.seconds, self.cpu_seconds)

    @property
    def failure(self):
        """One line on why the command failed, with the last line of the script's error; "" if it did not."""
        last, names = error_line(self.output_tail), {number.value: number.name for number in signal.Signals}
        # Bubblewrap and containers report 128 + the signal.
        number = -self.exit_code if self.exit_code < 0 else self.exit_code - 128
        if not self.stopped and self.exit_code >= 0 and number not in names:
            return (last or f"exit code {self.exit_code} without a message") if self.exit_code else ""
        how = {"time": f"stopped after {self.times}",
               "memory": f"stopped: used {self.peak_memory / 1e9:.1f} GB of memory, more than the limit",
               "output": "stopped: printed more than the limit",
               "": f"killed by {names.get(number, f'signal {number}')}"}
        return how[self.stopped] + (f"; last output: {last}" if last else "")

    @property
    def times(self):
        """Wall and CPU time as text, such as 12 s (CPU time 23 s)."""
        return f"{duration(self.seconds)} (CPU time {duration(self.cpu_seconds)})"


def duration(seconds):
    """Seconds as text, such as 12 s or 5.2 min."""
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def error_line(text):
    """The last line that looks like an exception or, without one, the last line."""
    lines = [line for line in re.split(r"[\r\n]+", text) if line.strip()]
    errors = [line for line in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)(:|$)", line)]
    return one_line((errors or lines or [""])[-1])


def machine():
    """The machine as text, such as 8 x Intel(R) Xeon(R), Linux."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration, IndexError):
        with open("/proc/cpuinfo") as file:
            model = next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    return f"{os.cpu_count()} x {model}, {platform.system()}"


def clean_environment(home, temporary):
    """Environment with fresh HOME and TMPDIR folders, without a display, network access or the user's secrets."""
    kept = {name: value for name, value in os.environ.items() if INHERITED_VARIABLES.fullmatch(name.upper())}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), DEAD_PROXY)
    return {**kept, **proxies, **dict.fromkeys(("HOME", "USERPROFILE"), str(home)),
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)), "PYTHONUSERBASE": site.getuserbase(),
            "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8:backslashreplace", "MPLBACKEND": "Agg"}


# ----------------------------------------------------------------------------------------------------------- isolation

def container_engine():
    """Path of Docker or Podman, or None."""
    return shutil.which("docker") or shutil.which("podman")


def _bubblewrap(cwd, temporary, writable, readable, hidden):
    """The arguments that, put before a command, run it in bubblewrap."""
    private = {os.path.realpath(os.path.expanduser(path)) for path in (*PRIVATE, tempfile.gettempdir())}
    private = sorted(path for path in private if os.path.isdir(path) and path not in ("/", "/tmp"))
    hidden = sorted({os.path.realpath(path) for path in (ROOT, *hidden) if os.path.exists(path)} - {"/"})
    packages = {os.path.realpath(path) for path in (*sys.path, site.getusersitepackages()) if path} - {os.getcwd()}
    packages = {path for path in packages if os.path.exists(path) and not any(
        Path(path) in (Path(other), *Path(other).parents) for other in hidden)}
    python = {sys.prefix, sys.base_prefix, os.path.realpath(sys.prefix), os.path.realpath(sys.base_prefix)}
    # Without capabilities, even if the grader is root: otherwise a script could undo the mounts.
    arguments = ["bwrap", "--unshare-all", "--cap-drop", "ALL", "--die-with-parent", "--ro-bind", "/", "/"]
    arguments += ["--dev", "/dev"]
    for device in (path for pattern in DEVICES for path in glob.glob(pattern)):
        arguments += ["--dev-bind", device, device]
    arguments += ["--proc", "/proc"]
    for path in private:
        arguments += ["--tmpfs", path]
    arguments += ["--bind", temporary, "/tmp"]
    for path in hidden:  # before visible paths, which may be below
        arguments += ["--tmpfs", path] if os.path.isdir(path) else ["--ro-bind", "/dev/null", path]
    for path in sorted(packages | python):
        arguments += ["--ro-bind", path, path]
    for path in readable:
        arguments += ["--ro-bind", path, path]
    for path in writable:
        arguments += ["--bind", path, path]
    for path in ("/dev", *private, *hidden):  # a file in one of these would use unmeasured memory
        arguments += ["--remount-ro", path] if os.path.isdir(path) and path != "/dev/shm" else []
    return [*arguments, "--chdir", cwd]


def choose_sandbox(name, image):
    """The Sandbox of an option --sandbox: bwrap, container or none; `auto` is a container if an image is given, else
    bubblewrap if it works. Raises InputError for one that is not available."""
    if name == "container" and not image:
        raise InputError("--sandbox container: expected --container IMAGE, found none")
    if name == "container" or image and name == "auto":
        if not container_engine():
            raise InputError("--container: expected docker or podman on the PATH, found neither")
        return Sandbox("container", image)
    if name == "none":
        return Sandbox()
    with tempfile.TemporaryDirectory() as folder:
        command = [*_bubblewrap("/", folder, [], [], []), sys.executable, "-I", "-S", "-c", ""]
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=60)
            reason = (error_line(process.stderr) or f"exit code {process.returncode}") if process.returncode else ""
        except (OSError, subprocess.SubprocessError) as error:
            reason = one_line(error)
    if reason and name == "bwrap":
        raise InputError(f"--sandbox bwrap: expected bubblewrap to work, found: {reason}")
    if reason:
        print(f"warning: bubblewrap does not work ({reason}): scripts run with your rights and can read the answers",
              file=sys.stderr)
    return Sandbox("none" if reason else "bwrap")


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """How commands are isolated: by "bwrap", a "container" of an image of Docker or Podman, another "user" of this
    machine, given by number, or "none"."""
    kind: str = "none"
    image: str = ""
    user: int = 0

    def run(self, arguments, cwd, environment, limits, writable=(), readable=(), hidden=(), log=None):
        """Outcome of a Python command, given as the arguments after `python`: without network, with `writable` paths,
        with `readable` ones read-only, with `hidden` ones empty. `log` as in run_with_limits."""
        with self.command(arguments, cwd, environment, limits, *(
                [str(path) for path in paths] for paths in (writable, readable, hidden))) as (command, environment):
            return run_with_limits(command, cwd, environment, limits, self.kind != "container", log)

    @contextlib.contextmanager
    def command(self, arguments, cwd, environment, limits, writable, readable, hidden):
        """Yields the words of the whole command, and its environment. A container is removed at the end, also if the
        command was killed, and all processes of another user end."""
        if self.kind == "none":
            yield [sys.executable, *arguments], environment
        elif self.kind == "user":
            self._set_permissions(cwd, writable, readable)
            as_user = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--no-new-privs"]
            try:
                yield ["prlimit", f"--nproc={MAX_PROCESSES}", *as_user, sys.executable, *arguments], environment
            finally:  # kill(-1): all at once, so that no process can start another
                subprocess.run([*as_user, sys.executable, "-I", "-S", "-c", "import os; os.kill(-1, 9)"],
                               capture_output=True, check=False)
        elif self.kind == "bwrap":
            prefix = _bubblewrap(str(cwd), environment["TMPDIR"], writable, readable, hidden)
            yield [*prefix, sys.executable, *arguments], environment
        else:
            engine, name = container_engine(), f"handin_{uuid.uuid4().hex[:12]}"
            options = ["--rm", "--name", name, "--network", "none", "--memory", f"{limits.memory:.0f}b", "--workdir",
                       str(cwd), "--shm-size", "2g", "--pids-limit", "1000"]
            options += ["--user", f"{os.getuid()}:{os.getgid()}"] if hasattr(os, "getuid") else []
            for volume in (*(f"{path}:{path}" for path in writable), *(f"{path}:{path}:ro" for path in readable)):
                options += ["--volume", volume]
            for key in ("HOME", "TMPDIR", "MPLBACKEND", "PYTHONDONTWRITEBYTECODE", "OMP_NUM_THREADS"):
                options += ["--env", f"{key}={environment[key]}"] if key in environment else []
            try:
                yield [engine, "run", *options, self.image, "python", *arguments], dict(os.environ)
            finally:
                subprocess.run([engine, "rm", "--force", name], capture_output=True, check=False)

    def _set_permissions(self, cwd, writable, readable):
        """Gives `writable` paths to the user and makes `readable` ones readable, if these are temporary files."""
        temporary = Path(tempfile.gettempdir()).resolve()
        for folder in Path(cwd).resolve().parents:
            if temporary in folder.parents:
                folder.chmod(0o711)
        for paths, owner in ((readable, os.getuid()), (writable, self.user)):
            for path in (Path(path).resolve() for path in paths):
                for file in (path, *path.rglob("*")) if temporary in path.parents else ():
                    os.chown(file, owner, owner, follow_symlinks=False)
                    if not file.is_symlink():
                        file.chmod(0o755 if file.is_dir() else 0o644)


# -------------------------------------------------------------------------------------------------------------- limits

def _processes(pid):
    """A process and its descendants."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _usage(processes, limit):
    """(resident bytes, CPU seconds) of processes and of their children that ended. RSS counts pages that
    forked workers share several times: above the limit the slower proportional measure decides, if available."""
    resident, proportional, cpu = 0, 0, 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            resident += process.memory_info().rss
            times = process.cpu_times()
            cpu += (times.user + times.system + getattr(times, "children_user", 0)
                    + getattr(times, "children_system", 0))
    for process in processes if resident > limit else ():
        with contextlib.suppress(psutil.Error):
            proportional += getattr(process.memory_full_info(), "pss", 0)
    return proportional or resident, cpu


def _kill_tree(process):
    """Kills a command, its group and its descendants, and waits for their end."""
    below = _processes(process.pid)[1:]
    with contextlib.suppress(OSError, AttributeError):  # no groups on Windows
        os.killpg(process.pid, signal.SIGKILL)
    for other in below:
        with contextlib.suppress(psutil.Error):
            other.kill()
    with contextlib.suppress(OSError):
        process.kill()
    process.wait()
    psutil.wait_procs(below, timeout=5)


def run_with_limits(command, cwd, environment, limits, measures_cpu=True, log=None):
    """Outcome of a command run in `cwd`. `measures_cpu`: its CPU time can be measured (not in a container). `log`
    is called with the seconds so far about once a minute."""
    start, peak, cpu, stopped, pause, logged = time.monotonic(), 0, 0.0, "", POLL_SECONDS, 0
    max_wall = min(MAX_WALL_FACTOR * limits.seconds, limits.max_wall_seconds)
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([str(word) for word in command], cwd=str(cwd), env=environment,
                                   stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            while process.poll() is None and not stopped:
                before = time.monotonic()
                memory, used = _usage(_processes(process.pid), limits.memory)
                peak, seconds = max(peak, memory), time.monotonic() - start
                cpu = max(cpu, used) if measures_cpu else seconds
                stopped = ("memory" if memory > limits.memory else
                           "output" if os.fstat(output.fileno()).st_size > limits.output else
                           "time" if min(cpu, seconds) > limits.seconds or seconds > max_wall else "")
                if log and seconds // 60 > logged:
                    logged = seconds // 60
                    log(seconds)
                pause = max(POLL_SECONDS, (time.monotonic() - before) / POLL_SHARE)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=0 if stopped else pause)
            seconds = time.monotonic() - start
        finally:
            _kill_tree(process)
        size = os.fstat(output.fileno()).st_size
        output.seek(max(0, size - TAIL_BYTES))
        tail = output.read(TAIL_BYTES).decode("utf-8", "replace")
    return Outcome(process.returncode, seconds, cpu, peak, tail, stopped or ("output" if size > limits.output else ""))
