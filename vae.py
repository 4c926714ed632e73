"""Part II: an MLP variational autoencoder with a 2-D latent, and a Gaussian mixture that makes it a classifier.

    python vae.py TRAIN VAL train vae.pth gmm_params.pkl       images of TRAIN, labels of VAL alone
    python vae.py TEST test_reconstruction vae.pth             writes vae_reconstructed.npz
    python vae.py TEST test_classifier vae.pth gmm_params.pkl  writes vae.csv

TRAIN, VAL and TEST are .npz (key `data`, or its only array) or .npy files of 28 x 28 images; VAL has `labels` too.

The model.  c ~ Uniform{1..K},  z | c ~ N(mu_c, I) in two dimensions,  x | z ~ Bernoulli(decode(z))   [1, 2]
Training, on images alone, in four steps:
  1. cluster   spectral clustering of the nearest-neighbour graph of the images, plain and deskewed [3]
  2. classify  the encoder learns p(c | encode(x)) from those noisy labels, on augmented views,
               with a loss that forgives wrong labels; its own verdict then replaces them       [4]
  3. sharpen   variational EM for the decoder. E: each image moves to the latent of its component that decodes to it
               best. M: the decoder learns to draw the image from a neighbourhood of that latent, which narrows
               from epoch to epoch as in a self-organising map                                  [5, 6]
  4. amortise  the encoder learns the posterior that step 3 found, q(z|x), mean and variance
Then the mixture: EM on the encoder's means of the training images, from the class means of the validation images [7].
At test the mixture classifies the encoder's mean. A reconstruction is decoded from a latent searched from the best of
8,192 anchors on (semi-amortised inference [5]): the sheet is folded too finely for a guess to hit the right fold.

[1] Kingma & Welling 2014, arXiv:1312.6114          [5] Kim et al. 2018, arXiv:1802.02550
[2] Jiang et al. 2017 (VaDE), arXiv:1611.05148      [6] Kohonen 1982, Biol. Cybern. 43:59
[3] Ng, Jordan & Weiss 2002, NIPS 14                [7] Bishop 2006, PRML, section 9.2
[4] Zhang & Sabuncu 2018, arXiv:1805.07836          [8] Wang et al. 2004 (SSIM), IEEE TIP 13:600
"""
import argparse
import dataclasses
import io
import math
import os
import pickle
import signal
import sys
import time
import warnings

if __name__ == "__main__":  # torch takes a second to import: Ctrl-C in that second must be one line as well
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"vae.py: interrupted\n"), os._exit(130)))
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what a torch cannot do on MPS yet, the CPU does

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# ------------------------------------------------------------------------------------------------------------ settings

SIDE = 28
PIXELS = SIDE * SIDE
LATENT = 2
ENCODER_WIDTHS = (512, 256)
DECODER_WIDTHS = (512, 512)
FREQUENCIES = 128  # random Fourier features of z: a 2-D sheet must fold often to pass near every digit
ANCHORS = 8192     # latents from which a reconstruction is searched; 32 KB of the model file


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What training does. Each field is one ingredient: an ablation changes a value here, never the code."""
    # cluster
    deskew: bool = True         # neighbours among upright digits too: slant is not identity
    blur: float = 1.0           # px; lets the distance forgive small shifts
    neighbours: int = 5         # of each view
    # classify
    classify_epochs: int = 12
    classify_rate: float = 2e-3
    label_noise: float = 0.7    # q of generalised cross-entropy: 0 is cross-entropy, 1 mean absolute error
    temperature: float = 8.0    # of p(c|z) in that loss: components 8 apart are certain too soon
    weight_decay: float = 0.1
    rotate: float = 12.0        # degrees, each way
    shift: float = 1.0          # px
    scale: float = 0.12
    shear: float = 0.15
    # sharpen
    sharpen_epochs: int = 20
    sharpen_rate: float = 1e-2
    search: bool = True         # False: images keep the latents of their principal components
    codes: int = 9408           # candidate latents of the last E-steps, over all components
    width_start: float = 0.3    # standard deviation of q(z|x), annealed geometrically
    width_end: float = 0.05
    frequency_scale: float = 8.0  # standard deviation of the Fourier features' frequencies, radians a unit of z
    ssim_weight: float = 300.0  # nats for 1 - SSIM, beside the Bernoulli likelihood
    # amortise
    amortise_epochs: int = 6
    amortise_rate: float = 2e-3
    class_weight: float = 20.0  # of step 2's loss, kept on so that the classes stay apart
    # optimiser
    batch: int = 256
    warmup: float = 0.1         # share of the steps
    seed: int = 0


class InputError(Exception):
    """Bad input: one line that names the file, what was expected and what was found."""


# ------------------------------------------------------------------------------------------------------------- data in

def _read(path, *keys):
    """Images and those of `keys` that a .npz or .npy file holds, as a dict; nothing else of it is read, nothing
    unpickled. The images are the key 'data' or, lacking it, the only array that is not 'labels'. Raises InputError."""
    if not os.path.exists(path):
        raise InputError(f"{path}: expected a .npz or .npy file, found nothing there")
    if os.path.isdir(path):
        raise InputError(f"{path}: expected a .npz or .npy file, found a folder")
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return {"data": content}
            names = [name for name in content.files if name != "labels"]
            data = "data" if "data" in names else names[0] if len(names) == 1 else None
            if data is None:
                raise InputError(f"{path}: expected the key 'data' or a single array, found "
                                 f"{'the keys ' + str(names) if names else 'no array of images'}")
            arrays = {"data": content[data], **{key: content[key] for key in keys if key in content.files}}
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("a member that is no array")
        return arrays
    except InputError:
        raise
    except Exception as error:  # broken bytes trip zipfile and NumPy in a dozen ways
        raise InputError(f"{path}: expected a .npz or .npy file of numbers, found: {_one_line(error)}") from None


def _one_line(error):
    return " ".join(str(error).split())[:200] or type(error).__name__


def _as_images(array, path):
    if array.dtype.kind not in "buif":
        raise InputError(f"{path}: expected numbers as pixels, found dtype {array.dtype}")
    found = array.shape
    array = array[None] if found == (SIDE, SIDE) else array
    if array.ndim == 0 or array.shape[1:] not in ((SIDE, SIDE), (PIXELS,), (1, SIDE, SIDE), (SIDE, SIDE, 1)):
        raise InputError(f"{path}: expected images of shape (N, 28, 28), (N, 784) or (N, 1, 28, 28), found {found}")
    if len(array) == 0:
        raise InputError(f"{path}: expected at least one image, found none")
    array = np.ascontiguousarray(array.reshape(len(array), PIXELS))
    if array.dtype == np.uint8:
        return array.astype(np.float32) / 255
    low, high = array.min(), array.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise InputError(f"{path}: expected finite pixels, found {int((~np.isfinite(array)).sum())} NaN or infinite")
    if low < 0 or high > 255:
        raise InputError(f"{path}: expected pixels in 0..1 or 0..255, found {low:g}..{high:g}")
    return array.astype(np.float32) / np.float32(255 if high > 1 else 1)


def load_images(path):
    """Images of a file as float32 (N, 784) in [0, 1]. Labels beside them are never read. Raises InputError."""
    return _as_images(_read(path)["data"], path)


def load_labelled(path):
    """Images float32 (N, 784) and labels int64 (N,), of two classes or more, of a .npz file. Raises InputError."""
    arrays = _read(path, "labels")
    images, labels = _as_images(arrays["data"], path), arrays.get("labels")
    if labels is None:
        raise InputError(f"{path}: expected the keys 'data' and 'labels', found no labels")
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (len(images),):
        raise InputError(f"{path}: expected one label an image, {len(images)} in all, found shape {labels.shape}")
    if labels.dtype.kind not in "buif" or not np.array_equal(labels, np.round(labels)) or (labels >= 2 ** 62).any() \
            or (labels <= -2 ** 62).any():
        raise InputError(f"{path}: expected whole numbers as labels, found dtype {labels.dtype} with other values")
    labels = labels.astype(np.int64)
    if len(np.unique(labels)) < 2:
        raise InputError(f"{path}: expected labels of at least two classes, found only {labels[0]}")
    return images, labels


# --------------------------------------------------------------------------------------------------------------- model

class VAE(nn.Module):
    """MLP variational autoencoder with a 2-D latent. All of it, the search anchors too, is in its state_dict."""

    def __init__(self):
        super().__init__()
        layers, width = [], PIXELS
        for hidden in ENCODER_WIDTHS:
            layers += [nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU()]
            width = hidden
        self.encoder = nn.Sequential(*layers, nn.Linear(width, 2 * LATENT))
        layers, width = [], 2 * FREQUENCIES + LATENT
        for hidden in DECODER_WIDTHS:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            width = hidden
        self.decoder = nn.Sequential(*layers, nn.Linear(width, PIXELS))
        self.register_buffer("frequencies", torch.randn(LATENT, FREQUENCIES))
        self.register_buffer("anchors", torch.zeros(ANCHORS, LATENT))

    def encode(self, x):
        """Images (B, 784) -> mean and log-variance of q(z|x), each (B, 2)."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        return mean, log_variance.clamp(-10, 5)

    @staticmethod
    def reparameterize(mean, log_variance, noise):
        """z = mean + standard deviation * noise, all (B, 2)."""
        return mean + (log_variance / 2).exp() * noise

    def decode_logits(self, z):
        """Latents (B, 2) -> Bernoulli logits of the pixels (B, 784)."""
        phase = z @ self.frequencies                                      # (B, 128)
        return self.decoder(torch.cat([phase.sin(), phase.cos(), z / 5], dim=1))

    def decode(self, z):
        """Latents (B, 2) -> images (B, 784) in [0, 1]."""
        return self.decode_logits(z).sigmoid()

    def forward(self, x):
        """Images (B, 784) -> reconstruction from the mean (B, 784), mean (B, 2), log-variance (B, 2)."""
        mean, log_variance = self.encode(x)
        return self.decode(mean), mean, log_variance


