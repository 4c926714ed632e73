"""Shared fixtures: the script as a module and as a command, small drawn images, and one model trained on them."""
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import types
import warnings
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "vae.py"
FAST = ("--epochs", "2", "--threads", "1", "--device", "cpu")

hypothesis.settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True, database=None,
                                     suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.load_profile("suite")
torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: trains on the real digits; runs only where DIGITS names their folder")


def _load_script():
    spec = importlib.util.spec_from_file_location("vae", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["vae"] = module
    spec.loader.exec_module(module)
    return module


def _draw(kinds, seed=0):
    """Images uint8 (N, 28, 28) of shapes 0..3 (bar, ring, cross, two stripes), each shifted and faded at random."""
    rng = np.random.default_rng(seed)
    images = np.zeros((len(kinds), 28, 28), np.uint8)
    for image, kind in zip(images, kinds):
        ink = int(rng.integers(180, 256))
        if kind == 0:
            image[5:23, 13:16] = ink
        elif kind == 1:
            image[7:21, 7:21] = ink
            image[10:18, 10:18] = 0
        elif kind == 2:
            image[5:23, 13:16] = ink
            image[13:16, 5:23] = ink
        else:
            image[8:11, 5:23] = ink
            image[17:20, 5:23] = ink
        image[:] = np.roll(image, rng.integers(-2, 3, 2), axis=(0, 1))
    images[0, 0, 0] = 255  # so that 0..255 is told from 0..1 whatever was drawn
    return images


def _environment():
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _run(script, *words, cwd, **options):
    command = [sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, cwd=str(cwd), env=_environment(), capture_output=True, text=True,
                          timeout=100, **options)


@pytest.fixture(scope="session")
def vae():
    """The script as a module."""
    return _load_script()


@pytest.fixture(scope="session")
def script_path():
    return SCRIPT


@pytest.fixture(scope="session")
def draw():
    return _draw


@pytest.fixture(scope="session")
def environment():
    return _environment()


@pytest.fixture(scope="session")
def run():
    """run(script, *words, cwd=folder): the command as the grader gives it, in a process of its own."""
    return _run


@pytest.fixture(scope="session")
def fast():
    """Flags for a run that need only go through."""
    return FAST


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """The script copied alone into an empty folder."""
    return Path(shutil.copy(str(SCRIPT), str(tmp_path_factory.mktemp("alone"))))


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """train, val and test files of three shapes labelled 3, 7 and 30, with the kinds of the test images."""
    folder, names = tmp_path_factory.mktemp("data"), np.array([3, 7, 30])
    train, val, test = np.arange(120) % 3, np.repeat([0, 1, 2], [20, 9, 16]), np.arange(50) % 3
    found = types.SimpleNamespace(train=folder / "train.npz", val=folder / "val.npz", test=folder / "test.npz",
                                  test_labels=names[test], classes={3, 7, 30}, folder=folder)
    np.savez(str(found.train), data=_draw(train, 1), labels=names[train])
    np.savez(str(found.val), data=_draw(val, 2), labels=names[val])
    np.savez(str(found.test), data=_draw(test, 3))
    return found


@pytest.fixture(scope="session")
def trained(alone, data, tmp_path_factory):
    """The three commands, run once with absolute paths from another folder: that folder, its files, the processes."""
    folder = tmp_path_factory.mktemp("elsewhere")
    model, mixture = folder / "vae.pth", folder / "gmm_params.pkl"
    processes = [_run(alone, data.train, data.val, "train", model, mixture, *FAST, cwd=folder)]
    processes.append(_run(alone, data.test, "test_reconstruction", model, cwd=folder))
    processes.append(_run(alone, data.test, "test_classifier", model, mixture, cwd=folder))
    return types.SimpleNamespace(folder=folder, model=model, mixture=mixture, processes=processes,
                                 csv=folder / "vae.csv", npz=folder / "vae_reconstructed.npz")


@pytest.fixture(scope="session")
def model(vae, trained):
    """The trained VAE."""
    return vae.load_model(str(trained.model))


@pytest.fixture
def call(vae, capsys, monkeypatch, tmp_path):
    """call(*words): the command in this process, in an empty folder. Gives its exit code, stdout and stderr, warnings
    among the latter as they are for a user; what `main` changes in the interpreter is put back."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        handler, threads = signal.getsignal(signal.SIGINT), torch.get_num_threads()
        formatwarning = warnings.formatwarning
        capsys.readouterr()
        try:
            with warnings.catch_warnings():
                warnings.resetwarnings()
                for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                    warnings.simplefilter("ignore", quiet)
                warnings.showwarning = lambda *parts, **_: sys.stderr.write(warnings.formatwarning(*parts[:4]))
                code = vae.main([str(word) for word in words])
        finally:
            signal.signal(signal.SIGINT, handler)
            warnings.formatwarning = formatwarning
            torch.set_num_threads(threads)
        out, err = capsys.readouterr()
        return types.SimpleNamespace(code=code, out=out, err=err)

    return call
