"""`python -m handin figures`: the pictures and numbers.json, from models trained on drawn shapes."""
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from pypdf import PdfReader
from sklearn import metrics

ROOT = Path(__file__).resolve().parent.parent
from handin import __main__ as command_line
from handin.grading import scores
from handin.report import figures_birds, figures_digits, plots

BIRDS = {"birds_learning_curves", "birds_confusion", "birds_gradcam"}
DIGITS = {"digits_learning_curves", "digits_reconstructions", "digits_manifold", "digits_latents", "digits_mixture",
          "digits_ssim"}
LONG = ["Asian-Green-Bee-Eater", "Cattle-Egret", "Common-Kingfisher", "Hoopoe", "House-Crow", "Indian-Peacock",
        "Indian-Pitta", "Ruddy-Shelduck", "Rufous-Treepie", "White-Breasted-Waterhen"]


@pytest.fixture(scope="module")
def labelled(data, tmp_path_factory):
    """The digits of the test with their labels."""
    path = tmp_path_factory.mktemp("labelled") / "test.npz"
    with np.load(str(data.test)) as content:
        np.savez(str(path), data=content["data"], labels=data.test_labels)
    return path


@pytest.fixture(scope="module")
def words(bird_trained, bird_data, trained, data, labelled):
    """The command of each part, less --out."""
    return {"birds": ["birds", bird_data.test, "--model", bird_trained.model, "--device", "cpu"],
            "digits": ["digits", data.val, labelled, "--model", trained.model, "--mixture", trained.mixture,
                       "--device", "cpu", "--train", data.train]}


@pytest.fixture(scope="module")
def made(words, environment, tmp_path_factory):
    """Both parts drawn into one folder, each by a process without a display: the folder, the processes, the numbers."""
    out = tmp_path_factory.mktemp("made") / "new" / "figures"
    surroundings = {name: value for name, value in environment.items()
                    if name not in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")}
    done = [subprocess.run([sys.executable, "-m", "handin", "figures", *map(str, words[part]), "--out", str(out)],
                           cwd=str(ROOT), env={**surroundings, "PYTHONHASHSEED": str(seed)}, capture_output=True,
                           text=True, timeout=600) for seed, part in enumerate(words)]
    assert [process.returncode for process in done] == [0, 0], done
    return SimpleNamespace(out=out, processes=done, numbers=json.loads((out / "numbers.json").read_text()))


@pytest.fixture
def call(capsys):
    """call(*words): the command in this process. Gives its exit code, stdout and stderr."""
    def called(*words):
        code = command_line.main(["figures", *map(str, words)])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)
    return called


# ------------------------------------------------------------------------------------------------------------ the files

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
def test_the_same_input_gives_the_same_bytes(part, made, words, call, tmp_path):
    """Another process with another hash seed, at another time, in another folder; the other part is left alone."""
    other = {"birds": "digits", "digits": "birds"}[part]
    (tmp_path / "numbers.json").write_text(json.dumps({other: {"kept": 1}, part: {"old": 2}}))
    assert call(*words[part], "--out", tmp_path).code == 0
    for path in (*tmp_path.glob("*.p*"), *tmp_path.glob("*.html")):
        assert path.read_bytes() == (made.out / path.name).read_bytes(), path.name
    assert json.loads((tmp_path / "numbers.json").read_text()) == {other: {"kept": 1}, part: made.numbers[part]}


# ---------------------------------------------------------------------------------------------------------- the numbers

def _evaluate(truth, predicted):
    """The assignment's evaluate_gmm_performance."""
    macro = {"average": "macro", "zero_division": 0}
    return {"accuracy": metrics.accuracy_score(truth, predicted),
            "precision_macro": metrics.precision_score(truth, predicted, **macro),
            "recall_macro": metrics.recall_score(truth, predicted, **macro),
            "f1_macro": metrics.f1_score(truth, predicted, **macro)}


