"""The parts of bird.py, each against a reference or a property that defines it."""
import copy
import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.utils.class_weight import compute_class_weight

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
    """A classifier of five classes with random weights and lively running statistics, not trained."""
    torch.manual_seed(0)
    model = bird.BirdClassifier(list("abcde"), [3, 1, 4, 1, 5], 32)
    with torch.no_grad():
        for _ in range(3):
            model(_photos(16, 32).float() / 255)
    return model.eval()


@pytest.fixture
def exact(bird, monkeypatch):
    monkeypatch.setattr(bird, "pick_precision", lambda device: torch.float32)


@given(seed=seeds, n=st.integers(1, 60), n_classes=st.integers(1, 7))
def test_confusion_matrix_and_average_f1_are_those_of_scikit_learn(bird, seed, n, n_classes):
    """Also with classes that are neither there nor predicted: they do not count."""
    truth, predicted = torch.randint(0, n_classes, (2, n), generator=_generator(seed))
    matrix = bird.confusion_matrix(truth, predicted, n_classes + 2)
    assert (matrix.numpy() == metrics.confusion_matrix(truth, predicted, labels=range(n_classes + 2))).all()
    expected = [metrics.f1_score(truth, predicted, average=average) for average in ("macro", "micro")]
    assert bird.average_f1(matrix) == pytest.approx(np.mean(expected))


@given(counts=st.lists(st.integers(0, 2000), min_size=1, max_size=12).filter(any))
def test_balanced_weights_are_those_of_scikit_learn(bird, counts):
    """A class without photos weighs nothing and changes no other."""
    labels, expected = np.repeat(np.arange(len(counts)), counts), np.zeros(len(counts))
    expected[np.unique(labels)] = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert bird.balanced_weights(counts).numpy() == pytest.approx(expected, rel=1e-5)


@given(counts=st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), fraction=st.floats(0.05, 0.5),
       seed=st.integers(0, 99))
def test_split_is_stratified_and_repeatable(bird, counts, fraction, seed):
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


def test_validation_photos_are_drawn_by_the_seed_from_the_whole_folder(bird):
    """Photos of one bird often have neighboring names."""
    val_idx, other = (bird.stratified_split(np.zeros(100, int), 0.2, seed)[1] for seed in (0, 1))
    assert val_idx.min() < 20 and val_idx.max() >= 80 and np.diff(val_idx).max() > 1
    assert val_idx.tolist() != other.tolist()


@given(seed=seeds, size=st.sampled_from([32, 40, 57]), n=st.integers(1, 5))
def test_crops_have_the_size_and_range_asked_for(bird, seed, size, n):
    photos = _photos(n, seed=seed % 99)
    before, crops = photos.clone(), bird.augment(photos, size, bird.Config(), _generator(seed))
    assert crops.dtype == torch.float32 and crops.shape == (n, 3, size, size) and torch.equal(photos, before)
    assert crops.isfinite().all() and crops.min() >= 0 and crops.max() <= 1


def test_each_photo_is_changed_in_its_own_way_by_the_generator_alone(bird):
    found = []
    for seed, global_seed in ((5, 1), (5, 2), (6, 2)):
        torch.manual_seed(global_seed)
        found.append(bird.augment(_photos(1).repeat(8, 1, 1, 1), 40, bird.Config(), _generator(seed)))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    assert ((found[0][:, None] - found[0]).abs().mean((2, 3, 4)) + torch.eye(8)).min() > 0.005


