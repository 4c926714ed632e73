"""The pictures and the numbers of part II: reconstructions, manifold, latents, mixture, SSIM.

Each `*_figure` takes arrays and returns a matplotlib Figure; `draw_all` makes them all from the saved files.
"""
import math

import numpy as np
import torch
from tqdm import tqdm

import vae
from common.errors import InputError
from handin.figures import COLUMN, PAGE, class_styles, macro_scores, new_figure, plural, styled
from handin.scores import mean_ssim, one_minus_mse

GRID = 20             # digits along each axis of the manifold
TAIL = 0.05           # probability that the assignment's grid leaves out at each end of each axis
AXES = ("latent $z_1$ (no unit)", "latent $z_2$ (no unit)")
CODES = ("encoder's mean $z_1$ (no unit)", "encoder's mean $z_2$ (no unit)")


# ------------------------------------------------------------------------------------------------------------ data in

def load_test(path):
    """Images float32 (N, 784) in [0, 1] of a file, and their labels int64 (N,), None when it has none. Raises
    vae.InputError."""
    images = vae.load_images(path)
    content = np.load(path, allow_pickle=False)
    labelled = "labels" in getattr(content, "files", ())
    if labelled:
        content.close()
    return images, vae.load_labelled(path)[1] if labelled else None


def spread_over_classes(labels, total, n, seed=0):
    """Indices (up to n,) of images, as many of each class as can be, drawn at random and sorted by class; without
    labels evenly over all `total` images."""
    if labels is None:
        return np.unique(np.linspace(0, total - 1, min(n, total)).round().astype(int))
    rng, classes = np.random.default_rng(seed), np.unique(labels)
    queues = [rng.permutation(np.flatnonzero(labels == c)).tolist() for c in classes]
    order = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
    chosen = np.array(order[:n])
    return chosen[np.argsort(labels[chosen], kind="stable")]


# ---------------------------------------------------------------------------------------------------- reconstructions

