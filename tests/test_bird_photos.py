"""Photos as they come: every format, mode, size and orientation; broken ones; what is no photo."""
import dataclasses
import io
import json
import os
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from refusals import FullDisk, files, read_labels, refused, touch

SIDE = 64
COLORS = np.array([[200, 60, 50], [60, 180, 70], [50, 80, 200], [230, 220, 190]], np.uint8)  # of the quarters
GRAYS = np.array(Image.fromarray(COLORS[None]).convert("L"))[0]
WHITE = np.full(3, 255)


def _quarters(width=120, height=80, values=COLORS):
    """Array of an image with one value in each quarter: top left, top right, bottom left, bottom right."""
    rows, columns = np.arange(height) * 2 // max(height, 2), np.arange(width) * 2 // max(width, 2)
    return values[2 * rows[:, None] + columns]


def _upright(width=120, height=80):
    return Image.fromarray(_quarters(width, height))


def _noisy(width=400, height=300):
    """As `_upright`, with noise, so that the bytes of a file spread over all of the photo."""
    noise = np.random.default_rng(0).integers(-20, 21, (height, width, 3))
    return Image.fromarray((_quarters(width, height).astype(int) + noise).clip(0, 255).astype(np.uint8))


def _shows(photo, colors=COLORS, within=8):
    """Asserts that the middles of the quarters of a decoded photo have these mean colors (4, 3)."""
    s = photo.shape[-1]
    assert photo.dtype == np.uint8 and photo.shape == (3, s, s)
    low, high = slice(s // 10, s // 2 - s // 10), slice(s // 2 + s // 10, s - s // 10)
    means = [photo[:, rows, columns].mean((1, 2)) for rows in (low, high) for columns in (low, high)]
    assert np.array(means) == pytest.approx(np.asarray(colors, float), abs=within)


def _saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def read(bird, tmp_path):
    """read(image or bytes, format, side, **options of saving): what bird.py reads from that file, whatever its name."""
    def read(content, format="JPEG", side=SIDE, **options):
        (tmp_path / "a.jpg").write_bytes(content if isinstance(content, bytes) else _saved(content, format, **options))
        return bird.decode_photo(str(tmp_path / "a.jpg"), side)

    return read


def _gray(values):
    return np.asarray(values)[:, None].repeat(3, 1)


def _with_alpha(image, *alphas):
    image.putalpha(Image.fromarray(_quarters(values=np.array(alphas, np.uint8))))
    return image


def _png(pixels, kind, size=None):
    """A PNG of 16 bits a channel by hand: Pillow writes none in color. `size`: what its header claims."""
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", *(size or pixels.shape[1::-1]), 16, kind, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


PALETTE = _upright().quantize(16)
FIRST, LAST = PALETTE.getpixel((1, 1)), PALETTE.getpixel((118, 78))
ONE_BIT = Image.fromarray(_quarters(values=np.array([0, 255, 255, 0], np.uint8))).convert("1")
FIRST_ON_WHITE = [WHITE, *COLORS[1:]]
LEVELS = _quarters(values=GRAYS).astype(np.uint16)
FLOATS = LEVELS.astype(np.float32)
DEEP_COLOR = _png(_quarters().astype(int) * 257, 2)
RESAMPLED = FLOATS / 255
RESAMPLED[0, :2] = 1.05, -0.02
FORMS = {  # image, formats, how it is saved, the colors that it shows: transparent ones lie on white
    "color": (_upright(), "JPEG PNG WEBP BMP TIFF PPM", {}, COLORS),
    **{str(options): (_upright(), format, options, COLORS) for format, options in (
        ("JPEG", {"progressive": True}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"}),
        ("WEBP", {"lossless": True}))},
    "16 bits in color": (DEEP_COLOR, "PNG", {}, COLORS),
    "gray": (_upright().convert("L"), "JPEG PNG BMP TIFF PPM", {}, _gray(GRAYS)),
    "one bit": (ONE_BIT, "PNG BMP TIFF", {}, _gray([0, 255, 255, 0])),
    "CMYK": (_upright().convert("CMYK"), "JPEG TIFF", {}, COLORS),
    "palette": (PALETTE, "PNG BMP TIFF", {}, COLORS),
    "a transparent entry": (PALETTE, "PNG", {"transparency": FIRST}, FIRST_ON_WHITE),
    "two transparent entries": (
        PALETTE, "PNG", {"transparency": bytes({FIRST: 0, LAST: 51}.get(entry, 255) for entry in range(16))},
        [WHITE, *COLORS[1:3], 0.2 * COLORS[3] + 0.8 * WHITE]),
    "alpha": (_with_alpha(_upright(), 0, 255, 102, 255), "PNG WEBP TIFF", {},
              [WHITE, COLORS[1], 0.4 * COLORS[2] + 0.6 * WHITE, COLORS[3]]),
    "gray with alpha": (_with_alpha(_upright().convert("L"), 0, 255, 255, 255), "PNG", {}, [WHITE, *_gray(GRAYS[1:])]),
    "a transparent color": (_upright(), "PNG", {"transparency": tuple(COLORS[0].tolist())}, FIRST_ON_WHITE),
    "a transparent gray": (_upright().convert("L"), "PNG", {"transparency": int(GRAYS[0])},
                           [WHITE, *_gray(GRAYS[1:])]),
    "a transparent gray of 16 bits": (Image.fromarray(LEVELS * 257), "PNG", {"transparency": int(GRAYS[0]) * 257},
                                      [WHITE, *_gray(GRAYS)[1:]]),
    **{name: (Image.fromarray(pixels), formats, {}, _gray(GRAYS)) for name, formats, pixels in (
        ("16 bits", "PNG TIFF", LEVELS * 257), ("16 bits, big-endian", "TIFF", (LEVELS * 257).astype(">u2")),
        ("12 bits", "PNG TIFF", LEVELS * 16), ("8 bits in 16", "PNG TIFF", LEVELS),
        ("32 bits", "TIFF", LEVELS.astype(np.int32) * 257), ("floats to 1", "TIFF", FLOATS / 255),
        ("floats to 255", "TIFF", FLOATS), ("floats to 65535", "TIFF", FLOATS * 257),
        ("floats that resampling took a little out of range", "TIFF", RESAMPLED))},
}


@pytest.mark.parametrize("form, format", [(form, format) for form in FORMS for format in FORMS[form][1].split()])
def test_every_format_and_mode(read, form, format):
    """Pillow alone would clip deep gray images, or show them black."""
    image, _, options, colors = FORMS[form]
    _shows(read(image, format, **options), colors)


BACK = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE",
        8: "ROTATE_270"}  # from upright to what is stored with each EXIF orientation


@pytest.mark.parametrize("format, orientation", [*(("JPEG", number) for number in (0, 1, *BACK, 9, 65535)),
                                                 ("PNG", 6), ("WEBP", 6)])
def test_exif_orientation_is_undone_unless_it_is_senseless(read, format, orientation):
    image, exif = _upright(), Image.Exif()
    if orientation in BACK:
        image = image.transpose(getattr(getattr(Image, "Transpose", Image), BACK[orientation]))
    exif[0x0112] = orientation
    _shows(read(image, format, exif=exif, quality=95))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # as the commands ignore what Pillow warns of
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff",
                                  b"Exif\0\0MM\0*\0\0\0\x08\0\x09abc"],
                         ids=["none", "empty", "pointing nowhere", "cut"])
