"""The mixture of vae.py compared with scikit-learn's, from the same start, in one run.

    python -m benchmarks.gmm_speed

Prints the time of at most 20 EM iterations (median of 5 fits, alternating), the ratio, and the difference of the
final mean log-likelihoods.
"""
import statistics
import time
import warnings

import numpy as np

import vae

TOLERANCE, ITERATIONS, REPEATS = 1e-8, 20, 5


def blobs(n, dimensions, components, seed=0):
    """n points of overlapping Gaussians, and starting means near their centers."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(components, dimensions)) * (3 if dimensions < 10 else 1)
    spread = np.eye(dimensions) * 0.6 + rng.normal(size=(dimensions, dimensions)) / (2 * dimensions ** 0.5)
    points = centers[rng.integers(components, size=n)] + rng.normal(size=(n, dimensions)) @ spread
    return points, centers + 0.3 * rng.normal(size=centers.shape)


def fit_ours(points, means, *_):
    mixture = vae.GaussianMixture(tol=TOLERANCE, max_iter=ITERATIONS)
    start = time.perf_counter()
    mixture.fit(points, means)
    return time.perf_counter() - start, mixture


def fit_sklearn(points, means, weights, covariances):
    from sklearn.mixture import GaussianMixture
    mixture = GaussianMixture(len(means), tol=TOLERANCE, max_iter=ITERATIONS, means_init=means,
                              weights_init=weights, precisions_init=np.linalg.inv(covariances))
    start = time.perf_counter()
    mixture.fit(points)
    return time.perf_counter() - start, mixture


def main():
    warnings.simplefilter("ignore")
    print("| points | components | ours | scikit-learn | times as fast | iterations | log-likelihood difference |\n"
          "|---|---|---|---|---|---|---|")
    for n, dimensions, components in ((14748, 2, 3), (20000, 64, 3), (20000, 64, 10)):
        points, means = blobs(n, dimensions, components)
        covariance = np.cov(points.T, bias=True) + 1e-6 * np.eye(dimensions)  # as vae.py starts
        start = means, np.full(components, 1 / components), np.tile(covariance, (components, 1, 1))
        ours, theirs = [], []
        for _ in range(REPEATS):
            ours.append(fit_ours(points, *start))
            theirs.append(fit_sklearn(points, *start))
        mine, other = (statistics.median(seconds for seconds, _ in runs) for runs in (ours, theirs))
        a, b = ours[0][1], theirs[0][1]
        print(f"| {n} x {dimensions} | {components} | {mine * 1e3:.0f} ms | {other * 1e3:.0f} ms | {other / mine:.1f} "
              f"| {a.n_iter_}, {b.n_iter_} | {a.score(points) - b.score(points):+.0e} |", flush=True)


if __name__ == "__main__":
    main()
