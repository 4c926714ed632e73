"""Photos as they come: every format, mode, size and orientation; broken ones; what is no photo."""
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
from refusals import FullDisk, refused

SIDE = 64
COLOURS = np.array([[200, 60, 50], [60, 180, 70], [50, 80, 200], [230, 220, 190]], np.uint8)  # of the quarters
GREYS = np.array(Image.fromarray(COLOURS[None]).convert("L"))[0]
WHITE = np.full(3, 255)


def _quarters(width=120, height=80, values=COLOURS):
    """Array of an image with one value in each quarter: top left, top right, bottom left, bottom right."""
    rows, columns = np.arange(height) * 2 // max(height, 2), np.arange(width) * 2 // max(width, 2)
    return values[2 * rows[:, None] + columns]


def _upright(width=120, height=80):
    return Image.fromarray(_quarters(width, height))


def _noisy(width=400, height=300):
    """As `_upright`, with noise, so that the bytes of a file spread over all of the photo."""
    noise = np.random.default_rng(0).integers(-20, 21, (height, width, 3))
    return Image.fromarray((_quarters(width, height).astype(int) + noise).clip(0, 255).astype(np.uint8))


def _means(photo):
    """Mean colours (4, 3) of the quarters of a photo (3, S, S), their seams aside."""
    s = photo.shape[-1]
    low, high = slice(s // 10, s // 2 - s // 10), slice(s // 2 + s // 10, s - s // 10)
    return np.array([photo[:, rows, columns].mean((1, 2)) for rows in (low, high) for columns in (low, high)])


def _assert_shows(photo, colours=COLOURS, within=8):
    assert photo.dtype == np.uint8 and photo.shape == (3, SIDE, SIDE)
    assert _means(photo) == pytest.approx(np.asarray(colours, float), abs=within)


@pytest.fixture
def read(bird, tmp_path):
    """read(name, image or bytes, **options of saving): what bird.py reads from that file."""
    def read(name, content, **options):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(str(path), **options)
        return bird.decode_photo(str(path), SIDE)

    return read


def _saved(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------- formats and modes

def _grey(values):
    return np.asarray(values)[:, None].repeat(3, 1)


def _with_alpha(image, *alphas):
    image.putalpha(Image.fromarray(_quarters(values=np.array(alphas, np.uint8))))
    return image


PALETTE = _upright().quantize(16)
FIRST, LAST = PALETTE.getpixel((1, 1)), PALETTE.getpixel((118, 78))
ONE_BIT = Image.fromarray(_quarters(values=np.array([0, 255, 255, 0], np.uint8))).convert("1")
FIRST_ON_WHITE = [WHITE, *COLOURS[1:]]
FORMS = {  # image, formats, how it is saved, the colours that it shows: transparent ones lie on white
    "color_jitter": (_upright(), "JPEG PNG WEBP BMP TIFF PPM", {}, COLOURS),
    "progressive": (_upright(), "JPEG", {"progressive": True}, COLOURS),
    "lzw": (_upright(), "TIFF", {"compression": "tiff_lzw"}, COLOURS),
    "jpeg": (_upright(), "TIFF", {"compression": "jpeg"}, COLOURS),
    "lossless": (_upright(), "WEBP", {"lossless": True}, COLOURS),
    "grey": (_upright().convert("L"), "JPEG PNG BMP TIFF PPM", {}, _grey(GREYS)),
    "one bit": (ONE_BIT, "PNG BMP TIFF", {}, _grey([0, 255, 255, 0])),
    "CMYK": (_upright().convert("CMYK"), "JPEG TIFF", {}, COLOURS),
    "palette": (PALETTE, "PNG BMP TIFF", {}, COLOURS),
    "a transparent entry": (PALETTE, "PNG", {"transparency": FIRST}, FIRST_ON_WHITE),
    "two transparent entries": (PALETTE, "PNG", {"transparency": bytes(
        {FIRST: 0, LAST: 51}.get(entry, 255) for entry in range(16))},
        [WHITE, *COLOURS[1:3], 0.2 * COLOURS[3] + 0.8 * WHITE]),
    "alpha": (_with_alpha(_upright(), 0, 255, 102, 255), "PNG WEBP TIFF", {},
              [WHITE, COLOURS[1], 0.4 * COLOURS[2] + 0.6 * WHITE, COLOURS[3]]),
    "grey with alpha": (_with_alpha(_upright().convert("L"), 0, 255, 255, 255), "PNG", {},
                        [WHITE, *_grey(GREYS[1:])]),
    "a transparent colour": (_upright(), "PNG", {"transparency": tuple(COLOURS[0].tolist())}, FIRST_ON_WHITE),
    "a transparent grey": (_upright().convert("L"), "PNG", {"transparency": int(GREYS[0])},
                           [WHITE, *_grey(GREYS[1:])]),
}


@pytest.mark.parametrize("form, format", [(form, format) for form in FORMS for format in FORMS[form][1].split()])
def test_every_format_and_mode(read, form, format):
    """Whatever the name ends in."""
    image, _, options, colours = FORMS[form]
    _assert_shows(read("a.jpg", _saved(image, format, **options)), colours)


def _png(pixels, kind):
    """A PNG of 16 bits a channel by hand: Pillow writes none in colour."""
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def test_16_bits_in_color(read):
    _assert_shows(read("a.png", _png(_quarters().astype(int) * 257, 2)))


DEEP = {  # gray levels 0..255 as the pixels of deeper images
    "16 bits": lambda values: Image.fromarray(values.astype(np.uint16) * 257),
    "16 bits, big-endian": lambda values: Image.fromarray((values.astype(np.uint16) * 257).astype(">u2")),
    "12 bits": lambda values: Image.fromarray(values.astype(np.uint16) * 16),
    "8 bits in 16": lambda values: Image.fromarray(values.astype(np.uint16)),
    "32 bits": lambda values: Image.fromarray(values.astype(np.int32) * 257),
    "floats to 1": lambda values: Image.fromarray(values.astype(np.float32) / 255),
    "floats to 255": lambda values: Image.fromarray(values.astype(np.float32)),
    "floats to 65535": lambda values: Image.fromarray(values.astype(np.float32) * 257)}


@pytest.mark.parametrize("kind, ending", [(kind, ending) for kind in DEEP for ending in ("png", "tif")
                                          if ending == "tif" or kind in ("16 bits", "12 bits", "8 bits in 16")])
def test_deep_gray_images_show_what_those_of_8_bits_show(read, kind, ending):
    """Pillow alone would clip them, or show them black."""
    _assert_shows(read("a." + ending, DEEP[kind](_quarters(values=GREYS))), _grey(GREYS))


def test_deep_gray_images_that_resampling_took_a_little_out_of_range(read):
    values = _quarters(values=GREYS).astype(np.float32) / 255
    values[0, :2] = 1.05, -0.02
    _assert_shows(read("a.tif", Image.fromarray(values)), _grey(GREYS))


def test_a_transparent_gray_of_16_bits_lies_on_white(read):
    levels = _quarters(values=GREYS).astype(np.uint16) * 257
    photo = read("a.png", Image.fromarray(levels), transparency=int(GREYS[0]) * 257)
    _assert_shows(photo, [WHITE, *_grey(GREYS)[1:]])


@pytest.mark.parametrize("pixels", [np.full((9, 9), np.nan), np.full((9, 9), np.inf), np.full((9, 9), -0.5),
                                    np.full((9, 9), 1e6), np.full((9, 9), 80000), np.full((9, 9), -99)],
                         ids=["NaN", "infinite", "-0.5", "a million", "80000", "-99"])
def test_gray_values_of_unknown_scale_are_no_photo(read, pixels):
    with pytest.raises(ValueError):
        read("a.tif", Image.fromarray(pixels.astype(np.float32 if pixels.dtype == float else np.int32)))


# ------------------------------------------------------------------------------------------------ orientation and size

BACK = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90", 7: "TRANSVERSE",
        8: "ROTATE_270"}  # from upright to what is stored with each EXIF orientation


def _turned(orientation):
    image, exif = _upright(), Image.Exif()
    if orientation in BACK:
        image = image.transpose(getattr(getattr(Image, "Transpose", Image), BACK[orientation]))
    exif[0x0112] = orientation
    return image, exif


@pytest.mark.parametrize("orientation", [0, 1, *BACK, 9, 65535])
def test_exif_orientation_is_undone_and_a_senseless_one_is_none(read, orientation):
    image, exif = _turned(orientation)
    _assert_shows(read("a.jpg", image, exif=exif, quality=95))


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_exif_orientation_outside_jpeg_is_undone(read, name):
    image, exif = _turned(6)
    _assert_shows(read(name, image, exif=exif))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # as the commands ignore what Pillow warns of
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff",
                                  b"Exif\0\0MM\0*\0\0\0\x08\0\x09abc"],
                         ids=["none", "empty", "pointing nowhere", "cut"])
