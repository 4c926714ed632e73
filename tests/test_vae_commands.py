"""The three commands as the grader gives them: what they write, from what they learn, that they repeat themselves."""
import functools
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest


def _labels(path):
    lines = path.read_text().split("\n")
    assert lines[0] == "Predicted_Label" and lines[-1] == ""
    return [int(line) for line in lines[1:-1]]


# ------------------------------------------------------------------------------------------------------------- outputs

def test_csv_has_the_header_and_one_label_of_the_validation_file_an_image(trained, data):
    labels = _labels(trained.csv)
    assert len(labels) == 50 and set(labels) <= data.classes
    assert b"\r" not in trained.csv.read_bytes()


def test_npz_holds_only_data_of_floats_between_0_and_1(trained):
    with np.load(str(trained.npz), allow_pickle=False) as content:
        assert content.files == ["data"]
        images = content["data"]
    assert images.shape == (50, 28, 28) and images.dtype == np.float32
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    assert images.std(axis=0).max() > 0.01  # not one picture for all


def test_mixture_file_is_a_plain_dict_of_arrays(trained):
    with open(str(trained.mixture), "rb") as file:
        content = pickle.load(file)
    assert type(content) is dict and set(content) == {"weights", "means", "covariances", "labels"}
    assert all(type(value) is np.ndarray for value in content.values())
    assert [content[key].shape for key in ("weights", "means", "covariances")] == [(3,), (3, 2), (3, 2, 2)]
    assert content["labels"].tolist() == [3, 7, 30]
    assert content["weights"].sum() == pytest.approx(1)


def test_training_reports_every_epoch_and_the_parameter_count(trained, vae):
    out = trained.processes[0].stdout
    assert all(f"epoch   {epoch}/2  ELBO" in out for epoch in (1, 2))
    assert f"parameters {sum(p.numel() for p in vae.VAE().parameters()):,}" in out


def test_bare_commands_with_relative_names_learn_the_shapes(alone, data, run, tmp_path):
    """No flag at all, and training long enough to be right."""
    for path in (data.train, data.val, data.test):
        os.symlink(str(path), str(tmp_path / path.name))
    for words in (("train.npz", "val.npz", "train", "vae.pth", "gmm_params.pkl"),
                  ("test.npz", "test_reconstruction", "vae.pth"),
                  ("test.npz", "test_classifier", "vae.pth", "gmm_params.pkl")):
        process = run(alone, *words, cwd=tmp_path)
        assert (process.returncode, process.stderr) == (0, "")
    assert np.mean(np.array(_labels(tmp_path / "vae.csv")) == data.test_labels) >= 0.98
    truth = np.load(str(data.test))["data"] / 255
    error = ((np.load(str(tmp_path / "vae_reconstructed.npz"))["data"] - truth) ** 2).mean()
    assert error < 0.5 * ((truth.mean(0) - truth) ** 2).mean()  # half of what the mean image would leave


@pytest.mark.parametrize("names", [[0, 1], [5, 2, 900, 11]])
def test_any_number_of_classes_with_any_labels(names, draw, call, tmp_path):
    kinds, val = np.arange(100) % len(names), np.repeat(np.arange(len(names)), 3 + 4 * np.arange(len(names)))
    np.savez(str(tmp_path / "train.npz"), data=draw(kinds, 4))
    np.savez(str(tmp_path / "val.npz"), data=draw(val, 5), labels=np.array(names)[val])
    found = call("train.npz", "val.npz", "train", "vae.pth", "gmm_params.pkl", "--epochs", "15", "--device", "cpu")
    assert (found.code, found.err) == (0, "")
    assert f"{len(names)} classes" in found.out
    assert call("val.npz", "test_classifier", "vae.pth", "gmm_params.pkl").code == 0
    assert np.mean(np.array(_labels(tmp_path / "vae.csv")) == np.array(names)[val]) >= 0.9


def test_one_image_goes_through_both_test_commands(call, data, trained, tmp_path):
    np.savez("one.npz", data=np.load(str(data.test))["data"][:1])
    assert call("one.npz", "test_reconstruction", trained.model).code == 0
    assert call("one.npz", "test_classifier", trained.model, trained.mixture).code == 0
    assert np.load("vae_reconstructed.npz")["data"].shape == (1, 28, 28)
    assert _labels(tmp_path / "vae.csv") == _labels(trained.csv)[:1]


