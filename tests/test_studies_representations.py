"""Study 3, representations: the VQ-VAE's numerics, averages of samples, the mixture of latents, and the whole study."""
import dataclasses
import itertools
import json
import types

import numpy as np
import pytest
import small_studies
import torch
from PIL import Image
from small_studies import texts
from torch import nn
from torchvision.models import ResNet

from studies import __main__ as command
from studies import data, photo_networks, representations, training, vq

TINY = {"side": 16, "widths": (4, 8), "latent": 6, "vq_widths": (4, 8), "num_embeddings": 12, "hidden": 8,
        "feature_steps": 12, "components": (1, 2), "cnn_batch_size": 20, "vae_batch_size": 20, "resnet": False,
        "last_batches": 2}
NETWORKS = ("vae", "vqvae", *representations.CLASSIFIERS)


@pytest.fixture(scope="module")
def photos(bird_draw, tmp_path_factory):
    """Two folders: 120, 90 and 90 drawn photos of three kinds, and 60 of one kind."""
    folder = tmp_path_factory.mktemp("photos")
    many = {f"kind{kind}/{i}.png": kind for kind, n in enumerate((120, 90, 90)) for i in range(n)}
    bird_draw(folder / "many", many, 3)
    bird_draw(folder / "one", {f"{i}.png": 1 for i in range(60)}, 4)
    return folder / "many", folder / "one"


@pytest.fixture(scope="module")
def studied(photos, tmp_path_factory):
    """The whole study of one source in this process, two seeds and the variant, tiny networks."""
    return small_studies.studied(
        TINY, "representations", photos[0], tmp_path_factory.mktemp("study"), "--epochs", "2",
        first=("--seeds", "2", "--variant", "tuned", "--signature", "by hand"))


def _small(**changed):
    return dataclasses.replace(representations.Settings(), **{**TINY, **changed})


def _two_codes(kind=vq.EMAVectorQuantizer, **options):
    """A quantizer of the codes (0, 0) and (4, 0); moving averages have a count of 1 for each."""
    quantizer = kind(2, 2, 0.25, **options)
    quantizer.codebook.data.copy_(torch.tensor([[0.0, 0], [4, 0]]))
    if options:
        quantizer.sums.copy_(quantizer.codebook)
        quantizer.counts.fill_(1)
    return quantizer


@pytest.mark.parametrize("kind", (vq.VectorQuantizer, vq.EMAVectorQuantizer))
def test_the_gradient_passes_through_and_the_loss_is_as_published(kind):
    quantizer, trained = _two_codes(kind).eval(), kind is vq.VectorQuantizer
    z = torch.tensor([1.0, 2, 3, -2]).view(2, 2, 1, 1).requires_grad_()  # nearest: (0, 0) to (1, 2), (4, 0) to (3, -2)
    quantized, loss, index = quantizer(z)
    assert index.flatten().tolist() == [0, 1] and quantized.flatten().tolist() == [0, 0, 4, 0]
    assert loss.item() == pytest.approx((trained + 0.25) * (1 + 4 + 1 + 4) / 4)  # of the codes, if trained, and of z
    towards, = torch.autograd.grad(loss, z, retain_graph=True)
    assert torch.allclose(towards.flatten(), 0.25 * 2 * torch.tensor([1.0, 2, -1, -2]) / 4)
    weights = torch.tensor([1.0, 2, 3, 4]).view(2, 2, 1, 1)
    through, = torch.autograd.grad((quantized * weights).sum(), z, retain_graph=True)
    assert torch.equal(through, weights)
    if trained:
        to_codes, = torch.autograd.grad(loss, quantizer.codebook)
        assert torch.allclose(to_codes, 2 * torch.tensor([[-1.0, -2], [1, 2]]) / 4)
    else:
        assert not list(quantizer.parameters()) and {"codebook", "counts", "sums"} == set(quantizer.state_dict())