def test_the_numbers_of_the_birds_are_those_of_bird_csv(made, bird_trained, bird_data):
    predicted, found = scores.read_labels(bird_trained.csv), made.numbers["birds"]
    truth = np.repeat(range(4), 6)
    precision, recall, f1, photos = metrics.precision_recall_fscore_support(truth, predicted, zero_division=0)
    assert found["per_class"] == [dict(zip(("class", "precision", "recall", "f1", "photos"), row))
                                  for row in zip(bird_data.classes, precision, recall, f1, photos)]
    assert found["scores"] == pytest.approx({"average_f1": scores.average_f1(truth, predicted),
                                             **_evaluate(truth, predicted)})
    low, high = found["accuracy_interval"]
    assert low < found["scores"]["accuracy"] <= high
    wrong = metrics.confusion_matrix(truth, predicted) * (1 - np.eye(4, dtype=int))
    names = bird_data.classes
    assert all(wrong[names.index(a), names.index(b)] == n for a, b, n in found["confusions"])
    assert [n for *_, n in found["confusions"]] == [n for n in sorted(wrong.flat, reverse=True)[:3] if n]
    history = json.loads(bird_trained.history.read_text())
    kept = next(row for row in history["epochs"] if row["epoch"] == history["best_epoch"])
    assert (found["validation_f1"], found["validation_accuracy"], found["minutes"]) == (
        history["validation"]["average_f1"], kept["val_accuracy"], history["minutes"])
    assert (found["photos"], found["epochs"], found["image_size"], found["classes"]) == (24, 12, 48, names)
    assert found["train_photos"] + found["validation_photos"] == sum(bird_data.counts)
    assert found["parameters"] == history["parameters"] and found["settings"] == history["settings"]
    assert found["best_epoch"] == history["best_epoch"] and found["device"] == "cpu"
    for row, name in zip(found["grad_cam"], names):
        counts = [(row[side] or {"photos": 0})["photos"] for side in ("right", "wrong")]
        assert row["class"] == name and sum(counts) == 6 and counts[0] == round(6 * recall[names.index(name)])


def test_the_numbers_of_the_digits_are_those_of_the_graded_files(made, trained, data):
    predicted, found = scores.read_labels(trained.csv), made.numbers["digits"]
    assert found["scores"] == pytest.approx({"average_f1": scores.average_f1(data.test_labels, predicted),
                                             **_evaluate(data.test_labels, predicted)})
    vae, model = figures_digits.vae, figures_digits.vae.load_checkpoint(str(trained.model))
    mixture, labels = vae.load_mixture(str(trained.mixture), model)
    val, test_digits = vae.load_digits(data.val, labelled=True), vae.load_digits(data.test)
    val_predicted = vae.classify(model, mixture, labels, val)
    assert {**found["validation"], "average_f1": 0} == pytest.approx({**_evaluate(val.labels, val_predicted),
                                                                      "average_f1": 0})
    with np.load(str(data.test)) as test, np.load(str(trained.npz)) as made_before:
        truth, drawn = test["data"] / np.float32(255), made_before["data"]
    means = vae.encode_means(model, test_digits)
    assert found["ssim"] == pytest.approx(scores.mean_ssim(truth, drawn), abs=1e-6)
    assert found["one_minus_mse"] == pytest.approx(scores.one_minus_mse(truth, drawn), abs=1e-9)
    assert found["classes"] == [3, 7, 30]
    assert (found["images"], found["labelled_images"]) == (50, 45) and found["ssim_sd"] > 0
    from_mean = vae.reconstruct(model, test_digits, refined=False)
    assert found["ssim_from_mean"] == pytest.approx(scores.mean_ssim(truth, from_mean), abs=1e-6)
    assert found["inside_grid"] == pytest.approx((np.abs(means).max(1) < 1.6448536).mean())
    assert found["aggregate_mean"] == pytest.approx(means.mean(0), abs=1e-5)
    assert found["aggregate_covariance"] == pytest.approx((means - means.mean(0)).T @ (means - means.mean(0)) / 50,
                                                          abs=1e-5)
    assert (found["scatter_of"], found["scatter_images"]) == ("training", 120)
    wrong = [sum(pair["misclassified"]) for pair in found["pairs"]]
    assert sum(wrong) == (predicted != data.test_labels).sum() and len(wrong) == 3
    history = json.loads(trained.model.with_name("vae_history.json").read_text())
    assert (found["history"], found["training_images"]) == (history["epochs"], 120) and found["device"] == "cpu"
    assert {**history["settings"], **found["settings"]} == found["settings"]
    _, terms, _ = vae.elbo_loss(model, test_digits[:][0].flatten(1), vae.Config(), torch.Generator().manual_seed(0))
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


