"""`python -m handin figures`: the pictures and numbers.json, from models trained on drawn shapes."""
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from peers import write_all
from PIL import Image
from pypdf import PdfReader
from scipy.stats import norm
from sklearn import metrics

import bird
import vae
from handin.grading import scores
from handin.report import figures_birds, figures_digits, plots

ROOT = Path(__file__).resolve().parent.parent
BIRDS = {"birds_learning_curves", "birds_confusion", "birds_gradcam"}
DIGITS = {"digits_learning_curves", "digits_reconstructions", "digits_manifold", "digits_latents", "digits_mixture",
          "digits_ssim"}
LABELS = np.array([1, 4, 8])
LONG = ["Asian-Green-Bee-Eater", "Cattle-Egret", "Common-Kingfisher", "Hoopoe", "House-Crow", "Indian-Peacock",
        "Indian-Pitta", "Ruddy-Shelduck", "Rufous-Treepie", "White-Breasted-Waterhen"]


@pytest.fixture(scope="module")
def labelled(data, tmp_path_factory):
    """The digits of the test with their labels."""
    path = tmp_path_factory.mktemp("labelled") / "test.npz"
    np.savez(str(path), data=np.load(str(data.test))["data"], labels=data.test_labels)
    return path


@pytest.fixture(scope="module")
def words(bird_trained, bird_data, trained, data, labelled):
    """words(part, name=value ...): the command of a part, less --out, with some words changed; None: left out."""
    usual = {"birds": {"test": bird_data.test, "model": bird_trained.model},
             "digits": {"val": data.val, "test": labelled, "model": trained.model, "mixture": trained.mixture,
                        "train": data.train}}
    def command(part, **changes):
        found = ["figures", part, "--device", "cpu"]
        for name, value in {**usual[part], **changes}.items():
            if value is not None:
                found += [value] if name in ("val", "test") else [f"--{name}", value]
        return list(map(str, found))
    return command


@pytest.fixture(scope="module")
def made(words, run, tmp_path_factory):
    """Both parts drawn into one folder, each by a process without a display: the folder, the processes, the numbers."""
    out, no_display = tmp_path_factory.mktemp("made") / "new" / "figures", {"DISPLAY": "", "WAYLAND_DISPLAY": ""}
    done = [run("-m", "handin", *words(part), "--out", out, cwd=ROOT, PYTHONHASHSEED=seed, MPLBACKEND="", **no_display)
            for part, seed in (("birds", "0"), ("digits", "1"))]
    assert [process.returncode for process in done] == [0, 0], done
    return SimpleNamespace(out=out, processes=done, numbers=json.loads((out / "numbers.json").read_text()))


@pytest.fixture
def draw_again(words, handin, tmp_path):
    """draw_again(part, name=value ...): the part drawn into tmp_path; its numbers, the finished command."""
    def draw(part, **changes):
        done = handin(*words(part, **changes), "--out", tmp_path)
        assert done.code == 0, done
        return json.loads((tmp_path / "numbers.json").read_text())[part], done
    return draw


def test_every_figure_is_there_as_png_and_pdf_and_nothing_else(made):
    expected = {name + ending for name in BIRDS | DIGITS for ending in (".png", ".pdf")}
    expected |= {"latent.html", "numbers.json"}
    assert {path.name for path in made.out.iterdir()} == expected
    assert all(process.stdout.count("\n") == 1 and process.stderr == "" for process in made.processes)


@pytest.mark.parametrize("name", sorted(BIRDS | DIGITS))
def test_a_figure_is_not_blank_and_as_wide_as_a_column_or_a_page(made, name):
    with Image.open(str(made.out / f"{name}.png")) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
        inches = image.width / 200
        pixels = np.asarray(image.convert("RGB"))
    assert plots.COLUMN - 0.01 <= inches <= plots.PAGE + 0.01
    assert len(set(map(tuple, pixels[::3, ::3].reshape(-1, 3).tolist()))) > 10 and pixels.std() > 10
    (page,) = PdfReader(str(made.out / f"{name}.pdf")).pages
    assert float(page.mediabox.width) / 72 == pytest.approx(inches, abs=0.02)


