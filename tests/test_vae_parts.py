"""The parts of the model and its training, each against a reference or a property that defines it."""
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.distributions as D
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch.optim.optimizer import register_optimizer_step_pre_hook

seeds = st.integers(0, 2 ** 32 - 1)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits(vae, draw):
    return vae.DigitDataset(draw(np.arange(64) % 4, 7))


@pytest.fixture(scope="module")
def x(digits):
    """Their pixels, float32 (64, 784)."""
    return digits[range(64)][0].flatten(1)


@given(seed=seeds, contrast=st.sampled_from([0.0, 0.02, 0.3, 1.0]), noise=st.sampled_from([0.01, 0.3, 1.0]))
def test_ssim_is_that_of_skimage(vae, x, seed, contrast, noise):
    rng = np.random.default_rng(seed)
    a = x[int(rng.integers(64))].numpy() * np.float32(contrast)
    b = np.clip(a + noise * rng.normal(size=784), 0, 1).astype(np.float32)
    expected = structural_similarity(a.reshape(28, 28), b.reshape(28, 28), data_range=1.0)
    assert float(vae.ssim(torch.from_numpy(a[None]), torch.from_numpy(b[None]))) == pytest.approx(expected, abs=1e-4)


@given(seed=seeds, K=st.integers(1, 6))
def test_kl_to_the_prior_is_the_sum_over_the_classes(vae, seed, K):
    model, generator = vae.VAE(K), _generator(seed)
    logits, mu, logvar = (2 * torch.randn(6, size, generator=generator) for size in (K, 2, 2))

    def normal(mean, std):
        return D.Independent(D.Normal(mean.expand(6, 2), std.expand(6, 2)), 1)

    each = torch.stack([D.kl_divergence(normal(mu, (logvar / 2).exp()), normal(mean, model.prior_std))
                        for mean in model.prior_means], dim=1)
    q = logits.softmax(1)
    expected = (q * each).sum(1) + D.kl_divergence(D.Categorical(q), D.Categorical(torch.ones(6, K)))
    assert vae.kl_to_prior(model, logits, mu, logvar).numpy() == pytest.approx(expected.numpy(), rel=1e-4)


def test_moment_distance_is_0_for_the_prior_and_sees_a_class_that_drifts(vae):
    model, labels, variance = vae.VAE(3), torch.arange(30_000) % 3, 0.2
    logits, centers = 50 * F.one_hot(labels, 3).float(), model.prior_means[labels]
    mu = centers + model.prior_std * torch.randn(30_000, 2, generator=_generator()) * (1 - variance) ** 0.5
    logvar = torch.full((30_000, 2), math.log(variance)) + 2 * model.prior_std.log()
    moved, wider = mu + model.prior_std * 0.5 * (labels == 1)[:, None], 2 * mu - centers
    for latents, expected, within in ((mu, 0, 0.01), (moved, 0.5, 0.05),
                                      (wider, 6 * (4 * (1 - variance) + variance - 1) ** 2, 1.7)):
        assert float(vae.moment_distance(model, logits, latents, logvar)) == pytest.approx(expected, abs=within)


@pytest.mark.parametrize("q", [0, 1e-6, 0.7, 1])
def test_generalized_cross_entropy(vae, q):
    """Cross-entropy for q = 0, mean absolute error for q = 1."""
    logits, labels = torch.randn(50, 4, generator=_generator()).double(), torch.arange(50) % 4
    p = logits.softmax(1)[torch.arange(50), labels]
    found = vae.generalized_cross_entropy(logits, F.one_hot(labels, 4).double(), q)
    assert found.numpy() == pytest.approx((-p.log() if q < 1e-3 else (1 - p ** q) / q).numpy(), rel=1e-4)


def test_plain_loss_is_the_assignments(vae, x):
    """With the hyper-parameters of --plain and one component: binary cross-entropy + KL to N(0, I)."""
    config, model = dataclasses.replace(vae.Config(), **vae.PLAIN), vae.VAE(1).eval()
    with torch.no_grad():
        loss, terms, _ = vae.training_loss(model, x, None, torch.ones(64, 1), config, _generator())
        mu, logvar = model.encode(x)
        drawn = model.decode(model.reparameterize(mu, logvar, torch.randn(64, 2, generator=_generator())))
        bce = F.binary_cross_entropy(drawn, x, reduction="sum")
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    for found, expected in ((loss, bce + kl), (terms["reconstruction"], bce), (terms["KL"], kl)):
        assert float(found) == pytest.approx(float(expected) / 64, rel=1e-5 if found is loss else 1e-4)


