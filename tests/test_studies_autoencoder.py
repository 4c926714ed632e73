"""Study 1, autoencoder: from the command line to the report."""
import json
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import images_of, read_page
from PIL import Image

from studies import __main__ as command
from studies import autoencoder, engine

ROOT = Path(__file__).resolve().parent.parent
PICTURES = {"loss_curves", "kl", "reconstructions", "samples", "tsne"}


@pytest.fixture(scope="module")
def digits(draw, tmp_path_factory):
    """320 drawn images of four kinds, .npz."""
    path, labels = tmp_path_factory.mktemp("digits") / "digits.npz", np.arange(320) % 4
    np.savez(str(path), data=draw(labels, 9), labels=labels)
    return path


@pytest.fixture(scope="module")
def studied(digits, tmp_path_factory):
    """The whole study in this process, two seeds."""
    folder = tmp_path_factory.mktemp("study") / "new" / "out"
    patch = pytest.MonkeyPatch()
    patch.setattr(autoencoder, "QUICK", {**autoencoder.QUICK, "feature_steps": 20, "tsne_points": 40})
    words = [str(digits), "--out", str(folder), "--quick", "--epochs", "3", "--device", "cpu", "--seeds", "2"]
    code = command.main(["autoencoder", *words, "--signature", "drawn for $test_^$ \udce9"])
    yield types.SimpleNamespace(folder=folder, code=code, words=words,
                                results=json.loads((folder / "results.json").read_text()))
    patch.undo()


def test_the_networks_are_those_of_the_description():
    settings = autoencoder.Settings()
    assert (settings.optimizer, settings.rate, settings.batch, settings.epochs) == ("Adam", 1e-3, 128, 50)
    ae, vae = autoencoder.Autoencoder(settings), autoencoder.VariationalAutoencoder(settings)
    shapes = [(layer.in_features, layer.out_features) for layer in ae.modules() if hasattr(layer, "in_features")]
    assert shapes == [(784, 128), (128, 64), (64, 32), (32, 64), (64, 128), (128, 784)]
    assert vae.encoder[-1].out_features == 64 and vae.decoder[0].in_features == 32
    x = torch.rand(3, 1, 28, 28)
    assert ae.reconstruct(x).shape == x.shape and 0 <= ae.reconstruct(x).min() and ae.reconstruct(x).max() <= 1
    logits, mean, log_variance = vae(x, torch.zeros(3, 32))
    assert torch.equal(logits.sigmoid().view(x.shape), vae.decode(mean)) and torch.equal(mean, vae.encode(x))


def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    assert studied.code == 0
    found = studied.results
    assert found["seeds"] == [0, 1] and found["quick"] is True
    assert found["data"]["train"] == 256 and found["data"]["held_out"] == 64 and found["data"]["skipped"] == 0
    near = found["data"]["near_copies"]
    assert near["within"] == 0.05 and "\\udce9" in found["command"]
    assert f"{near['held_out']} of 64 held-out images are nearly" in (studied.folder / "report.html").read_text()
    assert {"torch", "lightning-fabric", "torchmetrics"} <= set(found["versions"])
    for kind in ("AE", "VAE"):
        numbers = found["numbers"][kind]
        assert {"mse", "reconstruction", "knn_accuracy", "silhouette", "fid", "fid_floor"} <= set(numbers)
        assert len(numbers["mse"]["values"]) == 2 and numbers["mse"]["sd"] > 0
        assert [row["epoch"] for row in found["history"]["1"][kind]] == [1, 2, 3]
        assert numbers["loss"]["mean"] < found["history"]["0"][kind][0]["train"]["loss"]
    assert found["numbers"]["VAE"]["kl"]["mean"] > 0 and found["numbers"]["AE"]["kl"]["mean"] is None
    assert found["features"]["accuracy"] > found["real"]["majority"] == 0.25
    for name in PICTURES:
        with Image.open(str(studied.folder / "figures" / f"{name}.png")) as image:
            assert np.asarray(image.convert("L")).std() > 5, name
    assert {path.name for path in (studied.folder / "checkpoints").iterdir()} == {
        "features.pt", "ae_seed0.pt", "vae_seed0.pt", "ae_seed1.pt", "vae_seed1.pt"}
    assert not list(studied.folder.rglob("*.tmp"))


