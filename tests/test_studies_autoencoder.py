"""Study 1, autoencoder: the networks, the conclusions, from the command line to the report."""
import dataclasses
import html
import json
import signal
import time
import types

import pytest
import small_studies
import torch
from torch import nn

from studies import autoencoder, data, losses, metrics, sampling, training

VARIANTS = ("described", "bce")
WORDS = ("--epochs", "3", "--seed", "3")


@pytest.fixture(scope="module")
def studied(draw, tmp_path_factory):
    """The whole study in this process, two seeds and both variants."""
    source, folder = small_studies.write_drawn(draw, tmp_path_factory.mktemp("drawn")), tmp_path_factory.mktemp("study")
    code, said = small_studies.study(
        {"feature_steps": 8}, "autoencoder", source, folder / "new/out", *WORDS, "--seeds", "2", "--variant", "bce",
        "--signature", "drawn for $test_^$ \udce9")
    return types.SimpleNamespace(code=code, said=said, source=source, folder=folder / "new/out",
                                 **vars(small_studies.left(folder / "new/out")))


def test_networks_and_losses_are_those_of_the_description():
    settings = autoencoder.Settings()
    assert (settings.lr, settings.batch_size, settings.epochs, settings.loss) == (1e-3, 128, 50, "mse")
    ae, vae = autoencoder.Autoencoder(settings, False), autoencoder.Autoencoder(settings, True)
    for net, code in ((ae, 32), (vae, 64)):
        assert [(layer.in_features, layer.out_features) for layer in net.modules() if isinstance(layer, nn.Linear)] == [
            (784, 128), (128, 64), (64, code), (32, 64), (64, 128), (128, 784)]
        assert sum(isinstance(layer, nn.ReLU) for layer in net.modules()) == 4
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


def _curves(ae, vae, kl):
    """Models of one seed with these held-out losses."""
    models = {}
    for kind, rows in (("AE", {"test_loss": ae}), ("VAE", {"test_loss": vae, "test_kl": kl})):
        models["described", 0, kind] = types.SimpleNamespace(curve=rows.get)
    return models


def _claims(ae, vae, models, weak=False):
    """The six Claims for numbers of the AE and the VAE."""
    numbers = metrics.summarise([{"AE": {**dict.fromkeys(autoencoder.ROWS, 1.0), **ae},
                                  "VAE": {**dict.fromkeys(autoencoder.ROWS, 1.0), **vae}}])
    results = {"numbers": {"described": numbers}, "features": {"weak": weak}, "real": {"fid": 0.5}}
    study = types.SimpleNamespace(seeds=[0], settings=autoencoder.Settings())
    found = autoencoder.conclusions(study, models, results)
    assert all(claim.agrees in (True, False, None) for claim in found) and len(found) == 6
    return found


def test_the_documents_conclusions_are_judged_by_the_numbers():
    fast, slow = [9.0, 4, 3, 2.2, 2, 2, 1.9, 1.9, 1.8, 1.8], [9.0, 8, 7, 6, 5, 4.5, 4, 3.5, 3, 2]
    rising = [1.0, 4, 6, 6.5, 7, 7.3, 7.5, 7.6, 7.7, 7.8]
    ae = {"loss": 1.8, "reconstruction": 1.8, "kl": None, "mse": 0.01, "fid": 90.0, "silhouette": 0.1, "tsne": 0.2}
    vae = {"loss": 9.0, "reconstruction": 3.0, "kl": 6.0, "mse": 0.02, "fid": 30.0, "silhouette": 0.2, "tsne": 0.4}
    yes = _claims(ae, vae, _curves(fast, slow, rising))
    assert [claim.agrees for claim in yes] == [True] * 6
    loss, kl, better, samples, clusters, structure = yes
    assert loss.found == ("The AE's held-out loss is 9.000, 3.000, 1.900, 1.800 after 1, 3, 8, 10 epochs. The VAE's "
                          "ends at 9.000, of which 3.000 are reconstruction.")
    assert "1.000, 6.000, 7.600, 7.800 after" in kl.found and "66.7 %" in kl.found
    assert "0.01000 for the AE and 0.02000 for the VAE" in better.found and "training images 0.5000" in samples.found
    assert "0.2000 for the AE and 0.4000" in clusters.found and "0.1000 for the AE and 0.2000" in structure.found
    swapped = _claims({**vae, "kl": None}, {**ae, "kl": 1.0}, _curves(slow, fast, slow))
    assert [claim.agrees for claim in swapped] == [False] * 6
    alike = _claims(ae, {**ae, "kl": 1.0, "tsne": None}, _curves(fast, fast, rising), weak=True)
    assert [claim.agrees for claim in alike] == [None, True, None, None, None, None]
    short = _claims(ae, vae, _curves(fast[:4], slow[:4], rising[:4]))
    assert [claim.agrees for claim in short] == [None, None, True, True, True, True]
    one = _claims(ae, vae, _curves(fast[:1], slow[:1], rising[:1]))
    assert [claim.agrees for claim in one][:2] == [None, None] and "9.000 after 1 epochs" in one[0].found


