"""Study 2, fashion: the network, what is kept for the GIFs, conclusions, from the command line to the report."""
import types

import numpy as np
import pytest
import small_studies
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from PIL import Image
from small_studies import same_weights, texts
from torch import nn
from torch.distributions import Normal, kl_divergence

from common.errors import InputError
from studies import data, fashion, figures, metrics, sampling, training

STILLS = {"dataset", "losses", "reconstructions", "samples", "frozen_64", "frozen_16", "beta_losses",
          "beta_reconstructions", "beta_samples", "beta_latents"}
GIFS = {"vae_beta_0.5_evolution", "vae_beta_1.0_evolution", "vae_betas_evolution"}


@pytest.fixture(scope="module")
def studied(draw, tmp_path_factory):
    """The whole study in this process with two seeds, as if the four kinds of images were those of Fashion-MNIST."""
    folder, quick = tmp_path_factory.mktemp("study"), {"feature_steps": 12, "betas": (0.5, 1.0)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion.FashionMNIST, "classes", list("0123"))
        patch.setitem(fashion.PUBLISHED, "losses", {"epoch 2, training": 240.46, "epoch 2, held-out": 242.31,
                                                    "β = 0.5, reconstruction loss": 209.79, "β = 0.5, KL": 6.12})
        return small_studies.studied(quick, "fashion", small_studies.write_drawn(draw, folder), folder / "out",
                                     "--epochs", "2", "--seed", "7", "--seeds", "2", "--signature", "drawn for a test")


def test_the_network_and_the_training_are_those_of_the_description():
    assert fashion.Settings() == fashion.Settings(
        lr=1e-3, batch_size=128, epochs=25, latent=16, beta=1.0, seed=42, betas=(0.1, 0.5, 1.0), beta_latent=2,
        beta_classes=(0, 1, 7), beta_epochs=20, sigmas=(0.1, 0.5, 1.0))
    model, x = fashion.VAE().eval(), torch.rand(3, 1, 28, 28)
    assert texts([*model.encoder, *model.decoder, model.fc_mu, model.fc_logvar]) == texts([
        nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(True),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(True), nn.Flatten(),
        nn.Linear(16, 3136), nn.Unflatten(1, (64, 7, 7)), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32),
        nn.ReLU(True), nn.ConvTranspose2d(32, 1, 4, 2, 1), nn.Linear(3136, 16), nn.Linear(3136, 16)])
    assert torch.equal(model.encode(x), model.fc_mu(model.encoder(x))) and model.latent == 16
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x))) and model.reconstruct(x).shape == x.shape
    assert type(model.configure_optimizers()) is torch.optim.Adam


def test_cross_entropy_plus_beta_kl_is_minimised_and_its_mean_logged():
    torch.manual_seed(0)
    model, x, logged = fashion.VAE(4, beta=0.3), torch.rand(6, 1, 28, 28), {}
    model.log_losses = lambda part, losses, n: logged.update({"part": part, "n": n, **losses})
    torch.manual_seed(1)
    loss = model.training_step((x, None), 0)
    torch.manual_seed(1)
    mu, logvar = model.posterior(x)
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    reconstruction = F.binary_cross_entropy(model.decode(z), x, reduction="sum").item()
    kl = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum().item()
    assert loss.item() == pytest.approx(reconstruction + 0.3 * kl, rel=1e-4)
    assert logged.pop("part") == "train" and logged.pop("n") == 6
    assert {name: value.item() for name, value in logged.items()} == {
        "loss": pytest.approx(loss.item() / 6, rel=1e-5), "kl": pytest.approx(kl / 6, rel=1e-4),
        "reconstruction": pytest.approx(reconstruction / 6, rel=1e-4)}


