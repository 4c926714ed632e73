"""Study 4, gan: the networks, a step by hand, the conclusions, from the command line to the report."""
import html
import json
import math
import types

import numpy as np
import pytest
import small_studies
import torch
from PIL import Image
from torch import nn

from studies import data, gan, metrics, sampling, training

TINY = {"side": 16, "width": 8, "measure_every": 2, "feature_steps": 20}
VARIANTS = ("described", "dcgan")


@pytest.fixture(scope="module")
def paintings(draw, tmp_path_factory):
    """280 drawn images without labels, .npy, in three colours."""
    path, grey = tmp_path_factory.mktemp("images") / "images.npy", draw(np.arange(280) % 4, 9)
    np.save(str(path), np.stack([grey, np.roll(grey, 3, 1), 255 - grey], 3))
    return path


def _study(source, folder, *words):
    """The exit code of the whole study in this process, three epochs, both variants."""
    return small_studies.study(TINY, "gan", source, folder, "--epochs", "3", "--variant", "dcgan", *words)[0]


@pytest.fixture(scope="module")
def studied(paintings, tmp_path_factory):
    """What the study of two seeds leaves."""
    folder = tmp_path_factory.mktemp("study")
    code = _study(paintings, folder, "--seeds", "2", "--signature", "drawn for a test")
    return types.SimpleNamespace(code=code, folder=folder, **vars(small_studies.left(folder)))


def _settings(**changes):
    return gan.Settings(**{**TINY, **changes})


def test_the_networks_are_those_of_the_description():
    settings = gan.Settings()
    assert (settings.lr, settings.betas, settings.batch_size, settings.epochs) == (2e-4, (0.5, 0.999), 64, 100)
    model = gan.GAN(settings)
    kinds = [type(layer) for layer in model.generator]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear, nn.Tanh, nn.Unflatten]
    assert [(part.in_features, part.out_features) for part in model.generator if isinstance(part, nn.Linear)] == [
        (100, 256), (256, 512), (512, 3 * 64 * 64)]
    kinds = {type(layer) for layer in model.discriminator}
    assert kinds == {nn.Conv2d, nn.LeakyReLU, nn.Flatten, nn.Linear}
    assert all(layer.stride == (2, 2) for layer in model.discriminator if isinstance(layer, nn.Conv2d))
    images = model.decode(torch.randn(2, 100))
    assert images.shape == (2, 3, 64, 64) and 0 <= images.min() and images.max() <= 1
    assert model.discriminator(images).shape == (2, 1)


def test_the_variant_is_the_well_known_network():
    model = gan.GAN(gan.Settings(**gan.VARIANTS["dcgan"]))  # has biases at the images' ends
    assert sum(p.numel() for p in model.generator.parameters()) == 3_576_704 + 3
    assert sum(p.numel() for p in model.discriminator.parameters()) == 2_765_568 + 64 + 1
    assert model.decode(torch.randn(2, 100)).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_are_drawn_from_a_normal_distribution(variant):
    for part in gan.GAN(gan.Settings(convolutional=variant == "dcgan")).modules():
        if getattr(part, "weight", None) is not None:
            norm = isinstance(part, nn.BatchNorm2d)
            assert part.weight.mean().item() == pytest.approx(float(norm), abs=0.01)
            assert part.weight.std().item() == pytest.approx(0.02, rel=0.3 if norm else 0.05)
            assert part.bias is None or not part.bias.any()


