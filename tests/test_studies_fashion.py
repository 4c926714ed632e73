"""Study 2, fashion: the network as described, what is kept for the GIFs, conclusions, from the command line to the
report."""
import functools
import html
import types

import pytest
import small_studies
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import Callback
from PIL import Image
from torch import nn

from common.errors import InputError
from studies import data, fashion, metrics, training

STILLS = {"dataset", "losses", "reconstructions", "samples", "frozen_64", "frozen_16", "beta_losses",
          "beta_reconstructions", "beta_samples", "beta_latents"}
GIFS = {"vae_beta_0.5_evolution", "vae_beta_1.0_evolution", "vae_betas_evolution"}
TINY = {"feature_steps": 12, "betas": (0.5, 1.0)}


@pytest.fixture(scope="module")
def studied(draw, tmp_path_factory):
    """The whole study in this process, with two seeds."""
    source, folder = small_studies.write_drawn(draw, tmp_path_factory.mktemp("drawn")), tmp_path_factory.mktemp("study")
    study = functools.partial(small_studies.study, TINY, "fashion", source, folder, "--epochs", "2", "--seed", "7",
                              "--seeds", "2", "--signature", "drawn for a test")
    return types.SimpleNamespace(code=study()[0], study=study, folder=folder, **vars(small_studies.left(folder)))


def _images(labels, names="abcdefgh"):
    pixels = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 28, 28)
    return data.Images(pixels, torch.tensor(labels), list(names), [])


def test_the_network_and_the_training_are_those_of_the_description():
    settings = fashion.Settings()
    assert (settings.lr, settings.batch_size, settings.epochs, settings.latent, settings.beta, settings.seed) == (
        1e-3, 128, 25, 16, 1.0, 42)
    assert (settings.betas, settings.beta_classes, settings.beta_latent, settings.beta_epochs, settings.sigmas) == (
        (0.1, 0.5, 1.0), (0, 1, 7), 2, 20, (0.1, 0.5, 1.0))
    model = fashion.VAE().eval()
    assert [str(layer) for layer in model.encoder] == [str(layer) for layer in (
        nn.Conv2d(1, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(True),
        nn.Conv2d(32, 64, 3, 2, 1), nn.BatchNorm2d(64), nn.ReLU(True), nn.Flatten())]
    assert [str(layer) for layer in model.decoder] == [str(layer) for layer in (
        nn.Linear(16, 3136), nn.Unflatten(1, (64, 7, 7)), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.BatchNorm2d(32),
        nn.ReLU(True), nn.ConvTranspose2d(32, 1, 4, 2, 1))]
    assert str(model.fc_mu) == str(model.fc_logvar) == str(nn.Linear(3136, 16)) and model.latent == 16
    x = torch.rand(3, 1, 28, 28)
    features = F.relu(model.encoder[4](model.encoder[3](F.relu(model.encoder[1](model.encoder[0](x))))))
    assert torch.allclose(model.encode(x), model.fc_mu(features.contiguous().view(3, 64 * 7 * 7)), atol=1e-5)
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x))) and model.reconstruct(x).shape == x.shape
    assert type(model.configure_optimizers()) is torch.optim.Adam


def test_the_summed_cross_entropy_plus_beta_kl_is_minimised_and_the_mean_is_logged():
    torch.manual_seed(0)
    model, x, logged = fashion.VAE(4, beta=0.3), torch.rand(6, 1, 28, 28), {}
    model.log_losses = lambda part, losses, n: logged.update({"part": part, "n": n, **losses})
    torch.manual_seed(1)
    loss = model.training_step((x, None), 0)
    torch.manual_seed(1)
    mu, logvar = model.posterior(x)
    z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
    reconstruction = F.binary_cross_entropy(model.decode(z), x, reduction="sum")
    kl = -0.5 * torch.sum(1 + logvar - mu ** 2 - logvar.exp())
    assert loss.item() == pytest.approx((reconstruction + 0.3 * kl).item(), rel=1e-4)
    assert logged["part"] == "train" and logged["n"] == 6
    assert logged["loss"].item() == pytest.approx(loss.item() / 6, rel=1e-5)
    assert logged["kl"].item() == pytest.approx(kl.item() / 6, rel=1e-4)
    assert logged["reconstruction"].item() == pytest.approx(reconstruction.item() / 6, rel=1e-4)