def test_the_codebook_follows_by_moving_averages_worked_by_hand():
    quantizer = _two_codes(decay=0.9, dead_below=0.0)
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
    quantizer = vq.EMAVectorQuantizer(5, 3, decay=1.0, dead_below=0.1)
    quantizer.codebook[:3], quantizer.sums[:3], quantizer.counts[:3] = 9.0, 9.0, 1.0  # the last two are dead
    quantizer.eval()(z)
    assert not quantizer.codebook[3:].any()  # revived in training alone
    quantizer.train()(z)
    assert torch.equal(quantizer.codebook[:3], torch.full((3, 3), 9.0))
    assert torch.cdist(quantizer.codebook[3:], rows).min(1).values.max() < 1e-6
    assert torch.equal(quantizer.counts[3:], torch.full((2,), 16 / 5))


def test_the_features_of_codes_are_their_mean_index_or_those_by_place():
    model = photo_networks.VQVAE(_small(num_embeddings=3, vq_widths=(4, 1), code_map=True)).eval()
    index = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 2], [2, 2, 0, 0], [2, 2, 0, 0]]])
    model.encode = lambda x: index
    model.quantizer.codebook.data.copy_(torch.tensor([[10.0], [20], [30]]))
    found = model.features(None)[0]
    shares = torch.tensor([[1.0, 0, 0, 1], [0, 0.75, 0, 0], [0, 0.25, 1, 0]])  # of each code in the four quarters
    assert torch.allclose(found[:12].view(3, 4), shares.sqrt())
    assert torch.equal(found[12:], 10.0 * (1 + index.flatten()))
    model.settings = _small()
    assert model.features(None).tolist() == [[13 / 16]]
    for counts, expected in (([5, 5, 5, 5], 4), ([9, 0, 0], 1), ([1, 3], 4 / 3 ** 0.75)):
        assert vq.perplexity(torch.tensor(counts)) == pytest.approx(expected)


def test_the_networks_are_those_of_the_description():
    settings = representations.Settings()
    assert settings == representations.Settings(
        side=128, vae_batch_size=32, cnn_batch_size=16, cnn_epochs=5, mlp_epochs=20, vq_batch_size=32, vq_epochs=8,
        codes_mlp_epochs=25, components=(20,), weight_decay=0.0, vae_lr=2e-4, vq_lr=1e-3, cnn_lr=1e-3, mlp_lr=1e-3)
    model, quantized = photo_networks.PhotoVAE(settings), photo_networks.VQVAE(settings)
    classifier, mlp = photo_networks.Classifier(settings, 7), photo_networks.Classifier(settings, 7, 128)
    widths = (3, 32), (32, 64), (64, 128), (128, 256), (256, 512)
    assert texts([*model.encoder, model.fc_mu, model.fc_logvar, *model.decoder]) == texts([
        *(layer for n, m in widths for layer in (nn.Conv2d(n, m, 4, 2, 1), nn.ReLU())), nn.Flatten(),
        nn.Linear(512 * 4 * 4, 128), nn.Linear(512 * 4 * 4, 128),
        nn.Linear(128, 512 * 4 * 4), nn.Unflatten(1, (512, 4, 4)),
        *(layer for n, m in widths[:0:-1] for layer in (nn.ConvTranspose2d(m, n, 4, 2, 1), nn.ReLU())),
        nn.ConvTranspose2d(32, 3, 4, 2, 1), nn.Tanh()])
    assert texts(quantized.encoder) == texts([nn.Conv2d(3, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 4, 2, 1)])
    codebook, cost = quantized.quantizer.codebook, quantized.quantizer.commitment_cost
    assert codebook.shape == (128, 64) and codebook.abs().max() <= 1 / 128 and cost == 0.25
    assert isinstance(classifier.layers, ResNet) and classifier.layers.fc.out_features == 7
    assert texts(mlp.layers) == texts([nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 7)])
    assert [network.lr for network in (model, quantized, classifier, mlp)] == [2e-4, 1e-3, 1e-3, 1e-3]
    optimizer = model.configure_optimizers()
    assert optimizer.defaults["weight_decay"] == 0 and optimizer.defaults["betas"] == (0.9, 0.999)