@pytest.mark.parametrize("part", ["birds", "digits"])
def test_the_same_input_gives_the_same_bytes(part, made, draw_again, tmp_path):
    """Another process with another hash seed, at another time, in another folder; the other part is left alone."""
    other = {"birds": "digits", "digits": "birds"}[part]
    (tmp_path / "numbers.json").write_text(json.dumps({other: {"kept": 1}, part: {"old": 2}}))
    draw_again(part)
    for path in (*tmp_path.glob("*.p*"), *tmp_path.glob("*.html")):
        assert path.read_bytes() == (made.out / path.name).read_bytes(), path.name
    assert json.loads((tmp_path / "numbers.json").read_text()) == {other: {"kept": 1}, part: made.numbers[part]}


def _scores(truth, predicted):
    """Those of the assignment's evaluate_gmm_performance, and the average F1."""
    macro = {"average": "macro", "zero_division": 0}
    return {"average_f1": scores.average_f1(truth, predicted), "accuracy": metrics.accuracy_score(truth, predicted),
            "precision_macro": metrics.precision_score(truth, predicted, **macro),
            "recall_macro": metrics.recall_score(truth, predicted, **macro),
            "f1_macro": metrics.f1_score(truth, predicted, **macro)}


def test_the_numbers_of_the_birds_are_those_of_bird_csv(made, bird_trained, bird_data):
    predicted, found, names = scores.read_labels(bird_trained.csv), made.numbers["birds"], bird_data.classes
    truth, history = np.repeat(range(4), 6), json.loads(bird_trained.history.read_text())
    precision, recall, f1, photos = metrics.precision_recall_fscore_support(truth, predicted, zero_division=0)
    kept = next(row for row in history["epochs"] if row["epoch"] == history["best_epoch"])
    expected = {
        "per_class": [dict(zip(("class", "precision", "recall", "f1", "photos"), row))
                      for row in zip(names, precision, recall, f1, photos)],
        "validation_f1": history["validation"]["average_f1"], "validation_accuracy": kept["val_accuracy"],
        "photos": 24, "epochs": 12, "image_size": 48, "classes": names, "device": "cpu",
        **{key: history[key] for key in ("minutes", "parameters", "settings", "best_epoch")}}
    assert {key: found[key] for key in expected} == expected
    assert found["scores"] == pytest.approx(_scores(truth, predicted))
    low, high = found["accuracy_interval"]
    assert low < found["scores"]["accuracy"] <= high
    wrong = metrics.confusion_matrix(truth, predicted) * (1 - np.eye(4, dtype=int))
    assert all(wrong[names.index(a), names.index(b)] == n for a, b, n in found["confusions"])
    assert [n for *_, n in found["confusions"]] == [n for n in sorted(wrong.flat, reverse=True)[:3] if n]
    assert found["train_photos"] + found["validation_photos"] == sum(bird_data.counts)
    for row, name in zip(found["grad_cam"], names):
        counts = [(row[side] or {"photos": 0})["photos"] for side in ("right", "wrong")]
        assert row["class"] == name and sum(counts) == 6 and counts[0] == round(6 * recall[names.index(name)])
    names, shapes, parameters = ([layer[key] for layer in found["layers"]] for key in ("name", "shape", "parameters"))
    assert shapes == [[3, 48, 48], [64, 12, 12], [64, 12, 12], [128, 6, 6], [256, 3, 3], [512, 2, 2], [1024], [4]]
    assert names[1:4:2] == ["conv 7 × 7, batch norm, stride 4", "residual block, batch norm, stride 2"]
    assert names[6] == f"avg. and max pooling, dropout {history['settings']['dropout']:g}"
    assert sum(parameters) == found["parameters"]