def test_augmented_images_teach_the_encoder_alone(vae, x):
    def gradients(augmented):
        torch.manual_seed(0)
        model, targets = vae.VAE(3), torch.eye(3)[torch.arange(64) % 3]
        vae.training_loss(model, x, augmented, targets, vae.Config(), _generator())[0].backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    with_them, without = gradients(x.roll(1, 1)), gradients(None)
    for name, gradient in with_them.items():
        assert gradient.any() and torch.equal(gradient, without[name]) == name.startswith("decoder"), name


@pytest.mark.parametrize("K", [1, 2, 3, 7, 20])
def test_prior_has_mean_0_covariance_i_and_components_apart(vae, K):
    means, std = vae.VAE(K).prior_means, vae.VAE(K).prior_std
    assert means.mean(0).numpy() == pytest.approx(0, abs=1e-6)
    covariance = means.T @ means / K + std ** 2 * torch.eye(2)
    assert float(covariance.trace()) == pytest.approx(2, rel=1e-5)
    if K != 2:
        assert covariance.numpy() == pytest.approx(np.eye(2), abs=1e-5)
    if K > 1:
        distance = torch.cdist(means, means) + 1e9 * torch.eye(K)
        assert (distance.min(1)[0] / std).numpy() == pytest.approx(vae.SEPARATION, rel=1e-3)


def test_reparameterize_samples_the_posterior(vae):
    noise = torch.randn(20_000, 2, generator=_generator())
    z = vae.VAE.reparameterize(torch.tensor([[3.0, -1]]), torch.tensor([[math.log(4.0), math.log(0.25)]]), noise)
    assert z.mean(0).numpy() == pytest.approx([3, -1], abs=0.06)
    assert z.std(0).numpy() == pytest.approx([2, 0.5], rel=0.03)


@pytest.mark.parametrize("shape", [(64, 784), (64, 28, 28), (64, 1, 28, 28)])
def test_forward_decodes_the_mean_or_in_training_mode_a_sample(vae, x, shape):
    model = vae.VAE()
    with torch.no_grad():
        (first, mu, logvar), (second, again, _) = model(x.view(shape)), model(x.view(shape))
        assert torch.equal(mu, again) and float((first - second).abs().max()) > 0.01
        recon, mu, logvar = model.eval()(x.view(shape))
        assert torch.equal(recon, model.decode(mu)) and torch.equal(mu, model.encode(x)[0])
    assert recon.shape == (64, 784) and mu.shape == logvar.shape == (64, 2)
    assert 0 <= float(recon.min()) and float(recon.max()) <= 1


def test_logvar_keeps_its_exponential_finite(vae):
    model = vae.VAE().eval()
    with torch.no_grad():
        model.encoder[-1].weight.mul_(1e6)
        logvar = model.encode(torch.rand(20, 784))[1]
    bounds = torch.tensor([-10.0, 5]) + 2 * model.prior_std.log()
    assert [float(logvar.min()), float(logvar.max())] == pytest.approx(bounds.tolist())


@pytest.mark.parametrize("K", [1, 3])
def test_decoder_moves_z_to_within_radius_s_of_a_mean(vae, K):
    """With one component, which is the assignment's model, it does not."""
    model = vae.VAE(K)
    z = torch.cat([model.prior_means, 4 * torch.randn(200, 2, generator=_generator())]).requires_grad_()
    expected = z.detach().clone()
    for point in expected if K > 1 else ():
        distance, nearest = (point - model.prior_means).norm(dim=1).min(0)
        limit = vae.RADIUS * model.prior_std
        if distance > limit:
            point.lerp_(model.prior_means[nearest], 1 - limit / distance)
    phase = expected @ model.frequencies
    expected = model.decoder(torch.cat([phase.sin(), phase.cos(), expected], 1))
    found = model.decode_logits(z)
    assert found.detach().numpy() == pytest.approx(expected.detach().numpy(), abs=1e-4)
    assert torch.equal(found, model.decode_logits(z, frozen=True))
    found.sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("still", [True, False])
