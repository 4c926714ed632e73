"""The pictures and the numbers of part I: network, learning curves, confusion matrix, Grad-CAM.

Each `*_figure` takes arrays and returns a matplotlib Figure; `draw_all` makes them all from the saved files.
"""
import json
import math
import os
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import bird
from common.errors import InputError
from handin.figures import COLUMN, PAGE, PALETTE, macro_scores, new_figure, plural, styled

BATCH = 128  # photos in memory at once, as in bird.classify: the same batches give the same labels
GRADED = ("train_loss", "val_loss", "train_accuracy", "val_accuracy", "val_f1")  # of an epoch of the history


class Layer(NamedTuple):
    """A row of the architecture table."""
    name: str
    shape: tuple     # of the output for one photo, without the batch
    parameters: int


class Example(NamedTuple):
    """A photo of the Grad-CAM grid."""
    photo: np.ndarray   # (S, S, 3) in [0, 1]
    heat: np.ndarray    # (S, S) in [0, 1]
    truth: str
    predicted: str
    probability: float  # of the predicted class


# ------------------------------------------------------------------------------------------------------------ data in

def read_history(path, model):
    """The record that bird.py's training leaves beside its model. Raises InputError when it is none, or of a model of
    other classes or another size than this BirdClassifier."""
    expected = "expected the history that bird.py's train writes beside its model"
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        rows = record["epochs"]
        numbers = [row[key] for row in rows for key in (*GRADED, "epoch")] + [
            record["chosen_epoch"], record["minutes"], record["validation"]["average_f1"]]
        if not rows or not all(isinstance(number, (int, float)) for number in numbers):
            raise ValueError("epochs without their numbers")
        if record["chosen_epoch"] not in [row["epoch"] for row in rows]:
            raise ValueError(f"the chosen epoch {record['chosen_epoch']} not among its epochs")
        described = {key: record[key] for key in ("settings", "device", "classes", "parameters", "split")}
        sizes = [len(described["split"][part]) for part in ("train", "validation")]
    except OSError as error:
        raise InputError(f"{path}: {expected}, found: {error.strerror}") from None
    except KeyError as error:
        raise InputError(f"{path}: {expected}, found no {error}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: {expected}, found: {error}") from None
    known = model.about["classes"]
    parameters = sum(p.numel() for p in model.parameters())
    if (described["classes"], described["parameters"]) != (known, parameters):
        raise InputError(f"{path}: expected the history of this model, of {len(known)} classes and {parameters:,} "
                         f"parameters, found that of another")
    return {**record, "sizes": sizes}


def list_labelled(folder, known):
    """Paths (N,) of the photos of class folders and their truth (N,), indices into the class names `known`. Raises
    InputError."""
    classes, photos = bird.list_test_photos(folder)
    if not classes:
        raise InputError(f"{folder}: expected a folder of class folders of photos, found photos without classes")
    strange = sorted({classes[index] for _, index in photos} - set(known))
    if strange:
        raise InputError(f"{folder}: expected class folders that the model knows ({', '.join(known[:12])}), found "
                         f"{', '.join(strange[:5])}{' and more' if len(strange) > 5 else ''}")
    return [path for path, _ in photos], np.array([known.index(classes[index]) for _, index in photos])


def predict(model, paths, workers, step=lambda: None):
    """What bird.py's test predicts: labels (N,), probabilities (N, K), and whether each photo could be read (N,). An
    unreadable one has the most frequent class, as in bird.classify, and NaN. `step()` is called after each batch."""
    model.eval()
    side = round(bird.MARGIN * model.about["image_size"])
    probabilities = np.full((len(paths), len(model.about["classes"])), np.nan)
    readable = np.ones(len(paths), bool)
    for start in range(0, len(paths), BATCH):
        bank, unreadable = bird.read_bank(paths[start:start + BATCH], side, workers)
        readable[[start + index for index in unreadable]] = False
        there = readable[start:start + BATCH].nonzero()[0]
        if len(there):
            probabilities[start + there] = bird.predict_probabilities(model, bank[torch.from_numpy(there)]).numpy()
        step()
    labels = np.full(len(paths), int(np.argmax(model.about["counts"])))
    labels[readable] = probabilities[readable].argmax(1)
    return labels, probabilities, readable


# ------------------------------------------------------------------------------------------------------- architecture

