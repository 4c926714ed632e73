"""The parts of the bird half, each against a reference or a property that defines it."""
import ast
import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

seeds = st.integers(0, 2 ** 32 - 1)
CPU = torch.device("cpu")
PLAIN = {"crop_scale": 1.0, "crop_ratio": 1.0, "rotate": 0.0, "hflip": 0.0, "color_jitter": 0.0, "channel_jitter": 0.0}


def _config(bird, **changes):
    return dataclasses.replace(bird.Config(), **changes)


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _photos(n, side=40, seed=0):
    """Smooth random photos uint8 (n, 3, side, side)."""
    coarse = torch.rand(n, 3, 5, 5, generator=_generator(seed))
    return (F.interpolate(coarse, (side, side), mode="bilinear", align_corners=True) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def model(bird):
    """A small-sized classifier of five classes with random weights and lively running statistics, not trained."""
    torch.manual_seed(0)
    model = bird.BirdClassifier(list("abcde"), [3, 1, 4, 1, 5], 32)
    with torch.no_grad():
        for _ in range(3):
            model(_photos(16, 32).float() / 255)
    return model.eval()


@pytest.fixture
def exact(bird, monkeypatch):
    """Arithmetic in float32, whatever this machine would pick."""
    monkeypatch.setattr(bird, "pick_precision", lambda device: torch.float32)


# -------------------------------------------------------------------------------------------------------------- scores

@given(seed=seeds, n=st.integers(1, 60), n_classes=st.integers(1, 7))
def test_confusion_matrix_and_average_f1_are_those_of_scikit_learn(bird, seed, n, n_classes):
    """Classes that are neither there nor predicted included: they do not count."""
    metrics = pytest.importorskip("sklearn.metrics")
    truth, predicted = torch.randint(0, n_classes, (2, n), generator=_generator(seed))
    matrix = bird.confusion_matrix(truth, predicted, n_classes + 2)
    assert (matrix.numpy() == metrics.confusion_matrix(truth, predicted, labels=range(n_classes + 2))).all()
    expected = [metrics.f1_score(truth, predicted, average=average) for average in ("macro", "micro")]
    assert bird.average_f1(matrix) == pytest.approx(np.mean(expected))


# ---------------------------------------------------------------------------------------------------------------- loss

@given(counts=st.lists(st.integers(0, 2000), min_size=1, max_size=12).filter(any))
def test_balanced_weights_are_those_of_scikit_learn(bird, counts):
    """A class without photos weighs nothing and changes no other."""
    utils = pytest.importorskip("sklearn.utils.class_weight")
    labels, expected = np.repeat(np.arange(len(counts)), counts), np.zeros(len(counts))
    expected[np.unique(labels)] = utils.compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert bird.balanced_weights(counts).numpy() == pytest.approx(expected, rel=1e-5)


# --------------------------------------------------------------------------------------------------------------- split

@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), fraction=st.floats(0.05, 0.5),
       seed=st.integers(0, 99))
