"""Sources of images for studies/: each kind, what is held out, and what is refused."""
import dataclasses
import gzip
import os
import pickle
import shutil
import types
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from refusals import Bomb
from small_studies import labelled

from common.errors import InputError
from studies import data


def _save_idx(folder, pixels, labels, packed=True, hyphen="-"):
    """The four files of MNIST, packed as Debian installs them, or as torchvision unpacks them."""
    folder.mkdir(parents=True)
    for name, array in (("images", pixels), ("labels", labels.astype(np.uint8))):
        content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        for part in ("train", "t10k"):
            path = folder / f"{part}-{name}{hyphen}idx{array.ndim}-ubyte{'.gz' * packed}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return folder


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
    for name, white in (("bits.npy", np.uint8(1)), ("above1.npy", 1.000001), ("white.npy", np.uint8(255))):
        np.save(str(folder / name), white * (pixels > 99))
    for name, flat in (("classes", False), ("flat", True), ("parts/train", False), ("parts/valid", False)):
        _save_photos(folder / name, pixels, labels, flat)
    return {path.name: path for path in folder.iterdir()}


def test_every_kind_of_source_gives_the_same_images(sources, drawn):
    digits, kinds = ["0", "1", "2"], ["kind0", "kind1", "kind2"]
    for name, classes in (("bytes.npz", ["4", "5", "6"]), ("floats.npz", digits), ("integers.npz", digits),
                          ("bare.npy", []), ("flat", []), ("classes", kinds), ("parts", kinds),
                          ("bits.npy", []), ("above1.npy", []), ("white.npy", [])):
        images = data.read(sources[name], 28, 1)["train"]
        assert images.pixels.dtype == torch.uint8 and images.skipped == [] and images.classes == classes, name
        white = name in ("bits.npy", "above1.npy", "white.npy")  # is 255, whatever the scale of the file
        assert np.array_equal(images.pixels[:, 0], 255 * (drawn[0] > 99) if white else drawn[0]), name
        assert np.array_equal(images.labels, drawn[1] if classes else [-1] * 60), name


def test_own_test_files_are_held_out_and_else_a_share_by_the_seed(sources, drawn, tmp_path):
    train, test, how = data.read_split([sources["parts"]], 28, 1)
    assert len(train) == 60 and np.array_equal(test.pixels[:, 0], drawn[0]) and "own" in how
    for name in ("bytes.npz", "flat"):
        train, test, how = data.read_split([sources[name]], 28, 1, 3)
        assert len(train) == 48 and "20%" in how
        again, other = (data.read_split([sources[name]], 28, 1, seed)[1] for seed in (3, 4))
        assert torch.equal(again.pixels, test.pixels) and not torch.equal(other.pixels, test.pixels)
        every = {image.numpy().tobytes() for image in torch.cat([train.pixels, test.pixels])}
        assert every == {image.tobytes() for image in drawn[0]}
    some = _save_photos(tmp_path, 255 - drawn[0][20:], drawn[1][20:])
    _, test, how = data.read_split([sources["classes"], some], 28, 1)
    assert test.classes == ["kind0", "kind1", "kind2"] and test.labels.bincount().tolist() == [0, 20, 20]
    assert how == "a source of its own"


@pytest.mark.parametrize(("labels", "held_out"), [
    ([0] * 60, [12]), ([0] * 20 + [1] * 10 + [2], [4, 2, 0]), ([*range(5)] * 2, [1] * 5), ([0], [0]),
    ([*range(60)], None)])  # 60 classes of one image each
def test_a_fifth_of_each_class_is_held_out_but_not_its_only_image(labels, held_out):
    pixels = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    classes = list(map(str, range(max(labels) + 1)))
    train, test = data.split(data.Images(pixels, torch.tensor(labels), classes, ["a.png: why"]), 0)
    counts = np.bincount(test.labels, minlength=len(classes)).tolist()
    assert counts == held_out if held_out else sum(counts) == 12
    assert sorted(torch.cat([train.pixels, test.pixels]).flatten().tolist()) == [*range(len(labels))]
    assert (train.skipped, test.skipped) == (["a.png: why"], [])