def test_digits_without_labels_are_drawn_and_the_scores_left_out(words, data, made, call, tmp_path, drawn):
    done = call(*words["digits"][:2], data.test, *words["digits"][3:], "--out", tmp_path)
    assert done.code == 0 and done.err.splitlines()[-1].startswith(f"{data.test}: no labels")
    assert {path.stem for path in tmp_path.glob("*.png")} == DIGITS
    found, with_labels = json.loads((tmp_path / "numbers.json").read_text())["digits"], made.numbers["digits"]
    assert found["scores"] is None and found["accuracy_interval"] is None
    assert all(pair["misclassified"] is None for pair in found["pairs"])
    assert all(with_labels[key] == value for key, value in found.items()
               if key not in ("scores", "accuracy_interval", "pairs", "elbo_gap")) and found["elbo_gap"] is None
    means, classes, mixture, labels, test, predicted = drawn[0]
    assert (len(means), test, predicted) == (120, None, False)


def test_training_images_are_coloured_by_their_labels_and_test_images_stand_in_for_them(
        words, data, made, call, tmp_path, drawn):
    with np.load(str(data.train)) as content:
        np.savez(str(tmp_path / "unlabelled.npz"), data=content["data"])
        truth = content["labels"]
    assert call(*words["digits"], "--out", tmp_path).code == 0
    assert call(*words["digits"][:-1], tmp_path / "unlabelled.npz", "--out", tmp_path).code == 0
    assert json.loads((tmp_path / "numbers.json").read_text())["digits"] == {**made.numbers["digits"], "elbo_gap": None}
    assert call(*words["digits"][:-2], "--out", tmp_path).code == 0
    found = json.loads((tmp_path / "numbers.json").read_text())["digits"]
    assert (found["scatter_of"], found["scatter_images"]) == ("test", 50)
    (means, classes, mixture, labels, test, predicted), without, of_test = drawn
    assert (classes == truth).all() and not predicted and (test[1] == data.test_labels).all()
    assert (without[0] == means).all() and (without[1] == labels[mixture.predict(means)]).all() and without[5]
    assert (of_test[0] == test[0]).all() and (of_test[1] == data.test_labels).all() and not of_test[5]


def test_an_unreadable_photo_is_scored_as_bird_py_scores_it_and_never_drawn(bird_trained, bird_data, tmp_path,
                                                                            monkeypatch):
    model = figures_birds.bird.load_model(str(bird_trained.model))
    shutil.copytree(str(bird_data.test), str(tmp_path / "photos"))
    (tmp_path / "photos" / "10" / "0.jpg").write_bytes(b"no photo")
    paths, truth = figures_birds.read_birds(str(tmp_path / "photos"), bird_data.classes)
    predicted, unreadable = figures_birds.bird.classify(model, paths)
    assert [Path(paths[i]).name for i in unreadable] == ["0.jpg"]
    measured = []
    monkeypatch.setattr(figures_birds, "measure_maps", measured.extend)
    _, _, numbers, remarks = figures_birds.draw_all(str(tmp_path / "photos"), str(bird_trained.model), None,
                                                    torch.device("cpu"))
    assert numbers.photos == 24 and numbers.scores["accuracy"] == (predicted == truth).mean()
    assert len(measured) == 23 and "10/0.jpg" in remarks[0] and "1 photos cannot be read" in remarks[0]
    side = round(figures_birds.bird.DECODED_SIZE * 48)
    probabilities = figures_birds.bird.predict_proba(model, torch.from_numpy(np.stack([
        figures_birds.bird.decode_photo(path, side) for path in paths if path != paths[unreadable[0]]])))
    assert sorted(example.probability for example in measured) == pytest.approx(
        sorted(probabilities.max(1).values.tolist()), abs=1e-4)