def test_without_augmentation_a_crop_is_the_photo_or_its_mirror_image(bird):
    photos = _photos(1, 80).repeat(200, 1, 1, 1)
    for size, within in ((80, 2e-3), (40, 0.02)):
        crops = bird.augment(photos, size, _config(bird, **{**PLAIN, "hflip": 0.5}), _generator())
        photo = F.avg_pool2d(photos / 255, 80 // size)
        upright, flipped = ((crops - x).abs().amax((1, 2, 3)) < within for x in (photo, photo.flip(3)))
        assert (upright ^ flipped).all() and 70 <= int(flipped.sum()) <= 130


@pytest.mark.parametrize("changes", [{"crop_scale": 0.25}, {"crop_scale": 0.3, "crop_ratio": 1.5}])
def test_crops_have_the_area_and_shape_asked_for(bird, changes):
    """Of a photo whose colors are its coordinates a crop shows their range."""
    ramp = torch.linspace(0, 255, 200).round().to(torch.uint8)
    photos = torch.stack([ramp.expand(200, 200), ramp[:, None].expand(200, 200), ramp.expand(200, 200)])
    config = _config(bird, **{**PLAIN, **changes})
    crops = bird.augment(photos.expand(300, 3, 200, 200), 32, config, _generator())
    width, height = (crops[:, channel].amax((1, 2)) - crops[:, channel].amin((1, 2)) for channel in (0, 1))
    area, ratio = width * height / (31 / 32) ** 2, width / height
    if "crop_ratio" in changes:
        assert 1.3 < ratio.max() < 1.55 and 0.65 < ratio.min() < 0.77 and (width * height).min() > 0.25
    else:
        assert 0.23 < area.min() < 0.32 and 0.93 < area.max() < 1.02 and (width - height).abs().max() < 0.02


def test_colors_change_within_their_bounds(bird):
    photos = torch.full((300, 3, 8, 8), 100, dtype=torch.uint8)
    tinted, brighter = (bird.augment(photos, 8, _config(bird, **{**PLAIN, **change}), _generator()) * 255
                        for change in ({"channel_jitter": 0.1}, {"color_jitter": 0.3}))
    assert 89.9 <= tinted.min() < 92 and 108 < tinted.max() <= 110.1
    assert tinted.std((2, 3)).max() < 0.01 and tinted.mean((2, 3)).std(1).max() > 3  # a tint is of one channel
    assert 69.9 <= brighter.min() < 75 and 125 < brighter.max() <= 130.1


@pytest.mark.parametrize("mixup, cutmix, low, high", [
    (1.0, 0.0, 400, 400), (0.0, 1.0, 400, 400), (0.2, 0.3, 160, 240), (0.0, 0.0, 0, 0)])
def test_mixed_targets_are_the_shares_of_the_photos(bird, mixup, cutmix, low, high):
    """Photo i has the color i everywhere: the mean colors of the mixture are the shares in its target."""
    photos, targets = torch.eye(3)[:, :, None, None].repeat(1, 1, 64, 64), torch.eye(3)
    config, generator = _config(bird, mixup=mixup, cutmix=cutmix), _generator()
    found = [bird.mix(photos, targets, config, generator) for _ in range(400)]
    changed = [mixed for mixed, _ in found if not torch.equal(mixed, photos)]
    assert low <= sum(mixed is not photos for mixed, _ in found) <= high and len(changed) >= low / 3
    for mixed, new in found:
        assert mixed.mean((2, 3)).numpy() == pytest.approx(new.numpy(), abs=1e-5)
    if 0.0 in (mixup, cutmix):
        assert all(((mixed == 0) | (mixed == 1)).all() == (cutmix > 0) for mixed in changed)
    assert (photos == torch.eye(3)[:, :, None, None]).all() and torch.equal(targets, torch.eye(3))


def test_learning_rate_warms_up_to_its_peak_and_decays_to_0(bird):
    config = _config(bird, lr=0.5, warmup=0.2)
    rates = np.array([bird.learning_rate(progress, config) for progress in np.linspace(0, 1, 501)])
    assert rates[[0, -1]] == pytest.approx(0, abs=1e-9) and rates.argmax() == 100 and rates[100] == pytest.approx(0.5)
    assert (np.diff(rates[:101]) > 0).all() and (np.diff(rates[100:]) < 0).all()
    assert bird.learning_rate(0.0, _config(bird, lr=0.5, warmup=0.0)) == pytest.approx(0.5)


def test_crops_grow_to_their_full_size_in_multiples_of_32(bird):
    for sizes, changes in (({0: 96, 0.29: 96, 0.3: 128, 0.59: 128, 0.6: 192, 1: 192},
                            {"image_size": 192, "progressive": ((0.3, 1 / 2), (0.6, 2 / 3))}),
                           ({0: 32, 1: 48}, {"image_size": 48}), ({0: 100}, {"image_size": 100, "progressive": ()})):
        assert {progress: bird.crop_size(progress, _config(bird, **changes)) for progress in sizes} == sizes


PACES = {"steady": lambda step: 1.0, "fast": lambda step: 0.01, "a slow start": lambda step: 20.0 if step == 1 else 0.9,
         "a pause": lambda step: 20.0 if step == 500 else 0.8}


def _simulated(bird, monkeypatch, limit, n_steps=1000, pace="steady"):
    """Schedule of a training on a machine whose steps take seconds in proportion to the area of the crops, times a
    pace; how long it took; at each step the progress and the estimated end."""
    clock, config, progress, ends = [0.0], bird.Config(), [], []
    monkeypatch.setattr(bird.time, "monotonic", lambda: clock[0])
    schedule = bird.Schedule(config, n_steps)
    schedule.limit = limit
    while schedule.progress() < 1:
        progress.append(schedule.progress())
        ends.append(clock[0] + 60 * schedule.minutes_left())
        size = bird.crop_size(progress[-1], config) / config.image_size
        clock[0] += (0.2 + 0.8 * size ** 2) * PACES[pace](len(progress))
        schedule.step += 1
    return schedule, clock[0], np.array(progress), ends


@pytest.mark.parametrize("pace", PACES)
def test_with_enough_time_progress_is_the_fraction_of_the_steps(bird, monkeypatch, pace):
    schedule, _, progress, _ = _simulated(bird, monkeypatch, 640, pace=pace)  # the steps take 590 seconds
    assert (progress == np.arange(1, 1001) / 1001).all() and not schedule.time_limited


@pytest.mark.parametrize("limit, pace", [(300, "steady"), (60, "steady"), (5, "steady"), (300, "a slow start"),
                                         (60, "a slow start"), (400, "a pause")])
def test_with_less_time_the_whole_schedule_is_shortened(bird, monkeypatch, limit, pace):
    """It ends in time, at the latest with the step that was begun, with a learning rate near 0."""
    schedule, seconds, progress, _ = _simulated(bird, monkeypatch, limit, n_steps=100_000, pace=pace)
    assert schedule.time_limited and seconds <= limit + PACES[pace](1) and (np.diff(progress) >= 0).all()
    if pace == "steady":
        rates, sizes = ([function(p, bird.Config()) for p in progress] for function in (
            bird.learning_rate, bird.crop_size))
        assert seconds >= limit and sorted(sizes) == sizes and sizes[-1] == bird.Config.image_size
        assert max(rates) > 0.8 * bird.Config.lr and rates[-1] < (0.001 if limit > 5 else 0.1) * bird.Config.lr


@pytest.mark.parametrize("limit, takes", [(math.inf, 590), (620, 590), (300, 300), (60, 60)])
def test_time_left(bird, monkeypatch, limit, takes):
    """It knows that large crops take longer; once the time limit determines the progress, it is what is left of it."""
    ends = _simulated(bird, monkeypatch, limit)[3][50:]
    assert ends == pytest.approx([takes] * len(ends), rel=0.03)


def test_ema_follows_weights_and_running_statistics(bird, model):
    ema_model, target = copy.deepcopy(model), copy.deepcopy(model)
    start = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    for name in start:
        target.state_dict()[name].add_(1.0)
    for decays, moved in (([0.5] * 3, 0.875), ([0.0], 1)):
        for decay in decays:
            bird.update_ema(ema_model, target, decay)
        for name, value in start.items():
            assert torch.allclose(ema_model.state_dict()[name], value + moved, atol=1e-5), name


def test_every_weight_has_one_optimizer_and_convolutions_decay(bird, model):
    decays = [(id(parameter), group["weight_decay"]) for optimizer in bird.make_optimizers(
        model, _config(bird, weight_decay=0.3)) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(decays) == len(dict(decays)) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert dict(decays)[id(parameter)] == (0.3 if parameter.ndim == 4 else 0), name


@pytest.mark.parametrize("shape", [(64, 200), (200, 64), (8, 8), (1, 30)], ids="{0[0]} x {0[1]}".format)
def test_orthogonalized_matrices_keep_their_singular_vectors(bird, shape):
    matrices = torch.randn(3, *shape, generator=_generator()) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None]
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ bird.orthogonalize(matrices) @ right.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert torch.allclose(found, torch.diag_embed(diagonal), atol=1e-4)
    strong = diagonal[values > 0.02 * values.norm(dim=1, keepdim=True)]  # a value next to 0 has a longer way to 1
    assert ((strong > 0.6) & (strong < 1.3)).all() and bird.orthogonalize(torch.zeros(2, *shape)).abs().max() == 0


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
    assert torch.allclose(ours.flatten(1), torch.cat(theirs), atol=0.01) and (ours - begin).abs().mean() > 0.1


def test_network_takes_photos_of_any_size_each_by_itself(model):
    for size in ((32, 32), (33, 33), (97, 97), (160, 40)):
        photos = torch.rand(4, 3, *size, generator=_generator())
        with torch.no_grad():
            together = model(photos)
            assert together.shape == (4, 5) and together.dtype == torch.float32 and together.isfinite().all()
            assert torch.equal(model(photos), together)
            for found in (torch.cat([model(photo[None]) for photo in photos]),
                          model(photos.contiguous(memory_format=torch.channels_last))):
                assert torch.allclose(found, together, atol=1e-4)


def test_gradient_reaches_all_parameters(bird):
    """After a nudge: weights that start at 0 keep it from those before them."""
    model = bird.BirdClassifier(list("abc"), [1, 1, 1], 48)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=_generator(parameter.numel())))
    F.cross_entropy(model(torch.rand(6, 3, 48, 48, generator=_generator())), torch.arange(6) % 3).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_model_saved_on_a_gpu_loads_on_the_cpu(bird, model, tmp_path):
    photos, moved = torch.rand(2, 3, 48, 48), copy.deepcopy(model).cuda()
    (tmp_path / "m.pth").write_bytes(bird.serialized(moved.state_dict()))
    with torch.no_grad():
        found = bird.load_model(str(tmp_path / "m.pth"))(photos)
        assert found.numpy() == pytest.approx(moved(photos.cuda()).cpu().numpy(), abs=0.02)