def prior_means(n_components):
    """Means (K, 2) of the mixture prior: on a circle, neighbours 8 standard deviations apart."""
    angle = 2 * math.pi * torch.arange(n_components) / n_components + math.pi / 2
    return torch.stack([angle.cos(), angle.sin()], dim=1) * (4 / math.sin(math.pi / n_components))


def gaussian_grid(side):
    """side^2 latents (side^2, 2) that share the mass of N(0, I) evenly: its quantiles along both axes."""
    quantile = math.sqrt(2) * torch.erfinv(2 * (torch.arange(side) + 0.5) / side - 1)
    return torch.cartesian_prod(quantile, quantile)


# ---------------------------------------------------------------------------------------------------------------- loss

_BOX = torch.ones(SIDE - 6, SIDE).tril(6).triu() / 7  # row i averages pixels i..i+6


def ssim(x, y):
    """Structural similarity (B,) of images (B, 784) in [0, 1]: 7 x 7 uniform window and sample covariance, as
    skimage.metrics.structural_similarity(data_range=1.0) has it [8]. The window means are two matrix products."""
    x, y = x.view(-1, SIDE, SIDE), y.view(-1, SIDE, SIDE)
    box = _BOX.to(x.device)
    mx, my, mxx, myy, mxy = box @ torch.stack([x, y, x * x, y * y, x * y]) @ box.t()  # each (B, 22, 22)
    sample, c1, c2 = 49 / 48, 0.01 ** 2, 0.03 ** 2
    vx, vy, vxy = sample * (mxx - mx * mx), sample * (myy - my * my), sample * (mxy - mx * my)
    similarity = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similarity.flatten(1).mean(1)


def score(x, y):
    """What a reconstruction is worth to the grader, up to a constant: SSIM + (1 - MSE), (B,)."""
    return ssim(x, y) - ((x - y) ** 2).mean(1)


