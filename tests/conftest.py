"""Shared fixtures: the scripts as modules and as commands, small drawn images, and models trained on them once for all
processes of the test run."""
import importlib
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
import peers
import pytest
import torch
from filelock import FileLock
from PIL import Image, ImageDraw
from refusals import SENTINEL

SCRIPT = Path(__file__).resolve().parent.parent / "vae.py"
BIRD = SCRIPT.parent / "bird.py"
FAST = ("--epochs", "2", "--threads", "1", "--device", "cpu")
BIRD_FAST = ("--epochs", "12", "--image-size", "48", "--threads", "1", "--device", "cpu")

hypothesis.settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True, database=None,
                                     suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.load_profile("suite")
torch.set_num_threads(1)
session = pytest.fixture(scope="session")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in a shell's background; the commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


FAST_FILES = ("test_bird_parts", "test_bird_photos", "test_common", "test_docs", "test_handin_scores", "test_install",
              "test_studies_data", "test_vae_assignment", "test_vae_files", "test_vae_mixture")


def pytest_configure(config):
    """pytest-xdist would start with the files of most tests, so that the few long tests come last, on one worker."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Tests that train or start many processes are slow: those of all other files."""
    for item in items:
        if item.path.stem not in FAST_FILES:
            item.add_marker("slow")


SHAPES = (  # bar, ring, cross, two stripes: (rows, columns, ink) of rectangles
    [(slice(5, 23), slice(13, 16), 1)], [(slice(7, 21), slice(7, 21), 1), (slice(10, 18), slice(10, 18), 0)],
    [(slice(5, 23), slice(13, 16), 1), (slice(13, 16), slice(5, 23), 1)],
    [(slice(8, 11), slice(5, 23), 1), (slice(17, 20), slice(5, 23), 1)])


def _draw(kinds, seed=0):
    """Images uint8 (N, 28, 28) of the SHAPES 0..3, each shifted and faded at random."""
    rng = np.random.default_rng(seed)
    images = np.zeros((len(kinds), 28, 28), np.uint8)
    for image, kind in zip(images, kinds):
        brightness = int(rng.integers(180, 256))
        for rows, columns, ink in SHAPES[kind]:
            image[rows, columns] = ink * brightness
        image[:] = np.roll(image, rng.integers(-2, 3, 2), axis=(0, 1))
    images[0, 0, 0] = 255  # whatever was drawn
    return images


def _environment():
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONWARNINGS")}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def _run(*words, cwd, **variables):
    """The finished process of `python WORD...`; `variables` are added to the environment."""
    return subprocess.run([sys.executable, *map(str, words)], cwd=str(cwd), env={**_environment(), **variables},
                          capture_output=True, text=True, timeout=600)


@session
def once(tmp_path_factory):
    """once(name, make): the result of make(folder), called by the first process of the test run that asks; the others
    get a copy. What `make` writes into the folder stays there."""
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


vae = session(lambda: importlib.import_module("vae"))
bird = session(lambda: importlib.import_module("bird"))
script_path, bird_script = session(lambda: SCRIPT), session(lambda: BIRD)
draw = session(lambda: _draw)
bird_draw = session(lambda: _draw_photos)  # bird_draw(folder, {path below it: kind 0..3}, seed)
fast, bird_fast = session(lambda: FAST), session(lambda: BIRD_FAST)  # flags of `trained` and `bird_trained`
environment = session(_environment)
run = session(lambda: _run)  # run(script, *words, cwd=folder)
alone = session(lambda tmp_path_factory: Path(shutil.copy(str(SCRIPT), str(tmp_path_factory.mktemp("alone")))))
bird_alone = session(lambda tmp_path_factory: Path(shutil.copy(str(BIRD), str(tmp_path_factory.mktemp("bird_alone")))))
data = session(lambda once: once("data", _write_digits))
bird_data = session(lambda once: once("bird_data", _write_birds))
model = session(lambda vae, trained: vae.load_checkpoint(str(trained.model)))
peer_birds = session(lambda tmp_path_factory: peers.write_birds(tmp_path_factory.mktemp("peer_birds")))
peer_digits = session(lambda tmp_path_factory: peers.write_digits(tmp_path_factory.mktemp("peer_digits")))


def _write_digits(folder):
    """train, val and test files of three shapes labelled 3, 7 and 30, with the kinds of the test images."""
    names = np.array([3, 7, 30])
    train, val, test = np.arange(120) % 3, np.repeat([0, 1, 2], [20, 9, 16]), np.arange(50) % 3
    found = types.SimpleNamespace(train=folder / "train.npz", val=folder / "val.npz", test=folder / "test.npz",
                                  test_labels=names[test], classes={3, 7, 30}, folder=folder)
    np.savez(str(found.train), data=_draw(train, 1), labels=names[train])
    np.savez(str(found.val), data=_draw(val, 2), labels=names[val])
    np.savez(str(found.test), data=_draw(test, 3))
    return found


