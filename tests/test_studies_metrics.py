"""studies/metrics.py: the FID and the features behind it, Inception's too, measures worked by hand, verdicts."""
import dataclasses
import inspect
import math
import types

import numpy as np
import pytest
import small_studies
import torch
from torchmetrics.image.fid import FrechetInceptionDistance

from common import stats
from common.errors import InputError
from studies import metrics, training


@pytest.fixture(scope="module")
def drawn(draw):
    """60 drawn Images of three classes."""
    labels = np.repeat([0, 1, 2], 20)
    return small_studies.labelled(draw(labels, 5), labels)


def test_fid_is_the_formula_of_its_moments():
    from scipy.linalg import sqrtm
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 2, rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    s, t = np.cov(a.T), np.cov(b.T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    a, b = torch.from_numpy(a), torch.from_numpy(b)
    assert metrics.fid(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.fid(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.fid(a, a[:2]) > 0 and metrics.fid(a[:, :1], a[:, :1]) < 1e-6
    assert math.isnan(metrics.fid(a, a[:1]))  # a single image has no covariance
    for bad in (math.nan, math.inf, -math.inf):
        b[7, 2] = bad
        assert math.isnan(metrics.fid(a, b)) and math.isnan(metrics.fid(b, a))


def test_measures_agree_with_values_worked_by_hand():
    line = torch.arange(5.0)[:, None]  # radii by k = 1: all 1
    fake = torch.tensor([[0.2], [0.5], [4.9], [5.2], [90]])  # radii 0.3, the last one's 84.8
    assert metrics.precision_recall(line, fake, k=1) == (pytest.approx(0.6), pytest.approx(0.2))
    assert metrics.precision_recall(line, line + 0.1, k=1) == (1, 1)
    assert metrics.precision_recall(line[:2], line[:2]) == (1, 1)  # fewer than the neighbours asked for
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
    assert stats.wilson_interval(8, 10) == pytest.approx([0.490162, 0.943318], abs=1e-6)  # Wilson 1927
    assert stats.wilson_interval(0, 10)[0] == 0 and stats.wilson_interval(10, 10)[1] == 1
    assert metrics.summarise([{"a": {"b": 1.0, "c": None}}, {"a": {"b": 3.0, "c": 2.0}}]) == {"a": {
        "b": {"mean": 2, "sd": math.sqrt(2), "values": [1, 3]}, "c": {"mean": None, "sd": None, "values": [None, 2]}}}
    assert metrics.summarise([1.0])["sd"] is None
    unknown = metrics.summarise([math.nan, 1.0])
    assert math.isnan(unknown["mean"]) and math.isnan(unknown["sd"])


def test_fid_features_learn_classes_or_else_transformations(drawn, tmp_path):
    unlabelled = dataclasses.replace(drawn, pixels=drawn.pixels.flip(0), labels=-torch.ones(60).long(), classes=[])
    study = types.SimpleNamespace(
        run=training.Run(tmp_path, "cpu", threads=1), train=drawn, test=drawn, args=types.SimpleNamespace(seed=0),
        settings=types.SimpleNamespace(feature_steps=30))
    extract, about = metrics.train_feature_extractor(study, batch_size=20)
    assert about["task"] == "the 3 classes" and about["guessing"] == 1 / 3 and about["weak"] is False
    assert about["accuracy"] > 0.9 and about["interval"][0] < about["accuracy"] <= about["interval"][1]
    noise, seen = torch.rand(70, 1, 28, 28), []
    fakes = {"noise": noise, "same": drawn.subsample(50, 0).floats(), "broken": noise[:50] * math.nan}
    found = metrics.fids(lambda images: seen.append(len(images)) or extract(images), drawn, drawn, fakes)
    assert seen == [50] * 5  # FIDs of equal numbers
    assert found["training images"] < 1e-3 and found["same"] < 1e-3 and found["noise"] > 1
    assert math.isnan(found["broken"])
    model = small_studies.load(tmp_path / "checkpoints/features.ckpt")
    assert torch.equal(training.map_batches(model.extract, drawn.pixels), extract(drawn.pixels))
    assert extract(drawn.pixels).shape == (60, 64)
    assert model.history[-1]["test_error_rate"] == pytest.approx(1 - about["accuracy"], abs=1e-6)
    study.train = study.test = unlabelled
    _, about = metrics.train_feature_extractor(study, drawn, drawn.subset(torch.arange(0, 60, 2)), batch_size=20)
    assert about["task"] == "the 3 classes" and about["images"] == 30 and about["accuracy"] > 0.9  # the given images
    study.settings.feature_steps = 2
    _, about = metrics.train_feature_extractor(study, batch_size=20)
    assert "transformations" in about["task"] and about["guessing"] == 1 / 8


def test_inception_sees_a_hundred_images_of_three_colours_or_is_one_line(monkeypatch):
    seen = []

    def pooled(x):  # in the place of Inception: the means of the three colours
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        seen.append(len(x))
        return x.float().mean((2, 3))

    def network(feature):
        seen.append(feature)
        return types.SimpleNamespace(inception=types.SimpleNamespace(to=lambda device: pooled))

    def missing(feature):
        raise ModuleNotFoundError("FrechetInceptionDistance requires that `Torch-fidelity` is\n installed.")

    monkeypatch.setattr(metrics, "FrechetInceptionDistance", network)
    features = metrics.inception_features("cpu")
    images = torch.randint(256, (230, 3, 6, 6), dtype=torch.uint8)
    assert torch.allclose(features(images), images.float().mean((2, 3)))
    assert seen == [2048, 100, 100, 30]
    assert inspect.signature(FrechetInceptionDistance).parameters["feature"].default == 2048  # an int, as in `seen`
    assert torch.equal(features(images / 255), features(images))  # no rounding down
    assert torch.equal(features(images[:, :1]), features(images[:, :1].expand(-1, 3, -1, -1)))
    monkeypatch.setattr(metrics, "FrechetInceptionDistance", missing)
    with pytest.raises(InputError, match=r"^--inception: expected the package torch-fidelity and its weights "
                                         r"\(downloaded once\), found: [^\n]* is installed\.$"):
        metrics.inception_features("cpu")


def test_a_verdict_is_that_of_the_trend_and_undecided_without_one():
    rises, falls, flat, unknown = (tuple(map(metrics.summarise, seeds)) for seeds in (
        ([1.0, 1.1, 1.2], [2.0, 2.1, 2.2]), ([2.0, 2.1, 2.2], [1.0, 1.1, 1.2]),
        ([1.0, 2.0, 3.0], [1.1, 2.1, 3.1]),  # by far less than the seeds differ
        ([1.0, None], [1.0, 2.0])))
    for pairs, verdict in (([rises], True), ([falls], False), ([flat], None), ([unknown], None), ([(1, 1.005)], None),
                           ([(1, 2)], True), ([(2, 1)], False), ([(1, None)], None), ([(1, math.nan)], None),
                           ([(math.nan, 1)], None), ([rises, flat], None), ([rises, falls], False),
                           ([flat, falls], False), ([rises, (1, 2)], True), ([unknown, falls], False)):
        assert metrics.agrees_with_trend("rises", *pairs) is verdict
        assert metrics.agrees_with_trend("falls", *(pair[::-1] for pair in pairs)) is verdict