@torch.no_grad()
def architecture(model):
    """Rows (Layer) of a BirdClassifier, from input to logits, measured on one photo of the size it was trained at."""
    size, shapes, handles = model.about["image_size"], {}, []

    def watch(module):
        def hook(module, inputs, output):
            shapes[module] = tuple(output.shape[1:])
        handles.append(module.register_forward_hook(hook))

    watched = [*((layer, "convolution", layer[0]) for layer in model.stem if not isinstance(layer, torch.nn.ReLU)),
               *((block, "residual block", block.first[0]) for block in model.stages)]
    for module in [*(layer for layer, _, _ in watched), model.dropout, model.head]:
        watch(module)
    try:
        model.eval()(torch.zeros(1, 3, size, size, device=model.mean.device))
    finally:
        for handle in handles:
            handle.remove()
    rows = [Layer("photo", (3, size, size), 0)]
    for module, name, convolution in watched:
        side, stride = convolution.kernel_size[0], convolution.stride[0]
        rows.append(Layer(f"{name} {side} × {side}" + (f", stride {stride}" if stride > 1 else ""), shapes[module],
                          sum(p.numel() for p in module.parameters())))
    pooling = " and ".join({"mean": "average", "amax": "maximum"}.get(name, name) for name in bird.POOLING)
    rows.append(Layer(f"{pooling} pooling, dropout", shapes[model.dropout], 0))
    return rows + [Layer("linear", shapes[model.head], sum(p.numel() for p in model.head.parameters()))]


@styled
def architecture_figure(rows):
    """Table of Layer rows: layer, output as channels x height x width in px, parameters; the last line their sum."""
    figure = new_figure(COLUMN, 0.19 * (len(rows) + 2) + 0.1)
    axes = figure.add_subplot()
    axes.set(xlim=(0, 1), ylim=(len(rows) + 2.1, -0.1))
    axes.axis("off")
    lines = [("layer", "output (C × H × W, px)", "parameters")]
    lines += [(row.name, " × ".join(f"{n:,}" for n in row.shape), f"{row.parameters:,}" if row.parameters else "–")
              for row in rows]
    lines.append(("all", "", f"{sum(row.parameters for row in rows):,}"))
    for y, (name, shape, parameters) in enumerate(lines, start=0):
        weight = "bold" if y in (0, len(lines) - 1) else "normal"
        for x, text, side in ((0, name, "left"), (0.785, shape, "right"), (1, parameters, "right")):
            axes.text(x, y + 0.5, text, ha=side, va="center", weight=weight, fontsize=7.5)
    for y, width in ((0, 1.0), (1, 0.5), (len(lines) - 1, 0.5), (len(lines), 1.0)):
        axes.axhline(y, color="black", linewidth=width, clip_on=False)
    return figure


# ------------------------------------------------------------------------------------------------------------- curves

@styled
def learning_curves_figure(rows, chosen_epoch):
    """Loss (nats) and accuracy (%) of training and validation against epochs, from the rows of a history; the epoch
    whose weights were kept is marked."""
    figure = new_figure(PAGE, 2.6)
    epochs = [row["epoch"] for row in rows]
    chosen = epochs.index(chosen_epoch)
    figure.get_layout_engine().set(wspace=0.06)
    panels = figure.subplots(1, 2)
    for axes, measure, unit, scale in zip(panels, ("loss", "accuracy"), ("cross-entropy loss (nats)", "accuracy (%)"),
                                          (1, 100)):
        for part, name, style, colour in (("train", "training*", "--", PALETTE[1]),
                                          ("val", "validation", "-", PALETTE[0])):
            values = [scale * row[f"{part}_{measure}"] for row in rows]
            axes.plot(epochs, values, style, color=colour, label=name, marker="." if len(rows) < 15 else None)
        axes.axvline(chosen_epoch, color="0.6", linewidth=0.8, zorder=0)
        axes.plot([chosen_epoch], [values[chosen]], "o", color=PALETTE[0], markersize=5, markerfacecolor="white",
                  clip_on=False, label=f"kept: epoch {chosen_epoch}")
        axes.set(xlabel="epoch", ylabel=unit, xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylim(top=100)
    panels[0].legend(loc="best")
    figure.supxlabel("* on augmented, mixed photos with smoothed labels: a harder task than validation, which sees the "
                     "photos whole", fontsize=7)
    return figure


# ---------------------------------------------------------------------------------------------------------- confusion

@styled
def confusion_figure(matrix, names):
    """Confusion matrix, counts (K, K) with the true classes as rows: numbers are photos, colours shares of the row."""
    matrix = np.asarray(matrix)
    n, longest = len(names), max(map(len, names))
    share = 100 * matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure = new_figure(*((COLUMN, 2.8) if n <= 12 and longest <= 6 else (PAGE, 5.8)))
    axes = figure.add_subplot()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=100)
    if n <= 25:  # beyond that cells are too small to read
        for row, column in zip(*matrix.nonzero()):
            axes.text(column, row, matrix[row, column], ha="center", va="center",
                      fontsize=7 if matrix.max() < 1000 else 5.8, color="white" if share[row, column] > 55 else "black")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_xticks(range(n), names, rotation=90 if longest > 3 else 0)
    axes.set_yticks(range(n), names)
    axes.set_xticks(np.arange(1, n) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, n) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="both", length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, aspect=25, pad=0.02)
    bar.set_label("share of the true class (%)")
    bar.outline.set_visible(False)
    return figure