def test_the_fingerprint_is_of_pixels_labels_classes_and_shape(drawn):
    images, changed = labelled(*drawn), torch.from_numpy(drawn[0].copy())[:, None]
    changed[5, 0, 3, 3] += 1
    others = [{"pixels": changed}, {"labels": images.labels.flip(0)}, {"classes": ["a", "b", "d"]},
              {"pixels": images.pixels.view(60, 1, 14, 56)}, {"pixels": images.pixels.float()}]
    found = [images.fingerprint(), *(dataclasses.replace(images, **other).fingerprint() for other in others)]
    assert len(set(found)) == 6 and all(len(bytes.fromhex(each)) == 8 for each in found)
    assert found[0] == dataclasses.replace(images, skipped=["x"], pixels=images.pixels.clone()).fingerprint()
    found = [dataclasses.replace(images, pixels=torch.rand(60, n)).fingerprint() for n in (7, 7, 8)]  # features
    assert found[0] == found[1] != found[2]


def test_links_to_folders_are_followed_and_cycles_broken(drawn, sources, tmp_path):
    (tmp_path / "photos").mkdir()
    for kind in ("kind0", "kind1"):
        (tmp_path / "photos" / kind).symlink_to(sources["classes"] / kind, target_is_directory=True)
    deep = _save_photos(tmp_path / "photos" / "own", drawn[0][40:], drawn[1][40:], flat=True)
    (deep / "around").symlink_to(tmp_path / "photos", target_is_directory=True)
    images = data.read(tmp_path / "photos", 28, 1)["train"]
    assert images.classes == ["kind0", "kind1", "own"] and images.labels.bincount().tolist() == [20, 20, 20]
    assert np.array_equal(images.pixels[:, 0], drawn[0]) and images.skipped == []


