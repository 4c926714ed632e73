"""The pictures and the numbers of part I: network, learning curves, confusion matrix, Grad-CAM.

Each `*_figure` takes arrays and returns a matplotlib Figure; `draw_all` makes them all from the saved files.
"""
import math
import os
from typing import NamedTuple

import numpy as np
import torch

import bird
from common.errors import InputError
from common.files import read_json
from common.plots import PALETTE
from common.stats import proportion_interval
from common.text import one_line
from handin.grading.scores import all_scores, read_birds
from handin.report.plots import COLUMN, PAGE, new_figure, shortened
from handin.report.results import BirdResults

MEASURED = 12  # photos of each class, right and wrong ones each, whose Grad-CAM maps are measured


class Example(NamedTuple):
    """A photo with its Grad-CAM map."""
    photo: np.ndarray   # (S, S, 3) in [0, 1]
    heat: np.ndarray    # (S, S) in [0, 1]
    predicted: str
    probability: float  # of the predicted class


def read_history(path, model):
    """The record that bird.py's training leaves next to its model. Raises InputError if it is none, or that of another
    model than this BirdClassifier."""
    expected = "the history that bird.py's train writes next to its model"
    record = read_json(path, expected)
    try:
        chosen = [row["epoch"] for row in record["epochs"]].index(record["best_epoch"])
        record["validation"]["accuracy"] = record["epochs"][chosen]["val_accuracy"]
        known = record["classes"], record["parameters"], record["settings"]["image_size"]
        rows = [[float(row[key]) for key in ("train_loss", "val_loss", "train_accuracy", "val_accuracy")]
                for row in record["epochs"]]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: expected {expected}, found one without {one_line(error)}") from None
    if not np.isfinite(rows).all():
        raise InputError(f"{path}: expected {expected}, found values that are not finite")
    parameters = sum(p.numel() for p in model.parameters())
    if known != (model.metadata["classes"], parameters, model.metadata["image_size"]):
        raise InputError(f"{path}: expected the history of this model, of {len(model.metadata['classes'])} classes and "
                         f"{parameters:,} parameters, found that of another")
    return record


def layer_table(model, dropout):
    """[{"name", "shape", "parameters"}] from photo to logits, for one photo of the size that the model was trained at,
    by torchinfo; with the dropout of the training."""
    import torchinfo
    size = model.metadata["image_size"]
    rows = [{"name": "photo", "shape": [3, size, size], "parameters": 0}]
    for layer in torchinfo.summary(model.eval(), (1, 3, size, size), depth=2, verbose=0, device="cpu").summary_list:
        if layer.depth == 2 and layer.class_name in ("ResidualBlock", "Sequential"):
            first = next(part for part in layer.module.modules() if isinstance(part, torch.nn.Conv2d))
            side, stride = first.kernel_size[0], first.stride[0]
            name = "residual block" if layer.class_name == "ResidualBlock" else f"conv {side} × {side}"
            norm = any("BatchNorm" in type(part).__name__ for part in layer.module.modules())
            name += (", batch norm" if norm else "") + (f", stride {stride}" if stride > 1 else "")
        elif layer.class_name == "Dropout":
            name = f"avg. and max pooling, dropout {dropout:g}"
        elif layer.class_name == "Linear":
            name = "linear"
        else:
            continue
        rows.append({"name": name, "shape": list(layer.output_size[1:]),
                     "parameters": sum(p.numel() for p in layer.module.parameters())})
    return rows