def test_a_center_crop_is_the_middle_of_the_photo(bird):
    for share, middle in ((1.0, slice(None)), (0.8, slice(5, 45)), (0.5, slice(12, 38))):
        expected = _photos(2, 50)[:, :, middle, middle] / 255
        assert torch.allclose(bird.center_crop(_photos(2, 50), share, expected.shape[-1], CPU), expected, atol=1e-6)


def test_probabilities_are_the_mean_over_the_views(bird, model, exact):
    photos = _photos(3, 32)
    with torch.no_grad():
        for flipped in (False, True):
            found = bird.predict_proba(model, photos, ((1.0, flipped),))
            assert torch.allclose(found, model((photos.flip(3) if flipped else photos) / 255).softmax(1), atol=1e-5)
    parts = torch.stack([bird.predict_proba(model, photos, (view,)) for view in bird.TEST_VIEWS])
    found = bird.predict_proba(model, photos)
    assert torch.allclose(found, parts.mean(0), atol=1e-5) and parts.std(0).max() > 1e-5  # the views do differ
    assert torch.allclose(bird.predict_proba(model, photos.flip(3)), found, atol=1e-4) and found.std(0).max() > 1e-4


@pytest.mark.parametrize("batch_size", [3, 64])
def test_evaluation_is_the_weighted_cross_entropy_of_the_center_crops(bird, model, exact, batch_size):
    photos, labels = _photos(20, 32), torch.arange(20) % 5
    index = torch.tensor([0, 3, 4, 5, 11, 12, 19])
    loss, matrix = bird.evaluate(model, bird.batches(bird.PhotoDataset(photos, labels), index, batch_size), 32)
    with torch.no_grad():
        logits = model(bird.center_crop(photos[index], bird.TEST_VIEWS[0][0], 32, CPU))
    expected = F.cross_entropy(logits, labels[index], weight=bird.balanced_weights(model.metadata["counts"]))
    assert loss == pytest.approx(float(expected), rel=1e-3)
    assert torch.equal(matrix, bird.confusion_matrix(labels[index], logits.argmax(1), 5))


