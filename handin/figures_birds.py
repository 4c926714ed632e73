"""The pictures and the numbers of part I: network, learning curves, confusion matrix, Grad-CAM.

Each `*_figure` takes arrays and returns a matplotlib Figure; `draw_all` makes them all from the saved files.
"""
import math
import os
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import bird
from common.errors import InputError, one_line
from common.files import read_json
from handin.plots import COLUMN, PAGE, PALETTE, new_figure, shortened, styled
from handin.results import BirdResults
from handin.scores import accuracy_interval, all_scores

BATCH = 128     # photos in memory at once, as in bird.classify: the same batches give the same labels
MEASURED = 12   # photos of each class, right and wrong ones each, whose Grad-CAM maps are measured


class Example(NamedTuple):
    """A photo with its Grad-CAM map."""
    photo: np.ndarray   # (S, S, 3) in [0, 1]
    heat: np.ndarray    # (S, S) in [0, 1]
    truth: str
    predicted: str
    probability: float  # of the predicted class


# ------------------------------------------------------------------------------------------------------------ data in

def read_history(path, model):
    """The record that bird.py's training leaves beside its model. Raises InputError when it is none, or that of another
    model than this BirdClassifier."""
    expected = "the history that bird.py's train writes beside its model"
    record = read_json(path, expected)
    try:
        chosen = [row["epoch"] for row in record["epochs"]].index(record["chosen_epoch"])
        record["validation"]["accuracy"] = record["epochs"][chosen]["val_accuracy"]
        known = record["classes"], record["parameters"]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: expected {expected}, found one without {one_line(error)}") from None
    parameters = sum(p.numel() for p in model.parameters())
    if known != (model.about["classes"], parameters):
        raise InputError(f"{path}: expected the history of this model, of {len(model.about['classes'])} classes and "
                         f"{parameters:,} parameters, found that of another")
    return record


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
        photos, unreadable = bird.decode_photos(paths[start:start + BATCH], side, workers)
        readable[[start + index for index in unreadable]] = False
        there = readable[start:start + BATCH].nonzero()[0]
        if len(there):
            probabilities[start + there] = bird.predict_probabilities(model, photos[torch.from_numpy(there)]).numpy()
        step()
    labels = np.full(len(paths), int(np.argmax(model.about["counts"])))
    labels[readable] = probabilities[readable].argmax(1)
    return labels, probabilities, readable


# -------------------------------------------------------------------------------------------------------------- figures

def layer_table(model):
    """[{"name", "shape", "parameters"}] from photo to logits, for one photo of the size that the model was trained at,
    by torchinfo."""
    import torchinfo
    size = model.about["image_size"]
    found = torchinfo.summary(model.eval(), (1, 3, size, size), depth=2, verbose=0, device="cpu").summary_list
    rows = [{"name": "photo", "shape": [3, size, size], "parameters": 0}]
    for layer in found:
        module = layer.module
        if layer.depth == 2 and not layer.class_name.startswith("ReLU"):
            convolution = next(part for part in module.modules() if isinstance(part, torch.nn.Conv2d))
            kind = "residual block" if layer.class_name == "ResidualBlock" else "convolution"
            name = f"{kind} {convolution.kernel_size[0]} × {convolution.kernel_size[0]}" + (
                f", stride {convolution.stride[0]}" if convolution.stride[0] > 1 else "")
        elif layer.class_name == "Dropout":
            name = " and ".join({"mean": "average", "amax": "maximum"}[name] for name in bird.POOLING) + " pooling"
        elif layer.class_name == "Linear":
            name = "linear"
        else:
            continue
        rows.append({"name": name, "shape": list(layer.output_size[1:]),
                     "parameters": sum(p.numel() for p in module.parameters())})
    return rows