def reconstruction_loss(logits, x):
    """-log p(x|z) of Bernoulli pixels in nats, (B,), for logits and images (B, 784)."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def kl_to_component(mean, log_variance, centre):
    """KL(N(mean, exp(log_variance)) || N(centre, I)) in nats, (B,): Kingma & Welling 2014, appendix B."""
    return 0.5 * ((mean - centre) ** 2 + log_variance.exp() - 1 - log_variance).sum(1)


def gaussian_nll(z, mean, log_variance):
    """-log N(z; mean, exp(log_variance)) in nats, (B,), for z, mean and log-variance (B, 2)."""
    return 0.5 * ((z - mean) ** 2 / log_variance.exp() + log_variance + math.log(2 * math.pi)).sum(1)


def component_log_probs(z, centres, temperature=1.0):
    """log p(c|z) under the mixture prior, (B, K); a higher temperature is less certain."""
    return F.log_softmax(-0.5 * ((z[:, None] - centres) ** 2).sum(-1) / temperature, dim=1)


def generalized_cross_entropy(log_probs, labels, q):
    """(1 - p_label^q) / q, averaged: cross-entropy as q -> 0, ever more robust to wrong labels as q -> 1 [4]."""
    log_p = log_probs.gather(1, labels[:, None])[:, 0]
    return -log_p.mean() if q == 0 else ((1 - (q * log_p).exp()) / q).mean()


# ------------------------------------------------------------------------------------------------------------- mixture

class GaussianMixture:
    """Mixture of K full-covariance Gaussians in D dimensions, fitted by EM in float64 (Bishop 2006, section 9.2).

    Parameters
        n_components  K.
        reg_covar     added to the diagonal of each covariance, so that it stays positive definite.
        tol           EM stops when the mean log-likelihood gains less, in nats a point.
        max_iter      most EM iterations.
        seed          of the k-means++ start that serves when `means_init` is not given.
    After `fit`
        weights_ (K,), means_ (K, D), covariances_ (K, D, D), precisions_cholesky_ (K, D, D): upper triangular P_k
        with P_k P_k^T = covariance_k^-1; converged_, n_iter_, lower_bounds_ (the mean log-likelihood before each
        M-step, then after the last), revived_ (how often a component that had died was started anew).
    """

    def __init__(self, n_components, reg_covar=1e-6, tol=1e-7, max_iter=1000, seed=0):
        self.n_components, self.reg_covar, self.tol, self.max_iter, self.seed = (
            n_components, reg_covar, tol, max_iter, seed)

    def fit(self, X, means_init=None, weights_init=None, covariances_init=None):
        """Fits to X (N, D). What no `*_init` gives is taken from the points nearest to each starting mean.

        Returns self. Raises ValueError for fewer points than components, shapes that do not fit, or NaN."""
        X, K = self._points(X), self.n_components
        n, D = X.shape
        if n < K:
            raise ValueError(f"a mixture of {K} components needs at least {K} points, found {n}")
        start = self._kmeans_plus_plus(X) if means_init is None else np.array(means_init, dtype=np.float64)
        if start.shape != (K, D) or not np.isfinite(start).all():
            raise ValueError(f"expected finite starting means of shape {(K, D)}, found shape {start.shape}")
        ridge = self.reg_covar * np.eye(D)
        pooled = np.atleast_2d(np.cov(X.T, bias=True)) + ridge
        nearest = ((start ** 2).sum(1) - 2 * X @ start.T).argmin(1)
        self.means_, self.weights_ = start, np.maximum(np.bincount(nearest, minlength=K), 1.0)
        self.covariances_ = np.array([pooled] * K)
        for k, mean in enumerate(start):
            centred = X[nearest == k] - mean
            if len(centred) > D:
                self.covariances_[k] = centred.T @ centred / len(centred) + ridge
        if weights_init is not None:
            self.weights_ = np.array(weights_init, dtype=np.float64)
        if covariances_init is not None:
            self.covariances_ = np.array(covariances_init, dtype=np.float64)
        if self.weights_.shape != (K,) or self.covariances_.shape != (K, D, D):
            raise ValueError(f"expected starting weights of shape {(K,)} and covariances of shape {(K, D, D)}, found "
                             f"{self.weights_.shape} and {self.covariances_.shape}")
        total = self.weights_.sum()
        if not np.isfinite(self.covariances_).all() or not (self.weights_ >= 0).all() or not 0 < total < np.inf:
            raise ValueError("expected finite starting covariances and weights that are not negative")
        self.weights_ /= self.weights_.sum()
        self.precisions_cholesky_ = precision_cholesky(self.covariances_)

        self.lower_bounds_, self.converged_, self.revived_, self.n_iter_ = [], False, 0, 0
        while self.n_iter_ < self.max_iter and not self.converged_:
            self.n_iter_ += 1
            bound, count, first, second = self._expectation(X)
            self._maximisation(np.maximum(count, 1e-12), first, second)
            dead = count < 1e-3  # of one point: its covariance means nothing
            restarted = bool(dead.any()) and self.revived_ < 3  # after that the data has no place for it
            self.revived_ += int(restarted)
            self.means_[dead], self.covariances_[dead] = start[dead], pooled
            if restarted:
                self.weights_[dead] = 1 / K
            self.weights_ /= self.weights_.sum()
            self.precisions_cholesky_ = precision_cholesky(self.covariances_)
            self.converged_ = bool(self.lower_bounds_ and not restarted
                                   and abs(bound - self.lower_bounds_[-1]) < self.tol)
            self.lower_bounds_.append(bound)
        self.lower_bounds_.append(self.score(X))
        if self.revived_:
            warnings.warn(f"mixture: a component had no points and was started anew {self.revived_} times; "
                          "are the starting means far from the data?", RuntimeWarning, stacklevel=2)
        if not self.converged_:
            warnings.warn(f"mixture: EM has not converged in {self.max_iter} iterations; raise max_iter or tol",
                          RuntimeWarning, stacklevel=2)
        return self

    def _points(self, X):
        X = np.ascontiguousarray(X, dtype=np.float64)
        if X.ndim != 2 or not len(X):
            raise ValueError(f"expected points of shape (N, D), found {X.shape}")
        if not np.isfinite(X).all():
            raise ValueError("expected finite points, found NaN or infinity")
        return X

    def _kmeans_plus_plus(self, X):
        """Starting means (K, D): each a point drawn with probability ~ squared distance to those before it."""
        rng = np.random.default_rng(self.seed)
        means = X[rng.integers(len(X))][None]
        while len(means) < self.n_components:
            distance = np.min([((X - mean) ** 2).sum(1) for mean in means], axis=0)
            total = distance.sum()
            p = distance / total if total > 0 else None
            means = np.vstack([means, X[rng.choice(len(X), p=p)]])
        return means

    def _log_joint(self, X, k):
        """log(weight_k N(x | mean_k, covariance_k)) (N,), and the centred points (N, D)."""
        centred = X - self.means_[k]
        white = centred @ self.precisions_cholesky_[k]
        constant = (math.log(max(self.weights_[k], 1e-300)) - 0.5 * X.shape[1] * math.log(2 * math.pi)
                    + np.log(np.diag(self.precisions_cholesky_[k])).sum())
        return constant - 0.5 * np.einsum("nd,nd->n", white, white), centred

    def _blocks(self, X):
        rows = max(256, 131072 // X.shape[1])  # a block and what is made of it stay in the cache
        return (X[start:start + rows] for start in range(0, len(X), rows))

    def _expectation(self, X):
        """E-step over cache-sized blocks: mean log-likelihood, and of each component the sums of responsibilities
        (K,), of weighted centred points (K, D) and of their weighted outer products (K, D, D)."""
        K, D = self.means_.shape
        bound, count, first, second = 0.0, np.zeros(K), np.zeros((K, D)), np.zeros((K, D, D))
        for block in self._blocks(X):
            joint, centred = zip(*(self._log_joint(block, k) for k in range(K)))
            joint = np.array(joint)                                       # (K, rows)
            norm = log_sum_exp(joint)
            bound += norm.sum()
            joint -= norm
            responsibilities = np.exp(joint, out=joint)
            count += responsibilities.sum(1)
            for k in range(K):
                first[k] += responsibilities[k] @ centred[k]
                weighted = centred[k]
                weighted *= np.sqrt(responsibilities[k])[:, None]
                second[k] += weighted.T @ weighted                        # A^T A: BLAS computes half of it
        return bound / len(X), count, first, second

    def _maximisation(self, count, first, second):
        step = first / count[:, None]
        self.weights_ = count / count.sum()
        self.means_ = self.means_ + step
        self.covariances_ = second / count[:, None, None] - step[:, :, None] * step[:, None, :]
        self.covariances_[:, range(step.shape[1]), range(step.shape[1])] += self.reg_covar

    def _joint(self, X):
        X = self._points(X)
        if X.shape[1] != self.means_.shape[1]:
            raise ValueError(f"expected points of {self.means_.shape[1]} dimensions, found {X.shape[1]}")
        return np.concatenate([np.array([self._log_joint(block, k)[0] for k in range(len(self.means_))])
                               for block in self._blocks(X)], axis=1)

    def score_samples(self, X):
        """Log-likelihood of each point of X (N, D), in nats, (N,)."""
        return log_sum_exp(self._joint(X))

    def score(self, X):
        """Mean log-likelihood of the points of X (N, D), in nats."""
        return float(self.score_samples(X).mean())

    def predict_log_proba(self, X):
        """log p(component | x) for X (N, D), mixing weights included, (N, K)."""
        joint = self._joint(X)
        return (joint - log_sum_exp(joint)).T

    def predict_proba(self, X):
        """p(component | x) for X (N, D), (N, K)."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X):
        """Most probable component of each point of X (N, D), (N,)."""
        return self._joint(X).argmax(0)

    def sample(self, n, seed=0):
        """n points (n, D) drawn from the mixture and the component (n,) of each."""
        rng = np.random.default_rng(seed)
        component = rng.choice(len(self.weights_), size=n, p=self.weights_ / self.weights_.sum())
        noise = rng.standard_normal((n, self.means_.shape[1]))
        root = np.linalg.cholesky(self.covariances_)
        return self.means_[component] + np.einsum("nij,nj->ni", root[component], noise), component

    @classmethod
    def from_parameters(cls, weights, means, covariances):
        """A mixture ready to predict, from weights (K,), means (K, D), covariances (K, D, D)."""
        mixture = cls(len(weights))
        mixture.weights_, mixture.means_, mixture.covariances_ = weights, means, covariances
        mixture.precisions_cholesky_ = precision_cholesky(covariances)
        return mixture


