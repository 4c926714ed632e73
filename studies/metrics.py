"""Evaluation metrics: FID, precision and recall, neighbours, clusters, diversity, sharpness.

[1] Heusel et al. 2017 (FID), arXiv:1706.08500         [3] Kynkäänniemi et al. 2019, arXiv:1904.06991
[2] Gidaris et al. 2018 (rotations), arXiv:1803.07728  [4] Pech-Pacheco et al. 2000 (Laplacian), ICPR
"""
import math
import random
import statistics

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import silhouette_score
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchvision.transforms.functional import gaussian_blur

from common.errors import InputError
from common.stats import wilson_interval
from common.text import one_line
from studies import report
from studies.training import StudyModule, map_batches


def _shuffled(x, parts=4):
    size = x.shape[2] // parts, x.shape[3] // parts
    patches = F.unfold(x, size, stride=size)
    return F.fold(patches[:, :, torch.randperm(parts ** 2)], x.shape[2:], size, stride=size)


def _between(x, low, high):
    return low + (high - low) * torch.rand(len(x), 1, 1, 1, device=x.device)


TRANSFORMATIONS = {  # of images (B, C, H, W) in [0, 1]
    "none": lambda x: x, "a quarter turn": lambda x: x.rot90(1, (2, 3)), "shuffled patches": _shuffled,
    "swapped colour channels": lambda x: x.roll(1, 1), "blur": lambda x: gaussian_blur(x, 7, random.uniform(0.7, 2)),
    "noise": lambda x: x + _between(x, 0.03, 0.15) * torch.randn_like(x),
    "less contrast": lambda x: x.lerp(x.mean((1, 2, 3), True), _between(x, 0.3, 0.7)),
    "a second image": lambda x: x.lerp(x.roll(1, 0), _between(x, 0.25, 0.5))}


def transformed(x):
    """(images (B, C, H, W), each after one of TRANSFORMATIONS drawn at random; which (B,))."""
    x, y = x.clone(), torch.randint(len(TRANSFORMATIONS), (len(x),), device=x.device)
    for i, function in enumerate(TRANSFORMATIONS.values()):
        if (y == i).any():
            x[y == i] = function(x[y == i]).clamp(0, 1)
    return x, y


