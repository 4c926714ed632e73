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
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

seeds = st.integers(0, 2 ** 32 - 1)


@pytest.fixture(scope="module")
def digits(draw):
    """Drawn images float32 (64, 784)."""
    return torch.from_numpy(draw(np.arange(64) % 4, 7).reshape(64, 784).astype(np.float32) / 255)


def _normal(mean, log_variance):
    return D.Independent(D.Normal(mean, (log_variance / 2).exp()), 1)


def _prior(model):
    K, scale = len(model.prior_means), model.prior_scale.expand(len(model.prior_means), 2)
    return D.MixtureSameFamily(D.Categorical(torch.ones(K)), D.Independent(D.Normal(model.prior_means, scale), 1))


# ---------------------------------------------------------------------------------------------------------------- loss

@given(seed=seeds, contrast=st.sampled_from([0.0, 0.02, 0.3, 1.0]), noise=st.sampled_from([0.01, 0.3, 1.0]))
def test_ssim_is_that_of_skimage(vae, digits, seed, contrast, noise):
    rng = np.random.default_rng(seed)
    x = digits[int(rng.integers(64))].numpy() * np.float32(contrast)
    y = np.clip(x + noise * rng.normal(size=784), 0, 1).astype(np.float32)
    expected = structural_similarity(x.reshape(28, 28), y.reshape(28, 28), data_range=1.0)
    assert float(vae.ssim(torch.from_numpy(x[None]), torch.from_numpy(y[None]))) == pytest.approx(expected, abs=1e-4)


def test_similarity_is_ssim_less_squared_error(vae, digits):
    x, y = digits, digits.roll(1, 0)
    expected = vae.ssim(x, y) - F.mse_loss(x, y, reduction="none").mean(1)
    assert vae.similarity(x, y).numpy() == pytest.approx(expected.numpy())


def test_reconstruction_loss_is_minus_the_bernoulli_log_likelihood(vae, digits):
    logits, x = torch.randn(64, 784, generator=torch.Generator().manual_seed(0)), digits.round()
    expected = -D.Independent(D.Bernoulli(logits=logits), 1).log_prob(x)
    assert vae.reconstruction_loss(logits, x).numpy() == pytest.approx(expected.numpy(), rel=1e-5)


@given(seed=seeds, scale=st.floats(0.1, 3))
def test_the_kl_to_a_component_is_that_of_torch_distributions(vae, seed, scale):
    mean, log_variance, centre = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(seed)).double() * 2
    q, prior = _normal(mean, log_variance), _normal(centre, torch.full((6, 2), 2 * math.log(scale)))
    kl = vae.kl_to_component(mean, log_variance, centre, scale)
    assert kl.numpy() == pytest.approx(D.kl_divergence(q, prior).numpy(), rel=1e-5)


@given(seed=seeds, K=st.integers(1, 6))
def test_the_kl_to_the_prior_bounds_the_one_without_classes(vae, seed, K):
    """KL(q(z|x) q(c|x) || p(z, c)) >= KL(q(z|x) || p(z)), with equality for one component; the latter by sampling."""
    draw, model = torch.Generator().manual_seed(seed), vae.VAE(K)
    logits, mean, noise = torch.randn(4, K, generator=draw) * 3, torch.randn(4, 2, generator=draw), torch.randn(4, 2)
    found = vae.kl_to_prior(model, logits, mean, noise - 3)
    q = _normal(mean, noise - 3)
    z = q.sample((4000,))
    sampled = q.log_prob(z) - _prior(model).log_prob(z)
    margin = 6 * sampled.std(0) / 4000 ** 0.5 + 1e-3
    assert (found >= sampled.mean(0) - margin).all()
    if K == 1:
        assert found.numpy() == pytest.approx(sampled.mean(0).numpy(), abs=float(margin.max()))