def test_classes_are_the_asked_ones_or_the_first_three_and_two_at_least():
    def images(*labels):
        pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28)
        return data.Images(pixels, torch.tensor(labels), list("abcdefgh"), [])

    every, wanted = images(0, 7, 3, 1, 7, 2, 5), (7, 0, 1)
    train, test = fashion.of_classes(every, every, wanted)
    assert train.labels.tolist() == test.labels.tolist() == [0, 2, 1, 2] and train.classes == ["a", "b", "h"]
    assert train.pixels[:, 0, 0, 0].tolist() == [0, 1, 3, 4]
    assert fashion.first_of_each(train, 1).pixels[:, 0, 0, 0].tolist() == [0, 3, 1]
    train, test = fashion.of_classes(every, images(2, 7, 3, 5, 4), wanted)
    assert train.classes == test.classes == ["c", "d", "f"] and test.labels.tolist() == [0, 1, 2]
    assert fashion.of_classes(every, images(2, 7), wanted)[0].classes == ["c", "h"]
    with pytest.raises(InputError, match="expected two classes or more both trained on and held out, found 1$"):
        fashion.of_classes(every, images(2, 4), wanted)


def test_frozen_latents_have_mean_zero_and_the_asked_deviation():
    model = fashion.VAE(3)
    model.decode = lambda z: z
    found = fashion.frozen(model, (0.1, 1.0), 5000, 0)
    prior, small, large = found.values()
    assert list(found) == ["z ~ N(0, I)", "μ = 0, σ = 0.1", "μ = 0, σ = 1.0"] and prior.shape == (5000, 3)
    assert torch.allclose(10 * small, large, atol=1e-5) and not torch.allclose(large, prior)
    for z in (prior, large):
        assert z.mean().item() == pytest.approx(0, abs=0.03) and z.std().item() == pytest.approx(1, abs=0.03)


def test_the_untrained_features_do_not_depend_on_what_was_drawn_before():
    x = (255 * torch.rand(4, 1, 28, 28)).byte()
    features, again = (fashion.untrained_features(3)(x) for _ in range(2))
    assert features.shape == (4, 128) and torch.equal(features, again)


def test_the_weights_of_the_evaluation_come_from_the_file(tmp_path, monkeypatch):
    model, path = fashion.VAE(3), tmp_path / "vae_standard.pth"
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    monkeypatch.setattr(fashion, "write_files", lambda payloads: torch.save(zeros, str(*payloads)))
    fresh = fashion.reloaded(model, path)
    assert not fresh.training and (fresh.decode(torch.rand(2, 3)) == 0.5).all()