def test_augment_moves_each_image_its_own_way_and_repeatably(vae, x, still):
    config = dataclasses.replace(vae.Config(), **(vae.PLAIN if still else {}))
    same = x[:1].expand(20, 784).contiguous()
    first, again = (vae.augment(same, config, _generator(1)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == same.shape
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    assert first.sum(1).numpy() == pytest.approx(same.sum(1).numpy(), rel=0.35)  # the shape has not left the image
    if still:
        assert first.numpy() == pytest.approx(same.numpy(), abs=1e-4)
    else:
        assert len(torch.unique(first, dim=0)) == 20


@pytest.fixture
def rates():
    """The learning rate of each optimizer step so far."""
    found = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: found.append(optimizer.param_groups[0]["lr"]))
    yield found
    hook.remove()


def test_training_returns_the_stored_model_logs_and_schedules_lr(vae, digits, rates):
    """Rounded to half precision already, so that what is reported of it holds for the file."""
    logged = []
    model = vae.train_vae(digits, 2, dataclasses.replace(vae.Config(), epochs=20), log=lambda *row: logged.append(row))
    assert not model.training and [epoch for epoch, _, _ in logged] == list(range(20))
    assert [progress for _, progress, _ in logged] == pytest.approx(np.arange(1, 21) / 21)  # one step each
    assert all(set(terms) == {"reconstruction", "KL", "SSIM"} for _, _, terms in logged)
    assert logged[-1][2]["reconstruction"] < logged[0][2]["reconstruction"]
    assert 0 < rates[0] < max(rates) == rates[2] == pytest.approx(vae.Config.lr, rel=0.05)
    assert (np.diff(rates[2:]) < 0).all() and rates[-1] < 0.02 * vae.Config.lr
    for name, value in model.state_dict().items():
        assert torch.equal(value, vae.stored_weights(model)[name].to(value.dtype)), name


def test_minutes_shortens_the_whole_schedule(vae, call, data, rates, monkeypatch):
    """On a machine whose steps take 0.4 s."""
    clock, loss = [0.0], vae.training_loss

    def slow(*args):
        clock[0] += 0.4
        return loss(*args)

    monkeypatch.setattr(vae.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(vae, "training_loss", slow)
    found = call(data.train, data.val, "train", "a.pth", "a.pkl", "--epochs", "100000", "--minutes", "0.2")
    assert found.code == 0 and 11 < clock[0] < 12.1
    assert found.err.count("the time limit shortened the schedule") == 1 and vae.load_checkpoint("a.pth")
    assert max(rates) > 0.8 * vae.Config.lr and rates[-1] < 0.01 * vae.Config.lr


@pytest.fixture(scope="module")
def unchanged(vae):
    """Noise, in which different searches find different clusters; a short configuration; the weights that it gives."""
    noise = vae.DigitDataset(np.random.default_rng(0).random((64, 784), np.float32))
    short = dataclasses.replace(vae.Config(), epochs=3)
    return noise, short, vae.train_vae(noise, 3, short).state_dict()


@pytest.mark.parametrize("change", [
    {"beta": 0.0}, {"gce_q": 0.0}, {"label_ema": 0.0}, {"label_ema_start": 0.9}, {"ssim_weight": 0.0},
    {"gce_weight": 0.0}, {"moment_weight": 0.0}, {"frequency_scale": 0.0}, {"rotate": 0.0}, {"translate": 0.0},
    {"scale": 0.0}, {"shear": 0.0}, {"weight_decay": 0.0}, {"warmup": 0.5}, {"batch_size": 7}, {"seed": 1}],
    ids=lambda change: next(iter(change)))
def test_every_hyper_parameter_matters_and_can_be_left_out(vae, unchanged, change):
    noise, short, before = unchanged
    after = vae.train_vae(noise, 3, dataclasses.replace(short, **change)).state_dict()
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)


def _moments(image):
    """Row and column of the center of an image (784,), in px, and its slant."""
    image = image.view(28, 28).double()
    mass, axis = image / image.sum(), torch.arange(28).double() - 13.5
    row, column = float((mass.sum(1) * axis).sum()), float((mass.sum(0) * axis).sum())
    both = (mass * (axis[:, None] - row) * (axis - column)).sum()
    return row, column, float(both / (mass.sum(1) * (axis - row) ** 2).sum())


@given(slant=st.floats(-0.7, 0.7), row=st.integers(-3, 3), column=st.integers(-3, 3))
def test_deskew_removes_shear_and_centers(vae, slant, row, column):
    v, u = torch.meshgrid(torch.arange(28.0) - 13.5 - row, torch.arange(28.0) - 13.5 - column, indexing="ij")
    bar = ((2 - (u - slant * v).abs()).clamp(0, 1) * (7.5 - v.abs()).clamp(0, 1)).view(1, 784)
    assert _moments(bar[0])[2] == pytest.approx(slant, abs=0.05)
    assert _moments(vae.deskew(bar)[0]) == pytest.approx((0, 0, 0), abs=0.05)


@given(sizes=st.lists(st.integers(10, 40), min_size=2, max_size=4), seed=seeds)
def test_spectral_clusters_are_the_connected_components(vae, sizes, seed):
    group = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    neighbors = np.empty((len(group), 6), int)
    for k in range(len(sizes)):
        ring, = np.nonzero(group == k)
        neighbors[ring] = ring[(np.arange(len(ring))[:, None] + np.arange(6)) % len(ring)]
    assert _same_partition(group, vae.spectral_clustering(neighbors, len(sizes)))


def _same_partition(a, b):
    return len(set(zip(a, b))) == len(set(a)) == len(set(b))


def _pseudo_labels(vae, images, K, **options):
    return vae.pseudo_labels(vae.DigitDataset(images), K, _generator(), **options).tolist()


def _one_epoch_is_finite(vae, images, K):
    model = vae.train_vae(vae.DigitDataset(images), K, dataclasses.replace(vae.Config(), epochs=1))
    return all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize("n, K, graph_size", [(40, 2, 99), (90, 4, 99), (300, 3, 999), (300, 3, 45), (300, 2, 299)])
def test_pseudo_labels_are_the_shapes_in_any_order(vae, draw, n, K, graph_size):
    """Also where only `graph_size` images are clustered and the others follow, and where the file is sorted."""
    kinds = np.arange(n) % K
    images, order = draw(kinds, 5), np.argsort(kinds, kind="stable")
    assert _same_partition(kinds, _pseudo_labels(vae, images, K, graph_size=graph_size))
    assert _same_partition(kinds[order], _pseudo_labels(vae, images[order], K, graph_size=graph_size))


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_pseudo_labels_of_few_images_use_every_cluster(vae, n):
    assert len(set(_pseudo_labels(vae, np.random.default_rng(0).random((n, 784)), 3))) == min(n, 3)


@pytest.mark.parametrize("noise", [0, 1e-3])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_copies_of_one_image_are_no_cluster(vae, draw, share, noise):
    """Exact copies never are; near-copies are not where most images are distinct. One epoch runs in any case."""
    n, rng = round(300 * (1 - share)), np.random.default_rng(0)
    kinds = np.append(np.arange(n) % 3, np.zeros(300 - n, int))
    images = draw(np.append(kinds[:n], 0), 3)[np.minimum(np.arange(300), n)] / 255
    images[n:] += noise * rng.random((300 - n, 28, 28))
    order = rng.permutation(300)
    if noise == 0 or share < 0.5:
        assert _same_partition(kinds[order], _pseudo_labels(vae, images[order], 3))
    assert _one_epoch_is_finite(vae, images[order], 3)


def test_ten_images_thirty_times_each(vae, draw):
    images = np.repeat(draw(np.arange(10) % 2, 3), 30, axis=0)
    clusters = np.reshape(_pseudo_labels(vae, images, 2), (10, 30))
    assert (clusters == clusters[:, :1]).all() and len(np.unique(clusters)) == 2
    assert _one_epoch_is_finite(vae, images, 2)


def test_refine_is_never_worse_than_the_mean_and_stays_near(vae, model, x):
    with torch.no_grad():
        drawn = model.decode(model.encode(x[:20])[0] + 0.02 * model.prior_std)
        for images, gain in ((x, 0.002), (drawn, 1e-6)):
            mu, z = model.encode(images)[0], vae.refine(model, images)
            before, after = (vae.ssim(images, y) - ((images - y) ** 2).mean(1) for y in map(model.decode, (mu, z)))
            assert (after >= before - 1e-5).all() and float((after - before).mean()) > gain
            assert float((z - mu).norm(dim=1).max()) < 2 * model.prior_std
            assert torch.equal(z, vae.refine(model, images))


def test_latents_and_reconstructions_are_those_of_the_model(vae, model, digits, x):
    with torch.no_grad():
        recon, mu, _ = model(x)
    found, latents = vae.reconstruct(model, digits, refined=False), vae.encode_means(model, digits)
    assert found.dtype == np.float32 and found == pytest.approx(recon.view(-1, 28, 28).numpy(), abs=1e-6)
    assert latents.dtype == np.float64 and latents == pytest.approx(mu.numpy())
    assert vae.encode_means(model, vae.DigitDataset(digits.images[3])) == pytest.approx(mu[3:4].numpy(), abs=1e-4)


def test_classify_gives_the_label_of_the_nearest_component(vae, model, digits):
    latents, names = vae.encode_means(model, digits), np.array([40, 50, 60])
    centers = np.array([latents[0], latents[1] + 1e-3, [1e3, 1e3]])
    mixture = vae.GaussianMixture.from_parameters(np.full(3, 1 / 3), centers, np.array([np.eye(2)] * 3))
    expected = names[((latents[:, None] - centers) ** 2).sum(-1).argmin(1)]
    assert vae.classify(model, mixture, names, digits).tolist() == expected.tolist()
