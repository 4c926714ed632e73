"""Numbers in place of adjectives: FID with features learnt on the data, neighbours, clusters, diversity, sharpness.

[1] Heusel et al. 2017 (FID), arXiv:1706.08500         [4] Pech-Pacheco et al. 2000 (Laplacian), ICPR
[2] Gidaris et al. 2018 (rotations), arXiv:1803.07728  [5] Wilson 1927, J. Am. Stat. Assoc. 22:209
[3] Rousseeuw 1987 (silhouette), J. Comput. Appl. Math. 20:53
[6] Kynkäänniemi et al. 2019 (precision and recall), arXiv:1904.06991
"""
import math
import statistics

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from common.errors import InputError, one_line
from studies import engine

NEAR = 0.05  # of the pixels' range: two photos that differ by no more are one, saved twice

# ------------------------------------------------------------------------------------------------------------- features

class FeatureNet(nn.Module):
    """A small convolutional classifier; its last hidden layer, 64 numbers an image, are the features of the FID."""

    WIDTH = 64

    def __init__(self, channels, classes):
        super().__init__()
        layers, width = [], channels
        for out in (32, 64, 128):
            layers += [nn.Conv2d(width, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            width = out
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, self.WIDTH),
                                  nn.ReLU())
        self.head = nn.Linear(self.WIDTH, classes)

    def features(self, x):
        """Images (B, C, H, W) in [0, 1] -> (B, 64)."""
        return self.body(2 * x - 1)

    def forward(self, x):
        """Images (B, C, H, W) in [0, 1] -> logits (B, K)."""
        return self.head(self.features(x))


def train_feature_net(bench, train, test, steps=500, batch=128, seed=0):
    """(FeatureNet in evaluation mode, {"what", "accuracy", "interval", "images", "epochs", "train_accuracy"}) trained
    for about `steps` batches, 30 epochs at most. It learns the classes, or which of four turns an image was given where
    there are fewer than two [2]; the accuracy is on the held-out images, which is what its FID can be trusted by."""
    turned = train.labels is None or len(train.classes) < 2 or test.labels is None
    classes = 4 if turned else len(train.classes)
    epochs = min(30, max(2, math.ceil(steps / max(1, engine.steps_an_epoch(len(train), batch)))))
    with engine.seeded(seed, 7):
        net = FeatureNet(train.pixels.shape[1], classes)
    step = _turning_step if turned else engine.cross_entropy_step("features")
    fitted = engine.fit(bench, "features", {"features": net}, {"features": torch.optim.Adam(net.parameters(), 2e-3)},
                        step, train, test, epochs=epochs, batch=batch, seed=seed,
                        about={"learns": "turns" if turned else "classes"})
    right = round((1 - fitted.history[-1]["test"]["error"]) * len(test))
    what = "which of four turns an image was given" if turned else f"the {classes} classes"
    return net, {"what": what, "accuracy": right / len(test), "images": len(test), "epochs": epochs,
                 "train_accuracy": 1 - fitted.history[-1]["train"]["error"],
                 "interval": wilson_interval(right, len(test))}


def _turning_step(modules, batch):
    turns = batch.integers(4)
    x = torch.stack([torch.rot90(image, int(k), (1, 2)) for image, k in zip(batch.x, turns)])
    logits = modules["features"](x)
    return {"loss": F.cross_entropy(logits, turns), "error": (logits.argmax(1) != turns).float().mean()}


def add_inception_flag(parser):
    """--inception, for the studies whose FID others publish by such features."""
    parser.add_argument("--inception", metavar="WEIGHTS",
                        help="torch-fidelity's file of Inception weights: FID with these features as well")


def inception_features(weights, device="cpu", batch=50):
    """A function from images (N, 1 or 3, H, W), uint8 or float in [0, 1], to their Inception features (N, 2048), by
    torch-fidelity's network and the file of weights that the user names; nothing is downloaded. Raises InputError."""
    from torchmetrics.image.fid import NoTrainInceptionV3
    try:
        with open(str(weights), "rb"):
            pass
        net = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(weights)).to(device)
    except ModuleNotFoundError:
        raise InputError(f"{weights}: expected the package torch-fidelity for Inception features, found none; "
                         "pip install torch-fidelity") from None
    except Exception as error:  # an alien file trips torch.load and load_state_dict in a dozen ways
        raise InputError(f"{weights}: expected the Inception weights of torch-fidelity, "
                         f"found: {one_line(error)}") from None

    @torch.no_grad()
    def features(images):
        if images.is_floating_point():
            images = (255 * images).round().clamp(0, 255).byte()
        return torch.cat([net(part.expand(-1, 3, -1, -1).to(device)).cpu() for part in images.split(batch)])

    return features