def test_a_step_moves_the_discriminator_and_then_the_generator_against_it(tmp_path):
    """One number each: G(z) = a, D(x) = sigmoid(b x), plain gradient steps of 0.1."""
    class Known(gan.GAN):
        def __init__(self):
            super().__init__(_settings())
            self.generator, line, self.seen = nn.Linear(100, 1), nn.Linear(1, 1, bias=False), []
            self.discriminator = nn.Sequential(nn.Flatten(), line)
            self.a, self.b = self.generator.bias, line.weight
            for weights, value in ((self.generator.weight, 0.0), (self.a, 1.5), (self.b, 2.0)):
                nn.init.constant_(weights, value)

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.generator, self.discriminator)]

        def _step(self, optimizer, loss):
            super()._step(optimizer, loss)
            self.seen.append((loss.item(), self.a.item(), self.b.item()))

    model, white = Known(), data.Images(torch.full((8, 1, 1, 1), 255, dtype=torch.uint8), -torch.ones(8), [], [])
    training.Run(tmp_path, "cpu", threads=1).fit("known", model, white, epochs=1, batch_size=8)
    (d_loss, a_then, b_then), (g_loss, a_now, b_now) = model.seen
    # D(x) = sigmoid(2 * 1), D(G(z)) = sigmoid(2 * 1.5); d loss / d b = -1 (1 - D(x)) + 1.5 D(G(z))
    real, fake = torch.tensor([2.0, 3.0]).sigmoid().tolist()
    assert d_loss == pytest.approx(-math.log(real) - math.log(1 - fake), rel=1e-5)
    assert (a_then, b_then) == (1.5, pytest.approx(2 - 0.1 * (-(1 - real) + 1.5 * fake)))
    # the generator meets the new slope: d(-log D(G(z))) / d a = -b (1 - D(G(z)))
    fake = torch.tensor(1.5 * b_then).sigmoid().item()
    assert g_loss == pytest.approx(-math.log(fake), rel=1e-5)
    assert (a_now, b_now) == (pytest.approx(1.5 + 0.1 * b_then * (1 - fake)), b_then)
    assert model.b.requires_grad and model.history[0]["train_generator"] == pytest.approx(g_loss)


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
    assert reference.tells is tells and list(reference.controls)[0] == "training images"
    precisions = [each["precision"] for each in reference.controls.values()]
    assert len(precisions) == 4 and (max(precisions[1:]) < 0.5 * precisions[0]) is tells
    found = reference.measure(reference.trained)
    assert list(found) == list(gan.MEASURES) and found["diversity"] > 1 and found["sharpness"] > 0
    red_and_grey = torch.tensor([[[[255, 100]], [[0, 100]], [[51, 100]]]] * 2, dtype=torch.uint8).repeat(1, 1, 4, 2)
    assert reference.measure(red_and_grey)["chroma"] == pytest.approx(0.5)
    assert [found[name] is None for name in ("fid", "precision", "recall")] == [not tells] * 3


def _judged(changes, weak=False, real=None, losses=None):
    """The verdicts on a model that agrees with the document in all, but for `changes` of its measures or losses."""
    g, d = losses or ([3.0, 2, 1, 2] * 5 + [0.9, 1.2, 0.8, 1.3, 0.9], [1.0, 1.3, 0.9, 1.1, 1] + [1.2, 1.22] * 10)
    model = types.SimpleNamespace(curve={"train_generator": g, "train_discriminator": d}.get, seconds=1.0)
    row = {"fid": 40.0, "precision": 0.6, "recall": 0.5, "diversity": 30.0, "sharpness": 0.2, "chroma": 0.1}
    measured = [{"epoch": 5, **row, "fid": 90.0}, {"epoch": 25, **row, **changes}]
    numbers = metrics.summarise([gan.measure_model(model, types.SimpleNamespace(measured=measured))])
    results = {"numbers": {"described": numbers}, "features": {"weak": weak}, "real": real or {
        "fid": 1.0, "precision": 0.7, "recall": 0.7, "diversity": 40.0, "sharpness": 0.1, "chroma": 0.15}}
    found = gan.conclusions(None, None, results)
    assert all(claim.found.startswith("described: ") and claim.agrees in (True, False, None) for claim in found)
    return [claim.agrees for claim in found], [claim.found for claim in found]


