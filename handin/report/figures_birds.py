"""The figures and the numbers of part I: network, learning curves, confusion matrix, Grad-CAM.

Each `*_figure` takes arrays and returns a matplotlib Figure; `draw_all` creates all of them from the saved files.
"""
import collections
import math
import os
from typing import NamedTuple

import numpy as np
import torch

import bird
from common.errors import InputError
from common.plots import PALETTE
from common.stats import wilson_interval
from handin.grading.scores import all_scores, read_birds
from handin.report import results
from handin.report.plots import COLUMN, PAGE, epochs_figure, layer_rows, new_figure, truncate

MAPS_PER_CLASS = 12  # correctly classified photos, and as many misclassified ones, whose Grad-CAM maps are measured


class Example(NamedTuple):
    """A photo with its Grad-CAM map."""
    photo: np.ndarray   # (S, S, 3) in [0, 1]
    heat: np.ndarray    # (S, S) in [0, 1]
    predicted: str
    probability: float  # of the predicted class


def read_history(path, model):
    """The history of a BirdClassifier. Raises InputError if it is invalid or that of another model."""
    record = results.read_history(
        path, "bird.py", ("epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy"),
        ("classes", "parameters", "best_epoch", "settings.image_size", "validation.average_f1"))
    best = [row["val_accuracy"] for row in record["epochs"] if row["epoch"] == record["best_epoch"]]
    if not best:
        raise InputError(f"{path}: expected a history with the best epoch, found none of epoch {record['best_epoch']}")
    record["validation"]["accuracy"] = best[0]
    parameters = sum(p.numel() for p in model.parameters())
    if (record["classes"], record["parameters"], record["settings"]["image_size"]) != (
            model.metadata["classes"], parameters, model.metadata["image_size"]):
        raise InputError(f"{path}: expected the history of this model, of {len(model.metadata['classes'])} classes and "
                         f"{parameters:,} parameters, found that of another")
    return record


def layer_table(model, dropout):
    """[{"name", "shape", "parameters"}] from photo to logits, for one photo of the size that the model was trained at,
    with the dropout of the training."""
    def convolution(module, name="conv {0} × {0}"):
        first = next(part for part in module.modules() if isinstance(part, torch.nn.Conv2d))
        norm = any("BatchNorm" in type(part).__name__ for part in module.modules())
        return name.format(first.kernel_size[0]) + (", batch norm" if norm else "") + (
            f", stride {first.stride[0]}" if first.stride[0] > 1 else "")

    shape = [3, model.metadata["image_size"], model.metadata["image_size"]]
    return [{"name": "photo", "shape": shape, "parameters": 0}, *layer_rows(model, shape, 2, {
        "ResidualBlock": lambda block: convolution(block, "residual block"), "Sequential": convolution,
        "Dropout": f"avg. and max pooling, dropout {dropout:g}", "Linear": "linear"})]


def learning_curves_figure(rows, best_epoch):
    """Loss (nats) and accuracy (%) of training and validation against epochs, from the rows of a history, with the
    epoch whose weights were kept."""
    styles = ("train", {"label": "training", "linestyle": "--", "color": PALETTE[1]}), (
        "val", {"label": "validation", "linestyle": "-", "color": PALETTE[0]})
    figure = epochs_figure(rows, 2.4, {
        label: [(f"{part}_{measure}", factor, style) for part, style in styles]
        for measure, label, factor in (("loss", "cross-entropy loss (nats)", 1), ("accuracy", "accuracy (%)", 100))})
    for axes in figure.axes:
        axes.axvline(best_epoch, color="0.6", linewidth=0.8, zorder=0, label=f"best epoch: {best_epoch}")
        axes.set(xlim=(min(row["epoch"] for row in rows) - 0.5, max(row["epoch"] for row in rows) + 0.5))
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[1].set_ylim(top=100)
    figure.axes[0].legend()
    return figure


