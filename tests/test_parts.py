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

seeds = st.integers(0, 2 ** 32 - 1)


@pytest.fixture(scope="module")
def digits(draw):
    """Drawn images float32 (64, 784)."""
    return torch.from_numpy(draw(np.arange(64) % 4, 7).reshape(64, 784).astype(np.float32) / 255)


def _normal(mean, log_variance):
    return D.Independent(D.Normal(mean, (log_variance / 2).exp()), 1)


def _mixture(centres):
    K = len(centres)
    return D.MixtureSameFamily(D.Categorical(torch.ones(K)), D.Independent(D.Normal(centres, torch.ones(K, 2)), 1))


# ---------------------------------------------------------------------------------------------------------------- loss

@given(seed=seeds, contrast=st.sampled_from([0.0, 0.02, 0.3, 1.0]), noise=st.sampled_from([0.01, 0.3, 1.0]))
def test_ssim_is_that_of_skimage(vae, digits, seed, contrast, noise):
    rng = np.random.default_rng(seed)
    x = digits[int(rng.integers(64))].numpy() * np.float32(contrast)
    y = np.clip(x + noise * rng.normal(size=784), 0, 1).astype(np.float32)
    expected = structural_similarity(x.reshape(28, 28), y.reshape(28, 28), data_range=1.0)
    assert float(vae.ssim(torch.from_numpy(x[None]), torch.from_numpy(y[None]))) == pytest.approx(expected, abs=1e-4)


def test_ssim_is_symmetric_and_1_for_the_same_image(vae, digits):
    assert vae.ssim(digits, digits).numpy() == pytest.approx(1, abs=1e-5)
    assert vae.ssim(digits, digits.roll(1, 0)).numpy() == pytest.approx(vae.ssim(digits.roll(1, 0), digits).numpy())
    assert float(vae.ssim(digits, digits.roll(1, 0)).max()) < 0.9


def test_score_is_ssim_less_squared_error(vae, digits):
    x, y = digits, digits.roll(1, 0)
    expected = vae.ssim(x, y) - F.mse_loss(x, y, reduction="none").mean(1)
    assert vae.score(x, y).numpy() == pytest.approx(expected.numpy())


def test_reconstruction_loss_is_minus_the_bernoulli_log_likelihood(vae, digits):
    logits, x = torch.randn(64, 784, generator=torch.Generator().manual_seed(0)), digits.round()
    expected = -D.Independent(D.Bernoulli(logits=logits), 1).log_prob(x)
    assert vae.reconstruction_loss(logits, x).numpy() == pytest.approx(expected.numpy(), rel=1e-5)


@given(seed=seeds)
def test_normal_terms_are_those_of_torch_distributions(vae, seed):
    mean, log_variance, z, centre = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(seed)).double() * 2
    q, prior = _normal(mean, log_variance), _normal(centre, torch.zeros(6, 2))
    kl = vae.kl_to_component(mean, log_variance, centre)
    assert kl.numpy() == pytest.approx(D.kl_divergence(q, prior).numpy(), rel=1e-6)
    assert vae.gaussian_nll(z, mean, log_variance).numpy() == pytest.approx(-q.log_prob(z).numpy(), rel=1e-6)


@given(seed=seeds, K=st.integers(2, 8))
def test_component_probabilities_follow_from_bayes(vae, seed, K):
    z, centres = torch.randn(5, 2, generator=torch.Generator().manual_seed(seed)) * 6, vae.prior_means(K)
    joint = torch.stack([_normal(centre.expand(5, 2), torch.zeros(5, 2)).log_prob(z) for centre in centres], dim=1)
    assert vae.component_log_probs(z, centres).numpy() == pytest.approx(joint.log_softmax(1).numpy(), abs=1e-3)
    assert vae.component_log_probs(z, centres, 8.0).exp().sum(1).numpy() == pytest.approx(1, abs=1e-5)
    sure, unsure = (vae.component_log_probs(z, centres, t).max(1)[0] for t in (1.0, 8.0))
    assert (unsure <= sure + 1e-6).all()


def test_evaluate_elbo_estimates_what_torch_distributions_say(vae, model, digits):
    """Its one sample an image lies within six standard deviations of the mean over a hundred."""
    centres, found = vae.prior_means(3), vae.evaluate_elbo(model, digits.numpy(), 3)
    with torch.no_grad():
        refined = vae.refine(model, digits)
        posteriors = {"encoder": _normal(*model.encode(digits)), "search": D.Independent(D.Normal(refined, 0.05), 1)}
        assert set(found) == set(posteriors)
        for name, q in posteriors.items():
            z = q.sample((100,))
            kl = (q.log_prob(z) - _mixture(centres).log_prob(z)).mean(1)
            loss = torch.stack([vae.reconstruction_loss(model.decode_logits(part), digits).mean() for part in z])
            for value, draws in zip(found[name], (loss, kl)):
                assert abs(value - float(draws.mean())) < 6 * float(draws.std()) + 1e-3, name