def test_the_documents_conclusions_are_judged_by_the_numbers():
    verdicts, found = _judged({})
    assert verdicts == [True] * 5
    assert found[0] == "described: generator loss 2.20 in the first fifth of epochs, 1.02 in the last."
    assert found[1].startswith(
        "described: discriminator loss 1.21 in the last fifth of epochs, relative standard deviation 0.008")
    assert "(training images 40.0), recall 0.500 (training images 0.700)" in found[2]
    assert found[4] == "described: FID 90.0 when first measured, 40.0 last."
    steady, swinging = [1.0] * 25, [0.2, 2.0] * 12 + [0.2]
    for changes, expected in (
            ({"changes": {"fid": 200.0}}, [True, True, True, True, False]),
            ({"changes": {"recall": 0.1}}, [True, True, False, True, True]),  # collapsed
            ({"changes": {"diversity": 9.0}}, [True, True, False, True, True]),
            ({"changes": {"chroma": 0.01}}, [True, True, True, False, True]),  # grey
            ({"changes": {"precision": 0.0}}, [True, True, True, False, True]),  # unlike the data
            ({"changes": {"sharpness": 0.001}}, [True, True, True, False, True]),  # blurred
            ({"changes": dict.fromkeys(("fid", "precision", "recall"))}, [True, True, None, None, None]),
            ({"changes": {}, "weak": True}, [True, True, True, True, None]),
            ({"changes": {}, "losses": (steady, steady)}, [None, True, False, True, True]),
            ({"changes": {}, "losses": (list(range(1, 26)), swinging)}, [False, False, False, True, True]),
            ({"changes": {}, "losses": ([2.0, 1.0], [1.0, 1.0])}, [True, None, None, True, True]),  # too short
            ({"changes": {}, "losses": ([2.0], [1.0])}, [None, None, None, True, True])):
        assert _judged(**changes)[0] == expected, changes


def test_every_checkpoint_loads_and_decodes_noise(studied, tmp_path):
    for name in sorted(studied.checkpoints - {"features.ckpt"}):
        path = studied.folder / "checkpoints" / name
        kept = torch.load(str(path), weights_only=True)["callbacks"]["Watch"]["frames"][-1]
        for model in (training.load_model(path), gan.GAN.load_from_checkpoint(str(path)).eval()):
            assert model.settings == _settings(**{**gan.QUICK, **TINY, "epochs": 3, "convolutional": "dcgan" in name})
            assert model.latent == 100 and torch.equal(model.samples(64, int(name[-6]))[:16], kept)
    sampling.main("sample", [str(path), "--out", str(tmp_path / "a.png"), "--n", "9"])
    with Image.open(str(tmp_path / "a.png")) as image:
        assert min(image.size) > 3 * 16


def test_the_frames_of_the_gif_are_dense_where_the_training_starts(studied, paintings, monkeypatch):
    monkeypatch.setattr(gan.figures, "grid_figure", lambda groups, *_, title="", **__: title)

    def frames(epochs):
        watch = types.SimpleNamespace(frames=[torch.full((16, 3, 8, 8), i, dtype=torch.uint8) for i in range(epochs)],
                                      measured=studied.results["measured"]["described 0"])
        train, test, _ = data.read_split([paintings], 8, 3)
        model = gan.GAN(_settings(side=8))
        model.history = [{"train_generator": 1.0, "train_discriminator": 1.0}] * epochs
        study = types.SimpleNamespace(train=train, test=test, args=types.SimpleNamespace(seed=0), seeds=[0],
                                      variants={"described": None}, settings=_settings(epochs=epochs))
        results, made = {**studied.results, "numbers": {"described": studied.results["numbers"]["described"]}}, {}
        gan.pictures(study, {"models": {("described", 0): (model, watch)}}, results,
                     lambda name, figure, *_: made.update({name: figure}))
        return [int(title.split("epoch ")[1]) for title in made["evolution"]]

    assert frames(3) == [1, 2, 3]
    shown = frames(100)
    steps = np.diff(shown)
    assert shown[:5] == [1, 2, 3, 4, 5] and shown[-1] == 100 and 20 < len(shown) <= 40
    assert steps[-1] > 5 and (np.diff(steps) >= -1).all()