def test_frames_show_the_current_batch_which_is_that_of_all_beta(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "FRAMES", 7)
    labels, seen = np.arange(60) % 3, {}
    images = small_studies.labelled(draw(labels, 3), labels)

    class SampleCallback(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            with torch.no_grad():
                seen[trainer.global_step] = *batch, module.eval().encode(batch[0])
            module.train()

    def train(beta, *more):
        snapshots = fashion.LatentSnapshotCallback()
        torch.manual_seed(5)
        model = training.Run(tmp_path / str(beta), "cpu", threads=1).fit(
            "vae", fashion.VAE(2, beta), images, images, epochs=3, batch_size=12, seed=5, callbacks=[snapshots, *more])
        return model, snapshots.frames

    (model, frames), (_, other) = train(0.5, SampleCallback()), train(4.0)
    assert [(step, frame["epoch"], frame["batch"], frame["batches"]) for step, frame in frames.items()] == [
        (0, 1, 0, 5), (1, 1, 1, 5), (2, 1, 2, 5), (4, 1, 4, 5), (6, 2, 1, 5), (10, 2, 5, 5), (15, 3, 5, 5)]
    for step, frame in frames.items():
        x, y, means = seen[step or 1]
        assert torch.equal(frame["labels"].long(), y) and frame["means"].shape == (12, 2)
        assert torch.equal(frame["originals"] / 255, x[:8]) and frame["reconstructions"].shape == (8, 1, 28, 28)
        assert torch.equal(frame["means"], means) == (step > 0)  # the first frame is of the untrained network
        assert all(torch.equal(frame[key], other[step][key]) for key in ("labels", "originals"))
        assert torch.equal(frame["means"], other[step]["means"]) == (step == 0)
    shown = model.reconstruct(frames[15]["originals"] / 255)
    assert torch.equal(frames[15]["reconstructions"], (255 * shown).round().byte())


def test_a_gif_has_about_forty_frames_closer_together_at_first():
    snapshots = fashion.LatentSnapshotCallback()
    snapshots.on_train_start(types.SimpleNamespace(estimated_stepping_batches=2820), None)
    steps = sorted(set(snapshots.steps))
    assert 36 <= len(steps) <= 44 and steps[:6] == [1, 2, 3, 4, 5, 6] and steps[-1] == 2820
    ratios = [after / before for before, after in zip(steps[20:], steps[21:])]
    assert max(ratios) / min(ratios) < 1.02


def test_frames_of_a_gif_have_the_axes_of_the_widest_side_by_side():
    def frames(scale):
        return {step: {"epoch": 2, "batch": step % 5, "batches": 5, "means": scale * step * torch.eye(2),
                       "labels": torch.tensor([0, 1]), "originals": torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
                       "reconstructions": torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)} for step in (0, 3, 7)}

    both = {"β = 0.1": frames(2), "β = 1.0": frames(1)}
    drawn, said = list(fashion.latent_frames(both, ["a", "b"])), fashion.evolution(both)
    for figure, moment in zip(drawn, ("before training", "epoch 2, batch 3 of 5", "epoch 2, batch 2 of 5")):
        assert {f"β = {beta}, {moment}" for beta in ("0.1", "1.0")} <= {text.get_text() for text in figure.texts}
    limits = {axes.get_xlim() + axes.get_ylim() for figure in drawn for axes in figure.axes}
    assert len(limits) == 1 and limits.pop() == pytest.approx((-14.7, 14.7, -14.7, 14.7))
    wide = 7 / 2 ** 0.5  # of 7 and 0, and of 0 and 7
    assert "is –, – in the first frame" in said
    assert f"standard deviation of 0.0, 0.0 and {2 * wide:.2g}, {wide:.2g}," in said
    alone = list(fashion.latent_frames({"β = 1.0": frames(0.1)}, ["a", "b"]))
    assert len(alone) == 3 and alone[0].axes[0].get_xlim() == (-2.2, 2.2)  # so that the circles are seen


def _concluded(change=None, epochs=25, published=True, images=60_000, weak=False, **settings):
    """{what is published: agrees} for numbers as the document describes them, after `change(numbers, history)`."""
    history = [{"train_loss": 300 - min(60, 10 * i), "test_loss": 302 - min(60, 10 * i),
                "train_kl": 15 - 8 / (i + 1) ** 2} for i in range(epochs)]
    real = "sharpness of reconstructions", "sharpness of samples", "diversity of samples"
    rows = ("KL, training", "reconstruction loss, training", *real, "silhouette of the classes")
    beta = {"0.1": dict(zip(rows, (8.76, 205, 0.05, 0.05, 5, 0.3))), "0.5": dict(zip(rows, (6.12, 210, 0.04, 0.04, 6,
            0.4))), "1.0": dict(zip(rows, (5.28, 215, 0.03, 0.03, 7, 0.5)))}
    numbers = {
        "beta": beta, "losses": dict(fashion.PUBLISHED["losses"]), "vae": dict(zip(real, (0.05, 0.04, 9.0))),
        "frozen": {"z ~ N(0, I)": 8.0, "μ = 0, σ = 0.1": 1.0, "μ = 0, σ = 0.5": 5.0, "μ = 0, σ = 1.0": 9.0},
        "fid": {"samples, untrained features": 0.001, "samples, trained features": 25.0,
                "training images, trained features": 1.0}}
    if change:
        change(numbers, history)
    vae = fashion.VAE(2)
    vae.history = history
    results = {"numbers": metrics.summarise([numbers]), "data": {"train": images}, "features": {"weak": weak},
               "published": fashion.PUBLISHED if published else {}, "real": {"vae": dict(zip(real, (0.2, 0.2, 10.0)))}}
    study = types.SimpleNamespace(seeds=[42], settings=fashion.Settings(**settings))
    claims = fashion.conclusions(study, {"models": {(42, "vae"): vae}}, results)
    assert len({claim.published for claim in claims}) == len(claims)
    return {claim.published: claim.agrees for claim in claims}