# ------------------------------------------------------------------------------------------------------------------ FID

class _AsGiven(nn.Module):
    """Hands features through to torchmetrics, whose older versions ask with an image how many there are."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, x):
        return x if x.dim() == 2 else x.new_zeros(len(x), self.num_features)


def fid(real, fake):
    """Fréchet distance of the Gaussians of two sets of features (N, D), (M, D) [1]:
    |mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)). It falls as N and M grow: compare equal numbers alone. torchmetrics."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"expected at least two rows of features, found {len(real)} and {len(fake)}")
    # One process measures alone: waiting for the others, which may have ended, would never end.
    metric = FrechetInceptionDistance(feature=_AsGiven(real.shape[1]), sync_on_compute=False)
    metric.update(real.double(), real=True)
    metric.update(fake.double(), real=False)
    return max(0.0, float(metric.compute()))


def fid_with_floor(features, train, test, fakes, seed=0):
    """FID of each set of `fakes` {name: images float (M, C, H, W) in [0, 1]} against the held-out images, and the
    floor: that of as many training images. features(images) -> (N, D); all sets are cut to the same n.
    Returns {"n", "floor", name: FID}."""
    n = min(len(train), len(test), *(len(images) for images in fakes.values()))
    chosen = [torch.randperm(len(images), generator=engine.generator(seed, 11))[:n] for images in (train, test)]
    real = features(test.pixels[chosen[1]])
    found = {"n": n, "floor": fid(real, features(train.pixels[chosen[0]]))}
    return {**found, **{name: fid(real, features(images[:n])) for name, images in fakes.items()}}


def nearest(x, y, k=1, dtype=torch.float64):
    """(Euclidean distances (N, k), indices (N, k)) of the k points or images y (M, ...) nearest to each of x (N, ...),
    the nearest first; images uint8 are taken as [0, 1]."""
    def flat(part):
        return part.flatten(1).to(dtype) / (255 if part.dtype == torch.uint8 else 1)

    x, found, start = flat(x), [], 0
    for part in y.split(1000):  # as float64, images are eight times their size
        distances, index = torch.cdist(x, flat(part)).topk(min(k, len(part)), largest=False)
        found.append((distances, index + start))
        start += len(part)
    distances, index = (torch.cat(parts, 1) for parts in zip(*found))
    index = index.gather(1, distances.topk(min(k, len(y)), largest=False)[1])
    # cdist goes by inner products and rounds: the distance of a point to its copy has to be 0
    return torch.stack([(x - flat(y[column])).norm(dim=1) for column in index.T], 1), index


def near_copies(train, test, within=NEAR):
    """How many of the images `test` uint8 (N, ...) are nearly one of `train` (M, ...): the root mean square of their
    difference, in pixels of [0, 1], is at most `within`, and at most half the standard deviation of the image's own
    pixels, for plain ones are all near each other."""
    found, root = 0, math.sqrt(test[0].numel())
    for part in test.split(2000):
        limit = (part.flatten(1).float().std(1, unbiased=False) / 255 / 2).clamp_max(within)
        found += int((nearest(part, train, dtype=torch.float32)[0][:, 0] / root <= limit).sum())
    return found


def precision_recall(real, fake, k=3):
    """(share of the fake points (M, D) within the real ones' neighbourhoods, share of the real ones (N, D) within the
    fake ones') [6]: a neighbourhood is the ball around a point that reaches to its k-th nearest of its own kind."""
    def within(points, others):
        radius = nearest(others, others, k + 1)[0][:, -1]  # the nearest is the point itself
        return float((torch.cdist(points.double(), others.double()) <= radius).any(1).double().mean())

    return within(fake, real), within(real, fake)


