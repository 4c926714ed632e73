"""The Gaussian mixture: parity with scikit-learn, and what EM must survive."""
import warnings

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture as Reference

problems = st.builds(lambda seed, K, D, n: _problem(seed, K, D, n), st.integers(0, 2 ** 32 - 1), st.integers(1, 4),
                     st.integers(1, 4), st.integers(60, 400))


def _covariances(rng, K, D):
    roots = rng.normal(size=(K, D, D))
    return roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(D)


def _problem(seed, K, D, n):
    """Points (n, D) of K clusters that overlap, and a start (weights, means, covariances) that is not the answer."""
    rng = np.random.default_rng(seed)
    centres, component = rng.normal(size=(K, D)) * 3, rng.permutation(np.arange(n) % K)
    roots = np.linalg.cholesky(_covariances(rng, K, D))
    X = centres[component] + np.einsum("nij,nj->ni", roots[component], rng.normal(size=(n, D)))
    return X, (rng.dirichlet(np.full(K, 5.0)), centres + rng.normal(size=(K, D)), _covariances(rng, K, D))


def _fit(vae, X, start, **settings):
    weights, means, covariances = start
    return vae.GaussianMixture(len(weights), **settings).fit(X, means, weights, covariances)


def _reference(X, start, **settings):
    weights, means, covariances = start
    return Reference(len(weights), reg_covar=1e-6, weights_init=weights, means_init=means,
                     precisions_init=np.linalg.inv(covariances), **settings).fit(X)


def _reference_with(weights, means, covariances):
    reference = Reference(len(weights))
    reference.weights_, reference.means_, reference.covariances_ = weights, means, covariances
    reference.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(covariances))
    return reference


def _finite(mixture):
    parts = mixture.weights_, mixture.means_, mixture.covariances_, mixture.precisions_cholesky_
    return all(np.isfinite(part).all() for part in parts) and (np.linalg.eigvalsh(mixture.covariances_) > 0).all()


# -------------------------------------------------------------------------------------------------------------- parity

@pytest.mark.filterwarnings("ignore")
@given(problem=problems, steps=st.integers(1, 8))
def test_each_em_step_is_that_of_sklearn(vae, problem, steps):
    mine, theirs = _fit(vae, *problem, tol=0, max_iter=steps), _reference(*problem, tol=0, max_iter=steps)
    assert mine.n_iter_ == steps
    assert mine.weights_ == pytest.approx(theirs.weights_, abs=1e-6)
    assert mine.means_ == pytest.approx(theirs.means_, abs=1e-6)
    assert mine.covariances_ == pytest.approx(theirs.covariances_, abs=1e-6)


@pytest.mark.filterwarnings("ignore")
@given(problem=problems)
def test_the_likelihood_reached_is_that_of_sklearn(vae, problem):
    mine, theirs = _fit(vae, *problem), _reference(*problem, tol=1e-7, max_iter=1000)
    assert mine.score(problem[0]) == pytest.approx(theirs.score(problem[0]), abs=1e-6)
    assert mine.converged_ == theirs.converged_


@given(problem=problems)
def test_predictions_are_those_of_sklearn(vae, problem):
    X, parameters = problem
    mine, theirs = vae.GaussianMixture.from_parameters(*parameters), _reference_with(*parameters)
    assert mine.predict_log_proba(X) == pytest.approx(np.log(np.maximum(theirs.predict_proba(X), 1e-300)), abs=1e-6)
    assert mine.predict_proba(X).sum(1) == pytest.approx(1)
    assert mine.score_samples(X) == pytest.approx(theirs.score_samples(X), abs=1e-8)
    assert mine.predict(X).tolist() == theirs.predict(X).tolist()


def test_predictions_across_blocks_are_those_point_by_point(vae):
    X, parameters = _problem(5, 3, 2, 150_000)  # more points than a block has
    mine = vae.GaussianMixture.from_parameters(*parameters)
    some = np.r_[0, 65_535, 65_536, 131_071, 131_072, 149_999]
    assert mine.predict_log_proba(X)[some] == pytest.approx(mine.predict_log_proba(X[some]), abs=1e-12)
    assert mine.score(X) == pytest.approx(_reference_with(*parameters).score(X), abs=1e-9)