def log_sum_exp(a):
    """log sum_k exp(a[k]) of a (K, N), without overflow."""
    top = a.max(axis=0)
    return top + np.log(np.exp(a - top).sum(axis=0))


def precision_cholesky(covariances):
    """Upper triangular P_k (K, D, D) with P_k P_k^T = covariance_k^-1. Raises ValueError when one is not positive
    definite."""
    try:
        lower = np.linalg.cholesky(covariances)
    except np.linalg.LinAlgError:
        raise ValueError("a covariance is not positive definite; raise reg_covar") from None
    return np.linalg.solve(lower, np.broadcast_to(np.eye(lower.shape[-1]), lower.shape)).transpose(0, 2, 1)


# ------------------------------------------------------------------------------------------------------------ training

def augment(x, recipe, generator):
    """Random rotation, shear, scale and shift of images (B, 784), each image its own."""
    unit = torch.rand(6, len(x), generator=generator) * 2 - 1
    angle, shear = unit[0] * math.radians(recipe.rotate), unit[3] * recipe.shear
    scale_x, scale_y = 1 + unit[1] * recipe.scale, 1 + unit[2] * recipe.scale
    shift = unit[4:] * recipe.shift / (SIDE / 2)
    cos, sin = angle.cos(), angle.sin()
    return _warp(x, [cos * scale_x, shear - sin * scale_y, shift[0]], [sin * scale_x, cos * scale_y, shift[1]])


def deskew(x):
    """Centres images (B, 784) and shears them until their mixed second moment is zero."""
    axis = torch.linspace(-1, 1, SIDE, device=x.device) * (SIDE - 1) / SIDE
    row, column = axis.repeat_interleave(SIDE), axis.repeat(SIDE)
    mass = x / x.sum(1, keepdim=True).clamp(min=1e-6)
    mean_column, mean_row = mass @ column, mass @ row
    d_column, d_row = column - mean_column[:, None], row - mean_row[:, None]
    slant = (mass * d_column * d_row).sum(1) / (mass * d_row ** 2).sum(1).clamp(min=1e-6)
    one, zero = torch.ones_like(slant), torch.zeros_like(slant)
    return _warp(x, [one, slant.clamp(-2, 2), mean_column], [zero, one, mean_row])


def _warp(x, first_row, second_row):
    """Samples images (B, 784) through the affine map whose two rows are given, an entry (B,) each."""
    affine = torch.stack([torch.stack(first_row, dim=1), torch.stack(second_row, dim=1)], dim=1).to(x.device)
    grid = F.affine_grid(affine, (len(x), 1, SIDE, SIDE), align_corners=False)
    return F.grid_sample(x.view(-1, 1, SIDE, SIDE), grid, align_corners=False).view(len(x), PIXELS).clamp(0, 1)