def test_classes_are_the_asked_ones_or_the_first_three_and_two_at_least():
    images = _images([0, 7, 3, 1, 7, 2, 5])
    train, test = fashion.of_classes(images, images, (7, 0, 1))
    assert train.labels.tolist() == test.labels.tolist() == [0, 2, 1, 2] and train.classes == ["a", "b", "h"]
    assert train.pixels[:, 0, 0, 0].tolist() == [0, 1, 3, 4]
    assert fashion.first_of_each(train, 1).pixels[:, 0, 0, 0].tolist() == [0, 3, 1]
    train, test = fashion.of_classes(images, _images([2, 7, 3, 5, 4]), (0, 1, 7))
    assert train.classes == test.classes == ["c", "d", "f"] and test.labels.tolist() == [0, 1, 2]
    assert fashion.of_classes(images, _images([2, 7]), (0, 1, 7))[0].classes == ["c", "h"]
    with pytest.raises(InputError, match="expected two classes or more both trained on and held out, found 1$"):
        fashion.of_classes(images, _images([2, 4]), (0, 1, 7))


def test_frozen_latents_have_mean_zero_and_the_asked_deviation():
    model = fashion.VAE(3)
    model.decode = lambda z: z
    found = fashion.frozen(model, (0.1, 1.0), 5000, 0)
    prior, small, large = found.values()
    assert list(found) == ["z ~ N(0, I)", "μ = 0, σ = 0.1", "μ = 0, σ = 1.0"] and prior.shape == (5000, 3)
    assert torch.allclose(10 * small, large, atol=1e-5) and not torch.allclose(large, prior)
    for z in (prior, large):
        assert z.mean().item() == pytest.approx(0, abs=0.03) and z.std().item() == pytest.approx(1, abs=0.03)


def test_the_untrained_features_are_128_and_do_not_depend_on_what_was_drawn_before():
    x = (255 * torch.rand(4, 1, 28, 28)).byte()
    features = fashion.untrained_features(3)(x)
    torch.rand(7)
    assert features.shape == (4, 128) and torch.equal(features, fashion.untrained_features(3)(x))


def test_the_weights_of_the_evaluation_come_from_the_file(tmp_path, monkeypatch):
    model, path = fashion.VAE(3).eval(), tmp_path / "vae_standard.pth"
    model.history = [{"epoch": 1}]
    fresh, x = fashion.reloaded(model, path), torch.rand(2, 1, 28, 28)
    weights = torch.load(str(path), weights_only=True)
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in model.state_dict().items()} and type(weights) is dict
    assert fresh is not model and not fresh.training and fresh.history == model.history
    assert torch.equal(fresh.reconstruct(x), model.reconstruct(x))
    monkeypatch.setattr(fashion, "write_files", lambda payloads: torch.save(
        {name: torch.zeros_like(value) for name, value in weights.items()}, str(*payloads)))
    assert (fashion.reloaded(model, path).decode(torch.rand(2, 3)) == 0.5).all()


class _Watch(Callback):
    """Keeps what the model's means of the batch are after each step, and interrupts before batch `stop_at`."""

    def __init__(self, stop_at):
        self.seen, self.stop_at = {}, stop_at

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.stop_at:
            raise KeyboardInterrupt

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        with torch.no_grad():
            self.seen[trainer.global_step] = *batch, module.eval().encode(batch[0])
        module.train()


def _train(folder, images, beta=0.5, resume=False, stop_at=None):
    """(VAE, frames, what _Watch has seen) of a small training of three epochs."""
    snapshots, watch = fashion.LatentSnapshotCallback(), _Watch(stop_at)
    torch.manual_seed(5)
    run = training.Run(folder, "cpu", threads=1, resume=resume)
    model = run.fit("beta", fashion.VAE(2, beta), images, images, epochs=3, batch_size=12, seed=5,
                    callbacks=[snapshots, watch])
    return model, snapshots.frames, watch.seen