def copying(drawn, held, trained, share=0.01, k=3):
    """How near samples (N, ...) are to their nearest training images, beside how near held-out images (M, ...) are.

    "ratio" is that of the median distances. The nearest `share` of the held-out images at even positions set a
    distance; "closer" is the share of the samples within it and "real" that of the held-out images at odd positions,
    which had no part in it, so that both are estimated alike. Returns ({"ratio", "closer", "interval", "real",
    "real_interval"}, indices (N, k) of the nearest training images). Raises ValueError for M < 2."""
    if len(held) < 2:
        raise ValueError(f"expected at least two held-out images, found {len(held)}")
    (near, index), usual = nearest(drawn, trained, k), nearest(held, trained)[0][:, 0]
    limit, found = usual[::2].quantile(share), {}
    for key, interval, distances in (("closer", "interval", near[:, 0]), ("real", "real_interval", usual[1::2])):
        within = int((distances <= limit).sum())
        found.update({key: within / len(distances), interval: wilson_interval(within, len(distances))})
    return {"ratio": float(near[:, 0].median() / usual.median().clamp_min(1e-12)), **found}, index


# ------------------------------------------------------------------------------------------------- latents and classes

def knn_accuracy(train_z, train_y, test_z, test_y, k=5):
    """Share of the held-out points whose label is that of most of their k nearest training points."""
    from sklearn.neighbors import KNeighborsClassifier
    model = KNeighborsClassifier(min(k, len(train_z))).fit(np.asarray(train_z), np.asarray(train_y))
    return float((model.predict(np.asarray(test_z)) == np.asarray(test_y)).mean())


def silhouette(z, y, most=5000, seed=0):
    """Mean silhouette coefficient of points (N, D) by their labels, -1..1, over at most `most` of them [3]; None for
    fewer than two classes or no class of two."""
    from sklearn.metrics import silhouette_score
    z, y = np.asarray(z), np.asarray(y)
    if len(z) > most:
        chosen = np.random.default_rng(seed).permutation(len(z))[:most]
        z, y = z[chosen], y[chosen]
    if not 2 <= len(np.unique(y)) < len(y):
        return None
    return float(silhouette_score(z, y))


def majority_baseline(train_y, test_y):
    """Accuracy on the held-out labels of always naming the class that is most frequent in training."""
    return float((test_y == train_y.bincount().argmax()).double().mean())


def wilson_interval(successes, n, z=1.959963984540054):
    """Interval [low, high] of a proportion, of 95 % unless z says another [5]."""
    share, spread = successes / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return [middle - half if successes else 0.0, middle + half if successes < n else 1.0]


# --------------------------------------------------------------------------------------------------------------- images

def mean_pairwise_l2(images):
    """Diversity: the mean Euclidean distance of two different images of (N, ...)."""
    flat = images.flatten(1).double()
    total = sum(torch.cdist(part, flat, compute_mode="donot_use_mm_for_euclid_dist").sum() for part in flat.split(256))
    return float(total / (len(flat) * (len(flat) - 1)))


def diversity(images, most, seed):
    """mean_pairwise_l2 of at most `most` images of (N, ...), drawn with `seed`: a set may be sorted by class."""
    some = torch.randperm(len(images), generator=engine.generator(seed, 12))[:most]
    return mean_pairwise_l2(images[some.sort().values])


def sharpness(images):
    """Mean over the images (N, C, H, W) in [0, 1] of the variance of the Laplacian (4 neighbours) of their grey
    values [4]. Noise is sharp too: read it beside the value for real images."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return float(F.conv2d(images.float().mean(1, keepdim=True), kernel).flatten(1).var(1, unbiased=False).mean())


def summarise(numbers):
    """Nested dicts of numbers, one a seed, as one whose leaves are mean_and_sd; the keys are those of the first."""
    if isinstance(numbers[0], dict):
        return {key: summarise([one.get(key) for one in numbers]) for key in numbers[0]}
    return mean_and_sd(numbers)


def mean_and_sd(values):
    """{"mean", "sd", "values"} of numbers, one a seed; sd (n - 1) is None for a single one, and all is None where a
    number is."""
    if any(value is None for value in values):
        return {"mean": None, "sd": None, "values": list(values)}
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values) if len(values) > 1 else None,
            "values": list(values)}
