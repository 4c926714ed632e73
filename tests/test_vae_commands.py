"""The three commands as the graders run them: what they write, what they learn from, reproducibility."""
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from refusals import files, read_labels

TRAIN = ("train", "a.pth", "a.pkl", "--epochs", "2", "--device", "cpu")


def test_outputs_of_the_three_commands(trained, data, vae):
    labels, out = read_labels(trained.csv), trained.processes[0].stdout
    assert len(labels) == 50 and set(labels) <= data.classes
    with np.load(str(trained.npz), allow_pickle=False) as content:
        assert content.files == ["data"]
        images = content["data"]
    assert images.shape == (50, 28, 28) and images.dtype == np.float32
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    assert images.std(axis=0).max() > 0.01  # not the same image for all
    mixture = pickle.loads(trained.mixture.read_bytes())
    assert type(mixture) is dict and all(type(value) is np.ndarray for value in mixture.values())
    assert set(mixture) == {"weights", "means", "covariances", "labels", "model"}
    assert [mixture[key].shape for key in ("weights", "means", "covariances")] == [(3,), (3, 2), (3, 2, 2)]
    assert mixture["labels"].tolist() == [3, 7, 30] and mixture["weights"].sum() == pytest.approx(1)
    assert all(f"epoch   {epoch}/2  " in out for epoch in (1, 2))
    assert f"parameters {sum(p.numel() for p in vae.VAE().parameters()):,}" in out


def test_bare_commands_with_relative_names_learn_the_shapes(call, data, tmp_path):
    for path in (data.train, data.val, data.test):
        os.symlink(str(path), str(tmp_path / path.name))
    for words in ("train.npz val.npz train vae.pth gmm_params.pkl", "test.npz test_reconstruction vae.pth",
                  "test.npz test_classifier vae.pth gmm_params.pkl"):
        found = call(*words.split())
        assert (found.code, found.err) == (0, "")
    assert np.mean(np.array(read_labels(tmp_path / "vae.csv")) == data.test_labels) >= 0.98
    truth = np.load(str(data.test))["data"] / 255
    error = ((np.load("vae_reconstructed.npz")["data"] - truth) ** 2).mean()
    assert error < 0.5 * ((truth.mean(0) - truth) ** 2).mean()  # half that of the mean image


@pytest.mark.parametrize("names", [[0, 1], [5, 2, 900, 11]])
def test_any_number_of_classes_with_any_labels(names, draw, call, tmp_path):
    kinds, val = np.arange(100) % len(names), np.repeat(np.arange(len(names)), 3 + 4 * np.arange(len(names)))
    np.savez("train.npz", data=draw(kinds, 4))
    np.savez("val.npz", data=draw(val, 5), labels=np.array(names)[val])
    found = call("train.npz", "val.npz", *TRAIN, "--epochs", "30")
    assert (found.code, found.err) == (0, "") and f"{len(names)} classes" in found.out
    assert call("val.npz", "test_classifier", "a.pth", "a.pkl").code == 0
    assert np.mean(np.array(read_labels(tmp_path / "vae.csv")) == np.array(names)[val]) >= 0.9


@pytest.mark.parametrize("n, flags", [(1, ()), (4150, ("--mean",))])
def test_outputs_do_not_depend_on_how_many_images_there_are(n, flags, vae, call, data, trained, model, tmp_path):
    """One image, or more than a batch; with --mean the encoder's mean is decoded, without refinement."""
    index, expected = np.arange(n) % 50, np.load(str(trained.npz))["data"]
    mean = vae.reconstruct(model, vae.load_digits(str(data.test)), refined=False)
    assert np.abs(mean - expected).max() > 0.01
    np.savez("other.npz", data=np.load(str(data.test))["data"][index])
    assert call("other.npz", "test_classifier", trained.model, trained.mixture).code == 0
    assert read_labels(tmp_path / "vae.csv") == np.array(read_labels(trained.csv))[index].tolist()
    assert call("other.npz", "test_reconstruction", trained.model, "--device", "cpu", *flags).code == 0
    found = np.load("vae_reconstructed.npz")["data"]
    assert np.abs(found - (mean if flags else expected)[index]).max() < 1e-3


def test_commands_repeat_to_the_byte_whatever_the_labels_of_train(call, data, fast, trained, tmp_path):
    """In another process, from another folder, with another --minutes; labels that are objects cannot be read."""
    np.savez("other.npz", data=np.load(str(data.train))["data"], labels=np.array([{"an": "object"}], dtype=object))
    for words in (("other.npz", data.val, "train", "other.pth", "other.pkl", *fast, "--minutes", "90"),
                  (data.test, "test_reconstruction", "other.pth"),
                  (data.test, "test_classifier", "other.pth", "other.pkl")):
        assert call(*words).code == 0
    for mine, first in (("other.pth", trained.model), ("other.pkl", trained.mixture),
                        ("vae_reconstructed.npz", trained.npz), ("vae.csv", trained.csv)):
        assert (tmp_path / mine).read_bytes() == first.read_bytes(), mine


