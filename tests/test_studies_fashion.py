"""Study 2, fashion: the network as described, what is kept for the GIFs, and from the command line to the report."""
import functools
import types

import pytest
import small_studies
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from common.errors import InputError
from studies import data, fashion, figures, training

STILLS = {"losses", "reconstructions", "samples", "frozen_64", "frozen_16", "beta_losses", "beta_reconstructions",
          "beta_samples", "beta_latents"}
TINY = {"feature_steps": 12, "save_interval": 2, "betas": (0.5, 1.0)}


@pytest.fixture(scope="module")
def studied(draw, tmp_path_factory):
    """The whole study in this process, with the variant."""
    source, folder = small_studies.write_drawn(draw, tmp_path_factory.mktemp("drawn")), tmp_path_factory.mktemp("study")
    study = functools.partial(small_studies.study, TINY, "fashion", source, folder, "--epochs", "2", "--seed", "7",
                              "--variant", "kernel3", "--signature", "drawn for a test")
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
    assert str(model.fc_mu) == str(model.fc_logvar) == str(nn.Linear(3136, 16))
    x = torch.rand(3, 1, 28, 28)
    features = F.relu(model.encoder[4](model.encoder[3](F.relu(model.encoder[1](model.encoder[0](x))))))
    assert torch.allclose(model.encode(x), model.fc_mu(features.contiguous().view(3, 64 * 7 * 7)), atol=1e-5)
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x))) and model.reconstruct(x).shape == x.shape
    assert type(model.configure_optimizers()) is torch.optim.Adam


def test_the_variant_is_the_network_with_kernel_3():
    model = fashion.VAE(2, **fashion.VARIANTS["kernel3"])
    kinds = [type(layer).__name__ for layer in model.decoder]
    assert kinds == ["Linear", "ReLU", "Unflatten", "ConvTranspose2d", "BatchNorm2d", "ReLU", "ConvTranspose2d"]
    assert model.decoder[3].kernel_size == model.decoder[6].kernel_size == (3, 3) and model.decoder[6].bias is not None
    assert model.encoder[0].bias is model.encoder[3].bias is model.decoder[3].bias is None
    assert model.decode(torch.zeros(5, 2)).shape == (5, 1, 28, 28)


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
    assert fashion.common_classes(images, images, (7, 0, 1)) == [0, 1, 7]
    assert fashion.common_classes(images, _images([2, 7, 3, 5]), (0, 1, 7)) == [2, 3, 5]
    assert fashion.common_classes(images, _images([2, 7]), (0, 1, 7)) == [2, 7]
    with pytest.raises(InputError, match="expected two classes or more both trained on and held out, found 1$"):
        fashion.common_classes(images, _images([2, 4]), (0, 1, 7))
    chosen = fashion.of_classes(images, [0, 1, 7])
    assert chosen.labels.tolist() == [0, 2, 1, 2] and chosen.pixels[:, 0, 0, 0].tolist() == [0, 1, 3, 4]
    assert chosen.classes == ["a", "b", "h"]
    assert fashion.first_of_each(chosen, 1).pixels[:, 0, 0, 0].tolist() == [0, 3, 1]


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


def _train(folder, images, resume=False, stop_at=None):
    """(VAE, frames) of a small training of three epochs, interrupted before the batch `stop_at`."""
    watch = fashion.LatentSnapshotCallback(images.pixels[:10], images.pixels[:4], 3)

    def stop(trainer, *_):
        if trainer.global_step == stop_at:
            raise KeyboardInterrupt

    watch.on_train_batch_start = stop
    torch.manual_seed(5)
    run = training.Run(folder, "cpu", resume=resume)
    return run.fit("beta", fashion.VAE(2, 0.5), images, images, epochs=3, batch_size=12, seed=5,
                   callbacks=[watch]), watch.frames


def test_frames_are_kept_every_few_batches_also_across_a_resumption(draw, tmp_path):
    labels = torch.arange(60) % 3
    images = data.Images(torch.from_numpy(draw(labels.numpy(), 3))[:, None], labels, list("abc"), [])
    whole, frames = _train(tmp_path / "whole", images)
    assert [(frame["step"], frame["epoch"]) for frame in frames] == [
        (0, 1), (3, 1), (6, 2), (9, 2), (12, 3), (15, 3)]  # 5 batches an epoch
    assert frames[0]["means"].shape == (10, 2) and frames[0]["reconstructions"].shape == (4, 1, 28, 28)
    assert not torch.equal(frames[0]["means"], frames[1]["means"])
    assert torch.equal(frames[-1]["means"], training.mapped(whole.encode, images.pixels[:10]))
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "parts", images, stop_at=12)
    resumed, again = _train(tmp_path / "parts", images, resume=True)
    assert resumed.curve("test_loss") == whole.curve("test_loss") and len(again) == len(frames)
    for one, other in zip(again, frames):
        assert one["step"] == other["step"] and torch.equal(one["means"], other["means"])
        assert torch.equal(one["reconstructions"], other["reconstructions"])
    fresh = fashion.VAE.load_from_checkpoint(tmp_path / "whole/checkpoints/beta.ckpt", map_location="cpu").eval()
    assert fresh.hparams.latent_dim == 2 and torch.equal(fresh.encode(images.floats()), whole.encode(images.floats()))