def test_the_kl_to_the_prior_of_a_certain_class_is_that_to_its_component_and_log_k(vae):
    model, logits = vae.VAE(3), torch.tensor([[0.0, 50, 0]])
    mean, log_variance = torch.tensor([[0.3, -1.0]]), torch.tensor([[-4.0, -3]])
    expected = vae.kl_to_component(mean, log_variance, model.prior_means[1], model.prior_scale) + math.log(3)
    assert vae.kl_to_prior(model, logits, mean, log_variance).numpy() == pytest.approx(expected.numpy(), rel=1e-5)


def test_the_moment_distance_is_0_for_latents_of_the_prior_and_sees_a_class_that_drifts(vae):
    model, draw = vae.VAE(3), torch.Generator().manual_seed(0)
    labels, variance = torch.arange(30_000) % 3, 0.2
    logits = 50 * F.one_hot(labels, 3).float()
    offset = torch.randn(30_000, 2, generator=draw) * (1 - variance) ** 0.5
    mean, log_variance = model.prior_means[labels] + model.prior_scale * offset, torch.full((30_000, 2), math.log(
        variance)) + 2 * model.prior_scale.log()
    assert float(vae.moment_distance(model, logits, mean, log_variance)) == pytest.approx(0, abs=0.01)
    moved = mean + model.prior_scale * 0.5 * (labels == 1)[:, None]
    assert float(vae.moment_distance(model, logits, moved, log_variance)) == pytest.approx(0.5, abs=0.05)
    wider = model.prior_means[labels] + 2 * (mean - model.prior_means[labels])
    expected = 3 * 2 * (4 * (1 - variance) + variance - 1) ** 2
    assert float(vae.moment_distance(model, logits, wider, log_variance)) == pytest.approx(expected, rel=0.05)


def test_generalised_cross_entropy_lies_between_its_two_limits(vae):
    logits, labels = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(50) % 4
    targets, right = F.one_hot(labels, 4).double(), logits.softmax(1)[torch.arange(50), labels]
    for q, expected in ((0, F.cross_entropy(logits, labels, reduction="none")), (1, 1 - right),
                        (0.7, (1 - right ** 0.7) / 0.7)):
        assert vae.generalized_cross_entropy(logits, targets, q).numpy() == pytest.approx(expected.numpy())
    assert vae.generalized_cross_entropy(logits, targets, 1e-6).numpy() == pytest.approx(
        F.cross_entropy(logits, labels, reduction="none").numpy(), rel=1e-4)


def test_the_plain_loss_is_the_assignments(vae, digits):
    """With the plain recipe and one component: binary cross-entropy + KL to N(0, I)."""
    recipe, model = dataclasses.replace(vae.Recipe(), **vae.PLAIN), vae.VAE(1).eval()
    noise = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss, terms, _ = vae.training_loss(model, digits, digits[:0], torch.ones(64, 1), recipe, noise)
        mean, log_variance = model.encode(digits)
        drawn = model.decode(model.reparameterize(mean, log_variance, noise))
        bce = F.binary_cross_entropy(drawn, digits, reduction="sum")
        kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
    assert float(loss) == pytest.approx(float(bce + kl) / 64, rel=1e-5)
    assert [float(terms[name]) for name in ("reconstruction", "KL")] == pytest.approx(
        [float(bce) / 64, float(kl) / 64], rel=1e-4)


def test_the_loss_teaches_encoder_and_decoder_and_the_augmented_images_the_encoder_alone(vae, digits):
    def gradients(recipe, clean):
        torch.manual_seed(0)
        model = vae.VAE(3)
        loss, _, _ = vae.training_loss(model, clean, digits, torch.eye(3)[torch.arange(64) % 3], recipe,
                                       torch.zeros(128, 2))
        loss.backward()
        return model

    model = gradients(vae.Recipe(), digits)
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    logits, _, _ = model.posterior(digits)
    with torch.no_grad():
        drawn = model.decode_logits(torch.zeros(3, 2))
    assert torch.equal(drawn, model.decode_logits(torch.zeros(3, 2), frozen=True))
    model.zero_grad()
    z = torch.zeros(3, 2, requires_grad=True)
    model.decode_logits(z, frozen=True).sum().backward()
    assert z.grad.abs().sum() > 0 and all(p.grad is None or not p.grad.any() for p in model.decoder.parameters())


