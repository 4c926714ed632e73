"""handin/grading/scores.py: what it refuses, and the scale of pixels; test_handin_figures.py compares the scores."""
import numpy as np
import pytest

from handin.grading.scores import read_digits, read_labels


def test_read_labels_refuses_another_header(tmp_path):
    (tmp_path / "vae.csv").write_text("Predicted_label\n1\n")
    with pytest.raises(ValueError, match="Predicted_Label"):
        read_labels(tmp_path / "vae.csv")


@pytest.mark.parametrize("white", [np.uint8(1), 1.000001, np.uint8(255)])
def test_white_is_1_whatever_the_scale_of_the_file(white, tmp_path):
    np.savez(tmp_path / "test.npz", data=white * np.eye(28, dtype=np.uint8)[None])
    digits, labels = read_digits(tmp_path / "test.npz")
    assert np.array_equal(digits[:][0], np.eye(28)[None]) and labels is None