def test_split_is_stratified(bird, counts, fraction, seed):
    """A single photo of a class is trained on."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    train_idx, val_idx = bird.stratified_split(labels, fraction, seed)
    assert sorted([*train_idx, *val_idx]) == list(range(len(labels)))
    assert (np.diff(train_idx) > 0).all() and (np.diff(val_idx) > 0).all()
    for label, count in enumerate(counts):
        n_val, n_train = (labels[val_idx] == label).sum(), (labels[train_idx] == label).sum()
        expected = len(val_idx) * count / max(1, sum(n for n in counts if n > 1)) if count > 1 else 0
        assert n_train >= min(count, 1) and abs(n_val - expected) < 1
    again = bird.stratified_split(labels, fraction, seed)
    assert (again[0] == train_idx).all() and (again[1] == val_idx).all()


def test_validation_photos_are_drawn_by_the_seed_and_are_not_the_last_of_each_folder(bird):
    """Photos of one bird often have neighboring names."""
    labels = np.zeros(100, int)
    val_idx, other = (bird.stratified_split(labels, 0.2, seed)[1] for seed in (0, 1))
    assert val_idx.min() < 20 and val_idx.max() >= 80 and np.diff(val_idx).max() > 1
    assert val_idx.tolist() != other.tolist()


# -------------------------------------------------------------------------------------------------------- augmentation

@given(seed=seeds, size=st.sampled_from([32, 40, 57]), n=st.integers(1, 5))
def test_crops_have_the_size_and_range_asked_for(bird, seed, size, n):
    photos = _photos(n, seed=seed % 99)
    before = photos.clone()
    crops = bird.augment(photos, size, bird.Config(), _generator(seed))
    assert crops.dtype == torch.float32 and crops.shape == (n, 3, size, size) and torch.equal(photos, before)
    assert crops.isfinite().all() and crops.min() >= 0 and crops.max() <= 1


def test_crops_follow_from_the_generator_alone(bird):
    photos = _photos(6)
    torch.manual_seed(1)
    first = bird.augment(photos, 40, bird.Config(), _generator(5))
    torch.manual_seed(2)
    assert torch.equal(bird.augment(photos, 40, bird.Config(), _generator(5)), first)
    assert not torch.equal(bird.augment(photos, 40, bird.Config(), _generator(6)), first)


def test_each_photo_of_a_batch_is_changed_in_its_own_way(bird):
    crops = bird.augment(_photos(1).repeat(8, 1, 1, 1), 40, bird.Config(), _generator())
    apart = (crops[:, None] - crops[None]).abs().mean((2, 3, 4)) + torch.eye(8)
    assert apart.min() > 0.005


def test_flips_turn_about_half_of_the_photos_and_does_nothing_else(bird):
    photos = _photos(1).repeat(200, 1, 1, 1)
    crops = bird.augment(photos, 40, _config(bird, **{**PLAIN, "hflip": 0.5}), _generator())
    upright = (crops - photos / 255).abs().amax((1, 2, 3)) < 2e-3
    flipped = (crops - photos.flip(3) / 255).abs().amax((1, 2, 3)) < 2e-3
    assert (upright ^ flipped).all() and 70 <= int(flipped.sum()) <= 130


def test_a_crop_of_full_size_shows_what_the_photo_shows(bird):
    """A smaller crop of the whole photo is the photo made smaller."""
    photos = _photos(3, 80)
    crops = bird.augment(photos, 40, _config(bird, **PLAIN), _generator())
    assert crops.numpy() == pytest.approx(F.avg_pool2d(photos / 255, 2).numpy(), abs=0.02)


def _shown(bird, **changes):
    """Shares (300,) of width and height that crops show of a photo whose colour is its place: their range of it."""
    ramp = torch.linspace(0, 255, 200).round().to(torch.uint8)
    photos = torch.stack([ramp.expand(200, 200), ramp[:, None].expand(200, 200), ramp.expand(200, 200)])
    config = _config(bird, **{**PLAIN, **changes})
    crops = bird.augment(photos.expand(300, 3, 200, 200), 32, config, _generator())
    return (crops[:, channel].amax((1, 2)) - crops[:, channel].amin((1, 2)) for channel in (0, 1))


def test_crops_cover_the_share_asked_for(bird):
    width, height = _shown(bird, crop_scale=0.25)
    area = width * height / (31 / 32) ** 2
    assert 0.23 < area.min() < 0.32 and 0.93 < area.max() < 1.02
    assert (width - height).abs().max() < 0.02


def test_stretching_changes_the_shape_and_not_the_mean_area(bird):
    width, height = _shown(bird, crop_scale=0.3, crop_ratio=1.5)
    assert 1.3 < (width / height).max() < 1.55 and 0.65 < (width / height).min() < 0.77
    assert (width * height).min() > 0.25


def test_colours_change_within_their_bounds(bird):
    photos = torch.full((300, 3, 8, 8), 100, dtype=torch.uint8)
    tinted = bird.augment(photos, 8, _config(bird, **{**PLAIN, "channel_jitter": 0.1}), _generator()) * 255
    assert 89.9 <= tinted.min() < 92 and 108 < tinted.max() <= 110.1
    assert tinted.std((2, 3)).max() < 0.01 and tinted.mean((2, 3)).std(1).max() > 3  # a tint is of one channel
    brighter = bird.augment(photos, 8, _config(bird, **{**PLAIN, "color_jitter": 0.3}), _generator()) * 255
    assert 69.9 <= brighter.min() < 75 and 125 < brighter.max() <= 130.1


# -------------------------------------------------------------------------------------------------------------- mixing

@given(seed=seeds, mixup=st.sampled_from([0.0, 0.5, 1.0]), cutmix=st.sampled_from([0.0, 0.5]))
def test_mixed_targets_stay_distributions_and_photos_stay_photos(bird, seed, mixup, cutmix):
    generator = _generator(seed)
    photos, targets = torch.rand(6, 3, 32, 32, generator=generator), torch.eye(6)[:, :4].clone()
    targets[4:, 0] = 1
    before = photos.clone(), targets.clone()
    mixed, new = bird.mix(photos, targets, _config(bird, mixup=mixup, cutmix=cutmix), generator)
    assert new.sum(1).numpy() == pytest.approx(1) and (new >= 0).all()
    assert mixed.shape == photos.shape and mixed.min() >= 0 and mixed.max() <= 1
    assert torch.equal(photos, before[0]) and torch.equal(targets, before[1])
    assert mixup or cutmix or torch.equal(mixed, photos) and torch.equal(new, targets)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_say_how_much_of_each_photo_is_there(bird, kind):
    """Photo i is everywhere of the colour i: the mean colours of the mixture are the shares in its target."""
    photos, changed = torch.eye(3)[:, :, None, None].expand(3, 3, 64, 64), 0
    for seed in range(30):
        config = _config(bird, **{"mixup": 0.0, "cutmix": 0.0, kind: 1.0})
        mixed, targets = bird.mix(photos, torch.eye(3), config, _generator(seed))
        assert mixed.mean((2, 3)).numpy() == pytest.approx(targets.numpy(), abs=1e-5)
        changed += not torch.equal(mixed, photos)
        whole = ((mixed == 0) | (mixed == 1)).all()
        assert whole if kind == "cutmix" else not whole or torch.equal(mixed, photos)
    assert changed >= 10


def test_the_fraction_of_mixed_batches_is_that_of_the_config(bird):
    photos, targets, generator = torch.rand(8, 3, 32, 32), torch.eye(8), _generator()
    config = _config(bird, mixup=0.2, cutmix=0.3)
    same = sum(bird.mix(photos, targets, config, generator)[0] is photos for _ in range(400))
    assert 160 <= same <= 240


# ------------------------------------------------------------------------------------------------------------ schedule

def test_rate_warms_up_to_its_peak_and_comes_down_to_0(bird):
    config = _config(bird, lr=0.5, warmup=0.2)
    rates = np.array([bird.learning_rate(progress, config) for progress in np.linspace(0, 1, 501)])
    assert rates[0] == pytest.approx(0, abs=1e-9) and rates[-1] == pytest.approx(0, abs=1e-9)
    assert rates.argmax() == 100 and rates[100] == pytest.approx(0.5)
    assert (np.diff(rates[:101]) > 0).all() and (np.diff(rates[100:]) < 0).all()
    assert bird.learning_rate(0.0, _config(bird, lr=0.5, warmup=0.0)) == pytest.approx(0.5)


def test_crops_grow_to_their_full_size(bird):
    """As the config says, in sizes that the network can halve five times."""
    config = _config(bird, image_size=192, progressive=((0.3, 1 / 2), (0.6, 2 / 3)))
    sizes = [bird.crop_size(progress, config) for progress in (0, 0.29, 0.3, 0.59, 0.6, 1)]
    assert sizes == [96, 96, 128, 128, 192, 192]
    assert [bird.crop_size(progress, _config(bird, image_size=48)) for progress in (0, 1)] == [32, 48]
    assert bird.crop_size(0, _config(bird, image_size=100, progressive=())) == 100


class Machine:
    """A clock, and steps that take seconds in proportion to the crop size's area, times a pace."""

    def __init__(self, bird, monkeypatch, config, seconds, n_steps=1000, pace=lambda step: 1.0):
        self.now, self.config, self.pace, self.bird = 1000.0, config, pace, bird
        monkeypatch.setattr(bird.time, "monotonic", lambda: self.now)
        self.schedule = bird.Schedule(config, n_steps)
        self.schedule.limit = seconds

    def train(self):
        """(progress, learning rate) at each step."""
        trail = []
        while self.schedule.progress() < 1:
            progress = self.schedule.progress()
            trail.append((progress, self.bird.learning_rate(progress, self.config)))
            size = self.bird.crop_size(progress, self.config) / self.config.image_size
            self.now += (0.2 + 0.8 * size ** 2) * self.pace(len(trail))
            self.schedule.step += 1
        return np.array(trail)


