"""Study 4, gan: from the command line to the report."""
import html
import io
import json
import math
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pages import images_of, read_page
from PIL import Image
from torch import nn

from studies import __main__ as command
from studies import data, engine, figures, gan, metrics, report

ROOT = Path(__file__).resolve().parent.parent
TINY = {"side": 16, "width": 8, "measure_every": 2, "feature_steps": 6, "diversity_images": 20}
PICTURES = {"losses.png", "discriminator.png", "measured.png", "samples.png", "through_time.gif", "neighbours.png"}
SCRIPT = """
import sys
from studies import __main__ as command, gan
gan.QUICK = {tiny}
command.STUDIES.setdefault("gan", "")
sys.exit(command.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def unlabelled(draw, tmp_path_factory):
    """280 drawn images without labels, .npy."""
    path = tmp_path_factory.mktemp("images") / "images.npy"
    np.save(str(path), draw(np.arange(280) % 4, 9))
    return path


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """The study for 16 px."""
    patch = pytest.MonkeyPatch()
    patch.setitem(command.STUDIES, "gan", command.STUDIES.get("gan", ""))
    patch.setattr(gan, "QUICK", TINY)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def studied(unlabelled, tiny, tmp_path_factory):
    """The whole study in this process, two seeds."""
    folder = tmp_path_factory.mktemp("study") / "out"
    words = ["gan", str(unlabelled), "--out", str(folder), "--quick", "--epochs", "3", "--device", "cpu"]
    code = command.main([*words, "--seeds", "2", "--signature", "drawn for a test"])
    return types.SimpleNamespace(folder=folder, code=code, words=words,
                                 results=json.loads((folder / "results.json").read_text()))


# ------------------------------------------------------------------------------------------------------------- numerics

def test_the_networks_are_those_of_the_description():
    settings = gan.Settings()
    assert (settings.noise, settings.rate, settings.betas, settings.batch, settings.epochs, settings.side) == (
        100, 2e-4, (0.5, 0.999), 64, 100, 64)
    with engine.seeded(0):
        generator, discriminator = gan.Generator(settings), gan.Discriminator(settings)
    # the counts of the well-known implementation without any bias, and ours at the images' ends
    assert sum(p.numel() for p in generator.parameters()) == 3_576_704 + 3
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_568 + 64 + 1
    shapes, x = [], torch.randn(2, 100)
    for layer in generator.body:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(512, 4, 4), (256, 8, 8), (128, 16, 16), (64, 32, 32)] and x.shape == (2, 3, 64, 64)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in [*generator.body[-2:], *discriminator.body[:2]])
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in discriminator.body) == 3
    assert {layer.negative_slope for layer in discriminator.body if isinstance(layer, nn.LeakyReLU)} == {0.2}
    for part in [*generator.modules(), *discriminator.modules()]:
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            assert part.weight.mean().abs() < 2e-3 and part.weight.std().item() == pytest.approx(0.02, rel=0.05)
        if isinstance(part, nn.BatchNorm2d):
            assert part.weight.mean().item() == pytest.approx(1, abs=0.01) and 0.01 < part.weight.std() < 0.03
        assert getattr(part, "bias", None) is None or not part.bias.any()
    with torch.no_grad():
        images = generator(torch.randn(4, 100))
    assert 0 <= images.min() and images.max() <= 1 and discriminator(images).shape == (4,)


def test_the_losses_are_the_binary_cross_entropies():
    real, fake = torch.randn(2, 9, generator=engine.generator(0))
    expected = (F.binary_cross_entropy_with_logits(real, torch.ones(9))
                + F.binary_cross_entropy_with_logits(fake, torch.zeros(9)))
    assert gan.discriminator_loss(real, fake).item() == pytest.approx(expected.item(), rel=1e-6)
    expected = F.binary_cross_entropy_with_logits(fake, torch.ones(9))
    assert gan.generator_loss(fake).item() == pytest.approx(expected.item(), rel=1e-6)
    assert gan.discriminator_loss(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(2 * math.log(2))


class _Wrapped(nn.Module):
    """As Fabric wraps a module."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def test_an_update_steps_the_discriminator_and_then_the_generator_against_it():
    class Generator(nn.Module):
        noise = 1

        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(0.5))

        def forward(self, noise):
            return noise + self.shift

    class Discriminator(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.slope * x[:, 0]

    modules = {"generator": _Wrapped(Generator()), "discriminator": _Wrapped(Discriminator())}
    optimizers = {name: torch.optim.SGD(module.parameters(), 0.1) for name, module in modules.items()}
    batch = types.SimpleNamespace(x=torch.tensor([[3.0]]), normal=lambda n: torch.tensor([[1.0]]))
    losses = gan.update(modules, optimizers, batch, lambda loss: loss.backward())
    # D(x) = sigmoid(2 * 3), D(G(z)) = sigmoid(2 * 1.5); d loss / d slope = -3 (1 - D(x)) + 1.5 D(G(z))
    real, fake = torch.tensor([6.0, 3.0]).sigmoid().tolist()
    slope = 2 - 0.1 * (-3 * (1 - real) + 1.5 * fake)
    assert losses["real"].item() == pytest.approx(real) and losses["fake"].item() == pytest.approx(fake)
    assert losses["discriminator"].item() == pytest.approx(-math.log(real) - math.log(1 - fake), rel=1e-5)
    assert modules["discriminator"].module.slope.item() == pytest.approx(slope)
    # the generator meets the new slope: d(-log D(G(z))) / d shift = -slope (1 - D(G(z)))
    judged = torch.tensor(1.5 * slope).sigmoid().item()
    assert losses["generator"].item() == pytest.approx(-math.log(judged), rel=1e-5)
    assert modules["generator"].module.shift.item() == pytest.approx(0.5 + 0.1 * slope * (1 - judged))
    assert modules["discriminator"].module.slope.requires_grad


def test_the_nearest_are_those_of_a_search_through_all():
    x, y = torch.randn(7, 2, 3, generator=engine.generator(1)), torch.randn(2300, 2, 3, generator=engine.generator(2))
    every = (x.flatten(1)[:, None] - y.flatten(1)[None]).double().norm(dim=2)
    distances, index = metrics.nearest(x, y, 3)
    assert torch.equal(index, every.argsort(1)[:, :3]) and torch.allclose(distances, every.sort(1).values[:, :3])
    black, white = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert metrics.nearest(black, white)[0].item() == pytest.approx(math.sqrt(12))
    assert metrics.nearest(x, y[:2], 3)[0].shape == (7, 2)


def test_precision_and_recall_agree_with_values_worked_by_hand():
    real = torch.tensor([[0.0], [1], [3], [10]])    # radii to the nearest other: 1, 1, 2, 7
    fake = torch.tensor([[0.5], [4.5], [-1.5], [30]])  # radii: 2, 4, 2, 25.5
    # 0.5 and 4.5 lie in real balls, -1.5 and 30 do not; of the real ones 10 lies in the ball of 30, the others near 0.5
    # and 4.5
    assert metrics.precision_recall(real, fake, 1) == (0.5, 1.0)
    assert metrics.precision_recall(real, real[:2], 1) == (1.0, 0.5)
    assert metrics.precision_recall(real, real, 3) == (1.0, 1.0)


def test_copies_of_training_images_are_told_from_new_ones():
    trained, held, new = (torch.rand(100, 3, 4, 4, generator=engine.generator(i)) for i in range(3))
    copies, index = metrics.copying(trained[:50], held, trained)
    assert copies["closer"] == 1 and copies["ratio"] == 0 and copies["interval"][0] > 0.9
    assert index.shape == (50, 3) and torch.equal(index[:, 0], torch.arange(50))
    fresh, _ = metrics.copying(new, held, trained)
    assert fresh["closer"] < 0.1 and fresh["ratio"] == pytest.approx(1, abs=0.1)
    # of six held-out points those at the even positions set the distance, 1; of the others 0.5 and 1 are within it
    line = torch.tensor([[1.0], [0.5], [1], [1], [9], [7]])
    found, _ = metrics.copying(torch.tensor([[1.0], [2], [3], [4]]), line, torch.zeros(1, 1))
    assert (found["closer"], found["real"], found["ratio"]) == (0.25, 2 / 3, 2.0)
    assert found["real_interval"] == metrics.wilson_interval(2, 3)


def test_equal_distributions_are_seldom_told_apart_and_copies_among_them_are():
    said, copies = [], []
    for draw in range(300):
        drawn, held, trained = torch.rand(3, 120, 2, generator=engine.generator(5, draw))
        for found, words in ((drawn, said), (torch.cat([drawn[:80], trained[:40]]), copies)):
            numbers, _ = metrics.copying(found, held, trained)
            words.append(gan.more_or_fewer(numbers["interval"], numbers["real_interval"]))
    assert said.count("more") < 0.05 * 300 and said.count("fewer") < 0.05 * 300
    assert copies.count("more") > 0.95 * 300


def test_more_or_fewer_is_said_where_the_intervals_do_not_meet():
    assert gan.more_or_fewer([0.3, 0.4], [0.1, 0.2]) == "more"
    assert gan.more_or_fewer([0.1, 0.2], [0.3, 0.4]) == "fewer"
    assert gan.more_or_fewer([0.1, 0.3], [0.2, 0.4]) == "not surely more or fewer"


def test_held_out_images_come_before_training_images_and_as_many():
    train, test = (data.Images(torch.full((n, 3, 2, 2), value, dtype=torch.uint8), None, [], [])
                   for n, value in ((9, 1), (5, 2)))
    held, trained = gan.compared(train, test, 0)
    assert held.shape == trained.shape == (5, 3, 2, 2) and (held == 2).all() and (trained == 1).all()


def test_a_classifier_near_guessing_is_said_to_decide_little():
    judge = {"what": "the 2 classes", "epochs": 7, "train_accuracy": 0.9, "accuracy": 0.74, "interval": [0.7, 0.78]}
    weak = gan._judge_text(judge, 0.5)
    assert "after 7 epochs 74.0 % (70.0 to 78.0) right" in weak and "90.0 % on those it learnt from" in weak
    assert "decide little" in weak and "decide little" not in gan._judge_text({**judge, "accuracy": 0.76}, 0.5)


def test_a_collapse_is_told_from_the_epoch_it_lasts_from():
    settings, real = gan.Settings(), {"diversity": 10.0, "recall": 0.8}
    sound, same, narrow = (9.0, 0.5), (4.9, 0.5), (9.0, 0.07)

    def told(*numbers, losses=(1.0,)):
        rows = [{"epoch": 5 * i, "diversity": d, "recall": r} for i, (d, r) in enumerate(numbers, 1)]
        history = [{"epoch": i, "train": {"discriminator": loss}} for i, loss in enumerate(losses, 1)]
        return gan.verdict(rows, history, real, settings)

    assert told(sound, sound)["since"] is None and "no sign at 2 measured" in told(sound, sound)["text"]
    passed = told(narrow, sound, same, sound)
    assert passed["since"] is None and (passed["unlearnt"], passed["epochs"]) == ([5], [15])
    assert "no sign in the end; signs at 1 of 4 measured epochs, the last of them epoch 15" in passed["text"]
    assert "not learnt yet at 1 before epoch 10" in passed["text"]
    found = told(same, sound, same, narrow)
    assert found["since"] == 15 and "from epoch 15 to the last, by diversity and recall" in found["text"]
    learnt = told(same, narrow, sound)
    assert learnt["since"] is None and (learnt["unlearnt"], learnt["epochs"]) == ([5, 10], [])
    assert "no sign at 1 measured epochs; not learnt yet at 2 before epoch 15." in learnt["text"]
    never = told(narrow, same)
    assert (never["since"], never["unlearnt"], never["epochs"]) == (None, [], [])
    assert ("no measured epoch is free of signs: too little learnt to tell, or collapsed from the start; "
            "by diversity and recall.") in never["text"]
    won = told(sound, losses=(0.5, 0.05, 0.2, 0.01))
    assert won["won"] == [2, 4] and "in 2 of 4 epochs, first in epoch 2" in won["text"]
    assert "below 50 % of" in gan.criterion(settings) and "below 10 % of" in gan.criterion(settings)


# -------------------------------------------------------------------------------------------------------------- figures

def test_a_sheet_keeps_every_pixel_and_measured_panels_their_place():
    images = torch.rand(4, 3, 5, 5, generator=engine.generator(3)).mul(255).round() / 255
    with Image.open(io.BytesIO(figures.sheet_png({"a": images, "b": images}, 2, "by hand"))) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (12 + 44, 2 * 12 + 16, 3)
    assert np.array_equal(pixels[22:27, 7:12], (images[1] * 255).permute(1, 2, 0).numpy().astype(np.uint8))
    assert np.array_equal(pixels[22:34, :12], pixels[22:34, 28:])
    panel = ("m", {"a": ([5, 10], [1.0, 2.0])}, {"a": 3.0}, "real ones")
    figure = figures.measured_figure({"one": panel, "two": panel, "three": panel})
    assert len(figure.axes) == 3 and figure.axes[0].lines[0].get_xdata().tolist() == [5, 10]
    assert list(figure.axes[0].lines[1].get_ydata()) == [3.0, 3.0]


# ------------------------------------------------------------------------------------------------------------ the study

def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    found = studied.results
    assert studied.code == 0 and found["seeds"] == [0, 1]
    assert found["data"]["train"] == 224 and found["data"]["held_out"] == found["real"]["images"] == 56
    assert "turns" in found["features"]["what"] and found["guessing"] == 0.25
    for seed in "01":
        assert [row["epoch"] for row in found["measured"][seed]] == [2, 3]
        assert [row["epoch"] for row in found["history"][seed]] == [1, 2, 3] and len(found["judged"][seed]) == 3
        assert set(found["history"][seed][0]["train"]) == {"discriminator", "generator", "real", "fake"}
        assert "collapse: " in found["collapse"][seed]["text"]
    numbers = found["numbers"]
    assert {"fid", "precision", "recall", "diversity", "sharpness", "pixels_ratio", "features_closer"} <= set(numbers)
    assert 0 <= found["real"]["fid"] < numbers["fid"]["mean"]
    copying = found["copying"]
    assert {f"features_{key}" for key in ("ratio", "closer", "interval", "real", "real_interval")} <= set(copying)
    assert found["real"]["features_closer"] == copying["features_real"]
    assert numbers["features_closer"]["values"][0] == copying["features_closer"]
    assert {path.name for path in (studied.folder / "figures").iterdir()} == PICTURES
    for name in PICTURES:
        with Image.open(str(studied.folder / "figures" / name)) as image:
            assert np.asarray(image.convert("L")).std() > 5, name
            assert getattr(image, "n_frames", 1) == (3 if name.endswith("gif") else 1)
    assert not list(studied.folder.rglob("*.tmp"))


def test_the_report_holds_every_picture_and_says_what_was_found(studied):
    text, tags = read_page(studied.folder / "report.html")
    assert len(images_of(tags)) == len(PICTURES) and all(len(image["alt"]) > 40 for image in images_of(tags))
    copying = studied.results["copying"]
    for words in (studied.results["criterion"], "mean ± standard deviation of 2 seeds", "56 held-out images",
                  "diversity by the first 20 of each", f"after {studied.results['features']['epochs']} epochs",
                  gan.more_or_fewer(copying["pixels_interval"], copying["pixels_real_interval"]) + " than of held-out",
                  f"held-out {report.number(copying['pixels_real'])}",
                  *(f"Seed {seed}: {studied.results['collapse'][str(seed)]['text']}" for seed in (0, 1))):
        assert html.escape(words) in text, words


def _stopping(watch, last):
    """gan._watch, interrupted when the epoch `last` has been trained."""
    def stop(modules, epoch, *rest):
        if epoch == last:
            raise KeyboardInterrupt
        return watch(modules, epoch, *rest)
    return stop


def test_a_resumed_study_gives_the_numbers_of_an_uninterrupted_one(studied, unlabelled, tmp_path, monkeypatch):
    words = ["gan", str(unlabelled), "--out", str(tmp_path), "--quick", "--epochs", "3", "--device", "cpu"]
    watch = gan._watch
    monkeypatch.setattr(gan, "_watch", _stopping(watch, 2))
    assert command.main(words) == 130
    monkeypatch.setattr(gan, "_watch", watch)
    assert command.main([*words, "--resume"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["measured"]["0"] == studied.results["measured"]["0"]
    assert found["judged"]["0"] == studied.results["judged"]["0"]
    frames = [folder / "figures/samples.png" for folder in (tmp_path, studied.folder)]
    with Image.open(str(frames[0])) as one, Image.open(str(frames[1])) as other:
        assert np.array_equal(np.asarray(one), np.asarray(other)[:-22])  # the other is signed
    monkeypatch.setattr(gan, "update", None)  # a finished study is not trained again
    assert command.main([*words, "--resume"]) == 0
    monkeypatch.setattr(gan, "QUICK", {**TINY, "slope": 0.1})
    assert command.main([*words, "--resume"]) == 2


def test_a_study_resumed_to_end_on_an_epoch_not_measured_measures_it(studied, unlabelled, tmp_path, monkeypatch):
    words = ["gan", str(unlabelled), "--out", str(tmp_path), "--quick", "--device", "cpu"]
    monkeypatch.setattr(gan, "_watch", _stopping(gan._watch, 4))
    assert command.main([*words, "--epochs", "5"]) == 130
    assert command.main([*words, "--epochs", "3", "--resume"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["measured"]["0"] == studied.results["measured"]["0"]


def test_two_processes_give_the_losses_of_one(studied, unlabelled, tmp_path, environment):
    (tmp_path / "study.py").write_text(SCRIPT.format(tiny=TINY))
    words = ["gan", str(unlabelled), "--out", str(tmp_path / "two"), "--quick", "--epochs", "2", "--device", "cpu"]
    found = subprocess.run([sys.executable, str(tmp_path / "study.py"), *words, "--devices", "2"], cwd=str(tmp_path),
                           env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=200)
    assert found.returncode == 0, found.stderr[-2000:]
    assert found.stdout.count("wrote") == 1 and "Traceback" not in found.stderr
    history = json.loads((tmp_path / "two/results.json").read_text())["history"]["0"]
    for two, one in zip(history, studied.results["history"]["0"]):
        assert two["train"] == pytest.approx(one["train"], rel=1e-3), one["epoch"]


def test_bad_input_gives_one_line_and_exit_code_2(unlabelled, tmp_path, capsys):
    np.save(str(tmp_path / "few.npy"), np.zeros((9, 28, 28), np.uint8))
    for words, expected in (([tmp_path / "none"], "nothing there"), ([tmp_path / "few.npy"], "at least 50"),
                            ([unlabelled, "--inception", tmp_path / "no.pt"], "no.pt: expected")):
        assert command.main(["gan", *map(str, words), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1 and "expected" in error


def test_inception_features_add_a_row(studied, monkeypatch, tmp_path):
    """With a stand-in for the network; the trained one of the study is taken up."""
    shutil.copytree(str(studied.folder), str(tmp_path / "out"))
    asked, words = [], [str(tmp_path / "out") if word == str(studied.folder) else word for word in studied.words]
    monkeypatch.setattr(metrics, "inception_features", lambda *given: asked.append(given) or (
        lambda images: images.flatten(1)[:, ::97].float()))
    assert command.main([*words, "--resume", "--inception", "weights.pth"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert asked == [("weights.pth",), ("weights.pth", torch.device("cpu"))]
    assert found["numbers"]["inception_fid"]["mean"] > found["real"]["inception_fid"] > 0