def test_a_broken_exif_block_costs_no_photo(read, exif):
    jpeg = _saved(_upright(), "JPEG")
    block = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    _assert_shows(read("a.jpg", jpeg[:2] + block + jpeg[2:]))


@pytest.mark.parametrize("size", [(60, 200), (6000, 40), (40, 6000), (2400, 1800), (16, 16), (63, 65)],
                         ids="{0[0]} x {0[1]}".format)
def test_every_size_and_shape(read, size):
    for name in ("a.jpg", "a.png"):
        _assert_shows(read(name, _upright(*size)), within=12)


@pytest.mark.parametrize("size", [(1, 1), (90, 1), (1, 6000)], ids="{0[0]} x {0[1]}".format)
def test_down_to_one_pixel(read, size):
    for name in ("a.jpg", "a.png", "a.webp"):
        _assert_shows(read(name, Image.new("RGB", size, (90, 140, 200))), [[90, 140, 200]] * 4)


@pytest.mark.parametrize("side", [32, 301])
def test_photos_are_read_at_any_side(bird, tmp_path, side):
    _upright().save(str(tmp_path / "a.jpg"))
    photo = bird.decode_photo(str(tmp_path / "a.jpg"), side)
    assert photo.shape == (3, side, side) and photo.flags.c_contiguous
    assert _means(photo) == pytest.approx(COLOURS.astype(float), abs=8)