def test_the_numbers_of_the_digits_are_those_of_the_graded_files(made, trained, data):
    predicted, found = scores.read_labels(trained.csv), made.numbers["digits"]
    model, history = (vae.load_checkpoint(str(trained.model)),
                      json.loads(trained.model.with_name("vae_history.json").read_text()))
    val, test = vae.load_digits(data.val, labelled=True), vae.load_digits(data.test)
    val_predicted = vae.classify(model, *vae.load_mixture(str(trained.mixture), model), val)
    truth, drawn = np.load(str(data.test))["data"] / np.float32(255), np.load(str(trained.npz))["data"]
    means, from_mean = vae.encode_means(model, test), vae.reconstruct(model, test, refined=False)
    assert found["scores"] == pytest.approx(_scores(data.test_labels, predicted))
    assert {**found["validation"], "average_f1": 0} == pytest.approx({**_scores(val.labels, val_predicted),
                                                                      "average_f1": 0})
    expected = {"classes": [3, 7, 30], "images": 50, "labelled_images": 45, "scatter_of": "training", "device": "cpu",
                "scatter_images": 120, "history": history["epochs"], "training_images": 120}
    assert {key: found[key] for key in expected} == expected
    assert found["ssim"] == pytest.approx(scores.mean_ssim(truth, drawn), abs=1e-6) and found["ssim_sd"] > 0
    assert found["ssim_from_mean"] == pytest.approx(scores.mean_ssim(truth, from_mean), abs=1e-6)
    assert found["one_minus_mse"] == pytest.approx(scores.one_minus_mse(truth, drawn), abs=1e-9)
    assert found["inside_grid"] == pytest.approx((np.abs(means).max(1) < 1.6448536).mean())
    assert found["aggregate_mean"] == pytest.approx(means.mean(0), abs=1e-5)
    centred = means - means.mean(0)
    assert found["aggregate_covariance"] == pytest.approx(centred.T @ centred / 50, abs=1e-5)
    wrong = [sum(pair["misclassified"]) for pair in found["pairs"]]
    assert sum(wrong) == (predicted != data.test_labels).sum() and len(wrong) == 3
    assert {**history["settings"], **found["settings"]} == found["settings"]
    _, terms, _ = vae.elbo_loss(model, test[:][0].flatten(1), vae.Config(), torch.Generator().manual_seed(0))
    assert found["elbo"]["test"] == pytest.approx(-(terms["reconstruction"] + terms["KL"]).item(), rel=1e-5)
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"]
    assert [layer["shape"] for layer in found["layers"]] == [
        [784], [512], [512], [256], [3 + 2 + 2], [2], [258], [512], [512], [784]]
    assert found["layers"][1]["name"] == "linear, batch norm, ReLU" and "3 class logits" in found["layers"][4]["name"]


@pytest.fixture
def drawn(monkeypatch):
    """What latents_figure is given at each call; nothing is rendered, which spares seconds."""
    calls = []
    monkeypatch.setattr(plots, "figure_bytes", lambda figure: {".png": b""})
    monkeypatch.setattr(figures_digits, "latents_figure", lambda *words: calls.append(words))
    return calls


def test_digits_without_labels_are_drawn_and_the_scores_left_out(data, made, draw_again, tmp_path, drawn):
    found, done = draw_again("digits", test=data.test)
    assert done.err.splitlines()[-1].startswith(f"{data.test}: no labels")
    assert {path.stem for path in tmp_path.glob("*.png")} == DIGITS
    without = {"scores": None, "accuracy_interval": None, "elbo_gap": None}
    assert all(pair["misclassified"] is None for pair in found["pairs"])
    assert found == {**made.numbers["digits"], **without, "pairs": found["pairs"]}
    means, classes, mixture, labels, test, predicted = drawn[0]
    assert (len(means), test, predicted) == (120, None, False)


def test_what_colours_the_training_images_and_stands_in_for_them(data, made, draw_again, tmp_path, drawn):
    images, truth = (np.load(str(data.train))[key] for key in ("data", "labels"))
    np.savez(str(tmp_path / "unlabelled.npz"), data=images)
    draw_again("digits")
    assert draw_again("digits", train=tmp_path / "unlabelled.npz")[0] == {**made.numbers["digits"], "elbo_gap": None}
    found, _ = draw_again("digits", train=None)
    assert (found["scatter_of"], found["scatter_images"]) == ("test", 50)
    (means, classes, mixture, labels, test, predicted), without, of_test = drawn
    assert (classes == truth).all() and not predicted and (test[1] == data.test_labels).all()
    assert (without[0] == means).all() and (without[1] == labels[mixture.predict(means)]).all() and without[5]
    assert (of_test[0] == test[0]).all() and (of_test[1] == data.test_labels).all() and not of_test[5]


