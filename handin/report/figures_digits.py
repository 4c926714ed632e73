"""The figures and the numbers of part II: reconstructions, manifold, latents, mixture, SSIM, the page latent.html.

Each `*_figure` takes arrays and returns a matplotlib Figure; `draw_all` creates all of them from the saved files.
"""
import itertools
import math
import os

import numpy as np
import torch

import vae
from common.errors import InputError
from common.plots import PALETTE, class_styles
from common.stats import wilson_interval
from handin.grading.scores import all_scores, mean_ssim, one_minus_mse, read_digits
from handin.report import latent_page, results
from handin.report.plots import COLUMN, PAGE, epochs_figure, layer_rows, new_figure

N_RECONSTRUCTIONS = 15  # validation images in the figure of reconstructions: all of the course's
LATENT_AXES = {"xlabel": "encoder's mean $z_1$", "ylabel": "encoder's mean $z_2$"}


def read_history(path, model):
    """The history of a VAE. Raises InputError if it is invalid or that of another model."""
    record = results.read_history(path, "vae.py", ("epoch", "reconstruction", "KL", "SSIM"),
                                  ("model", "settings", "images", "device", "seconds"))
    if record["model"] != vae.fingerprint(model).tobytes().hex() or not record["epochs"]:
        raise InputError(f"{path}: expected the history of this model, found "
                         f"{'that of another' if record['epochs'] else 'none'}")
    return record


def layer_table(model):
    """[{"name", "shape", "parameters"}] of a VAE from image to reconstruction."""
    k, labels = len(model.prior_means), {"Linear": "linear", "BatchNorm1d": ", batch norm", "ReLU": ", ReLU"}
    encoder, decoder = (layer_rows(network, [network[0].in_features], 1, labels)
                        for network in (model.encoder, model.decoder))
    encoder[-1]["name"] += f": {k} class logit{'s' if k > 1 else ''}, mean, log-variance"
    decoder[-1]["name"] += ", sigmoid"
    return [{"name": "image", "shape": [vae.PIXELS], "parameters": 0}, *encoder,
            {"name": "sample of z", "shape": [vae.LATENT_DIM], "parameters": 0},
            {"name": "z, sines and cosines" if model.frequencies.any() else "z and constants",
             "shape": [model.decoder[0].in_features], "parameters": 0}, *decoder]


def learning_curves_figure(rows):
    """Reconstruction error, KL divergence and SSIM of the training images against epochs, from a history's rows."""
    return epochs_figure(rows, 1.9, {label: [(key, 1, {"color": PALETTE[0]})] for key, label in (
        ("reconstruction", "reconstruction (nats)"), ("KL", "KL divergence (nats)"), ("SSIM", "SSIM"))})


def elbo(model, digits):
    """ELBO (N,) of a DigitDataset in nats per image, with one sample of z per image."""
    generator = torch.Generator().manual_seed(0)

    def each(x):
        logits, mu, logvar = model.posterior(x)
        pixels = model.decode_logits(model.reparameterize(mu, logvar, torch.randn(mu.shape, generator=generator)))
        reconstruction = torch.nn.functional.binary_cross_entropy_with_logits(pixels, x, reduction="none").sum(1)
        return -reconstruction - vae.kl_to_prior(model, logits, mu, logvar)

    return vae.map_batches(each, digits, []).numpy()


def elbo_gap(training, training_classes, test, test_classes):
    """[gap, its standard error] between the ELBO of training images (N,) and of test images (M,), the mean over the
    digits, which have different ELBO and different shares in both; None unless both have two images of each digit."""
    gaps, variances, digits = [], [], np.union1d(training_classes, test_classes)
    for digit in digits:
        parts = [values[classes == digit] for values, classes in ((training, training_classes), (test, test_classes))]
        if min(map(len, parts)) < 2:
            return None
        gaps.append(parts[0].mean() - parts[1].mean())
        variances.append(sum(part.var(ddof=1) / len(part) for part in parts))
    return [float(np.mean(gaps)), math.sqrt(sum(variances)) / len(digits)]


def evenly_spaced(labels, total, n):
    """Indices of n of `total` images, evenly spread and, where there are labels (total,), sorted by class."""
    order = np.arange(total) if labels is None else np.argsort(labels, kind="stable")
    return order[np.linspace(0, total - 1, min(n, total)).round().astype(int)]