@pytest.mark.parametrize("closed", ["classes", "classes/kind1"])
def test_a_folder_that_cannot_be_read_is_one_line(sources, monkeypatch, closed):
    def listdir(path, real=os.listdir):
        if str(path).endswith(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(InputError, match=f"{closed}: expected readable images, found: Permission denied$"):
        data.read(sources["classes"], 28, 1)


def test_broken_images_are_counted_and_skipped(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as after bird.py has read a photo
    folder = _save_photos(tmp_path / "photos", *drawn)
    whole = (folder / "kind1/025.png").read_bytes()
    for name, content in {"kind1/cut.png": whole[:len(whole) // 2], "kind1/words.jpg": b"no image", "stray.png": whole,
                          "kind2/empty.png": b"", "kind2/notes.txt": b"no image by its name", "kind2/.hidden.png": b"",
                          "kind2/.hidden.gif": b""}.items():
        (folder / name).write_bytes(content)
    (folder / "kind2/a.png").symlink_to("nowhere")
    Image.new("L", (9, 9)).save(str(folder / "kind0/moving.GIF"))
    images = data.read(folder, 28, 1)["train"]
    assert len(images) == 60 and np.array_equal(images.pixels[:, 0], drawn[0])
    assert sorted(line.split(":")[0] for line in images.skipped) == [
        "kind0/moving.GIF", "kind1/cut.png", "kind1/words.jpg", "kind2/a.png", "kind2/empty.png", "stray.png"]
    assert "kind0/moving.GIF: only regular files, and no GIFs, are read" in images.skipped


def test_photos_are_upright_cropped_and_white_where_transparent(tmp_path, recwarn):
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


def test_gray_images_of_any_depth_keep_their_range(tmp_path):
    levels = np.linspace(0, 1, 256).reshape(16, 16)
    for name, white, dtype in (("a.png", 255, np.uint8), ("b.png", 65535, np.uint16), ("c.png", 4095, np.uint16),
                               ("d.tif", 65535, np.int32), ("e.tif", 1, np.float32), ("f.tif", 255, np.float32),
                               ("g.tif", np.nan, np.float32)):
        Image.fromarray((levels * white).astype(dtype)).save(str(tmp_path / name))
    for channels in (1, 3):
        images = data.read(tmp_path, 16, channels)["train"]
        assert images.pixels.shape == (6, channels, 16, 16) and images.skipped == ["g.tif: values from nan to nan"]
        assert float((images.floats() - torch.from_numpy(levels)).abs().max()) < 1.01 / 255


def test_images_have_the_asked_size_and_colour_in_batches_and_samples(drawn, tmp_path):
    np.save(str(tmp_path / "green.npy"), np.full((4, 10, 10, 3), [0, 100, 0], np.uint8))
    for side, channels, shape, mean in ((10, 1, (4, 1, 10, 10), 58), (20, 3, (4, 3, 20, 20), 100 / 3)):
        pixels = data.read(tmp_path / "green.npy", side, channels)["train"].pixels
        assert pixels.shape == shape and float(pixels.double().mean()) == pytest.approx(mean)
    images = labelled(*drawn)
    x, y = images.__getitems__([0, 59])
    assert torch.equal(x, images.floats()[[0, 59]]) and 0.7 < x.max() <= 1 and y.tolist() == [0, 2]
    few = images.subsample(10, 1)
    assert len(few) == 10 and torch.equal(few.pixels, images.subsample(10, 1).pixels)
    assert images.subsample(60, 1) is images
    assert not torch.equal(few.pixels, images.subsample(10, 2).pixels)


def test_names_are_downloaded_into_the_cache_or_need_a_network(drawn, tmp_path, monkeypatch):
    def download(root, train, download):
        assert root.startswith(str(tmp_path)) and download
        pixels, labels = (torch.from_numpy(array[:60 if train else 30]) for array in drawn)
        return types.SimpleNamespace(data=pixels, targets=labels, classes=["a", "b", "c"])

    def fail(root, train, download):
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, classes in (("MNIST", ["0", "1", "2"]), ("KMNIST", ["a", "b", "c"])):
        monkeypatch.setattr(data.datasets, name, download)
        train, test, _ = data.read_split([name], 28, 1)
        assert (len(train), len(test), train.classes) == (60, 30, classes)
    monkeypatch.setattr(data.datasets, "KMNIST", fail)
    with pytest.raises(InputError, match="^KMNIST: expected a network, .*no route"):
        data.read_split(["KMNIST"], 28, 1)


def test_idx_files_are_read_by_torchvision_and_named_by_their_folder(drawn, tmp_path, monkeypatch):
    installed = _save_idx(tmp_path / "installed", *drawn)
    monkeypatch.setattr(data, "INSTALLED", {"FashionMNIST": str(installed)})
    _save_idx(tmp_path / "of fashion" / "MNIST" / "raw", *drawn, packed=False)
    _save_idx(tmp_path / "kmnist" / "raw", *drawn)
    _save_idx(tmp_path / "torchvision" / "FashionMNIST" / "raw", *drawn, packed=False)
    dotted = _save_idx(tmp_path / "kaggle-Fashion", *drawn, packed=False, hyphen=".")
    (dotted / "train-images-idx3-ubyte").mkdir()  # as Kaggle unpacks the archive
    (installed / "train-images-idx3-ubyte").write_bytes(gzip.decompress(
        (installed / "train-images-idx3-ubyte.gz").read_bytes()))
    clothes, digits = ["T-shirt/top", "Trouser", "Pullover"], ["0", "1", "2"]
    for source, classes in (("FashionMNIST", clothes), ("installed", digits), ("of fashion/MNIST", digits),
                            ("of fashion", digits), ("kmnist", ["o", "ki", "su"]), ("torchvision", clothes),
                            ("kaggle-Fashion", clothes)):
        train, test, how = data.read_split([source if source == "FashionMNIST" else tmp_path / source], 28, 1)
        assert train.classes == test.classes == classes and "own" in how, source
        for images in (train, test):
            assert np.array_equal(images.pixels[:, 0], drawn[0]) and np.array_equal(images.labels, drawn[1])


@pytest.mark.parametrize("keys", ["x_train y_train x_test y_test", "train_images train_labels test_images test_labels"])
def test_arrays_of_keras_and_medmnist_have_two_parts(keys, drawn, tmp_path):
    (pixels, labels), path = drawn, tmp_path / "a.npz"
    colors = np.stack([pixels, pixels // 2, pixels // 4], 1)  # (60, 3, 28, 28)
    for images, channels, expected in (
            (pixels, 1, pixels[:, None]), (pixels.reshape(60, 784), 1, pixels[:, None]), (colors, 3, colors),
            (pixels[:, None] / 255, 1, pixels[:, None]), (np.moveaxis(colors, 1, 3), 3, colors)):
        for some in (labels, labels[:, None].astype(np.uint8), labels.astype(float) + 4):
            np.savez(str(path), **dict(zip(keys.split(), (images, some, images[20:], some[20:]))), val_images=[])
            train, test, how = data.read_split([path], 28, channels)
            assert np.array_equal(train.pixels, expected) and np.array_equal(test.pixels, expected[20:])
            assert train.pixels.stride() == (channels * 784, 784, 28, 1) and "own" in how
            assert train.classes == test.classes == ["4", "5", "6"] if some.dtype == float else ["0", "1", "2"]
            assert np.array_equal(train.labels, labels) and np.array_equal(test.labels, labels[20:])
    np.save(str(tmp_path / "ambiguous.npy"), np.moveaxis(colors, 1, 3)[:, 9:12, 9:12])
    (tmp_path / "ambiguous.npy").rename(tmp_path / "ambiguous.NPY")
    assert np.array_equal(data.read(tmp_path / "ambiguous.NPY", 3, 3)["train"].pixels, colors[:, :, 9:12, 9:12])


def test_a_typing_error_in_a_name_gets_a_hint(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for typed, meant in (("mnist", "MNIST"), ("MNISTT", "MNIST"), ("FashionMnist", "FashionMNIST"), ("kmnst", "KMNIST"),
                         ("fashion-mnist", "FashionMNIST"), ("Fashion", "FashionMNIST"), ("animals", None)):
        with pytest.raises(InputError) as caught:
            data.read(typed, 28, 1)
        hint = f"; did you mean {meant}?" if meant else ""
        assert str(caught.value) == (f"{typed}: expected FashionMNIST, KMNIST, MNIST, a folder, .npz or .npy, found "
                                     f"nothing there{hint}")
    _save_photos(tmp_path / "mnist", *drawn)
    assert len(data.read("mnist", 28, 1)["train"]) == 60


def test_bad_sources_give_one_clear_line_and_no_pickle_is_loaded(drawn, sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (pixels, labels), good, bomb = drawn, sources["floats.npz"], Bomb("exploded")
    objects, pickled = np.array([bomb] * 60, object), "Object arrays"
    bad_images = {  # arrays: a word of the message
        "pickled images": (objects, pickled), "channels": (np.zeros((60, 5, 9, 9)), "(60, 5, 9, 9)"),
        "no axes": (np.float64(3), "()"), "no square": (pixels.reshape(60, -1)[:, 1:], "(60, 783)"),
        "none": (pixels[:0], "(0, 28"), "no columns": (pixels[:, :, :0], "(60, 28, 0)"),
        "words": (pixels.astype(str), "<U3"), "nan": (pixels * np.nan, "nan"),
        "negative": (pixels - 1.0, "from -1 to 254"), "few": (pixels[:9], "at least 12")}
    bad_labels = {
        "pickled labels": (objects, pickled), "too few": (labels[1:], "each of 60 images, found int64 of shape (59,)"),
        "two axes": (labels.reshape(30, 2), "(30, 2)"), "halves": (labels / 2, "found float64"),
        "labels nan": (np.where(labels == 1, np.nan, labels), "found float64"),
        "one class": (labels * 0, "two classes, found 1"), "one-hot": (np.eye(3)[labels], "(60, 3)")}
    arrays = {
        **{name: ({"data": array}, word) for name, (array, word) in bad_images.items()},
        **{name: ({"data": pixels, "labels": array}, word) for name, (array, word) in bad_labels.items()},
        "keys": ({"x": pixels, "y": labels}, "found x, y"), "no labels": ({"data": pixels}, "two classes, found 0"),
        "test alone": ({"x_test": pixels, "y_test": labels}, "x_train"), "empty": ({}, "found none"),
        "one image": ({"data": pixels[:1], "labels": labels[:1]}, "at least 12")}
    for name, (content, _) in arrays.items():
        np.savez(f"{name}.npz", **content)
    np.savez("many.npz", data=pixels, labels=np.arange(60) % 9 + 10)
    np.save("pickled.npy", objects, allow_pickle=True)
    for folder in ("hollow", "photos/a"):
        os.makedirs(folder)
    for name, content in {"photos/a/a.png": b"no image", "a.txt": b"hello", "b.npz": b"", "d.npz": pickle.dumps(bomb),
                          "c.npz": Path("no labels.npz").read_bytes()[:9000]}.items():
        Path(name).write_bytes(content)
    for name in ("missing", "cut", "mixed", "both/MNIST/raw", "both/KMNIST/raw"):
        _save_idx(Path(name), *drawn, packed=name != "cut")
    _save_idx(Path("short"), pixels, labels[:-1])
    Path("missing/t10k-labels-idx1-ubyte.gz").unlink()
    Path("cut/train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03")
    shutil.copy("mixed/t10k-labels-idx1-ubyte.gz", "mixed/t10k-images-idx3-ubyte.gz")
    for paths, word in (
            *(([f"{name}.npz"], word) for name, (_, word) in arrays.items()), (["none"], "nothing there"),
            (["hollow"], "found none"), (["photos"], "a/a.png: cannot"), (["a.txt"], "another file"),
            (["b.npz"], "No data left"), (["c.npz"], "zip"), (["d.npz"], "pickled"), (["pickled.npy"], pickled),
            ([good, "few.npz"], "at least 12 images to hold out"), ([good, "no labels.npz"], "two classes, found 0"),
            ([good, sources["bytes.npz"]], "found 4, 5, 6 too"), (["a", "b", "c"], "found 3 sources"),
            ([good, "many.npz"], "found 10, 11, 12, 13, 14 and 4 more too"), ([good, good], "60 of 60 among these"),
            (["missing"], "found: only t10k-images-idx3-ubyte.gz, train-images-idx3-ubyte.gz, train-labels"),
            (["cut"], "of train and t10k, found: "), (["mixed"], "found: x should have 3 dimension instead of 1"),
            (["short"], "each of 60 images, found int64"), (["both"], "one dataset, found both/")):
        with pytest.raises(InputError) as caught:
            data.read_split(paths, 28, 1, labelled=True, least=(12, 12))
        message = str(caught.value)
        assert word in message and "expected" in message and "found" in message and "\n" not in message, paths
        assert "download" not in message  # as torchvision advises
        assert Path(paths[-1]).name in message and not Path("exploded").exists(), paths


def test_names_that_are_no_utf8_become_printable(drawn, tmp_path):
    try:
        folder = _save_photos(tmp_path / "caf\udce9", drawn[0][:40], [f"\udce9{label}" for label in drawn[1][:40]])
    except OSError:
        pytest.skip("this file system has UTF-8 alone")
    (folder / "kind\udce90/broken\udce9.png").write_bytes(b"no image")
    train = data.read(folder, 28, 1)["train"]
    assert train.classes == ["kind\\udce90", "kind\\udce91"] and train.skipped[0].isprintable()
