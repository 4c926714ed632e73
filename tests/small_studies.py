"""Whole studies on a few drawn images, in this process, for the tests of studies/."""
import contextlib
import importlib
import io
import json
import subprocess
import sys
import types
from pathlib import Path
from unittest import mock

import numpy as np
from pages import images_of, read_page
from PIL import Image

from studies import __main__ as command

ROOT = Path(__file__).resolve().parent.parent


def write_drawn(draw, folder, n=320):
    """Path of a .npz file of n drawn images of four kinds."""
    labels = np.arange(n) % 4
    np.savez(str(folder / "drawn.npz"), data=draw(labels, 9), labels=labels)
    return folder / "drawn.npz"


def study(quick, name, source, folder, *words):
    """(exit code, lines on stderr) of the study `name` with --quick, of which `quick` changes settings; one thread, so
    that a resumed study measures the same numbers to the last digit."""
    module, said = importlib.import_module(f"studies.{name}"), io.StringIO()
    with mock.patch.dict(module.QUICK, quick), contextlib.redirect_stderr(said):
        code = command.main([name, *map(str, source if isinstance(source, list) else [source]), "--out", str(folder),
                             "--quick", "--device", "cpu", "--threads", "1", *words])
    return code, said.getvalue().splitlines()


def process(quick, name, source, folder, environment, *words):
    """The same as a process that leaves FOLDER/out."""
    code = f"import sys\nfrom studies import __main__ as command, {name}\n{name}.QUICK.update({quick})\n"
    (folder / "study.py").write_text(code + "sys.exit(command.main(sys.argv[1:]))\n")
    line = [sys.executable, "study.py", name, str(source), "--out", "out", "--quick", "--device", "cpu", *words]
    return subprocess.Popen(line, cwd=str(folder), env={**environment, "PYTHONPATH": str(ROOT)}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def left(folder):
    """What a study has left, with results, text of the report, names of figures and of checkpoints. Each figure shows
    something and is described in the report, and each GIF moves."""
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
    return types.SimpleNamespace(
        results=json.loads((folder / "results.json").read_text()), text=text, figures={path.name for path in paths},
        checkpoints={path.name for path in (folder / "checkpoints").iterdir()})
