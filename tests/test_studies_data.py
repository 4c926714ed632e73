"""Sources of images for studies/: each kind, what is held out, and what is refused."""
import gzip
import pickle
import types
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from refusals import Bomb

from common.errors import InputError
from studies import data


def _save_idx(folder, pixels, labels):
    """The four files of MNIST, packed, as Debian installs them."""
    folder.mkdir(parents=True)
    for name, array in (("images-idx3", pixels), ("labels-idx1", labels.astype(np.uint8))):
        content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        for part in ("train", "t10k"):
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(content))


def _save_photos(folder, pixels, labels, flat=False):
    for i, (image, label) in enumerate(zip(pixels, labels)):
        path = folder / (f"{i:03}.png" if flat else f"kind{label}/{i:03}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(str(path))
    return folder


@pytest.fixture(scope="module")
def drawn(draw):
    """(pixels uint8 (60, 28, 28), labels (60,)) of three kinds, sorted by kind."""
    labels = np.repeat([0, 1, 2], 20)
    return draw(labels, 5), labels


@pytest.fixture(scope="module")
def sources(drawn, tmp_path_factory):
    """The same images as each kind of source: {kind: path}."""
    folder, (pixels, labels) = tmp_path_factory.mktemp("sources"), drawn
    np.savez(str(folder / "bytes.npz"), data=pixels, labels=labels + 4)
    np.savez(str(folder / "floats.npz"), data=(pixels / 255).astype(np.float32), labels=labels)
    np.savez(str(folder / "integers.npz"), data=pixels.astype(int), labels=labels.astype(str))
    np.save(str(folder / "bare.npy"), pixels[..., None])
    _save_photos(folder / "classes", pixels, labels)
    _save_photos(folder / "flat", pixels, labels, flat=True)
    for part in ("train", "valid"):
        _save_photos(folder / "parts" / part, pixels, labels)
    return {path.name: path for path in folder.iterdir()}


def test_every_kind_of_source_gives_the_same_images(sources, drawn):
    pixels, labels = drawn
    kinds = ["kind0", "kind1", "kind2"]
    classes = {"bytes.npz": ["4", "5", "6"], "classes": kinds, "parts": kinds}
    for name, path in sources.items():
        images = data.read(path, 28, 1)["train"]
        assert images.pixels.dtype == torch.uint8 and images.skipped == [], name
        assert np.array_equal(images.pixels[:, 0], pixels), name
        if name in ("bare.npy", "flat"):
            assert images.labels.tolist() == [-1] * 60 and images.classes == [], name
        else:
            assert np.array_equal(images.labels, labels), name
            assert images.classes == classes.get(name, ["0", "1", "2"]), name


@pytest.mark.parametrize("white", [np.uint8(1), 1.000001, np.uint8(255)])
def test_white_is_255_whatever_the_scale_of_the_file(white, drawn, tmp_path):
    np.save(str(tmp_path / "bits.npy"), white * (drawn[0] > 99))
    assert np.array_equal(data.read(tmp_path / "bits.npy", 28, 1)["train"].pixels[:, 0], 255 * (drawn[0] > 99))


def test_own_test_files_are_held_out_and_else_a_share_of_each_class(sources, drawn, tmp_path):
    train, test, how = data.read_split([sources["parts"]], 28, 1, least=30)
    assert len(train) == 60 and np.array_equal(test.pixels[:, 0], drawn[0]) and "own" in how
    for name in ("bytes.npz", "flat"):
        train, test, how = data.read_split([sources[name]], 28, 1, 3, least=10)
        assert len(train) == 48 and "20%" in how
        assert name == "flat" or test.labels.bincount().tolist() == [4, 4, 4]
        again, other = (data.read_split([sources[name]], 28, 1, seed, least=10)[1] for seed in (3, 4))
        assert torch.equal(again.pixels, test.pixels) and not torch.equal(other.pixels, test.pixels)
        every = {image.numpy().tobytes() for image in torch.cat([train.pixels, test.pixels])}
        assert every == {image.tobytes() for image in drawn[0]}
    some = _save_photos(tmp_path, drawn[0][20:], drawn[1][20:])
    _, test, how = data.read_split([sources["classes"], some], 28, 1, least=20)
    assert test.classes == ["kind0", "kind1", "kind2"] and test.labels.bincount().tolist() == [0, 20, 20]
    assert how == "a source of its own"
    rare = data.Images(torch.zeros(60, 1, 8, 8, dtype=torch.uint8), torch.arange(60), list(map(str, range(60))), [])
    assert [len(part) for part in data._held_out(rare, 0)] == [48, 12]


def test_broken_images_are_counted_and_skipped(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as after bird.py has read a photo
    folder = _save_photos(tmp_path / "photos", *drawn)
    whole = (folder / "kind1/025.png").read_bytes()
    (folder / "kind1/cut.png").write_bytes(whole[:len(whole) // 2])
    (folder / "kind1/words.jpg").write_text("no image")
    (folder / "kind2/empty.png").write_bytes(b"")
    (folder / "stray.png").write_bytes(whole)
    (folder / "kind2/notes.txt").write_text("not an image by its name")
    (folder / "kind2/.hidden.png").write_bytes(b"")
    images = data.read(folder, 28, 1)["train"]
    assert len(images) == 60 and np.array_equal(images.pixels[:, 0], drawn[0])
    assert sorted(line.split(":")[0] for line in images.skipped) == [
        "kind1/cut.png", "kind1/words.jpg", "kind2/empty.png", "stray.png"]


def test_photos_are_upright_cropped_to_their_middle_and_white_where_transparent(tmp_path, recwarn):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 18:42] = 200
    turned = Image.fromarray(np.rot90(wide, 1).copy())
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned.save(str(tmp_path / "a.png"), exif=exif)
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(str(tmp_path / "b.png"))
    Image.fromarray(np.full((16, 16), 40_000, np.uint16)).save(str(tmp_path / "c.png"))
    Image.new("P", (16, 16)).save(str(tmp_path / "d.png"), transparency=b"\0")
    images = data.read(tmp_path, 16, 3)["train"]
    assert [int(image.float().mean().round()) for image in images.pixels] == [200, 255, 40_000 // 256, 255]
    assert (images.pixels[0] > 150).all() and not recwarn.list


def test_grey_colour_and_size_are_given_as_asked(tmp_path):
    colour = np.zeros((4, 10, 10, 3), np.uint8)
    colour[..., 1] = 100
    np.save(str(tmp_path / "colour.npy"), colour)
    for side, channels, shape, mean in ((10, 1, (4, 1, 10, 10), 58), (20, 3, (4, 3, 20, 20), 100 / 3)):
        pixels = data.read(tmp_path / "colour.npy", side, channels)["train"].pixels
        assert pixels.shape == shape and float(pixels.double().mean()) == pytest.approx(mean)


def test_batches_are_floats_in_0_1_and_few_are_drawn_by_the_seed(drawn):
    images = data.Images(torch.from_numpy(drawn[0])[:, None], torch.from_numpy(drawn[1]), ["a", "b", "c"], [])
    x, y = images.__getitems__([0, 59])
    assert torch.equal(x, images.floats()[[0, 59]]) and 0.7 < x.max() <= 1 and y.tolist() == [0, 2]
    few = images.at_most(10, 1)
    assert len(few) == 10 and torch.equal(few.pixels, images.at_most(10, 1).pixels) and images.at_most(60, 1) is images
    assert not torch.equal(few.pixels, images.at_most(10, 2).pixels)


def test_names_are_downloaded_into_the_cache_or_the_lack_of_a_network_is_one_line(drawn, tmp_path, monkeypatch):
    def download(root, train, download):
        assert root.startswith(str(tmp_path)) and download
        return types.SimpleNamespace(data=torch.from_numpy(drawn[0][:60 if train else 30]), classes=["a", "b", "c"],
                                     targets=torch.from_numpy(drawn[1][:60 if train else 30]))

    def fail(root, train, download):
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data.datasets, "MNIST", download)
    train, test, _ = data.read_split(["MNIST"], 28, 1, least=30)
    assert (len(train), len(test), train.classes) == (60, 30, ["a", "b", "c"])
    monkeypatch.setattr(data.datasets, "KMNIST", fail)
    with pytest.raises(InputError, match="^KMNIST: expected a network .*no route"):
        data.read_split(["KMNIST"], 28, 1)


def test_what_debian_has_installed_is_read_by_torchvision(drawn, tmp_path, monkeypatch):
    _save_idx(tmp_path / "installed", *drawn)
    monkeypatch.setattr(data, "INSTALLED", {"FashionMNIST": str(tmp_path / "installed")})
    train, test, how = data.read_split(["FashionMNIST"], 28, 1)
    assert train.classes[7] == "Sneaker" and "own" in how
    for images in (train, test):
        assert np.array_equal(images.pixels[:, 0], drawn[0]) and np.array_equal(images.labels, drawn[1])


def _bad_sources(folder, pixels, labels, bomb):
    """{what is wrong: (the bad source, a word of the message)}."""
    def write(name, content):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return name

    objects = np.array([bomb] * 60, object)
    arrays = {  # arrays of a .npz: a word of the message
        "pickled images": ({"data": objects}, "Object arrays"), "keys": ({"x": pixels, "y": labels}, "'data'"),
        "pickled labels": ({"data": pixels, "labels": objects}, "Object arrays"),
        "channels": ({"data": np.zeros((60, 5, 9, 9))}, "(60, 5, 9, 9)"), "no axes": ({"data": np.float64(3)}, "()"),
        "no square": ({"data": pixels.reshape(60, -1)[:, 1:]}, "(60, 783)"), "none": ({"data": pixels[:0]}, "(0, 28"),
        "no columns": ({"data": pixels[:, :, :0]}, "(60, 28, 0)"), "words": ({"data": pixels.astype(str)}, "<U3"),
        "nan": ({"data": pixels * np.nan}, "nan"), "negative": ({"data": pixels - 1.0}, "from -1 to 254"),
        "a label too few": ({"data": pixels, "labels": labels[1:]}, "each of 60 images, found int64 of shape (59,)"),
        "two axes of labels": ({"data": pixels, "labels": labels.reshape(30, 2)}, "(30, 2)"),
        "labels nan": ({"data": pixels, "labels": np.where(labels == 1, np.nan, labels)}, "found float64"),
        "one class": ({"data": pixels, "labels": labels * 0}, "two classes, found 1"),
        "no labels": ({"data": pixels}, "two classes, found 0"), "few": ({"data": pixels[:9]}, "at least 12"),
        "one image": ({"data": pixels[:1], "labels": labels[:1]}, "at least 12")}
    for name, (content, _) in arrays.items():
        np.savez(str(folder / f"{name}.npz"), **content)
    np.save(str(folder / "pickled.npy"), objects, allow_pickle=True)
    (folder / "hollow").mkdir()
    return {
        **{name: (f"{name}.npz", word) for name, (_, word) in arrays.items()}, "nothing": ("none", "nothing there"),
        "a typing error": ("MNISTT", "MNIST, FashionMNIST"), "empty folder": ("hollow", "found none"),
        "no image": (write("photos/a/a.png", b"no image") and "photos", "1 skipped"),
        "text": (write("a.txt", b"hello"), "another file"), "empty file": (write("b.npz", b""), "No data left"),
        "cut npz": (write("c.npz", (folder / "no labels.npz").read_bytes()[:9000]), "zip"),
        "pickled npy": ("pickled.npy", "Object arrays"), "pickle": (write("d.npz", pickle.dumps(bomb)), "pickled")}


def test_bad_sources_give_one_clear_line_and_no_pickle_is_loaded(drawn, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bad = {what: ([name], word) for what, (name, word) in _bad_sources(tmp_path, *drawn, Bomb("exploded")).items()}
    for what, paths, word in (*((what, *rest) for what, rest in bad.items()), *(
            (name, [sources["floats.npz"], name], word) for name, word in (
                ("few.npz", "at least 12 images to hold out"), ("no labels.npz", "two classes, found 0"))),
            ("other classes", [sources["floats.npz"], sources["bytes.npz"]], "found 4, 5, 6 too"),
            ("the same", [sources["floats.npz"], sources["floats.npz"]], "found the same"),
            ("three", ["a", "b", "c"], "found 3 of them")):
        with pytest.raises(InputError) as caught:
            data.read_split(paths, 28, 1, labelled=True, least=12)
        message = str(caught.value)
        assert word in message and "expected" in message and "found" in message and "\n" not in message, what
        assert Path(paths[-1]).name in message and not Path("exploded").exists(), what


def test_names_that_are_no_utf8_become_printable(drawn, tmp_path):
    try:
        folder = _save_photos(tmp_path / "caf\udce9", drawn[0][:40], [f"\udce9{label}" for label in drawn[1][:40]])
    except OSError:
        pytest.skip("this file system has UTF-8 alone")
    (folder / "kind\udce90/broken\udce9.png").write_bytes(b"no image")
    train = data.read(folder, 28, 1)["train"]
    assert train.classes == ["kind\\udce90", "kind\\udce91"] and train.skipped[0].isprintable()