def _train(bird, photos=None, **changes):
    """The state after training on random photos, by default for one epoch."""
    config = _config(bird, **{"epochs": 1, "batch_size": 8, "image_size": 32, **changes})
    dataset = bird.PhotoDataset(_photos(20, 48, seed=4) if photos is None else photos, torch.arange(20) % 3)
    state = bird.TrainState(list("abc"), [6, 5, 5], config, CPU)
    for _ in bird.train_classifier(state, dataset, torch.arange(16), torch.arange(16, 20), config):
        pass
    return state


SWITCHED_OFF = [
    {"warmup": 0.0, "patience": 0}, {"weight_decay": 0.0, "dropout": 0.0, "label_smoothing": 0.0},
    {"mixup": 0.0, "cutmix": 0.0}, {"ema_decay": 0.0, "class_weights": False}, {"progressive": (), "mix_until": 0.0},
    PLAIN]
SETTINGS = {"epochs", "batch_size", "lr", "image_size", "val_fraction", "seed"}


@pytest.mark.parametrize("changes", SWITCHED_OFF, ids=" ".join)
def test_every_technique_is_switched_off_by_a_value(bird, changes):
    state = _train(bird, **changes)
    assert all(value.isfinite().all() for value in state.best["weights"].values())
    assert all(math.isfinite(value) for value in state.history[0].values())
    assert {field.name for field in dataclasses.fields(bird.Config)} == SETTINGS.union(*SWITCHED_OFF)