def test_an_unreadable_photo_is_scored_as_by_bird_py_and_never_drawn(bird_trained, bird_data, tmp_path, monkeypatch):
    model = bird.load_model(str(bird_trained.model))
    shutil.copytree(str(bird_data.test), str(tmp_path / "photos"))
    (tmp_path / "photos" / "10" / "0.jpg").write_bytes(b"no photo")
    paths, truth = figures_birds.read_birds(str(tmp_path / "photos"), bird_data.classes)
    (predicted, unreadable), measured = bird.classify(model, paths), []
    assert [Path(paths[i]).name for i in unreadable] == ["0.jpg"]
    monkeypatch.setattr(figures_birds, "measure_maps", measured.extend)
    _, _, numbers, remarks = figures_birds.draw_all(str(tmp_path / "photos"), str(bird_trained.model), None,
                                                    torch.device("cpu"))
    assert numbers.photos == 24 and numbers.scores["accuracy"] == (predicted == truth).mean()
    assert len(measured) == 23 and "10/0.jpg" in remarks[0] and "1 photos cannot be read" in remarks[0]
    photos = np.stack([bird.decode_photo(path, round(bird.DECODED_SIZE * 48)) for path in np.delete(paths, unreadable)])
    expected = bird.predict_proba(model, torch.from_numpy(photos)).max(1).values.tolist()
    assert sorted(example.probability for example in measured) == pytest.approx(sorted(expected), abs=1e-4)


def _mixture(means, covariances):
    weights = np.full(len(means), 1 / len(means))
    return vae.GaussianMixture.from_parameters(weights, np.array(means), np.array(covariances))


@pytest.mark.parametrize("degrees", [-30, 0, 20, 45])
def test_the_slant_of_a_drawn_stroke(degrees):
    image, rows = np.zeros((28, 28)), np.arange(4, 24)
    columns = 13.5 + (13.5 - rows) * np.tan(np.radians(degrees))  # to the right at the top
    image[rows, columns.round().astype(int)] = 1
    assert figures_digits.slant(image) == pytest.approx(degrees, abs=2)


def test_the_numbers_of_the_manifold_agree_with_values_worked_by_hand():
    """Three components, of which one lies outside of the grid; the decoder draws a dot that grows with z_1."""
    mixture = _mixture([[-1.0, 0], [1, 0], [9, 9]], [np.diag([0.04, 0.01])] * 3)
    model = SimpleNamespace(decode=lambda z: ((z[:, :1] + 2) / 4).clamp(0, 1).repeat(1, 784))
    found = figures_digits.describe_manifold(model, mixture, LABELS, np.array([-1.0, -0.5, 0.9, 1.1]))
    assert found["cells"] == {"1": 8, "4": 8, "8": 0}
    assert found["between"] == 16  # z_2 = -1, -0.5, 0.9 and 1.1 are 5 standard deviations and more away
    assert [axis["digit"] for axis in found["axes"]] == [1, 4, 8]
    assert found["axes"][0]["ink"] == pytest.approx([(1 - 0.4) / 4, (1 + 0.4) / 4], abs=1e-6)


def test_the_gap_of_the_elbo_is_that_within_the_digits():
    """Other shares of the digits in training and test are no gap; each digit needs two images."""
    training, classes = np.array([-50.0, -52, -90, -92, -94]), np.array([1, 1, 4, 4, 4])
    test, test_classes = np.array([-53.0, -55, -57, -93, -95]), np.array([1, 1, 1, 4, 4])
    gap, error = figures_digits.elbo_gap(training, classes, test, test_classes)
    assert gap == pytest.approx((4 + 2) / 2) and error == pytest.approx(np.sqrt(2 / 2 + 4 / 3 + 4 / 3 + 2 / 2) / 2)
    assert figures_digits.elbo_gap(training, classes, test[:4], test_classes[:4]) is None