def test_frames_show_the_current_mini_batch_also_across_a_resumption(draw, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion, "FRAMES", 7)
    labels = torch.arange(60) % 3
    images = data.Images(torch.from_numpy(draw(labels.numpy(), 3))[:, None], labels, list("abc"), [])
    whole, frames, seen = _train(tmp_path / "whole", images)
    assert [(step, frame["epoch"], frame["batch"], frame["batches"]) for step, frame in frames.items()] == [
        (0, 1, 0, 5), (1, 1, 1, 5), (2, 1, 2, 5), (4, 1, 4, 5), (6, 2, 1, 5), (10, 2, 5, 5), (15, 3, 5, 5)]
    for step, frame in frames.items():
        x, y, means = seen[step or 1]
        assert torch.equal(frame["labels"].long(), y) and frame["means"].shape == (12, 2)
        assert torch.equal(frame["originals"] / 255, x[:8]) and frame["reconstructions"].shape == (8, 1, 28, 28)
        assert torch.equal(frame["means"], means) == (step > 0)  # the first frame is of the untrained network
    shown = whole.reconstruct(frames[15]["originals"] / 255)
    assert torch.equal(frames[15]["reconstructions"], (255 * shown).round().byte())
    same = _train(tmp_path / "other", images, beta=4.0)[1]
    for step, frame in frames.items():  # all beta see the same batches
        assert torch.equal(frame["labels"], same[step]["labels"])
        assert torch.equal(frame["originals"], same[step]["originals"])
        assert torch.equal(frame["means"], same[step]["means"]) == (step == 0)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "parts", images, stop_at=12)
    resumed, again, _ = _train(tmp_path / "parts", images, resume=True)
    assert resumed.curve("test_loss") == whole.curve("test_loss") and list(again) == list(frames)
    for step, frame in frames.items():
        assert all(torch.equal(again[step][key], frame[key]) for key in ("means", "labels", "reconstructions"))
    path = tmp_path / "whole/checkpoints/beta.ckpt"
    for fresh in (fashion.VAE.load_from_checkpoint(path, map_location="cpu").eval(), training.load_model(path)):
        assert fresh.latent == 2 and fresh.hparams.beta == 0.5
        assert torch.equal(fresh.encode(images.floats()), whole.encode(images.floats()))


def test_a_gif_has_about_forty_frames_closer_together_at_first():
    watch = fashion.LatentSnapshotCallback()
    watch.on_train_start(types.SimpleNamespace(estimated_stepping_batches=2820), None)
    steps = sorted(set(watch.steps))
    assert 36 <= len(steps) <= 44 and steps[:6] == [1, 2, 3, 4, 5, 6] and steps[-1] == 2820
    ratios = [after / before for before, after in zip(steps[20:], steps[21:])]
    assert max(ratios) / min(ratios) < 1.02


def test_frames_of_a_gif_have_the_axes_of_the_widest_and_panels_side_by_side():
    def frames(scale):
        return {step: {"epoch": 2, "batch": step % 5, "batches": 5, "means": scale * step * torch.eye(2),
                       "labels": torch.tensor([0, 1]), "originals": torch.zeros(2, 1, 28, 28, dtype=torch.uint8),
                       "reconstructions": torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)} for step in (0, 3, 7)}

    drawn = list(fashion.latent_frames({"β = 0.1": frames(2), "β = 1.0": frames(1)}, ["a", "b"]))
    for figure, moment in zip(drawn, ("before training", "epoch 2, batch 3 of 5", "epoch 2, batch 2 of 5")):
        written = [text.get_text() for text in figure.texts]
        assert {f"β = {beta}, {moment}" for beta in ("0.1", "1.0")} <= set(written), written
    limits = {axes.get_xlim() + axes.get_ylim() for figure in drawn for axes in figure.axes}
    assert len(limits) == 1 and limits.pop() == pytest.approx((-14.7, 14.7, -14.7, 14.7))
    assert "is –, – in the first frame" in fashion.evolution({"β = 0.1": frames(2), "β = 1.0": frames(1)})
    wide = 7 / 2 ** 0.5  # of 7 and 0, and of 0 and 7
    assert f"standard deviation of 0.0, 0.0 and {2 * wide:.2g}, {wide:.2g}," in fashion.evolution(
        {"β = 0.1": frames(2), "β = 1.0": frames(1)})
    alone = list(fashion.latent_frames({"β = 1.0": frames(0.1)}, ["a", "b"]))
    assert len(alone) == 3 and alone[0].axes[0].get_xlim() == (-2.2, 2.2)  # so that the circles are seen


