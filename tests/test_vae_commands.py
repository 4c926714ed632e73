"""The three commands as the graders run them: what they write, what they learn from, reproducibility."""
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

def test_csv_has_the_header_and_one_label_per_image(trained, data):
    labels = _labels(trained.csv)
    assert len(labels) == 50 and set(labels) <= data.classes
    assert b"\r" not in trained.csv.read_bytes()


def test_npz_holds_only_data_of_floats_between_0_and_1(trained):
    with np.load(str(trained.npz), allow_pickle=False) as content:
        assert content.files == ["data"]
        images = content["data"]
    assert images.shape == (50, 28, 28) and images.dtype == np.float32
    assert np.isfinite(images).all() and images.min() >= 0 and images.max() <= 1
    assert images.std(axis=0).max() > 0.01  # not the same image for all


def test_mixture_file_is_a_plain_dict_of_arrays(trained):
    with open(str(trained.mixture), "rb") as file:
        content = pickle.load(file)
    assert type(content) is dict and set(content) == {"weights", "means", "covariances", "labels", "model"}
    assert all(type(value) is np.ndarray for value in content.values())
    assert [content[key].shape for key in ("weights", "means", "covariances")] == [(3,), (3, 2), (3, 2, 2)]
    assert content["labels"].tolist() == [3, 7, 30]
    assert content["weights"].sum() == pytest.approx(1)


def test_training_logs_every_epoch_and_the_parameter_count(trained, vae):
    out = trained.processes[0].stdout
    assert all(f"epoch   {epoch}/2  ELBO" in out for epoch in (1, 2))
    assert f"parameters {sum(p.numel() for p in vae.VAE().parameters()):,}" in out


def test_bare_commands_with_relative_names_learn_the_shapes(alone, data, run, tmp_path):
    """Without any flag."""
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
    assert error < 0.5 * ((truth.mean(0) - truth) ** 2).mean()  # half that of the mean image


@pytest.mark.parametrize("names", [[0, 1], [5, 2, 900, 11]])
def test_any_number_of_classes_with_any_labels(names, draw, call, tmp_path):
    kinds, val = np.arange(100) % len(names), np.repeat(np.arange(len(names)), 3 + 4 * np.arange(len(names)))
    np.savez("train.npz", data=draw(kinds, 4))
    np.savez("val.npz", data=draw(val, 5), labels=np.array(names)[val])
    found = call("train.npz", "val.npz", "train", "vae.pth", "gmm_params.pkl", "--epochs", "30", "--device", "cpu")
    assert (found.code, found.err) == (0, "")
    assert f"{len(names)} classes" in found.out
    assert call("val.npz", "test_classifier", "vae.pth", "gmm_params.pkl").code == 0
    assert np.mean(np.array(_labels(tmp_path / "vae.csv")) == np.array(names)[val]) >= 0.9


@pytest.mark.parametrize("n, flags", [(1, ()), (4150, ("--mean",))])
def test_outputs_do_not_depend_on_how_many_images_there_are(n, flags, vae, call, data, trained, model, tmp_path):
    """One image, or more than a batch; with --mean the encoder's mean is decoded, without refinement."""
    index, expected = np.arange(n) % 50, np.load(str(trained.npz))["data"]
    mean = vae.reconstruct(model, vae.load_digits(str(data.test)), refined=False)
    assert np.abs(mean - expected).max() > 0.01
    np.savez("other.npz", data=np.load(str(data.test))["data"][index])
    assert call("other.npz", "test_classifier", trained.model, trained.mixture).code == 0
    assert _labels(tmp_path / "vae.csv") == np.array(_labels(trained.csv))[index].tolist()
    assert call("other.npz", "test_reconstruction", trained.model, "--device", "cpu", *flags).code == 0
    found = np.load("vae_reconstructed.npz")["data"]
    assert np.abs(found - (mean if flags else expected)[index]).max() < 1e-3


# ----------------------------------------------------------------------------------------------------- reproducibility

def _train(call, train, val, *flags):
    """The bytes of model and mixture."""
    found = call(train, val, "train", "a.pth", "a.pkl", "--epochs", "2", "--device", "cpu", *flags)
    assert (found.code, found.err) == (0, "")
    return [open(name, "rb").read() for name in ("a.pth", "a.pkl")]


@pytest.mark.parametrize("labels", [
    None, lambda true: np.random.default_rng(0).permutation(true),
    lambda true: np.array([{"an": "object"}], dtype=object)], ids=["absent", "shuffled", "objects"])
def test_training_depends_on_no_label_of_train_and_not_on_minutes(labels, call, data, trained):
    with np.load(str(data.train)) as content:
        images, true = content["data"], content["labels"]
    np.savez("other.npz", data=images, **({} if labels is None else {"labels": labels(true)}))
    expected = [trained.model.read_bytes(), trained.mixture.read_bytes()]
    assert _train(call, "other.npz", data.val, "--minutes", "90") == expected


def test_model_depends_on_the_seed_and_not_on_validation_labels(call, data, trained):
    with np.load(str(data.val)) as content:
        np.savez("val.npz", data=content["data"], labels=np.roll(content["labels"], 11))
    assert _train(call, data.train, "val.npz")[0] == trained.model.read_bytes()
    assert _train(call, data.train, data.val, "--seed", "1")[0] != trained.model.read_bytes()