def test_a_gif_has_so_many_frames_at_most_all_with_the_axes_of_the_widest(monkeypatch):
    points = _images([0, 1], "ab")
    frames = [{"means": scale * torch.eye(2), "reconstructions": points.pixels, "epoch": 1, "step": scale}
              for scale in range(1, 80)]
    monkeypatch.setattr(figures, "MAX_FRAMES", 4)
    drawn = [figure.axes[0] for figure in fashion.latent_frames(frames, points, points, 0.5)]
    assert len({axes.get_xlim() for axes in drawn}) == 1 and drawn[0].get_xlim()[1] > 78
    assert [axes.get_title() for axes in drawn] == [f"β = 0.5, epoch 1, batch {step}" for step in (1, 27, 53, 79)]


def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    found, names = studied.results, ("described", "kernel3")
    assert studied.code == 0 and found["seeds"] == [7]
    assert found["data"]["train"] == 256 and found["data"]["held_out"] == 64
    assert found["beta"]["classes"] == ["0", "1", "2"] and found["beta"]["held_out"] == 48
    for variant in names:
        numbers = found["numbers"][variant]
        assert set(numbers["beta"]) == {"0.5", "1.0"}
        for beta, each in ((1.0, numbers["vae"]), *((float(beta), each) for beta, each in numbers["beta"].items())):
            for part in ("training", "held-out"):
                total = each[f"reconstruction, {part}"]["mean"] + beta * each[f"KL, {part}"]["mean"]
                assert each[f"total loss, {part}"]["mean"] == pytest.approx(total, rel=1e-5)
        frozen = [each["mean"] for each in numbers["frozen"].values()]
        assert 0 < frozen[1] < frozen[2] < frozen[3] and frozen[0] == pytest.approx(frozen[3], rel=0.1)
        assert len(numbers["fid"]) == 6 and numbers["fid"]["samples, trained features"]["mean"] > 0
        last = found["history"][f"{variant} 7 vae"][-1]
        assert last["epoch"] == 2 and numbers["by_epoch"]["epoch 2, held-out"]["mean"] == last["test_loss"]
    assert found["numbers"]["described"]["vae"] != found["numbers"]["kernel3"]["vae"]
    assert studied.checkpoints == {"features.ckpt", *(
        f"{name}_{variant}_seed7.ckpt" for name in ("vae", "beta0.5", "beta1.0") for variant in names)}
    assert studied.figures == {"dataset.png", *(f"{name}.png" for name in STILLS), *(
        f"{name}_kernel3.png" for name in STILLS), "vae_beta_0.5_evolution.gif", "vae_beta_1.0_evolution.gif"}
    with Image.open(str(studied.folder / "figures/vae_beta_0.5_evolution.gif")) as image:
        assert image.n_frames == 3  # before the training, and after each of two epochs of two batches
    assert "64 held-out images" in studied.text and "the prior itself" in studied.text
    assert found["published"] == {} and "240.46" not in studied.text and "209.47" not in studied.text


def test_resuming_trains_no_more_and_gives_the_same_numbers_and_frames_and_fashion_mnist_is_compared(
        studied, monkeypatch):
    gif = studied.folder / "figures/vae_beta_0.5_evolution.gif"
    before = gif.read_bytes()
    monkeypatch.setattr(fashion.VAE, "training_step", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(fashion.FashionMNIST, "classes", list("0123"))  # as if these were garments
    monkeypatch.setitem(fashion.PUBLISHED, "by_epoch", {"epoch 2, training": 240.46, "epoch 2, held-out": 242.31})
    assert studied.study("--resume")[0] == 0
    again = small_studies.left(studied.folder)
    assert again.results["numbers"] == studied.results["numbers"] and gif.read_bytes() == before
    number = studied.results["numbers"]["described"]["by_epoch"]["epoch 2, held-out"]["mean"]
    cells = [cell.split("<")[0] for cell in again.text.split('<th scope="row">epoch 2, held-out')[1].split("<td>")[1:4]]
    assert cells[:2] == ["242.31", f"{number:.5g}"] and "β = 0.5, published" in again.text and "6.1200" in again.text