def _reverse(numbers, history):
    """Turns each number and each curve that decides on a claim into its opposite."""
    beta = numbers["beta"]
    beta["0.1"], beta["1.0"] = beta["1.0"], beta["0.1"]
    numbers["losses"]["β = 0.5, KL"] *= 1.06
    numbers["vae"] = {"sharpness of reconstructions": 0.3, "sharpness of samples": 0.2, "diversity of samples": 5.0}
    numbers["frozen"] = dict(zip(numbers["frozen"], (9.001, 1.0, 0.5, 9.0)))
    numbers["fid"] = dict(zip(numbers["fid"], (0.3, 1.9, 1.0)))
    for i, row in enumerate(history):
        row.update(test_loss=row["test_loss"] + 3 * i, train_kl=i + 1)


def test_each_conclusion_follows_from_the_numbers():
    found, reversed_ = _concluded(), _concluded(_reverse)
    assert len(found) == 16 and set(found.values()) == {True}
    assert set(reversed_) == set(found) and set(reversed_.values()) == {False}


CURVES, KL = "Train and test loss curves are close and smoothly decreasing", "KL term stabilises at a positive value"
LOSSES, PRIOR = "The losses in the tables below", "The standard z ~ N(0, I) case falls between σ = 0.5 and σ = 1.0"


@pytest.mark.parametrize(("change", "said"), [
    (lambda numbers, history: history[-1].update(test_loss=245.0), CURVES),  # the last epoch alone
    (lambda numbers, history: history[-1].update(train_loss=290.0, test_loss=290.0), CURVES),
    (lambda numbers, history: history[-1].update(train_kl=14.0), KL),
    (lambda numbers, history: [row.update(train_kl=0.05) for row in history], KL),  # a collapsed posterior
    (lambda numbers, history: numbers["losses"].update({"epoch 5, training": 249.0}), LOSSES),
    (lambda numbers, history: numbers["frozen"].update({"z ~ N(0, I)": 9.001}), PRIOR)])
def test_one_number_can_contradict_a_conclusion(change, said):
    assert _concluded(change)[said] is False


def test_conclusions_are_undecided_where_the_numbers_cannot_decide():
    assert LOSSES not in _concluded(published=False) and len(_concluded(published=False)) == 15
    assert _concluded(images=3000)[LOSSES] is None and _concluded(_reverse, beta_epochs=25)[LOSSES] is None
    assert [agrees for agrees in _concluded(epochs=1).values() if agrees is not True] == [None, None]  # loss curves, KL
    assert list(_concluded(weak=True).values()).count(None) == 1  # the FID of trained features

    def alike(numbers, _):
        for found in numbers["beta"].values():
            found.update({"silhouette of the classes": None, "reconstruction loss, training": 210.0})

    assert [said for said, agrees in _concluded(alike).items() if agrees is None] == [
        "As β increases, recon loss slightly increases", "Cluster separation: Poor, Moderate, Good"]