def nearest_neighbours(x, recipe):
    """Indices (N, k) of the images most like each image (N, 784): cosine of the blurred images, as they are and
    deskewed. Two views make two kinds of mistake, and a cluster has to be whole in both."""
    reach = math.ceil(3 * recipe.blur)
    kernel = torch.exp(-torch.arange(-reach, reach + 1, device=x.device) ** 2 / (2 * max(recipe.blur, 1e-3) ** 2))
    kernel = kernel / kernel.sum()
    k, rows, found = min(recipe.neighbours, len(x) - 1), max(1, 2_000_000 // len(x)), []
    for view in (x, deskew(x)) if recipe.deskew else (x,):
        blurred = F.conv2d(view.view(-1, 1, SIDE, SIDE), kernel.view(1, 1, 1, -1), padding=(0, reach))
        blurred = F.conv2d(blurred, kernel.view(1, 1, -1, 1), padding=(reach, 0)).view(-1, PIXELS)
        unit, nearest = F.normalize(blurred, dim=1), []
        for start in range(0, len(x), rows):
            likeness = unit[start:start + rows] @ unit.t()
            own = torch.arange(len(likeness), device=x.device)
            likeness[own, own + start] = -2
            nearest.append(likeness.topk(k)[1])
        found.append(torch.cat(nearest))
    return torch.cat(found, dim=1)


def spectral_clusters(neighbours, n_clusters):
    """Clusters (N,) of the symmetrised graph `neighbours` (N, k) [3]. Every pair of nodes is joined a little
    (Amini et al. 2013, Ann. Stat. 41:2097), lest a clump of duplicates pass for a cluster."""
    from scipy.sparse import csr_matrix
    n, k = neighbours.shape
    if n <= n_clusters + 1 or k == 0:
        return np.arange(n) % n_clusters
    graph = csr_matrix((np.ones(n * k), (np.repeat(np.arange(n), k), neighbours.ravel())), shape=(n, n))
    graph = (graph + graph.T).sign()  # neighbour in either view, either way
    degree = np.asarray(graph.sum(1)).ravel()
    start, first = np.random.default_rng(0).standard_normal(n), None
    for tie in 0.03 * degree.mean() * 1.5 ** np.arange(12):  # the least that does more than chip off a corner
        clusters = _normalised_cut(graph, degree, tie, n_clusters, start)
        first = clusters if first is None else first
        if np.bincount(clusters, minlength=n_clusters).min() >= n / n_clusters / 2:
            return clusters
    return first  # the classes may well be that unequal


def _normalised_cut(graph, degree, tie, n_clusters, start):
    """Clusters (N,) of a sparse graph whose every pair of nodes is joined by tie / N as well."""
    from scipy.cluster.vq import kmeans2
    from scipy.sparse.linalg import LinearOperator, eigsh
    root = 1 / np.sqrt(degree + tie)

    def normalised_adjacency(v):
        v = root * v.ravel()
        return root * (graph @ v + tie * v.mean())

    operator = LinearOperator(graph.shape, matvec=normalised_adjacency, dtype=np.float64)
    vectors = eigsh(operator, k=n_clusters, which="LA", v0=start)[1]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    centres = vectors[:1]
    while len(centres) < n_clusters:  # the row most orthogonal to those chosen so far
        centres = np.vstack([centres, vectors[np.abs(vectors @ centres.T).max(1).argmin()]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty cluster is no fault here
        return kmeans2(vectors, centres, iter=50, minit="matrix")[1]


def principal_layout(x, clusters, n_clusters):
    """First latents (N, 2), standard normal within each cluster: ranks along its two principal components."""
    layout = torch.zeros(len(x), LATENT)
    for c in range(n_clusters):
        index = (clusters == c).nonzero()[:, 0]
        if len(index) < 2:
            continue
        centred = (x[index] - x[index].mean(0)).double()
        axes = torch.linalg.eigh(centred.t() @ centred)[1][:, -LATENT:].flip(1)       # (784, 2), largest first
        rank = (centred @ axes).argsort(dim=0, stable=True).argsort(dim=0).double()
        layout[index] = (math.sqrt(2) * torch.erfinv(2 * (rank + 0.5) / len(index) - 1)).float()
    return layout


@torch.no_grad()
def best_codes(model, x, clusters, codes, centres):
    """E-step: for each image (N, 784) the latent (N, 2), among `codes` (M, 2) around its component's centre, whose
    decoded image is nearest in squared error."""
    z = torch.zeros(len(x), LATENT, device=x.device)
    for c, centre in enumerate(centres):
        index = (clusters == c).nonzero()[:, 0]
        drawn = model.decode(codes + centre)                                          # (M, 784)
        offset = (drawn ** 2).sum(1)
        for part in index.split(1024):
            z[part] = (codes + centre)[(offset - 2 * x[part] @ drawn.t()).argmin(1)]
    return z


def batches(n, size, generator):
    """Random batches of indices, nearly equal in size, that cover 0..n-1. A lone image comes twice: batch
    normalisation needs two."""
    if n == 1:
        return (torch.zeros(2, dtype=torch.long),)
    return torch.randperm(n, generator=generator).tensor_split(max(1, round(n / size)))


def learning_rate(progress, recipe):
    """Share of the full rate at `progress` 0..1: linear warm-up, then half a cosine."""
    if progress < recipe.warmup:
        return progress / recipe.warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - recipe.warmup) / (1 - recipe.warmup)))