@session
def trained(once, alone, data):
    """The three commands, run once, with absolute paths from another folder: its files, the finished processes."""
    def train(folder):
        model, mixture = folder / "vae.pth", folder / "gmm_params.pkl"
        processes = [_run(alone, data.train, data.val, "train", model, mixture, *FAST, cwd=folder),
                     _run(alone, data.test, "test_reconstruction", model, cwd=folder),
                     _run(alone, data.test, "test_classifier", model, mixture, cwd=folder)]
        return types.SimpleNamespace(folder=folder, model=model, mixture=mixture, processes=processes,
                                     csv=folder / "vae.csv", npz=folder / "vae_reconstructed.npz")

    return once("trained", train)


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
    """call(*words): runs the command in this process, in an empty folder; returns its exit code, stdout, and stderr
    with the warnings as a user sees them. What `main` changes in the interpreter is restored."""
    monkeypatch.chdir(tmp_path)
    return _caller(vae, capsys)


@pytest.fixture
def bird_call(bird, capsys, monkeypatch, tmp_path):
    """`call` for bird.py."""
    monkeypatch.chdir(tmp_path)
    return _caller(bird, capsys)


@pytest.fixture
def handin(capsys):
    """`call` for python -m handin."""
    return _caller(importlib.import_module("handin.__main__"), capsys)


@pytest.fixture
def folder(tmp_path):
    """The folder of `call` and `bird_call`, in which every output exists already."""
    for output in ("bird.pth", "bird_history.json", "bird.csv", "vae.pth", "gmm_params.pkl", "vae_history.json",
                   "vae.csv", "vae_reconstructed.npz"):
        (tmp_path / output).write_bytes(SENTINEL)
    return tmp_path


def _draw_photo(kind, rng):
    """A PIL photo of 60 to 120 px: a disk, square, triangle or cross, each in its own color, on noise."""
    width, height = (int(side) for side in rng.integers(60, 121, 2))
    photo = Image.fromarray(rng.integers(90, 160, (height, width, 3)).astype(np.uint8))
    ink, radius = ImageDraw.Draw(photo), min(width, height) * rng.uniform(0.25, 0.35)
    x, y = width * rng.uniform(0.4, 0.6), height * rng.uniform(0.4, 0.6)
    left, top, right, bottom = box = (x - radius, y - radius, x + radius, y + radius)
    color = ((220, 40, 40), (40, 200, 60), (50, 70, 230), (230, 210, 40))[kind]
    color = tuple(int(value + rng.integers(-25, 26)) for value in color)
    if kind < 2:
        (ink.ellipse, ink.rectangle)[kind](box, fill=color)
    elif kind == 2:
        ink.polygon([(left, bottom), (right, bottom), (x, top)], fill=color)
    else:
        for line in (box, (left, bottom, right, top)):
            ink.line(line, fill=color, width=10)
    return photo


def _draw_photos(folder, names, seed=0):
    """Saves photos: {path below the folder: kind}."""
    rng = np.random.default_rng(seed)
    for name, kind in names.items():
        path = Path(str(folder)) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _draw_photo(kind, rng).save(str(path), quality=90)


BIRD_CLASSES = ["1", "10", "2", "9"]  # their order as strings is not that as numbers


def _write_birds(folder):
    """Photos of four kinds in class folders, the third the most frequent; at test some are in sub-folders and end in
    upper case."""
    counts = [46, 48, 58, 46]
    _draw_photos(folder / "photos", {f"{name}/{i}.jpg": kind for kind, name in enumerate(BIRD_CLASSES)
                                     for i in range(counts[kind])}, seed=1)
    forms = ("{}.jpg", "{}.JPG", "a/{}.jpeg", "a/b/{}.Jpg", "B/{}.jpg", "{}.jpg")
    _draw_photos(folder / "unseen", {f"{name}/{form.format(i)}": kind for kind, name in enumerate(BIRD_CLASSES)
                                     for i, form in enumerate(forms)}, seed=2)
    return types.SimpleNamespace(folder=folder, train=folder / "photos", test=folder / "unseen", classes=BIRD_CLASSES,
                                 counts=counts)


@session
def bird_few(once):
    """A dozen photos of each of the same kinds: for trainings that need not learn."""
    def draw(folder):
        _draw_photos(folder, {f"{name}/{i}.jpg": kind for kind, name in enumerate(BIRD_CLASSES) for i in range(12)}, 3)
        return folder

    return once("bird_few", draw)


@session
def bird_trained(once, bird_alone, bird_data):
    """Both commands, run once, with absolute paths from another folder: the model's folder, that of the commands, the
    finished processes."""
    def train(place):
        models, folder = place / "models", place / "elsewhere"
        models.mkdir()
        folder.mkdir()
        processes = [_run(bird_alone, bird_data.train, "train", models / "bird.pth", *BIRD_FAST, cwd=folder),
                     _run(bird_alone, bird_data.test, "test", models / "bird.pth", cwd=folder)]
        return types.SimpleNamespace(models=models, folder=folder, model=models / "bird.pth",
                                     history=models / "bird_history.json", csv=folder / "bird.csv", processes=processes)

    return once("bird_trained", train)


@session
def bird_untrained(bird, tmp_path_factory):
    """A model file of three classes a, b, c, of which b was the most frequent, with random weights."""
    folder = tmp_path_factory.mktemp("bird_untrained")
    torch.manual_seed(0)
    model = bird.BirdClassifier(["a", "b", "c"], [2, 5, 3], 32)
    (folder / "bird.pth").write_bytes(bird.serialized(model.state_dict()))
    return folder / "bird.pth"


@pytest.fixture(scope="module")
def browser():
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if chromium is None:
        pytest.skip("no Chromium on PATH (apt-get install chromium)")
    with playwright.sync_playwright() as session:
        launched = session.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()