PACES = {"steady": lambda step: 1.0, "fast": lambda step: 0.01, "a slow start": lambda step: 20.0 if step == 1 else 0.9,
         "a pause": lambda step: 20.0 if step == 500 else 0.8}


@pytest.mark.parametrize("pace", PACES)
def test_with_time_enough_progress_is_the_fraction_of_the_steps(bird, monkeypatch, pace):
    machine = Machine(bird, monkeypatch, bird.Config(), 640, pace=PACES[pace])  # the steps take 590 seconds
    assert (machine.train()[:, 0] == np.arange(1, 1001) / 1001).all()
    assert not machine.schedule.time_limited


@pytest.mark.parametrize("seconds, pace", [(300, "steady"), (60, "steady"), (5, "steady"), (300, "a slow start"),
                                           (60, "a slow start"), (400, "a pause")])
def test_with_less_time_the_whole_schedule_is_shortened(bird, monkeypatch, seconds, pace):
    """It ends in time, at the latest with the step that was begun, with a learning rate near 0."""
    machine = Machine(bird, monkeypatch, bird.Config(), seconds, n_steps=100_000, pace=PACES[pace])
    progress, rates = machine.train().T
    assert machine.schedule.time_limited and machine.now - 1000 <= seconds + PACES[pace](1)
    assert (np.diff(progress) >= 0).all()
    if pace == "steady":
        assert machine.now - 1000 >= seconds
        assert rates.max() > 0.8 * bird.Config.lr and rates[-1] < (0.001 if seconds > 5 else 0.1) * bird.Config.lr
        left = [machine.bird.crop_size(p, machine.config) for p in progress]
        assert left == sorted(left) and left[-1] == machine.config.image_size