def test_one_step_over_several_blocks_is_that_of_sklearn(vae):
    problem = _problem(6, 3, 2, 150_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine, theirs = _fit(vae, *problem, tol=0, max_iter=1), _reference(*problem, tol=0, max_iter=1)
    assert mine.covariances_ == pytest.approx(theirs.covariances_, abs=1e-9)


@given(weight=st.floats(0.001, 0.999))
def test_mixing_weights_count(vae, weight):
    """Halfway between two equal Gaussians the weights alone decide."""
    weights = np.array([weight, 1 - weight])
    mixture = vae.GaussianMixture.from_parameters(weights, np.array([[-1.0, 0], [1, 0]]), np.array([np.eye(2)] * 2))
    assert mixture.predict_log_proba(np.zeros((1, 2)))[0] == pytest.approx(np.log(weights))
    edge = np.log(weights[0] / weights[1]) / 2  # where both are equally probable
    assert mixture.predict(np.array([[edge - 1e-6, 0], [edge + 1e-6, 0]])).tolist() == [0, 1]


def test_one_component_is_the_sample_mean_and_covariance(vae):
    X = _problem(1, 2, 3, 200)[0]
    mixture = vae.GaussianMixture(1).fit(X)
    assert mixture.weights_.tolist() == [1] and mixture.converged_
    assert mixture.means_[0] == pytest.approx(X.mean(0))
    assert mixture.covariances_[0] == pytest.approx(np.cov(X.T, bias=True) + 1e-6 * np.eye(3))


def test_one_dimension(vae):
    X = np.concatenate([np.linspace(-6, -4, 40), np.linspace(4, 6, 60)])[:, None]
    mixture = vae.GaussianMixture(2).fit(X, means_init=[[-1], [1]])
    assert mixture.means_[:, 0] == pytest.approx([-5, 5]) and mixture.weights_ == pytest.approx([0.4, 0.6])
    assert mixture.covariances_.shape == (2, 1, 1)


# ---------------------------------------------------------------------------------------------------------- likelihood

@pytest.mark.filterwarnings("ignore")
@given(problem=problems)
def test_likelihood_never_falls(vae, problem):
    mixture = _fit(vae, *problem)
    assert mixture.revived_ == 0
    assert (np.diff(mixture.lower_bounds_) >= -1e-9).all()
    assert len(mixture.lower_bounds_) == mixture.n_iter_ + 1
    assert mixture.lower_bounds_[-1] == mixture.score(problem[0])
    assert mixture.lower_bounds_[0] == pytest.approx(_reference_with(*problem[1]).score(problem[0]))


def test_points_are_grouped_from_any_start(vae):
    """Without starting means k-means++ finds clusters that are clear, whatever its seed; each seed repeats itself."""
    centres = np.array([[0, 0], [30, 0], [0, 30]])
    X = np.repeat(centres, 50, axis=0) + np.random.default_rng(0).normal(size=(150, 2))
    for seed in range(5):
        mixture = vae.GaussianMixture(3, seed=seed).fit(X)
        assert len({tuple(np.round(mean / 30).astype(int)) for mean in mixture.means_}) == 3
        again = vae.GaussianMixture(3, seed=seed).fit(X)
        assert (again.means_ == mixture.means_).all()


def test_fit_leaves_its_arguments_alone(vae):
    X, start = _problem(2, 3, 2, 90)
    kept = [part.copy() for part in (X, *start)]
    _fit(vae, X, start)
    assert all((part == copy).all() for part, copy in zip((X, *start), kept))


def test_too_few_iterations_are_said(vae):
    with pytest.warns(RuntimeWarning, match="not converged"):
        mixture = _fit(vae, *_problem(3, 3, 2, 300), max_iter=2)
    assert not mixture.converged_ and mixture.n_iter_ == 2


# ------------------------------------------------------------------------------------------------------------ survival

@pytest.mark.parametrize("distance", [1e3, 1e6, 1e100])
def test_points_far_away_have_finite_log_probabilities(vae, distance):
    mixture = vae.GaussianMixture.from_parameters(
        np.array([0.5, 0.5]), np.array([[-1.0, 0], [1, 0]]), np.array([np.eye(2), 1.5 * np.eye(2)]))
    X = distance * np.array([[1.0, 0], [-1, 0], [0, 1], [-1, 1]])
    log_probs = mixture.predict_log_proba(X)
    assert np.isfinite(log_probs).all() and np.isfinite(mixture.score_samples(X)).all()
    assert np.exp(log_probs).sum(1) == pytest.approx(1)
    assert mixture.predict(X).tolist() == [1, 1, 1, 1]  # the wider one reaches further


def _degenerate(name):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2))
    if name == "all alike":
        return np.full((60, 2), 3.0)
    if name == "two points":
        return np.repeat([[0.0, 0], [5, 5]], 30, axis=0)
    if name == "constant column":
        return np.column_stack([X[:, 0], np.full(60, 1e4)])
    if name == "on a line":
        return np.column_stack([X[:, 0], 2 * X[:, 0]])
    if name == "as many as components":
        return X[:3]
    return np.concatenate([np.repeat(X[:1], 50, axis=0), X[1:]])  # one point fifty times