def confusion_figure(truth, predicted, names):
    """Confusion matrix of labels (N,), rows the true classes: numbers of photos, colors by share of the row."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
    n, longest = len(names), max(map(len, names))
    figure = new_figure(*((COLUMN, 3.0 if longest <= 6 else 3.4) if n <= 12 else (PAGE, 4.6)))
    axes = figure.add_subplot()
    counts, share = (confusion_matrix(truth, predicted, labels=range(n), normalize=way) for way in (None, "true"))
    shown = ConfusionMatrixDisplay(share, display_labels=[truncate(name, 16) for name in names])
    shown.plot(ax=axes, cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1}, text_kw={"fontsize": 6.5},
               xticks_rotation=90 if longest > 3 else 0)
    for text, count in zip(shown.text_.flat, counts.flat):
        text.set_text(f"{count}" if count else "")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    return figure


# ------------------------------------------------------------------------------------------------------------- Grad-CAM

def choose_examples(truth, predicted, usable, n_classes, each=MAPS_PER_CLASS, seed=0):
    """For every class the indices of up to `each` photos that were classified correctly and of as many misclassified,
    chosen at random: [([right], [wrong]), ...]. `usable` (N,) marks the candidates."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.permutation(np.flatnonzero(usable & (truth == k) & hit))[:each].tolist()
                  for hit in (predicted == truth, predicted != truth)) for k in range(n_classes)]


def grad_cam(model, photos, targets, batch_size=8):
    """Heat maps (N, S, S) in [0, 1] of photos (N, 3, S, S) in [0, 1]: where the last stage raised the score of the
    class targets (N,). Selvaraju et al. 2017, arXiv:1610.02391, through the library `grad-cam`."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    with GradCAM(model=model, target_layers=[model.blocks[-1]]) as cam:
        heat = [cam(input_tensor=part, targets=[ClassifierOutputTarget(int(k)) for k in classes])
                for part, classes in zip(photos.split(batch_size), torch.as_tensor(targets).split(batch_size))]
    model.zero_grad(set_to_none=True)
    return np.concatenate(heat)


def grad_cam_examples(model, paths, predicted, chosen):
    """For every class ([right Examples], [wrong Examples]) of the chosen indices. Their maps are of the first of the
    test's views, for the predicted class."""
    names, size = model.metadata["classes"], model.metadata["image_size"]
    required = [i for groups in chosen for group in groups for i in group]
    if not required:
        return chosen
    photos = bird.decode_photos([paths[i] for i in required], round(bird.DECODED_SIZE * size))[0]
    photos, labels = photos[torch.arange(len(required))], predicted[required]
    probabilities = bird.predict_proba(model, photos)[range(len(required)), labels].tolist()
    views = bird.center_crop(photos, bird.TEST_VIEWS[0][0], size, photos.device)
    examples = {i: Example(view.permute(1, 2, 0).numpy(), heat, names[label], probability) for i, view, heat, label,
                probability in zip(required, views, grad_cam(model, views, labels), labels, probabilities)}
    return [tuple([examples[i] for i in group] for group in groups) for groups in chosen]


def measure_maps(examples):
    """{"photos", "centre", "entropy"} of a list of Examples, None without a map that is not 0 everywhere: the mean
    share of the map's mass in the central quarter of the crop's area (0.25 for a uniform map), and the mean entropy of
    the map as a distribution over the pixels, over that of a uniform map (1)."""
    examples = [example for example in examples if example.heat.any()]
    if not examples:
        return None
    heat = np.stack([example.heat for example in examples]).astype(np.float64) + 1e-12
    heat /= heat.sum((1, 2), keepdims=True)
    quarter = heat.shape[1] // 4
    entropy = -(heat * np.log(heat)).sum((1, 2)) / math.log(heat[0].size)
    return {"photos": len(examples), "entropy": float(entropy.mean()),
            "centre": float(heat[:, quarter:-quarter, quarter:-quarter].sum((1, 2)).mean())}