@pytest.mark.parametrize("limit, takes", [(math.inf, 590), (620, 590), (300, 300), (60, 60)])
def test_time_left(bird, monkeypatch, limit, takes):
    """It knows that large crops take longer; once the time limit determines the progress, it is what is left of it."""
    machine, ends = Machine(bird, monkeypatch, bird.Config(), limit), []
    machine.pace = lambda step: ends.append(machine.now - 1000 + 60 * machine.schedule.minutes_left()) or 1.0
    machine.train()
    assert ends[50:] == pytest.approx([takes] * len(ends[50:]), rel=0.03)


def test_a_training_of_one_step_learns(bird):
    before = bird.TrainState(list("abc"), [6, 5, 5], _config(bird, image_size=32), CPU).model.state_dict()
    after = _train(bird, batch_size=16)[0].model.state_dict()
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_a_training_that_diverges_is_one_line(bird):
    with pytest.raises(bird.InputError, match="converges"):
        _train(bird, lr=1e30, n_epochs=3, warmup=0.0)


def test_training_sees_the_sizes_of_the_config(bird, monkeypatch):
    seen, augment, evaluate = [], bird.augment, bird.evaluate
    monkeypatch.setattr(bird, "augment", lambda photos, size, *rest: seen.append(size) or augment(photos, size, *rest))
    monkeypatch.setattr(bird, "evaluate", lambda *args: seen.append(-args[2]) or evaluate(*args))
    _train(bird, n_epochs=4, image_size=96, progressive=((0.5, 1 / 3), (0.75, 2 / 3)))
    assert seen == [32, 32, -32, 32, 32, -64, 64, 64, -96, 96, 96, -96]


def test_the_last_batches_are_not_mixed(bird, monkeypatch):
    mixed, mix = [], bird.mix
    monkeypatch.setattr(bird, "mix", lambda *args: mixed.append(1) or mix(*args))
    _train(bird, n_epochs=5, mix_until=0.6)
    assert len(mixed) == 6  # of 10


