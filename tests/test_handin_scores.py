"""handin/scores.py: what it refuses; the scores themselves are compared in test_handin_figures.py."""
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from handin.scores import read_labels


def test_read_labels_refuses_another_header(tmp_path):
    (tmp_path / "vae.csv").write_text("Predicted_label\n1\n")
    with pytest.raises(ValueError, match="Predicted_Label"):
        read_labels(tmp_path / "vae.csv")
