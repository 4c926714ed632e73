"""Shared fixtures: the scripts as modules and as commands, small drawn images, and models trained on them once for all
processes of the suite."""
import dataclasses
import importlib.util
import os
import pickle
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
from filelock import FileLock
from PIL import Image, ImageDraw

SCRIPT = Path(__file__).resolve().parent.parent / "vae.py"
BIRD = SCRIPT.parent / "bird.py"
FAST = ("--epochs", "2", "--threads", "1", "--device", "cpu")
BIRD_FAST = ("--epochs", "6", "--image-size", "48", "--threads", "1", "--device", "cpu")

hypothesis.settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True, database=None,
                                     suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.load_profile("suite")
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell, which the commands would inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)


FAST_FILES = ("test_bird_parts", "test_bird_photos", "test_docs", "test_handin_scores", "test_install",
              "test_studies_data", "test_vae_assignment", "test_vae_files", "test_vae_mixture")


def pytest_collection_modifyitems(items):
    """What trains or runs many processes is slow: all but these files."""
    for item in items:
        if item.path.stem not in FAST_FILES:
            item.add_marker("slow")


def _load_script(path):
    """The script as a module, the same one that handin/ and studies/ import: its errors are of one class."""
    if path.stem in sys.modules:
        return sys.modules[path.stem]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
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
                          timeout=600, **options)  # of what hangs, not of a busy machine


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """once(name, make): what make(folder) returns, called by the first process of the suite that asks; the others get a
    copy. What `make` writes into the folder stays there."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def get(name, make):
        kept = root / f"{name}.pickle"
        with FileLock(str(root / f"{name}.lock")):
            if not kept.exists():
                (root / name).mkdir()
                kept.write_bytes(pickle.dumps(make(root / name)))
        return pickle.loads(kept.read_bytes())

    return get


@pytest.fixture(scope="session")
def vae():
    """The script as a module."""
    return _load_script(SCRIPT)


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
def data(once):
    """train, val and test files of three shapes labelled 3, 7 and 30, with the kinds of the test images."""
    return once("data", _write_digits)


def _write_digits(folder):
    names = np.array([3, 7, 30])
    train, val, test = np.arange(120) % 3, np.repeat([0, 1, 2], [20, 9, 16]), np.arange(50) % 3
    found = types.SimpleNamespace(train=folder / "train.npz", val=folder / "val.npz", test=folder / "test.npz",
                                  test_labels=names[test], classes={3, 7, 30}, folder=folder)
    np.savez(str(found.train), data=_draw(train, 1), labels=names[train])
    np.savez(str(found.val), data=_draw(val, 2), labels=names[val])
    np.savez(str(found.test), data=_draw(test, 3))
    return found


@pytest.fixture(scope="session")
def trained(once, alone, data):
    """The three commands, run once with absolute paths from another folder: that folder, its files, the processes."""
    def train(folder):
        model, mixture = folder / "vae.pth", folder / "gmm_params.pkl"
        processes = [_run(alone, data.train, data.val, "train", model, mixture, *FAST, cwd=folder),
                     _run(alone, data.test, "test_reconstruction", model, cwd=folder),
                     _run(alone, data.test, "test_classifier", model, mixture, cwd=folder)]
        return types.SimpleNamespace(folder=folder, model=model, mixture=mixture, processes=processes,
                                     csv=folder / "vae.csv", npz=folder / "vae_reconstructed.npz")

    return once("trained", train)


@pytest.fixture(scope="session")
def model(vae, trained):
    """The trained VAE."""
    return vae.load_model(str(trained.model))


def _caller(script, capsys):
    def call(*words):
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        threads, formatwarning = torch.get_num_threads(), warnings.formatwarning
        capsys.readouterr()
        try:
            with warnings.catch_warnings():
                warnings.resetwarnings()
                for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
                    warnings.simplefilter("ignore", quiet)
                warnings.showwarning = lambda *parts, **_: sys.stderr.write(warnings.formatwarning(*parts[:4]))
                code = script.main([str(word) for word in words])
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            warnings.formatwarning = formatwarning
            torch.set_num_threads(threads)
        out, err = capsys.readouterr()
        return types.SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture
def call(vae, capsys, monkeypatch, tmp_path):
    """call(*words): the command in this process, in an empty folder. Gives its exit code, stdout and stderr, warnings
    among the latter as they are for a user; what `main` changes in the interpreter is put back."""
    monkeypatch.chdir(tmp_path)
    return _caller(vae, capsys)


# --------------------------------------------------------------------------------------------------------------- birds

def _draw_photo(kind, rng):
    """A PIL photo of 60 to 120 px: a disc, square, triangle or cross, each in its colour, on noise."""
    width, height = (int(side) for side in rng.integers(60, 121, 2))
    photo = Image.fromarray(rng.integers(90, 160, (height, width, 3)).astype(np.uint8))
    ink, radius = ImageDraw.Draw(photo), min(width, height) * rng.uniform(0.25, 0.35)
    x, y = width * rng.uniform(0.4, 0.6), height * rng.uniform(0.4, 0.6)
    left, top, right, bottom = box = (x - radius, y - radius, x + radius, y + radius)
    colour = ((220, 40, 40), (40, 200, 60), (50, 70, 230), (230, 210, 40))[kind]
    colour = tuple(int(value + rng.integers(-25, 26)) for value in colour)
    if kind == 0:
        ink.ellipse(box, fill=colour)
    elif kind == 1:
        ink.rectangle(box, fill=colour)
    elif kind == 2:
        ink.polygon([(left, bottom), (right, bottom), (x, top)], fill=colour)
    else:
        ink.line((left, top, right, bottom), fill=colour, width=10)
        ink.line((left, bottom, right, top), fill=colour, width=10)
    return photo


def _draw_photos(folder, names, seed=0):
    """Saves photos: {path below the folder: kind}."""
    rng = np.random.default_rng(seed)
    for name, kind in names.items():
        path = Path(str(folder)) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _draw_photo(kind, rng).save(str(path), quality=90)


@pytest.fixture(scope="session")
def bird():
    """bird.py as a module."""
    return _load_script(BIRD)


@pytest.fixture(scope="session")
def bird_script():
    return BIRD


@pytest.fixture(scope="session")
def bird_draw():
    """bird_draw(folder, {path below it: kind 0..3}, seed): draws photos."""
    return _draw_photos


@pytest.fixture(scope="session")
def bird_fast():
    """The flags of `bird_trained`: long enough to learn the drawn kinds. A later flag overrides an earlier one."""
    return BIRD_FAST


@pytest.fixture(scope="session")
def bird_alone(tmp_path_factory):
    """bird.py copied alone into an empty folder."""
    return Path(shutil.copy(str(BIRD), str(tmp_path_factory.mktemp("bird_alone"))))


BIRD_CLASSES = ["1", "10", "2", "9"]  # their order as strings is not that as numbers


@pytest.fixture(scope="session")
def bird_data(once):
    """Photos of four kinds in class folders, the third the most frequent; at test some lie in sub-folders and end in
    upper case."""
    return once("bird_data", _write_birds)


def _write_birds(folder):
    counts = [30, 34, 48, 30]
    _draw_photos(folder / "photos", {f"{name}/{i}.jpg": kind for kind, name in enumerate(BIRD_CLASSES)
                                     for i in range(counts[kind])}, seed=1)
    forms = ("{}.jpg", "{}.JPG", "a/{}.jpeg", "a/b/{}.Jpg", "B/{}.jpg", "{}.jpg")
    _draw_photos(folder / "unseen", {f"{name}/{form.format(i)}": kind for kind, name in enumerate(BIRD_CLASSES)
                                     for i, form in enumerate(forms)}, seed=2)
    return types.SimpleNamespace(folder=folder, train=folder / "photos", test=folder / "unseen", classes=BIRD_CLASSES,
                                 counts=counts, frequent=2)


@pytest.fixture(scope="session")
def bird_few(once):
    """A dozen photos of each of the same kinds: for trainings that need not learn."""
    def draw(folder):
        _draw_photos(folder, {f"{name}/{i}.jpg": kind for kind, name in enumerate(BIRD_CLASSES) for i in range(12)}, 3)
        return folder

    return once("bird_few", draw)


@pytest.fixture(scope="session")
def bird_trained(once, bird_alone, bird_data):
    """Both commands, run once with absolute paths from another folder: the folder of the model, that of the command,
    the processes."""
    def train(place):
        models, folder = place / "models", place / "elsewhere"
        models.mkdir()
        folder.mkdir()
        processes = [_run(bird_alone, bird_data.train, "train", models / "bird.pth", *BIRD_FAST, cwd=folder),
                     _run(bird_alone, bird_data.test, "test", models / "bird.pth", cwd=folder)]
        return types.SimpleNamespace(models=models, folder=folder, model=models / "bird.pth",
                                     history=models / "bird_history.json", csv=folder / "bird.csv", processes=processes)

    return once("bird_trained", train)


@pytest.fixture(scope="session")
def bird_untrained(bird, tmp_path_factory):
    """A model file of three classes a, b, c, of which b was the most frequent, with random weights."""
    folder = tmp_path_factory.mktemp("bird_untrained")
    recipe = dataclasses.replace(bird.Recipe(), image_size=32)
    model = bird.new_classifier(["a", "b", "c"], [2, 5, 3], recipe)
    (folder / "bird.pth").write_bytes(bird.saved_bytes(model.state_dict()))
    return folder / "bird.pth"


@pytest.fixture
def bird_call(bird, capsys, monkeypatch, tmp_path):
    """As `call`, for bird.py."""
    monkeypatch.chdir(tmp_path)
    return _caller(bird, capsys)
