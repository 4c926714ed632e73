"""studies/metrics.py: features that are not numbers, images of one's own behind the FID, Inception's, verdicts."""
import inspect
import math
import types
import urllib.error

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from common.errors import InputError
from studies import data, metrics, training


@pytest.fixture(scope="module")
def drawn(draw):
    """60 drawn Images of three classes."""
    labels = np.repeat([0, 1, 2], 20)
    pixels = torch.from_numpy(draw(labels, 5))[:, None]
    return data.Images(pixels, torch.from_numpy(labels), ["bar", "ring", "cross"], [])


@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
def test_the_fid_of_features_that_are_no_numbers_is_none(bad):
    features = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    broken = features.clone()
    broken[7, 2] = bad
    assert metrics.fid(features, features) < 1e-6
    assert math.isnan(metrics.fid(features, broken)) and math.isnan(metrics.fid(broken, features))
    assert math.isnan(metrics.fid(features, features[:1]))  # a single image has no covariance
    assert metrics.fid(features, features[:2]) > 0 and metrics.fid(features[:, :1], features[:, :1]) < 1e-6
    assert metrics.precision_recall(features[:2], features[:2]) == (1, 1)  # fewer than the neighbours asked for


def test_fids_compare_equal_numbers_and_keep_nan(drawn):
    seen = []

    def features(images):
        seen.append(len(images))
        x = images.float() / (255 if images.dtype == torch.uint8 else 1)
        return torch.stack([x.mean((1, 2, 3)), x.square().mean((1, 2, 3))], 1)

    broken = torch.rand(50, 1, 28, 28)
    broken[3, 0, 0, 0] = math.nan
    found = metrics.fids(features, drawn, drawn, {"broken": broken, "grey": torch.full((70, 1, 28, 28), 0.5)})
    assert seen == [50] * 4 and math.isnan(found["broken"])
    assert found["training images"] == pytest.approx(0, abs=1e-9) and found["grey"] > 0.01
    again = metrics.summarise([found, found])
    assert math.isnan(again["broken"]["mean"]) and math.isnan(again["broken"]["sd"]) and again["grey"]["sd"] == 0


def test_the_network_behind_the_fid_learns_the_given_images_and_its_checkpoint_loads(drawn, tmp_path):
    other = data.Images(drawn.pixels.flip(0), -torch.ones(60, dtype=torch.long), [], [])  # the study's own, unlabelled
    study = types.SimpleNamespace(
        run=training.Run(tmp_path, "cpu", threads=1), train=other, test=other, args=types.SimpleNamespace(seed=0),
        settings=types.SimpleNamespace(feature_steps=30))
    extract, about = metrics.train_feature_extractor(study, drawn, drawn.subset(torch.arange(0, 60, 2)), batch_size=20)
    assert about["task"] == "the 3 classes" and about["images"] == 30 and about["accuracy"] > 0.9
    path, expected = tmp_path / "checkpoints/features.ckpt", extract(drawn.pixels)
    assert expected.shape == (60, 64)
    for model in (training.load_model(path), metrics.FeatureExtractor.load_from_checkpoint(str(path)).eval()):
        assert torch.equal(training.map_batches(model.extract, drawn.pixels), expected)
        assert model.history[-1]["test_error_rate"] == 1 - about["accuracy"]


class Pooled(torch.nn.Module):
    """In the place of Inception: the means of the three colours of bytes; `seen` is how many images came at a time."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        self.seen.append(len(x))
        return x.float().mean((2, 3))


def test_inception_sees_bytes_in_three_colours_a_hundred_at_a_time(monkeypatch):
    network, asked = Pooled(), []
    monkeypatch.setattr(metrics, "FrechetInceptionDistance", lambda feature: (
        asked.append(feature), types.SimpleNamespace(inception=network))[1])
    features = metrics.inception_features("cpu")
    images = torch.randint(256, (230, 3, 6, 6), dtype=torch.uint8)
    assert torch.allclose(features(images), images.float().mean((2, 3)))
    assert network.seen == [100, 100, 30] and asked == [2048]
    assert inspect.signature(FrechetInceptionDistance).parameters["feature"].default == 2048  # an int, as in `asked`
    assert torch.equal(features(images / 255), features(images))  # no rounding down
    grey = images[:, :1]
    assert torch.equal(features(grey), features(grey.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize("error", (
    ModuleNotFoundError("FrechetInceptionDistance metric requires that `Torch-fidelity` is\n installed."),
    urllib.error.URLError(OSError(-3, "Temporary failure in name resolution")),
    RuntimeError("PytorchStreamReader failed reading zip archive: failed finding central directory")))
def test_inception_without_package_or_weights_is_one_line(monkeypatch, error):
    def fail(feature):
        raise error

    monkeypatch.setattr(metrics, "FrechetInceptionDistance", fail)
    with pytest.raises(InputError) as caught:
        metrics.inception_features("cpu")
    said = str(caught.value)
    assert said.startswith("--inception: expected the package torch-fidelity and its weights (downloaded once), found:")
    assert "\n" not in said and str(error).split()[-1] in said


def test_a_verdict_is_that_of_the_trend_and_undecided_without_one():
    def seeds(*values):
        return metrics.summarise(list(values))

    rises, falls = (seeds(1.0, 1.1, 1.2), seeds(2.0, 2.1, 2.2)), (seeds(2.0, 2.1, 2.2), seeds(1.0, 1.1, 1.2))
    flat = seeds(1.0, 2.0, 3.0), seeds(1.1, 2.1, 3.1)  # by far less than the seeds differ
    unknown = seeds(1.0, None), seeds(1.0, 2.0)
    for pairs, verdict in (([rises], True), ([falls], False), ([flat], None), ([unknown], None), ([(1, 1.005)], None),
                           ([(1, 2)], True), ([(2, 1)], False), ([(1, None)], None), ([(1, math.nan)], None),
                           ([(math.nan, 1)], None), ([rises, flat], None), ([rises, falls], False),
                           ([flat, falls], False), ([rises, (1, 2)], True), ([unknown, falls], False)):
        assert metrics.agrees_with_trend("rises", *pairs) is verdict
        assert metrics.agrees_with_trend("falls", *(pair[::-1] for pair in pairs)) is verdict