def _concluded(change=None, epochs=25, published=True, images=60_000, weak=False, **settings):
    """{what is published: agrees} for numbers as the document describes them, after `change(numbers, history)`."""
    history = [{"train_loss": 300 - min(60, 10 * i), "test_loss": 302 - min(60, 10 * i),
                "train_kl": 15 - 8 / (i + 1) ** 2} for i in range(epochs)]
    beta = {str(beta): {"KL, training": kl, "reconstruction loss, training": loss,
                        "sharpness of reconstructions": sharp, "sharpness of samples": sharp,
                        "diversity of samples": varied, "silhouette of the classes": apart}
            for beta, kl, loss, sharp, varied, apart in ((0.1, 8.76, 205, 0.05, 5, 0.3), (0.5, 6.12, 210, 0.04, 6, 0.4),
                                                         (1.0, 5.28, 215, 0.03, 7, 0.5))}
    numbers = {
        "beta": beta, "losses": dict(fashion.PUBLISHED["losses"]),
        "vae": {"sharpness of reconstructions": 0.05, "sharpness of samples": 0.04, "diversity of samples": 9.0},
        "frozen": {"z ~ N(0, I)": 8.0, "μ = 0, σ = 0.1": 1.0, "μ = 0, σ = 0.5": 5.0, "μ = 0, σ = 1.0": 9.0},
        "fid": {"samples, untrained features": 0.001, "samples, trained features": 25.0,
                "training images, trained features": 1.0}}
    if change:
        change(numbers, history)
    vae = fashion.VAE(2)
    vae.history = history
    results = {"numbers": metrics.summarise([numbers]),
               "data": {"train": images}, "published": fashion.PUBLISHED if published else {},
               "features": {"weak": weak}, "real": {"vae": {
                   "sharpness of reconstructions": 0.2, "sharpness of samples": 0.2, "diversity of samples": 10.0}}}
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
    numbers["fid"] = {"samples, untrained features": 0.3, "samples, trained features": 1.9,
                      "training images, trained features": 1.0}
    for i, row in enumerate(history):
        row.update(test_loss=row["test_loss"] + 3 * i, train_kl=i + 1)


def test_each_conclusion_follows_from_the_numbers():
    found, reversed_ = _concluded(), _concluded(_reverse)
    assert len(found) == 16 and set(found.values()) == {True}
    assert set(reversed_) == set(found) and set(reversed_.values()) == {False}


@pytest.mark.parametrize(("row", "said"), [
    ({"test_loss": 245.0}, "Train and test loss curves are close and smoothly decreasing"),
    ({"train_loss": 290.0, "test_loss": 290.0}, "Train and test loss curves are close and smoothly decreasing"),
    ({"train_kl": 14.0}, "KL term stabilises at a positive value")])
def test_the_last_epoch_alone_can_contradict_a_conclusion_on_curves(row, said):
    assert _concluded(lambda numbers, history: history[-1].update(row))[said] is False


def test_a_collapsed_posterior_is_no_stable_kl():
    def collapse(numbers, history):
        for row in history:
            row["train_kl"] = 0.05

    assert _concluded(collapse)["KL term stabilises at a positive value"] is False