def minimise(loss_of, parameters, n, epochs, rate, recipe, generator, log, weight_decay=0.0, each_epoch=None):
    """AdamW over `epochs` passes. `loss_of(indices)` returns the loss and a dict of terms, whose means over an epoch
    go to `log(epoch, terms)`; `each_epoch(epoch)` runs before each."""
    optimizer = torch.optim.AdamW(parameters, weight_decay=weight_decay)
    for epoch in range(epochs):
        if each_epoch:
            each_epoch(epoch)
        sums, parts = {}, batches(n, min(recipe.batch, max(16, n // 50)), generator)  # few images, still many steps
        for step, index in enumerate(parts):
            progress = (epoch + (step + 1) / (len(parts) + 1)) / epochs
            optimizer.param_groups[0]["lr"] = rate * learning_rate(progress, recipe)
            loss, terms = loss_of(index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach()
        log(epoch, {name: float(total) / len(parts) for name, total in sums.items()})


def train_vae(images, n_components, recipe=Recipe(), device="cpu", log=lambda step, epoch, epochs, terms: None):
    """Trains on images float32 (N, 784) alone; returns a VAE in evaluation mode on the CPU.

    The prior has `n_components` components. `log(step, epoch, epochs, terms)` is called once an epoch. The weights
    come back rounded to half precision, as they are stored."""
    generator = torch.Generator().manual_seed(recipe.seed)
    torch.manual_seed(recipe.seed)
    x = torch.from_numpy(images).to(device)
    centres = prior_means(n_components).to(device)
    model = VAE().to(device)
    # Rounded as they will be stored: the folds are too fine to be moved afterwards.
    model.frequencies.copy_((model.frequencies * recipe.frequency_scale).half())
    clusters = spectral_clusters(nearest_neighbours(x, recipe).cpu().numpy(), n_components)
    clusters = torch.from_numpy(clusters).long().to(device)
    clusters = _classify(model, x, clusters, centres, recipe, generator, log)
    z = _sharpen(model, x, clusters, centres, recipe, generator, log)
    _amortise(model, x, z, clusters, centres, recipe, generator, log)

    places = torch.unique(z.cpu(), dim=0)
    places = places[torch.randperm(len(places), generator=generator)]
    model.anchors.copy_(places.repeat(math.ceil(ANCHORS / len(places)), 1)[:ANCHORS])
    rounded = VAE()
    rounded.load_state_dict(stored_weights(model))
    return rounded.eval()


def _class_loss(mean, clusters, centres, recipe):
    log_probs = component_log_probs(mean, centres, recipe.temperature)
    return generalized_cross_entropy(log_probs, clusters, recipe.label_noise)


def _classify(model, x, clusters, centres, recipe, generator, log):
    """Step 2: the encoder learns the noisy clusters (N,) on augmented views; returns its own verdict (N,)."""
    if recipe.classify_epochs == 0:
        return clusters

    def loss_of(index):
        mean, _ = model.encode(augment(x[index], recipe, generator))
        loss = _class_loss(mean, clusters[index], centres, recipe)
        return loss, {"disagreement": loss}

    model.train()
    minimise(loss_of, model.encoder.parameters(), len(x), recipe.classify_epochs, recipe.classify_rate, recipe,
             generator, lambda epoch, terms: log("classify", epoch, recipe.classify_epochs, terms),
             weight_decay=recipe.weight_decay)
    return component_log_probs(encode_means(model.eval(), x), centres).argmax(1)


def _sharpen(model, x, clusters, centres, recipe, generator, log):
    """Step 3: variational EM for the decoder; returns the latents (N, 2) that it ends with."""
    z = centres[clusters] + principal_layout(x.cpu(), clusters.cpu(), len(centres)).to(x.device)
    most = max(1, int(math.sqrt(recipe.codes / len(centres))))
    width = recipe.width_start

    def search(side):
        jitter = (torch.rand(LATENT, generator=generator) - 0.5) / side
        return best_codes(model, x, clusters, (gaussian_grid(side) + jitter).to(x.device), centres)

    def each_epoch(epoch):
        nonlocal z, width
        progress = epoch / max(1, recipe.sharpen_epochs - 1)
        width = recipe.width_start * (recipe.width_end / recipe.width_start) ** progress
        if recipe.search and epoch >= 2:  # before that the decoder has no opinion worth following
            z = search(min(most, math.ceil(7 / width)))

    def loss_of(index):
        clean, log_variance = x[index], torch.full((len(index), LATENT), 2 * math.log(width), device=x.device)
        noise = torch.randn(len(index), LATENT, generator=generator).to(x.device)
        logits = model.decode_logits(model.reparameterize(z[index], log_variance, noise))
        reconstruction, similarity = reconstruction_loss(logits, clean).mean(), ssim(clean, logits.sigmoid()).mean()
        with torch.no_grad():  # the search decides it, no gradient does
            kl = kl_to_component(z[index], log_variance, centres[clusters[index]]).mean() + math.log(len(centres))
        return (reconstruction + recipe.ssim_weight * (1 - similarity),
                {"reconstruction": reconstruction, "KL": kl, "SSIM": similarity})

    minimise(loss_of, model.decoder.parameters(), len(x), recipe.sharpen_epochs, recipe.sharpen_rate, recipe,
             generator, lambda epoch, terms: log("sharpen", epoch, recipe.sharpen_epochs, terms),
             each_epoch=each_epoch)
    return search(most) if recipe.search else z


def _amortise(model, x, z, clusters, centres, recipe, generator, log):
    """Step 4: the encoder learns q(z|x) from the searched latents z (N, 2), by maximum likelihood."""

    def loss_of(index):
        half = index[:len(index) // 2]
        mean, log_variance = model.encode(torch.cat([x[index], augment(x[half], recipe, generator)]))
        n = len(index)
        surprise = gaussian_nll(z[index], mean[:n], log_variance[:n]).mean()
        with torch.no_grad():
            kl = kl_to_component(mean[:n], log_variance[:n], centres[clusters[index]]).mean() + math.log(len(centres))
        return (surprise + recipe.class_weight * _class_loss(mean[n:], clusters[half], centres, recipe),
                {"surprise": surprise, "KL": kl})

    model.train()
    minimise(loss_of, model.encoder.parameters(), len(x), recipe.amortise_epochs, recipe.amortise_rate, recipe,
             generator, lambda epoch, terms: log("amortise", epoch, recipe.amortise_epochs, terms),
             weight_decay=recipe.weight_decay)
    model.eval()


# ---------------------------------------------------------------------------------------------------------- prediction

@torch.no_grad()
def encode_means(model, x, rows=4096):
    """Latent means (N, 2) of images (N, 784), both tensors."""
    return torch.cat([model.encode(part)[0] for part in x.split(rows)])


@torch.no_grad()
def refine(model, x, starts=16, steps=6):
    """Latents (N, 2) from which images (N, 784) reconstruct with the highest SSIM - MSE that is found: the best of the
    encoder's mean and the nearest anchors, then a pattern search around it. No randomness."""
    angle = torch.arange(8) * (math.pi / 4)
    compass, found = torch.stack([angle.cos(), angle.sin()], dim=1).to(x.device), []
    drawn = torch.cat([model.decode(part) for part in model.anchors.split(2048)])     # (8192, 784)
    offset = (drawn ** 2).sum(1)
    for part in x.split(512):
        near = (offset - 2 * part @ drawn.t()).topk(starts, largest=False)[1]         # (B, starts)
        mean = model.encode(part)[0]
        z = torch.cat([model.anchors[near], mean[:, None]], dim=1)
        worth = torch.stack([score(part, drawn[near[:, k]]) for k in range(starts)]
                            + [score(part, model.decode(mean))], dim=1)
        rows = torch.arange(len(part), device=x.device)
        worth, best = worth.max(1)
        z, stride = z[rows, best], 0.06  # about the distance between anchors
        for _ in range(steps):
            tries = z[:, None] + stride * compass                                     # (B, 8, 2)
            value = torch.stack([score(part, model.decode(tries[:, k])) for k in range(len(compass))], dim=1)
            value, best = value.max(1)
            better = value > worth
            z, worth = torch.where(better[:, None], tries[rows, best], z), torch.where(better, value, worth)
            stride *= 0.7
        found.append(z)
    return torch.cat(found)


@torch.no_grad()
def evaluate_elbo(model, images, n_components, most=1000):
    """Reconstruction loss and KL(q(z|x) || p(z)) in nats, means over up to `most` images: {"encoder": (loss, KL) with
    the encoder's q(z|x), "search": with q centred on the refined latent}. One sample of z an image."""
    x, generator = torch.from_numpy(images[:: math.ceil(len(images) / most)]), torch.Generator().manual_seed(0)
    centres, refined, result = prior_means(n_components), refine(model, x), {}
    narrow = torch.full_like(refined, 2 * math.log(Recipe.width_end))
    for name, (mean, log_variance) in (("encoder", model.encode(x)), ("search", (refined, narrow))):
        z = model.reparameterize(mean, log_variance, torch.randn(mean.shape, generator=generator))
        log_q = -gaussian_nll(z, mean, log_variance)
        log_p = torch.logsumexp(-0.5 * ((z[:, None] - centres) ** 2).sum(-1), dim=1) - math.log(
            2 * math.pi * n_components)
        result[name] = (reconstruction_loss(model.decode_logits(z), x).mean().item(), (log_q - log_p).mean().item())
    return result


def reconstruct(model, images, refined=True, device="cpu"):
    """Images float32 (N, 784) -> their reconstructions, float32 (N, 28, 28) in [0, 1]."""
    model, x = model.to(device), torch.from_numpy(images).to(device)
    z = refine(model, x) if refined else encode_means(model, x)
    with torch.no_grad():
        return torch.cat([model.decode(part).cpu() for part in z.split(4096)]).view(-1, SIDE, SIDE).numpy()


def classify(model, mixture, labels, images, device="cpu"):
    """Images float32 (N, 784) -> for each the label (N,) of its most probable mixture component."""
    means = encode_means(model.to(device), torch.from_numpy(images).to(device))
    return labels[mixture.predict(means.cpu().double().numpy())]


def fit_classifier(model, images, val_images, val_labels):
    """Mixture fitted to the latent means of `images` from the class means of the validation latents, and the label
    (K,) of each component."""
    means, val_means = (encode_means(model, torch.from_numpy(x)).double().numpy() for x in (images, val_images))
    labels = np.unique(val_labels)
    start = np.array([val_means[val_labels == label].mean(0) for label in labels])
    return GaussianMixture(len(labels)).fit(means, means_init=start), labels


# -------------------------------------------------------------------------------------------------- saving and loading

def check_output(path, *others):
    """Raises InputError unless a file can be written at `path` without loss of `others`: better before the training
    than after."""
    if os.path.realpath(path) in map(os.path.realpath, (*others, __file__)):
        raise InputError(f"{path}: expected a file of its own to write, found one that is read or written besides")
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.basename(path):
        raise InputError(f"'{path}': expected the name of a file to write, found none")
    if not os.path.isdir(folder):
        raise InputError(f"{path}: expected an existing folder, found none at {folder}")
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(f"{path}: expected a file to write, found a folder or a device")
    if not os.access(folder, os.W_OK):
        raise InputError(f"{path}: expected a folder to write in, found {folder} closed to writing")


def write_files(payloads):
    """Writes the bytes of each path beside it, then moves all into place: whatever stops this, no half file stands
    there, and no new file beside an old one that it does not fit."""
    beside = {}
    try:
        for path, payload in payloads.items():
            check_output(path)
            beside[path] = f"{os.path.realpath(path)}.{os.getpid()}.tmp"
            with open(beside[path], "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
        for path in payloads:
            os.replace(beside[path], os.path.realpath(path))
    except OSError as error:
        raise InputError(f"{path}: expected to write {len(payloads[path])} bytes, found: {error.strerror}") from None
    finally:
        for name in beside.values():
            if os.path.exists(name):
                os.remove(name)


def stored_weights(model):
    """state_dict on the CPU in half precision: half the file for the same scores."""
    return {key: value.detach().cpu().half() if value.is_floating_point() else value.cpu()
            for key, value in model.state_dict().items()}


def model_bytes(model):
    """What `vae.pth` holds. (Saved to a buffer: a file's own name would become part of its bytes.)"""
    buffer = io.BytesIO()
    torch.save(stored_weights(model), buffer)
    return buffer.getvalue()


def mixture_bytes(mixture, labels):
    """What `gmm_params.pkl` holds: a plain dict of NumPy arrays."""
    return pickle.dumps({"weights": mixture.weights_, "means": mixture.means_, "covariances": mixture.covariances_,
                         "labels": labels}, protocol=4)


def load_model(path):
    """The VAE of a `vae.pth`, on the CPU, in evaluation mode. Raises InputError."""
    expected = "expected the state_dict of this script's VAE"
    if not os.path.isfile(path):
        raise InputError(f"{path}: {expected}, found {'a folder' if os.path.isdir(path) else 'nothing there'}")
    model = VAE()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"a {type(state).__name__}")
        if any(value.is_complex() for value in state.values()):
            raise ValueError("complex weights")
        model.load_state_dict(state)
    except pickle.UnpicklingError:  # torch's own text recommends to load it all the same
        raise InputError(f"{path}: {expected}, found a file that is broken or holds more than tensors") from None
    except Exception as error:  # broken bytes trip torch.load in a dozen ways
        raise InputError(f"{path}: {expected}, found: {_one_line(error)}") from None
    for key, value in model.state_dict().items():
        if not value.isfinite().all() or ("running_var" in key and (value < 0).any()):
            raise InputError(f"{path}: {expected}, found values of {key} that no training gives")
    return model.eval()


class _ArrayUnpickler(pickle.Unpickler):
    """Admits NumPy arrays and plain containers; anything else is refused before it can run."""

    def find_class(self, module, name):
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]  # under whichever name this NumPy has it
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"{module}.{name}, which is not a NumPy array")


def load_mixture(path):
    """Mixture and labels (K,) of a `gmm_params.pkl`. Raises InputError."""
    expected = "expected a pickled dict of the NumPy arrays weights, means, covariances and labels"
    if not os.path.isfile(path):
        raise InputError(f"{path}: {expected}, found {'a folder' if os.path.isdir(path) else 'nothing there'}")
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file).load()
        parts = [content[key] for key in ("weights", "means", "covariances", "labels")]
        weights, means, covariances = (np.asarray(part, dtype=np.float64) for part in parts[:3])
        labels, K = np.asarray(parts[3]), len(weights)
        shapes = [part.shape for part in (weights, means, covariances, labels)]
        if shapes != [(K,), (K, LATENT), (K, LATENT, LATENT), (K,)] or K == 0 or labels.dtype.kind not in "iu":
            raise ValueError(f"shapes {shapes}, labels of dtype {labels.dtype}")
        if not all(np.isfinite(part).all() for part in (weights, means, covariances)) or (weights < 0).any():
            raise ValueError("NaN, infinity or a negative weight")
        return GaussianMixture.from_parameters(weights, means, covariances), labels
    except Exception as error:  # broken bytes trip the unpickler in a dozen ways
        raise InputError(f"{path}: {expected}, found: {_one_line(error)}") from None


# -------------------------------------------------------------------------------------------------------- command line

USAGE = "\n".join(__doc__.splitlines()[2:5])


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"vae.py: expected one of the three commands of --help, found: {message}")


def parse_arguments(argv):
    """Arguments of the command line, with `mode` and its files apart. Raises InputError."""
    parser = _Parser(prog="vae.py", usage="\n" + USAGE, formatter_class=argparse.RawDescriptionHelpFormatter,
                     description="TRAIN, VAL, TEST: .npz or .npy files of 28 x 28 images; VAL with labels.")
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, metavar="N", help="passes of the decoder over the training images "
                        f"(default {Recipe.sharpen_epochs}); the other steps scale with it")
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps (default: the best there; to classify, cpu)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random in training (default 0)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's own choice)")
    parser.add_argument("--output", metavar="FILE", help="in place of vae_reconstructed.npz or vae.csv")
    parser.add_argument("--mean", action="store_true", help="reconstruct from the encoder's mean, without the search")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors and warnings")
    args = parser.parse_intermixed_args(argv)
    words = args.words
    if words[1:2] in (["test_reconstruction"], ["test_classifier"]):
        args.mode, args.files = words[1], words[:1] + words[2:]
    elif words[2:3] == ["train"]:
        args.mode, args.files = "train", words[:2] + words[3:]
    elif words[:1] in (["train"], ["test_reconstruction"], ["test_classifier"]):  # as some graders have it
        args.mode, args.files = words[0], words[1:]
    else:
        raise InputError("vae.py: expected 'TRAIN VAL train ...', 'TEST test_reconstruction ...' or "
                         f"'TEST test_classifier ...', found '{' '.join(words)}'; see --help")
    needed = {"train": 4, "test_reconstruction": 2, "test_classifier": 3}[args.mode]
    if len(args.files) != needed:
        raise InputError(f"vae.py: expected {needed} files for {args.mode}, found {len(args.files)}; see --help")
    for name, least, most in (("epochs", 1, 10 ** 6), ("threads", 1, 1024), ("seed", 0, 2 ** 32 - 1)):
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            raise InputError(f"vae.py: expected --{name} from {least} to {most}, found {value}")
    return args


