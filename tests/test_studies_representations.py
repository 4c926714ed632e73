"""Study 3, representations: the VQ-VAE's numerics, averages of samples, the mixture of latents, and the whole study."""
import dataclasses
import functools
import json
import types

import numpy as np
import pytest
import small_studies
import torch
from torch import nn

from studies import data, representations, training, vq

TINY = {"side": 16, "widths": (4, 8), "latent": 6, "vq_widths": (4, 8), "num_embeddings": 12, "embedding_dim": 5,
        "hidden": 8, "feature_steps": 12, "components": (1, 2), "batch_size": 20, "vae_batch_size": 20,
        "shift": 2}


@pytest.fixture(scope="module")
def photos(bird_draw, tmp_path_factory):
    """300 drawn photos of three kinds, 120, 90 and 90, in folders."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    bird_draw(folder, {f"kind{kind}/{i}.png": kind for kind, n in enumerate((120, 90, 90)) for i in range(n)}, 3)
    return folder


@pytest.fixture(scope="module")
def studied(photos, tmp_path_factory):
    """The whole study in this process, two seeds and a variant, tiny networks."""
    folder = tmp_path_factory.mktemp("study")
    study = functools.partial(small_studies.study, TINY, "representations", photos, folder, "--epochs", "2")
    code, _ = study("--seeds", "2", "--variant", "beta0.2", "--signature", "by hand")
    return types.SimpleNamespace(code=code, study=study, **vars(small_studies.left(folder)), folder=folder)


def _two_codes(decay=0.9):
    """A VectorQuantizer of the codes (0, 0) and (4, 0), each with a count of 1."""
    quantizer = vq.VectorQuantizer(2, 2, decay, dead_below=0.0)
    quantizer.codebook.copy_(torch.tensor([[0.0, 0], [4, 0]]))
    quantizer.sums.copy_(quantizer.codebook)
    quantizer.counts.fill_(1)
    return quantizer


def test_the_nearest_code_is_that_of_the_smallest_distance():
    draw = torch.Generator().manual_seed(0)
    quantizer, z = vq.VectorQuantizer(7, 4), torch.randn(3, 4, 5, 2, generator=draw)
    quantizer.codebook.copy_(torch.randn(7, 4, generator=draw))
    index = quantizer.nearest(z)
    squares = ((z[:, None] - quantizer.codebook[None, :, :, None, None]) ** 2).sum(2)
    assert torch.equal(index, squares.argmin(1))
    assert torch.equal(quantizer.look_up(index)[1, :, 3, 0], quantizer.codebook[index[1, 3, 0]])


def test_perplexity_of_known_codes():
    for counts, expected in (([5, 5, 5, 5], 4), ([9, 0, 0], 1), ([1, 3], 4 / 3 ** 0.75)):
        assert vq.perplexity(torch.tensor(counts)) == pytest.approx(expected)


def test_the_gradient_passes_straight_through_and_the_commitment_moves_the_encoder_alone():
    quantizer = _two_codes().eval()
    z = torch.tensor([1.0, 2, 3, -2]).view(2, 2, 1, 1).requires_grad_()  # nearest: (0, 0) to (1, 2), (4, 0) to (3, -2)
    quantized, commitment, index = quantizer(z)
    assert index.flatten().tolist() == [0, 1] and quantized.flatten().tolist() == [0, 0, 4, 0]
    assert commitment.item() == pytest.approx((1 + 4 + 1 + 4) / 4)
    towards, = torch.autograd.grad(commitment, z, retain_graph=True)
    assert torch.allclose(towards.flatten(), 2 * torch.tensor([1.0, 2, -1, -2]) / 4)
    weights = torch.tensor([1.0, 2, 3, 4]).view(2, 2, 1, 1)
    through, = torch.autograd.grad((quantized * weights).sum(), z)
    assert torch.equal(through, weights)
    assert not list(quantizer.parameters()) and {"codebook", "counts", "sums"} == set(quantizer.state_dict())


def test_the_codebook_follows_by_moving_averages_worked_by_hand():
    quantizer = _two_codes(0.9)
    z = torch.tensor([[1.0, 2], [-1, 0], [3, 2]]).t().reshape(1, 2, 3, 1)  # two at the first code, one at the second
    quantized, _, index = quantizer(z)
    assert index.flatten().tolist() == [0, 0, 1]
    assert torch.equal(quantized.flatten(2)[0].t(), torch.tensor([[0.0, 0], [0, 0], [4, 0]]))  # before it moved
    assert torch.allclose(quantizer.counts, torch.tensor([0.9 + 0.1 * 2, 0.9 + 0.1 * 1]))
    assert torch.allclose(quantizer.codebook[0], torch.tensor([0.0, 0.2]) / 1.1, atol=1e-6)
    assert torch.allclose(quantizer.codebook[1], torch.tensor([0.9 * 4 + 0.3, 0.2]) / 1.0, atol=1e-6)
    before = quantizer.codebook.clone()
    quantizer.eval()(z)
    assert torch.equal(before, quantizer.codebook)


def test_dead_codes_begin_again_as_encoder_outputs_and_living_ones_stay():
    z = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(1))
    rows = z.permute(0, 2, 3, 1).reshape(-1, 3)
    quantizer = vq.VectorQuantizer(5, 3, decay=1.0, dead_below=0.1)
    quantizer.codebook[:3], quantizer.sums[:3], quantizer.counts[:3] = 9.0, 9.0, 1.0  # the last two are dead
    quantizer(z)
    assert torch.equal(quantizer.codebook[:3], torch.full((3, 3), 9.0))
    for code in quantizer.codebook[3:]:
        assert (rows - code).abs().sum(1).min() < 1e-6
    assert torch.equal(quantizer.counts[3:], torch.full((2,), 16 / 5))
    fresh = vq.VectorQuantizer(5, 3, decay=1.0).eval()
    fresh(z)
    assert not fresh.codebook.any()  # revived in training alone
    fresh.train()(z)
    assert torch.cdist(fresh.codebook, rows).min(1).values.max() < 1e-6


def test_the_features_of_codes_are_their_shares_by_quarter_and_the_averaged_vectors():
    model = representations.VQVAE(_small(num_embeddings=3, embedding_dim=1), 1.0).eval()
    index = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 2], [2, 2, 0, 0], [2, 2, 0, 0]]])
    model.encode = lambda x: index
    model.quantizer.codebook.copy_(torch.tensor([[10.0], [20], [30]]))
    found = model.features(None)[0]
    shares = torch.tensor([[1.0, 0, 0, 1], [0, 0.75, 0, 0], [0, 0.25, 1, 0]])  # of each code in the four quarters
    assert torch.allclose(found[:12].view(3, 4), shares.sqrt())
    assert torch.equal(found[12:], 10.0 * (1 + index.flatten()))


def _small(**changed):
    return dataclasses.replace(representations.Settings(), **{**TINY, **changed})


def test_the_described_vae_has_beta_1_and_128_latents_and_its_loss_is_the_sum_of_its_terms():
    settings = representations.Settings()
    assert (settings.side, settings.latent, settings.beta, settings.averaged) == (64, 128, 1.0, (1, 5, 10))
    assert representations.VARIANTS["beta0.2"] == {"beta": 0.2}
    model, x = representations.PhotoVAE(_small(beta=0.2)).eval(), torch.rand(5, 3, 16, 16)
    found = model.losses(x, None)
    assert found["loss"].item() == pytest.approx((found["reconstruction"] + 0.2 * found["kl"]).item(), rel=1e-5)
    assert model.encode(x).shape == (5, 6) and model.decode(model.encode(x)).shape == x.shape
    with torch.no_grad():
        model.encoder[-1].bias.fill_(50)
        assert model.posterior(x)[1].max() <= representations.LARGEST  # exp of 50 would be the KL's leap


def test_the_epochs_follow_from_the_number_of_steps_within_bounds():
    settings = dataclasses.replace(representations.Settings(), fewest_epochs=2, most_epochs=20)
    found = [representations.budget(settings, n, steps=100, batch_size=10) for n in (200, 195, 10_000, 20)]
    assert [one["epochs"] for one in found] == [5, 5, 2, 20] and {one["batch_size"] for one in found} == {10}


def test_learning_rate_and_kl_weight_rise_and_the_rate_falls_to_nothing(photos, tmp_path, monkeypatch):
    settings = _small(warm_up=0.25, lr=0.01)
    train, test, _ = data.read_split([photos], settings.side, 3)
    train, rates, weights = train.at_most(80, 0), [], []

    class Watched(representations.PhotoVAE):
        def losses(self, x, y):
            found = super().losses(x, y)
            if self.training:
                rates.append(self.optimizers().param_groups[0]["lr"])
                weights.append(((found["loss"] - found["reconstruction"]) / found["kl"]).item())
            return found

    torch.manual_seed(0)
    training.Run(tmp_path, "cpu").fit("vae", Watched(settings), train, test.at_most(20, 0), epochs=10, batch_size=20)
    assert len(rates) == 40 and rates[:4] == pytest.approx([0.001, 0.002, 0.003, 0.004])
    assert rates[20] == pytest.approx(0.005) and 0 < rates[-1] < 1e-4 and max(rates) < 0.01
    assert weights[:10] == pytest.approx([0.1 * k for k in range(1, 11)], rel=0.02)
    assert weights[10:] == pytest.approx([1.0] * 30, rel=0.02)


def test_photos_are_moved_and_mirrored_one_by_one_in_training_alone(monkeypatch):
    model, seen = representations.PhotoVAE(_small(shift=2)), []
    monkeypatch.setattr(training.StudyModule, "training_step", lambda self, batch, index: seen.append(batch[0]))
    photo = torch.arange(3 * 16 * 16.0).view(3, 16, 16)
    torch.manual_seed(0)
    model.training_step((photo.expand(64, -1, -1, -1), None), 0)
    padded = nn.functional.pad(photo[None], (2, 2, 2, 2), mode="reflect")[0]
    crops = [padded[:, i:i + 16, j:j + 16] for i in range(5) for j in range(5)]
    views = {tuple(view.flatten().tolist()) for crop in crops for view in (crop, crop.flip(2))}
    found = {tuple(view.flatten().tolist()) for view in seen[0]}
    assert found <= views and len(found) > 20
    model.training_step((torch.ones(4, 9), None), 0)  # features
    assert torch.equal(seen[1], torch.ones(4, 9))


def test_averaging_samples_of_the_latent_tends_to_the_mean_image():
    model = types.SimpleNamespace(
        moments=lambda x: torch.cat([x.flatten(1), torch.zeros(len(x), 12)], 1), decode=lambda z: z.view(-1, 3, 2, 2))
    x = torch.rand(300, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = dict(representations.averaged_reconstructions(model, x, 10, 0))
    assert list(found) == list(range(1, 11))
    for k, images in found.items():  # unit variance, so the squared error is 1 / k
        assert float(((images - x) ** 2).mean()) == pytest.approx(1 / k, rel=0.1), k
    again = dict(representations.averaged_reconstructions(model, x, 5, 0))
    assert torch.equal(again[5], found[5])


def test_the_mixture_has_as_many_components_as_the_latents_and_its_samples_are_like_them():
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=600)
    latents = torch.from_numpy(rng.normal(size=(600, 2)) * 0.3 + np.array([[-3.0, 0], [3, 1]])[kind]).float()
    mixture = representations.fit_mixture(latents, _small(components=(1, 2)), 0)
    assert len(mixture.weights_) == 2
    assert len(representations.fit_mixture(torch.randn(300, 2, generator=torch.Generator().manual_seed(0)),
                                           _small(components=(1, 8)), 0).weights_) == 1
    model = types.SimpleNamespace(hparams=types.SimpleNamespace(latent=2), decode=lambda z: z)
    drawn = representations.generated(model, mixture, 400, 0)
    assert drawn["mixture"].shape == (400, 2) and torch.allclose(drawn["mixture"].mean(0), latents.mean(0), atol=0.5)
    assert float(drawn["mixture"][:, 0].abs().min()) > 1
    assert drawn["N(0, I)"].shape == (400, 2) and float(drawn["N(0, I)"].std()) == pytest.approx(1, abs=0.1)


def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    assert studied.code == 0
    found, shared = studied.results, studied.results["shared"]
    assert found["data"]["train"] == 240 and found["data"]["held_out"] == 60
    assert list(found["numbers"]) == found["variants"] == ["described", "beta0.2"]
    accuracies = found["accuracies"]
    assert set(accuracies) == {"most frequent class", "photo, CNN", "VQ-VAE codes, MLP", "VAE latent (described), MLP",
                               "VAE latent (beta0.2), MLP"}
    assert accuracies["most frequent class"]["held_out"] == pytest.approx(24 / 60)
    assert accuracies["most frequent class"]["interval"] == pytest.approx([0.2857, 0.5263], abs=1e-4)  # Wilson's
    assert accuracies["photo, CNN"]["held_out"] == shared["cnn"]["accuracy"]["mean"]
    assert all(one["interval"][0] <= one["held_out"] <= one["interval"][1] for one in accuracies.values())
    for numbers in found["numbers"].values():
        assert len(numbers["accuracy"]["values"]) == 2
        mse = [numbers[f"mse_{k}"]["mean"] for k in range(1, 11)]
        assert mse[0] > mse[4] > mse[9] > 0 and numbers["sharpness_1"]["mean"] > numbers["sharpness_10"]["mean"]
        assert {f"fid_{source}" for source in ("N(0, I)", "mixture", "latents", "training images")} < set(numbers)
        assert numbers["components"]["mean"] in (1, 1.5, 2)
        assert numbers["kl"]["mean"] > 0
    assert 1 <= shared["vqvae"]["perplexity"]["mean"] <= shared["vqvae"]["active_codes"]["mean"] <= 12
    assert set(found["history"]) == {
        f"{seed} {name}" for name in representations.SHARED for seed in (0, 1)} | {
        f"{variant} {seed} {name}" for variant in found["variants"] for name in ("vae", "mlp_latents")
        for seed in (0, 1)}
    assert {len(rows) for rows in found["history"].values()} == {2}  # as --epochs says
    assert studied.checkpoints == {"features.ckpt"} | {f"{name}_seed{seed}.ckpt" for seed in (0, 1) for name in (
        *representations.SHARED, "vae_described", "vae_beta0.2", "mlp_latents_described", "mlp_latents_beta0.2")}
    assert studied.figures == {"classifiers.png", "vq_loss.png", "vq_reconstructions.png"} | {
        f"{name}_{variant}.png" for name in ("loss", "reconstructions", "averaging", "samples")
        for variant in found["variants"]}
    for shown in ("249.12", "100 %, one class", "of 2 seeds", "FID, z ~ mixture"):
        assert shown in studied.text


def test_a_finished_study_is_not_trained_again_and_another_length_is_refused(studied, monkeypatch):
    monkeypatch.setattr(training.StudyModule, "training_step", lambda *_: pytest.fail("trained again"))
    assert studied.study("--resume")[0] == 0
    again = json.loads((studied.folder / "results.json").read_text())["numbers"]
    before = studied.results["numbers"]["described"]
    assert list(again) == ["described"]
    for name in ("accuracy", "mse_5", "kl", "fid_mixture", "components"):
        assert again["described"][name]["values"] == before[name]["values"][:1], name
    code, said = studied.study("--resume", "--epochs", "9")
    assert code == 2 and "epochs" in said[-1]