class FeatureExtractor(StudyModule):
    """A small convolutional classifier; its last hidden layer, 64 numbers an image, are the features of the FID. It
    learns the classes or, where there are none, which of TRANSFORMATIONS an image was given, as in [2]."""

    def __init__(self, channels, classes):
        super().__init__()
        self.save_hyperparameters()
        layers = []
        for width, out in ((channels, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(width, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU())
        self.head = nn.Linear(64, classes or len(TRANSFORMATIONS))

    def extract(self, x):
        """Images (B, C, H, W) in [0, 1] -> features (B, 64). Each image is standardised: else brightness and contrast
        decide, and blurred or plain grey images lie among real ones."""
        return self.features(F.layer_norm(x, x.shape[1:]))

    def losses(self, x, y):
        if not self.hparams.classes:
            x, y = transformed(x)
        logits = self.head(self.extract(x))
        return {"loss": F.cross_entropy(logits, y), "error_rate": (logits.argmax(1) != y).float().mean()}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 2e-3)


def train_feature_extractor(study, train=None, test=None, batch_size=128):
    """(function from images to features (N, 64), what results.json says of them), trained on `train`, by default the
    study's, for about `feature_steps` batches, 30 epochs at most. The FID can be trusted by the accuracy on `test`."""
    train, test, seed = train or study.train, test or study.test, study.args.seed
    classes = len(train.classes) if len(train.classes) > 1 and test.classes else 0
    torch.manual_seed(seed)
    model = FeatureExtractor(train.pixels.shape[1], classes)
    epochs = min(30, max(2, math.ceil(study.settings.feature_steps * batch_size / len(train))))
    study.run.fit("features", model, train, test, epochs=epochs, batch_size=batch_size, seed=seed)
    last, n, guessing = model.history[-1], len(test), 1 / len(TRANSFORMATIONS)
    task = f"which of {len(TRANSFORMATIONS)} transformations an image was given ({', '.join(TRANSFORMATIONS)})"
    if classes:
        task, guessing = f"the {classes} classes", majority_baseline(train.labels, test.labels)
    correct = round((1 - last["test_error_rate"]) * n)
    return (lambda images: map_batches(model.extract, images)), {
        "task": task, "accuracy": correct / n, "interval": wilson_interval(correct, n), "images": n,
        "epochs": epochs, "train_accuracy": 1 - last["train_error_rate"], "guessing": guessing,
        "weak": correct / n < (1 + guessing) / 2}


def inception_features(device="cpu"):
    """Function from images (N, 1 or 3, H, W), uint8 or in [0, 1], to the features (N, 2048) of torchmetrics' FID, which
    are Inception v3's with torch-fidelity's weights. Raises InputError without these."""
    try:
        network = FrechetInceptionDistance(feature=2048).inception.to(device)
    except Exception as error:  # a missing package, network errors and corrupt downloads raise many exception types
        raise InputError("--inception: expected the package torch-fidelity and its weights (downloaded once), found: "
                         f"{one_line(error)}") from None
    return lambda images: map_batches(  # 100 images of 299 x 299 px at a time: their activations fill the memory
        lambda x: network((255 * x).round().byte().expand(-1, 3, -1, -1).to(device)), images, batch_size=100)


def fid(real, fake):
    """Fréchet distance of the Gaussians of two sets of features (N, D), (M, D) [1]:
    |mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)). It falls as N and M grow: compare equal numbers alone. NaN for features
    that are not finite, on which the eigenvalue solver crashes, or a single image."""
    if min(len(real), len(fake)) < 2 or not torch.cat([real, fake]).isfinite().all():
        return math.nan
    (mean, s), (other, t) = ((x.double().mean(0), torch.atleast_2d(x.double().T.cov())) for x in (real, fake))
    root = torch.linalg.eigvals(s @ t).sqrt().real.sum()  # the trace of (S S')^(1/2)
    return max(0.0, float((mean - other).square().sum() + s.trace() + t.trace() - 2 * root))


def fids(features, train, test, fakes, seed=0):
    """{name: FID} against the held-out images of "training images" and of each of `fakes` {name: images (M, C, H, W) in
    [0, 1]}; all sets are cut to the same size."""
    n = min(len(train), len(test), *map(len, fakes.values()))
    real = features(test.subsample(n, seed).pixels)
    return {"training images": fid(real, features(train.subsample(n, seed).pixels)),
            **{name: fid(real, features(images[:n])) for name, images in fakes.items()}}


def precision_recall(real, fake, k=3):
    """(share of the fake points (M, D) in the real ones' neighbourhoods, share of the real ones (N, D) in the fake
    ones') [3]. A neighbourhood is a ball that reaches to the k-th nearest of its own kind, and no farther than the
    median of these distances: the balls of the few points far from all others would hold anything."""
    def within(points, others):
        points, others = points.double(), others.double()
        radius = torch.cdist(others, others).kthvalue(min(k + 1, len(others)), 1).values  # the first: itself
        radius = radius.clamp_max(radius.median())
        return float((torch.cdist(points, others) <= radius).any(1).double().mean())

    return within(fake, real), within(real, fake)


def mean_pairwise_l2(images, most=1000):
    """Diversity: the mean Euclidean distance of two different images of the first `most` of (N, ...)."""
    return float(F.pdist(images[:most].flatten(1).float()).mean())


def sharpness(images):
    """Mean over the images (N, C, H, W) in [0, 1] of the variance of the Laplacian of their grey values [4]."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return float(F.conv2d(images.float().mean(1, keepdim=True), kernel).flatten(1).var(1, unbiased=False).mean())


def knn_accuracy(train_z, train_y, test_z, test_y, k=5):
    """Share of the held-out points whose label is that of most of their k nearest training points."""
    return float(KNeighborsClassifier(min(k, len(train_z))).fit(train_z, train_y).score(test_z, test_y))


def silhouette(z, y, most=5000):
    """Mean silhouette coefficient of at most `most` points (N, D); None for one class, or one a point."""
    if not 2 <= len(np.unique(y)) < len(y):
        return None
    return float(silhouette_score(z, y, sample_size=min(most, len(z)), random_state=0))


def majority_baseline(train_y, test_y):
    """Accuracy on the held-out labels of always naming the class that is most frequent in training."""
    return float((test_y == train_y.bincount().argmax()).double().mean())


def summarise(numbers):
    """Nested dicts of numbers, one a seed, as one dict with leaves {"mean", "sd", "values"}; sd (n - 1) is None for a
    single seed, and both are None where a number is, or NaN."""
    if isinstance(numbers[0], dict):
        return {key: summarise([one[key] for one in numbers]) for key in numbers[0]}
    mean = None if None in numbers else statistics.fmean(numbers)
    several = len(numbers) > 1 and mean is not None
    return {"mean": mean, "sd": float(np.std(numbers, ddof=1)) if several else None, "values": numbers}


def agrees_with_trend(expected, *pairs):
    """Whether report.trend is `expected`, "rises" or "falls", for all pairs of numbers or leaves of `summarise`. None
    where it is neither, or a number is None or NaN, unless another pair contradicts."""
    trends = {None if None in (one["mean"] if isinstance(one, dict) else one for one in pair) else report.trend(pair)
              for pair in pairs}
    if trends & {"rises", "falls"} - {expected}:
        return False
    return True if trends == {expected} else None