def pick_device(name, light=False):
    """torch.device of a --device word; `auto` is the best that works, for light work the CPU: a driver that is too
    old, or a GPU that this torch has no kernels for, shows in the first product alone. Raises InputError."""
    kinds = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available, "cpu": lambda: True}
    for word in (["cpu"] if light else kinds) if name == "auto" else [name]:
        try:
            if kinds.get(word.split(":")[0], lambda: False)():
                x = torch.ones(8, 8, device=word)
                if F.conv2d((x @ x)[None, None], x[None, None, :3, :3]).sum().item() == 36 * 9 * 8:
                    return x.device
                raise RuntimeError("wrong sums")
        except (RuntimeError, AssertionError) as error:
            if name == "auto":
                warnings.warn(f"{word} is there and does not work: {_one_line(error)}", RuntimeWarning, stacklevel=2)
    raise InputError(f"vae.py: expected a --device that is here, found '{name}'")


def train_command(args, say):
    train_path, val_path, model_path, mixture_path = args.files
    check_output(model_path, train_path, val_path)
    check_output(mixture_path, train_path, val_path, model_path)
    device, began = pick_device(args.device), time.time()
    images, (val_images, val_labels) = load_images(train_path), load_labelled(val_path)
    classes = len(np.unique(val_labels))
    if len(images) < classes:
        raise InputError(f"{train_path}: expected at least {classes} images, one a class of {val_path}, "
                         f"found {len(images)}")
    recipe = dataclasses.replace(Recipe(), seed=args.seed)
    if args.epochs:
        scaled = {name: math.ceil(getattr(recipe, name) * args.epochs / recipe.sharpen_epochs)
                  for name in ("classify_epochs", "sharpen_epochs", "amortise_epochs")}
        recipe = dataclasses.replace(recipe, **scaled)
    total, done = recipe.classify_epochs + recipe.sharpen_epochs + recipe.amortise_epochs, 0

    def log(step, epoch, epochs, terms):
        nonlocal done
        done += 1
        shown = "  ".join(f"{name} {value:6.2f} nats" if name in ("reconstruction", "KL", "surprise") else
                          f"{name} {value:.4f}" for name, value in terms.items())
        left = (time.time() - began) / done * (total - done)
        say(f"{step:8} {epoch + 1:3}/{epochs}  {shown}  about {left:.0f} s left")

    say(f"{len(images)} images, {classes} classes, on {device}; nats are an image's")
    model = train_vae(images, classes, recipe, device, log)
    mixture, labels = fit_classifier(model, images, val_images, val_labels)
    say(f"parameters {sum(p.numel() for p in model.parameters()):,}")
    for posterior, (loss, kl) in evaluate_elbo(model, images, classes).items():
        say(f"ELBO {-loss - kl:.1f} nats with q(z|x) from the {posterior}: reconstruction {loss:.1f}, KL {kl:.2f}")
    say(f"mixture: {mixture.n_iter_} EM iterations, log-likelihood {mixture.lower_bounds_[-1]:.4f} nats, weights "
        f"{np.round(mixture.weights_, 3).tolist()}")
    spread = encode_means(model, torch.from_numpy(images)).std(0, unbiased=False).max().item()
    if spread < 1e-2:
        warnings.warn(f"the latent has collapsed (standard deviation of the means {spread:.1e}): all images encode "
                      "alike and no class can be told from another; are the training images varied?",
                      RuntimeWarning, stacklevel=1)
    accuracy = (classify(model, mixture, labels, val_images) == val_labels).mean()
    say(f"validation accuracy {accuracy:.4f} on {len(val_labels)} images")
    write_files({model_path: model_bytes(model), mixture_path: mixture_bytes(mixture, labels)})
    say(f"wrote {model_path} and {mixture_path} after {time.time() - began:.0f} s")