def test_ema_follows_weights_and_running_statistics(bird, model):
    ema_model, target = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for value in target.state_dict().values():
            if value.is_floating_point():
                value.add_(1.0)
    start = {name: value.clone() for name, value in ema_model.state_dict().items()}
    for _ in range(3):
        bird.update_ema(ema_model, target, 0.5)
    for name, value in ema_model.state_dict().items():
        assert not value.is_floating_point() or torch.allclose(value, start[name] + 0.875, atol=1e-5), name
    bird.update_ema(ema_model, target, 0.0)
    for name, value in ema_model.state_dict().items():
        assert not value.is_floating_point() or torch.allclose(value, target.state_dict()[name]), name


def test_every_weight_has_one_optimizer_and_convolutions_decay(bird, model):
    decays = [(id(parameter), group["weight_decay"]) for optimizer in bird.make_optimizers(
        model, _config(bird, weight_decay=0.3)) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(decays) == len(dict(decays)) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert dict(decays)[id(parameter)] == (0.3 if parameter.ndim == 4 else 0), name


@pytest.mark.parametrize("shape", [(64, 200), (200, 64), (8, 8), (1, 30)], ids="{0[0]} x {0[1]}".format)
def test_orthogonalised_matrices_keep_their_singular_vectors(bird, shape):
    matrices = torch.randn(3, *shape, generator=_generator()) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ bird.orthogonalize(matrices) @ right.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert torch.allclose(found, torch.diag_embed(diagonal), atol=1e-4)
    strong = values > 0.02 * values.norm(dim=1, keepdim=True)  # a value next to 0 has a longer way to 1
    assert ((diagonal[strong] > 0.6) & (diagonal[strong] < 1.3)).all()
    assert bird.orthogonalize(torch.zeros(2, *shape)).abs().max() == 0


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("outputs", [6, 256, 512])
def test_steps_of_muon_are_those_of_torch(bird, outputs):
    """Whose Muon takes matrices alone, and computes in bfloat16. Each 256 outputs are a matrix of their own."""
    begin = torch.randn(outputs, 4, 3, 3, generator=_generator())
    ours = torch.nn.Parameter(begin.clone())
    theirs = [torch.nn.Parameter(part.flatten(1).clone()) for part in begin.split(256)]
    optimizers = [bird.Muon([ours], lr=0.1, weight_decay=0.5),
                  torch.optim.Muon(theirs, lr=0.1, weight_decay=0.5, adjust_lr_fn="match_rms_adamw")]
    for seed in range(3):
        ours.grad = torch.randn(begin.shape, generator=_generator(seed))
        for matrix, gradient in zip(theirs, ours.grad.split(256)):
            matrix.grad = gradient.flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(ours.flatten(1), torch.cat(theirs), atol=0.01)
    assert (ours - begin).abs().mean() > 0.1


# ------------------------------------------------------------------------------------------------------------- network

@pytest.mark.parametrize("size", [(32, 32), (33, 33), (97, 97), (160, 40)], ids="{0[0]} x {0[1]}".format)
def test_network_takes_photos_of_any_size_from_32(model, size):
    logits = model(torch.rand(1, 3, *size))
    assert logits.shape == (1, 5) and logits.dtype == torch.float32 and logits.isfinite().all()


def test_network_at_rest_takes_each_photo_by_itself_in_any_memory_layout(model):
    photos = torch.rand(4, 3, 48, 48, generator=_generator())
    with torch.no_grad():
        together = model(photos)
        assert torch.equal(model(photos), together)
        for found in (torch.cat([model(photo[None]) for photo in photos]),
                      model(photos.contiguous(memory_format=torch.channels_last))):
            assert found.numpy() == pytest.approx(together.numpy(), abs=1e-4)


def test_gradient_reaches_all_parameters(bird):
    """After a nudge: weights that start at 0 keep it from those before them."""
    model = bird.BirdClassifier(list("abc"), [1, 1, 1], 48)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=_generator(parameter.numel())))
    F.cross_entropy(model(torch.rand(6, 3, 48, 48, generator=_generator())), torch.arange(6) % 3).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@settings(max_examples=8)  # each makes two whole networks
