"""The Gaussian mixture: the same as scikit-learn's, and degenerate data."""
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.mixture import GaussianMixture as Reference

problems = st.builds(lambda seed, K, D, n: _problem(seed, K, D, n), st.integers(0, 2 ** 32 - 1), st.integers(1, 4),
                     st.integers(1, 4), st.integers(60, 400))


def _covariances(rng, K, D):
    roots = rng.normal(size=(K, D, D))
    return roots @ roots.transpose(0, 2, 1) + 0.3 * np.eye(D)


def _problem(seed, K, D, n):
    """Points (n, D) of K clusters that overlap, and parameters (weights, means, covariances) that do not fit them."""
    rng = np.random.default_rng(seed)
    centers, component = rng.normal(size=(K, D)) * 3, rng.permutation(np.arange(n) % K)
    roots = np.linalg.cholesky(_covariances(rng, K, D))
    X = centers[component] + np.einsum("nij,nj->ni", roots[component], rng.normal(size=(n, D)))
    return X, (rng.dirichlet(np.full(K, 5.0)), centers + rng.normal(size=(K, D)), _covariances(rng, K, D))


def _start(vae, X, means):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mixture = vae.GaussianMixture(max_iter=0).fit(X, means)
    return mixture.weights_, mixture.means_, mixture.covariances_


def _reference(X, start, **settings):
    weights, means, covariances = start
    return Reference(len(weights), reg_covar=1e-6, weights_init=weights, means_init=means,
                     precisions_init=np.linalg.inv(covariances), **settings).fit(X)


def _reference_with(weights, means, covariances):
    reference = Reference(len(weights))
    reference.weights_, reference.means_, reference.covariances_ = weights, means, covariances
    reference.precisions_cholesky_ = np.linalg.cholesky(np.linalg.inv(covariances))
    return reference


def _is_finite(mixture, X):
    """Whether all parameters, log-likelihoods and log-probabilities are finite, and the parameters valid."""
    parts = (mixture.weights_, mixture.means_, mixture.covariances_, mixture.lower_bounds_,
             mixture.predict_log_proba(X))
    return (all(np.isfinite(part).all() for part in parts) and (np.linalg.eigvalsh(mixture.covariances_) > 0).all()
            and mixture.weights_.sum() == pytest.approx(1))


@pytest.mark.filterwarnings("ignore")
@given(problem=problems, steps=st.integers(1, 8))
def test_each_em_step_is_that_of_sklearn(vae, problem, steps):
    X, (_, means, _) = problem
    kept = X.copy(), means.copy()
    mine = vae.GaussianMixture(tol=0, max_iter=steps).fit(X, means)
    assert mine.n_iter_ == steps and (X == kept[0]).all() and (means == kept[1]).all()
    theirs = _reference(X, _start(vae, X, means), tol=0, max_iter=steps)
    for name in ("weights_", "means_", "covariances_"):
        assert getattr(mine, name) == pytest.approx(getattr(theirs, name), abs=1e-6)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=10)  # each takes up to a thousand steps
@given(problem=problems)
def test_likelihood_never_falls_and_ends_at_that_of_sklearn(vae, problem):
    X, (_, means, _) = problem
    start, mine = _start(vae, X, means), vae.GaussianMixture().fit(X, means)
    theirs = _reference(X, start, tol=1e-7, max_iter=1000)
    assert mine.score(X) == pytest.approx(theirs.score(X), abs=1e-6) and mine.converged_ == theirs.converged_
    assert (np.diff(mine.lower_bounds_) >= -1e-9).all() and len(mine.lower_bounds_) == mine.n_iter_ + 1
    assert mine.lower_bounds_[-1] == mine.score(X)
    assert mine.lower_bounds_[0] == pytest.approx(_reference_with(*start).score(X))


@given(problem=problems)
def test_predictions_are_those_of_sklearn(vae, problem):
    X, parameters = problem
    mine, theirs = vae.GaussianMixture.from_parameters(*parameters), _reference_with(*parameters)
    assert mine.predict_log_proba(X) == pytest.approx(np.log(np.maximum(theirs.predict_proba(X), 1e-300)), abs=1e-6)
    assert mine.score(X) == pytest.approx(theirs.score(X), abs=1e-8)
    assert mine.predict(X).tolist() == theirs.predict(X).tolist()


def test_fit_starts_from_equal_weights_and_the_covariance_of_all(vae):
    X, (_, means, _) = _problem(5, 3, 2, 300)
    weights, found, covariances = _start(vae, X, means)
    assert weights == pytest.approx(1 / 3) and (found == means).all()
    assert covariances == pytest.approx(np.array([np.cov(X.T, bias=True) + 1e-6 * np.eye(2)] * 3))