def test_model_depends_on_the_seed_and_not_on_validation_labels(call, data, trained, tmp_path):
    with np.load(str(data.val)) as content:
        np.savez("val.npz", data=content["data"], labels=np.roll(content["labels"], 11))
    for val, flags, same in (("val.npz", (), True), (data.val, ("--seed", "1"), False)):
        assert call(data.train, val, *TRAIN, *flags).code == 0
        assert ((tmp_path / "a.pth").read_bytes() == trained.model.read_bytes()) == same


def test_plain_training_has_one_component_and_no_frequencies(call, data, vae):
    assert call(data.train, data.val, *TRAIN, "--plain").code == 0
    model = vae.load_checkpoint("a.pth")
    assert model.prior_means.tolist() == [[0, 0]] and not model.frequencies.any()
    assert call(data.test, "test_reconstruction", "a.pth").code == 0
    assert call(data.test, "test_classifier", "a.pth", "a.pkl").code == 0


@pytest.mark.parametrize("value", [0, 128])
def test_a_collapsed_latent_is_a_warning_and_the_files_are_written(value, call, data, tmp_path):
    np.savez("same.npz", data=np.full((40, 28, 28), value, np.uint8))
    found = call("same.npz", data.val, *TRAIN)
    assert found.code == 0 and all(line.startswith("vae.py: warning: ") for line in found.err.splitlines())
    assert sum("collapsed" in line for line in found.err.splitlines()) == 1
    assert call("same.npz", "test_reconstruction", "a.pth").code == 0
    assert call("same.npz", "test_classifier", "a.pth", "a.pkl").code == 0
    assert files(tmp_path) == ["a.pkl", "a.pth", "a_history.json", "same.npz", "vae.csv", "vae_reconstructed.npz"]


def test_warnings_as_errors_and_a_terminal_of_another_encoding(alone, data, fast, run, tmp_path):
    """`python -W error` with a latent that collapses, and output paths in Devanagari."""
    folder = tmp_path / "\u0905\u0902\u0915"
    folder.mkdir()
    np.savez(str(folder / "same.npz"), data=np.full((40, 28, 28), 128, np.uint8))
    words = "same.npz", data.val, "train", folder / "vae.pth", folder / "gmm_params.pkl"
    done = run("-W", "error", alone, *words, *fast, cwd=folder, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and "collapsed" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert files(folder) == ["gmm_params.pkl", "same.npz", "vae.pth", "vae_history.json"]


@pytest.mark.parametrize("count", [3, 5])
def test_a_few_images_are_enough(count, call, data):
    np.savez("few.npz", data=np.load(str(data.train))["data"][:count])
    assert call("few.npz", data.val, *TRAIN, "--epochs", "1").code == 0


def test_ctrl_c_in_training_is_one_line_and_leaves_no_file(alone, data, environment, tmp_path):
    command = [sys.executable, str(alone), str(data.train), str(data.val), *TRAIN, "--epochs", "100000"]
    with subprocess.Popen(command, cwd=str(tmp_path), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        try:
            next(line for line in process.stdout if line.startswith("epoch"))
            process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=600)[1]
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "vae.py: interrupted\n") and files(tmp_path) == []


def test_classifying_imports_only_numpy_and_torch(alone, data, run, trained, tmp_path):
    code = ("import runpy, sys\nsys.argv = sys.argv[1:]\ntry:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end:\n    assert not end.code, end.code\n"
            "names = ('numpy', 'torch', 'scipy', 'sklearn', 'skimage', 'matplotlib', 'torchvision')\n"
            "print([name for name in names if name in sys.modules])")
    done = run("-c", code, alone, data.test, "test_classifier", trained.model, trained.mixture, "--quiet", cwd=tmp_path)
    assert done.stdout == "['numpy', 'torch']\n"
    assert (tmp_path / "vae.csv").read_bytes() == trained.csv.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif("DIGITS" not in os.environ, reason="DIGITS names no folder with the real digits")
def test_real_digits(alone, environment, vae, tmp_path):
    """Scores on 286 digits, and latents, of the committed model and of one trained anew."""
    from handin.grading.scores import average_f1, mean_ssim
    train, val, test = (os.path.abspath(os.path.join(os.environ["DIGITS"], f"mnist_1_4_8_{part}.npz"))
                        for part in ("train", "val", "dev_test"))
    subprocess.run([sys.executable, str(alone), train, val, "train", "vae.pth", "gmm_params.pkl"], cwd=str(tmp_path),
                   env={**environment, "OMP_NUM_THREADS": str(os.cpu_count())}, check=True)
    digits = vae.load_digits(test, labelled=True)
    images = digits[range(len(digits))][0]
    for folder, least_f1 in ((Path(__file__).resolve().parent.parent / "models", 0.99), (tmp_path, 0.98)):
        model = vae.load_checkpoint(str(folder / "vae.pth"))
        drawn, mu, _ = (part.detach() for part in model(images))
        assert mean_ssim(images.numpy(), drawn.numpy().reshape(-1, 28, 28)) > 0.74
        assert mean_ssim(images.numpy(), vae.reconstruct(model, digits)) > 0.77
        labels = vae.classify(model, *vae.load_mixture(str(folder / "gmm_params.pkl"), model), digits)
        assert average_f1(digits.labels, labels) > least_f1 and (mu.abs() <= 1.645).all(1).float().mean() >= 0.75
        assert mu.mean(0).numpy() == pytest.approx(0, abs=0.25)  # of so few, one more or less of a class changes it