@styled
def reconstructions_figure(originals, reconstructions, similarities):
    """Two rows of n images (n, 28, 28) in [0, 1]: originals above, reconstructions below, each with its SSIM (n,)."""
    n = len(originals)
    figure = new_figure(PAGE, PAGE / max(n, 6) * 2 + 0.35)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    grid = figure.subplots(2, n, squeeze=False)
    for row, images in zip(grid, (originals, reconstructions)):
        for axes, image in zip(row, images):
            axes.imshow(image, cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    for axes, similarity in zip(grid[1], similarities):
        axes.set_xlabel(f"SSIM {similarity:.2f}" if n <= 10 else f"{similarity:.2f}", fontsize=7.5, labelpad=2)
    grid[0, 0].set_ylabel("original", fontsize=7)
    grid[1, 0].set_ylabel("reconstruction", fontsize=7)
    return figure


# ----------------------------------------------------------------------------------------------------------- manifold

def grid_values(mean=0.0, deviation=1.0):
    """The assignment's latents along an axis (20,): norm.ppf(linspace(0.05, 0.95, 20)), for another mean and standard
    deviation than 0 and 1 moved and stretched."""
    from scipy.stats import norm
    return mean + deviation * norm.ppf(np.linspace(TAIL, 1 - TAIL, GRID))


@torch.no_grad()
def manifold(model, first, second):
    """Images (S, S, 28, 28) in [0, 1] that a VAE decodes from the grid of latents first (S,) x second (S,): [row,
    column] has z_1 = first[column] and z_2 = second[row]."""
    z = np.stack(np.meshgrid(first, second), axis=-1).reshape(-1, 2)
    drawn = model.decode(torch.from_numpy(z).float()).numpy()
    return drawn.reshape(len(second), len(first), vae.SIDE, vae.SIDE)


@styled
def manifold_figure(panels):
    """Panels (title, z_1 (S,), z_2 (S,), images (S, S, 28, 28)) in rows of two: each a sheet of digits in the places of
    their latents, z_2 upwards."""
    down = math.ceil(len(panels) / 2)
    figure = new_figure(PAGE, 3.4 * down + 0.1) if len(panels) > 1 else new_figure(COLUMN, COLUMN + 0.3)
    for place, (title, first, second, images) in enumerate(panels):
        axes = figure.add_subplot(down, min(2, len(panels)), place + 1)
        rows, columns, side = images.shape[:3]
        sheet = images[::-1].transpose(0, 2, 1, 3).reshape(rows * side, columns * side)
        axes.imshow(sheet, cmap="gnuplot2", vmin=0, vmax=1, extent=(-0.5, columns - 0.5, -0.5, rows - 0.5),
                    interpolation="antialiased")
        ticks = np.linspace(0, columns - 1, 5).round().astype(int)
        axes.set_xticks(ticks, [f"{first[i]:.2f}" for i in ticks])
        axes.set_yticks(ticks, [f"{second[i]:.2f}" for i in ticks])
        axes.set(xlabel=AXES[0], ylabel=AXES[1], title=title)
    return figure


def manifold_panels(model, mixture, labels, codes):
    """The panels of `manifold_figure`: the assignment's grid, which is the quantiles of N(0, I), and for each component
    of the mixture the same grid over its own quantiles. (vae.py's prior is a circle of Gaussians around the origin:
    hardly a digit is encoded where the assignment's grid lies.)"""
    values = grid_values()
    inside = (np.abs(codes) <= values[-1]).all(1).mean()
    panels = [(f"the assignment's grid, quantiles of N(0, I):\n{100 * inside:.0f} % of the images are encoded there",
               values, values)]
    for mean, covariance, label in zip(mixture.means_, mixture.covariances_, labels):
        axes = [grid_values(mean[axis], math.sqrt(covariance[axis, axis])) for axis in range(2)]
        panels.append((f"digit {label}: the same quantiles\nof its component of the mixture", *axes))
    return [(title, first, second, manifold(model, first, second)) for title, first, second in panels]


# ------------------------------------------------------------------------------------------------- latents and mixture

def _bounds(points, share=0.06):
    low, high = points.min(0), points.max(0)
    margin = share * (high - low).max() + 1e-6
    return (low[0] - margin, high[0] + margin), (low[1] - margin, high[1] + margin)


def _styles(labels, classes):
    """The same colours in every picture, whichever classes a test lacks."""
    return class_styles(sorted({*labels.tolist(), *([] if classes is None else classes.tolist())}))


def _scatter(axes, codes, classes, styles, alpha=1.0, size=9):
    """Codes (N, 2) in the style of their class, grey when `classes` is None."""
    if classes is None:
        axes.scatter(*codes.T, s=size, color="0.35", alpha=alpha, linewidths=0, label="image")
        return
    for name in np.unique(classes):
        colour, marker = styles[name]
        axes.scatter(*codes[classes == name].T, s=size, color=colour, marker=marker, alpha=alpha, linewidths=0,
                     label=f"digit {name}")


def _tint(axes, mixture, labels, styles, bounds, side=400):
    """Faint regions in the colours of the digits that the mixture tells there."""
    from matplotlib.colors import to_rgb
    (left, right), (bottom, top) = bounds
    x, y = np.linspace(left, right, side), np.linspace(bottom, top, side)
    component = mixture.predict(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)).reshape(side, side)
    colours = np.array([to_rgb(styles[label][0]) for label in labels])
    axes.imshow(1 - 0.13 * (1 - colours[component]), extent=(left, right, bottom, top), origin="lower", zorder=0)