@given(classes=st.lists(st.text(min_size=0, max_size=8).filter(lambda name: name.isprintable()), min_size=1,
                        max_size=40), size=st.integers(32, 500))
def test_what_travels_with_the_weights_comes_back(bird, classes, size):
    """Any number of classes of any name, into a fresh model that knows nothing."""
    first, second = bird.BirdClassifier(classes, list(range(len(classes))), size), bird.BirdClassifier()
    second.set_extra_state(first.get_extra_state())
    assert second.metadata == {"classes": classes, "counts": list(range(len(classes))), "image_size": size}
    assert second.head.out_features == len(classes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_saved_on_a_gpu_loads_on_the_cpu(bird, model, tmp_path):
    path, photos = tmp_path / "m.pth", torch.rand(2, 3, 48, 48)
    moved = copy.deepcopy(model).cuda()
    path.write_bytes(bird.serialized(moved.state_dict()))
    again = bird.load_model(str(path))
    path.unlink()
    with torch.no_grad():
        assert again(photos).numpy() == pytest.approx(moved(photos.cuda()).cpu().numpy(), abs=0.02)


# ---------------------------------------------------------------------------------------------------------- prediction

def test_a_flipped_photo_gets_the_same_probabilities(bird, model, exact):
    photos = _photos(5)
    found = bird.predict_proba(model, photos)
    assert bird.predict_proba(model, photos.flip(3)).numpy() == pytest.approx(found.numpy(), abs=1e-4)
    assert found.std(0).max() > 1e-4  # the photos do differ


@pytest.mark.parametrize("share, middle", [(1.0, slice(None)), (0.8, slice(5, 45)), (0.5, slice(12, 38))])
def test_a_centre_crop_is_the_middle_of_the_photo(bird, share, middle):
    photos = _photos(2, 50)
    middle = (photos[:, :, middle, middle] / 255)
    found = bird.center_crop(photos, share, middle.shape[-1], torch.device("cpu"))
    assert torch.allclose(found, middle, atol=1e-6)


def test_probabilities_are_the_mean_over_the_views(bird, model, exact):
    photos = _photos(3, 48)
    parts = torch.stack([bird.predict_proba(model, photos, (view,)) for view in bird.TEST_VIEWS])
    assert bird.predict_proba(model, photos).numpy() == pytest.approx(parts.mean(0).numpy(), abs=1e-5)
    assert parts.std(0).max() > 1e-5  # the views do differ


def test_the_plain_view_is_the_network_alone(bird, model, exact):
    photos = _photos(3, 32)
    with torch.no_grad():
        expected = model(photos / 255).softmax(1), model(photos.flip(3) / 255).softmax(1)
    for flipped in (False, True):
        found = bird.predict_proba(model, photos, ((1.0, flipped),))
        assert found.numpy() == pytest.approx(expected[flipped].numpy(), abs=1e-5)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_evaluation_is_that_of_the_plain_definition(bird, model, exact, batch_size):
    photos, labels = _photos(20, 32), torch.arange(20) % 5
    index = torch.tensor([0, 3, 4, 5, 11, 12, 19])
    loss, matrix = bird.evaluate(model, bird.batches(bird.PhotoDataset(photos, labels), index, batch_size), 32)
    with torch.no_grad():
        logits = model(bird.center_crop(photos[index], bird.TEST_VIEWS[0][0], 32, CPU))
    expected = F.cross_entropy(logits, labels[index], weight=bird.balanced_weights(model.metadata["counts"]))
    assert loss == pytest.approx(float(expected), rel=1e-3)
    assert torch.equal(matrix, bird.confusion_matrix(labels[index], logits.argmax(1), 5))


# ------------------------------------------------------------------------------------------------------------ training

def _train(bird, n_epochs=1, photos=None, **changes):
    """Trains on random bytes; the state at the end and a copy of the state_dict after each epoch."""
    config = _config(bird, **{"epochs": n_epochs, "batch_size": 8, "image_size": 32, **changes})
    dataset = bird.PhotoDataset(_photos(20, 48, seed=4) if photos is None else photos, torch.arange(20) % 3)
    state = bird.TrainState(list("abc"), [6, 5, 5], config, CPU)
    checkpoints = [copy.deepcopy(state.state_dict())
                   for _ in bird.train_classifier(state, dataset, torch.arange(16), torch.arange(16, 20), config)]
    return state, checkpoints


SWITCHED_OFF = [
    {"warmup": 0.0}, {"patience": 0}, {"weight_decay": 0.0}, {"dropout": 0.0}, {"label_smoothing": 0.0},
    {"mixup": 0.0}, {"cutmix": 0.0}, {"mixup": 0.0, "cutmix": 0.0}, {"mixup": 1.0, "cutmix": 0.0},
    {"mixup": 0.0, "cutmix": 1.0}, {"ema_decay": 0.0}, {"class_weights": False}, {"crop_scale": 1.0},
    {"crop_ratio": 1.0}, {"rotate": 0.0}, {"hflip": 0.0}, {"color_jitter": 0.0}, {"channel_jitter": 0.0},
    {"progressive": ()}, {"mix_until": 0.0}, PLAIN]


@pytest.mark.parametrize("changes", SWITCHED_OFF, ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items()))
def test_every_technique_is_switched_off_by_a_value(bird, changes):
    state, _ = _train(bird, **changes)
    assert all(value.isfinite().all() for value in state.best["weights"].values())
    assert all(math.isfinite(value) for value in state.history[0].values())