def test_only_too_few_iterations_give_a_warning(vae):
    X, (_, means, _) = _problem(3, 3, 2, 300)
    with pytest.warns(RuntimeWarning, match="not converged"):
        mixture = vae.GaussianMixture(max_iter=2).fit(X, means)
    assert not mixture.converged_ and mixture.n_iter_ == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vae.GaussianMixture().fit(_problem(4, 2, 2, 300)[0], [[-1, 0], [1, 0]])


@pytest.mark.parametrize("distance", [1e3, 1e6, 1e100])
def test_points_far_away_have_finite_log_probabilities(vae, distance):
    mixture = vae.GaussianMixture.from_parameters(
        [0.5, 0.5], [[-1, 0], [1, 0]], np.array([np.eye(2), 1.5 * np.eye(2)]))
    X = distance * np.array([[1.0, 0], [-1, 0], [0, 1], [-1, 1]])
    log_probs = mixture.predict_log_proba(X)
    assert np.isfinite(log_probs).all() and np.exp(log_probs).sum(1) == pytest.approx(1)
    assert mixture.predict(X).tolist() == [1, 1, 1, 1]  # the wider one


NORMAL = np.random.default_rng(0).normal(size=(60, 2))
DEGENERATE = {
    "all alike": np.full((60, 2), 3.0),
    "two points": np.repeat([[0.0, 0], [5, 5]], 30, axis=0),
    "constant column": np.column_stack([NORMAL[:, 0], np.full(60, 1e4)]),
    "on a line": np.column_stack([NORMAL[:, 0], 2 * NORMAL[:, 0]]),
    "as many as components": NORMAL[:3],
    "one point fifty times": np.concatenate([np.repeat(NORMAL[:1], 50, axis=0), NORMAL[1:]]),
}


@pytest.mark.parametrize("X", DEGENERATE.values(), ids=DEGENERATE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_degenerate_data(vae, X):
    assert _is_finite(vae.GaussianMixture().fit(X, X[[0, len(X) // 2, -1]] + 0.1), X)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_starting_means_far_from_the_data(vae):
    """A component far from all points does not harm the others."""
    X = np.random.default_rng(0).normal(size=(300, 2))
    mixture = vae.GaussianMixture().fit(X, [[0, 0], [1e4, 1e4]])
    assert _is_finite(mixture, X) and mixture.score(X) >= vae.GaussianMixture().fit(X, [[0, 0]]).score(X) - 0.05
    X = X * 1e-2 + 1e4
    mixture = vae.GaussianMixture().fit(X, [[0, 0]])
    assert mixture.means_[0] == pytest.approx(X.mean(0), abs=1e-8)
    assert mixture.covariances_[0] == pytest.approx(np.cov(X.T, bias=True) + 1e-6 * np.eye(2), abs=1e-8)


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


WEIGHTS, MEANS, EYES = np.array([0.5, 0.5]), np.array([[-1.0, 0], [1, 0]]), np.array([np.eye(2)] * 2)
NAN, LARGE = np.full((9, 2), np.nan), np.full((9, 2), 1e200)


@pytest.mark.parametrize("X, means", [
    *((X, MEANS) for X in (np.zeros(5), np.zeros((0, 2)), MEANS[:1], np.zeros((3, 2, 2)), NAN, NAN + np.inf, LARGE)),
    *((np.eye(2)[[0, 1, 1]], means) for means in (np.zeros((2, 3)), np.zeros(2), NAN[:2], NAN[:2] + np.inf, LARGE[:2],
                                                  np.zeros((4, 2)), np.zeros((0, 2))))])
def test_fit_refuses_bad_points_and_bad_starting_means(vae, X, means):
    with pytest.raises(ValueError):
        vae.GaussianMixture().fit(X, means)


@pytest.mark.parametrize("X", [np.zeros((3, 3)), np.zeros(2), NAN, LARGE])
@pytest.mark.parametrize("method", ["predict", "predict_log_proba", "score"])
def test_prediction_refuses_bad_points(vae, method, X):
    with pytest.raises(ValueError):
        getattr(vae.GaussianMixture.from_parameters(WEIGHTS, MEANS, EYES), method)(X)


@pytest.mark.parametrize("weights, covariances, message", [
    ([0, 0], EYES, "positive with sum 1"), ([0.5, 0.6], EYES, "positive with sum 1"), ([1, 0], EYES, "positive"),
    ([0.5], EYES, r"not \(K,\)"), ([0.5, np.nan], EYES, "positive"), ([0.5, 0.5], EYES[:1], r"not \(K,\)"),
    ([0.5, 0.5], EYES * [[1, 2], [2, 1]] + 2 * EYES[:, ::-1], "not positive definite")])
def test_parameters_of_no_mixture_are_refused(vae, weights, covariances, message):
    with pytest.raises(ValueError, match=message):
        vae.GaussianMixture.from_parameters(weights, MEANS, covariances)