# --------------------------------------------------------------------------------------------------------- the drawings

def test_the_table_of_layers_has_every_parameter_and_the_shapes_of_the_trained_size(bird_untrained):
    model = figures_birds.bird.load_model(str(bird_untrained))
    rows = figures_birds.layer_table(model, 0.27)
    assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in model.parameters())
    assert [row["shape"] for row in rows] == [[3, 32, 32], [64, 8, 8], [64, 8, 8], [128, 4, 4], [256, 2, 2],
                                              [512, 1, 1], [1024], [3]]
    assert rows[1]["name"] == "conv 7 × 7, batch norm, stride 4"
    assert rows[3]["name"] == "residual block, batch norm, stride 2"
    assert rows[6]["name"] == "avg. and max pooling, dropout 0.27"


@pytest.mark.parametrize("degrees", [-30, 0, 20, 45])
def test_the_slant_of_a_drawn_stroke(degrees):
    image, rows = np.zeros((28, 28)), np.arange(4, 24)
    columns = 13.5 + (13.5 - rows) * np.tan(np.radians(degrees))  # to the right at the top
    image[rows, columns.round().astype(int)] = 1
    assert figures_digits.slant(image) == pytest.approx(degrees, abs=2)


def test_the_numbers_of_the_manifold_agree_with_values_worked_by_hand():
    """Three components, of which one lies outside of the grid; the decoder draws a dot that grows with z_1."""
    mixture = figures_digits.vae.GaussianMixture.from_parameters(
        np.full(3, 1 / 3), np.array([[-1.0, 0], [1, 0], [9, 9]]), np.stack([np.diag([0.04, 0.01])] * 3))

    class Model:
        def decode(self, z):
            return ((z[:, :1] + 2) / 4).clamp(0, 1).repeat(1, 784)

    found = figures_digits.describe_manifold(Model(), mixture, np.array([1, 4, 8]), np.array([-1.0, -0.5, 0.9, 1.1]))
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
    examples = [figures_birds.Example(None, heat, "", 1.0) for heat in (even, spot)]
    assert figures_birds.measure_maps(examples[:1]) == pytest.approx({"photos": 1, "centre": 0.25, "entropy": 1})
    assert figures_birds.measure_maps(examples[1:]) == pytest.approx({"photos": 1, "centre": 1, "entropy": 0}, abs=1e-6)
    assert figures_birds.measure_maps(examples)["centre"] == pytest.approx(0.625)
    assert figures_birds.measure_maps([]) is None