def test_labels_do_not_depend_on_how_many_images_there_are(call, data, trained, tmp_path):
    """5,000 images cross the encoder's batches of 4,096."""
    np.savez("many.npz", data=np.tile(np.load(str(data.test))["data"], (100, 1, 1)))
    assert call("many.npz", "test_classifier", trained.model, trained.mixture).code == 0
    assert _labels(tmp_path / "vae.csv") == _labels(trained.csv) * 100


def test_reconstructions_do_not_depend_on_how_many_images_there_are(vae, call, data, trained, monkeypatch):
    """150 images cross two borders of batches of 64."""
    monkeypatch.setattr(vae, "refine", functools.partial(vae.refine, rows=64))
    np.savez("many.npz", data=np.tile(np.load(str(data.test))["data"], (3, 1, 1)))
    assert call("many.npz", "test_reconstruction", trained.model, "--device", "cpu").code == 0
    expected = np.load(str(trained.npz))["data"]
    assert np.load("vae_reconstructed.npz")["data"].reshape(3, 50, 28, 28) == pytest.approx(
        np.broadcast_to(expected, (3, 50, 28, 28)), abs=1e-3)


def test_reconstructing_from_the_mean_is_another(call, data, trained):
    assert call(data.test, "test_reconstruction", trained.model, "--mean").code == 0
    assert np.abs(np.load("vae_reconstructed.npz")["data"] - np.load(str(trained.npz))["data"]).max() > 0.01


def test_plain_training_has_one_component_and_its_files_serve_the_test_commands(call, data, vae):
    found = call(data.train, data.val, "train", "a.pth", "a.pkl", "--plain", "--epochs", "2", "--device", "cpu")
    assert (found.code, found.err) == (0, "")
    assert vae.load_model("a.pth").prior_means.tolist() == [[0, 0]] and not vae.load_model("a.pth").frequencies.any()
    assert call(data.test, "test_reconstruction", "a.pth").code == 0
    assert call(data.test, "test_classifier", "a.pth", "a.pkl").code == 0


# ----------------------------------------------------------------------------------- what is learned, and repeatability

def _train(call, tmp_path, train, data, *flags):
    found = call(train, data.val, "train", "a.pth", "a.pkl", "--epochs", "2", "--device", "cpu", *flags)
    assert (found.code, found.err) == (0, "")
    return (tmp_path / "a.pth").read_bytes(), (tmp_path / "a.pkl").read_bytes()


@pytest.mark.parametrize("labels", [
    None, lambda true: np.random.default_rng(0).permutation(true),
    lambda true: np.array([{"an": "object"}], dtype=object)], ids=["absent", "shuffled", "objects"])
def test_training_never_sees_the_labels_of_the_training_file(labels, call, data, trained, tmp_path):
    with np.load(str(data.train)) as content:
        images, true = content["data"], content["labels"]
    np.savez("other.npz", data=images, **({} if labels is None else {"labels": labels(true)}))
    assert _train(call, tmp_path, "other.npz", data) == (trained.model.read_bytes(), trained.mixture.read_bytes())


def test_model_never_sees_the_validation_labels(call, data, trained, tmp_path):
    """Which labels the validation images bear may change the mixture, but not a bit of the model."""
    with np.load(str(data.val)) as content:
        np.savez("val.npz", data=content["data"], labels=np.roll(content["labels"], 11))
    assert call(data.train, "val.npz", "train", "a.pth", "a.pkl", "--epochs", "2", "--device", "cpu").code == 0
    assert (tmp_path / "a.pth").read_bytes() == trained.model.read_bytes()


def test_all_three_commands_repeat_themselves_to_the_bit(call, data, fast, trained, tmp_path):
    """In another process, from another folder."""
    for words in ((data.train, data.val, "train", "other.pth", "other.pkl", *fast),
                  (data.test, "test_reconstruction", "other.pth"),
                  (data.test, "test_classifier", "other.pth", "other.pkl")):
        assert call(*words).code == 0
    for mine, first in (("other.pth", trained.model), ("other.pkl", trained.mixture),
                        ("vae_reconstructed.npz", trained.npz), ("vae.csv", trained.csv)):
        assert (tmp_path / mine).read_bytes() == first.read_bytes(), mine


def test_another_seed_gives_another_model(call, data, trained, tmp_path):
    assert _train(call, tmp_path, data.train, data, "--seed", "1")[0] != trained.model.read_bytes()