# ----------------------------------------------------------------------------------------------------------- Grad-CAM

def choose_examples(truth, predicted, usable, n_classes, each=2, seed=0):
    """For every class the indices of up to `each` photos that were classified rightly and of as many misclassified,
    drawn at random: [([right], [wrong]), ...]. `usable` (N,) says which may be drawn."""
    rng = np.random.default_rng(seed)
    chosen = []
    for k in range(n_classes):
        groups = (np.flatnonzero(usable & (truth == k) & hit) for hit in (predicted == truth, predicted != truth))
        chosen.append(tuple(rng.permutation(group)[:each].tolist() for group in groups))
    return chosen


def grad_cam(model, photos, targets, batch=8):
    """Heat maps (N, S, S) in [0, 1] of photos uint8 (N, 3, S, S): what in the last stage raised the score of the class
    targets (N,). Selvaraju et al. 2017, arXiv:1610.02391, through the library `grad-cam`."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    cam, heat = GradCAM(model=model, target_layers=[model.stages[-1]]), []
    try:
        for part, classes in zip(photos.split(batch), torch.as_tensor(targets).split(batch)):
            heat.append(cam(input_tensor=part.float().div(255).to(model.mean.device),
                            targets=[ClassifierOutputTarget(int(k)) for k in classes]))
    finally:
        cam.activations_and_grads.release()
        model.zero_grad(set_to_none=True)
    return np.concatenate(heat)


def grad_cam_rows(model, paths, truth, predicted, probabilities, chosen, each, workers):
    """For every class `each` right Examples and as many wrong ones, None where there are too few. Only the chosen
    photos are read. Their heat is of the largest of the test's views, unmirrored, for the predicted class."""
    names, wanted = model.about["classes"], [i for groups in chosen for group in groups for i in group]
    examples = {}
    if wanted:
        side = bird.view_side(max(scale for scale, _ in bird.TEST_VIEWS), model.about["image_size"])
        photos, _ = bird.read_bank([paths[i] for i in wanted], side, workers)
        heat = grad_cam(model, photos, predicted[wanted])
        for i, photo, map_ in zip(wanted, photos, heat):
            examples[i] = Example(photo.permute(1, 2, 0).numpy() / np.float32(255), map_, names[truth[i]],
                                  names[predicted[i]], float(probabilities[i, predicted[i]]))
    return [[examples[i] if i is not None else None for group in groups
             for i in group + [None] * (each - len(group))] for groups in chosen]


def overlay(photo, heat):
    """Photo (S, S, 3) and heat (S, S), both in [0, 1], as one picture (S, S, 3): the photo where it is cold, under the
    colours of `inferno` where it is hot."""
    import matplotlib
    share = 0.65 * heat[..., None]
    return (1 - share) * photo + share * matplotlib.colormaps["inferno"](heat)[..., :3]


def _short(name, most):
    return name if len(name) <= most else name[:most - 1] + "…"