@pytest.mark.parametrize("given_means", [False, True])
@pytest.mark.parametrize("name", ["all alike", "two points", "constant column", "on a line", "as many as components",
                                  "one point fifty times"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_degenerate_data_is_survived(vae, name, given_means):
    X = _degenerate(name)
    mixture = vae.GaussianMixture(3).fit(X, means_init=X[[0, len(X) // 2, -1]] + 0.1 if given_means else None)
    assert _finite(mixture) and mixture.weights_.sum() == pytest.approx(1)
    assert np.isfinite(mixture.lower_bounds_).all() and np.isfinite(mixture.predict_log_proba(X)).all()


def test_a_start_far_from_the_data_gets_there(vae):
    X = np.random.default_rng(0).normal(size=(300, 2)) * 1e-2 + 1e4
    mixture = vae.GaussianMixture(1).fit(X, means_init=[[0, 0]])
    assert mixture.means_[0] == pytest.approx(X.mean(0), abs=1e-8)
    assert mixture.covariances_[0] == pytest.approx(np.cov(X.T, bias=True) + 1e-6 * np.eye(2), abs=1e-8)


@pytest.mark.parametrize("D", [1, 2])
def test_a_dying_component_is_noticed_and_revived(vae, D):
    X = np.random.default_rng(0).normal(size=(200, D))
    means = np.array([np.zeros(D), np.full(D, 1e4)])
    with pytest.warns(RuntimeWarning, match="started anew"):
        mixture = vae.GaussianMixture(2).fit(X, means_init=means, covariances_init=np.array([np.eye(D)] * 2))
    assert mixture.revived_ > 0
    assert _finite(mixture) and mixture.weights_.sum() == pytest.approx(1)
    alone = vae.GaussianMixture(1).fit(X)
    assert mixture.score(X) >= alone.score(X) - 0.05  # the living component is none the worse


def test_a_healthy_fit_revives_nothing_and_warns_of_nothing(vae):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert vae.GaussianMixture(2).fit(_problem(4, 2, 2, 300)[0], means_init=[[-1, 0], [1, 0]]).revived_ == 0


# ------------------------------------------------------------------------------------------------------ sample, errors

def test_samples_have_the_right_moments(vae):
    weights, means = np.array([0.2, 0.5, 0.3]), np.array([[0.0, 0], [10, 0], [0, -10]])
    covariances = np.array([[[1, 0.8], [0.8, 1]], [[4, 0], [0, 0.25]], [[1, -0.5], [-0.5, 2]]])
    mixture, n = vae.GaussianMixture.from_parameters(weights, means, covariances), 40_000
    X, component = mixture.sample(n, seed=1)
    assert X.shape == (n, 2) and component.shape == (n,)
    assert np.bincount(component) / n == pytest.approx(weights, abs=5 * 0.5 / n ** 0.5)
    for k in range(3):
        assert X[component == k].mean(0) == pytest.approx(means[k], abs=0.12)
        assert np.cov(X[component == k].T) == pytest.approx(covariances[k], abs=0.25)
    assert (mixture.sample(10, seed=1)[0] == mixture.sample(10, seed=1)[0]).all()
    assert (mixture.sample(10, seed=1)[0] != mixture.sample(10, seed=2)[0]).all()


EYES = np.array([np.eye(2)] * 2)


@pytest.mark.parametrize("X", [np.zeros(5), np.zeros((0, 2)), np.zeros((1, 2)), np.zeros((3, 2, 2)),
                               np.full((9, 2), np.nan), np.array([[0, 0], [np.inf, 0], [1, 1]])],
                         ids=["flat", "none", "fewer than components", "3-D", "NaN", "infinite"])
def test_bad_points_are_a_value_error(vae, X):
    with pytest.raises(ValueError):
        vae.GaussianMixture(2).fit(X)


@pytest.mark.parametrize("start", [
    {"means_init": np.zeros((3, 2))}, {"means_init": np.zeros((2, 3))}, {"means_init": np.zeros(2)},
    {"means_init": np.full((2, 2), np.nan)}, {"means_init": np.full((2, 2), np.inf)},
    {"weights_init": [1.0]}, {"weights_init": [0.3, 0.3, 0.4]}, {"weights_init": [np.nan, 0.5]},
    {"covariances_init": EYES[:1]}, {"covariances_init": np.array([np.eye(2)] * 3)}, {"covariances_init": EYES[0]},
    {"covariances_init": np.array([np.eye(3)] * 2)}, {"covariances_init": -EYES}, {"covariances_init": EYES * np.nan},
], ids=lambda start: "{} {}".format(*next((name, np.shape(value)) for name, value in start.items())))
def test_a_bad_start_is_a_value_error(vae, start):
    """Docstring of fit: ValueError for shapes that do not fit, or NaN."""
    X = np.random.default_rng(0).normal(size=(50, 2))
    with pytest.raises(ValueError):
        vae.GaussianMixture(2).fit(X, **{"means_init": np.array([[-1.0, 0], [1, 0]]), **start})


@pytest.mark.parametrize("X", [np.zeros((3, 3)), np.zeros(2), np.full((1, 2), np.nan)])
@pytest.mark.parametrize("method", ["predict", "predict_proba", "predict_log_proba", "score", "score_samples"])
def test_bad_points_to_predict_are_a_value_error(vae, method, X):
    mixture = vae.GaussianMixture.from_parameters(np.array([0.5, 0.5]), np.array([[-1.0, 0], [1, 0]]), EYES)
    with pytest.raises(ValueError):
        getattr(mixture, method)(X)


# ------------------------------------------------------------------------------------------------------------- helpers

@given(seed=st.integers(0, 1000), D=st.integers(1, 5))
def test_precision_cholesky_is_a_root_of_the_inverse(vae, seed, D):
    covariances = _covariances(np.random.default_rng(seed), 3, D)
    root = vae.precision_cholesky(covariances)
    assert root == pytest.approx(np.triu(root))
    assert root @ root.transpose(0, 2, 1) == pytest.approx(np.linalg.inv(covariances), rel=1e-6, abs=1e-9)


def test_precision_cholesky_refuses_what_is_no_covariance(vae):
    with pytest.raises(ValueError, match="positive definite"):
        vae.precision_cholesky(np.array([[[1.0, 2], [2, 1]]]))


@given(seed=st.integers(0, 1000), scale=st.sampled_from([1, 1e3, 1e6]))
def test_log_sum_exp_is_that_of_scipy(vae, seed, scale):
    a = np.random.default_rng(seed).normal(size=(4, 9)) * scale
    assert vae.log_sum_exp(a) == pytest.approx(scipy.special.logsumexp(a, axis=0), rel=1e-12)