def test_a_broken_exif_block_costs_no_photo(read, exif):
    jpeg = _saved(_upright(), "JPEG")
    _shows(read(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_every_size_and_shape_down_to_one_pixel(read, format):
    for size in ((60, 200), (6000, 40), (40, 6000), (2400, 1800), (16, 16), (63, 65)):
        _shows(read(_upright(*size), format), within=12)
    for size in ((1, 1), (90, 1), (1, 6000)):
        _shows(read(Image.new("RGB", size, (90, 140, 200)), format), [[90, 140, 200]] * 4)
    for side in (32, 301):
        photo = read(_upright(), format, side)
        _shows(photo)
        assert photo.shape == (3, side, side) and photo.flags.c_contiguous
    stripes = np.zeros((1024, 1024, 3), np.uint8)  # a large photo is averaged, not sampled
    stripes[::2] = 255
    assert abs(read(Image.fromarray(stripes), format, quality=95).astype(int) - 127).max() < 25


@pytest.mark.parametrize("format, options, share", [
    *(("JPEG", options, share) for options in ({}, {"progressive": True}) for share in (0.5, 0.8, 0.99)),
    ("PNG", {}, 0.75)])
def test_a_truncated_photo_gives_what_it_has(read, format, options, share):
    whole, rows = _saved(_noisy(), format, **options), int(SIDE * share) - 10
    photo = read(whole[:int(len(whole) * share)])
    assert photo[:, :rows].mean((1, 2)) == pytest.approx(read(whole)[:, :rows].mean((1, 2)), abs=8)


JPEG, PNG = _saved(_upright(), "JPEG"), _saved(_upright(), "PNG")
NO_PHOTOS = {
    "empty": b"", "text": b"this is no photo\n", "a page": b"<!DOCTYPE html><html><body>404</body></html>",
    "zeros": bytes(5000), "two bytes of a JPEG": JPEG[:2], "the head of a JPEG": JPEG[:100],
    "the head of a PNG": PNG[:20], "the tail of a JPEG": JPEG[300:], "noise": np.random.default_rng(0).bytes(3000),
    "a PNG that claims gigabytes": _png(np.zeros((1, 1)), 0, size=(60000, 60000)),
    **{f"gray values of {value}": _saved(Image.fromarray(np.full((9, 9), value, kind)), "TIFF") for value, kind in (
        *((value, np.float32) for value in (np.nan, np.inf, -0.5, 1e6)), (80000, np.int32), (-99, np.int32))}}


@pytest.mark.parametrize("kind", NO_PHOTOS)
def test_what_is_no_photo_raises_and_is_not_decoded(read, monkeypatch, kind):
    """Decoders allocate the claimed size at once; some of these in a folder, a few threads, and memory is gone."""
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (
        load(image) if image.size[0] * image.size[1] < 2 ** 30 else pytest.fail("it would be decoded")))
    with pytest.raises(ValueError if "gray" in kind else (OSError, ValueError, Image.DecompressionBombError)):
        read(NO_PHOTOS[kind])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_damaged_files_are_read_or_raise_and_print_nothing(read, format, capfd):
    """Cut anywhere, bytes changed after the header (which tells the size)."""
    good, chance, was_read = _saved(_noisy(100, 80), format), random.Random(0), 0
    for trial in range(60):
        damaged = bytearray(good)
        for _ in range(5):
            damaged[chance.randrange(len(good) // 3, len(good))] = chance.randrange(256)
        try:
            photo = read(bytes(damaged[:chance.randrange(len(damaged))] if trial % 2 else damaged))
        except Exception:  # the commands catch whatever the decoders raise
            continue
        assert photo.dtype == np.uint8 and photo.shape == (3, SIDE, SIDE)
        was_read += 1
    assert was_read or format == "WEBP"
    assert capfd.readouterr() == ("", "")


JUNK = ["._0.jpg", ".hidden.jpg", "Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "movie.mp4", "jpg",
        "0.jpg.part", ".ipynb_checkpoints/0-checkpoint.jpg", ".thumbnails/0.jpg", "__MACOSX/._0.jpg"]
TREE = ["a/0.jpg", "a/x/1.jpg", "b/2.jpg"]
TREES = {  # files, links, classes, photos
    "hidden files and other junk": (
        [*(f"{name}/{file}" for name in "ab" for file in ("0.jpg", "x/1.JPG", *JUNK)), "__MACOSX/a/._0.jpg",
         "__MACOSX/a/0.jpg", ".ipynb_checkpoints/0.jpg", ".git/0.jpg", *JUNK],
        {}, "ab", ["a/0.jpg", "a/x/1.JPG", "b/0.jpg", "b/x/1.JPG"]),
    "a class without photos": (["a/0.jpg", "b/Thumbs.db", "c/x/y/0.jpg"], {}, "abc", ["a/0.jpg", "c/x/y/0.jpg"]),
    "links to themselves": (["a/0.jpg"], {"loop": "loop", "a/loop": "loop"}, "a", ["a/0.jpg"]),
    **{f"{link} to {target}, which contains it": (TREE, {link: target}, "ab", TREE) for link, target in (
        ("a/up", ".."), ("a/up", "."), ("a/x/up", "../.."), ("a/x/up", ".."), ("a/top", "../.."))},
    "a class that is a link to all": (TREE, {"z": "."}, "abz", TREE),
    "links to each other": (["a/x/0.jpg", "a/y/1.jpg"], {"a/x/to_y": "../y", "a/y/to_x": "../x"}, "a",
                            ["a/x/0.jpg", "a/x/to_y/1.jpg", "a/y/1.jpg", "a/y/to_x/0.jpg"]),
}


@pytest.mark.parametrize("kind", TREES)
def test_classes_and_photos_of_a_tree(bird, tmp_path, kind):
    """torchvision's ImageFolder follows a link to a folder that contains it some forty times."""
    names, links, expected_classes, expected = TREES[kind]
    touch(tmp_path, names)
    for link, target in links.items():
        os.symlink(target, str(tmp_path / link))
    classes, photos = bird.list_photos(str(tmp_path))
    assert classes == list(expected_classes)
    assert photos == [(str(tmp_path / name), classes.index(name[0])) for name in expected]


def test_photos_of_a_flat_folder(bird, tmp_path):
    """Also a broken link, because ImageFolder lists it: without its row all others would shift."""
    touch(tmp_path, ["b.jpg", "a.PNG", "__MACOSX/._b.jpg", "empty/notes.txt", *JUNK])
    (tmp_path / "folder.jpg").mkdir()
    os.symlink("nowhere.jpg", str(tmp_path / "link.jpg"))
    assert bird.list_test_photos(str(tmp_path)) == (
        [], [(str(tmp_path / name), None) for name in ("a.PNG", "b.jpg", "link.jpg")])


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("folder", ["a", "b/deep"])
@pytest.mark.parametrize("right", ["listdir", "stat"])  # r and x of its mode
def test_a_folder_that_cannot_be_read_is_refused(bird_call, bird_untrained, monkeypatch, tmp_path, mode, folder, right):
    """Without its photos all further rows would belong to other photos."""
    touch(tmp_path, ["photos/a/0.jpg", "photos/b/deep/1.jpg", "photos/c/2.jpg"])
    real, closed = getattr(os, right), os.path.join("photos", folder)

    def refusing(path, *rest, **options):
        if str(path).endswith((closed, os.path.join(closed, ".")) if right == "listdir" else os.path.join(closed, ".")):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, right, refusing)
    refused(bird_call("photos", mode, bird_untrained if mode == "test" else "bird.pth"), closed)
    assert files(tmp_path) == ["photos"]


@pytest.mark.parametrize("parts", [("train", "valid", "test"), ("Train", "Test"), ("training", "validation")])
def test_a_folder_of_the_parts_of_a_dataset_is_refused(bird_call, bird_untrained, tmp_path, parts):
    touch(tmp_path, [f"photos/{part}/{name}/0.jpg" for part in parts for name in "ab"])
    for words in (("train", "bird.pth"), ("test", bird_untrained)):
        found = bird_call("photos", *words)
        refused(found, "photos")
        assert all(part in found.err for part in parts) and files(tmp_path) == ["photos"]


@pytest.fixture
def broken(bird_draw, tmp_path):
    """Class folders a, b, c of one good photo each and four that cannot be read, each of its own kind."""
    folder = tmp_path / "photos"
    bird_draw(folder, {f"{name}/good.jpg": kind for kind, name in enumerate("abc")})
    (folder / "a" / "empty.jpg").touch()
    os.mkfifo(str(folder / "b" / "pipe.jpg"))
    (folder / "b" / "text.jpg").write_text("this is no photo")
    os.symlink("nowhere.jpg", str(folder / "c" / "link.jpg"))
    return folder


UNREADABLE = ["a/empty.jpg", "b/pipe.jpg", "b/text.jpg", "c/link.jpg"]


def test_unreadable_photos_get_the_most_frequent_class_and_are_named(bird_call, bird_untrained, broken, tmp_path):
    found, rows = bird_call(broken, "test", bird_untrained), read_labels(tmp_path / "bird.csv")
    (line,) = found.err.splitlines()
    assert found.code == 0 and line.startswith("bird.py: warning: 4 of 7 photos cannot be read")
    assert all(name in line for name in UNREADABLE)
    assert len(rows) == 7 and [rows[i] for i in (0, 3, 4, 6)] == [1, 1, 1, 1]
    for name, row in zip("abc", (1, 2, 5)):
        assert bird_call(broken / name / "good.jpg", "test", bird_untrained).code == 0
        assert read_labels(tmp_path / "bird.csv") == [rows[row]]


def test_unreadable_photos_alone_get_their_rows_too(bird_call, bird_untrained, tmp_path):
    odd = "a\n\x1b[31m.jpg"
    touch(tmp_path, [odd, *(f"photos/{i}.jpg" for i in range(30))])
    for dataset, n, said in (("photos", 30, "and 10 more"), (odd, 1, "a  [31m.jpg")):
        found = bird_call(dataset, "test", bird_untrained)
        assert found.code == 0 and read_labels(tmp_path / "bird.csv") == [1] * n
        assert len(found.err.splitlines()) == 1 and said in found.err


def test_odd_photos_are_read_without_a_word_on_stderr(run, bird_alone, bird_untrained, tmp_path):
    """In a process of its own: warnings of Pillow and of the C libraries below it would show."""
    exif, jpeg, tiff = Image.Exif(), _saved(_noisy(), "JPEG"), _saved(_noisy(), "TIFF", compression="tiff_lzw")
    exif[0x0112] = 6
    photos = {
        "palette.png": _saved(PALETTE, "PNG", transparency=bytes(range(16))), "deep.png": DEEP_COLOR,
        "turned.JPG": _saved(_upright(), "JPEG", exif=exif), "cmyk.jpg": _saved(_upright().convert("CMYK"), "JPEG"),
        "panorama.webp": _saved(_upright(6000, 20), "WEBP"), "one.bmp": _saved(Image.new("1", (1, 1)), "BMP"),
        "exif.jpg": jpeg[:2] + b"\xff\xe1\0\x0eExif\0\0II*\0\xff\xff" + jpeg[2:],
        "truncated.jpg": jpeg[:len(jpeg) // 2], "truncated.tif": tiff[:len(tiff) // 2]}
    (tmp_path / "photos").mkdir()
    for name, content in photos.items():
        (tmp_path / "photos" / name).write_bytes(content)
    process = run(bird_alone, "photos", "test", bird_untrained, "--threads", "1", cwd=tmp_path)
    assert process.returncode == 0 and len(read_labels(tmp_path / "bird.csv")) == 9
    assert [line for line in process.stderr.splitlines() if "truncated.tif" not in line] == []


def test_labels_do_not_depend_on_the_batch_size(bird, bird_untrained, bird_draw, tmp_path):
    bird_draw(tmp_path, {f"{i}.jpg": i % 4 for i in range(11)})
    touch(tmp_path, ["2.jpg.jpg", "broken.jpg"])
    paths = [str(path) for path in sorted(tmp_path.glob("*.jpg"))]
    model = bird.load_model(str(bird_untrained))
    labels, unreadable = bird.classify(model, paths)
    assert labels.shape == (13,) and [os.path.basename(paths[i]) for i in unreadable] == ["2.jpg.jpg", "broken.jpg"]
    for batch_size in (1, 3, 13):
        again, still = bird.classify(model, paths, batch_size=batch_size)
        assert again.tolist() == labels.tolist() and still == unreadable


def test_photos_are_decoded_at_most_a_few_batches_ahead(bird, bird_untrained, monkeypatch):
    """However many there are, memory holds what one network pass needs and what the next will."""
    decoded, ahead, predict = [], [], bird.predict_proba

    def noted(*args):
        ahead.append(len(decoded) - 4 * len(ahead))
        return predict(*args)

    monkeypatch.setattr(bird, "decode_photo", lambda path, size: decoded.append(path))
    monkeypatch.setattr(bird, "predict_proba", noted)
    bird.classify(bird.load_model(str(bird_untrained)), ["a.jpg"] * 60, batch_size=4)
    assert len(decoded) == 60 and len(ahead) == 15 and max(ahead) <= 12


def test_training_leaves_unreadable_photos_out(bird, bird_call, bird_draw, broken, bird_fast, monkeypatch, tmp_path):
    """With a warning; and early stopping, here after one epoch, is reported."""
    monkeypatch.setattr(bird, "Config", dataclasses.make_dataclass("Config", [("patience", int, 0)],
                                                                   bases=(bird.Config,), frozen=True))
    bird_draw(broken, {f"{name}/{i}.jpg": kind for kind, name in enumerate("abc") for i in range(4)}, seed=3)
    found = bird_call(broken, "train", "bird.pth", *bird_fast, "--image-size", "32")
    (line,) = found.err.splitlines()
    assert found.code == 0 and line.startswith("bird.py: warning: ")
    assert "early stopping after 1 epochs, 0 without a lower validation loss" in found.out
    assert all(name in line for name in UNREADABLE)
    split = json.loads((tmp_path / "bird_history.json").read_text())["split"]
    assert sorted(split["unreadable"]) == UNREADABLE
    names = split["train"] + split["validation"]
    assert len(set(names)) == len(names) == 15 and not set(names) & set(split["unreadable"])


def test_one_photo_in_two_of_four_classes_is_enough_to_train(bird_call, bird_draw, bird_fast, bird, tmp_path):
    """Warned of: the empty classes, which keep their index, and that nothing is left for validation."""
    bird_draw(tmp_path / "photos", {"b/0.jpg": 1, "d/0.jpg": 3})
    (tmp_path / "photos" / "a").mkdir()
    touch(tmp_path / "photos", ["c/Thumbs.db"])
    found = bird_call("photos", "train", "bird.pth", *bird_fast, "--image-size", "32", "--epochs", "6")
    empty, validation = found.err.splitlines()
    assert found.code == 0 and empty.startswith("bird.py: warning: ") and "a, c" in empty and "too few" in validation
    metadata = bird.load_model("bird.pth").metadata
    assert metadata["classes"] == ["a", "b", "c", "d"] and metadata["counts"] == [0, 1, 0, 1]
    assert bird_call("photos", "test", "bird.pth").code == 0
    assert set(read_labels(tmp_path / "bird.csv")) <= {1, 3}


def test_photos_on_disk_are_those_in_memory(bird, bird_data, monkeypatch, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    paths = [str(path) for path in sorted(bird_data.test.rglob("*.jpg"))]
    paths.insert(3, str(tmp_path / "broken.jpg"))
    photos, unreadable = bird.decode_photos(paths, 40)
    assert photos.dtype == torch.uint8 and photos.shape == (len(paths), 3, 40, 40)
    assert unreadable == [3] and not photos[3].any() and photos[2].any()
    assert (photos[0].numpy() == bird.decode_photo(paths[0], 40)).all()
    monkeypatch.setattr(bird, "MAX_IN_MEMORY", 1000)
    kept, still = bird.decode_photos(paths, 40)
    for index in (torch.arange(len(paths)), torch.tensor([7, 0, 7, 3])):
        assert torch.equal(photos[index], kept[index]) and still == unreadable


@pytest.mark.parametrize("operation", ["open", "write"])
def test_photos_that_find_no_room_on_disk_are_one_line(bird, bird_call, bird_few, monkeypatch, tmp_path, operation):
    def full(*_, **__):
        if operation == "open":
            raise OSError(28, "No space left on device")
        return FullDisk()

    monkeypatch.setattr(bird, "MAX_IN_MEMORY", 0)
    monkeypatch.setattr(bird.tempfile, "TemporaryFile", full)
    refused(bird_call(bird_few, "train", "bird.pth", "--device", "cpu"), "No space left")
    assert files(tmp_path) == []