def gradcam_figure(rows, names):
    """For every class a correctly classified and a misclassified photo, each with its map and titled with the predicted
    class, its probability and the true class, from rows of ([right], [wrong]) Examples; two or three blocks of classes
    side by side."""
    import cv2
    from matplotlib.cm import ScalarMappable
    from pytorch_grad_cam.utils.image import show_cam_on_image
    blocks = 2 if len(rows) <= 10 else 3
    n_rows = math.ceil(len(rows) / blocks)
    size, max_chars = (6.5, 18) if blocks < 3 else (5.5, 14)
    figure = new_figure(PAGE, min((PAGE / (4 * blocks) + 0.26) * n_rows + 0.4, 9), tight=True)
    grid = figure.subplots(n_rows, 4 * blocks, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], box_aspect=1)
        axes.spines[:].set_visible(False)
    for k, groups in enumerate(rows):
        cells = grid[k % n_rows, 4 * (k // n_rows):][:4]
        for group, color, (plain, mapped) in zip(groups, ("#007A5A", "#B84F00"), (cells[:2], cells[2:])):
            title_style = {"loc": "left", "fontsize": size, "pad": 3, "color": color, "in_layout": False}
            true = f"true: {truncate(names[k], max_chars)}"
            if not group:
                kind = "correctly classified" if group is groups[0] else "misclassified"
                plain.set_title(f"none {kind}\n{true}", **title_style)
                continue
            example = group[0]
            predicted = f"{truncate(example.predicted, max_chars - 5)} ({100 * example.probability:.0f} %)"
            plain.set_title(f"predicted: {predicted}\n{true}", **title_style)
            plain.imshow(example.photo)
            mapped.imshow(show_cam_on_image(example.photo, example.heat, use_rgb=True, colormap=cv2.COLORMAP_COOL,
                                            image_weight=0.55))
    bar = figure.colorbar(ScalarMappable(cmap="cool"), ax=list(grid.flat), location="bottom", shrink=0.4,
                          aspect=40, pad=0.01, ticks=[])
    bar.outline.set_visible(False)
    bar.set_label("Grad-CAM: lowest (left) to highest value of each map", fontsize=size)
    return figure


# ------------------------------------------------------------------------------------------------------------- results

def bird_results(model, history, truth, predicted, examples):
    """BirdResults of labels (N,) and of rows of ([right], [wrong]) Examples."""
    from sklearn.metrics import precision_recall_fscore_support
    names = model.metadata["classes"]
    columns = precision_recall_fscore_support(truth, predicted, labels=range(len(names)), zero_division=0)
    wrong = predicted != truth
    confusions = collections.Counter(zip(truth[wrong].tolist(), predicted[wrong].tolist()))
    confusions = sorted(confusions.items(), key=lambda item: (-item[1], item[0]))
    train, validation = (history["split"][name] for name in ("train", "validation"))
    return results.BirdResults(
        classes=names, photos=len(truth), scores=all_scores(truth, predicted),
        accuracy_interval=wilson_interval((truth == predicted).sum(), len(truth)),
        per_class=[{"class": name, "precision": float(precision), "recall": float(recall), "f1": float(f1),
                    "photos": int(photos)} for name, precision, recall, f1, photos in zip(names, *columns)],
        confusions=[[names[a], names[b], n] for (a, b), n in confusions[:6] if n >= confusions[:3][-1][1]],  # with ties
        layers=layer_table(model, history["settings"]["dropout"]), parameters=history["parameters"],
        image_size=model.metadata["image_size"], settings=history["settings"],
        crop_sizes=sorted({row["crop_size"] for row in history["epochs"]}), epochs=len(history["epochs"]),
        history=[{key: row[key] for key in ("epoch", "train_accuracy", "val_accuracy", "val_loss")}
                 for row in history["epochs"]],
        time_limited=history["time_limited"],
        best_epoch=history["best_epoch"], minutes=history["minutes"], device=history["device"],
        train_photos=len(train), validation_photos=0 if train == validation else len(validation),
        validation_accuracy=history["validation"]["accuracy"], validation_f1=history["validation"]["average_f1"],
        grad_cam=[{"class": name, "right": measure_maps(right), "wrong": measure_maps(wrong)}
                  for name, (right, wrong) in zip(names, examples)])


def draw_all(test, model_path, history_path, device):
    """Figures {name: Figure}, pages {}, BirdResults and remarks (lines for the user) of part I, from class
    folders of photos, a model and the history next to it. Raises InputError, also bird.py's."""
    model = bird.load_model(model_path)
    names = model.metadata["classes"]
    history = read_history(history_path or f"{os.path.splitext(model_path)[0]}_history.json", model)
    paths, truth = read_birds(test, names)
    predicted, unreadable = bird.classify(bird.to_device(model, device), paths)
    model.to("cpu")  # fast enough for the few photos of Grad-CAM, and hooks work there in every version
    usable = ~np.isin(np.arange(len(paths)), unreadable)
    chosen = choose_examples(truth, predicted, usable, len(names))
    examples = grad_cam_examples(model, paths, predicted, chosen)
    figures = {"birds_learning_curves": learning_curves_figure(history["epochs"], history["best_epoch"]),
               "birds_confusion": confusion_figure(truth, predicted, names),
               "birds_gradcam": gradcam_figure(examples, names)}
    lost = [os.path.relpath(paths[i], test) for i in unreadable]
    empty = [name for k, name in enumerate(names) if k not in truth]
    remarks = [f"{test}: no photos of {', '.join(empty)}: their F1 is unknown"] if empty else []
    remarks += [f"{test}: {len(lost)} photos cannot be read and are scored as the most frequent class, as bird.py "
                f"does: {', '.join(lost[:5])}{' and more' if len(lost) > 5 else ''}"] if lost else []
    return figures, {}, bird_results(model, history, truth, predicted, examples), remarks
