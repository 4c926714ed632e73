"""run.ipynb: it runs from top to bottom, and the committed copy has its outputs."""
import base64
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "run.ipynb"


def _outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The notebook, executed with short trainings; any error in it is one here."""
    pytest.importorskip("sklearn")
    small = {"TOUR": str(tmp_path_factory.mktemp("tour")), "BIRD_FLAGS": "--epochs 2 --image-size 48",
             "DIGIT_FLAGS": "--epochs 8", "ABLATION_EPOCHS": "1", "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in small}
    os.environ.update(small)  # the kernel inherits them
    try:
        notebook = nbformat.read(str(NOTEBOOK), as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        NotebookClient(notebook, timeout=300, kernel_name="python3",
                       resources={"metadata": {"path": str(ROOT)}}).execute()
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})
    return notebook, Path(small["TOUR"])


def test_it_runs_from_top_to_bottom_and_leaves_what_it_shows(ran):
    notebook, folder = ran
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    for name in ("bird.pth", "bird.csv", "vae.pth", "gmm_params.pkl", "vae.csv", "vae_reconstructed.npz",
                 "figures/numbers.json", "figures/ablation.json", "report/birds/2021XY10001.pdf",
                 "report/digits/2021XY10001.pdf"):
        assert (folder / name).stat().st_size > 0, name
    text = "".join(output.get("text", "") for output in _outputs(notebook))
    assert "average F1" in text and "Predicted_Label" in text and "0 failed" in text
    assert sum("image/png" in output.get("data", {}) for output in _outputs(notebook)) >= 7


def test_the_committed_copy_has_small_outputs_and_no_error():
    notebook = nbformat.read(str(NOTEBOOK), as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 2_000_000
    assert not [output for output in _outputs(notebook) if output.output_type == "error"]
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    pictures = [output["data"]["image/png"] for output in _outputs(notebook) if "image/png" in output.get("data", {})]
    assert len(pictures) >= 7 and all(base64.b64decode(picture)[:4] == b"\x89PNG" for picture in pictures)


def test_the_committed_copy_names_no_place_of_its_maker():
    text = NOTEBOOK.read_text()
    assert "/tmp/" not in text and "/home/" not in text and "/root/" not in text and "/work/" not in text
