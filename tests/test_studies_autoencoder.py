"""Study 1, autoencoder: from the command line to the report."""
import contextlib
import io
import json
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import images_of, read_page
from PIL import Image
from torch import nn

from studies import __main__ as command
from studies import autoencoder, losses, training

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("described", "bce")
PICTURES = {f"{name}_{variant}" for name in ("loss", "reconstructions", "samples", "tsne") for variant in VARIANTS}
MODELS = {f"{kind}_{variant}_seed{seed}" for kind in ("ae", "vae") for variant in VARIANTS for seed in (3, 4)}


@pytest.fixture(scope="module")
def digits(draw, tmp_path_factory):
    """320 drawn images of four kinds, .npz."""
    path, labels = tmp_path_factory.mktemp("digits") / "digits.npz", np.arange(320) % 4
    np.savez(str(path), data=draw(labels, 9), labels=labels)
    return path


@pytest.fixture(scope="module")
def studied(digits, tmp_path_factory):
    """The whole study in this process, two seeds and both variants."""
    folder, said = tmp_path_factory.mktemp("study") / "new" / "out", io.StringIO()
    words = ["autoencoder", str(digits), "--quick", "--epochs", "3", "--device", "cpu", "--seed", "3", "--out"]
    more = [str(folder), "--seeds", "2", "--variant", "bce", "--signature", "drawn for $test_^$ \udce9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(autoencoder.QUICK, "feature_steps", 8)
        with contextlib.redirect_stderr(said):
            code = command.main([*words, *more])
        yield types.SimpleNamespace(folder=folder, code=code, words=words, more=more, said=said.getvalue().splitlines(),
                                    results=json.loads((folder / "results.json").read_text()))


def test_networks_and_losses_are_those_of_the_description():
    settings = autoencoder.Settings()
    assert (settings.lr, settings.batch_size, settings.epochs, settings.loss) == (1e-3, 128, 50, "mse")
    ae, vae = autoencoder.Autoencoder(settings, False), autoencoder.Autoencoder(settings, True)
    for net, code in ((ae, 32), (vae, 64)):
        assert [(layer.in_features, layer.out_features) for layer in net.modules() if isinstance(layer, nn.Linear)] == [
            (784, 128), (128, 64), (64, code), (32, 64), (64, 128), (128, 784)]
        assert sum(isinstance(layer, nn.ReLU) for layer in net.modules()) == 4
        assert type(net.configure_optimizers()) is torch.optim.Adam
    x = torch.rand(3, 1, 28, 28)
    with torch.no_grad():
        y = ae.reconstruct(x)
        assert y.shape == x.shape and 0 <= y.min() and y.max() <= 1
        assert ae.losses(x, None)["loss"] == pytest.approx(float((y - x).square().sum() / 3))
        torch.manual_seed(0)
        found = vae.losses(x, None)
        torch.manual_seed(0)
        mean, log_variance = vae.encoder(x.flatten(1)).chunk(2, 1)
        y = vae.decode(losses.reparameterize(mean, log_variance))
        assert found["reconstruction"] == pytest.approx(float((y - x).square().sum() / 3))
        assert found["loss"] == found["reconstruction"] + losses.kl_divergence(mean, log_variance).mean()
        assert torch.equal(vae.encode(x), mean)


def test_the_study_leaves_numbers_figures_and_checkpoints(studied):
    found = studied.results
    assert studied.code == 0 and found["seeds"] == [3, 4] and found["quick"] and found["seconds"] > 0
    assert found["data"]["train"] == 256 and found["data"]["held_out"] == 64 and found["data"]["skipped"] == 0
    assert found["settings"]["epochs"] == 3 and found["settings"]["lr"] == 1e-3 and found["precision"] == "32-true"
    assert found["device"].startswith("cpu") and "\\udce9" in found["command"]
    assert {"python", "torch", "lightning", "torchmetrics"} <= set(found["versions"])
    for variant in VARIANTS:
        ae, vae = (found["numbers"][variant][kind] for kind in ("AE", "VAE"))
        assert all(len(each["mse"]["values"]) == 2 and each["mse"]["sd"] > 0 for each in (ae, vae))
        assert vae["kl"]["mean"] > 0 and ae["kl"]["mean"] is None and vae["fid"]["mean"] > found["real"]["fid"]
        history = found["history"][f"{variant} 4 VAE"]
        assert [row["epoch"] for row in history] == [1, 2, 3] and vae["loss"]["values"][1] == history[2]["test_loss"]
        assert history[2]["train_loss"] < history[0]["train_loss"]
    assert found["numbers"]["bce"]["AE"]["loss"]["mean"] > 2 * found["numbers"]["described"]["AE"]["loss"]["mean"]
    assert found["features"]["accuracy"] > found["features"]["guessing"] == 0.25
    assert {path.stem for path in (studied.folder / "checkpoints").iterdir()} == {"features", *MODELS}
    assert {path.stem for path in (studied.folder / "figures").iterdir()} == PICTURES
    for path in (studied.folder / "figures").iterdir():
        assert np.asarray(Image.open(str(path)).convert("L")).std() > 5, path
    assert studied.said.pop() == "measuring" and all(": epoch " in line for line in studied.said)


def test_the_report_holds_every_picture_with_its_description_and_the_numbers(studied):
    text, tags = read_page(studied.folder / "report.html")
    assert len(images_of(tags)) == len(PICTURES) and all(len(image["alt"]) > 40 for image in images_of(tags))
    assert "mean ± standard deviation of 2 seeds" in text and "64 held-out images" in text and "VAE, bce" in text


def test_a_finished_study_is_not_trained_again(studied, monkeypatch):
    monkeypatch.setattr(training.StudyModule, "training_step", lambda *_: pytest.fail("trained again"))
    assert command.main([*studied.words, *studied.more, "--resume"]) == 0
    again = json.loads((studied.folder / "results.json").read_text())
    assert again["numbers"] == studied.results["numbers"] and again["history"] == studied.results["history"]


def test_two_processes_give_the_losses_of_one(studied, tmp_path, environment):
    words = [sys.executable, "-m", "studies", *studied.words, str(tmp_path / "two"), "--devices", "2"]
    found = subprocess.run(words, cwd=str(ROOT), env=environment, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0 and found.stdout.count("wrote") == 1, found.stderr
    assert all(": epoch " in line or line == "measuring" for line in found.stderr.splitlines()), found.stderr
    results = json.loads((tmp_path / "two/results.json").read_text())
    assert results["device"].startswith("2 x cpu")
    for kind, bound in (("AE", 1e-4), ("VAE", 0.05)):  # the noise of a VAE is another with two processes
        both = (found["history"][f"described 3 {kind}"] for found in (results, studied.results))
        for two, one in zip(*both):
            for name in ("train_loss", "test_loss"):
                assert two[name] == pytest.approx(one[name], rel=bound), (kind, one["epoch"])


def test_ctrl_c_ends_with_130_and_one_line_and_leaves_no_half_file(studied, tmp_path, environment):
    words = [sys.executable, "-m", "studies", *studied.words, str(tmp_path), "--epochs", "1000"]
    process = subprocess.Popen(words, cwd=str(ROOT), env=environment, text=True, stderr=subprocess.PIPE)
    while not (tmp_path / "checkpoints/ae_described_seed3.ckpt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    *rows, last = process.communicate(timeout=600)[1].splitlines()
    assert process.returncode == 130 and last.endswith("interrupted; --resume goes on from the last epoch")
    assert all(": epoch " in line for line in rows)
    assert {path.name for path in tmp_path.rglob("*.*") if path.is_file()} == {
        "features.ckpt", "ae_described_seed3.ckpt", "metrics.csv", "hparams.yaml"}