# --------------------------------------------------------------------------------------------------------------- model

@pytest.mark.parametrize("K", [1, 2, 3, 7, 20])
def test_the_prior_has_mean_0_covariance_1_and_components_apart(vae, K):
    means, scale = vae.mixture_prior(K)
    assert means.mean(0).numpy() == pytest.approx(0, abs=1e-6)
    covariance = means.T @ means / K + scale ** 2 * torch.eye(2)
    assert float(covariance.trace()) == pytest.approx(2, rel=1e-5)
    if K != 2:
        assert covariance.numpy() == pytest.approx(np.eye(2), abs=1e-5)
    if K > 1:
        distance = torch.cdist(means, means) + 1e9 * torch.eye(K)
        assert (distance.min(1)[0] / scale).numpy() == pytest.approx(vae.SEPARATION, rel=1e-3)


def test_reparameterize_draws_from_the_posterior(vae):
    noise = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    z = vae.VAE.reparameterize(torch.tensor([[3.0, -1]]), torch.tensor([[math.log(4.0), math.log(0.25)]]), noise)
    assert z.mean(0).numpy() == pytest.approx([3, -1], abs=0.06)
    assert z.std(0).numpy() == pytest.approx([2, 0.5], rel=0.03)


def test_model_has_a_two_dimensional_latent_and_images_between_0_and_1(vae, model, digits):
    with torch.no_grad():
        drawn, mean, log_variance = model(digits)
    assert drawn.shape == (64, 784) and mean.shape == log_variance.shape == (64, 2)
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    assert drawn.numpy() == pytest.approx(model.decode(mean).detach().numpy())
    assert drawn.numpy() == pytest.approx(model.decode_logits(mean).sigmoid().detach().numpy())
    for shape in ((64, 28, 28), (64, 1, 28, 28)):
        again = model(digits.view(shape))
        assert all(torch.equal(a.detach(), b) for a, b in zip(again, (drawn, mean, log_variance)))


def test_log_variance_is_kept_where_its_exponential_is_a_number(vae):
    model = vae.VAE().eval()
    with torch.no_grad():
        model.encoder[-1].weight.mul_(1e6)
        log_variance = model.encode(torch.rand(20, 784))[1]
    bounds = torch.tensor([-10.0, 5]) + 2 * model.prior_scale.log()
    assert [float(log_variance.min()), float(log_variance.max())] == pytest.approx(bounds.tolist())


def test_an_image_encodes_alike_alone_and_in_company(vae, model, digits):
    alone = torch.cat([vae.encode_means(model, image[None]) for image in digits])
    assert vae.encode_means(model, digits).numpy() == pytest.approx(alone.numpy(), abs=1e-4)
    assert vae.encode_means(model, digits, rows=7).numpy() == pytest.approx(alone.numpy(), abs=1e-4)


# -------------------------------------------------------------------------------------------------------------- images

def _moments(image):
    image = image.view(28, 28).double()
    mass, axis = image / image.sum(), torch.arange(28).double() - 13.5
    row, column = float((mass.sum(1) * axis).sum()), float((mass.sum(0) * axis).sum())
    both = (mass * (axis[:, None] - row) * (axis - column)).sum()
    return row, column, float(both / (mass.sum(1) * (axis - row) ** 2).sum())


def _slanted_bar(slant, row, column):
    """A bar (1, 784) whose middle is off by `row` and `column`, and which moves `slant` px sideways a row."""
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5 - row, torch.arange(28.0) - 13.5 - column, indexing="ij")
    return ((2 - (x - slant * y).abs()).clamp(0, 1) * (7.5 - y.abs()).clamp(0, 1)).view(1, 784)


