"""Whole studies on a few drawn images, in this process, for the tests of studies/."""
import contextlib
import functools
import html
import importlib
import io
import json
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from pages import images_of, read_page
from PIL import Image

from studies import __main__ as command
from studies import data

ROOT = Path(__file__).resolve().parent.parent


def write_drawn(draw, folder, n=320):
    """Path of a .npz file of n drawn images of four kinds."""
    labels = np.arange(n) % 4
    np.savez(str(folder / "drawn.npz"), data=draw(labels, 9), labels=labels)
    return folder / "drawn.npz"


def labelled(pixels, labels):
    """data.Images of arrays (N, 28, 28) and (N,) in the classes a, b, c."""
    return data.Images(torch.from_numpy(pixels)[:, None], torch.from_numpy(labels), ["a", "b", "c"], [])


def study(quick, name, source, folder, *words):
    """(exit code, lines on stderr) of the study `name` with --quick, of which `quick` changes settings; one thread, so
    that a resumed study measures the same numbers to the last digit."""
    module, said = importlib.import_module(f"studies.{name}"), io.StringIO()
    with mock.patch.dict(module.QUICK, quick), contextlib.redirect_stderr(said):
        code = command.main([name, *map(str, source if isinstance(source, list) else [source]), "--out", str(folder),
                             "--quick", "--device", "cpu", "--threads", "1", *words])
    return code, said.getvalue().splitlines()


def studied(quick, name, source, folder, *words, first=()):
    """What a study has left; `study(*words)` runs it again, without the words `first`."""
    again = functools.partial(study, quick, name, source, folder, *words)
    code, said = again(*first)
    assert code == 0, said
    assert_progress(said, "measuring")
    return types.SimpleNamespace(study=again, source=source, **vars(left(folder)))


def assert_progress(lines, end):
    """The lines on stderr are the number of threads, epochs, and one that ends with `end`."""
    threads, *rows, last = lines
    assert threads == "1 thread on cpu" and all(": epoch " in line for line in rows) and last.endswith(end), lines


def process(quick, name, source, folder, environment, *words):
    """The same as a process that leaves FOLDER/out."""
    code = f"import sys\nfrom studies import __main__ as command, {name}\n{name}.QUICK.update({quick})\n"
    (folder / "study.py").write_text(code + "sys.exit(command.main(sys.argv[1:]))\n")
    line = [sys.executable, "study.py", name, str(source), "--out", "out", "--quick", "--device", "cpu", "--threads",
            "1", *words]
    return subprocess.Popen(line, cwd=str(folder), env={**environment, "PYTHONPATH": str(ROOT)}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def two_processes(quick, name, source, folder, *more):
    """The results of a study in two processes."""
    started = process(quick, name, source, folder, *more, "--devices", "2")
    stdout, stderr = started.communicate(timeout=600)
    assert started.returncode == 0 and stdout.count("wrote") == 1, stderr
    assert_progress(stderr.splitlines(), "measuring")
    results = json.loads((folder / "out/results.json").read_text())
    assert results["device"].startswith("2 x cpu")
    return results


def load(path):
    """The model of a checkpoint, which Lightning loads too."""
    from studies import training  # which is slow to import
    model = training.load_model(path)
    again = type(model).load_from_checkpoint(str(path), map_location="cpu")
    assert not model.training and str(again) == str(model) and same_weights(again, model), path
    return model


def texts(layers):
    return [str(layer) for layer in layers]


def same_weights(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def left(folder):
    """What a study has left: results, text of the report, names of figures, models of checkpoints. Each figure shows
    something and is described in the report, each GIF moves, and the report has all conclusions."""
    text, tags = read_page(folder / "report.html")
    paths = sorted((folder / "figures").iterdir())
    assert len(images_of(tags)) == len(paths) and all(len(image["alt"]) > 40 for image in images_of(tags))
    for path in paths:
        with Image.open(str(path)) as image:
            first = np.asarray(image.convert("L"))
            assert first.std() > 5, path
            if path.suffix == ".gif":
                image.seek(image.n_frames - 1)
                assert (first != np.asarray(image.convert("L"))).any(), path
    results, text = json.loads((folder / "results.json").read_text()), html.unescape(text)
    assert all(claim["found"] in text for claim in results["conclusions"])
    assert all(path.suffix == ".ckpt" for path in (folder / "checkpoints").iterdir())
    return types.SimpleNamespace(
        folder=folder, results=results, text=text, figures={path.name for path in paths},
        models={path.stem: load(path) for path in sorted((folder / "checkpoints").iterdir())})
