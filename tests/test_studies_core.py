"""The shared floor of studies/: sources of images, losses, metrics, the training loop, figures, the report."""
import gzip
import importlib.util
import io
import json
import math
import os
import shutil
import subprocess
import sys
import types
import urllib.error
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import images_of, read_page
from PIL import Image
from torch import nn

from common.errors import InputError
from studies import __main__ as command
from studies import data, engine, figures, losses, metrics, report

ROOT = Path(__file__).resolve().parent.parent


# ---------------------------------------------------------------------------------------------------------------- data

def _idx_bytes(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def _save_classes(folder, pixels, labels, flat=False):
    for i, (image, label) in enumerate(zip(pixels, labels)):
        path = folder / (f"{i:03}.png" if flat else f"kind{label}/{i:03}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(str(path))


def _zip(folder, target, root=""):
    with zipfile.ZipFile(str(target), "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(str(path), root + path.relative_to(folder).as_posix())


@pytest.fixture(scope="module")
def drawn(draw):
    """(pixels uint8 (60, 28, 28), labels (60,)) of three kinds, sorted by kind."""
    labels = np.repeat([0, 1, 2], 20)
    return draw(labels, 5), labels


@pytest.fixture(scope="module")
def sources(drawn, tmp_path_factory):
    """The same images as each kind of source: {kind: path}."""
    folder, (pixels, labels) = tmp_path_factory.mktemp("sources"), drawn
    for name, ending, pack in (("idx", "", bytes), ("idxgz", ".gz", gzip.compress)):
        (folder / name).mkdir()
        for stem, rows in (("train", slice(None)), ("t10k", slice(0, 30))):
            (folder / name / f"{stem}-images-idx3-ubyte{ending}").write_bytes(pack(_idx_bytes(pixels[rows])))
            (folder / name / f"{stem}-labels-idx1-ubyte{ending}").write_bytes(
                pack(_idx_bytes(labels[rows].astype(np.uint8))))
    np.savez(str(folder / "labelled.npz"), data=pixels, labels=labels + 4)
    np.savez(str(folder / "floats.npz"), only=(pixels / 255).reshape(60, 784).astype(np.float32))
    np.save(str(folder / "bare.npy"), pixels[..., None])
    _save_classes(folder / "classes", pixels, labels)
    _save_classes(folder / "flat", pixels, labels, flat=True)
    _zip(folder / "classes", folder / "classes.zip", "archive/photos/")
    _zip(folder / "flat", folder / "flat.zip")
    names = {"idx": "idx", "idx, gzipped": "idxgz", "one idx file": "idx/train-images-idx3-ubyte",
             "one idx file, gzipped": "idxgz/train-images-idx3-ubyte.gz", "npz": "labelled.npz",
             "npz of floats": "floats.npz", "npy": "bare.npy", "class folders": "classes", "flat folder": "flat",
             "zip of class folders": "classes.zip", "flat zip": "flat.zip"}
    return {kind: folder / name for kind, name in names.items()}


def test_every_kind_of_source_gives_the_same_images(sources, drawn):
    pixels, labels = drawn
    for kind, path in sources.items():
        images = data.read_images(path, side=28, channels=1)
        assert images.pixels.dtype == torch.uint8 and images.pixels.shape == (60, 1, 28, 28), kind
        assert np.array_equal(images.pixels[:, 0], pixels), kind
        assert images.skipped == [], kind
        if kind in ("npz of floats", "npy", "flat folder", "flat zip"):
            assert images.labels is None, kind
        else:
            assert np.array_equal(images.labels, labels), kind
            assert images.classes == {"npz": ["4", "5", "6"], "class folders": ["kind0", "kind1", "kind2"],
                                      "zip of class folders": ["kind0", "kind1", "kind2"]}.get(kind, ["0", "1", "2"])


def test_own_test_files_are_held_out_and_else_a_share_of_each_class(sources, drawn):
    _, test, how = data.read_split([sources["idx"]], least=20)
    assert np.array_equal(test.pixels[:, 0], drawn[0][:30]) and "own" in how
    train, test, how = data.read_split([sources["npz"]], share=0.25, seed=3, least=10, labelled=True)
    assert len(train) == 45 and test.labels.bincount().tolist() == [5, 5, 5] and "25%" in how
    again = data.read_split([sources["npz"]], share=0.25, seed=3, least=10)[1]
    other = data.read_split([sources["npz"]], share=0.25, seed=4, least=10)[1]
    assert torch.equal(again.pixels, test.pixels) and not torch.equal(other.pixels, test.pixels)
    every = {image.numpy().tobytes() for image in torch.cat([train.pixels, test.pixels])}
    assert every == {image.tobytes() for image in drawn[0]}
    train, test, how = data.read_split([sources["npz of floats"], sources["idx"]], least=10)
    assert (len(train), len(test)) == (60, 30) and "of its own" in how
    with pytest.raises(InputError, match="labelled.npz: expected other images to hold out .*found the same"):
        data.read_split([sources["npz of floats"], sources["npz"]], least=10)


@pytest.mark.parametrize("zipped", (False, True))
def test_train_and_valid_folders_are_parts_not_classes(drawn, tmp_path, zipped):
    folder = source = tmp_path / "photos"
    for part in ("train", "valid"):
        _save_classes(folder / part, *drawn)
    _save_classes(folder / "drafts", drawn[0][:2], drawn[1][:2])
    shutil.copy(str(folder / "train/kind0/000.png"), str(folder / "preview.png"))
    if zipped:
        source = tmp_path / "photos.zip"
        _zip(folder, source)
    train, test, _ = data.read_split([source], 16, 3, least=10, labelled=True)
    assert train.classes == test.classes == ["kind0", "kind1", "kind2"] and train.pixels.shape == (60, 3, 16, 16)
    assert sorted(line.split(":")[0] for line in train.skipped) == [
        "drafts/kind0/000.png", "drafts/kind0/001.png", "preview.png"] and test.skipped == []


def test_where_torchvision_and_keras_put_their_files_they_are_found(sources, tmp_path, monkeypatch):
    shutil.copytree(str(sources["idx"].resolve()), str(tmp_path / "MNIST/raw"))
    monkeypatch.chdir(tmp_path)
    for source in ("MNIST", "MNIST/raw", "."):
        train, test, _ = data.read_split([source], least=20)
        assert (len(train), len(test)) == (60, 30) and train.labels is not None, source
    shutil.copytree("MNIST", "KMNIST")
    with pytest.raises(InputError, match="expected one set, found MNIST, KMNIST"):
        data.read_split(["."], least=20)
    np.savez("keras.npz", x_train=train.pixels[:, 0], y_train=train.labels, x_test=test.pixels[:, 0],
             y_test=test.labels)
    found = data.read_split(["keras.npz"], least=20)
    assert all(torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)
               for a, b in zip(found, (train, test)))


@pytest.mark.parametrize("change", (lambda name: "./" + name, lambda name: name.replace("/", "\\")))
def test_members_of_a_zip_may_be_named_as_other_programs_do(sources, drawn, tmp_path, change):
    with zipfile.ZipFile(str(tmp_path / "a.zip"), "w") as archive:
        for path in sorted(sources["class folders"].rglob("*.png")):
            archive.write(str(path), change(path.relative_to(sources["class folders"]).as_posix()))
    images = data.read_images(tmp_path / "a.zip", 28, 1)
    assert np.array_equal(images.pixels[:, 0], drawn[0]) and np.array_equal(images.labels, drawn[1])


def test_names_that_are_no_utf8_can_be_written_into_a_report(drawn, tmp_path):
    folder = tmp_path / "caf\udce9"
    try:
        _save_classes(folder, drawn[0][:40], [f"\udce9{label}" for label in drawn[1][:40]])
    except OSError:
        pytest.skip("this file system has UTF-8 alone")
    (folder / "kind\udce90/broken\udce9.png").write_bytes(b"no image")
    train, test, how = data.read_split([os.fsdecode(str(folder))], 16, 1, least=5)
    assert train.classes == ["kind\\udce90", "kind\\udce91"]
    json.dumps(report.describe_data([folder], train, test, how), ensure_ascii=False).encode()


@pytest.mark.parametrize("zipped", (False, True))
def test_broken_images_are_skipped_and_told(drawn, tmp_path, zipped, monkeypatch):
    folder = tmp_path / "photos"
    _save_classes(folder, *drawn)
    whole = (folder / "kind1/025.png").read_bytes()
    (folder / "kind1/cut.png").write_bytes(whole[:len(whole) // 2])
    (folder / "kind1/words.jpg").write_text("no image")
    (folder / "kind2/empty.png").write_bytes(b"")
    (folder / "kind2/long.png").write_bytes(whole + bytes(100_000))
    (folder / "stray.png").write_bytes(whole)
    (folder / "kind2/notes.txt").write_text("of no interest")
    monkeypatch.setattr(data, "MOST_FILE_BYTES", 50_000)
    source = folder
    if zipped:
        source = tmp_path / "photos.zip"
        _zip(folder, source)
    images = data.read_images(source, 28, 1)
    assert len(images) == 60 and np.array_equal(images.pixels[:, 0], drawn[0])
    assert sorted(line.split(":")[0] for line in images.skipped) == [
        "kind1/cut.png", "kind1/words.jpg", "kind2/empty.png", "kind2/long.png", "stray.png"]


def test_photos_are_upright_cropped_to_their_middle_and_white_where_transparent(tmp_path):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200
    turned = Image.fromarray(np.rot90(wide, 1).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    buffer = io.BytesIO()
    turned.save(buffer, format="PNG", exif=exif)
    assert (data.decode_photo(buffer.getvalue(), 16, 3) > 150).all()
    buffer = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(buffer, format="PNG")
    assert (data.decode_photo(buffer.getvalue(), 16, 1) == 255).all()
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(buffer, format="PNG")
    assert (data.decode_photo(buffer.getvalue(), 16, 1) == 40_000 // 256).all()


def test_grey_and_colour_are_given_as_asked(tmp_path):
    colour = np.zeros((4, 10, 10, 3), np.uint8)
    colour[..., 1] = 100
    np.save(str(tmp_path / "colour.npy"), colour)
    grey = data.read_images(tmp_path / "colour.npy", channels=1)
    assert grey.pixels.shape == (4, 1, 10, 10) and (grey.pixels == 59).all()  # 0.587 of 100
    np.save(str(tmp_path / "grey.npy"), colour[..., 1])
    assert data.read_images(tmp_path / "grey.npy", 20, 3).pixels.shape == (4, 3, 20, 20)


def test_names_are_downloaded_into_the_cache_or_the_lack_of_a_network_is_told(sources, tmp_path, monkeypatch):
    import torchvision.datasets

    def download(root, train, download):
        (Path(root) / "MNIST").mkdir(exist_ok=True)
        if train:
            shutil.copytree(str(sources["idx, gzipped"].resolve()), str(Path(root) / "MNIST/raw"))

    def fail(root, train, download):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    monkeypatch.chdir(tmp_path)
    train, test, _ = data.read_split(["mnist"], least=20, cache=tmp_path / "cache")
    assert (len(train), len(test)) == (60, 30)
    monkeypatch.setattr(torchvision.datasets, "KMNIST", fail)
    with pytest.raises(InputError, match="^KMNIST: expected a network .*no route"):
        data.read_images("KMNIST", cache=tmp_path / "cache")


def _bad_sources(folder, pixels):
    """{what is wrong: (path, a word of the message)}."""
    labels = np.zeros(60, np.int64)
    whole = _idx_bytes(pixels)

    def put(name, content):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, dict):
            np.savez(str(path), **content)
        else:
            path.write_bytes(content)
        return path

    put("d/images-idx3-ubyte", whole)
    put("d/labels-idx1-ubyte", _idx_bytes(np.zeros(59, np.uint8)))
    (folder / "hollow").mkdir()
    put("words/a.png", b"no image")
    return {
        "nothing": (folder / "none", "nothing there"), "a name with a typo": ("MNISTT", "MNIST, FashionMNIST"),
        "empty folder": (folder / "hollow", "found none"), "no readable image": (folder / "words", "1 skipped"),
        "text": (put("a.txt", b"hello there"), "idx, npz, npy or zip"), "empty file": (put("b", b""), "begins with"),
        "cut idx": (put("c-idx3-ubyte", whole[:-5]), "47,035"), "long idx": (put("e", whole + b"1"), "found more"),
        "greedy idx": (put("f", whole[:4] + b"\xff" * 12), "at most"),
        "empty idx": (put("r", whole[:4] + bytes(12)), "header of 0"),
        "damaged gzip": (put("s.gz", gzip.compress(whole)[:10] + b"\xff" * 99), "idx file"),
        "a long name": (folder / ("a" * 300), "nothing there"),
        "rows of nothing": (put("t.npz", {"data": pixels.reshape(60, -1)[:, :0]}), "found none"),
        "images of nothing": (put("u.npz", {"data": pixels[:, :0, :0]}), "found none"),
        "all rare but one": (put("v.npz", {"data": pixels, "labels": np.r_[labels[2:], 1, 2]}), "found 1: 0"),
        "cut gzip": (put("g.gz", gzip.compress(whole)[:-20]), "idx file"),
        "labels too few": (folder / "d/images-idx3-ubyte", "60 labels"),
        "cut zip": (put("h.zip", b"PK\3\4" + bytes(50)), "zip"),
        "pickled": (put("i.npz", {"data": np.array([{}, 1], object)}), "numbers"),
        "keys": (put("j.npz", {"x": pixels, "y": pixels}), "'data'"),
        "five channels": (put("k.npz", {"data": np.zeros((4, 5, 9, 9), np.uint8)}), "shape"),
        "nan": (put("l.npz", {"data": np.full((60, 28, 28), np.nan)}), "0..255"),
        "empty array": (put("m.npz", {"data": pixels[:0]}), "found none"),
        "one class": (put("n.npz", {"data": pixels, "labels": labels}), "two classes, found 1: 0"),
        "no labels": (put("o.npz", {"data": pixels}), "found no labels"),
        "label shape": (put("p.npz", {"data": pixels, "labels": labels[1:]}), "one label an image"),
        "too small": (put("q.npz", {"data": pixels[:12], "labels": np.arange(12) % 2}), "at least 20")}


def test_bad_sources_give_one_clear_line(drawn, tmp_path):
    for what, (path, word) in _bad_sources(tmp_path, drawn[0]).items():
        with pytest.raises(InputError) as caught:
            data.read_split([path], 28, 1, share=0.5, labelled=True, least=20)
        message = str(caught.value)
        assert word in message and "expected" in message and "found" in message and "\n" not in message, what
        assert what == "labels too few" or Path(str(path)).name in message, what  # whose line names the labels


# ------------------------------------------------------------------------------------------------------------- numerics

def test_losses_agree_with_the_distributions_of_torch():
    from torch.distributions import Bernoulli, Normal, kl_divergence
    rng = torch.Generator().manual_seed(0)
    mean, log_variance = torch.randn(5, 7, generator=rng), torch.randn(5, 7, generator=rng)
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(losses.kl_to_standard_normal(mean, log_variance), expected, atol=1e-5)
    logits, x = torch.randn(5, 1, 3, 3, generator=rng), torch.rand(5, 1, 3, 3, generator=rng).round()
    nll = losses.bernoulli_nll(logits, x)
    assert torch.allclose(nll, -Bernoulli(logits=logits).log_prob(x).flatten(1).sum(1), atol=1e-5)
    loss, reconstruction, kl = losses.negative_elbo(logits, x, mean, log_variance, beta=0.5)
    assert torch.allclose(loss, nll + 0.5 * expected, atol=1e-5)
    assert torch.equal(losses.squared_error(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]])), torch.tensor([5.0]))


def _with_moments(mean, covariance, n=400, seed=0):
    """Points (n, D) whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T @ np.linalg.cholesky(covariance).T
    return torch.from_numpy(x + mean)


def test_fid_of_known_gaussians():
    from scipy.linalg import sqrtm
    a = _with_moments(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = _with_moments(np.array([3.0, 0, 4.0]), np.diag([4.0, 4.0, 1.0]), seed=1)
    assert metrics.fid(a, b) == pytest.approx(25 + 1 + 0 + 4, rel=1e-6)
    assert metrics.fid(a, a) == pytest.approx(0, abs=1e-6)
    first, second = np.array([[2.0, 0.8], [0.8, 1.0]]), np.array([[1.0, -0.5], [-0.5, 3.0]])
    expected = np.trace(first + second - 2 * sqrtm(first @ second).real)
    found = metrics.fid(_with_moments(np.zeros(2), first), _with_moments(np.zeros(2), second, seed=2))
    assert found == pytest.approx(expected, rel=1e-6)


def test_small_metrics_agree_with_values_worked_by_hand():
    assert metrics.wilson_interval(8, 10) == pytest.approx([0.4902, 0.9433], abs=1e-4)
    assert metrics.wilson_interval(0, 10) == pytest.approx([0, 0.2775], abs=1e-4)
    points = torch.tensor([[0.0, 0], [3, 4], [0, 4]])
    assert metrics.mean_pairwise_l2(points) == pytest.approx((5 + 4 + 3) / 3)
    assert metrics.diversity(points, 3, 0) == metrics.mean_pairwise_l2(points)
    by_class = torch.arange(4.0).repeat_interleave(50)[:, None]
    assert metrics.diversity(by_class, 50, 1) == pytest.approx(metrics.mean_pairwise_l2(by_class), rel=0.15)
    dot = torch.zeros(1, 1, 5, 5)
    dot[0, 0, 2, 2] = 1
    assert metrics.sharpness(dot) == pytest.approx((16 + 4) / 9)
    assert metrics.majority_baseline(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0, 0])) == 0.25
    z, y = torch.tensor([[0.0], [1], [10], [11]]), torch.tensor([0, 0, 1, 1])
    assert metrics.silhouette(z, y) == pytest.approx((2 * (1 - 1 / 10.5) + 2 * (1 - 1 / 9.5)) / 4)
    assert metrics.silhouette(z, torch.zeros(4)) is None
    assert metrics.knn_accuracy(z, y, torch.tensor([[2.0], [9.0], [9.5]]), torch.tensor([0, 1, 0]), k=1) == 2 / 3
    assert metrics.mean_and_sd([1.0, 3.0]) == {"mean": 2, "sd": math.sqrt(2), "values": [1, 3]}
    assert metrics.mean_and_sd([1.0])["sd"] is None and metrics.mean_and_sd([None])["mean"] is None


def test_near_copies_are_counted_but_not_plain_images_that_look_alike():
    draw = torch.Generator().manual_seed(0)
    train = torch.randint(256, (30, 3, 8, 8), dtype=torch.uint8, generator=draw)
    test = torch.randint(256, (12, 3, 8, 8), dtype=torch.uint8, generator=draw)
    assert metrics.near_copies(train, test) == 0
    test[3], test[7] = train[29], (train[4].float() * 0.96).byte()
    assert metrics.near_copies(train, test) == 2
    test[8], train[9] = 200, 203
    assert metrics.near_copies(train, test) == 2
    train[9] = 200
    assert metrics.near_copies(train, test) == 3


def test_inception_without_its_package_or_weights_is_one_clear_line(tmp_path):
    (tmp_path / "w.pt").write_bytes(b"no weights")
    for name in ("w.pt", "none.pt"):
        with pytest.raises(InputError, match=f"{name}: expected .*found"):
            metrics.inception_features(tmp_path / name)


# ------------------------------------------------------------------------------------------------------------ training

TRAINING = '''
import json, sys
import torch
from torch import nn
from studies import engine
from studies.data import Images


class Net(nn.Module):  # no bias before a norm: its gradient is rounding noise, which Adam would blow up
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 2, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                                  nn.Dropout(DROPOUT), nn.Flatten(), nn.Linear(36, 5, bias=False),
                                  nn.BatchNorm1d(5), nn.Linear(5, 3))

    def forward(self, x, noise):
        return self.body(x + 0.1 * noise)


def step(modules, batch):
    logits = modules["net"](batch.x, batch.normal(1, 8, 8))
    return {"loss": nn.functional.cross_entropy(logits, batch.y), "size": (logits ** 2).mean()}


def images(n, seed):
    draw = torch.Generator().manual_seed(seed)
    return Images(torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=draw),
                  torch.randint(3, (n,), generator=draw), ["a", "b", "c"], [])


def train(bench, epochs, step=step, **options):
    with engine.seeded(4):
        net = Net()
    return engine.fit(bench, "net", {"net": net}, {"net": torch.optim.Adam(net.parameters(), 1e-2)}, step,
                      images(99, 1), images(31, 2), epochs=epochs, batch=21, seed=5, **options)


if __name__ == "__main__":
    bench = engine.open_bench(sys.argv[1], "cpu", int(sys.argv[2]), quiet=True)
    fitted = train(bench, 3)
    if bench.leads:
        print(json.dumps([fitted.history, [p.flatten().tolist() for p in fitted.modules["net"].state_dict().values()]]))
'''


def _training(folder, dropout):
    path = folder / "training.py"
    path.write_text(TRAINING.replace("DROPOUT", str(dropout)))
    spec = importlib.util.spec_from_file_location("training", str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return path, module


def _bench(folder, resume=False):
    return engine.open_bench(folder, "cpu", resume=resume, quiet=True)


def test_two_processes_give_the_losses_and_weights_of_one(tmp_path, environment):
    path, training = _training(tmp_path, 0)
    command = [sys.executable, str(path), str(tmp_path / "two"), "2"]
    found = subprocess.run(command, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                           timeout=200, cwd=str(tmp_path))
    assert found.returncode == 0, found.stderr[-2000:]
    history, weights = json.loads(found.stdout.splitlines()[-1])
    one = training.train(_bench(tmp_path / "one"), 3)
    for two_row, row in zip(history, one.history):
        for part in ("train", "test"):
            assert two_row[part] == pytest.approx(row[part], rel=2e-4), (row["epoch"], part)
    for values, tensor in zip(weights, one.modules["net"].state_dict().values()):
        assert np.allclose(values, tensor.flatten(), atol=2e-3)
    assert one.history[0]["train"]["loss"] != one.history[2]["train"]["loss"]


def test_a_resumed_training_reaches_the_weights_of_an_uninterrupted_one(tmp_path):
    _, training = _training(tmp_path, 0.3)
    kept = {"each_epoch": lambda modules, epoch: modules["net"].body[0].weight.sum().clone()}
    whole = training.train(_bench(tmp_path / "whole"), 4, **kept)

    def stop(modules, epoch):
        if epoch == 3:
            raise KeyboardInterrupt
        return kept["each_epoch"](modules, epoch)

    with pytest.raises(KeyboardInterrupt):
        training.train(_bench(tmp_path / "parts"), 4, each_epoch=stop)
    resumed = training.train(_bench(tmp_path / "parts", resume=True), 4, **kept)
    assert resumed.trained == 2 and len(resumed.history) == len(resumed.kept) == 4
    assert resumed.curve("test", "loss") == whole.curve("test", "loss") and resumed.kept == whole.kept
    for key, value in whole.modules["net"].state_dict().items():
        assert torch.equal(value, resumed.modules["net"].state_dict()[key]), key
    again = training.train(_bench(tmp_path / "parts", resume=True), 4, step=None)  # no step: nothing may be trained
    assert again.trained == 0 and again.history == resumed.history and not again.modules["net"].training


def test_a_checkpoint_of_another_training_or_a_broken_one_is_refused(tmp_path):
    _, training = _training(tmp_path, 0)
    training.train(_bench(tmp_path), 2, about={"rate": 1})
    for options, word in (({"about": {"rate": 2}}, "expected rate 2 as asked, found a training with 1"),
                          ({"about": {"rate": 1}, "epochs": 1}, "at most 1 epochs as asked, found 2")):
        with pytest.raises(InputError, match=f"net.pt: .*{word}.*without --resume"):
            training.train(_bench(tmp_path, resume=True), **{"epochs": 2, **options})
    checkpoint = tmp_path / "checkpoints/net.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-200])
    with pytest.raises(InputError, match="net.pt: expected a checkpoint, found.*without --resume"):
        training.train(_bench(tmp_path, resume=True), 2, about={"rate": 1})


def test_a_diverging_training_and_a_device_that_is_not_there_are_told(tmp_path):
    _, training = _training(tmp_path, 0)
    with pytest.raises(InputError, match="net: expected losses that are numbers, found train loss nan in epoch 1"):
        training.train(_bench(tmp_path), 2, step=lambda modules, batch: {"loss": modules["net"](
            batch.x, batch.x).mean() * math.nan})
    with pytest.raises(InputError, match="--device"):
        engine.open_bench(tmp_path, "warp")
    with pytest.raises(InputError, match="--precision"):
        engine.open_bench(tmp_path, "cpu", precision="8")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file: expected a folder"):
        engine.open_bench(tmp_path / "file", "cpu")


def test_a_process_whose_leader_has_ended_says_nothing(monkeypatch, tmp_path):
    def run(args):
        raise RuntimeError(f"[tcp/pair.cc:545] {args.data[0]}")

    monkeypatch.setitem(sys.modules, "studies.one", types.SimpleNamespace(
        EXAMPLE="", __doc__="", add_arguments=lambda parser: None, run=run))
    monkeypatch.setitem(command.STUDIES, "one", "")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert command.main(["one", "Connection reset by peer", "--out", str(tmp_path)]) == 1
    with pytest.raises(RuntimeError, match="another"):
        command.main(["one", "another", "--out", str(tmp_path)])


def test_two_optimizers_train_in_turns_by_an_update_of_ones_own(tmp_path):
    _, training = _training(tmp_path, 0)
    with engine.seeded(0):  # some first weights have next to no loss to lose
        modules = {"a": nn.Linear(64, 1), "b": nn.Linear(64, 1)}
    optimizers = {key: torch.optim.SGD(module.parameters(), 0.01) for key, module in modules.items()}

    def update(models, optimizers, batch, backward):
        found = {}
        for key in ("a", "b"):
            loss = (models[key](batch.x.flatten(1)) ** 2).mean()
            optimizers[key].zero_grad()
            backward(loss)
            optimizers[key].step()
            found[key] = loss
        return found

    fitted = engine.fit(_bench(tmp_path), "turns", modules, optimizers, None, training.images(40, 1), epochs=3,
                        batch=10, update=update, channels_last=True)
    for key in ("a", "b"):
        assert fitted.curve("train", key)[-1] < fitted.curve("train", key)[0]


def test_the_feature_net_learns_classes_or_turns_and_states_its_accuracy(drawn, tmp_path):
    pixels, labels = torch.from_numpy(drawn[0])[:, None], torch.from_numpy(drawn[1])
    images = data.Images(pixels, labels, ["bar", "ring", "cross"], [])
    net, about = metrics.train_feature_net(_bench(tmp_path / "a"), images, images, steps=30, batch=20)
    assert about["accuracy"] > 0.9 and about["what"] == "the 3 classes"
    assert about["interval"][0] < about["accuracy"] <= about["interval"][1]
    real = images.pixels.float() / 255
    found = metrics.fid_with_floor(lambda x: engine.mapped(net.features, x), images, images,
                                   {"noise": torch.rand(60, 1, 28, 28), "same": real})
    assert found["n"] == 60 and found["floor"] < 1e-3 and found["same"] < 1e-3 and found["noise"] > 1
    bare = data.Images(pixels, None, [], [])
    _, about = metrics.train_feature_net(_bench(tmp_path / "b"), bare, bare, steps=2, batch=20)
    assert "turns" in about["what"] and 0 <= about["accuracy"] <= 1


# ------------------------------------------------------------------------------------------------------ figures, report

def test_a_gif_keeps_its_frames_and_a_signature_is_drawn():
    frames = [figures.png_bytes(figures.curves_figure({"a": {"training loss": [3.0, n]}}, "nats")) for n in (1, 2, 3)]
    with Image.open(io.BytesIO(figures.gif_bytes(frames))) as gif:
        assert gif.n_frames == 3 and gif.format == "GIF"
    sheet = figures.mosaic(torch.zeros(5, 1, 4, 4), 3)
    assert sheet.shape == (9, 14, 3) and (sheet == 0).mean() == pytest.approx(5 * 16 / (9 * 14))

    def make():
        return figures.scatter_figure({"z": np.eye(2)}, [0, 1], ["a", "b"])

    assert figures.png_bytes(make(), "by hand") != figures.png_bytes(make()) == figures.png_bytes(make())


@pytest.mark.filterwarnings("error")
def test_names_of_classes_and_signatures_are_drawn_as_they_are():
    names, points = ["_a", "$b_^$", ""], np.eye(3)[:, :2]
    frame = figures.latent_frame(points, range(3), names, ((-1, 1), (-1, 1)), {"a": torch.zeros(2, 1, 8, 8)}, "t")
    for figure in (figures.scatter_figure({"z": points}, range(3), names), frame):
        assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == names
        figures.png_bytes(figure, "$x_^$")


def test_a_report_opens_by_itself_and_escapes_what_it_is_told(tmp_path):
    content = figures.png_bytes(figures.rows_figure({"original": torch.rand(4, 3, 8, 8)}))
    picture = figures.Picture("rows", content, 'four "images" <here>', "caption & more")
    table = report.Table("<numbers>", ["what", "n"], [["a<b", 1], ["c", "-"]])
    results = {"versions": report.versions(), "numbers": {"x": 1.5}}
    paths = report.write(tmp_path, "A <title>", "lead", [report.Section("One", ["text"], [table], [picture])], results)
    assert sorted(Path(path).name for path in paths) == ["report.html", "results.json", "rows.png"]
    text, tags = read_page(tmp_path / "report.html")
    assert [image["alt"] for image in images_of(tags)] == ['four "images" <here>']
    assert "script" not in {tag for tag, _ in tags} and "http" not in text.replace("http-equiv", "")
    assert "prefers-color-scheme: dark" in text and "overflow-x: auto" in text and "&lt;title&gt;" in text
    assert json.loads((tmp_path / "results.json").read_text())["versions"]["torch"] == torch.__version__.split("+")[0]


def test_garments_are_named_in_the_folder_of_fashion_mnist_alone(sources, tmp_path):
    for folder, first in (("Fashion-MNIST/raw", "T-shirt/top"), ("a fashion course/digits", "0")):
        shutil.copytree(str(sources["idx"]), str(tmp_path / folder))
        assert data.read_images(tmp_path / folder).classes[0] == first


def test_of_small_classes_some_images_are_held_out_too():
    images = data.Images(torch.zeros(40, 1, 8, 8, dtype=torch.uint8), torch.arange(40) // 2, list(map(str, range(20))),
                         [])
    train, test = data.held_out(images, 0.2, 0)
    assert (len(train), len(test)) == (32, 8)


def test_a_leap_in_the_first_epoch_does_not_flatten_the_curve():
    later = [9.0, 8, 7, 6]
    for first, top in ((10.0, 10), (30.0, 30), (4e6, 9.9)):
        curves = {"training loss": [first, *later], "held-out loss": [9, *later]}
        axes = figures.curves_figure({"loss": curves}, "nats").axes[0]
        assert axes.get_ylim()[1] == pytest.approx(top, rel=0.05) and axes.get_ylim()[0] == pytest.approx(6, rel=0.25)
        assert ("4e+06" in axes.get_xlabel()) is (first == 4e6)


def test_thirty_classes_look_different():
    looks = {(figures.PALETTE[i % len(figures.PALETTE)], figures.marker_of(i)) for i in range(30)}
    assert len(looks) == 30


def test_numbers_are_written_with_their_spread():
    assert report.number(162.0) == "162.0" and report.number(0.0472) == "0.04720" and report.number(12_345) == "12,345"
    assert report.number({"mean": 1.5, "sd": 0.25}) == "1.500 ± 0.25" and report.number(None) == "–"
    weak = report.weak_features({"accuracy": 0.4}, 0.2, "little is told")
    assert weak.endswith(": little is told.") and report.weak_features({"accuracy": 0.6}, 0.2, "little is told") == ""
    assert report.number(123456.0) == "123,456" and report.share(0.5, [0.4, 0.6]) == "50.0 % (40.0 to 60.0)"
    fabric = types.SimpleNamespace(device=torch.device("cpu"), world_size=2)
    assert report.device_name(fabric).startswith("2 x cpu")


# ------------------------------------------------------------------------------------------------- several processes

TWO = '''
import sys, time
from common.errors import InputError
from studies import __main__ as command, autoencoder, engine


def run(args):
    bench = engine.open_bench(args.out, "cpu", 2, quiet=True)
    if args.seed == 1 and bench.leads:
        raise InputError("expected a disk, found it full")
    bench.fabric.all_reduce(bench.fabric.to_device(engine.torch.ones(1)))
    time.sleep(3 * bench.leads)  # the first one draws figures while the other has no more to do
    return 0


autoencoder.run = run
sys.exit(command.main(sys.argv[1:]))
'''


@pytest.mark.parametrize("seed, code, told", [(0, 0, ""), (1, 2, "expected a disk, found it full\n")])
def test_two_processes_leave_together_whether_all_is_well_or_the_first_fails_alone(tmp_path, environment, seed, code,
                                                                                   told):
    (tmp_path / "two.py").write_text(TWO)
    words = [sys.executable, "two.py", "autoencoder", "x", "--out", "out", "--seed", str(seed)]
    found = subprocess.run(words, cwd=str(tmp_path), env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True,
                           text=True, timeout=100)
    assert found.returncode == code, found.stderr
    assert told in found.stderr and "terminate" not in found.stderr and "Traceback" not in found.stderr