@given(slant=st.floats(-0.7, 0.7), row=st.integers(-3, 3), column=st.integers(-3, 3))
def test_deskew_removes_shear_and_centres(vae, slant, row, column):
    bar = _slanted_bar(slant, row, column)
    assert _moments(bar[0])[2] == pytest.approx(slant, abs=0.05)  # the bar is what it should be
    found = _moments(vae.deskew(bar)[0])
    assert found == pytest.approx((0, 0, 0), abs=0.05)


def test_deskew_survives_a_blank_image(vae):
    assert torch.equal(vae.deskew(torch.zeros(2, 784)), torch.zeros(2, 784))


def test_augment_of_nothing_changes_nothing(vae, digits):
    still = dataclasses.replace(vae.Recipe(), rotate=0.0, shift=0.0, scale=0.0, shear=0.0)
    found = vae.augment(digits, still, torch.Generator().manual_seed(0))
    assert found.numpy() == pytest.approx(digits.numpy(), abs=1e-4)


def test_augment_moves_each_image_its_own_way_and_repeats_itself(vae, digits):
    same = digits[:1].expand(20, 784).contiguous()
    first, again = (vae.augment(same, vae.Recipe(), torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again) and first.shape == same.shape
    assert len(torch.unique(first, dim=0)) == 20
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    assert first.sum(1).numpy() == pytest.approx(same.sum(1).numpy(), rel=0.35)  # the shape has not left the image


# ------------------------------------------------------------------------------------------------------------ training

def test_nearest_neighbours_are_the_most_alike_of_the_blurred_images_as_they_are_and_deskewed(vae, digits):
    found = vae.nearest_neighbours(digits)
    assert found.shape == (64, 10)
    assert not (found == torch.arange(64)[:, None]).any()  # none is its own
    for view, mine in ((digits, found[:, :5]), (vae.deskew(digits), found[:, 5:])):
        blurred = gaussian_filter(view.view(64, 28, 28).double().numpy(), (0, 1, 1), mode="constant", truncate=3)
        blurred = torch.from_numpy(blurred.reshape(64, 784))
        likeness = F.cosine_similarity(blurred[:, None], blurred[None], dim=2) - 9 * torch.eye(64)
        assert likeness.gather(1, mine).numpy() == pytest.approx(likeness.topk(5)[0].numpy(), abs=1e-3)


def test_spectral_clusters_are_the_shapes(vae, digits):
    clusters = vae.spectral_clusters(vae.nearest_neighbours(digits).numpy(), 4)
    kinds = np.arange(64) % 4
    assert len({(a, b) for a, b in zip(kinds, clusters)}) == len(set(clusters)) == 4


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_spectral_clusters_of_too_few_points_use_every_cluster(vae, n):
    neighbours = vae.nearest_neighbours(torch.rand(n, 784)).numpy()
    assert len(set(vae.spectral_clusters(neighbours, 3))) == min(n, 3)


def test_spectral_clusters_do_not_take_a_clump_of_duplicates_for_a_cluster(vae, draw):
    """Eight copies of one image hang together by themselves; the two clusters are bars and rings all the same."""
    images = np.concatenate([draw(np.arange(90) % 2, 3), np.repeat(draw([2, 2], 9)[1:], 8, axis=0)])
    x = torch.from_numpy(images.reshape(-1, 784).astype(np.float32) / 255)
    clusters = vae.spectral_clusters(vae.nearest_neighbours(x).numpy(), 2)[:90]
    assert abs((clusters == np.arange(90) % 2).mean() - 0.5) >= 0.48


def test_learning_rate_warms_up_and_cools_down(vae):
    rates = [vae.learning_rate(progress, 0.1) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == 0 and rates[10] == pytest.approx(1) and rates[-1] == pytest.approx(0)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()


def test_training_returns_the_model_that_is_stored_and_logs_every_epoch(vae, digits):
    """Rounded to half precision already: what is reported of it holds for the file."""
    logged = []
    model = vae.train_vae(digits.numpy(), 2, dataclasses.replace(vae.Recipe(), epochs=3),
                          log=lambda epoch, terms: logged.append((epoch, terms)))
    assert not model.training and [epoch for epoch, _ in logged] == [0, 1, 2]
    assert all(set(terms) == {"reconstruction", "KL", "SSIM"} for _, terms in logged)
    assert logged[-1][1]["reconstruction"] < logged[0][1]["reconstruction"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, vae.stored_weights(model)[name].to(value.dtype)), name


@pytest.fixture(scope="module")
def unchanged(once, vae):
    """Noise, which has no clusters so clear that every way of looking for them finds the same, a short recipe, and the
    weights that it gives."""
    noise, short = np.random.default_rng(0).random((64, 784), np.float32), dataclasses.replace(vae.Recipe(), epochs=3)
    return noise, short, once("vae_of_noise", lambda _: vae.train_vae(noise, 3, short).state_dict())


@pytest.mark.parametrize("change", [
    {"kl_weight": 0.0}, {"label_noise": 0.0}, {"relabel": 0.0}, {"ssim_weight": 0.0}, {"class_weight": 0.0},
    {"moment_weight": 0.0}, {"frequency_scale": 0.0}, {"rotate": 0.0}, {"weight_decay": 0.0}, {"batch": 7}],
    ids=lambda change: next(iter(change)))
def test_every_ingredient_of_the_recipe_matters_and_can_be_left_out(vae, unchanged, change):
    noise, short, plain = unchanged
    changed = vae.train_vae(noise, 3, dataclasses.replace(short, **change)).state_dict()
    assert all(value.isfinite().all() for value in changed.values())
    assert any(not torch.equal(plain[name], changed[name]) for name in plain)


# ---------------------------------------------------------------------------------------------------------- prediction

def test_refine_is_never_worse_than_the_encoder_and_stays_near(vae, model, digits):
    means = vae.encode_means(model, digits)
    z = vae.refine(model, digits)
    with torch.no_grad():
        start, found = (vae.similarity(digits, model.decode(codes)) for codes in (means, z))
    assert (found >= start - 1e-5).all() and float((found - start).mean()) > 0.002
    assert float((z - means).norm(dim=1).max()) < 2 * model.prior_scale
    assert torch.equal(z, vae.refine(model, digits))


def test_refine_finds_an_image_that_the_decoder_drew(vae, model, digits):
    """Nearly to the pixel, where the mean alone does not."""
    with torch.no_grad():
        drawn = model.decode(vae.encode_means(model, digits)[:20] + 0.02 * model.prior_scale)
        mean, found = (vae.similarity(drawn, model.decode(z)) for z in (
            vae.encode_means(model, drawn), vae.refine(model, drawn)))
    assert (found >= mean - 1e-5).all() and float(found.mean()) > float(mean.mean())


def test_reconstruct_from_the_mean_is_the_decoder_of_the_encoder(vae, model, digits):
    with torch.no_grad():
        expected = model(digits)[0].view(-1, 28, 28).numpy()
    found = vae.reconstruct(model, digits.numpy(), refined=False)
    assert found.dtype == np.float32 and found == pytest.approx(expected, abs=1e-6)


def test_classify_gives_the_label_of_the_nearest_component(vae, model, digits):
    means = vae.encode_means(model, digits).double().numpy()
    centres = np.array([means[0], means[1] + 1e-3, [1e3, 1e3]])
    mixture = vae.GaussianMixture.from_parameters(np.full(3, 1 / 3), centres, np.array([np.eye(2)] * 3))
    expected = np.array([40, 50, 60])[((means[:, None] - centres) ** 2).sum(-1).argmin(1)]
    assert vae.classify(model, mixture, np.array([40, 50, 60]), digits.numpy()).tolist() == expected.tolist()
