"""Study 4, gan: the networks, a step by hand, the conclusions, from the command line to the report."""
import itertools
import math
import types

import numpy as np
import pytest
import small_studies
import torch
from PIL import Image
from small_studies import texts
from torch import nn

from studies import data, gan, metrics, sampling, training

TINY = {"side": 16, "width": 8, "measure_every": 2, "feature_steps": 20}
WORDS, VARIANTS = ("--epochs", "3", "--variant", "dcgan"), ("described", "dcgan")


@pytest.fixture(scope="module")
def paintings(draw, tmp_path_factory):
    """280 drawn images without labels, .npy, in three colours."""
    path, grey = tmp_path_factory.mktemp("images") / "images.npy", draw(np.arange(280) % 4, 9)
    np.save(str(path), np.stack([grey, np.roll(grey, 3, 1), 255 - grey], 3))
    return path


@pytest.fixture(scope="module")
def studied(paintings, tmp_path_factory):
    """The whole study in this process, two seeds and both variants."""
    return small_studies.studied(TINY, "gan", paintings, tmp_path_factory.mktemp("study"), *WORDS, "--seeds", "2",
                                 "--signature", "drawn for a test")


def _settings(**changes):
    return gan.Settings(**{**TINY, **changes})


def test_the_networks_are_those_of_the_description():
    assert gan.Settings() == gan.Settings(lr=2e-4, betas=(0.5, 0.999), batch_size=64, epochs=100)
    torch.manual_seed(0)
    model = gan.GAN(gan.Settings())
    assert texts(model.generator) == texts([nn.Linear(100, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(), nn.Linear(
        512, 3 * 64 * 64), nn.Tanh(), nn.Unflatten(1, (3, 64, 64))])
    kinds = {type(layer) for layer in model.discriminator}
    assert kinds == {nn.Conv2d, nn.LeakyReLU, nn.Flatten, nn.Linear}
    assert all(layer.stride == (2, 2) for layer in model.discriminator if isinstance(layer, nn.Conv2d))
    dcgan = gan.GAN(gan.Settings(**gan.VARIANTS["dcgan"]))  # the well-known network, with biases at the images' ends
    assert sum(p.numel() for p in dcgan.generator.parameters()) == 3_576_704 + 3
    assert sum(p.numel() for p in dcgan.discriminator.parameters()) == 2_765_568 + 64 + 1
    for network in (model, dcgan):
        images = network.decode(torch.randn(2, 100))
        assert images.shape == (2, 3, 64, 64) and 0 <= images.min() and images.max() <= 1
        assert network.discriminator(images).shape == (2, 1)
        for part in network.modules():
            if getattr(part, "weight", None) is not None:
                norm = isinstance(part, nn.BatchNorm2d)
                assert part.weight.mean().item() == pytest.approx(float(norm), abs=0.01)
                assert part.weight.std().item() == pytest.approx(0.02, rel=0.3 if norm else 0.05)
                assert part.bias is None or not part.bias.any()


def test_a_step_moves_the_discriminator_then_the_generator_against_it(tmp_path):
    """One number each: G(z) = a, D(x) = sigmoid(b x), plain gradient steps of 0.1."""
    model, line, seen = gan.GAN(_settings()), nn.Linear(1, 1, bias=False), []
    model.generator, model.discriminator = nn.Linear(100, 1), nn.Sequential(nn.Flatten(), line)
    a, b = model.generator.bias, line.weight
    for weights, value in ((model.generator.weight, 0.0), (a, 1.5), (b, 2.0)):
        nn.init.constant_(weights, value)

    def step(optimizer, loss, step=model._step):
        step(optimizer, loss)
        seen.append((loss.item(), a.item(), b.item()))

    model._step = step
    model.configure_optimizers = lambda: [torch.optim.SGD([weights], 0.1) for weights in (a, b)]
    white = data.Images(torch.full((8, 1, 1, 1), 255, dtype=torch.uint8), -torch.ones(8), [], [])
    training.Run(tmp_path, "cpu", threads=1).fit("known", model, white, epochs=1, batch_size=8)
    (d_loss, a_then, b_then), (g_loss, a_now, b_now) = seen
    # D(x) = sigmoid(2 * 1), D(G(z)) = sigmoid(2 * 1.5); d loss / d b = -1 (1 - D(x)) + 1.5 D(G(z))
    real, fake = torch.tensor([2.0, 3.0]).sigmoid().tolist()
    assert d_loss == pytest.approx(-math.log(real) - math.log(1 - fake), rel=1e-5)
    assert (a_then, b_then) == (1.5, pytest.approx(2 - 0.1 * (-(1 - real) + 1.5 * fake)))
    # the generator meets the new slope: d(-log D(G(z))) / d a = -b (1 - D(G(z)))
    fake = torch.tensor(1.5 * b_then).sigmoid().item()
    assert g_loss == pytest.approx(-math.log(fake), rel=1e-5)
    assert (a_now, b_now) == (pytest.approx(1.5 + 0.1 * b_then * (1 - fake)), b_then)
    assert b.requires_grad and model.history[0]["train_generator"] == pytest.approx(g_loss)


@pytest.mark.parametrize("tells", (True, False))
def test_features_are_used_where_they_tell_the_controls_from_images(paintings, tells):
    train, test, _ = data.read_split([paintings], 16, 3)
    study = types.SimpleNamespace(train=train, test=test, args=types.SimpleNamespace(seed=0),
                                  variants={"described": _settings()})

    def extract(images):
        x = images.float() / 255
        edges = (x[..., 1:] - x[..., :-1]).square().mean((1, 2, 3)), (x[..., 2:] - x[..., :-2]).square().mean((1, 2, 3))
        return torch.stack(edges, 1).sqrt() if tells else torch.arange(len(x))[:, None].float()

    reference = gan.Reference(study, extract)
    assert reference.reliable is tells and list(reference.controls)[0] == "training images"
    precisions = [each["precision"] for each in reference.controls.values()]
    assert len(precisions) == 4 and (max(precisions[1:]) < 0.5 * precisions[0]) is tells
    found = reference.measure(reference.trained)
    assert list(found) == list(gan.MEASURES) and found["diversity"] > 1 and found["sharpness"] > 0
    red_and_grey = torch.tensor([[[[255, 100]], [[0, 100]], [[51, 100]]]] * 2, dtype=torch.uint8).repeat(1, 1, 4, 2)
    assert reference.measure(red_and_grey)["chroma"] == pytest.approx(0.5)
    assert [found[name] is None for name in ("fid", "precision", "recall")] == [not tells] * 3


AGREES = [3.0, 2, 1, 2] * 5 + [0.9, 1.2, 0.8, 1.3, 0.9], [1.0, 1.3, 0.9, 1.1, 1] + [1.2, 1.22] * 10
STEADY, SWINGING = [1.0] * 25, [0.2, 2.0] * 12 + [0.2]


def _judged(losses=AGREES, weak=False, **changes):
    """(verdicts, what is found) on a model that agrees with the document in all but its losses or measures."""
    curves = dict(zip(("train_generator", "train_discriminator"), losses))
    row = {"fid": 40.0, "precision": 0.6, "recall": 0.5, "diversity": 30.0, "sharpness": 0.2, "chroma": 0.1}
    measured = [{"epoch": 5, **row, "fid": 90.0}, {"epoch": 25, **row, **changes}]
    numbers = metrics.summarise([gan.measure_model(types.SimpleNamespace(curve=curves.get, seconds=1.0),
                                                   types.SimpleNamespace(measured=measured))])
    real = {"fid": 1.0, "precision": 0.7, "recall": 0.7, "diversity": 40.0, "sharpness": 0.1, "chroma": 0.15}
    claims = gan.conclusions(types.SimpleNamespace(variants=["described"]), None, {
        "numbers": {"described": numbers}, "features": {"weak": weak}, "real": real})
    return [claim.agrees for claim in claims], [claim.found for claim in claims]


def test_the_documents_conclusions_are_judged_by_the_numbers():
    verdicts, found = _judged()
    assert verdicts == [True] * 5
    assert found[0] == "Generator loss 2.20 in the first fifth of epochs, 1.02 in the last."
    assert found[1].startswith("Discriminator loss 1.21 in the last fifth of epochs, relative standard deviation 0.008")
    assert "(training images 40.0), recall 0.500 (training images 0.700)" in found[2]
    assert found[4] == "FID 90.0 when first measured, 40.0 last."


@pytest.mark.parametrize(("changes", "expected"), [
    ({"fid": 200.0}, [True, True, True, True, False]),
    ({"recall": 0.1}, [True, True, False, True, True]),  # collapsed
    ({"diversity": 9.0}, [True, True, False, True, True]),
    ({"chroma": 0.01}, [True, True, True, False, True]),  # grey
    ({"precision": 0.0}, [True, True, True, False, True]),  # unlike the data
    ({"sharpness": 0.001}, [True, True, True, False, True]),  # blurred
    (dict.fromkeys(("fid", "precision", "recall")), [True, True, None, None, None]),
    ({"weak": True}, [True, True, True, True, None]),
    ({"losses": (STEADY, STEADY)}, [None, True, False, True, True]),
    ({"losses": (list(range(1, 26)), SWINGING)}, [False, False, False, True, True]),
    ({"losses": ([2.0, 1.0], [1.0, 1.0])}, [True, None, None, True, True]),  # too short
    ({"losses": ([2.0], [1.0])}, [None, None, None, True, True])])
def test_each_measure_decides_on_its_conclusions(changes, expected):
    assert _judged(**changes)[0] == expected


def test_checkpoints_keep_settings_and_last_frame_and_are_sampled(studied, tmp_path):
    assert set(studied.models) == {"features", *(f"gan_{variant}_seed{i}" for variant in VARIANTS for i in (0, 1))}
    for variant, seed in itertools.product(VARIANTS, (0, 1)):
        path = studied.folder / f"checkpoints/gan_{variant}_seed{seed}.ckpt"
        model, kept = studied.models[path.stem], torch.load(str(path), weights_only=True)["callbacks"]["SampleCallback"]
        assert model.settings == _settings(**{**gan.QUICK, **TINY, "epochs": 3, "convolutional": variant == "dcgan"})
        assert model.latent == 100 and torch.equal(model.samples(64, seed)[:16], kept["frames"][-1])
    sampling.main("sample", [str(path), "--out", str(tmp_path / "a.png"), "--n", "9"])
    with Image.open(str(tmp_path / "a.png")) as image:
        assert min(image.size) > 3 * 16


def test_the_frames_of_the_gif_are_dense_where_the_training_starts(studied, paintings, monkeypatch):
    monkeypatch.setattr(gan.figures, "grid_figure", lambda groups, *_, title="", **__: title)
    (train, test, _), model, made = data.read_split([paintings], 8, 3), gan.GAN(_settings(side=8)), {}
    model.history = [{"train_generator": 1.0, "train_discriminator": 1.0}] * 100
    callback = types.SimpleNamespace(frames=torch.zeros(100, 16, 3, 8, 8),
                                     measured=studied.results["measured"]["described 0"])
    study = types.SimpleNamespace(train=train, test=test, args=types.SimpleNamespace(seed=0),
                                  variants={"described": None}, settings=_settings(epochs=100))
    gan.pictures(study, {"models": {("described", 0): (model, callback)}}, studied.results,
                 lambda name, figure, *_: made.update({name: figure}))
    shown = [int(title.split("epoch ")[1]) for title in made["evolution"]]
    steps = np.diff(shown)
    assert shown[:5] == [1, 2, 3, 4, 5] and shown[-1] == 100 and 20 < len(shown) <= 40
    assert steps[-1] > 5 and (np.diff(steps) >= -1).all()


def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    found, tell = studied.results, studied.results["features_reliable"]
    assert found["data"]["train"] == 224 and found["data"]["held_out"] == found["real"]["images"] == 56
    assert "transformations" in found["features"]["task"] and found["features"]["guessing"] == 1 / 8
    for variant in VARIANTS:
        numbers = found["numbers"][variant]
        assert (numbers["fid"]["mean"] is None) is not tell and numbers["diversity"]["sd"] > 0
        for seed in (0, 1):
            assert [row["epoch"] for row in found["measured"][f"{variant} {seed}"]] == [2, 3]
            history = found["history"][f"{variant} {seed}"]
            assert [row["epoch"] for row in history] == [1, 2, 3] and history[0]["train_discriminator"] > 0
    assert studied.figures == {
        "losses.png", "samples.png", "evolution.gif", "measured_diversity.png", "neighbours_described.png",
        "neighbours_dcgan.png", *["measured_fid.png"] * tell}
    with Image.open(str(studied.folder / "figures/evolution.gif")) as image:
        assert image.n_frames == 3
    assert "too short to judge the pictures" in studied.text and "images of images.npy" in studied.text
    assert ("not reported" in studied.text) is not tell
    told = [claim["found"] for claim in found["conclusions"]]
    assert len(told) == 10 and told[5].startswith("dcgan: ")
    for i, claim in enumerate(told):  # in the table, and below the figure that it is about
        assert studied.text.count(claim) == 1 + (i % 5 < 4 or tell)


def test_two_processes_train_and_leave_together(studied, paintings, tmp_path, environment):
    two, one = small_studies.two_processes(TINY, "gan", paintings, tmp_path, environment, *WORDS), studied.results
    for variant in VARIANTS:
        for a, b in zip(two["history"][f"{variant} 0"], one["history"][f"{variant} 0"]):
            assert a["train_discriminator"] == pytest.approx(b["train_discriminator"], rel=0.2)  # noise of its own
