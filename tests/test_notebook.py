"""run.ipynb: it runs from top to bottom, finds the course's data, and the committed copy has its outputs."""
import base64
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from peers import write_all

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "run.ipynb"
SMALL = """
WORK = {work!r}
TRAIN_FLAGS = {{"birds": "--epochs 1 --image-size 32", "digits": "--epochs 2",
               "ablation": "--epochs 1 --image-size 32"}}
import numpy as np
from handin import demo
demo.BIRDS_PER_CLASS, write_digits = {{"train": 6, "test": 3}}, demo.write_digits

def write_few_digits(folder):
    write_digits(folder)
    for name, number in (("train", 200), ("test", 60)):
        path = folder / (name + ".npz")
        np.savez(path, **{{key: array[:number] for key, array in np.load(path).items()}})

demo.write_digits = write_few_digits
"""


def _read():
    return nbformat.read(str(NOTEBOOK), as_version=4)


def _parameters(notebook):
    """Index of the cell that a user edits."""
    (index,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]
    return index


def _outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def _pictures(notebook):
    """Bytes of the pictures among the outputs."""
    return [base64.b64decode(output["data"][kind]) for output in _outputs(notebook)
            for kind in ("image/png", "image/jpeg") if kind in output.get("data", {})]


def _code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_runs_from_top_to_bottom_and_leaves_what_it_shows(tmp_path, monkeypatch):
    """With few photos and short trainings; any error in it is one here."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the kernel inherits it
    notebook, folder = _read(), tmp_path / "tour"
    for cell in _code(notebook):
        cell.outputs, cell.execution_count = [], None
    notebook.cells.insert(_parameters(notebook) + 1, nbformat.v4.new_code_cell(SMALL.format(work=str(folder))))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()
    assert all(cell.execution_count for cell in _code(notebook))
    for name in ("bird.pth", "bird.csv", "vae.pth", "gmm_params.pkl", "vae.csv", "vae_reconstructed.npz",
                 "figures/numbers.json", "figures/ablation.json", "figures/latent.html", "report/birds/2021XY10001.pdf",
                 "report/digits/2021XY10001.pdf", "submission/birds/submission.zip",
                 "submission/digits/submission.zip"):
        assert (folder / name).stat().st_size > 0, name
    text = "".join(output.get("text", "") for output in _outputs(notebook))
    for words in ("drawn by a program", "average F1", "Predicted_Label", "SSIM", "Param #", "0 failed", "group.txt"):
        assert words in text
    assert len(_pictures(notebook)) >= 12


def test_the_courses_data_is_found_and_trained_on_without_short_flags(tmp_path, monkeypatch):
    """As on Colab and Kaggle, at any depth; what a user names goes first."""
    notebook = _read()
    source = notebook.cells[_parameters(notebook) + 1].source
    write_all(tmp_path, dict.fromkeys((
        "identify/Birds/test/0/a.jpg", "identify/Birds/train/0/a.jpg", "identify/Birds/train/1/a.jpg",
        "digits/mnist_1_4_8_train.npz", "digits/mnist_1_4_8_val.npz"), ""))
    monkeypatch.chdir(tmp_path)
    def found(**parameters):
        monkeypatch.setattr(os, "environ", {"PATH": ""})
        names = {"BIRDS": None, "DIGITS": None, "TRAIN_FLAGS": None, "WORK": tmp_path / "work", **parameters}
        exec(source, {"ROOTS": [str(tmp_path)], "PROJECT": ROOT, "os": os, "sys": sys, "Path": Path, **names})
        return os.environ
    names = found()
    assert [Path(names[name]).relative_to(tmp_path.resolve()).as_posix()
            for name in ("BIRDS_TRAIN", "BIRDS_TEST", "TRAIN", "VAL", "TEST")] == [
        "identify/Birds/train", "identify/Birds/test", "digits/mnist_1_4_8_train.npz", "digits/mnist_1_4_8_val.npz",
        "digits/mnist_1_4_8_val.npz"]
    assert (names["BIRD_FLAGS"], names["DIGIT_FLAGS"]) == ("", "")
    names = found(BIRDS=("/my/train", "/my/test"), TRAIN_FLAGS={"birds": "--epochs 3"})
    assert (names["BIRDS_TRAIN"], names["BIRDS_TEST"], names["BIRD_FLAGS"]) == ("/my/train", "/my/test", "--epochs 3")


def test_the_committed_copy_has_outputs_no_error_and_no_local_path():
    notebook = _read()
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 300_000 and not re.search(r"/(tmp|home|root|work|Users)/", NOTEBOOK.read_text())
    assert not [output for output in _outputs(notebook) if output.output_type == "error"]
    assert all(cell.execution_count for cell in _code(notebook)) and len(_pictures(notebook)) >= 12
    assert all(picture.startswith((b"\x89PNG", b"\xff\xd8")) for picture in _pictures(notebook))


def test_each_command_and_figure_is_explained_before_it_runs():
    cells = _read().cells
    for before, cell in zip(cells, cells[1:]):
        if cell.cell_type == "code" and ("%%bash" in cell.source or 'show("figures' in cell.source):
            assert before.cell_type == "markdown" and len(before.source.split()) > 15, cell.source