def test_a_heat_map_is_the_formula_of_grad_cam(bird_trained, bird_data):
    """Channels of the last stage, each weighed by its mean gradient, rectified (Selvaraju et al. 2017, eq. 1 and 2)."""
    model = figures_birds.bird.load_model(str(bird_trained.model))
    paths, targets, kept = [bird_data.test / name / "0.jpg" for name in bird_data.classes[:3]], np.arange(3), []
    photos = torch.from_numpy(np.stack([figures_birds.bird.decode_photo(str(path), 96) for path in paths]))
    handle = model.blocks[-1].register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(photos.float() / 255)
    handle.remove()
    gradient, = torch.autograd.grad(logits[range(3), targets].sum(), kept)
    expected = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).relu().detach()
    expected = torch.nn.functional.interpolate(expected, (96, 96), mode="bilinear", align_corners=False)[:, 0].numpy()
    expected -= expected.min((1, 2), keepdims=True)
    expected /= expected.max((1, 2), keepdims=True)
    found = figures_birds.grad_cam(model, photos.float() / 255, targets, batch=2)
    assert found.shape == (3, 96, 96) and found == pytest.approx(expected, abs=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_examples_are_right_and_wrong_ones_of_their_own_class():
    rng = np.random.default_rng(0)
    truth, predicted, usable = rng.integers(0, 3, 90), rng.integers(0, 2, 90), rng.random(90) < 0.8
    chosen = figures_birds.choose_examples(truth, predicted, usable, 4, each=2)
    assert [tuple(map(len, groups)) for groups in chosen] == [(2, 2), (2, 2), (0, 2), (0, 0)]
    for k, (right, wrong) in enumerate(chosen):
        assert all(usable[i] and truth[i] == k for i in right + wrong)
        assert all(predicted[i] == k for i in right) and not any(predicted[i] == k for i in wrong)


def test_the_manifold_is_the_assignments_grid_with_z2_downwards():
    """As plot_2d_manifold has it: `for i, yi ...: for j, xi ...: z = [[xi, yi]]`, shown from the top."""
    from scipy.stats import norm
    values = figures_digits.grid_values()
    assert values == pytest.approx(norm.ppf(np.linspace(0.05, 0.95, 20))) and len(values) == 20
    model = SimpleNamespace(decode=lambda z: z.sum(1, keepdim=True) + 10 * z[:, :1] + torch.zeros(1, 784))
    images = figures_digits.manifold(model, [0.0, 1.0], [0.0, 0.1, 0.2])
    assert images[:, :, 0, 0] == pytest.approx(np.array([[0, 11], [0.1, 11.1], [0.2, 11.2]]), abs=1e-5)
    (image,) = figures_digits.manifold_figure(images).axes[0].images
    pixels = np.asarray(image.get_array())
    assert image.get_cmap().name == "gnuplot2" and image.origin == "upper"
    assert pixels[[0, -1]][:, [0, -1]] == pytest.approx(np.array([[0, 11], [0.2, 11.2]]), abs=1e-5)


def test_ellipses_enclose_what_a_gaussian_says():
    """Points drawn from a component lie within its 1, 2 and 3 sigma ellipses as often as chi-squared says."""
    covariance = np.array([[[2.0, 1.2], [1.2, 1.0]], [[0.3, -0.1], [-0.1, 0.5]]])
    mixture = figures_digits.vae.GaussianMixture.from_parameters(np.array([0.5, 0.5]), np.array([[0, 0], [6.0, 1]]),
                                                                 covariance)
    codes, component = mixture.sample(4000)
    labels = np.array([1, 8])
    figure = figures_digits.mixture_figure(codes, labels[component], mixture, labels, codes[:5])
    ellipses = figure.axes[0].patches
    assert len(ellipses) == 6
    for k in range(2):
        for sigmas, ellipse in zip((1, 2, 3), ellipses[3 * k:]):
            points = ellipse.get_patch_transform().inverted().transform(codes[component == k])
            assert ((points ** 2).sum(1) <= 1).mean() == pytest.approx(1 - np.exp(-sigmas ** 2 / 2), abs=0.03)


def test_pairs_have_the_mahalanobis_distance_of_their_means_and_their_mistakes():
    covariances = np.array([np.eye(2), [[3.0, 0], [0, 1]], 9 * np.eye(2)])
    mixture = figures_digits.vae.GaussianMixture.from_parameters(
        np.full(3, 1 / 3), np.array([[0, 0], [4.0, 0], [0, 20.0]]), covariances)
    labels, truth, predicted = np.array([1, 4, 8]), np.array([1, 1, 4, 8, 8]), np.array([4, 1, 4, 1, 1])
    pairs = figures_digits.component_pairs(mixture, labels, truth, predicted)
    assert [pair["digits"] for pair in pairs] == [[1, 4], [1, 8], [4, 8]]
    assert pairs[0]["distance"] == pytest.approx(4 / np.sqrt(2))
    assert [pair["misclassified"] for pair in pairs] == [[1, 0], [0, 2], [0, 0]]
    points = mixture.sample(4000)[0][:, :2]
    assert figures_digits.shares_within(mixture, points) == pytest.approx([0.393, 0.865, 0.989], abs=0.03)


def test_reconstructions_are_drawn_evenly_from_the_classes():
    labels = np.repeat([8, 1, 4], [50, 30, 2])
    chosen = figures_digits.spread(labels, 82, 10)
    assert labels[chosen].tolist() == [1] * 4 + [8] * 6 and len(set(chosen)) == 10
    assert figures_digits.spread(np.tile([8, 1, 4], 5), 15, 10).tolist() == [1, 7, 10, 2, 5, 11, 14, 3, 6, 12]
    assert figures_digits.spread(None, 3, 10).tolist() == [0, 1, 2]


@pytest.fixture
def texts(monkeypatch):
    """texts(figure): what is really written (a tick beyond the limits is not), its box in px, its size in pt; within,
    figures have our style."""
    written, draw = {}, Text.draw

    def watched(text, renderer, *args, **kwargs):
        if text.get_visible() and text.get_text().strip():
            written[text] = text.get_window_extent(renderer)
        return draw(text, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", watched)

    def read(figure):
        written.clear()
        FigureCanvasAgg(figure).draw()
        return [(text.get_text(), box, text.get_fontsize()) for text, box in written.items()]

    with plots.style():
        yield read


def _history(n):
    return [{"epoch": i + 1, "train_loss": 2 / (i + 1), "val_loss": 1 / (i + 1), "train_accuracy": 0.5,
             "val_accuracy": 1.0} for i in range(n)]


@pytest.mark.parametrize("names", [[str(k) for k in range(10)], LONG, list("abc")], ids=["short", "long", "three"])
def test_no_text_among_class_names_is_cut_off_or_covers_another(names, texts):
    rng, n = np.random.default_rng(0), len(names)
    photo, heat = rng.random((8, 8, 3)).astype(np.float32), rng.random((8, 8)).astype(np.float32)
    examples = [figures_birds.Example(photo, heat, names[-1], 1.0) for _ in names]
    _check_texts(texts, [
        figures_birds.confusion_figure(rng.integers(0, n, 5000), rng.integers(0, n, 5000), names),
        figures_birds.gradcam_figure([([example], [example] * (k % 2)) for k, example in enumerate(examples)], names)])


def test_no_text_of_a_curve_a_table_or_a_latent_is_cut_off_or_covers_another(texts):
    mixture = figures_digits.vae.GaussianMixture.from_parameters(
        np.full(3, 1 / 3), figures_digits.vae.VAE(3).prior_means.double().numpy(),
        np.stack([0.09 * np.eye(2)] * 3))
    codes, component = mixture.sample(100)
    labels, images = np.array([1, 4, 8]), np.random.default_rng(0).random((10, 28, 28))
    _check_texts(texts, [
        figures_birds.learning_curves_figure(_history(140), 140),
        figures_birds.learning_curves_figure(_history(1), 1),
        figures_digits.learning_curves_figure([dict.fromkeys(("epoch", "reconstruction", "KL", "SSIM"), 1 + 99 * i)
                                               for i in range(20)]),
        figures_digits.reconstructions_figure(images, [images, images], [np.full(10, 0.123)] * 2),
        figures_digits.reconstructions_figure(images[:2], [images[:2], images[:2]], [np.ones(2)] * 2),
        figures_digits.latents_figure(codes, labels[component], mixture, labels, (codes, labels[component])),
        figures_digits.latents_figure(codes, labels[component], mixture, labels, predicted=True),
        figures_digits.mixture_figure(codes, labels[component], mixture, labels, codes[:15]),
        figures_digits.mixture_figure(codes, labels[component], mixture, labels, codes[:15], predicted=True),
        figures_digits.ssim_figure(images[0, 0], labels[component[:28]], labels)])


def _check_texts(texts, drawn):
    for figure in drawn:
        written = texts(figure)
        for i, (text, box, size) in enumerate(written):
            assert 5.5 <= size <= 8.5, text  # pt
            assert box.x0 > -1 and box.y0 > -1 and box.x1 < figure.bbox.x1 + 1 and box.y1 < figure.bbox.y1 + 1, text
            for other, other_box, _ in written[:i]:
                width = min(box.x1, other_box.x1) - max(box.x0, other_box.x0)
                height = min(box.y1, other_box.y1) - max(box.y0, other_box.y0)
                assert width < 1 or height < 1.5, (text, other)


# ------------------------------------------------------------------------------------------------------------ bad input

def _without_history(words, folder):
    shutil.copy(str(words["birds"][3]), str(folder / "bird.pth"))
    return [*words["birds"][:3], folder / "bird.pth"], "bird_history.json"


def _digits_without_history(words, folder):
    shutil.copy(str(words["digits"][4]), str(folder / "vae.pth"))
    return [*words["digits"][:4], folder / "vae.pth", *words["digits"][5:]], "vae_history.json"


def _with_history(change, part="birds"):
    def arrange(words, folder):
        model = words[part][words[part].index("--model") + 1]
        record = json.loads(Path(str(model)[:-len(".pth")] + "_history.json").read_text())
        (folder / "other.json").write_text(change(record))
        return [*words[part], "--history", folder / "other.json"], "other.json"
    return arrange


def _without_epochs(record):
    return json.dumps({**record, "epochs": [{"epoch": 1}]})


def _of_other_classes(record):
    return json.dumps({**record, "classes": list("abcd")})


def _not_finite(record):
    return json.dumps({**record, "epochs": [{**row, "val_loss": float("nan"), "KL": float("inf")}
                                            for row in record["epochs"]]})


def _of_another_size(record):
    return json.dumps({**record, "settings": {**record["settings"], "image_size": 32}})


def _of_another_model(record):
    return json.dumps({**record, "model": record["model"][::-1]})


def _strange_class(words, folder):
    shutil.copytree(str(words["birds"][1]), str(folder / "photos"))
    (folder / "photos" / "2").rename(folder / "photos" / "heron")
    return ["birds", folder / "photos", *words["birds"][2:]], "heron"


def _no_classes(words, folder):
    shutil.copytree(str(words["birds"][1] / "2"), str(folder / "flat"), ignore=shutil.ignore_patterns("a", "B"))
    return ["birds", folder / "flat", *words["birds"][2:]], "class folders"


def _no_model(words, folder):
    return ["birds", words["birds"][1], "--model", folder / "none.pth"], "none.pth"


def _other_digits(words, folder):
    with np.load(str(words["digits"][1])) as content:
        np.savez(str(folder / "val.npz"), data=content["data"], labels=content["labels"] + 1)
    return ["digits", folder / "val.npz", *words["digits"][2:]], "gmm_params.pkl"


def _no_training_images(words, folder):
    return [*words["digits"][:-1], folder / "none.npz"], "none.npz"


def _one_label_too_few(words, folder):
    with np.load(str(words["digits"][-1])) as content:
        np.savez(str(folder / "train.npz"), data=content["data"], labels=content["labels"][1:])
    return [*words["digits"][:-1], folder / "train.npz"], "train.npz"


def _exchanged(words, folder):
    return [*words["digits"][:4], words["digits"][6], "--mixture", words["digits"][4]], "gmm_params.pkl"


def _broken_numbers(words, folder):
    (folder / "figures").mkdir()
    (folder / "figures" / "numbers.json").write_text("{")
    return words["digits"], "numbers.json"


def _a_file_in_place_of_the_folder(words, folder):
    (folder / "figures").write_text("")
    return words["digits"], "figures"


@pytest.mark.parametrize("arrange", [
    _without_history, _with_history(_without_epochs), _with_history(_of_other_classes), _with_history(lambda _: "[]"),
    _with_history(_not_finite), _with_history(_not_finite, "digits"), _with_history(_of_another_size),
    _digits_without_history, _with_history(_without_epochs, "digits"), _with_history(_of_another_model, "digits"),
    _with_history(lambda _: "{"), _strange_class, _no_classes, _no_model, _other_digits, _no_training_images,
    _one_label_too_few, _exchanged, _broken_numbers, _a_file_in_place_of_the_folder],
    ids=lambda arrange: arrange.__name__)
def test_bad_input_is_one_line_and_nothing_is_written(arrange, words, call, tmp_path):
    changed, named = arrange(words, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = call(*changed, "--out", tmp_path / "figures")
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1, done
    assert named in done.err and "expected" in done.err and "found" in done.err
    assert set(tmp_path.rglob("*")) - set(before) <= {tmp_path / "figures"}
    shutil.rmtree(str(tmp_path))


def test_help_shows_an_example_of_each_part(capsys):
    for words in (["figures", "--help"], ["figures", "birds", "--help"], ["figures", "digits", "--help"]):
        with pytest.raises(SystemExit):
            command_line.main(words)
        assert "example: python -m handin figures" in capsys.readouterr().out