# ------------------------------------------------------------------------------------------------- trouble on the way

@pytest.mark.parametrize("value", [0, 128])
def test_a_collapsed_latent_is_said_and_the_files_are_written(value, call, data, tmp_path):
    np.savez("same.npz", data=np.full((40, 28, 28), value, np.uint8))
    found = call("same.npz", data.val, "train", "a.pth", "a.pkl", "--epochs", "2", "--device", "cpu")
    assert found.code == 0
    assert all(line.startswith("vae.py: warning: ") for line in found.err.splitlines())
    assert sum("collapsed" in line for line in found.err.splitlines()) == 1
    assert call("same.npz", "test_reconstruction", "a.pth").code == 0
    assert call("same.npz", "test_classifier", "a.pth", "a.pkl").code == 0
    assert sorted(os.listdir(str(tmp_path))) == ["a.pkl", "a.pth", "same.npz", "vae.csv", "vae_reconstructed.npz"]


@pytest.mark.parametrize("count", [3, 5])
def test_a_handful_of_images_is_enough(count, call, data):
    np.savez("few.npz", data=np.load(str(data.train))["data"][:count])
    assert call("few.npz", data.val, "train", "a.pth", "a.pkl", "--epochs", "1", "--device", "cpu").code == 0


def test_ctrl_c_in_training_is_one_line_and_leaves_nothing(alone, data, environment, tmp_path):
    command = [sys.executable, str(alone), str(data.train), str(data.val), "train", "vae.pth", "gmm_params.pkl",
               "--epochs", "100000", "--threads", "1", "--device", "cpu"]
    with subprocess.Popen(command, cwd=str(tmp_path), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        try:
            for line in process.stdout:
                if line.startswith("epoch"):
                    break
            process.send_signal(signal.SIGINT)
            err = process.communicate(timeout=600)[1]
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "vae.py: interrupted\n")
    assert os.listdir(str(tmp_path)) == []


# -------------------------------------------------------------------------------------------------------- dependencies

def test_classifying_imports_no_science_library(alone, data, environment, trained, tmp_path):
    code = ("import runpy, sys\nsys.argv = sys.argv[1:]\ntry:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end:\n    assert not end.code, end.code\n"
            "names = ('numpy', 'torch', 'scipy', 'sklearn', 'skimage', 'matplotlib', 'torchvision')\n"
            "print([name for name in names if name in sys.modules])")
    command = [sys.executable, "-c", code, str(alone), str(data.test), "test_classifier", str(trained.model),
               str(trained.mixture), "--quiet"]
    out = subprocess.run(command, cwd=str(tmp_path), env=environment, stdout=subprocess.PIPE, text=True,
                         timeout=600).stdout
    assert out.strip() == "['numpy', 'torch']"
    assert (tmp_path / "vae.csv").read_bytes() == trained.csv.read_bytes()


# -------------------------------------------------------------------------------------------------------- the real data

@pytest.mark.slow
@pytest.mark.skipif("DIGITS" not in os.environ, reason="DIGITS names no folder with the real digits")
def test_real_digits(alone, environment, tmp_path):
    from skimage.metrics import structural_similarity
    from sklearn.metrics import f1_score
    train, val, test = (os.path.abspath(os.path.join(os.environ["DIGITS"], f"mnist_1_4_8_{part}.npz"))
                        for part in ("train", "val", "dev_test"))
    threads = {**environment, "OMP_NUM_THREADS": str(os.cpu_count())}
    for words in ((train, val, "train", "vae.pth", "gmm_params.pkl"), (test, "test_reconstruction", "vae.pth"),
                  (test, "test_classifier", "vae.pth", "gmm_params.pkl")):
        subprocess.run([sys.executable, str(alone), *words], cwd=str(tmp_path), env=threads, check=True)
    with np.load(test) as content:
        images, labels = content["data"].reshape(-1, 28, 28), content["labels"]
    images = images / 255 if images.max() > 1 else images
    drawn = np.load(str(tmp_path / "vae_reconstructed.npz"))["data"]
    found = np.mean([structural_similarity(a, b, data_range=1.0) for a, b in zip(images.astype(np.float32), drawn)])
    assert f1_score(labels, _labels(tmp_path / "vae.csv"), average="macro") >= 0.98
    assert found >= 0.77