def test_the_loss_has_means_and_more_samples_of_z_by_the_epoch(monkeypatch):
    model, x = photo_networks.PhotoVAE(_small(kl_weight=0.2)), torch.rand(5, 3, 16, 16)
    mean, log_variance = model.posterior(x)
    kl = (-0.5 * (1 + log_variance - mean ** 2 - log_variance.exp())).mean().item()
    for epoch, samples in enumerate((1, 1, 1, 1, 5, 10, 10)):
        monkeypatch.setattr(photo_networks.PhotoVAE, "current_epoch", epoch)
        torch.manual_seed(3)
        found = {name: value.item() for name, value in model.losses(x, None).items()}
        torch.manual_seed(3)
        decoded = [model.decoder(mean + (log_variance / 2).exp() * torch.randn_like(mean)) for _ in range(samples)]
        reconstruction = torch.stack([(y - (2 * x - 1)) ** 2 for y in decoded]).mean().item()
        assert found == {"reconstruction": pytest.approx(reconstruction, rel=1e-5), "kl": pytest.approx(kl, rel=1e-4),
                         "loss": pytest.approx(reconstruction + 0.2 * kl, rel=1e-5)}, epoch
    assert model.decode(model.encode(x)).shape == x.shape and 0 <= model.reconstruct(x).min() < 1


def test_the_last_epochs_are_short_and_the_variants_rate_rises_and_falls(photos, tmp_path):
    train, test, _ = data.read_split([photos[0]], 16, 3)
    train, seen, rates = train.subsample(80, 0), [], []

    class Watched(photo_networks.PhotoVAE):
        def losses(self, x, y):
            if self.training:
                seen.append(self.current_epoch)
                rates.append(self.optimizers().param_groups[0]["lr"])
            return super().losses(x, y)

    for changed in ({}, {"scheduled": True, "last_batches": 0}):
        training.Run(tmp_path, "cpu", threads=1, overwrite=True).fit(
            "vae", Watched(_small(**changed)), train, test.subsample(20, 0), epochs=7, batch_size=20)
    assert [seen[:24].count(epoch) for epoch in range(7)] == [4, 4, 4, 4, 4, 2, 2] and set(rates[:24]) == {2e-4}
    cycle = rates[24:]
    assert len(cycle) == 28 and max(cycle) == pytest.approx(2e-4, rel=0.05) and cycle.index(max(cycle)) in (1, 2, 3)
    assert cycle[0] < 2e-5 and cycle[-1] < 1e-6 and cycle[3:] == sorted(cycle[3:], reverse=True)


def test_photos_are_moved_and_mirrored_in_training_of_the_variant_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(training.StudyModule, "training_step", lambda self, batch, index: seen.append(batch[0]))
    photo = torch.arange(3 * 16 * 16.0).view(3, 16, 16)
    for augmented in (True, False):
        torch.manual_seed(0)
        model = photo_networks.VQVAE(_small(augmented=augmented))
        model.training_step((photo.expand(64, -1, -1, -1), None), 0)
        model.training_step((torch.ones(4, 9), None), 0)  # features
    padded = nn.functional.pad(photo[None], (4, 4, 4, 4), mode="reflect")[0]
    crops = [padded[:, i:i + 16, j:j + 16] for i in range(9) for j in range(9)]
    views = {tuple(view.flatten().tolist()) for crop in crops for view in (crop, crop.flip(2))}
    found = {tuple(view.flatten().tolist()) for view in seen[0]}
    assert found <= views and len(found) > 20
    assert torch.equal(seen[2], photo.expand(64, -1, -1, -1)) and torch.equal(seen[1], seen[3])