def reconstructions(model, digits, device="cpu"):
    """Of a DigitDataset, from the encoder's means and then from the refined latents: a pair of reconstructions
    (N, 28, 28) in [0, 1], and a pair of their SSIM (N,)."""
    truth, pair = digits[:][0].numpy(), [vae.reconstruct(model, digits, refined, device) for refined in (False, True)]
    return pair, [np.array([mean_ssim(x[None], y[None]) for x, y in zip(truth, part)]) for part in pair]


def reconstructions_figure(originals, reconstructed, similarities):
    """Two pairs of rows of n images (n, 28, 28), as in the assignment's show_reconstruction: the originals above
    model(x), and above the refined reconstructions, `reconstructed` a pair of arrays; below each its SSIM,
    `similarities` a pair of arrays (n,)."""
    n = len(originals)
    figure = new_figure(PAGE, 4 * PAGE / max(n, 6) + 0.5, tight=True)
    rows = (("original", originals, None), ("model(x)", reconstructed[0], similarities[0]),
            ("original", originals, None), ("refined", reconstructed[1], similarities[1]))
    for row, (name, images, values) in zip(figure.subplots(4, n, squeeze=False), rows):
        row[0].set_ylabel(name)
        for i, (axes, image) in enumerate(zip(row, images)):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], xlabel="" if values is None else f"{values[i]:.3f}")
            axes.xaxis.labelpad = 1
    return figure


def grid_values():
    """The assignment's latents along an axis (20,): norm.ppf(linspace(0.05, 0.95, 20))."""
    from scipy.stats import norm
    return norm.ppf(np.linspace(0.05, 0.95, 20))


@torch.no_grad()
def decode_grid(model, first, second):
    """Images (R, C, 28, 28) in [0, 1] that a VAE decodes from the grid of latents first (C,) x second (R,): [row,
    column] has z_1 = first[column] and z_2 = second[row], as in the assignment's plot_2d_manifold."""
    z = np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2)
    return model.decode(torch.from_numpy(z).float()).numpy().reshape(len(second), len(first), vae.SIDE, vae.SIDE)


def mahalanobis(mixture, points):
    """Distances (N, K) of points (N, 2) from each component's mean, in its standard deviations."""
    difference = points[:, None] - mixture.means_
    solved = np.linalg.solve(mixture.covariances_, difference[..., None])[..., 0]
    return np.sqrt((difference * solved).sum(-1))


def describe_manifold(model, mixture, labels, values):
    """{"cells": {digit: number of cells of the grid values (R,) x values that the mixture, labels (K,), assigns to it},
    "between": number of cells more than 3 standard deviations from every component, "axes": [{"digit", "slant",
    "ink"}]}: slant in degrees to the right and mean pixel, in [0, 1], of the images decoded 2 standard deviations from
    a component's mean to either side along its long axis."""
    grid, axes = np.stack(np.meshgrid(values, values), axis=-1).reshape(-1, 2), []
    digits = labels[mixture.predict(grid)]
    for mean, covariance, digit in zip(mixture.means_, mixture.covariances_, labels.tolist()):
        variances, directions = np.linalg.eigh(covariance)
        offset = 2 * math.sqrt(variances[1]) * directions[:, 1]
        with torch.no_grad():
            ends = model.decode(torch.from_numpy(np.stack([mean - offset, mean + offset])).float()).numpy()
        ends = sorted((slant(image.reshape(vae.SIDE, vae.SIDE)), float(image.mean())) for image in ends)
        axes.append({"digit": digit, "slant": [end[0] for end in ends], "ink": [end[1] for end in ends]})
    return {"cells": {str(digit): int((digits == digit).sum()) for digit in labels.tolist()},
            "between": int((mahalanobis(mixture, grid).min(1) > 3).sum()), "axes": axes}


def slant(image):
    """Degrees by which the ink of an image (28, 28) leans to the right, from its second moments."""
    y, x = np.indices(image.shape)
    x, y = (axis - np.average(axis, weights=image + 1e-9) for axis in (x, y))
    return math.degrees(math.atan2(-(image * x * y).sum(), (image * y * y).sum() + 1e-9))


def manifold_figure(images):
    """The images (R, C, 28, 28) of `decode_grid` as in the assignment's plot_2d_manifold."""
    rows, columns, side = images.shape[:3]
    figure = new_figure(COLUMN, COLUMN)
    axes = figure.add_subplot()
    axes.imshow(images.transpose(0, 2, 1, 3).reshape(rows * side, columns * side), cmap="gnuplot2", vmin=0, vmax=1,
                interpolation="antialiased")
    axes.axis("off")
    return figure