@styled
def latents_figure(codes, classes, mixture, labels):
    """Codes (N, 2) of test images in the colours of their true classes (N,), or in grey where those are None; behind
    them the regions that the mixture gives to each digit, labels (K,), around those it tells wrong a ring."""
    styles = _styles(labels, classes)
    reach = grid_values()[-1]
    bounds = _bounds(np.vstack([codes, [[-reach, -reach], [reach, reach]]]))
    figure = new_figure(COLUMN, 3.55)
    axes = figure.add_subplot()
    _tint(axes, mixture, labels, styles, bounds)
    _scatter(axes, codes, classes, styles)
    if classes is not None:
        wrong = labels[mixture.predict(codes)] != classes
        axes.scatter(*codes[wrong].T, s=45, facecolors="none", edgecolors="black", linewidths=0.8,
                     label=f"told wrong ({wrong.sum()} of {len(codes)})")
    axes.plot(reach * np.array([-1, 1, 1, -1, -1]), reach * np.array([-1, -1, 1, 1, -1]), ":", color="0.3",
              linewidth=0.8, label="the assignment's grid")
    axes.set(xlabel=CODES[0], ylabel=CODES[1], xlim=bounds[0], ylim=bounds[1], aspect="equal")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=2, handletextpad=0.3,
                  columnspacing=1.0)
    return figure


@styled
def mixture_figure(codes, classes, mixture, labels, val_codes):
    """The mixture over the codes (N, 2): ellipses at 1, 2 and 3 standard deviations and the mean of each component with
    its digit, labels (K,), and weight; crosses are the labelled images, val_codes (M, 2), that gave it the digit."""
    from matplotlib.patches import Ellipse
    styles = _styles(labels, classes)
    figure = new_figure(COLUMN, 3.55)
    axes = figure.add_subplot()
    _scatter(axes, codes, classes, styles, alpha=0.35, size=6)
    corners = [codes, val_codes]
    for k, (mean, covariance, label) in enumerate(zip(mixture.means_, mixture.covariances_, labels)):
        variances, directions = np.linalg.eigh(covariance)
        angle = math.degrees(math.atan2(directions[1, 1], directions[0, 1]))
        for sigmas, width in ((1, 1.2), (2, 0.9), (3, 0.6)):
            height, length = 2 * sigmas * np.sqrt(variances)
            axes.add_patch(Ellipse(mean, length, height, angle=angle, fill=False, edgecolor=styles[label][0],
                                   linewidth=width))
        reach = 3 * np.sqrt(np.diag(covariance))
        corners += [[mean + reach, mean - reach]]
        axes.plot(*mean, "+", color="black", markersize=7, markeredgewidth=1.2)
        axes.annotate(f"digit {label}, weight {mixture.weights_[k]:.2f}", mean + [0, reach[1]], xytext=(0, 2),
                      textcoords="offset points", ha="center", va="bottom", color=styles[label][0])
    axes.scatter(*val_codes.T, s=18, marker="x", color="black", linewidths=0.9,
                 label=f"labelled ({len(val_codes)})")
    axes.plot([], [], "+", color="black", markersize=7, markeredgewidth=1.2, label="mean")
    bounds = _bounds(np.vstack(corners), 0.1)  # room for what is written above the ellipses
    axes.set(xlabel=CODES[0], ylabel=CODES[1], xlim=bounds[0], ylim=bounds[1], aspect="equal",
             title="ellipses: 1, 2 and 3 standard deviations")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, handletextpad=0.3,
                  columnspacing=1.0)
    return figure


# --------------------------------------------------------------------------------------------------------------- SSIM