def test_the_study_leaves_numbers_figures_checkpoints_and_a_report(studied):
    found = studied.results
    assert studied.code == 0 and found["seeds"] == [0, 1]
    assert found["data"]["train"] == 224 and found["data"]["held_out"] == found["real"]["images"] == 56
    assert "transformations" in found["features"]["task"] and found["features"]["guessing"] == 1 / 8
    for variant in VARIANTS:
        numbers = found["numbers"][variant]
        assert (numbers["fid"]["mean"] is None) is not found["features_tell"]
        assert numbers["diversity"]["sd"] > 0
        for seed in ("0", "1"):
            assert [row["epoch"] for row in found["measured"][f"{variant} {seed}"]] == [2, 3]
            history = found["history"][f"{variant} {seed}"]
            assert [row["epoch"] for row in history] == [1, 2, 3] and history[0]["train_discriminator"] > 0
    assert studied.checkpoints == {
        "features.ckpt", *(f"gan_{variant}_seed{seed}.ckpt" for variant in VARIANTS for seed in (0, 1))}
    assert studied.figures == {
        "losses.png", "samples.png", "evolution.gif", "measured_diversity.png", "neighbours_described.png",
        "neighbours_dcgan.png", *["measured_fid.png"] * found["features_tell"]}
    with Image.open(str(studied.folder / "figures/evolution.gif")) as image:
        assert image.n_frames == 3
    assert "mean ± standard deviation of 2 seeds" in studied.text
    assert "too short to judge the pictures" in studied.text
    assert ("not reported" in studied.text) is not found["features_tell"] and "images of images.npy" in studied.text
    assert len(found["conclusions"]) == 10 and found["conclusions"][5]["found"].startswith("dcgan: ")
    told = [claim["found"] for claim in found["conclusions"]]
    for i, claim in enumerate(told):  # in the table, and below the figure that it is about
        shown = studied.text.count(html.escape(claim, quote=False).replace("'", "&#39;"))
        assert shown == 1 + (i % 5 < 4 or found["features_tell"])


def test_a_resumed_study_gives_the_numbers_and_frames_of_an_uninterrupted_one(
        studied, paintings, tmp_path, monkeypatch):
    keep = gan.Watch.on_train_epoch_end

    def stop(watch, trainer, module):
        if trainer.current_epoch == 1 and watch.settings.convolutional:
            raise KeyboardInterrupt
        keep(watch, trainer, module)

    with monkeypatch.context() as patch:
        patch.setattr(gan.Watch, "on_train_epoch_end", stop)
        assert _study(paintings, tmp_path) == 130
    assert _study(paintings, tmp_path, "--resume") == 0
    found = small_studies.left(tmp_path).results
    frames = [torch.load(folder / "checkpoints/gan_dcgan_seed0.ckpt", weights_only=True)["callbacks"]["Watch"]["frames"]
              for folder in (tmp_path, studied.folder)]
    assert len(frames[0]) == 3
    for one, other in zip(*frames):
        assert torch.equal(one, other) and one.shape == (16, 3, 16, 16)
    for variant in VARIANTS:
        assert found["measured"][f"{variant} 0"] == studied.results["measured"][f"{variant} 0"]


def test_two_processes_train_and_leave_together(studied, paintings, tmp_path, environment):
    words = ("--epochs", "3", "--variant", "dcgan", "--devices", "2", "--threads", "1")
    process = small_studies.process(TINY, "gan", paintings, tmp_path, environment, *words)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0 and stdout.count("wrote") == 1 and "Traceback" not in stderr, stderr[-2000:]
    two, one = json.loads((tmp_path / "out/results.json").read_text()), studied.results
    assert two["device"].startswith("2 x ")
    for variant in VARIANTS:
        for a, b in zip(two["history"][f"{variant} 0"], one["history"][f"{variant} 0"]):
            assert a["train_discriminator"] == pytest.approx(b["train_discriminator"], rel=0.2)  # noise of its own