def test_every_field_of_the_config_is_a_technique_or_a_setting(bird):
    """Whoever adds a technique adds its line above."""
    switched = {name for changes in SWITCHED_OFF for name in changes}
    settings = {"epochs", "batch_size", "lr", "image_size", "val_fraction", "seed"}
    assert {field.name for field in dataclasses.fields(bird.Config)} == switched | settings


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_without_ema_the_last_weights_are_kept(bird, decay):
    state, _ = _train(bird, ema_decay=decay)
    ema = state.ema_model.state_dict()
    same = {name: torch.allclose(value, ema[name], atol=1e-6) for name, value in state.model.state_dict().items()
            if value.is_floating_point()}
    assert all(same.values()) if decay == 0 else not same["head.weight"]


def test_epochs_of_smaller_crops_are_not_counted_by_early_stopping(bird, monkeypatch):
    """As after a resume with more time, when the crops become smaller again."""
    _losses(bird, monkeypatch, [0.1, *[0.5] * 20])
    monkeypatch.setattr(bird, "crop_size", lambda progress, config: 64 if progress < 0.2 or progress > 0.6 else 32)
    state, _ = _train(bird, n_epochs=10, patience=2, image_size=64)
    assert [row["crop_size"] for row in state.history] == [64, 32, 32, 32, 32, 64, 64] and state.best["epoch"] == 1


def _losses(bird, monkeypatch, losses):
    losses = iter(losses)
    monkeypatch.setattr(bird, "evaluate", lambda *_: (next(losses), torch.ones(3, 3)))


def test_early_stopping(bird, monkeypatch):
    """After `patience` epochs without a lower loss; the weights that are kept are those of the best epoch."""
    _losses(bird, monkeypatch, [0.9, 0.1, *[0.5] * 20])
    state, checkpoints = _train(bird, n_epochs=10, patience=3, progressive=())
    assert len(state.history) == 5 and state.best["epoch"] == 2
    for name, value in state.best["weights"].items():
        assert torch.equal(value, checkpoints[1]["ema_model"][name]), name


def test_a_default_training_stops_when_its_validation_no_longer_improves(bird, monkeypatch):
    """Its epochs and patience; patience begins with the largest crops, however low the loss of smaller ones."""
    monkeypatch.setattr(bird, "train_one_epoch", lambda *args: setattr(args[4], "step", args[4].step + 2) or {})
    dataset = bird.PhotoDataset(_photos(20), torch.arange(20) % 3)
    for losses, expected in (([0.1] * 300, 170 + bird.Config.patience), (np.linspace(1, 0, 300), bird.Config.epochs),
                             ([0.5] * 174 + [0.4] * 99, 175 + bird.Config.patience)):
        _losses(bird, monkeypatch, losses)
        state = bird.TrainState(list("abc"), [48, 48, 32], bird.Config(), CPU)  # 128 photos: 2 steps per epoch
        for _ in bird.train_classifier(state, dataset, torch.arange(16), torch.arange(16, 20), bird.Config()):
            pass
        assert len(state.history) == expected
        assert state.history[168]["crop_size"] < state.history[169]["crop_size"] == state.history[-1]["crop_size"]