@styled
def ssim_figure(similarities, classes, labels):
    """Histogram of the SSIM (N,) of each image and its reconstruction, by class (N,) unless that is None, in the
    colours that the latents have beside the mixture's labels (K,); and the mean."""
    figure = new_figure(COLUMN, 2.4)
    axes = figure.add_subplot()
    low = min(0.95, math.floor(20 * similarities.min()) / 20)
    bins = np.linspace(low, 1, 1 + max(10, round((1 - low) * 40)))
    if classes is None:
        axes.hist(similarities, bins, histtype="stepfilled", color="0.7", edgecolor="0.2")
    else:
        styles = _styles(labels, classes)
        for name, line in zip(np.unique(classes), ("-", "--", "-.", ":") * len(styles)):
            colour, part = styles[name][0], similarities[classes == name]
            axes.hist(part, bins, histtype="stepfilled", color=colour, alpha=0.15)
            axes.hist(part, bins, histtype="step", color=colour, linestyle=line, linewidth=1.2,
                      label=f"digit {name}, mean {part.mean():.3f}")
    axes.axvline(similarities.mean(), color="black", linewidth=1, label=f"all, mean {similarities.mean():.3f}")
    axes.set(xlabel="SSIM of an image and its reconstruction (no unit)", ylabel="images", xlim=(low, 1))
    axes.legend(loc="upper left")
    axes.set_ylim(top=1.1 * axes.get_ylim()[1])
    return figure


# ------------------------------------------------------------------------------------------------------------ numbers

def numbers(model, mixture, labels, images, made, similarities, classes, predicted, labelled_images):
    """What the report states of part II; the form is that of numbers.json. Without the true classes (N,) what tells of
    classification is left out."""
    return {
        "images": len(images), **(macro_scores(classes, predicted) if classes is not None else {}),
        "ssim": float(similarities.mean()), "ssim_sd": float(similarities.std()),
        "one_minus_mse": one_minus_mse(images.reshape(made.shape), made),
        "parameters": sum(p.numel() for p in model.parameters()),
        "classes": labels.tolist(), "mixture_weights": mixture.weights_.tolist(), "labelled_images": labelled_images}


def draw_all(val, test, model_path, mixture_path, device, progress=tqdm):
    """Figures {name: Figure}, numbers and remarks (lines for the user) of part II, from the labelled digits, those of
    the test, a model and its mixture. progress(total=steps) gives a bar as tqdm does, once the input has proved
    sound. Raises InputError, also vae.py's."""
    model, (mixture, labels) = vae.load_model(model_path), vae.load_mixture(mixture_path)
    (val_images, val_classes), (images, classes) = vae.load_labelled(val), load_test(test)
    known = np.unique(val_classes).tolist()
    if sorted(labels.tolist()) != known:
        raise InputError(f"{mixture_path}: expected a mixture of the digits {known} of {val}, found one of "
                         f"{sorted(labels.tolist())}")
    with progress(total=7) as bar:
        bar.set_description("reconstructions")
        made = vae.reconstruct(model, images, device=device)
        model.to("cpu")  # test_classifier's place, and grids are small
        bar.update()
        bar.set_description("SSIM")
        truth = images.reshape(-1, vae.SIDE, vae.SIDE)
        similarities = np.array([mean_ssim(x[None], y[None]) for x, y in zip(truth, made)])
        codes, val_codes = (vae.encode_means(model, torch.from_numpy(x)).double().numpy() for x in (images, val_images))
        predicted, shown = vae.classify(model, mixture, labels, images), spread_over_classes(classes, len(images), 10)
        bar.update()
        figures, drawn = {}, (
            ("digits_reconstructions", lambda: reconstructions_figure(truth[shown], made[shown], similarities[shown])),
            ("digits_manifold", lambda: manifold_figure(manifold_panels(model, mixture, labels, codes))),
            ("digits_latents", lambda: latents_figure(codes, classes, mixture, labels)),
            ("digits_mixture", lambda: mixture_figure(codes, classes, mixture, labels, val_codes)),
            ("digits_ssim", lambda: ssim_figure(similarities, classes, labels)))
        for name, draw in drawn:
            bar.set_description(name)
            figures[name] = draw()
            bar.update()
    remarks = [] if classes is not None else [f"{test}: no labels of {plural(len(images), 'image')}: drawn without "
                                              "colours, accuracy, precision, recall and F1 left out"]
    return figures, numbers(model, mixture, labels, images, made, similarities, classes, predicted,
                            len(val_classes)), remarks