def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    found, numbers, text = studied.results, studied.results["numbers"], studied.text
    assert found["beta_data"]["classes"] == ["0", "1", "2"] and found["beta_data"]["held_out"] == 48
    assert set(numbers["beta"]) == {"0.5", "1.0"}
    for beta, each in ((1.0, numbers["vae"]), *((float(beta), each) for beta, each in numbers["beta"].items())):
        for part in ("training", "held-out"):
            total = each[f"reconstruction loss, {part}"]["mean"] + beta * each[f"KL, {part}"]["mean"]
            assert each[f"total loss, {part}"]["mean"] == pytest.approx(total, rel=1e-5)
    frozen = [each["mean"] for each in numbers["frozen"].values()]
    assert 0 < frozen[1] < frozen[2] < frozen[3] and frozen[0] == pytest.approx(frozen[3], rel=0.1)
    assert len(numbers["fid"]) == 6 and numbers["fid"]["samples, trained features"]["mean"] > 0
    last = [found["history"][f"{seed} vae"][-1] for seed in (7, 8)]
    assert [row["epoch"] for row in last] == [2, 2]
    assert numbers["losses"]["epoch 2, held-out"]["values"] == [row["test_loss"] for row in last]
    assert numbers["losses"]["β = 0.5, KL"] == numbers["beta"]["0.5"]["KL, training"]
    assert set(studied.models) == {"features", *(
        f"{name}_seed{seed}" for name in ("vae", "beta0.5", "beta1.0") for seed in (7, 8))}
    assert (studied.models["beta0.5_seed7"].latent, studied.models["beta0.5_seed7"].hparams.beta) == (2, 0.5)
    model = fashion.VAE(latent_dim=16).eval()  # of the first seed, saved as plain weights
    model.load_state_dict(torch.load(str(studied.folder / "vae_standard.pth"), weights_only=True))
    assert same_weights(model, studied.models["vae_seed7"])
    drawn = metrics.mean_pairwise_l2(fashion.frozen(model, (), 1000, 7)["z ~ N(0, I)"])
    assert numbers["frozen"]["z ~ N(0, I)"]["values"][0] == pytest.approx(drawn, rel=1e-4)
    assert studied.figures == {*(f"{name}.png" for name in STILLS), *(f"{name}.gif" for name in GIFS)}
    for name in GIFS:
        with Image.open(str(studied.folder / f"figures/{name}.gif")) as image:
            assert image.n_frames == 5  # before the training, and after each of two epochs of two batches
    assert "images of drawn.npz" in text
    for row, published, ours in (
            ("epoch 2, held-out", "242.31", f"{numbers['losses']['epoch 2, held-out']['mean']:.5g} ± "),
            ("β = 0.5, reconstruction loss", "209.79", ""), ("β = 0.5, KL", "6.12", "")):
        cells = [cell.split("<")[0] for cell in text.split(f'<th scope="row">{row}')[1].split("<td>")[1:3]]
        assert cells[0] == published and cells[1].startswith(ours)
    *claims, losses = found["conclusions"]
    assert losses["published"] == LOSSES and losses["agrees"] is None  # 256 images
    for claim in claims:
        assert text.count(claim["found"]) >= 2, claim  # in the table of conclusions, and below a figure
    assert text.count("The silhouette of the classes is") == 3 and text.count("in the first frame") == 3  # of each GIF


def test_two_latent_dimensions_are_traversed_as_a_grid(monkeypatch):
    """z_1 grows to the right and z_2 upwards."""
    shown = {}
    monkeypatch.setattr(figures, "grid_figure", lambda groups, columns: shown.update(groups, columns=columns))
    model = fashion.VAE(2).eval()
    sampling.traversal_figure(model)
    (images,) = (value for title, value in shown.items() if title.startswith("z1 to the right"))
    assert shown["columns"] == 21 and images.shape == (441, 1, 28, 28)
    corners = torch.tensor([[-3.0, 3.0], [3.0, 3.0], [-3.0, -3.0], [3.0, -3.0]])
    assert torch.allclose(images[[0, 20, 420, 440]], model.decode(corners), atol=1e-5)