def test_conclusions_are_undecided_where_the_numbers_cannot_decide():
    losses = "The losses in the tables below"
    assert losses not in _concluded(published=False) and len(_concluded(published=False)) == 15
    assert _concluded(images=3000)[losses] is None and _concluded(_reverse, beta_epochs=25)[losses] is None
    assert _concluded(lambda numbers, _: numbers["losses"].update({"epoch 5, training": 249.0}))[losses] is False
    short = [agrees for agrees in _concluded(epochs=1).values() if agrees is not True]
    assert short == [None, None]  # loss curves, KL
    assert list(_concluded(weak=True).values()).count(None) == 1  # the FID of trained features

    def alike(numbers, _):
        for found in numbers["beta"].values():
            found.update({"silhouette of the classes": None, "reconstruction loss, training": 210.0})

    undecided = [said for said, agrees in _concluded(alike).items() if agrees is None]
    assert undecided == ["As β increases, recon loss slightly increases", "Cluster separation: Poor, Moderate, Good"]

    def same(numbers, _):
        numbers["frozen"]["z ~ N(0, I)"] = 9.001

    assert _concluded(same)["The standard z ~ N(0, I) case falls between σ = 0.5 and σ = 1.0"] is False


def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    found, numbers = studied.results, studied.results["numbers"]
    assert studied.code == 0 and found["seeds"] == [7, 8]
    assert found["data"]["train"] == 256 and found["data"]["held_out"] == 64
    assert found["few"]["classes"] == ["0", "1", "2"] and found["few"]["held_out"] == 48
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
    assert studied.checkpoints == {"features.ckpt", *(
        f"{name}_seed{seed}.ckpt" for name in ("vae", "beta0.5", "beta1.0") for seed in (7, 8))}
    assert studied.figures == {*(f"{name}.png" for name in STILLS), *(f"{name}.gif" for name in GIFS)}
    for name in GIFS:
        with Image.open(str(studied.folder / f"figures/{name}.gif")) as image:
            assert image.n_frames == 5  # before the training, and after each of two epochs of two batches
    text = html.unescape(studied.text)
    assert found["published"] == {} and "240.46" not in text and "209.47" not in text
    assert "FashionMNIST" not in text.split("<h2>The run")[0] and "images of drawn.npz" in text
    for claim in found["conclusions"]:
        assert text.count(claim["found"]) >= 2, claim  # in the table of conclusions, and below a figure
    assert text.count("The silhouette of the classes is") == 3 and text.count("in the first frame") == 3  # of each GIF


def test_the_standard_vae_is_saved_as_plain_weights(studied):
    weights = torch.load(str(studied.folder / "vae_standard.pth"), weights_only=True)
    trained = training.load_model(studied.folder / "checkpoints/vae_seed7.ckpt")
    model = fashion.VAE(latent_dim=16).eval()
    model.load_state_dict(weights)
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(model.reconstruct(x), trained.reconstruct(x))
    drawn = metrics.mean_pairwise_l2(fashion.frozen(model, (), 1000, 7)["z ~ N(0, I)"])
    assert studied.results["numbers"]["frozen"]["z ~ N(0, I)"]["values"][0] == pytest.approx(drawn, rel=1e-4)


def test_resuming_trains_no_more_and_gives_the_same_numbers_and_frames_and_fashion_mnist_is_compared(
        studied, monkeypatch):
    gif = studied.folder / "figures/vae_betas_evolution.gif"
    before = gif.read_bytes()
    monkeypatch.setattr(fashion.VAE, "training_step", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(fashion.FashionMNIST, "classes", list("0123"))  # as if these were garments
    monkeypatch.setitem(fashion.PUBLISHED, "losses", {"epoch 2, training": 240.46, "epoch 2, held-out": 242.31,
                                                      "β = 0.5, reconstruction loss": 209.79, "β = 0.5, KL": 6.12})
    assert studied.study("--resume")[0] == 0
    again = small_studies.left(studied.folder)
    assert again.results["numbers"] == studied.results["numbers"] and gif.read_bytes() == before
    numbers = studied.results["numbers"]["losses"]

    def cells(row):
        return [cell.split("<")[0] for cell in again.text.split(f'<th scope="row">{row}')[1].split("<td>")[1:3]]

    assert cells("epoch 2, held-out")[0] == "242.31"
    assert cells("epoch 2, held-out")[1].startswith(f"{numbers['epoch 2, held-out']['mean']:.5g} ± ")
    assert cells("β = 0.5, reconstruction loss")[0] == "209.79" and cells("β = 0.5, KL")[0] == "6.12"
    assert again.results["conclusions"][-1]["published"] == "The losses in the tables below"
    assert again.results["conclusions"][-1]["agrees"] is None  # 256 images