def learning_curves_figure(rows, best_epoch):
    """Loss (nats) and accuracy (%) of training and validation against epochs, from the rows of a history; the epoch
    whose weights were kept is marked."""
    figure = new_figure(PAGE, 2.4)
    epochs = [row["epoch"] for row in rows]
    for axes, measure, unit, scale in zip(figure.subplots(1, 2), ("loss", "accuracy"),
                                          ("cross-entropy loss (nats)", "accuracy (%)"), (1, 100)):
        for part, name, style, colour in (("train", "training", "--", PALETTE[1]),
                                          ("val", "validation", "-", PALETTE[0])):
            values = [scale * row[f"{part}_{measure}"] for row in rows]
            axes.plot(epochs, values, style, color=colour, label=name, marker="." if len(rows) < 15 else None)
        axes.axvline(best_epoch, color="0.6", linewidth=0.8, zorder=0, label=f"kept: epoch {best_epoch}")
        axes.set(xlabel="epoch", ylabel=unit, xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[1].set_ylim(top=100)
    figure.axes[0].legend()
    return figure


def confusion_figure(truth, predicted, names):
    """Confusion matrix of labels (N,), rows the true classes: numbers are photos, colours shares of the row."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
    n, longest = len(names), max(map(len, names))
    figure = new_figure(*((COLUMN, 3.0 if longest <= 6 else 3.4) if n <= 12 else (PAGE, 4.6)))
    axes = figure.add_subplot()
    counts, share = (confusion_matrix(truth, predicted, labels=range(n), normalize=way) for way in (None, "true"))
    shown = ConfusionMatrixDisplay(share, display_labels=[shortened(name, 16) for name in names])
    shown.plot(ax=axes, cmap="Blues", colorbar=False, im_kw={"vmin": 0, "vmax": 1}, text_kw={"fontsize": 6.5},
               xticks_rotation=90 if longest > 3 else 0)
    for text, count in zip(shown.text_.flat, counts.flat):
        text.set_text(f"{count}" if count else "")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    return figure


# ------------------------------------------------------------------------------------------------------------- Grad-CAM

def choose_examples(truth, predicted, usable, n_classes, each=MEASURED, seed=0):
    """For every class the indices of up to `each` photos that were classified correctly and of as many misclassified,
    drawn at random: [([right], [wrong]), ...]. `usable` (N,) says which may be drawn."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.permutation(np.flatnonzero(usable & (truth == k) & hit))[:each].tolist()
                  for hit in (predicted == truth, predicted != truth)) for k in range(n_classes)]


def grad_cam(model, photos, targets, batch=8):
    """Heat maps (N, S, S) in [0, 1] of photos (N, 3, S, S) in [0, 1]: what in the last stage raised the score of the
    class targets (N,). Selvaraju et al. 2017, arXiv:1610.02391, through the library `grad-cam`."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    with GradCAM(model=model, target_layers=[model.blocks[-1]]) as cam:
        heat = [cam(input_tensor=part, targets=[ClassifierOutputTarget(int(k)) for k in classes])
                for part, classes in zip(photos.split(batch), torch.as_tensor(targets).split(batch))]
    model.zero_grad(set_to_none=True)
    return np.concatenate(heat)


def grad_cam_examples(model, paths, predicted, chosen):
    """For every class ([right Examples], [wrong Examples]) of the chosen indices. Their maps are of the first of the
    test's views, for the predicted class."""
    names, size = model.metadata["classes"], model.metadata["image_size"]
    wanted = [i for groups in chosen for group in groups for i in group]
    if not wanted:
        return chosen
    photos = bird.decode_photos([paths[i] for i in wanted], round(bird.DECODED_SIZE * size))[0]
    photos, labels = photos[torch.arange(len(wanted))], predicted[wanted]
    probabilities = bird.predict_proba(model, photos)[range(len(wanted)), labels].tolist()
    views = bird.center_crop(photos, bird.TEST_VIEWS[0][0], size, photos.device)
    made = {i: Example(view.permute(1, 2, 0).numpy(), heat, names[label], probability) for i, view, heat, label,
            probability in zip(wanted, views, grad_cam(model, views, labels), labels, probabilities)}
    return [tuple([made[i] for i in group] for group in groups) for groups in chosen]