def test_the_epoch_that_is_kept_is_one_of_the_largest_crops(bird, monkeypatch):
    """Weights that are best with small crops are not the best with those of test."""
    _losses(bird, monkeypatch, [0.1, 0.2, 0.5, 0.4, 0.5])
    state, checkpoints = _train(bird, n_epochs=5, image_size=64, progressive=((0.5, 1 / 2),))
    assert [row["crop_size"] for row in state.history] == [32, 32, 64, 64, 64]
    assert torch.equal(state.best["weights"]["head.weight"], checkpoints[3]["ema_model"]["head.weight"])
    assert state.best["epoch"] == 4 and checkpoints[1]["best"]["epoch"] == 1


def test_of_equal_losses_the_earlier_epoch_is_kept(bird, monkeypatch):
    _losses(bird, monkeypatch, [0.9, 0.8, 0.8])
    assert _train(bird, n_epochs=3, progressive=())[0].best["epoch"] == 2


def test_training_memorizes_a_few_photos(bird):
    """With everything off that would keep it from that."""
    off = {**PLAIN, "mixup": 0.0, "cutmix": 0.0, "dropout": 0.0, "label_smoothing": 0.0, "ema_decay": 0.5}
    history = _train(bird, n_epochs=18, lr=2e-3, patience=99, **off)[0].history
    assert history[-1]["train_accuracy"] >= 0.9 and history[-1]["train_loss"] < 0.5 * history[0]["train_loss"]


def test_training_does_not_depend_on_the_validation_photos(bird):
    """They may be anything: not a bit of the trained weights depends on them."""
    found = [_train(bird, photos=torch.cat([_photos(16, 48), _photos(4, 48, seed=seed)]))[1] for seed in (1, 2)]
    assert bird.serialized(found[0][-1]["model"]) == bird.serialized(found[1][-1]["model"])


# ---------------------------------------------------------------------------------------------------------------- data

def test_batches_are_read_at_once(bird):
    """In order, or shuffled by the generator without an incomplete one; only the photos at the index."""
    dataset = bird.PhotoDataset(_photos(20), torch.arange(20))
    index = [3, 1, 19, 7, 4]
    found = list(bird.batches(dataset, index, 2))
    assert [labels.tolist() for _, labels in found] == [[3, 1], [19, 7], [4]]
    assert all(torch.equal(photos, dataset.photos[labels]) for photos, labels in found)
    loader = bird.batches(dataset, index, 2, _generator(1))
    first, second = (torch.cat([labels for _, labels in loader]).tolist() for _ in range(2))
    assert len(first) == 4 and set(first) < set(index) and first != second and len(loader) == 2


# --------------------------------------------------------------------------------------------------------------- device

def test_precision_of_the_cpu_is_one_that_autocast_knows(bird):
    assert bird.pick_precision(CPU) in (torch.float32, torch.bfloat16)
    with bird.autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == bird.pick_precision(CPU)


# ------------------------------------------------------------------------------------------------------------- sources

def test_importing_the_script_does_no_work(bird_script):
    """Imports, definitions, constants, and the two guards against being imported."""
    tree, guards = ast.parse(bird_script.read_text()), []
    for node in tree.body[1:]:
        if isinstance(node, ast.If):
            guards.append(ast.dump(node.test))
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            calls = [part for part in ast.walk(node.value) if isinstance(part, ast.Call)]
            assert all(getattr(call.func, "attr", "") in ("join", "splitlines", "strip") for call in calls)
        else:
            assert isinstance(node, (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)), ast.dump(node)
    assert isinstance(tree.body[0], ast.Expr) and isinstance(tree.body[0].value, ast.Constant)
    assert len(guards) == 2 and all("__name__" in guard and "__main__" in guard for guard in guards)