def test_the_report_holds_every_picture_with_its_description_and_the_numbers(studied):
    text, tags = read_page(studied.folder / "report.html")
    assert len(images_of(tags)) == len(PICTURES) and all(len(image["alt"]) > 40 for image in images_of(tags))
    assert "mean ± standard deviation of 2 seeds" in text and "64 held-out images" in text
    accuracy = 100 * studied.results["features"]["accuracy"]
    assert f"{accuracy:.1f} % (" in text


def test_a_finished_study_is_not_trained_again(studied, monkeypatch):
    before = {path: path.read_bytes() for path in (studied.folder / "checkpoints").iterdir()}

    def fail(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(engine.Batch, "__init__", fail)
    assert command.main(["autoencoder", *studied.words, "--resume"]) == 0
    assert before == {path: path.read_bytes() for path in (studied.folder / "checkpoints").iterdir()}
    again = json.loads((studied.folder / "results.json").read_text())
    assert again["numbers"] == studied.results["numbers"] and again["history"] == studied.results["history"]


def test_two_processes_of_the_command_give_the_losses_of_one(studied, digits, tmp_path, environment):
    words = [str(digits), "--out", str(tmp_path / "two"), "--quick", "--epochs", "3", "--device", "cpu"]
    words += ["--devices", "2"]
    found = subprocess.run([sys.executable, "-m", "studies", "autoencoder", *words], cwd=str(ROOT), env=environment,
                           capture_output=True, text=True, timeout=200)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.count("wrote") == 1 and "Traceback" not in found.stderr
    history = json.loads((tmp_path / "two/results.json").read_text())["history"]["0"]
    for kind in ("AE", "VAE"):
        for two, one in zip(history[kind], studied.results["history"]["0"][kind]):
            for part in ("train", "test"):
                assert two[part] == pytest.approx(one[part], rel=1e-4), (kind, one["epoch"], part)


def test_bad_input_gives_one_line_and_exit_code_2(digits, tmp_path, capsys):
    np.savez(str(tmp_path / "one.npz"), data=np.zeros((90, 28, 28), np.uint8), labels=np.zeros(90))
    np.savez(str(tmp_path / "few.npz"), data=np.zeros((9, 28, 28), np.uint8), labels=np.arange(9))
    (tmp_path / "file").write_text("")
    for words, expected in (([tmp_path / "none.npz"], "nothing there"), ([tmp_path / "one.npz"], "two classes"),
                            ([tmp_path / "few.npz"], "at least 50"), ([digits, digits, digits], "found 3"),
                            ([digits, "--devices", "9999"], "--devices")):
        assert command.main(["autoencoder", *map(str, words), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1 and "expected" in error
    assert command.main(["autoencoder", str(digits), "--out", str(tmp_path / "file"), "--device", "cpu"]) == 2
    assert "expected a folder" in capsys.readouterr().err
    for words in (["--seeds", "0"], ["--epochs", "x"]):
        with pytest.raises(SystemExit) as ended:
            command.main(["autoencoder", str(digits), "--out", str(tmp_path / "out"), *words])
        assert ended.value.code == 2
    assert command.main([]) == 2


def test_an_interruption_ends_with_130_and_says_how_to_go_on(digits, tmp_path, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "fit", interrupt)
    assert command.main(["autoencoder", str(digits), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_help_lists_the_studies_and_shows_an_example(capsys):
    for words, expected in ((["--help"], "autoencoder"), (["autoencoder", "--help"], autoencoder.EXAMPLE)):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 0 and expected in capsys.readouterr().out