def _scatter(means, classes, labels, predicted):
    """A figure and axes with latent means (N, 2) in the colors of their classes (N,), which are true or `predicted` by
    the mixture; its labels (K,) have colors, too, so that all figures use the same ones."""
    figure = new_figure(COLUMN, 3.7)
    axes = figure.add_subplot(**LATENT_AXES, aspect="equal")
    size, alpha = (9, 0.8) if len(means) < 3000 else (2, 0.5)
    for name, (color, marker) in class_styles(np.union1d(labels, classes)).items():
        if name in classes:  # rasterized, since PDF viewers are slow with thousands of markers
            axes.scatter(*means[classes == name].T, s=size, color=color, marker=marker, alpha=alpha, linewidths=0,
                         rasterized=True)
            axes.scatter([], [], s=14, color=color, marker=marker, linewidths=0,
                         label=f"{'predicted' if predicted else 'digit'} {name}")
    return figure, axes


def _set_limits_and_legend(figure, axes, points, share, columns):
    """Sets limits around points (N, 2) with a margin of this share of the longer side, and the legend above."""
    low, high = points.min(0), points.max(0)
    margin = share * (high - low).max() + 1e-6
    axes.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, handletextpad=0.3,
                  columnspacing=1.0)
    return figure


def latents_figure(means, classes, mixture, labels, test=None, predicted=False):
    """Latent means (N, 2) in the colors of their classes (N,), which are true or `predicted` by the mixture; behind
    them the regions that the mixture predicts to be each digit, labels (K,). `test` is the pair of means and true
    classes of the test images: those that the mixture misclassifies are circled."""
    figure, axes = _scatter(means, classes, labels, predicted)
    reach = grid_values()[-1]
    corners = reach * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    if test is not None:
        wrong = labels[mixture.predict(test[0])] != test[1]
        axes.scatter(*test[0][wrong].T, s=30, facecolors="none", edgecolors="black", linewidths=0.8,
                     label=f"misclassified ({wrong.sum()} of {len(wrong):,} test images)")
    axes.plot(*corners.T, ":", color="0.3", linewidth=0.8, label="the assignment's grid")
    _set_limits_and_legend(figure, axes, np.vstack([means, corners, *([] if test is None else test[:1])]), 0.06, 2)
    x, y = (np.linspace(*limits, 400) for limits in (axes.get_xlim(), axes.get_ylim()))
    component = mixture.predict(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)).reshape(len(y), len(x))
    styles = class_styles(np.union1d(labels, classes))
    axes.contourf(x, y, component, np.arange(len(labels) + 1) - 0.5, colors=[styles[k][0] for k in labels], alpha=0.13,
                  zorder=0)
    return figure


def mixture_figure(means, classes, mixture, labels, val_means, predicted=False):
    """The mixture over latent means (N, 2), colored as in `latents_figure`: ellipses at 1, 2 and 3 standard deviations
    and the mean of each component with its digit, labels (K,), and weight; crosses are the labelled images,
    val_means (M, 2), from whose class means EM started."""
    from matplotlib.patches import Ellipse
    figure, axes = _scatter(means, classes, labels, predicted)
    corners, middle = [means, val_means], mixture.means_[:, 1].mean()
    for mean, covariance, weight, label in zip(mixture.means_, mixture.covariances_, mixture.weights_, labels):
        variances, directions = np.linalg.eigh(covariance)
        angle = math.degrees(math.atan2(directions[1, 1], directions[0, 1]))
        for sigmas, width in ((1, 1.2), (2, 0.9), (3, 0.6)):
            height, length = 2 * sigmas * np.sqrt(variances)
            axes.add_patch(Ellipse(mean, length, height, angle=angle, fill=False, edgecolor="black", linewidth=width))
        reach = 3 * np.sqrt(np.diag(covariance))
        corners += [[mean + reach, mean - reach]]
        offset = 1 if mean[1] >= middle else -1
        axes.annotate(f"digit {label}\nweight {weight:.2f}", mean + [0, offset * reach[1]], xytext=(0, 3 * offset),
                      textcoords="offset points", ha="center", va="bottom" if offset > 0 else "top")
    axes.scatter(*val_means.T, s=18, marker="x", color="black", linewidths=0.9, label=f"labelled ({len(val_means)})")
    axes.plot(*mixture.means_.T, "+", color="black", markersize=7, markeredgewidth=1.2, label="mean")
    axes.set(title="ellipses: 1, 2 and 3 standard deviations")
    return _set_limits_and_legend(figure, axes, np.vstack(corners), 0.14, 3)  # room for the text next to the ellipses