def test_generalised_cross_entropy_lies_between_its_two_limits(vae):
    logits, labels = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(50) % 4
    log_probs = logits.log_softmax(1)
    right = log_probs.exp()[torch.arange(50), labels]
    assert float(vae.generalized_cross_entropy(log_probs, labels, 0)) == pytest.approx(
        float(F.nll_loss(log_probs, labels)))
    assert float(vae.generalized_cross_entropy(log_probs, labels, 1e-6)) == pytest.approx(
        float(F.nll_loss(log_probs, labels)), rel=1e-4)
    assert float(vae.generalized_cross_entropy(log_probs, labels, 1)) == pytest.approx(float((1 - right).mean()))
    assert float(vae.generalized_cross_entropy(log_probs, labels, 0.7)) == pytest.approx(
        float(((1 - right ** 0.7) / 0.7).mean()))


# --------------------------------------------------------------------------------------------------------------- model

@pytest.mark.parametrize("K", [2, 3, 7, 20])
def test_prior_means_are_neighbours_8_apart(vae, K):
    distance = torch.cdist(vae.prior_means(K), vae.prior_means(K)) + 1e9 * torch.eye(K)
    assert distance.min(1)[0].numpy() == pytest.approx(8, rel=1e-3)


def test_gaussian_grid_is_standard_normal(vae):
    grid = vae.gaussian_grid(50)
    assert grid.shape == (2500, 2) and torch.isfinite(grid).all()
    assert grid.mean(0).numpy() == pytest.approx(0, abs=1e-4)
    assert grid.std(0).numpy() == pytest.approx(1, abs=0.05)
    assert float((grid[:, 0] < 1).float().mean()) == pytest.approx(float(D.Normal(0, 1).cdf(torch.ones(()))), abs=0.02)


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


def test_log_variance_is_kept_where_its_exponential_is_a_number(vae):
    model = vae.VAE().eval()
    with torch.no_grad():
        model.encoder[-1].weight.mul_(1e6)
        log_variance = model.encode(torch.rand(20, 784))[1]
    assert float(log_variance.min()) == -10 and float(log_variance.max()) == 5


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

def test_nearest_neighbours_are_the_most_alike(vae, digits):
    recipe = dataclasses.replace(vae.Recipe(), deskew=False, blur=0.0, neighbours=3)
    x = torch.rand(40, 784, generator=torch.Generator().manual_seed(0))
    found = vae.nearest_neighbours(x, recipe)
    likeness = F.cosine_similarity(x[:, None], x[None], dim=2) - 9 * torch.eye(40)
    assert found.shape == (40, 3)
    assert likeness.gather(1, found).numpy() == pytest.approx(likeness.topk(3)[0].numpy(), abs=1e-6)
    assert not (vae.nearest_neighbours(digits, vae.Recipe()) == torch.arange(64)[:, None]).any()  # nobody is his own


def test_spectral_clusters_are_the_shapes(vae, digits):
    clusters = vae.spectral_clusters(vae.nearest_neighbours(digits, vae.Recipe()).numpy(), 4)
    kinds = np.arange(64) % 4
    assert len({(a, b) for a, b in zip(kinds, clusters)}) == len(set(clusters)) == 4


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_spectral_clusters_of_too_few_points_use_every_cluster(vae, n):
    neighbours = vae.nearest_neighbours(torch.rand(n, 784), vae.Recipe()).numpy()
    assert len(set(vae.spectral_clusters(neighbours, 3))) == min(n, 3)


def test_spectral_clusters_do_not_take_a_clump_of_duplicates_for_a_cluster(vae, draw):
    """Eight copies of one image hang together by themselves; the two clusters are bars and rings all the same."""
    images = np.concatenate([draw(np.arange(90) % 2, 3), np.repeat(draw([2, 2], 9)[1:], 8, axis=0)])
    x = torch.from_numpy(images.reshape(-1, 784).astype(np.float32) / 255)
    clusters = vae.spectral_clusters(vae.nearest_neighbours(x, vae.Recipe()).numpy(), 2)[:90]
    assert abs((clusters == np.arange(90) % 2).mean() - 0.5) >= 0.48


def test_principal_layout_is_standard_normal_in_each_cluster(vae):
    x = torch.rand(301, 784, generator=torch.Generator().manual_seed(0))
    clusters = torch.tensor([0] * 100 + [1] * 200 + [2])
    layout = vae.principal_layout(x, clusters, 4)
    for c, tolerance in ((0, 0.05), (1, 0.05)):
        assert layout[clusters == c].mean(0).numpy() == pytest.approx(0, abs=1e-3)
        assert layout[clusters == c].std(0).numpy() == pytest.approx(1, abs=tolerance)
    assert layout[300].tolist() == [0, 0]


