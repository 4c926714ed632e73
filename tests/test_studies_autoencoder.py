"""Study 1, autoencoder: the networks, the conclusions, from the command line to the report."""
import signal
import time
import types

import pytest
import small_studies
import torch
from small_studies import texts
from torch import nn

from studies import autoencoder, data, losses, metrics

VARIANTS, QUICK = ("described", "bce"), {"feature_steps": 8}


@pytest.fixture(scope="module")
def studied(draw, tmp_path_factory):
    """The whole study in this process, two seeds and both variants."""
    folder = tmp_path_factory.mktemp("study")
    return small_studies.studied(
        QUICK, "autoencoder", small_studies.write_drawn(draw, folder), folder / "new/out", "--epochs", "3", "--seed",
        "3", "--seeds", "2", "--variant", "bce", "--signature", "drawn for $test_^$ \udce9")


def test_networks_and_losses_are_those_of_the_description():
    settings = autoencoder.Settings()
    assert settings == autoencoder.Settings(lr=1e-3, batch_size=128, epochs=50, loss="mse")
    ae, vae = autoencoder.Autoencoder(settings, False), autoencoder.Autoencoder(settings, True)
    for net, code in ((ae, 32), (vae, 64)):
        assert texts([*net.encoder, *net.decoder]) == texts([
            nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, code), nn.Linear(32, 64),
            nn.ReLU(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 784), nn.Unflatten(1, (1, 28, 28))])
        assert type(net.configure_optimizers()) is torch.optim.Adam and net.latent == 32
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


def _claims(ae, vae, loss, kl, weak=False):
    """(verdicts, what is found) of the six Claims for numbers of the AE and the VAE, a held-out loss and a KL."""
    numbers = metrics.summarise([{kind: {**dict.fromkeys(autoencoder.ROWS, 1.0), **found}
                                  for kind, found in (("AE", ae), ("VAE", vae))}])
    results = {"numbers": {"described": numbers}, "features": {"weak": weak}, "real": {"fid": 0.5}}
    model = types.SimpleNamespace(curve={"test_loss": loss, "test_kl": kl}.get)
    found = autoencoder.conclusions(types.SimpleNamespace(
        seeds=[0], variants={"described": autoencoder.Settings()}), {
        ("described", 0, kind): model for kind in ("AE", "VAE")}, results)
    return [claim.agrees for claim in found], [claim.found for claim in found]


def test_the_documents_conclusions_are_judged_by_the_numbers():
    fast, slow = [9.0, 4, 3, 2.2, 2, 2, 1.9, 1.9, 1.8, 1.8], [9.0, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2]
    rising = [1.0, 4, 6, 6.5, 7, 7.3, 7.5, 7.6, 7.7, 7.8]
    ae = {"loss": 1.8, "reconstruction": 1.8, "kl": None, "mse": 0.01, "fid": 90.0, "silhouette": 0.1, "tsne": 0.2}
    vae = {"loss": 9.0, "reconstruction": 3.0, "kl": 6.0, "mse": 0.02, "fid": 30.0, "silhouette": 0.2, "tsne": 0.4}
    verdicts, (loss, kl, better, samples, clusters, structure) = _claims(ae, vae, fast, rising)
    assert verdicts == [True] * 6
    assert loss == ("The AE's held-out loss is 9.000, 3.000, 1.900, 1.800 after 1, 3, 8, 10 epochs. The VAE's ends at "
                    "9.000, of which 3.000 are reconstruction.")
    assert "1.000, 6.000, 7.600, 7.800 after" in kl and "66.7 %" in kl
    assert "0.01000 for the AE and 0.02000 for the VAE" in better and "training images 0.5000" in samples
    assert "0.2000 for the AE and 0.4000" in clusters and "0.1000 for the AE and 0.2000" in structure
    assert _claims({**vae, "kl": None}, {**ae, "kl": 1.0}, slow, slow)[0] == [False] * 6
    alike = {**ae, "kl": 1.0, "tsne": None}
    assert _claims(ae, alike, fast, rising, weak=True)[0] == [None, True, None, None, None, None]
    for epochs in (4, 1):  # too short
        verdicts, found = _claims(ae, vae, fast[:epochs], rising[:epochs])
        assert verdicts == [None, None, True, True, True, True]
    assert "9.000 after 1 epochs" in found[0]