def ssim_figure(similarities, classes, labels):
    """Histogram of the SSIM (N,) of each image and its refined reconstruction, by class (N,) unless that is None, in
    the colors of the latents, given the mixture's labels (K,); and the mean."""
    figure = new_figure(COLUMN, 2.4)
    axes = figure.add_subplot(xlabel="SSIM of the refined reconstruction", ylabel="images")
    low = min(0.95, math.floor(20 * similarities.min()) / 20)
    bins = np.linspace(low, 1, 1 + max(10, round((1 - low) * 40)))
    if classes is None:
        axes.hist(similarities, bins, color="0.7")
    else:
        styles = class_styles(np.union1d(labels, classes))
        for name, line in zip(np.unique(classes), itertools.cycle(("-", "--", "-.", ":"))):
            part = similarities[classes == name]
            axes.hist(part, bins, histtype="step", color=styles[name][0], linestyle=line, linewidth=1.2,
                      label=f"digit {name}, mean {part.mean():.3f}")
    axes.axvline(similarities.mean(), color="black", linewidth=1, label=f"all, mean {similarities.mean():.3f}")
    axes.legend(loc="upper left")
    axes.set(xlim=(low, 1), ylim=(0, 1.1 * axes.get_ylim()[1]))
    return figure


# ------------------------------------------------------------------------------------------------------------ results

def component_pairs(mixture, labels, truth=None, predicted=None):
    """[{"digits": [a, b], "distance", "meets", "misclassified"}] of each pair of components: the Mahalanobis distance
    of their means by the mean of their covariances; the smallest of 1, 2 and 3 standard deviations at which their
    ellipses overlap, or None; and how many of a were predicted as b and of b as a, None without true labels (N,)."""
    found, turn = [], np.linspace(0, 2 * np.pi, 720)
    circle, cholesky = np.stack([np.cos(turn), np.sin(turn)]), np.linalg.cholesky(mixture.covariances_)
    for i, j in itertools.combinations(range(len(labels)), 2):
        difference, a, b = mixture.means_[i] - mixture.means_[j], labels[i].item(), labels[j].item()
        covariance = (mixture.covariances_[i] + mixture.covariances_[j]) / 2
        within = {radius: [mahalanobis(mixture, mixture.means_[k] + radius * (cholesky[k] @ circle).T)[:, other].min()
                           for k, other in ((i, j), (j, i))] for radius in (1, 2, 3)}  # one may contain the other
        wrong = None if truth is None else [int(((truth == x) & (predicted == y)).sum()) for x, y in ((a, b), (b, a))]
        found.append({"digits": [a, b], "misclassified": wrong,
                      "meets": next((radius for radius, least in within.items() if min(least) <= radius), None),
                      "distance": math.sqrt(difference @ np.linalg.solve(covariance, difference))})
    return found


def shares_within(mixture, means):
    """Shares of latent means (N, 2) within 1, 2 and 3 standard deviations (Mahalanobis) of their
    component; 0.39, 0.86 and 0.99 for normal distributions in two dimensions."""
    distance = mahalanobis(mixture, means)[np.arange(len(means)), mixture.predict(means)]
    return [float((distance <= radius).mean()) for radius in (1, 2, 3)]