def test_drawing_a_large_photo_small_is_no_sampling(bird, tmp_path):
    """Black and white pixels in turn are grey from afar, whatever scales them down."""
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[::2] = 255
    for name in ("a.png", "a.jpg"):
        Image.fromarray(stripes).save(str(tmp_path / name), quality=95)
        assert abs(bird.decode_photo(str(tmp_path / name), SIDE).astype(int) - 127).max() < 25


# -------------------------------------------------------------------------------------------------------------- broken

@pytest.mark.parametrize("share", [0.5, 0.8, 0.99])
@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["", "progressive"])
def test_a_truncated_jpeg_gives_what_it_has(read, share, options):
    whole = _saved(_noisy(), "JPEG", **options)
    photo = read("a.jpg", whole[:int(len(whole) * share)])
    assert photo[:, :int(SIDE * share) - 10].mean((1, 2)) == pytest.approx(
        read("b.jpg", whole)[:, :int(SIDE * share) - 10].mean((1, 2)), abs=8)


def test_a_truncated_png_gives_what_it_has(read):
    whole = _saved(_noisy(), "PNG")
    photo = read("a.png", whole[:len(whole) * 3 // 4])
    assert _means(photo)[:2] == pytest.approx(COLOURS[:2].astype(float), abs=8)


def _no_photos():
    jpeg, png = _saved(_upright(), "JPEG"), _saved(_upright(), "PNG")
    return {"empty": b"", "text": b"this is no photo\n", "a page": b"<!DOCTYPE html><html><body>404</body></html>",
            "zeros": bytes(5000), "two bytes of a JPEG": jpeg[:2], "the head of a JPEG": jpeg[:100],
            "the head of a PNG": png[:20], "the tail of a JPEG": jpeg[300:], "noise": os.urandom(3000)}


@pytest.mark.parametrize("kind", _no_photos())
def test_what_is_no_photo_is_an_error_of_the_kind_promised(read, kind):
    with pytest.raises((OSError, ValueError, Image.DecompressionBombError)):
        read("a.jpg", _no_photos()[kind])


def test_a_file_of_bytes_that_claims_gigabytes_is_not_decoded(bird, monkeypatch, tmp_path):
    """Decoders set the claimed size aside at once; some of these in a folder, a few threads, and memory is gone."""
    claimed, load = [], ImageFile.ImageFile.load

    def loaded(image):
        if image.size[0] * image.size[1] > 2 ** 30:
            claimed.append(image.size)
            raise ValueError("the test stops here: the machine has other work")
        return load(image)

    (tmp_path / "a.png").write_bytes(_png(np.zeros((1, 1)), 0).replace(
        struct.pack(">II", 1, 1), struct.pack(">II", 60000, 60000), 1))
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    (tmp_path / "a.png").write_bytes(content)
    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded)
    with pytest.raises((OSError, ValueError, Image.DecompressionBombError)):
        bird.decode_photo(str(tmp_path / "a.png"), SIDE)
    assert claimed == []


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM"])
def test_damaged_files_are_read_or_passed_over_in_silence(bird, format, tmp_path, capfd):
    """Cut anywhere, bytes changed after the header (which tells the size): a photo or nothing comes out."""
    good, chance, path = _saved(_noisy(100, 80), format), random.Random(0), tmp_path / "damaged.jpg"
    kinds = set()
    for trial in range(60):
        damaged = bytearray(good)
        for _ in range(5):
            damaged[chance.randrange(len(good) // 3, len(good))] = chance.randrange(256)
        path.write_bytes(damaged[:chance.randrange(len(damaged))] if trial % 2 else damaged)
        try:
            photo = bird.decode_photo(str(path), SIDE)
            assert photo.dtype == np.uint8 and photo.shape == (3, SIDE, SIDE)
            kinds.add("read")
        except Exception as error:  # the commands pass over whatever the decoders raise
            assert not isinstance(error, AssertionError)
    assert "read" in kinds or format == "WEBP"
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------------ what is listed

JUNK = ["._0.jpg", ".hidden.jpg", "Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt", "movie.mp4", "jpg",
        "0.jpg.part", ".ipynb_checkpoints/0-checkpoint.jpg", ".thumbnails/0.jpg", "__MACOSX/._0.jpg"]


def _touch(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_hidden_files_and_other_junk_are_passed_over(bird, tmp_path):
    _touch(tmp_path, [f"{name}/{file}" for name in "ab" for file in ("0.jpg", "x/1.JPG", *JUNK)])
    _touch(tmp_path, ["__MACOSX/a/._0.jpg", "__MACOSX/a/0.jpg", ".ipynb_checkpoints/0.jpg", ".git/0.jpg", *JUNK])
    classes, photos = bird.list_photos(str(tmp_path))
    assert classes == ["a", "b"]
    assert [(os.path.relpath(path, str(tmp_path)), label) for path, label in photos] == [
        (os.path.join("a", "0.jpg"), 0), (os.path.join("a", "x", "1.JPG"), 0),
        (os.path.join("b", "0.jpg"), 1), (os.path.join("b", "x", "1.JPG"), 1)]


def test_junk_in_a_flat_folder_is_passed_over(bird, tmp_path):
    _touch(tmp_path, ["b.jpg", "a.PNG", "__MACOSX/._b.jpg", "empty/notes.txt", *JUNK])
    (tmp_path / "folder.jpg").mkdir()
    assert bird.list_test_photos(str(tmp_path)) == (
        [], [(str(tmp_path / "a.PNG"), None), (str(tmp_path / "b.jpg"), None)])


def test_empty_class_folders_keep_their_index(bird, tmp_path):
    _touch(tmp_path, ["a/0.jpg", "c/Thumbs.db", "d/x/y/0.jpg"])
    (tmp_path / "b").mkdir()
    classes, photos = bird.list_photos(str(tmp_path))
    assert classes == ["a", "b", "c", "d"] and [label for _, label in photos] == [0, 3]


def test_a_folder_that_links_to_itself_is_no_class(bird, tmp_path):
    _touch(tmp_path, ["a/0.jpg"])
    for place in ("loop", "a/loop"):
        os.symlink("loop", str(tmp_path / place))
    assert bird.list_photos(str(tmp_path)) == (["a"], [(str(tmp_path / "a" / "0.jpg"), 0)])


@pytest.mark.parametrize("link, target", [("a/up", ".."), ("a/up", "."), ("a/x/up", "../.."), ("a/x/up", ".."),
                                          ("a/top", "../.."), ("up", ".")])
def test_a_link_to_a_folder_that_contains_it_is_not_followed(bird, tmp_path, link, target):
    """torchvision's ImageFolder follows it some forty times, each time through all the photos."""
    root = tmp_path / "photos"
    _touch(root, ["a/0.jpg", "a/x/1.jpg", "b/2.jpg"])
    os.symlink(target, str(root / link))
    classes, photos = bird.list_photos(str(root))
    assert [os.path.relpath(path, str(root)) for path, _ in photos] == ["a/0.jpg", "a/x/1.jpg", "b/2.jpg"]


def test_folders_that_link_to_each_other_are_each_followed_once(bird, tmp_path):
    _touch(tmp_path, ["a/x/0.jpg", "a/y/1.jpg"])
    os.symlink("../y", str(tmp_path / "a" / "x" / "to_y"))
    os.symlink("../x", str(tmp_path / "a" / "y" / "to_x"))
    found = [os.path.relpath(path, str(tmp_path / "a")) for path, _ in bird.list_photos(str(tmp_path))[1]]
    assert found == ["x/0.jpg", "x/to_y/1.jpg", "y/1.jpg", "y/to_x/0.jpg"]


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("folder", ["a", "b/deep"])
@pytest.mark.parametrize("right", ["listdir", "stat"])  # r and x of its mode
def test_a_folder_that_cannot_be_read_is_refused(bird_call, bird_untrained, monkeypatch, tmp_path, mode, folder, right):
    """Without its photos all further rows would belong to other photos."""
    _touch(tmp_path, ["photos/a/0.jpg", "photos/b/deep/1.jpg", "photos/c/2.jpg"])
    real, closed = getattr(os, right), os.path.join("photos", folder)

    def refusing(path, *rest, **options):
        if str(path).endswith((closed, os.path.join(closed, ".")) if right == "listdir" else os.path.join(closed, ".")):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest, **options)

    monkeypatch.setattr(os, right, refusing)
    model = bird_untrained if mode == "test" else "bird.pth"
    refused(bird_call("photos", mode, model), os.path.join("photos", folder))
    assert _files(tmp_path) == ["photos"]


def _files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("parts", [("train", "valid", "test"), ("Train", "Test"), ("training", "validation")])
def test_a_folder_of_the_parts_of_a_dataset_is_refused(bird_call, bird_untrained, tmp_path, parts):
    _touch(tmp_path, [f"photos/{part}/{name}/0.jpg" for part in parts for name in "ab"])
    for words in (("train", "bird.pth"), ("test", bird_untrained)):
        found = bird_call("photos", *words)
        refused(found, "photos")
        assert all(part in found.err for part in parts) and _files(tmp_path) == ["photos"]


def test_composed_and_decomposed_class_names_are_the_same(bird, bird_call, bird_draw, tmp_path):
    """As macOS may list what was trained on elsewhere."""
    model = bird.BirdClassifier(["M\u00f6we", "Uhu"], [1, 1], 32)
    (tmp_path / "bird.pth").write_bytes(bird.serialized(model.state_dict()))
    bird_draw(tmp_path / "photos", {"Mo\u0308we/0.jpg": 0, "Uhu/1.jpg": 1})
    found = bird_call("photos", "test", "bird.pth")
    assert (found.code, found.err) == (0, "") and "average F1" in found.out


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_a_photo_that_cannot_be_read(bird, tmp_path):
    os.mkfifo(str(tmp_path / "pipe.jpg"))
    with pytest.raises(OSError):
        bird.decode_photo(str(tmp_path / "pipe.jpg"), 16)


@pytest.mark.parametrize("place", ["a/link.jpg", "link.jpg"], ids=["class folders", "flat folder"])
def test_a_broken_link_is_a_photo_that_cannot_be_read(bird, tmp_path, place):
    """ImageFolder lists it: without its row all others would shift."""
    _touch(tmp_path, [str(os.path.join(os.path.dirname(place), "0.jpg"))])
    os.symlink("nowhere.jpg", str(tmp_path / place))
    assert [os.path.basename(path) for path, _ in bird.list_test_photos(str(tmp_path))[1]] == ["0.jpg", "link.jpg"]


# ---------------------------------------------------------------------------------------------------------- at testing

def _rows(path):
    return [int(line) for line in path.read_text().splitlines()[1:]]


@pytest.fixture
def broken(bird_draw, tmp_path):
    """Class folders a, b, c of one good photo and one that cannot be read, each of its own kind."""
    bird_draw(tmp_path / "photos", {f"{name}/good.jpg": kind for kind, name in enumerate("abc")})
    (tmp_path / "photos" / "a" / "empty.jpg").touch()
    (tmp_path / "photos" / "b" / "text.jpg").write_text("this is no photo")
    os.symlink("nowhere.jpg", str(tmp_path / "photos" / "c" / "link.jpg"))
    return tmp_path / "photos"


def test_each_unreadable_photo_gets_the_most_frequent_class_and_is_named(bird_call, bird_untrained, broken, tmp_path):
    found = bird_call(broken, "test", bird_untrained)
    assert found.code == 0
    (line,) = found.err.splitlines()
    assert line.startswith("bird.py: warning: 3 of 6 photos cannot be read")
    assert all(name in line for name in ("empty.jpg", "text.jpg", "link.jpg"))
    rows = _rows(tmp_path / "bird.csv")
    assert len(rows) == 6 and [rows[i] for i in (0, 3, 5)] == [1, 1, 1]  # a/empty, b/text, c/link
    good = []
    for name in "abc":
        assert bird_call(broken / name / "good.jpg", "test", bird_untrained).code == 0
        good += _rows(tmp_path / "bird.csv")
    assert [rows[i] for i in (1, 2, 4)] == good


def test_unreadable_photos_alone_get_their_rows_too(bird_call, bird_untrained, tmp_path):
    _touch(tmp_path, [f"photos/{i}.jpg" for i in range(30)])
    found = bird_call("photos", "test", bird_untrained)
    assert found.code == 0 and _rows(tmp_path / "bird.csv") == [1] * 30
    assert len(found.err.splitlines()) == 1 and "and 10 more" in found.err


def test_one_unreadable_photo_gets_its_row(bird_call, bird_untrained, tmp_path):
    (tmp_path / "a\n\x1b[31m.jpg").write_bytes(b"no photo")
    found = bird_call("a\n\x1b[31m.jpg", "test", bird_untrained)
    assert found.code == 0 and len(found.err.splitlines()) == 1 and "a  [31m.jpg" in found.err
    assert _rows(tmp_path / "bird.csv") == [1]


def test_odd_photos_are_read_without_a_word_on_stderr(run, bird_alone, bird_untrained, tmp_path):
    """In a process of its own: warnings of Pillow and of the C libraries below it would show."""
    folder, image, exif = tmp_path / "photos", _upright().quantize(16), _turned(6)[1]
    folder.mkdir()
    image.save(str(folder / "palette.png"), transparency=bytes(range(16)))
    _upright().convert("CMYK").save(str(folder / "cmyk.jpg"))
    _upright().save(str(folder / "turned.JPG"), exif=exif)
    _upright(6000, 20).save(str(folder / "panorama.webp"))
    Image.new("1", (1, 1)).save(str(folder / "one.bmp"))
    (folder / "deep.png").write_bytes(_png(_quarters().astype(int) * 257, 2))
    jpeg, tiff = _saved(_noisy(), "JPEG"), _saved(_noisy(), "TIFF", compression="tiff_lzw")
    (folder / "truncated.jpg").write_bytes(jpeg[:len(jpeg) // 2])
    (folder / "exif.jpg").write_bytes(jpeg[:2] + b"\xff\xe1\0\x0eExif\0\0II*\0\xff\xff" + jpeg[2:])
    (folder / "truncated.tif").write_bytes(tiff[:len(tiff) // 2])
    process = run(bird_alone, folder, "test", bird_untrained, "--threads", "1", cwd=tmp_path)
    assert process.returncode == 0
    assert [line for line in process.stderr.splitlines() if "truncated.tif" not in line] == []
    assert len(_rows(tmp_path / "bird.csv")) == 9


def test_rows_do_not_depend_on_how_many_photos_go_at_once(bird, bird_untrained, bird_draw, tmp_path):
    bird_draw(tmp_path, {f"{i}.jpg": i % 4 for i in range(11)})
    _touch(tmp_path, ["2.jpg.jpg", "broken.jpg"])
    paths = [str(path) for path in sorted(tmp_path.glob("*.jpg"))]
    model = bird.load_model(str(bird_untrained))
    labels, unreadable = bird.classify(model, paths)
    assert labels.shape == (13,) and [os.path.basename(paths[i]) for i in unreadable] == ["2.jpg.jpg", "broken.jpg"]
    for batch_size in (1, 3, 13):
        again, still = bird.classify(model, paths, batch_size=batch_size)
        assert again.tolist() == labels.tolist() and still == unreadable


def test_photos_are_decoded_a_few_batches_ahead_and_no_more(bird, bird_untrained, bird_draw, monkeypatch, tmp_path):
    """However many there are, memory holds what one network pass needs and what the next will."""
    bird_draw(tmp_path, {"a.jpg": 0})
    decoded, ahead, read, predict = [], [], bird.decode_photo, bird.predict_proba

    def counted(*args):
        decoded.append(args[0])
        return read(*args)

    def noted(model, photos, *args):
        ahead.append(len(decoded) - 4 * len(ahead))
        return predict(model, photos, *args)

    monkeypatch.setattr(bird, "decode_photo", counted)
    monkeypatch.setattr(bird, "predict_proba", noted)
    bird.classify(bird.load_model(str(bird_untrained)), [str(tmp_path / "a.jpg")] * 60, batch_size=4)
    assert len(decoded) == 60 and len(ahead) == 15 and max(ahead) <= 12


# --------------------------------------------------------------------------------------------------------- at training

def test_unreadable_photos_are_left_out_of_training_with_a_warning(bird_call, bird_draw, broken, bird_fast, tmp_path):
    bird_draw(broken, {f"{name}/{i}.jpg": kind for kind, name in enumerate("abc") for i in range(4)}, seed=3)
    found = bird_call(broken, "train", "bird.pth", *bird_fast, "--epochs", "1")
    assert found.code == 0
    (line,) = found.err.splitlines()
    assert line.startswith("bird.py: warning: ") and "empty.jpg" in line and "text.jpg" in line and "link.jpg" in line
    history = json.loads((tmp_path / "bird_history.json").read_text())
    assert sorted(history["split"]["unreadable"]) == ["a/empty.jpg", "b/text.jpg", "c/link.jpg"]
    names = history["split"]["train"] + history["split"]["validation"]
    assert len(set(names)) == len(names) == 15 and not set(names) & set(history["split"]["unreadable"])


def test_empty_classes_are_warned_of_in_training_and_keep_their_index(bird_call, bird_draw, bird_fast, bird, tmp_path):
    bird_draw(tmp_path / "photos", {f"{name}/{i}.jpg": kind for kind, name in enumerate("bd") for i in range(5)})
    (tmp_path / "photos" / "a").mkdir()
    _touch(tmp_path / "photos", ["c/Thumbs.db"])
    found = bird_call("photos", "train", "bird.pth", *bird_fast)
    assert found.code == 0
    (line,) = found.err.splitlines()
    assert line.startswith("bird.py: warning: ") and "a, c" in line
    about = bird.load_model("bird.pth").metadata
    assert about["classes"] == ["a", "b", "c", "d"] and about["counts"] == [0, 4, 0, 4]
    assert bird_call("photos", "test", "bird.pth").code == 0
    assert set(_rows(tmp_path / "bird.csv")) <= {1, 3}


def test_a_handful_of_photos_is_enough(bird_call, bird_draw, bird_fast, tmp_path):
    """One a class: nothing can be set aside, which is said."""
    bird_draw(tmp_path / "photos", {f"{name}/0.jpg": kind for kind, name in enumerate("ab")})
    found = bird_call("photos", "train", "bird.pth", *bird_fast, "--epochs", "1")
    assert found.code == 0 and len(found.err.splitlines()) == 1
    assert bird_call("photos", "test", "bird.pth").code == 0


# -------------------------------------------------------------------------------------------------------------- images

def test_images_on_disk_are_those_in_memory(bird, bird_data, monkeypatch, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no photo")
    paths = [str(path) for path in sorted(bird_data.test.rglob("*.jpg"))]
    paths.insert(3, str(tmp_path / "broken.jpg"))
    images, unreadable = bird.decode_photos(paths, 40)
    assert images.dtype == torch.uint8 and images.shape == (len(paths), 3, 40, 40)
    assert unreadable == [3] and not images[3].any() and images[2].any()
    assert (images[0].numpy() == bird.decode_photo(paths[0], 40)).all()
    monkeypatch.setattr(bird, "MAX_IN_MEMORY", 1000)
    kept, still = bird.decode_photos(paths, 40)
    assert torch.equal(images, kept[torch.arange(len(paths))]) and still == unreadable
    assert torch.equal(images[torch.tensor([7, 0, 7, 3])], kept[torch.tensor([7, 0, 7, 3])])


@pytest.mark.parametrize("operation", ["open", "write"])
def test_images_that_find_no_room_are_one_line(bird, bird_call, bird_few, bird_fast, monkeypatch, tmp_path, operation):
    def full(*_, **__):
        if operation == "open":
            raise OSError(28, "No space left on device")
        return FullDisk()

    monkeypatch.setattr(bird, "MAX_IN_MEMORY", 0)
    monkeypatch.setattr(bird.tempfile, "TemporaryFile", full)
    refused(bird_call(bird_few, "train", "bird.pth", *bird_fast), "No space left")
    assert os.listdir(str(tmp_path)) == []