def test_a_training_that_diverges_is_one_line(bird):
    with pytest.raises(bird.InputError, match="converges"):
        _train(bird, lr=1e30, epochs=3, warmup=0.0)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_one_step_changes_the_weights_and_without_ema_they_are_kept(bird, decay):
    state = _train(bird, ema_decay=decay, batch_size=16)
    before = bird.TrainState(list("abc"), [6, 5, 5], _config(bird, image_size=32), CPU).model.state_dict()
    after, ema = state.model.state_dict(), state.ema_model.state_dict()
    same = {name: torch.allclose(value, ema[name], atol=1e-6) for name, value in after.items()
            if value.is_floating_point()}
    assert all(same.values()) if decay == 0 else not same["head.weight"]
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_crop_sizes_and_mixing_follow_the_config(bird, monkeypatch):
    seen, mixed, augment, evaluate, mix = [], [], bird.augment, bird.evaluate, bird.mix
    monkeypatch.setattr(bird, "augment", lambda photos, size, *rest: seen.append(size) or augment(photos, size, *rest))
    monkeypatch.setattr(bird, "evaluate", lambda *args: seen.append(-args[2]) or evaluate(*args))
    monkeypatch.setattr(bird, "mix", lambda *args: mixed.append(1) or mix(*args))
    _train(bird, epochs=4, image_size=96, progressive=((0.5, 1 / 3), (0.75, 2 / 3)), mix_until=0.6)
    assert seen == [32, 32, -32, 32, 32, -64, 64, 64, -96, 96, 96, -96] and len(mixed) == 5  # of 8


@pytest.mark.parametrize("losses, changes, sizes, best", [
    # early stopping after `patience` epochs without a lower loss; of equal losses the earlier epoch is the best
    ([0.9, 0.1, *[0.5] * 20], {"epochs": 10, "patience": 3, "progressive": ()}, "LLLLL", 2),
    ([0.9, 0.8, 0.8], {"epochs": 3, "progressive": ()}, "LLL", 2),
    # the best epoch is one of the largest crops, the size of test; smaller crops do not count for patience
    ([0.1, 0.2, 0.5, 0.4, 0.5], {"epochs": 5, "progressive": ((0.5, 1 / 2),)}, "ssLLL", 4),
    ([0.1, *[0.5] * 20], {"epochs": 10, "patience": 2, "progressive": ((0.2, 1), (0.6, 1 / 2))}, "LssssLL", 1),
    # the default epochs and patience: it stops when the validation no longer improves
    ([0.1] * 300, {}, "s" * 169 + "L" * 11, 170), (np.linspace(1, 0, 300), {}, "s" * 169 + "L" * 31, 200),
    ([0.5] * 174 + [0.4] * 99, {}, "s" * 169 + "L" * 16, 175)])
def test_early_stopping_and_the_weights_that_are_kept(bird, monkeypatch, losses, changes, sizes, best):
    """Each epoch here sets a weight to its number."""
    def train(model, ema_model, optimizers, loader, schedule, *_):
        schedule.step += 2
        torch.nn.init.constant_(ema_model.head.bias, schedule.step // 2)
        return {}

    losses, size = iter(losses), 64 if changes else bird.Config.image_size
    monkeypatch.setattr(bird, "train_one_epoch", train)
    monkeypatch.setattr(bird, "evaluate", lambda *_: (next(losses), torch.ones(3, 3)))
    state = _train(bird, **{"image_size": size, "epochs": bird.Config.epochs, **changes})
    assert "".join("L" if row["crop_size"] == size else "s" for row in state.history) == sizes
    assert state.best["epoch"] == best and (state.best["weights"]["head.bias"] == best).all()


def test_training_does_not_depend_on_the_validation_photos(bird):
    found = [_train(bird, photos=torch.cat([_photos(16, 48), _photos(4, 48, seed=seed)])) for seed in (1, 2)]
    assert bird.serialized(found[0].model.state_dict()) == bird.serialized(found[1].model.state_dict())


def test_batches_are_in_order_or_shuffled_without_an_incomplete_one(bird):
    dataset, index = bird.PhotoDataset(_photos(20), torch.arange(20)), [3, 1, 19, 7, 4]
    found = list(bird.batches(dataset, index, 2))
    assert [labels.tolist() for _, labels in found] == [[3, 1], [19, 7], [4]]
    assert all(torch.equal(photos, dataset.photos[labels]) for photos, labels in found)
    loader = bird.batches(dataset, index, 2, _generator(1))
    first, second = (torch.cat([labels for _, labels in loader]).tolist() for _ in range(2))
    assert len(first) == 4 and set(first) < set(index) and first != second and len(loader) == 2


def test_precision_of_the_cpu_is_one_that_autocast_knows(bird):
    assert bird.pick_precision(CPU) in (torch.float32, torch.bfloat16)
    with bird.autocast(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == bird.pick_precision(CPU)