@styled
def learning_curves_figure(rows, chosen_epoch):
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
        axes.axvline(chosen_epoch, color="0.6", linewidth=0.8, zorder=0)
        axes.plot([chosen_epoch], [values[epochs.index(chosen_epoch)]], "o", color=PALETTE[0], markersize=5,
                  markerfacecolor="white", clip_on=False, label=f"kept: epoch {chosen_epoch}")
        axes.set(xlabel="epoch", ylabel=unit, xlim=(min(epochs) - 0.5, max(epochs) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[1].set_ylim(top=100)
    figure.axes[0].legend()
    return figure


@styled
def confusion_figure(truth, predicted, names):
    """Confusion matrix of labels (N,), rows the true classes: numbers are photos, colours shares of the row."""
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix
    n, longest = len(names), max(map(len, names))
    figure = new_figure(*((COLUMN, 3.0) if n <= 12 and longest <= 6 else (PAGE, 5.6)))
    axes = figure.add_subplot()
    counts, share = (confusion_matrix(truth, predicted, labels=range(n), normalize=way) for way in (None, "true"))
    shown = ConfusionMatrixDisplay(100 * share, display_labels=[shortened(name, 24) for name in names])
    shown.plot(ax=axes, cmap="Blues", values_format="", colorbar=False, im_kw={"vmin": 0, "vmax": 100},
               text_kw={"fontsize": 6.5}, xticks_rotation=90 if longest > 3 else 0, include_values=n <= 25)
    if shown.text_ is not None:  # numbers of photos in place of the shares, and none where there are none
        for text, count in zip(shown.text_.flat, counts.flat):
            text.set_text(f"{count}" if count else "")
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0)
    bar = figure.colorbar(shown.im_, ax=axes, shrink=0.8, aspect=25, pad=0.02)
    bar.set_label("share of the true class (%)")
    bar.outline.set_visible(False)
    return figure


# ------------------------------------------------------------------------------------------------------------- Grad-CAM

def choose_examples(truth, predicted, usable, n_classes, each=MEASURED, seed=0):
    """For every class the indices of up to `each` photos that were classified rightly and of as many misclassified,
    drawn at random: [([right], [wrong]), ...]. `usable` (N,) says which may be drawn."""
    rng = np.random.default_rng(seed)
    return [tuple(rng.permutation(np.flatnonzero(usable & (truth == k) & hit))[:each].tolist()
                  for hit in (predicted == truth, predicted != truth)) for k in range(n_classes)]


def grad_cam(model, photos, targets, batch=8):
    """Heat maps (N, S, S) in [0, 1] of photos uint8 (N, 3, S, S): what in the last stage raised the score of the class
    targets (N,). Selvaraju et al. 2017, arXiv:1610.02391, through the library `grad-cam`."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    cam, heat = GradCAM(model=model, target_layers=[model.stages[-1]]), []
    try:
        for part, classes in zip(photos.split(batch), torch.as_tensor(targets).split(batch)):
            heat.append(cam(input_tensor=part.float().div(255).to(model.head.weight.device),
                            targets=[ClassifierOutputTarget(int(k)) for k in classes]))
    finally:
        cam.activations_and_grads.release()
        model.zero_grad(set_to_none=True)
    return np.concatenate(heat)


def grad_cam_examples(model, paths, truth, predicted, probabilities, chosen, workers):
    """For every class ([right Examples], [wrong Examples]) of the chosen indices. Their maps are of the largest of the
    test's views, unmirrored, for the predicted class."""
    names, wanted = model.about["classes"], [i for groups in chosen for group in groups for i in group]
    if not wanted:
        return [([], []) for _ in chosen]
    side = bird.view_side(max(scale for scale, _ in bird.TEST_VIEWS), model.about["image_size"])
    photos, _ = bird.decode_photos([paths[i] for i in wanted], side, workers)
    photos = photos[torch.arange(len(wanted))]
    made = {i: Example(photo.permute(1, 2, 0).numpy() / np.float32(255), heat, names[truth[i]], names[predicted[i]],
                       float(probabilities[i, predicted[i]]))
            for i, photo, heat in zip(wanted, photos, grad_cam(model, photos, predicted[wanted]))}
    return [tuple([made[i] for i in group] for group in groups) for groups in chosen]


def measure_maps(examples):
    """{"photos", "centre", "entropy"} of a list of Examples, None of an empty one: the mean share of the map's mass in
    the central quarter of the photo's area (0.25 for an even map), and the mean entropy of the map as a distribution
    over the pixels, over that of an even map (1)."""
    if not examples:
        return None
    heat = np.stack([example.heat for example in examples]).astype(np.float64) + 1e-12
    heat /= heat.sum((1, 2), keepdims=True)
    quarter = heat.shape[1] // 4
    entropy = -(heat * np.log(heat)).sum((1, 2)) / math.log(heat[0].size)
    return {"photos": len(examples), "entropy": float(entropy.mean()),
            "centre": float(heat[:, quarter:-quarter, quarter:-quarter].sum((1, 2)).mean())}


@styled
def gradcam_figure(rows, names):
    """For every class a right and a wrong photo, each with its map beside it, from rows of ([right], [wrong])
    Examples; two blocks of classes side by side where there are more than five."""
    import cv2
    from pytorch_grad_cam.utils.image import show_cam_on_image
    blocks = 2 if len(rows) > 5 else 1
    down = math.ceil(len(rows) / blocks)
    figure = new_figure(PAGE if blocks == 2 else COLUMN, min(1.02 * down + 0.2, 8.4))  # which leaves room for a caption
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.02, hspace=0.02)
    grid = figure.subplots(down, 4 * blocks, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], box_aspect=1)
        axes.spines[:].set_visible(False)
    for k, groups in enumerate(rows):
        cells = grid[k % down, 4 * (k // down):][:4]
        cells[0].set_ylabel(shortened(names[k], 16) if len(names[k]) > 3 else f"class {names[k]}", fontsize=6.5)
        for group, title, (plain, mapped) in zip(groups, ("right", "wrong"), (cells[:2], cells[2:])):
            if k % down == 0:
                plain.set_title(title, fontsize=8, pad=3, loc="left")
            if not group:
                plain.text(0.5, 0.5, "none", ha="center", va="center", color="0.4", transform=plain.transAxes)
                continue
            example = group[0]
            plain.imshow(example.photo)
            # From cyan to magenta, which no bird here has.
            mapped.imshow(show_cam_on_image(example.photo, example.heat, use_rgb=True, colormap=cv2.COLORMAP_COOL,
                                            image_weight=0.55))
            plain.set_xlabel(f"→ {shortened(example.predicted, 14)}", fontsize=6.5, labelpad=1)
            mapped.set_xlabel(f"{100 * example.probability:.0f} %", fontsize=6.5, labelpad=1)
    return figure


# ------------------------------------------------------------------------------------------------------------- results

def results(model, history, truth, predicted, examples):
    """BirdResults of labels (N,) and of rows of ([right], [wrong]) Examples."""
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    names = model.about["classes"]
    columns = precision_recall_fscore_support(truth, predicted, labels=range(len(names)), zero_division=0)
    matrix = confusion_matrix(truth, predicted, labels=range(len(names)))
    np.fill_diagonal(matrix, 0)
    worst = [divmod(int(i), len(names)) for i in np.argsort(-matrix, axis=None, kind="stable")[:3]]
    return BirdResults(
        classes=names, photos=len(truth), scores=all_scores(truth, predicted),
        accuracy_interval=accuracy_interval(truth, predicted),
        per_class=[{"class": name, "precision": float(precision), "recall": float(recall), "f1": float(f1),
                    "photos": int(photos)} for name, precision, recall, f1, photos in zip(names, *columns)],
        confusions=[[names[a], names[b], int(matrix[a, b])] for a, b in worst if matrix[a, b]],
        layers=layer_table(model), parameters=sum(p.numel() for p in model.parameters()),
        image_size=model.about["image_size"], settings=history["settings"], epochs=len(history["epochs"]),
        chosen_epoch=history["chosen_epoch"], minutes=history["minutes"], device=history["device"],
        train_photos=len(history["split"]["train"]), validation_photos=len(history["split"]["validation"]),
        validation_accuracy=history["validation"]["accuracy"], validation_f1=history["validation"]["average_f1"],
        grad_cam=[{"class": name, "right": measure_maps(right), "wrong": measure_maps(wrong)}
                  for name, (right, wrong) in zip(names, examples)])


def draw_all(test, model_path, history_path, device, workers, progress=tqdm):
    """Figures {name: Figure}, BirdResults and remarks (lines for the user) of part I, from the photos of a class folder
    set, a model and the history beside it. progress(total=steps) gives a bar as tqdm does, once the input has proved
    sound. Raises InputError, also bird.py's."""
    model = bird.load_model(model_path)
    history = read_history(history_path or bird.sibling(model_path, "history.json"), model)
    paths, truth = list_labelled(test, model.about["classes"])
    names = model.about["classes"]
    with progress(total=math.ceil(len(paths) / BATCH) + 2) as bar:
        bar.set_description("predictions")
        predicted, probabilities, readable = predict(bird.to_device(model, device), paths, workers, bar.update)
        model.to("cpu")  # the few photos of Grad-CAM need no more, and hooks work there on every version
        bar.set_description("Grad-CAM")
        examples = grad_cam_examples(model, paths, truth, predicted, probabilities,
                                     choose_examples(truth, predicted, readable, len(names)), workers)
        bar.update()
        bar.set_description("figures")
        figures = {"birds_learning_curves": learning_curves_figure(history["epochs"], history["chosen_epoch"]),
                   "birds_confusion": confusion_figure(truth, predicted, names),
                   "birds_gradcam": gradcam_figure(examples, names)}
        bar.update()
    lost = [os.path.relpath(paths[i], test) for i in np.flatnonzero(~readable)]
    remarks = [f"{test}: {len(lost)} photos cannot be read and are scored as the most frequent class, as bird.py does: "
               f"{', '.join(lost[:5])}{' and more' if len(lost) > 5 else ''}"] if lost else []
    return figures, results(model, history, truth, predicted, examples), remarks