def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    found = studied.results
    assert found["seeds"] == [3, 4] and found["quick"] and found["seconds"] > 0
    assert found["data"]["train"] == 256 and found["data"]["held_out"] == 64 and found["data"]["skipped"] == 0
    assert found["settings"]["epochs"] == 3 and found["settings"]["lr"] == 1e-3 and found["precision"] == "32-true"
    assert found["device"].startswith("cpu") and "\\udce9" in found["command"]
    assert {"python", "torch", "lightning", "torchmetrics"} <= set(found["versions"])
    for variant in VARIANTS:
        ae, vae = (found["numbers"][variant][kind] for kind in ("AE", "VAE"))
        assert all(len(each["mse"]["values"]) == 2 and each["mse"]["sd"] > 0 for each in (ae, vae))
        assert all(-1 <= value <= 1 for each in (ae, vae) for value in each["tsne"]["values"])
        assert vae["kl"]["mean"] > 0 and ae["kl"]["mean"] is None and vae["fid"]["mean"] > found["real"]["fid"]
        history = found["history"][f"{variant} 4 VAE"]
        assert [row["epoch"] for row in history] == [1, 2, 3] and vae["loss"]["values"][1] == history[2]["test_loss"]
        assert history[2]["train_loss"] < history[0]["train_loss"]
    assert found["numbers"]["bce"]["AE"]["loss"]["mean"] > 2 * found["numbers"]["described"]["AE"]["loss"]["mean"]
    assert found["features"]["accuracy"] > found["features"]["guessing"] == 0.25
    assert set(studied.models) == {"features", *(
        f"{kind}_{variant}_seed{seed}" for kind in ("ae", "vae") for variant in VARIANTS for seed in (3, 4))}
    for name, model in studied.models.items():
        assert (model.latent == 32) is (name != "features")
        if model.latent:
            assert model.variational is name.startswith("vae") and len(model.history) == 3
            assert model.settings == autoencoder.Settings(**{
                **autoencoder.QUICK, **QUICK, "epochs": 3, "seed": 3, "loss": "bce" if "_bce_" in name else "mse"})
    assert studied.figures == {f"{name}_{variant}.png" for name in ("loss", "reconstructions", "samples", "tsne")
                               for variant in VARIANTS}
    for shown in ("mean ± standard deviation of 2 seeds", "64 held-out images", "VAE, bce", "256 images of drawn.npz",
                  "summed over the pixels", "weigh 784 times as much"):
        assert shown in studied.text
    assert [claim["published"][:7] for claim in found["conclusions"]] == [
        "AE loss", "KL Dive", "AE achi", "[AE] la", "VAE Lat", "AE Late"] * 2
    assert [claim["found"].split(": ")[0] for claim in found["conclusions"]] == ["described"] * 6 + ["bce"] * 6
    for claim in found["conclusions"]:  # in the table, and below the figure that it is about
        assert studied.text.count(claim["found"]) >= 2


def test_the_t_sne_is_measured_on_the_embedding_in_the_figure(studied):
    model = studied.models["vae_described_seed3"]
    train, test, _ = data.read_split([studied.source], 28, 1, 3, True)
    settings = autoencoder.Settings(**{**autoencoder.QUICK, "tsne_points": 40})
    study = types.SimpleNamespace(train=train, test=test, settings=settings, args=types.SimpleNamespace(seed=3))
    found = autoencoder.measure_model(model, study, lambda images: images.float().flatten(1)[:, 300:304], 3)
    assert model.tsne.shape == (40, 2)
    assert found["tsne"] == metrics.silhouette(model.tsne, test.subsample(40, 3).labels)


def test_two_processes_give_the_losses_of_one(studied, tmp_path, environment):
    two, one = small_studies.two_processes(QUICK, "autoencoder", studied.source, tmp_path, environment, "--epochs", "3",
                                           "--seed", "3"), studied.results
    for kind, bound in (("AE", 1e-4), ("VAE", 0.05)):  # the noise of a VAE is another with two processes
        for a, b in zip(two["history"][f"described 3 {kind}"], one["history"][f"described 3 {kind}"]):
            for name in ("train_loss", "test_loss"):
                assert a[name] == pytest.approx(b[name], rel=bound), (kind, a["epoch"])


def test_ctrl_c_ends_with_130_and_one_line_and_no_half_file(studied, tmp_path, environment):
    process = small_studies.process({**QUICK, "epochs": 1000}, "autoencoder", studied.source, tmp_path, environment)
    while not (tmp_path / "out/checkpoints/ae_described_seed0.ckpt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    small_studies.assert_progress(process.communicate(timeout=600)[1].splitlines(),
                                  "interrupted; --resume continues from the last epoch")
    assert process.returncode == 130
    assert {path.name for path in (tmp_path / "out").rglob("*.*") if path.is_file()} == {
        "study.json", "features.ckpt", "features.csv", "ae_described_seed0.ckpt", "ae_described_seed0.csv"}