def test_principal_layout_orders_along_the_largest_variance(vae):
    position, x = torch.randperm(50, generator=torch.Generator().manual_seed(0)), torch.zeros(50, 784)
    x[:, 100], x[:, 200] = position.float(), (position % 2).float()
    layout = vae.principal_layout(x, torch.zeros(50, dtype=torch.long), 1)
    assert layout[:, 0].argsort().tolist() in (position.argsort().tolist(), position.argsort(descending=True).tolist())


def test_best_codes_decode_to_the_least_error(vae, model, digits):
    codes, centres, clusters = vae.gaussian_grid(8), vae.prior_means(3), torch.arange(64) % 2  # nobody is in cluster 2
    z = vae.best_codes(model, digits, clusters, codes, centres)
    with torch.no_grad():
        for image, cluster, code in zip(digits, clusters, z):
            errors = ((model.decode(codes + centres[cluster]) - image) ** 2).sum(1)
            assert float(((model.decode(code[None]) - image) ** 2).sum()) <= float(errors.min()) + 1e-3
            assert float((codes + centres[cluster] - code).abs().sum(1).min()) < 1e-6


@given(n=st.integers(1, 700), size=st.integers(2, 300))
def test_batches_cover_everything_once_and_are_never_of_one(vae, n, size):
    parts = vae.batches(n, size, torch.Generator().manual_seed(0))
    assert sorted(set(torch.cat(list(parts)).tolist())) == list(range(n))
    assert n == 1 or sum(map(len, parts)) == n
    assert min(map(len, parts)) >= 2 and max(map(len, parts)) <= 1.5 * size + 1


def test_learning_rate_warms_up_and_cools_down(vae):
    rates = [vae.learning_rate(progress, vae.Recipe()) for progress in np.linspace(0, 1, 101)]
    assert rates[0] == 0 and rates[10] == pytest.approx(1) and rates[-1] == pytest.approx(0)
    assert (np.diff(rates[:11]) > 0).all() and (np.diff(rates[10:]) < 0).all()


def test_minimise_finds_the_minimum_and_logs_the_mean_of_each_epoch(vae):
    target, weight, logged = torch.arange(40.0), torch.nn.Parameter(torch.zeros(())), []

    def loss_of(index):
        loss = ((target[index] - weight) ** 2).mean()
        return loss, {"loss": loss}

    vae.minimise(loss_of, [weight], 40, 60, 2.0, dataclasses.replace(vae.Recipe(), batch=10),
                 torch.Generator().manual_seed(0), lambda epoch, terms: logged.append((epoch, terms["loss"])))
    assert float(weight.detach()) == pytest.approx(19.5, abs=0.3)
    assert [epoch for epoch, _ in logged] == list(range(60))
    assert logged[-1][1] == pytest.approx(float(((target - 19.5) ** 2).mean()), rel=0.02)


def test_training_returns_the_model_that_is_stored(vae, digits):
    """Rounded to half precision already: what is reported of it holds for the file."""
    short = dataclasses.replace(vae.Recipe(), classify_epochs=1, sharpen_epochs=1, amortise_epochs=1)
    model = vae.train_vae(digits.numpy(), 2, short)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, vae.stored_weights(model)[name].to(value.dtype)), name


@pytest.mark.parametrize("change", [
    {"deskew": False}, {"blur": 0.0}, {"classify_epochs": 0}, {"label_noise": 0.0}, {"search": False},
    {"ssim_weight": 0.0}, {"class_weight": 0.0}, {"batch": 7}], ids=lambda change: next(iter(change)))
def test_every_ingredient_of_the_recipe_matters_and_can_be_left_out(vae, change):
    """On noise, which has no clusters so clear that every way of looking for them finds the same."""
    noise = np.random.default_rng(0).random((64, 784), np.float32)
    short = dataclasses.replace(vae.Recipe(), classify_epochs=1, sharpen_epochs=3, amortise_epochs=1, codes=200)
    other = dataclasses.replace(short, **change)
    plain, changed = (vae.train_vae(noise, 3, recipe) for recipe in (short, other))
    assert all(value.isfinite().all() for value in changed.state_dict().values())
    assert any(not torch.equal(a, b) for a, b in zip(plain.state_dict().values(), changed.state_dict().values()))


# ---------------------------------------------------------------------------------------------------------- prediction

def test_refine_is_never_worse_than_the_encoder(vae, model, digits):
    with torch.no_grad():
        start = vae.score(digits, model.decode(vae.encode_means(model, digits)))
        found = vae.score(digits, model.decode(vae.refine(model, digits)))
    assert (found >= start - 1e-5).all()
    assert float((found - start).mean()) > 0.01


def test_refine_searches_beyond_the_anchors(vae, model, digits):
    """An image that the decoder drew from a latent between anchors is found again, nearly to the pixel."""
    with torch.no_grad():
        true = model.decode(model.anchors[:20] + 0.02)
        found = vae.score(true, model.decode(vae.refine(model, true)))
        no_steps = vae.score(true, model.decode(vae.refine(model, true, steps=0)))
    assert (found >= no_steps - 1e-5).all() and float(found.mean()) > float(no_steps.mean())


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