def test_what_a_map_measures_agrees_with_values_worked_by_hand():
    even, spot = np.ones((8, 8)), np.zeros((8, 8))
    spot[3, 4] = 1
    for maps, centre, entropy in (([even], 0.25, 1), ([spot], 1, 0), ([even, spot], 0.625, 0.5)):
        found = figures_birds.measure_maps([figures_birds.Example(None, heat, "", 1.0) for heat in maps])
        assert found == pytest.approx({"photos": len(maps), "centre": centre, "entropy": entropy}, abs=1e-6)
    assert figures_birds.measure_maps([]) is None


def test_a_heat_map_is_the_formula_of_grad_cam(bird_trained, bird_data):
    """Channels of the last stage, each weighed by its mean gradient, rectified (Selvaraju et al. 2017, eq. 1 and 2)."""
    model = bird.load_model(str(bird_trained.model))
    paths, targets, kept = [bird_data.test / name / "0.jpg" for name in bird_data.classes[:3]], np.arange(3), []
    photos = torch.from_numpy(np.stack([bird.decode_photo(str(path), 96) for path in paths]))
    handle = model.blocks[-1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(photos.float() / 255)
    handle.remove()
    gradient, = torch.autograd.grad(logits[range(3), targets].sum(), kept)
    expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu().detach()
    expected = torch.nn.functional.interpolate(expected, (96, 96), mode="bilinear", align_corners=False)[:, 0].numpy()
    expected -= expected.min((1, 2), keepdims=True)
    expected /= expected.max((1, 2), keepdims=True)
    found = figures_birds.grad_cam(model, photos.float() / 255, targets, batch_size=2)
    assert found.shape == (3, 96, 96) and found == pytest.approx(expected, abs=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_the_manifold_is_the_assignments_grid_with_z2_downwards():
    """As plot_2d_manifold has it: `for i, yi ...: for j, xi ...: z = [[xi, yi]]`, shown from the top."""
    values = figures_digits.grid_values()
    assert values == pytest.approx(norm.ppf(np.linspace(0.05, 0.95, 20))) and len(values) == 20
    model = SimpleNamespace(decode=lambda z: z.sum(1, keepdim=True) + 10 * z[:, :1] + torch.zeros(1, 784))
    images = figures_digits.decode_grid(model, [0.0, 1.0], [0.0, 0.1, 0.2])
    assert images[:, :, 0, 0] == pytest.approx(np.array([[0, 11], [0.1, 11.1], [0.2, 11.2]]), abs=1e-5)
    (image,) = figures_digits.manifold_figure(images).axes[0].images
    pixels = np.asarray(image.get_array())
    assert image.get_cmap().name == "gnuplot2" and image.origin == "upper"
    assert pixels[[0, -1]][:, [0, -1]] == pytest.approx(np.array([[0, 11], [0.2, 11.2]]), abs=1e-5)


def test_ellipses_enclose_what_a_gaussian_says():
    """Points drawn from a component lie within its 1, 2 and 3 sigma ellipses as often as chi-squared says."""
    mixture = _mixture([[0, 0], [6.0, 1]], [[[2.0, 1.2], [1.2, 1.0]], [[0.3, -0.1], [-0.1, 0.5]]])
    codes, component = mixture.sample(4000)
    figure = figures_digits.mixture_figure(codes, LABELS[component], mixture, LABELS[:2], codes[:5])
    ellipses = figure.axes[0].patches
    assert len(ellipses) == 6
    for k in range(2):
        for sigmas, ellipse in zip((1, 2, 3), ellipses[3 * k:]):
            points = ellipse.get_patch_transform().inverted().transform(codes[component == k])
            assert ((points ** 2).sum(1) <= 1).mean() == pytest.approx(1 - np.exp(-sigmas ** 2 / 2), abs=0.03)


def test_pairs_have_the_mahalanobis_distance_and_their_mistakes():
    mixture = _mixture([[0, 0], [4.0, 0], [0, 20.0]], [np.eye(2), [[3.0, 0], [0, 1]], 9 * np.eye(2)])
    pairs = figures_digits.component_pairs(mixture, LABELS, np.array([1, 1, 4, 8, 8]), np.array([4, 1, 4, 1, 1]))
    assert [pair["digits"] for pair in pairs] == [[1, 4], [1, 8], [4, 8]]
    assert pairs[0]["distance"] == pytest.approx(4 / np.sqrt(2))
    assert [pair["misclassified"] for pair in pairs] == [[1, 0], [0, 2], [0, 0]]
    points = mixture.sample(4000)[0][:, :2]
    assert figures_digits.shares_within(mixture, points) == pytest.approx([0.393, 0.865, 0.989], abs=0.03)


def test_examples_are_right_and_wrong_ones_of_their_own_class():
    rng = np.random.default_rng(0)
    truth, predicted, usable = rng.integers(0, 3, 90), rng.integers(0, 2, 90), rng.random(90) < 0.8
    chosen = figures_birds.choose_examples(truth, predicted, usable, 4, each=2)
    assert [tuple(map(len, groups)) for groups in chosen] == [(2, 2), (2, 2), (0, 2), (0, 0)]
    for k, (right, wrong) in enumerate(chosen):
        assert all(usable[i] and truth[i] == k and (predicted[i] == k) == (i in right) for i in right + wrong)


def test_reconstructions_are_drawn_evenly_from_the_classes():
    labels = np.repeat([8, 1, 4], [50, 30, 2])
    chosen = figures_digits.evenly_spaced(labels, 82, 10)
    assert labels[chosen].tolist() == [1] * 4 + [8] * 6 and len(set(chosen)) == 10
    assert figures_digits.evenly_spaced(np.tile([8, 1, 4], 5), 15, 10).tolist() == [1, 7, 10, 2, 5, 11, 14, 3, 6, 12]
    assert figures_digits.evenly_spaced(None, 3, 10).tolist() == [0, 1, 2]


@pytest.fixture
def check_texts(monkeypatch):
    """check_texts(figures): no text that is really written (a tick beyond the limits is not) is too small, cut off or
    covered by another; within, figures have our style."""
    written, draw = {}, Text.draw
    def watched(text, renderer, *args, **kwargs):
        if text.get_visible() and text.get_text().strip():
            written[text.get_text(), text] = text.get_window_extent(renderer)
        return draw(text, renderer, *args, **kwargs)
    def check(*figures):
        for figure in figures:
            written.clear()
            FigureCanvasAgg(figure).draw()
            found = list(written.items())
            for i, ((name, text), box) in enumerate(found):
                assert 5.5 <= text.get_fontsize() <= 8.5, name  # pt
                assert -1 < box.x0 and box.x1 < figure.bbox.x1 + 1 and -1 < box.y0 and box.y1 < figure.bbox.y1 + 1, name
                for (other, _), other_box in found[:i]:
                    width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
                    height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
                    assert width < 1 or height < 1.5, (name, other)
    monkeypatch.setattr(Text, "draw", watched)
    with plots.style():
        yield check


@pytest.mark.parametrize("names", [list("0123456789"), LONG, list("abc")], ids=["short", "long", "three"])
def test_no_text_among_class_names_is_cut_off_or_covers_another(names, check_texts):
    rng, n = np.random.default_rng(0), len(names)
    photo, heat = rng.random((8, 8, 3)).astype(np.float32), rng.random((8, 8)).astype(np.float32)
    example = figures_birds.Example(photo, heat, names[-1], 1.0)
    check_texts(figures_birds.confusion_figure(rng.integers(0, n, 5000), rng.integers(0, n, 5000), names),
                figures_birds.gradcam_figure([([example], [example] * (k % 2)) for k in range(n)], names))


def test_no_text_of_a_curve_or_a_latent_is_cut_off_or_covers_another(check_texts):
    mixture = _mixture(vae.VAE(3).prior_means.double().numpy(), [0.09 * np.eye(2)] * 3)
    codes, component = mixture.sample(100)
    classes, images = LABELS[component], np.random.default_rng(0).random((10, 28, 28))
    history = [{"epoch": i, "train_loss": 2 / i, "val_loss": 1 / i, "train_accuracy": 0.5, "val_accuracy": 1.0}
               for i in range(1, 141)]
    check_texts(
        *(figures_birds.learning_curves_figure(history[:n], n) for n in (140, 1)),
        figures_digits.learning_curves_figure([dict.fromkeys(("epoch", "reconstruction", "KL", "SSIM"), 1 + 99 * i)
                                               for i in range(20)]),
        *(figures_digits.reconstructions_figure(images[:n], [images[:n]] * 2, [np.full(n, 0.1)] * 2) for n in (10, 2)),
        figures_digits.latents_figure(codes, classes, mixture, LABELS, (codes, classes)),
        figures_digits.latents_figure(codes, classes, mixture, LABELS, predicted=True),
        *(figures_digits.mixture_figure(codes, classes, mixture, LABELS, codes[:15], predicted=predicted)
          for predicted in (False, True)),
        figures_digits.ssim_figure(images[0, 0], classes[:28], LABELS))


@pytest.fixture(scope="module")
def broken(bird_trained, bird_data, trained, data, tmp_path_factory):
    """A folder of files that do not fit: histories, models without one, photos, digits."""
    folder = tmp_path_factory.mktemp("broken")
    histories = {"birds": bird_trained.history, "digits": trained.model.with_name("vae_history.json")}
    for part, record in ((part, json.loads(path.read_text())) for part, path in histories.items()):
        for name, changes in {
                "epochs": {"epochs": [{"epoch": 1}]}, "classes": {"classes": list("abcd")},
                "nan": {"epochs": [{**row, "val_loss": np.nan, "KL": np.inf} for row in record["epochs"]]},
                "size": {"settings": {**record["settings"], "image_size": 32}},
                "model": {"model": record.get("model", "")[::-1]}}.items():
            (folder / f"{part}_{name}.json").write_text(json.dumps({**record, **changes}))
    write_all(folder, {"list.json": "[]", "half.json": "{", "bird.pth": bird_trained.model.read_bytes(),
                       "vae.pth": trained.model.read_bytes(), "gmm_params.pkl": trained.mixture.read_bytes()})
    shutil.copytree(str(bird_data.test), str(folder / "photos"))
    (folder / "photos" / "2").rename(folder / "photos" / "heron")
    shutil.copytree(str(bird_data.test / "2"), str(folder / "flat"), ignore=shutil.ignore_patterns("a", "B"))
    val, train = np.load(str(data.val)), np.load(str(data.train))
    np.savez(str(folder / "val.npz"), data=val["data"], labels=val["labels"] + 1)
    np.savez(str(folder / "train.npz"), data=train["data"], labels=train["labels"][1:])
    return folder


@pytest.mark.parametrize("part, name, file, said", [
    ("birds", "model", "bird.pth", "bird_history.json"), ("digits", "model", "vae.pth", "vae_history.json"),
    ("birds", "model", "none.pth", ""), ("birds", "test", "photos", "heron"),
    ("birds", "test", "flat", "class folders"),
    *((file.split("_")[0], "history", f"{file}.json", "") for file in (
        "birds_epochs", "birds_classes", "birds_nan", "birds_size", "digits_epochs", "digits_nan", "digits_model")),
    ("birds", "history", "list.json", ""), ("birds", "history", "half.json", ""),
    ("digits", "val", "val.npz", "gmm_params.pkl"), ("digits", "train", "none.npz", ""),
    ("digits", "train", "train.npz", ""), ("digits", "model", "gmm_params.pkl", ""),
    ("digits", "out", "figures/numbers.json", ""), ("digits", "out", "figures", "")])
def test_bad_input_is_one_line_and_nothing_is_written(part, name, file, said, words, broken, handin, tmp_path):
    if name == "out":
        write_all(tmp_path, {file: "{"})
    before = sorted(tmp_path.rglob("*"))
    changes = {} if name == "out" else {name: broken / file}
    done = handin(*words(part, **changes), "--out", tmp_path / "figures")
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1, done
    assert (said or file) in done.err and "expected" in done.err and "found" in done.err
    assert set(tmp_path.rglob("*")) - set(before) <= {tmp_path / "figures"}


@pytest.mark.parametrize("words", ["", "birds", "digits"])
def test_help_shows_an_example_of_each_part(words, handin, capsys):
    with pytest.raises(SystemExit):
        handin("figures", *words.split(), "--help")
    assert "example: python -m handin figures" in capsys.readouterr().out