@styled
def gradcam_figure(rows, names):
    """Grid of Examples with their heat maps, a row a class (two blocks of rows side by side when there are many
    classes): rows[k] holds as many right ones as wrong ones, None for what there is not."""
    blocks = 2 if len(rows) > 5 else 1
    down, across = math.ceil(len(rows) / blocks), len(rows[0])
    long = max(map(len, names)) > 3
    side = 0.7 if blocks == 2 else 0.86  # of a photo, which the width decides; the rest is for what stands under it
    figure = new_figure(PAGE if blocks == 2 else 1.1 * COLUMN, (side + (0.5 if long else 0.22)) * down + 0.5)
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.02, wspace=0.01, hspace=0.01)
    parts = figure.subfigures(1, blocks, squeeze=False, wspace=0.03)[0]
    for start, part in zip(range(0, len(rows), down), parts):
        grid = part.subplots(down, across, squeeze=False)
        for line in range(down):
            for column, axes in enumerate(grid[line]):
                if start + line >= len(rows):
                    axes.axis("off")
                    continue
                _draw_example(axes, rows[start + line][column], long)
                if line == 0:
                    axes.set_title("right" if column < across // 2 else "wrong", fontsize=8, pad=3)
                if column == 0:
                    name = names[start + line]
                    axes.set_ylabel(_short(name, 16) if long else f"class {name}", fontsize=7 if long else 8)
    figure.supxlabel("true → predicted class, probability of the predicted class;" + (" " if blocks == 2 else "\n")
                     + "bright: what raised its score", fontsize=7.5)
    return figure


def _draw_example(axes, example, long):
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(example is None)
    axes.spines[:].set_color("0.8")
    if example is None:
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.text(0.5, 0.5, "none", ha="center", va="center", color="0.4")
        return
    axes.imshow(overlay(example.photo, example.heat))
    truth, predicted = (f"{_short(example.truth, 12)}\n", f"{_short(example.predicted, 10)}\n") if long else (
        f"{example.truth} ", f"{example.predicted}, ")
    axes.set_xlabel(f"{truth}→ {predicted}{100 * example.probability:.0f} %", fontsize=7, labelpad=2)


# ------------------------------------------------------------------------------------------------------------ numbers

def numbers(model, history, truth, predicted):
    """What the report states of part I; the form is that of numbers.json."""
    from sklearn.metrics import precision_recall_fscore_support
    names = model.about["classes"]
    columns = precision_recall_fscore_support(truth, predicted, labels=range(len(names)), zero_division=0)
    return {
        "photos": len(truth), **macro_scores(truth, predicted),
        "parameters": sum(p.numel() for p in model.parameters()), "classes": names,
        "per_class": [{"class": name, "precision": float(precision), "recall": float(recall), "f1": float(f1),
                       "photos": int(photos)} for name, precision, recall, f1, photos in zip(names, *columns)],
        "epochs": len(history["epochs"]), "chosen_epoch": history["chosen_epoch"], "minutes": history["minutes"],
        "device": history["device"], "train_photos": history["sizes"][0], "validation_photos": history["sizes"][1],
        "validation_f1": history["validation"]["average_f1"], "image_size": model.about["image_size"],
        "settings": history["settings"]}


def draw_all(test, model_path, history_path, device, workers, progress=tqdm):
    """Figures {name: Figure}, numbers and remarks (lines for the user) of part I, from the photos of a class folder
    set, a model and the history beside it. progress(total=steps) gives a bar as tqdm does, once the input has proved
    sound. Raises InputError, also bird.py's."""
    model = bird.load_model(model_path)
    history = read_history(history_path or bird.sibling(model_path, "history.json"), model)
    paths, truth = list_labelled(test, model.about["classes"])
    names, each = model.about["classes"], 2
    with progress(total=math.ceil(len(paths) / BATCH) + 4) as bar:
        bar.set_description("predictions")
        predicted, probabilities, readable = predict(bird.placed(model, device), paths, workers, bar.update)
        model.to("cpu")  # the few photos of Grad-CAM need no more, and hooks work there on every version
        matrix = bird.confusion(torch.from_numpy(truth), torch.from_numpy(predicted), len(names)).numpy()
        chosen = choose_examples(truth, predicted, readable, len(names), each)
        figures, drawn = {}, (
            ("birds_architecture", lambda: architecture_figure(architecture(model))),
            ("birds_learning_curves", lambda: learning_curves_figure(history["epochs"], history["chosen_epoch"])),
            ("birds_confusion", lambda: confusion_figure(matrix, names)),
            ("birds_gradcam", lambda: gradcam_figure(
                grad_cam_rows(model, paths, truth, predicted, probabilities, chosen, each, workers), names)))
        for name, draw in drawn:
            bar.set_description(name)
            figures[name] = draw()
            bar.update()
    lost = [os.path.relpath(paths[i], test) for i in np.flatnonzero(~readable)]
    remarks = [f"{test}: {plural(len(lost), 'photo')} cannot be read, scored as the most frequent class as bird.py "
               f"does: {', '.join(lost[:5])}{' and more' if len(lost) > 5 else ''}"] if lost else []
    return figures, numbers(model, history, truth, predicted), remarks