def test_every_checkpoint_loads_and_decodes_noise(studied, tmp_path):
    for name in sorted(studied.checkpoints):
        path = studied.folder / "checkpoints" / name
        model = training.load_model(path)
        assert (model.latent == 32) is (name != "features.ckpt")
        again = type(model).load_from_checkpoint(str(path))
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
        if model.latent:
            assert (model.variational, model.settings.loss) == (
                name.startswith("vae"), "bce" if "_bce_" in name else "mse")
            assert model.settings == dataclasses.replace(
                autoencoder.Settings(**autoencoder.QUICK), loss=model.settings.loss, epochs=3, feature_steps=8, seed=3)
            assert model.decode(torch.zeros(2, 32)).shape == (2, 1, 28, 28) and len(model.history) == 3
    for tool in ("sample", "traverse"):
        sampling.main(tool, [str(studied.folder / "checkpoints/vae_bce_seed4.ckpt"), "--out", str(tmp_path / "a.png")])
        assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


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
        assert all(-1 <= value <= 1 for each in (ae, vae) for value in each["tsne"]["values"])
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
    threads, *rows, last = studied.said
    assert (threads, last) == ("1 thread on cpu", "measuring") and all(": epoch " in line for line in rows)
    for shown in ("mean ± standard deviation of 2 seeds", "64 held-out images", "VAE, bce", "256 images of drawn.npz",
                  "summed over the pixels", "weigh 784 times as much"):
        assert shown in studied.text
    assert [claim["published"][:7] for claim in found["conclusions"]] == [
        "AE loss", "KL Dive", "AE achi", "[AE] la", "VAE Lat", "AE Late"]
    for claim in found["conclusions"]:  # in the table, and below the figure that it is about
        assert studied.text.count(html.escape(claim["found"], quote=False).replace("'", "&#39;")) >= 2


def test_the_number_of_the_t_sne_is_that_of_the_embedding_in_the_figure(studied):
    model = training.load_model(studied.folder / "checkpoints/vae_described_seed3.ckpt")
    train, test, _ = data.read_split([studied.source], 28, 1, 3, True)
    settings = autoencoder.Settings(**{**autoencoder.QUICK, "tsne_points": 40})
    study = types.SimpleNamespace(train=train, test=test, settings=settings, args=types.SimpleNamespace(seed=3))
    found = autoencoder.measure_model(model, study, lambda images: images.float().flatten(1)[:, 300:304], 3)
    assert model.tsne.shape == (40, 2)
    assert found["tsne"] == metrics.silhouette(model.tsne, test.subsample(40, 3).labels)


def test_two_processes_give_the_losses_of_one(studied, tmp_path, environment):
    process = small_studies.process({"feature_steps": 8}, "autoencoder", studied.source, tmp_path, environment, *WORDS,
                                    "--threads", "1", "--devices", "2")
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0 and stdout.count("wrote") == 1, stderr
    threads, *rows, last = stderr.splitlines()
    assert (threads, last) == ("1 thread on cpu", "measuring") and all(": epoch " in line for line in rows), stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["device"].startswith("2 x cpu")
    for kind, bound in (("AE", 1e-4), ("VAE", 0.05)):  # the noise of a VAE is another with two processes
        both = (found["history"][f"described 3 {kind}"] for found in (results, studied.results))
        for two, one in zip(*both):
            for name in ("train_loss", "test_loss"):
                assert two[name] == pytest.approx(one[name], rel=bound), (kind, one["epoch"])


def test_ctrl_c_ends_with_130_and_one_line_and_leaves_no_half_file(studied, tmp_path, environment):
    process = small_studies.process({"feature_steps": 8, "epochs": 1000}, "autoencoder", studied.source, tmp_path,
                                    environment, "--threads", "1")
    while not (tmp_path / "out/checkpoints/ae_described_seed0.ckpt").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    threads, *rows, last = process.communicate(timeout=600)[1].splitlines()
    assert process.returncode == 130 and last.endswith("interrupted; --resume continues from the last epoch")
    assert threads == "1 thread on cpu" and all(": epoch " in line for line in rows)
    assert {path.name for path in (tmp_path / "out").rglob("*.*") if path.is_file()} == {
        "study.json", "features.ckpt", "features.csv", "ae_described_seed0.ckpt", "ae_described_seed0.csv"}