def draw_all(val, test, train, model_path, history_path, mixture_path, device):
    """Figures {name: Figure}, pages {file name: bytes}, DigitResults and remarks (lines for the user) of part II, from
    the labelled digits, those of the test, the training images or None, a model, the history next to it, and its
    mixture. Labels of the training images only color them. Raises InputError, also vae.py's."""
    model = vae.load_checkpoint(model_path)
    history = read_history(history_path or f"{os.path.splitext(model_path)[0]}_history.json", model)
    mixture, labels = vae.load_mixture(mixture_path, model)
    val_digits, (digits, classes) = vae.load_digits(val, labelled=True), read_digits(test)
    shown_digits, shown_classes = (digits, classes) if train is None else read_digits(train)
    images, val_images, shown_images = (part[:][0].numpy() for part in (digits, val_digits, shown_digits))
    if train is not None and len(shown_digits) != history["images"]:
        raise InputError(f"{train}: expected the {history['images']:,} images that the model was trained on, found "
                         f"{len(shown_digits):,}")
    val_classes = val_digits.labels
    known = np.unique(val_classes).tolist()
    if sorted(labels.tolist()) != known:
        raise InputError(f"{mixture_path}: expected a mixture of the digits {known} of {val}, found one of "
                         f"{sorted(labels.tolist())}")
    reconstructed, similarities = reconstructions(model, digits, device)
    first = evenly_spaced(val_classes, len(val_classes), N_RECONSTRUCTIONS)
    val_reconstructed, val_similarities = reconstructions(model, val_digits, device)
    model.to("cpu")  # as in test_classifier, and grids are small
    means, val_means, shown_means = (vae.encode_means(model, part) for part in (digits, val_digits, shown_digits))
    predicted, labelled, unknown = labels[mixture.predict(means)], classes is not None, shown_classes is None
    elbos = {"test": elbo(model, digits), **({} if train is None else {"training": elbo(model, shown_digits)})}
    gap = None if train is None or unknown or not labelled else elbo_gap(
        elbos["training"], shown_classes, elbos["test"], classes)
    if unknown:
        shown_classes = labels[mixture.predict(shown_means)]
    values = grid_values()
    figures = {
        "digits_learning_curves": learning_curves_figure(history["epochs"]),
        "digits_reconstructions": reconstructions_figure(
            val_images[first], *([part[first] for part in pair] for pair in (val_reconstructed, val_similarities))),
        "digits_manifold": manifold_figure(decode_grid(model, values, values)),
        "digits_latents": latents_figure(shown_means, shown_classes, mixture, labels,
                                         (means, classes) if labelled else None, unknown),
        "digits_mixture": mixture_figure(shown_means, shown_classes, mixture, labels, val_means, unknown),
        "digits_ssim": ssim_figure(similarities[1], classes, labels)}
    strip = evenly_spaced(classes, len(images), latent_page.N_STRIP_IMAGES)
    refined = vae.refine(model, digits[strip][0].flatten(1)).numpy()
    page = latent_page.page_bytes(
        model, mixture, labels, latent_page.Points(shown_images, shown_means, shown_classes),
        latent_page.Points(val_images, val_means, val_classes),
        latent_page.TestImages(images[strip], classes[strip] if labelled else None, means[strip], refined,
                               *(part[strip] for part in similarities)),
        values[-1], from_training=train is not None, predicted=unknown)
    numbers = results.DigitResults(
        classes=labels.tolist(), images=len(images), scores=all_scores(classes, predicted) if labelled else None,
        accuracy_interval=wilson_interval((classes == predicted).sum(), len(classes)) if labelled else None,
        validation=all_scores(val_classes, labels[mixture.predict(val_means)]), labelled_images=len(val_classes),
        validation_ssim={str(digit): float(val_similarities[1][val_classes == digit].mean()) for digit in known},
        manifold=describe_manifold(model, mixture, labels, values),
        ssim=float(similarities[1].mean()), ssim_sd=float(similarities[1].std()),
        ssim_from_mean=float(similarities[0].mean()),
        one_minus_mse=one_minus_mse(images, reconstructed[1]),
        inside_grid=float((np.abs(means) <= values[-1]).all(1).mean()), aggregate_mean=means.mean(0).tolist(),
        aggregate_covariance=np.cov(means.T, ddof=0).tolist(), scatter_of="test" if train is None else "training",
        scatter_images=len(shown_images), pairs=component_pairs(mixture, labels, classes, predicted),
        within=shares_within(mixture, shown_means),
        layers=layer_table(model), parameters=sum(p.numel() for p in model.parameters()),
        history=history["epochs"], training_images=history["images"], minutes=history["seconds"] / 60,
        device=history["device"], elbo={name: float(values.mean()) for name, values in elbos.items()}, elbo_gap=gap,
        settings={**history["settings"], "components": len(model.prior_means), "frequencies": vae.FREQUENCIES,
                  "separation": vae.SEPARATION, "radius": vae.RADIUS, "prior_std": model.prior_std.item()})
    remarks = [] if labelled else [f"{test}: no labels of {len(images):,} images: accuracy, precision, recall and F1 "
                                   "left out"]
    return figures, {"latent.html": page}, numbers, remarks