def measure_maps(examples):
    """{"photos", "centre", "entropy"} of a list of Examples, None of none with a map that is not 0 everywhere: the mean
    share of the map's mass in the central quarter of the crop's area (0.25 for an even map), and the mean entropy of
    the map as a distribution over the pixels, over that of an even map (1)."""
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
    """For every class a recognised and a misclassified photo, each with its map next to it, headed with the predicted
    class, its probability and the true class, from rows of ([right], [wrong]) Examples; two or three blocks of classes
    side by side."""
    import cv2
    from matplotlib.cm import ScalarMappable
    from pytorch_grad_cam.utils.image import show_cam_on_image
    blocks = 2 if len(rows) <= 10 else 3
    down = math.ceil(len(rows) / blocks)
    size, letters = (6.5, 18) if blocks < 3 else (5.5, 14)
    figure = new_figure(PAGE, min((PAGE / (4 * blocks) + 0.26) * down + 0.4, 9), tight=True)
    grid = figure.subplots(down, 4 * blocks, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], box_aspect=1)
        axes.spines[:].set_visible(False)
    for k, groups in enumerate(rows):
        cells = grid[k % down, 4 * (k // down):][:4]
        for group, color, (plain, mapped) in zip(groups, ("#007A5A", "#B84F00"), (cells[:2], cells[2:])):
            head = {"loc": "left", "fontsize": size, "pad": 3, "color": color, "in_layout": False}
            true = f"true: {shortened(names[k], letters)}"
            if not group:
                plain.set_title(f"none {'recognised' if group is groups[0] else 'misclassified'}\n{true}", **head)
                continue
            example = group[0]
            chance = f" ({100 * example.probability:.0f} %)"
            plain.set_title(f"predicted: {shortened(example.predicted, letters - 5)}{chance}\n{true}", **head)
            plain.imshow(example.photo)
            mapped.imshow(show_cam_on_image(example.photo, example.heat, use_rgb=True, colormap=cv2.COLORMAP_COOL,
                                            image_weight=0.55))
    bar = figure.colorbar(ScalarMappable(cmap="cool"), ax=list(grid.flat), location="bottom", shrink=0.4,
                          aspect=40, pad=0.01, ticks=[])
    bar.outline.set_visible(False)
    bar.set_label("Grad-CAM: lowest (left) to highest value of each map", fontsize=size)
    return figure


# ------------------------------------------------------------------------------------------------------------- results

def results(model, history, truth, predicted, examples):
    """BirdResults of labels (N,) and of rows of ([right], [wrong]) Examples."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    names = model.metadata["classes"]
    columns = precision_recall_fscore_support(truth, predicted, labels=range(len(names)), zero_division=0)
    matrix = confusion_matrix(truth, predicted, labels=range(len(names)))
    np.fill_diagonal(matrix, 0)
    train, validation = (history["split"][name] for name in ("train", "validation"))
    worst = [divmod(int(i), len(names)) for i in np.argsort(-matrix, axis=None, kind="stable")]
    least = max(1, matrix[worst[min(2, len(worst) - 1)]])  # all that are as frequent as the third
    return BirdResults(
        classes=names, photos=len(truth), scores=all_scores(truth, predicted),
        accuracy_interval=proportion_interval((truth == predicted).sum(), len(truth)),
        per_class=[{"class": name, "precision": float(precision), "recall": float(recall), "f1": float(f1),
                    "photos": int(photos)} for name, precision, recall, f1, photos in zip(names, *columns)],
        confusions=[[names[a], names[b], int(matrix[a, b])] for a, b in worst if matrix[a, b] >= least][:6],
        layers=layer_table(model, history["settings"]["dropout"]), parameters=history["parameters"],
        image_size=model.metadata["image_size"], settings=history["settings"], epochs=len(history["epochs"]),
        history=[{key: row[key] for key in ("epoch", "train_accuracy", "val_accuracy", "val_loss")}
                 for row in history["epochs"]],
        time_limited=history["time_limited"],
        best_epoch=history["best_epoch"], minutes=history["minutes"], device=history["device"],
        train_photos=len(train), validation_photos=0 if train == validation else len(validation),
        validation_accuracy=history["validation"]["accuracy"], validation_f1=history["validation"]["average_f1"],
        grad_cam=[{"class": name, "right": measure_maps(right), "wrong": measure_maps(wrong)}
                  for name, (right, wrong) in zip(names, examples)])


def draw_all(test, model_path, history_path, device):
    """Figures {name: Figure}, pages {}, BirdResults and remarks (lines for the user) of part I, from the photos of a
    class folder set, a model and the history next to it. Raises InputError, also bird.py's."""
    model = bird.load_model(model_path)
    names = model.metadata["classes"]
    history = read_history(history_path or f"{os.path.splitext(model_path)[0]}_history.json", model)
    paths, truth = read_birds(test, names)
    predicted, unreadable = bird.classify(bird.to_device(model, device), paths)
    model.to("cpu")  # the few photos of Grad-CAM need no more, and hooks work there on every version
    usable = ~np.isin(np.arange(len(paths)), unreadable)
    chosen = choose_examples(truth, predicted, usable, len(names))
    examples = grad_cam_examples(model, paths, predicted, chosen)
    figures = {"birds_learning_curves": learning_curves_figure(history["epochs"], history["best_epoch"]),
               "birds_confusion": confusion_figure(truth, predicted, names),
               "birds_gradcam": gradcam_figure(examples, names)}
    lost = [os.path.relpath(paths[i], test) for i in unreadable]
    empty = [name for k, name in enumerate(names) if k not in truth]
    remarks = [f"{test}: no photos of {', '.join(empty)}: nothing is known of their F1"] if empty else []
    remarks += [f"{test}: {len(lost)} photos cannot be read and are scored as the most frequent class, as bird.py "
                f"does: {', '.join(lost[:5])}{' and more' if len(lost) > 5 else ''}"] if lost else []
    return figures, {}, results(model, history, truth, predicted, examples), remarks