def test_plain_training_has_one_component_and_no_frequencies(call, data, vae):
    _train(call, data.train, data.val, "--plain")
    model = vae.load_checkpoint("a.pth")
    assert model.prior_means.tolist() == [[0, 0]] and not model.frequencies.any()
    assert call(data.test, "test_reconstruction", "a.pth").code == 0
    assert call(data.test, "test_classifier", "a.pth", "a.pkl").code == 0


def test_all_three_commands_give_the_same_bytes_again(call, data, fast, trained, tmp_path):
    """In another process, from another folder."""
    for words in ((data.train, data.val, "train", "other.pth", "other.pkl", *fast),
                  (data.test, "test_reconstruction", "other.pth"),
                  (data.test, "test_classifier", "other.pth", "other.pkl")):
        assert call(*words).code == 0
    for mine, first in (("other.pth", trained.model), ("other.pkl", trained.mixture),
                        ("vae_reconstructed.npz", trained.npz), ("vae.csv", trained.csv)):
        assert (tmp_path / mine).read_bytes() == first.read_bytes(), mine


# ------------------------------------------------------------------------------------------------------- unusual cases

@pytest.mark.parametrize("value", [0, 128])
def test_a_collapsed_latent_is_a_warning_and_the_files_are_written(value, call, data, tmp_path):
    np.savez("same.npz", data=np.full((40, 28, 28), value, np.uint8))
    found = call("same.npz", data.val, "train", "a.pth", "a.pkl", "--epochs", "2", "--device", "cpu")
    assert found.code == 0
    assert all(line.startswith("vae.py: warning: ") for line in found.err.splitlines())
    assert sum("collapsed" in line for line in found.err.splitlines()) == 1
    assert call("same.npz", "test_reconstruction", "a.pth").code == 0
    assert call("same.npz", "test_classifier", "a.pth", "a.pkl").code == 0
    assert sorted(os.listdir(str(tmp_path))) == ["a.pkl", "a.pth", "a_history.json", "same.npz", "vae.csv",
                                               "vae_reconstructed.npz"]


def test_warnings_as_errors_and_a_terminal_of_another_encoding(alone, data, fast, run, tmp_path):
    """`python -W error` with a latent that collapses, and output paths in Devanagari."""
    folder = tmp_path / "\u0905\u0902\u0915"
    folder.mkdir()
    np.savez(str(folder / "same.npz"), data=np.full((40, 28, 28), 128, np.uint8))
    words = "same.npz", data.val, "train", folder / "vae.pth", folder / "gmm_params.pkl"
    done = run("-W", "error", alone, *words, *fast, cwd=folder, PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and "collapsed" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert sorted(os.listdir(str(folder))) == ["gmm_params.pkl", "same.npz", "vae.pth", "vae_history.json"]


@pytest.mark.parametrize("count", [3, 5])
def test_a_few_images_are_enough(count, call, data):
    np.savez("few.npz", data=np.load(str(data.train))["data"][:count])
    assert call("few.npz", data.val, "train", "a.pth", "a.pkl", "--epochs", "1", "--device", "cpu").code == 0


def test_ctrl_c_in_training_is_one_line_and_leaves_no_file(alone, data, environment, tmp_path):
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


def test_classifying_imports_only_numpy_and_torch(alone, data, run, trained, tmp_path):
    code = ("import runpy, sys\nsys.argv = sys.argv[1:]\ntry:\n    runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end:\n    assert not end.code, end.code\n"
            "names = ('numpy', 'torch', 'scipy', 'sklearn', 'skimage', 'matplotlib', 'torchvision')\n"
            "print([name for name in names if name in sys.modules])")
    done = run("-c", code, alone, data.test, "test_classifier", trained.model, trained.mixture, "--quiet", cwd=tmp_path)
    assert done.stdout == "['numpy', 'torch']\n"
    assert (tmp_path / "vae.csv").read_bytes() == trained.csv.read_bytes()


# -------------------------------------------------------------------------------------------------------- the real data

@pytest.mark.slow
@pytest.mark.skipif("DIGITS" not in os.environ, reason="DIGITS names no folder with the real digits")
def test_real_digits(alone, environment, vae, tmp_path):
    from handin.grading.scores import average_f1, mean_ssim
    train, val, test = (os.path.abspath(os.path.join(os.environ["DIGITS"], f"mnist_1_4_8_{part}.npz"))
                        for part in ("train", "val", "dev_test"))
    threads = {**environment, "OMP_NUM_THREADS": str(os.cpu_count())}
    for words in ((train, val, "train", "vae.pth", "gmm_params.pkl"), (test, "test_reconstruction", "vae.pth"),
                  (test, "test_classifier", "vae.pth", "gmm_params.pkl")):
        subprocess.run([sys.executable, str(alone), *words], cwd=str(tmp_path), env=threads, check=True)
    digits = vae.load_digits(test, labelled=True)
    drawn = np.load(str(tmp_path / "vae_reconstructed.npz"))["data"]
    assert mean_ssim(digits[range(len(digits))][0].numpy(), drawn) >= 0.77
    assert average_f1(digits.labels, np.array(_labels(tmp_path / "vae.csv"))) >= 0.98