def test_averaging_samples_of_the_latent_tends_to_the_mean_image():
    model = types.SimpleNamespace(
        moments=lambda x: torch.cat([x.flatten(1), torch.zeros(len(x), 12)], 1), decode=lambda z: z.view(-1, 3, 2, 2))
    x = torch.rand(300, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = dict(representations.averaged_reconstructions(model, x, 0))
    assert list(found) == [1, 5, 10]
    for k, images in found.items():  # unit variance, so the squared error is 1 / k
        assert float(((images - x) ** 2).mean()) == pytest.approx(1 / k, rel=0.1), k


def test_the_mixture_has_the_components_of_the_latents_and_is_like_them():
    rng = np.random.default_rng(0)
    kind = rng.integers(2, size=600)
    latents = torch.from_numpy(rng.normal(size=(600, 2)) * 0.3 + np.array([[-3.0, 0], [3, 1]])[kind]).float()
    mixture = representations.fit_mixture(latents, _small(components=(1, 2)), 0)
    single = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    assert len(mixture.weights_) == 2
    assert len(representations.fit_mixture(single, _small(components=(1, 8)), 0).weights_) == 1
    assert len(representations.fit_mixture(latents[:9], _small(components=(20,)), 0).weights_) == 9
    drawn = representations.generated(types.SimpleNamespace(latent=2, decode=lambda z: z), mixture, 400, 0)
    assert drawn["mixture"].shape == (400, 2) and torch.allclose(drawn["mixture"].mean(0), latents.mean(0), atol=0.5)
    assert float(drawn["mixture"][:, 0].abs().min()) > 1
    assert drawn["N(0, I)"].shape == (400, 2) and float(drawn["N(0, I)"].std()) == pytest.approx(1, abs=0.1)


def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    found, accuracies = studied.results, studied.results["accuracies"]
    assert list(found["numbers"]) == found["variants"] == ["described", "tuned"]
    assert set(accuracies) == {"most frequent class", *(
        f"{title}, {variant}" for title in representations.CLASSIFIERS.values() for variant in found["variants"])}
    assert accuracies["most frequent class"]["held_out"] == pytest.approx(24 / 60)
    assert accuracies["most frequent class"]["interval"] == pytest.approx([0.2857, 0.5263], abs=1e-4)  # Wilson's
    assert all(one["interval"][0] <= one["held_out"] <= one["interval"][1] for one in accuracies.values())
    for variant, numbers in found["numbers"].items():
        assert accuracies[f"photo, CNN, {variant}"]["held_out"] == numbers["cnn"]["accuracy"]["mean"]
        assert len(numbers["cnn"]["accuracy"]["values"]) == 2
        mse = [numbers["vae"][f"mse_{k}"]["mean"] for k in (1, 5, 10)]
        assert mse[0] > mse[1] > mse[2] > 0 and 0 <= numbers["vae"]["active"]["mean"] <= 6
        assert set(numbers["fid"]) == {f"many: {what}, own features" for what in (
            "N(0, I)", "mixture", "latents of its photos", "training images")}
        assert numbers["vae"]["components"]["mean"] in (1, 1.5, 2)
        assert 1 <= numbers["vqvae"]["perplexity"]["mean"] <= numbers["vqvae"]["active_codes"]["mean"] <= 12
    trained = list(itertools.product(found["variants"], (0, 1), NETWORKS))
    assert set(found["history"]) == {f"{variant} {seed} {name}" for variant, seed, name in trained}
    assert {len(rows) for rows in found["history"].values()} == {2}  # as --epochs says
    assert set(studied.models) == {"features", *(f"{name}_{variant}_seed{seed}" for variant, seed, name in trained)}
    assert studied.figures == {f"{name}_{variant}.png" for name in (
        "loss", "reconstructions", "averaged", "samples", "vq_reconstructions", "vq_loss", "classifiers")
        for variant in found["variants"]}
    agrees = {claim["published"]: claim["agrees"] for claim in found["conclusions"]}
    accuracy, fid = (next(verdict for name, verdict in agrees.items() if word in name) for word in ("CNN", "249.12"))
    assert accuracy is (accuracies["photo, CNN, described"]["held_out"] == 1) and fid is None
    for shown in ("249.12", "--inception", "we find"):
        assert shown in studied.text


def test_checkpoints_with_a_latent_are_sampled_and_traversed(studied, tmp_path, capsys):
    image = tmp_path / "a.png"
    for name, tool in itertools.product(studied.models, ("sample", "traverse")):
        code = command.main([tool, str(studied.folder / f"checkpoints/{name}.ckpt"), "--out", str(image)])
        said = capsys.readouterr()
        if name.startswith("vae"):
            assert code == 0 and said.out == f"wrote {image}\n" and Image.open(str(image)).size[0] > 100
            image.unlink()
        else:
            assert code == 2 and "expected a model that decodes z ~ N(0, I)" in said.err and not image.exists(), name


def test_sampling_reports_bad_input_in_one_line(studied, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = torch.load(str(studied.folder / "checkpoints/vae_described_seed0.ckpt"), weights_only=True)
    nan = {key: value * float("nan") for key, value in good["state_dict"].items()}
    (tmp_path / "text").write_text("no checkpoint")
    for name, content in {"good": good, "other": {"state_dict": {}}, "empty": {**good, "state_dict": {}},
                          "nan": {**good, "state_dict": nan}}.items():
        torch.save(content, name)
    for name in ("os.path", "studies.vq.Nothing", "studies.old.Nothing"):
        torch.save({**good, "metadata": {**good["metadata"], "model": name}}, name)
    for words, said in (
            ("sample none", "none: expected a checkpoint, found: No such file"),
            ("sample text", "text: expected a checkpoint of a study, as in its folder "),
            ("sample other", "other: expected a checkpoint of a study, as in its folder "),
            ("sample nan", "nan: expected weights that are numbers, found NaN"),
            ("sample os.path", "expected a model of studies/, found path"),
            ("sample studies.vq.Nothing", "expected a model of studies/, found Nothing"),
            ("sample studies.old.Nothing", "expected a model of studies/, found Nothing"),
            ("sample empty", "expected the weights of a PhotoVAE, found: "),
            ("sample good --n 0", "--n: expected 1 to 10,000 images, found 0"),
            ("traverse good --out a.jpg", "expected a name that ends in .png, found a.jpg")):
        tool, *rest = words.split()
        assert command.main([tool, "--out", "a.png", *rest]) == 2
        found = capsys.readouterr().err
        assert said in found and found.count("\n") == 1, found
    assert not (tmp_path / "a.png").exists()


def test_a_finished_study_is_not_trained_again_and_stale_figures_go(studied, monkeypatch):
    monkeypatch.setattr(training.StudyModule, "training_step", lambda *_: pytest.fail("trained again"))
    (studied.folder / "figures/mine.png").write_bytes(b"not of the study")
    assert studied.study("--resume")[0] == 0
    again = json.loads((studied.folder / "results.json").read_text())["numbers"]
    before = studied.results["numbers"]["described"]
    assert list(again) == ["described"]
    for part, name in (("cnn", "accuracy"), ("vae", "mse_5"), ("vae", "kl"), ("fid", "many: mixture, own features")):
        assert again["described"][part][name]["values"] == before[part][name]["values"][:1], name
    figures = {path.name for path in (studied.folder / "figures").iterdir()}
    assert "mine.png" in figures and "loss_described.png" in figures and not any("tuned" in name for name in figures)


def test_two_sources_train_the_vae_together_if_they_do_not_overlap(photos, tmp_path):
    quick = {**TINY, "components": (20,)}
    left = small_studies.studied(quick, "representations", list(photos), tmp_path, "--epochs", "2")
    found, numbers = left.results, left.results["numbers"]["described"]
    assert found["data"]["train"] == 240 + 48 and found["data"]["source"] == ["many", "one"]
    assert found["classes"] == ["all"] and numbers["vae"]["components"]["mean"] == 20
    assert {"many: N(0, I), own features", "one: mixture, own features"} <= set(numbers["fid"])
    assert "many: mixture, own features" not in numbers["fid"]
    assert training.read_checkpoint(tmp_path / "checkpoints/vae_described_seed0.ckpt")["metadata"]["images"] == 288
    claims = [claim for claim in found["conclusions"] if "accuracy" in claim["published"]]
    assert [claim["agrees"] for claim in claims] == [True] * 3
    assert all("any classifier of one class" in claim["found"] for claim in claims)
    assert "a classifier that never sees a photo has an accuracy of 100 % too" in left.text
    code, said = small_studies.study(TINY, "representations", [photos[0], photos[0] / "kind1"], tmp_path / "out")
    assert code == 2 and len(said) == 1 and "expected other images to hold out than those trained on" in said[0], said
    assert not (tmp_path / "out").exists()