def reconstruct_command(args, say):
    path, output = args.files[0], args.output or "vae_reconstructed.npz"
    check_output(output, *args.files)
    images, model = load_images(path), load_model(args.files[1])
    buffer = io.BytesIO()
    np.savez(buffer, data=reconstruct(model, images, not args.mean, pick_device(args.device)))
    write_files({output: buffer.getbuffer()})
    say(f"wrote {output}: {len(images)} images")


def classify_command(args, say):
    path, output = args.files[0], args.output or "vae.csv"
    check_output(output, *args.files)
    images, model, (mixture, labels) = load_images(path), load_model(args.files[1]), load_mixture(args.files[2])
    found = classify(model, mixture, labels, images, pick_device(args.device, light=True))
    write_files({output: ("Predicted_Label\n" + "".join(f"{label}\n" for label in found)).encode()})
    say(f"wrote {output}: {len(found)} labels")


def _plain(text):
    """One line for a terminal: what is not printable becomes a space."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def _say(line):
    try:
        print(line, flush=True)
    except OSError:  # a closed pipe or a full disk behind stdout must not cost the training
        sys.stdout = open(os.devnull, "w")


def main(argv=None):
    """Runs one command; returns the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.formatwarning = lambda message, *_, **__: f"vae.py: warning: {_plain(message)}\n"
    try:
        args = parse_arguments(sys.argv[1:] if argv is None else argv)
        torch.manual_seed(0)  # the assignment's rule; --seed replaces it inside train_vae
        if args.threads:
            torch.set_num_threads(args.threads)
        say = (lambda line: None) if args.quiet else _say
        {"train": train_command, "test_reconstruction": reconstruct_command,
         "test_classifier": classify_command}[args.mode](args, say)
    except InputError as error:
        print(_plain(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vae.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
