"""The shared modules of studies/: losses, measures, training, figures, the report, the command."""
import dataclasses
import io
import json
import math
import pickle
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import small_studies
import small_training
import torch
from pages import images_of, read_page
from PIL import Image
from refusals import Bomb

from common.errors import InputError
from studies import __main__ as command
from studies import autoencoder, data, figures, losses, metrics, report, training

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def drawn(draw):
    """60 drawn Images of three classes."""
    labels = np.repeat([0, 1, 2], 20)
    pixels = torch.from_numpy(draw(labels, 5))[:, None]
    return data.Images(pixels, torch.from_numpy(labels), ["bar", "ring", "cross"], [])


def test_an_old_torch_gets_the_usual_adam(monkeypatch):
    """torch before 2.4 refuses to step in one pass on a CPU."""
    def old(parameters, fused=False, make=torch.optim.Adam, **options):
        if fused:
            raise RuntimeError("`fused=True` requires all the params to be CUDA, floating point Tensor")
        return make(parameters, **options)

    weights = [torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
    made = [training.adam(iter(weights[:1]), lr=0.1)]
    monkeypatch.setattr(torch.optim, "Adam", old)
    made.append(training.adam(iter(weights[1:]), lr=0.1))
    for weight, optimizer in zip(weights, made):
        weight.grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        optimizer.step()
    assert torch.allclose(*weights, rtol=1e-12) and weights[0][0] != 1


def test_losses_agree_with_the_distributions_of_torch():
    from torch.distributions import Bernoulli, Normal, kl_divergence
    torch.manual_seed(0)
    mean, log_variance = torch.randn(5, 7), torch.randn(5, 7)
    q = Normal(mean, (log_variance / 2).exp())
    expected = kl_divergence(q, Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(losses.kl_divergence(mean, log_variance), expected, atol=1e-5)
    logits, x = torch.randn(5, 1, 3, 3), torch.rand(5, 1, 3, 3).round()
    expected = -Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(losses.binary_cross_entropy(logits, x), expected, atol=1e-5)
    assert losses.squared_error(torch.zeros(2, 1, 2), torch.tensor([[[1.0, 3]], [[0, 0]]])).tolist() == [5, 0]
    z = losses.reparameterize(mean.repeat(20_000, 1, 1), log_variance)
    assert torch.allclose(z.mean(0), mean, atol=0.1) and torch.allclose(z.std(0), q.stddev, rtol=0.05)


def test_fid_is_the_formula_of_its_moments():
    from scipy.linalg import sqrtm
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 2, rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    s, t = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert metrics.fid(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(expected, rel=1e-6)
    assert metrics.fid(torch.from_numpy(a), torch.from_numpy(a)) == pytest.approx(0, abs=1e-6)


def test_measures_agree_with_values_worked_by_hand():
    line = torch.arange(5.0)[:, None]  # radii by k = 1: all 1
    fake = torch.tensor([[0.2], [0.5], [4.9], [5.2], [90]])  # radii 0.3, the last one's 84.8
    assert metrics.precision_recall(line, fake, k=1) == (pytest.approx(0.6), pytest.approx(0.2))
    assert metrics.precision_recall(line, line + 0.1, k=1) == (1, 1)
    points = torch.tensor([[0.0, 0], [3, 4], [0, 4]])
    assert metrics.mean_pairwise_l2(points) == pytest.approx((5 + 4 + 3) / 3)
    assert metrics.mean_pairwise_l2(points, most=2) == pytest.approx(5)
    dot = torch.zeros(1, 1, 5, 5)
    dot[0, 0, 2, 2] = 1
    assert metrics.sharpness(dot) == pytest.approx((16 + 4) / 9)
    assert metrics.majority_baseline(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0, 0])) == 0.25
    z, y = torch.tensor([[0.0], [1], [10], [11]]), torch.tensor([0, 0, 1, 1])
    assert metrics.silhouette(z, y) == pytest.approx((2 * (1 - 1 / 10.5) + 2 * (1 - 1 / 9.5)) / 4)
    assert metrics.silhouette(z, y * 0) is None and metrics.silhouette(z, torch.arange(4)) is None
    assert metrics.knn_accuracy(z, y, torch.tensor([[2.0], [9], [9.5]]), torch.tensor([0, 1, 0]), k=1) == 2 / 3
    assert metrics.proportion_interval(8, 10) == pytest.approx([0.490162, 0.943318], abs=1e-6)  # Wilson 1927
    assert metrics.proportion_interval(0, 10)[0] == 0 and metrics.proportion_interval(10, 10)[1] == 1
    assert metrics.summarise([{"a": {"b": 1.0, "c": None}}, {"a": {"b": 3.0, "c": 2.0}}]) == {"a": {
        "b": {"mean": 2, "sd": math.sqrt(2), "values": [1, 3]}, "c": {"mean": None, "sd": None, "values": [None, 2]}}}
    assert metrics.summarise([1.0])["sd"] is None


def test_the_features_of_the_fid_learn_classes_or_transformations_and_state_their_accuracy(drawn, tmp_path):
    study = types.SimpleNamespace(
        run=training.Run(tmp_path, "cpu"), train=drawn, test=drawn, settings=types.SimpleNamespace(feature_steps=30),
        args=types.SimpleNamespace(seed=0))
    extract, about = metrics.train_feature_extractor(study, batch_size=20)
    assert about["accuracy"] > 0.9 and about["task"] == "the 3 classes" and about["guessing"] == 1 / 3
    assert about["interval"][0] < about["accuracy"] <= about["interval"][1] and about["weak"] is False
    fakes = {"noise": torch.rand(70, 1, 28, 28), "same": drawn.floats()}
    found = metrics.fids(extract, drawn, drawn, fakes)
    assert found["training images"] < 1e-3 and found["same"] < 1e-3 and found["noise"] > 1
    study.train = study.test = dataclasses.replace(drawn, labels=-torch.ones(60), classes=[])
    study.settings.feature_steps = 2
    _, about = metrics.train_feature_extractor(study, batch_size=20)
    assert "transformations" in about["task"] and about["guessing"] == 1 / 8


def rows(model):
    """The history without its durations."""
    return [{name: value for name, value in row.items() if name != "seconds"} for row in model.history]


def same_weights(one, other):
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A Net that was trained for 40 epochs without interruption."""
    return small_training.train(tmp_path_factory.mktemp("whole"), 40)


def test_a_training_that_was_killed_goes_on_to_the_weights_of_an_uninterrupted_one(whole, tmp_path, environment):
    checkpoint = tmp_path / "checkpoints/net.ckpt"
    process = subprocess.Popen([sys.executable, small_training.__file__, str(tmp_path), "40"], env=environment,
                               stderr=subprocess.PIPE, text=True)
    while not checkpoint.exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    said = process.communicate()[1]
    kept = torch.load(str(checkpoint), weights_only=True)["history"]
    assert process.returncode == -signal.SIGKILL and 1 <= len(kept) < 40, said
    assert len(kept) >= said.count("epoch") * 5 - 1  # of every fifth epoch a line is printed before it is saved
    resumed = small_training.train(tmp_path, 40, resume=True)
    assert resumed.history[:len(kept)] == kept and rows(resumed) == rows(whole) and same_weights(resumed, whole)
    assert resumed.seconds == sum(row["seconds"] for row in resumed.history) and not resumed.training
    again = small_training.train(tmp_path, 40, resume=True)  # nothing is left to do
    assert again.history == resumed.history and same_weights(again, whole)
    anew = small_training.train(tmp_path, 2)
    assert rows(anew) == rows(whole)[:2] and anew.history[0]["seconds"] != kept[0]["seconds"]
    assert [path.name for path in (tmp_path / "logs/net").iterdir()] == ["version_0"]
    assert (tmp_path / "logs/net/version_0/metrics.csv").read_text().count("\n") >= 3


def test_without_resume_what_was_there_does_not_stay(tmp_path, monkeypatch):
    small_training.train(tmp_path, 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["net.ckpt"]
    monkeypatch.setattr(small_training.Net, "losses", lambda *_: {}["stop"])
    with pytest.raises(KeyError):
        small_training.train(tmp_path, 40)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    small_training.train(tmp_path, 2)
    checkpoint = tmp_path / "checkpoints/net.ckpt"
    whole, bombed = checkpoint.read_bytes(), torch.load(str(checkpoint), weights_only=True)
    bombed["about"]["bomb"] = Bomb(tmp_path / "exploded")
    torch.save(bombed, str(tmp_path / "bombed"))
    for options, content, word in (
            ({"lr": 0.02}, whole, "expected lr 0.02 as asked, found a training with 0.01"),
            ({"seed": 6}, whole, "expected seed 6 as asked, found a training with 5"),
            ({"epochs": 1}, whole, "at most 1 epochs as asked, found 2"),
            *(({}, bad, "expected a checkpoint") for bad in (
                whole[:-200], b"", pickle.dumps(Bomb(tmp_path / "exploded")), (tmp_path / "bombed").read_bytes()))):
        checkpoint.write_bytes(content)
        with pytest.raises(InputError, match=f"net.ckpt: .*{word}.*; start without --resume$") as caught:
            small_training.train(tmp_path, resume=True, **{"epochs": 2, **options})
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 and not (tmp_path / "exploded").exists()


def test_losses_that_diverge_and_flags_that_are_not_taken_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="^net: expected losses that are numbers, found .* nan.* in epoch 1; the t"):
        small_training.train(tmp_path, 3, lr=1e30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("RANK", "SLURM_PROCID", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    few = small_training.images(20, 1)
    for flag, value in (("device", "warp"), ("device", "cuda"), ("devices", 999), ("num_nodes", 2),
                        ("precision", "nonsense")):
        with pytest.raises(InputError, match=f"--{flag.replace('_', '-')}.*: expected .*found"):
            training.Run(tmp_path, **{"device": "cpu", flag: value}).fit("net", small_training.Net(), few, epochs=1,
                                                                         batch_size=9)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: expected a folder"):
        training.Run(tmp_path / "file", "cpu")


@pytest.mark.parametrize("precision", ("bf16-mixed", "bf16-true", "64-true"))
def test_what_was_trained_in_another_precision_is_measured_in_float32(precision, tmp_path):
    net = training.Run(tmp_path, "cpu", precision=precision).fit(
        "net", small_training.Net(), small_training.images(30, 1), epochs=2, batch_size=9)
    found = training.mapped(net.body, small_training.images(5, 2).pixels, batch_size=2)
    assert found.shape == (5, 3) and found.dtype == torch.float32 and len(net.curve("train_loss")) == 2


def size(png):
    """(height, width) of a PNG, and how many of its first rows are white."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
    return pixels.shape, int(np.flatnonzero((pixels < 250).any(1))[0])


def test_a_signature_takes_a_line_and_no_blank_band():
    z, images = np.eye(2), torch.rand(12, 1, 8, 8)
    for make in (lambda: figures.scatter_figure({"z": z}, [0, 1], ["a", "b"]),
                 lambda: figures.rows_figure({"original": images, "AE": images}),
                 lambda: figures.grid_figure({"a": images, "b": images}, 4),
                 lambda: figures.curves_figure({"loss": {"training": [3.0, 2], "held-out": [3.0, 2.5]}}, "nats")):
        (plain, _), (signed, white) = size(figures.png_bytes(make())), size(figures.png_bytes(make(), "by hand"))
        assert 0 < signed[0] - plain[0] < 30 and abs(signed[1] - plain[1]) < 30 and white < 20
        assert figures.png_bytes(make()) == figures.png_bytes(make()) != figures.png_bytes(make(), "by hand")


def test_a_gif_has_its_frames_and_durations():
    for signature in ("", "by hand"):
        frames = (figures.latent_frame(np.eye(3)[:, :2] * n, range(3), ["a", "b", "c"], 4, {
            "original": torch.rand(5, 1, 8, 8), "decoded": torch.rand(5, 1, 8, 8)}, f"epoch {n}") for n in (1, 2, 3))
        with Image.open(io.BytesIO(figures.gif_bytes(frames, signature))) as gif:
            shown = [gif.seek(i) or gif.info["duration"] for i in range(gif.n_frames)]
            assert shown == [200, 200, 2000] and gif.info["loop"] == 0 and gif.size == (440, 545 if signature else 530)
    assert figures.spread(range(3)) == [0, 1, 2] and len(figures.spread(range(999))) == figures.MAX_FRAMES
    assert figures.spread(range(999))[::59] == [0, 998]


def test_images_are_tiled_in_rows():
    tiles = figures.tiled(torch.zeros(5, 1, 4, 4), 3)
    assert tiles.shape == (11, 16, 3) and (tiles == 0).mean() == pytest.approx(5 * 16 / (11 * 16))
    assert figures.grid_figure({str(i): torch.rand(3, 3, 4, 4) for i in range(4)}, 3, 2).axes[3].get_title() == "3"
    names = figures.grid_figure(dict(zip("abcdefg", torch.rand(7, 1, 1, 4, 4))), 1, 5)
    assert [axes.get_title() for axes in names.axes] == [*"abcdefg", "", "", ""]


@pytest.mark.filterwarnings("error")
def test_names_of_classes_and_signatures_are_drawn_as_they_are():
    names, points = ["_a", "$b_^$", ""], np.eye(3)[:, :2]
    frame = figures.latent_frame(points, range(3), names, 1, {"a": torch.zeros(2, 1, 8, 8)}, "t")
    for figure in (figures.scatter_figure({"z": points}, range(3), names), frame):
        assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == names
        figures.png_bytes(figure, "$x_^$")


def test_curves_say_what_is_held_out_and_a_leap_in_the_first_epoch_does_not_flatten_them():
    later = [9.0, 8, 7, 6]
    for first, top in ((10.0, 10), (30.0, 30), (4e6, 9.9)):
        figure = figures.curves_figure({"loss": {"training AE": [first, *later], "held-out AE": [9, *later]},
                                        "KL": {"training": [1.0, 2], "VAE": [2.0, 1]}}, "nats")
        loss, kl = figure.axes
        assert loss.get_ylim()[1] == pytest.approx(top, rel=0.05) and loss.get_ylim()[0] == pytest.approx(6, rel=0.25)
        assert ("4e+06" in loss.get_xlabel()) is (first == 4e6) and kl.get_xlabel() == "epoch"
        assert (loss.get_ylabel(), kl.get_ylabel()) == ("nats", "nats")
        assert [line.get_linestyle() for line in loss.lines] == ["-", "--"]
        assert loss.lines[0].get_color() == loss.lines[1].get_color() and len({x.get_color() for x in kl.lines}) == 2


def test_numbers_are_written_with_their_spread():
    for value, text in ((162.0, "162.0"), (0.0472, "0.04720"), (12_345, "12,345"), (123456.0, "123,456"), (None, "–"),
                        (0.0, "0.000"), ({"mean": 1.5, "sd": 0.25}, "1.500 ± 0.25"),
                        ({"mean": 1.5, "sd": None}, "1.500"), ({"mean": None, "sd": None}, "–")):
        assert report.number(value) == text
    assert report.percent(0.5, [0.4, 0.6]) == "50.0 % (40.0 to 60.0)" and report.percent(0.123) == "12.3 %"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder of a report of all that one can hold, with wide tables, long words and letters that HTML knows."""
    folder, image = tmp_path_factory.mktemp("report") / "new", torch.rand(4, 3, 8, 8)
    pictures = [
        figures.picture("by <hand>", "rows", figures.rows_figure({"original": image}), 'four "images" <here> & more'),
        figures.picture("", "moving", [figures.grid_figure({"a": image})] * 2, "a GIF")]
    results = {"quick": True, "seeds": [0], "device": "cpu", "precision": "32-true", "command": "word" * 60, "data": {
        "source": ["a<b.npz"], "train": 48_000, "held_out": 12, "held_out_by": "its own", "classes": ["a"] * 99,
        "skipped": 2}, "settings": {"widths": [128, 64], "lr": 1e-3}, "versions": {"python": "3"}}
    table = report.Table("<numbers>", ["what", *["a long heading"] * 9], [["a<b", *range(9)], ["c" * 99, *"-" * 9]])
    sections = [report.Section("One", ["text"], [table], pictures)]
    said = report.write_study(folder, "A <title>", "12 images", sections, results, time.monotonic() - 60)
    assert said.endswith("2 figures; 2 images skipped")
    return folder


def test_a_report_is_whole_and_escapes_what_it_is_given(page):
    text, tags = read_page(page / "report.html")
    assert sorted(str(path.relative_to(page)) for path in page.rglob("*.*")) == [
        "figures/moving.gif", "figures/rows.png", "report.html", "results.json"]
    assert [(image["alt"], image["src"][:15]) for image in images_of(tags)] == [
        ('four "images" <here> & more', "data:image/png;"), ("a GIF", "data:image/gif;")]
    names = [tag for tag, _ in tags]
    assert "script" not in names and "http" not in text.replace("http-equiv", "")
    for tag in ("html", "head", "body", "header", "main", "section", "figure", "table", "tr", "td", "th", "p", "div"):
        assert names.count(tag) == text.count(f"</{tag}>") > 0, tag
    assert names.count("h1") == 1 and tags[names.index("html")][1]["lang"] == "en"
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    for shown in ("12 images, the quick version of the study.", "&lt;here&gt; &amp; more", "48000",
                  "A &lt;title&gt;</h1>"):
        assert shown in text
    assert json.loads((page / "results.json").read_text())["seconds"] >= 60


def test_a_report_opens_by_itself_in_a_browser_and_is_not_wider_than_it(page):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH (apt-get install chromium)")
    with playwright.sync_playwright() as session:
        browser, requests, troubles = session.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]), [], []
        tab = browser.new_page()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: troubles.append(message.text))
        for width in (400, 1200):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.goto((page / "report.html").as_uri())
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        assert [url for url in requests if not url.startswith("data:")] == [(page / "report.html").as_uri()] * 2
        assert troubles == []
        browser.close()


def test_words_and_data_that_are_not_taken_are_one_line_and_help_shows_an_example(capsys, tmp_path):
    np.save(str(tmp_path / "bare.npy"), np.random.default_rng(0).integers(255, size=(90, 8, 8), dtype=np.uint8))
    bare = [str(tmp_path / "bare.npy"), "--out", str(tmp_path), "--device", "cpu"]
    for words, word in (*(([name, *bare], "two classes, found 0") for name in (
        "autoencoder", "fashion", "representations")),
                        (["gan", *bare], "at least 50 images to hold out, found 18"),
                        (["none"], "invalid choice: 'none'"), (["autoencoder", "x"], "--out"),
                        (["autoencoder", "x", "--out", "y", "--nope"], "unrecognized arguments: --nope"),
                        (["autoencoder", "x", "--out", "y", "--seeds", "0"], "expected 1 or more, found 0"),
                        (["autoencoder", "x", "--out", "y", "--epochs", "x"], "invalid"),
                        (["autoencoder", "x", "--out", "y", "--variant", "x"], "bce"),
                        (["autoencoder", "x", "--out", "y", "--strategy", "ddp_spawn"], "'auto', 'ddp'"),
                        (["autoencoder", "none.npz", "--out", "y"], "none.npz: expected")):
        assert command.main(words) == 2
        error = capsys.readouterr().err
        assert word in error and error.count("\n") == 1, error
    assert command.main([]) == 2 and "autoencoder" in capsys.readouterr().err
    for words, word in ((["--help"], "autoencoder"), (["autoencoder", "--help"], autoencoder.EXAMPLE)):
        with pytest.raises(SystemExit) as ended:
            command.main(words)
        assert ended.value.code == 0 and word in capsys.readouterr().out


def test_two_processes_that_fail_end_with_one_line(draw, tmp_path, environment):
    source, quick = small_studies.write_drawn(draw, tmp_path), {"feature_steps": 1, "epochs": 2, "lr": 1e30}
    process = small_studies.process(quick, "autoencoder", source, tmp_path, environment, "--devices", "2")
    lines = process.communicate(timeout=600)[1].splitlines()  # when no process is left that could write more
    assert process.returncode == 2 and len(lines) == 2 and "features: epoch 2/2" in lines[0], lines
    assert lines[1].startswith("ae_described_seed0: expected losses that are numbers, found")
