"""Study 1, autoencoder: from the command line to the report."""
import json
import signal
import time
import types

import pytest
import small_studies
import torch
from torch import nn

from studies import autoencoder, losses

VARIANTS = ("described", "bce")
WORDS = ("--epochs", "3", "--seed", "3")


@pytest.fixture(scope="module")
def studied(draw, tmp_path_factory):
    """The whole study in this process, two seeds and both variants."""
    source, folder = small_studies.write_drawn(draw, tmp_path_factory.mktemp("drawn")), tmp_path_factory.mktemp("study")
    code, said = small_studies.study(
        {"feature_steps": 8}, "autoencoder", source, folder / "new/out", *WORDS, "--seeds", "2", "--variant", "bce",
        "--signature", "drawn for $test_^$ \udce9")
    return types.SimpleNamespace(code=code, said=said, source=source, **vars(small_studies.left(folder / "new/out")))


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


def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
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
    assert studied.checkpoints == {"features.ckpt", *(
        f"{kind}_{variant}_seed{seed}.ckpt" for kind in ("ae", "vae") for variant in VARIANTS for seed in (3, 4))}
    assert studied.figures == {f"{name}_{variant}.png" for name in ("loss", "reconstructions", "samples", "tsne")
                               for variant in VARIANTS}
    assert studied.said.pop() == "measuring" and all(": epoch " in line for line in studied.said)
    for shown in ("mean ± standard deviation of 2 seeds", "64 held-out images", "VAE, bce"):
        assert shown in studied.text


def test_two_processes_give_the_losses_of_one(studied, tmp_path, environment):
    process = small_studies.process({"feature_steps": 8}, "autoencoder", studied.source, tmp_path, environment, *WORDS,
                                    "--devices", "2")
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0 and stdout.count("wrote") == 1, stderr
    assert all(": epoch " in line or line == "measuring" for line in stderr.splitlines()), stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["device"].startswith("2 x cpu")
    for kind, bound in (("AE", 1e-4), ("VAE", 0.05)):  # the noise of a VAE is another with two processes
        both = (found["history"][f"described 3 {kind}"] for found in (results, studied.results))
        for two, one in zip(*both):
            for name in ("train_loss", "test_loss"):
                assert two[name] == pytest.approx(one[name], rel=bound), (kind, one["epoch"])


def test_ctrl_c_ends_with_130_and_one_line_and_leaves_no_half_file(studied, tmp_path, environment):
    process = small_studies.process({"feature_steps": 8, "epochs": 1000}, "autoencoder", studied.source, tmp_path,
                                    environment)
    while not (tmp_path / "out/checkpoints/ae_described_seed0.ckpt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    *rows, last = process.communicate(timeout=600)[1].splitlines()
    assert process.returncode == 130 and last.endswith("interrupted; --resume continues from the last epoch")
    assert all(": epoch " in line for line in rows)
    assert {path.name for path in (tmp_path / "out").rglob("*.*") if path.is_file()} == {
        "features.ckpt", "ae_described_seed0.ckpt", "metrics.csv", "hparams.yaml"}
