"""Images of any usual source as one uint8 tensor in memory.

A source is a torchvision name (MNIST, FashionMNIST, KMNIST), a folder of idx files, one idx file with its labels beside
it, a .npz or .npy file, a folder of class folders, a flat folder, or a zip of either. Nothing is unpickled, nothing
extracted to disk; what cannot be read is skipped and told.
"""
import contextlib
import dataclasses
import gzip
import io
import math
import os
import re
import urllib.error
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile, ImageOps

import bird
from common.errors import InputError, one_line
from studies import printable

NAMES = {"mnist": "MNIST", "fashionmnist": "FashionMNIST", "kmnist": "KMNIST"}
INSTALLED = {"FashionMNIST": "/usr/share/datasets/fashion-mnist"}  # Debian's dataset-fashion-mnist
GARMENTS = ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "test", "valid": "test",
         "validation": "test"}
MOST_BYTES = 8 * 2 ** 30        # of one set in memory
MOST_FILE_BYTES = 256 * 2 ** 20  # of one photo, packed in a zip or not
MOST_PHOTO_PIXELS = 100_000_000
PHOTO_SIDE = 64


@dataclasses.dataclass(frozen=True)
class Images:
    """A set of images in memory."""
    pixels: torch.Tensor            # uint8 (N, C, H, W)
    labels: Optional[torch.Tensor]  # int64 (N,), indices into `classes`; None where the source has none
    classes: list                   # names, in the order of the labels
    skipped: list                   # "name: why" of each image that was left out

    def __len__(self):
        return len(self.pixels)

    def subset(self, index):
        """The images `index` (M,); what was skipped stays told."""
        return dataclasses.replace(self, pixels=self.pixels[index],
                                   labels=None if self.labels is None else self.labels[index])


# --------------------------------------------------------------------------------------------------------- public doors

def read_images(source, side=None, channels=None, part="train", cache=None):
    """Images of a source. `side` asks for squares of that many px (photos: 64 unless told), `channels` for 1 (grey) or
    3 (RGB); None keeps what an array has, and reads photos in RGB. Of a source with files of its own for training and
    test, `part` ("train" or "test") says which. Raises InputError."""
    parts = _read_parts(str(source), side, channels, cache)
    if part not in parts:
        raise InputError(f"{source}: expected {part} files, found none")
    return parts[part]


def read_split(sources, side=None, channels=None, share=0.2, seed=0, labelled=False, least=50, cache=None):
    """(training Images, held-out Images, how they were held out). Two sources are training and held-out data; one
    source gives its own test files or, lacking them, `share` of each class, drawn with `seed`. `labelled` asks for two
    classes or more, `least` for as many images in each. Raises InputError."""
    sources = [str(source) for source in sources]
    if not 1 <= len(sources) <= 2:
        raise InputError(f"{sources[2]}: expected one source, or one to train on and one held out, "
                         f"found {len(sources)} of them")
    found = _read_parts(sources[0], side, channels, cache)
    if len(sources) == 2:
        train, test, how = found["train"], _read_parts(sources[1], side, channels, cache), "a source of its own"
        test = test.get("test", test["train"])
        if torch.equal(train.pixels, test.pixels):
            raise InputError(f"{sources[1]}: expected other images to hold out than to train on, found the same")
    elif "test" in found:
        train, test, how = found["train"], found["test"], "the source's own test files"
    else:
        train, test = held_out(found["train"], share, seed)
        how = f"{share:.0%} of each class, drawn with seed {seed}"
        if train.labels is None:
            how = f"{share:.0%}, drawn with seed {seed}"
    for images, name in ((train, "train on"), (test, "hold out")):
        if len(images) < least:
            raise InputError(f"{sources[0]}: expected at least {least} images to {name}, found {len(images)}")
        if labelled:
            require_classes(images, sources[0])
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise InputError(f"{sources[-1]}: expected images of shape {tuple(train.pixels.shape[1:])} as in training, "
                         f"found {tuple(test.pixels.shape[1:])}")
    if train.labels is not None and test.labels is not None and train.classes != test.classes:
        unknown = [name for name in test.classes if name not in train.classes]
        if unknown:
            raise InputError(f"{sources[-1]}: expected the classes {_few(train.classes)} of training alone, "
                             f"found {_few(unknown)} too")
        places = torch.tensor([train.classes.index(name) for name in test.classes])
        test = dataclasses.replace(test, labels=places[test.labels], classes=train.classes)
    return train, test, how


def for_study(args, settings, channels, labelled=False):
    """read_split for a study: DATA, --seed and the settings' side, test_share, most_train and most_test. Raises
    InputError."""
    train, test, how = read_split(args.data, settings.side, channels, settings.test_share, args.seed, labelled)
    train, test = at_most(train, settings.most_train, args.seed), at_most(test, settings.most_test, args.seed)
    if labelled:
        require_classes(train, args.data[0])
    return train, test, how


def require_classes(images, source):
    """Raises InputError unless there are labels of two classes or more."""
    present = [] if images.labels is None else [images.classes[i] for i in images.labels.unique()]
    if len(present) < 2:
        found = "no labels" if images.labels is None else f"{len(present)}: {_few(present)}"
        raise InputError(f"{source}: expected labels of at least two classes, found {found}")


def held_out(images, share, seed):
    """(the rest, the held-out): `share` of each class, or of all where there are no labels, drawn with `seed`."""
    whole = torch.zeros(len(images), dtype=torch.int64)
    labels = whole if images.labels is None else images.labels
    if (labels.bincount() * share).round().sum() < 0.5 * share * len(images):
        labels = whole  # of classes of one or two images none would be held out
    train, test = bird.stratified_split(labels, share, torch.Generator().manual_seed(seed))
    return images.subset(train), dataclasses.replace(images.subset(test), skipped=[])


def at_most(images, most, seed):
    """All images, or `most` of them drawn with `seed` in their order."""
    if len(images) <= most:
        return images
    index = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:most]
    return images.subset(index.sort().values)


def cache_folder():
    """Where downloads go: below $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "birds-and-digits" / "datasets"


def _read_parts(source, side, channels, cache):
    """{"train": Images} of a source, with "test" where it has files of its own for that."""
    if side is not None and side < 8:
        raise InputError(f"{source}: expected a side of 8 px or more, found {side}")
    path, name = Path(source), NAMES.get(re.sub("[^a-z]", "", source.lower()))
    there = os.path.exists(source)  # Path.exists raises OSError for a name that is too long
    if not there and name:
        parts = _torchvision(name, cache)
    elif not there:
        raise InputError(f"{source}: expected a file, a folder or one of {', '.join(NAMES.values())}, "
                         "found nothing there")
    elif path.is_dir():
        parts = _idx_folder(path) or _photo_parts(_FolderTree(path), source, side, channels)
    else:
        parts = _file(path, source, side, channels)
    for part, images in parts.items():
        if not images.pixels.numel():
            why = f"; {len(images.skipped)} skipped, such as {images.skipped[0]}" if images.skipped else ""
            raise InputError(f"{source}: expected images, found none that can be read{why}")
        parts[part] = _fitted(images, side, channels, source)
    return parts


def _file(path, source, side, channels):
    try:
        with open(str(path), "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise InputError(f"{source}: expected a file of images, found: {error.strerror}") from None
    if start[:2] == b"\x1f\x8b" or start[:3] == b"\0\0\x08":
        return {"train": _idx_pair(path, _labels_beside(path))}
    if start == b"\x93NUM":
        return _npz(path, source)
    if start[:2] == b"PK":
        try:
            with zipfile.ZipFile(str(path)) as archive:
                if all(name.endswith(".npy") for name in archive.namelist()):
                    return _npz(path, source)
                return _photo_parts(_ZipTree(archive), source, side, channels)
        except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
            raise InputError(f"{source}: expected a zip of images, found: {one_line(error)}") from None
    raise InputError(f"{source}: expected idx, npz, npy or zip, found a file that begins with {start!r}")


# ------------------------------------------------------------------------------------------------------------------ idx

def _torchvision(name, cache):
    if os.path.isdir(INSTALLED.get(name, "")):
        parts = _idx_folder(Path(INSTALLED[name]))
        if parts:
            return parts
    import torchvision.datasets
    root = Path(cache) if cache else cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            for train in (True, False):
                getattr(torchvision.datasets, name)(str(root), train=train, download=True)
    except (OSError, RuntimeError, urllib.error.URLError) as error:
        raise InputError(f"{name}: expected a network to download it, or the path of a folder with its idx files, "
                         f"found: {one_line(error)}") from None
    return _idx_folder(root / name / "raw")


def _idx_folder(folder):
    """Images of a folder that holds the four usual names, plain or gzipped, itself or where torchvision puts them below
    it; {} of any other."""
    places = [folder, folder / "raw", *(folder / name / "raw" for name in NAMES.values())]
    found = [place for place in places if _one_of(place, "train-images", "idx3-ubyte")]
    if len(found) > 1 and found[0] in places[2:]:
        raise InputError(f"{folder}: expected one set, found {_few(place.parent.name for place in found)}")
    folder, parts = found[0] if found else folder, {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        images = _one_of(folder, f"{stem}-images", "idx3-ubyte")
        if images:
            parts[part] = _idx_pair(images, _labels_beside(images))
    return parts if "train" in parts else {}


def _one_of(folder, stem, ending):
    for name in (f"{stem}-{ending}", f"{stem}.{ending}"):
        for path in (folder / name, folder / (name + ".gz")):
            if path.is_file():
                return path
    return None


def _labels_beside(images):
    if "images" not in images.name:
        return None
    name = images.name[:-3] if images.name.endswith(".gz") else images.name
    name = name.replace("images", "labels").replace("idx3", "idx1")
    return next((path for path in (images.parent / name, images.parent / (name + ".gz")) if path.is_file()), None)


def _idx_pair(images, labels):
    pixels = _idx(images, 3)[:, None]
    if labels is None:
        return Images(torch.from_numpy(pixels), None, [], [])
    marks = _idx(labels, 1)
    if len(marks) != len(pixels):
        raise InputError(f"{labels}: expected {len(pixels)} labels, one an image, found {len(marks)}")
    folders = {re.sub("[^a-z]", "", folder.lower()) for folder in images.resolve().parts[-4:-1]}
    names = GARMENTS if "fashionmnist" in folders and marks.max(initial=0) < 10 else None
    return _labelled(pixels, marks, [], names)


def _idx(path, dimensions):
    """uint8 array of an idx file, gzipped or not (yann.lecun.com/exdb/mnist). No more is read than its header
    announces."""
    try:
        with open(str(path), "rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
        with (gzip.open if gzipped else open)(str(path), "rb") as file:
            header = file.read(4 + 4 * dimensions)
            if header[:4] != bytes([0, 0, 8, dimensions]) or len(header) < 4 + 4 * dimensions:
                raise InputError(f"{path}: expected an idx file of bytes in {dimensions} dimensions, "
                                 f"found the header {header[:4]!r}")
            shape = tuple(int(n) for n in np.frombuffer(header[4:], ">u4"))
            expected = math.prod(shape)
            if not 0 < expected <= MOST_BYTES:
                raise InputError(f"{path}: expected 1 byte or more, at most {MOST_BYTES:,}, found a header of "
                                 f"{expected:,}")
            content = file.read(expected + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path}: expected an idx file, found: {one_line(error)}") from None
    if len(content) != expected:
        raise InputError(f"{path}: expected {expected:,} bytes as the header says, found "
                         f"{'more' if len(content) > expected else format(len(content), ',')}")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()


# --------------------------------------------------------------------------------------------------------------- arrays

def _npz(path, source):
    """{"train": Images} of an array or of arrays, with "test" where they are named as Keras names them."""
    try:
        with open(str(path), "rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                arrays = {"train": (content, None)}
            else:
                arrays = {part: (content[key], content[marks] if marks in content.files else None)
                          for part, (key, marks) in _npz_keys(content.files, source).items()}
    except InputError:
        raise
    except Exception as error:  # broken bytes trip zipfile and NumPy in a dozen ways
        raise InputError(f"{source}: expected a .npz or .npy file of numbers, found: {one_line(error)}") from None
    return {part: _of_arrays(data, labels, source) for part, (data, labels) in arrays.items()}


def _npz_keys(found, source):
    """{part: (key of its images, key of their labels)}."""
    if {"x_train", "x_test"} <= set(found):
        return {part: (f"x_{part}", f"y_{part}") for part in ("train", "test")}
    names = [name for name in found if name != "labels"]
    key = "data" if "data" in names else names[0] if len(names) == 1 else None
    if key is None:
        raise InputError(f"{source}: expected the key 'data', x_train and x_test, or a single array, found "
                         f"{_few(names)}")
    return {"train": (key, "labels")}


def _of_arrays(data, labels, source):
    pixels = _as_bytes(_as_nchw(data, source), source)
    if labels is None:
        return Images(torch.from_numpy(pixels), None, [], [])
    labels = labels.reshape(-1) if labels.shape == (len(pixels), 1) else labels
    if labels.shape != (len(pixels),):
        raise InputError(f"{source}: expected one label an image, {len(pixels)} in all, found shape {labels.shape}")
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and np.array_equal(labels, np.round(labels))):
        raise InputError(f"{source}: expected whole numbers or words as labels, found others")
    return _labelled(pixels, labels.astype(np.int64) if labels.dtype.kind == "f" else labels, [])


def _as_nchw(array, source):
    shape = array.shape
    if array.ndim == 2 and math.isqrt(shape[1]) ** 2 == shape[1]:
        return array.reshape(shape[0], 1, math.isqrt(shape[1]), math.isqrt(shape[1]))
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4 and shape[1] in (1, 3):
        return array
    if array.ndim == 4 and shape[3] in (1, 3):
        return array.transpose(0, 3, 1, 2)
    raise InputError(f"{source}: expected images of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1 or 3, "
                     f"found {shape}")


def _as_bytes(array, source):
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind not in "buif":
        raise InputError(f"{source}: expected numbers as pixels, found dtype {array.dtype}")
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    if not (np.isfinite(low) and np.isfinite(high) and low >= 0 and high <= 255):
        raise InputError(f"{source}: expected pixels in 0..1 or 0..255, found {low}..{high}")
    return np.ascontiguousarray(np.round(array * (255 if high <= 1 else 1)).astype(np.uint8))


def _labelled(pixels, marks, skipped, names=None):
    values, labels = np.unique(marks, return_inverse=True)
    classes = [printable(str(value)) for value in values]
    if names is not None:
        labels, classes = marks, list(names)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels.reshape(-1).astype(np.int64)), classes, skipped)


def _fitted(images, side, channels, source):
    """The images as squares of `side` px with `channels`, where asked."""
    pixels = images.pixels
    if channels not in (None, 1, 3):
        raise InputError(f"{source}: expected 1 or 3 channels, found {channels}")
    if channels == 1 and pixels.shape[1] == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R BT.601, as Pillow's "L" has it
        pixels = torch.cat([(part * weights).sum(1, keepdim=True).round().byte() for part in pixels.split(1024)])
    elif channels == 3 and pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1).contiguous()
    if side is not None and pixels.shape[2:] != (side, side):
        height, width = pixels.shape[2:]
        crop = min(height, width)
        top, left = (height - crop) // 2, (width - crop) // 2
        pixels = pixels[:, :, top:top + crop, left:left + crop]
        pixels = torch.cat([F.interpolate(part.float(), (side, side), mode="bilinear", align_corners=False,
                                          antialias=True).round().clamp(0, 255).byte() for part in pixels.split(1024)])
    return dataclasses.replace(images, pixels=pixels)


# --------------------------------------------------------------------------------------------------------------- photos

class _FolderTree:
    """The files below a folder."""

    def __init__(self, folder):
        self.folder = folder

    def names(self):
        found = []
        for root, folders, files in os.walk(str(self.folder), followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [Path(root, name).relative_to(self.folder).as_posix() for name in files]
            if root.count(os.sep) - str(self.folder).count(os.sep) > 8:
                folders.clear()  # a link to a folder above would never end
        return found

    def read(self, name):
        path = self.folder / name
        if path.stat().st_size > MOST_FILE_BYTES:
            raise ValueError(f"more than {MOST_FILE_BYTES:,} bytes")
        return path.read_bytes()


class _ZipTree:
    """The members of an open zip file."""

    def __init__(self, archive):
        self.archive = archive
        self.members = {PurePosixPath(item.filename.replace("\\", "/")).as_posix(): item  # "./a/1.png", "a\\1.png"
                        for item in archive.infolist() if not item.is_dir()}

    def names(self):
        return list(self.members)

    def read(self, name):
        with self.archive.open(self.members[name]) as file:  # what a member says of its size need not be true
            content = file.read(MOST_FILE_BYTES + 1)
        if len(content) > MOST_FILE_BYTES:
            raise ValueError(f"more than {MOST_FILE_BYTES:,} bytes unpacked")
        return content


def _photo_parts(tree, source, side, channels):
    """{"train": Images} of a tree, with "test" where its top folders are parts such as train and valid."""
    side, channels = side or PHOTO_SIDE, channels or 3
    names = sorted(name for name in tree.names()
                   if Path(name).suffix.lower() in ENDINGS and not _is_hidden(name))
    if not names:
        raise InputError(f"{source}: expected images ({', '.join(sorted(ENDINGS))}), found none")
    if len(names) * side * side * channels > MOST_BYTES:
        raise InputError(f"{source}: expected at most {MOST_BYTES:,} bytes of images, found {len(names):,} of "
                         f"{side} px; ask for smaller ones")
    depth = _common_depth(names)
    groups = {}
    for name in names:
        steps = name.split("/")[depth:]
        groups.setdefault(steps[0].lower() if len(steps) > 1 else "", []).append(name)
    if {"train", "test"} <= {PARTS.get(top) for top in groups}:
        parts = {"train": [], "test": []}
        chosen = next(top for top in ("test", "testing", "val", "valid", "validation") if top in groups)
        for top, members in groups.items():
            if PARTS.get(top) == "train" or top == chosen:
                parts[PARTS[top]] += members
        beside = [f"{name}: beside the parts" for top in groups if top not in PARTS for name in groups[top]]
        found = {part: _photos(tree, members, depth + 1, side, channels) for part, members in parts.items()}
        return {**found, "train": dataclasses.replace(found["train"], skipped=beside + found["train"].skipped)}
    return {"train": _photos(tree, names, depth, side, channels)}


def _is_hidden(name):
    return any(step.startswith((".", "__MACOSX")) for step in name.split("/"))


def _common_depth(names):
    """How many folders all names share: a zip is often one folder."""
    first, last = (name.split("/")[:-1] for name in (min(names), max(names)))
    return next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))


def _photos(tree, names, depth, side, channels):
    """Images of the files `names`, labelled by the folder `depth` steps down; those in no such folder are skipped
    unless they are the most."""
    nested = [name for name in names if name.count("/") > depth]
    skipped, flat = [], 2 * len(nested) < len(names)
    if not flat:
        skipped = [f"{name}: in no class folder" for name in names if name.count("/") <= depth]
        names = nested
    pixels = np.empty((len(names), channels, side, side), np.uint8)
    kept = []

    def load(i):
        try:
            pixels[i] = decode_photo(tree.read(names[i]), side, channels)
        except Exception as error:  # broken photos trip Pillow in a dozen ways, and one must not cost the others
            return f"{names[i]}: {one_line(error)}"
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for i, why in enumerate(pool.map(load, range(len(names)))):
            if why is None:
                kept.append(i)
            else:
                skipped.append(why)
    pixels = pixels if len(kept) == len(names) else pixels[kept]
    if flat or not kept:
        return Images(torch.from_numpy(pixels), None, [], skipped)
    return _labelled(pixels, np.array([names[i].split("/")[depth] for i in kept]), skipped)


def decode_photo(content, side, channels):
    """Bytes of an image file -> uint8 (channels, side, side): its middle square, upright, transparent parts white.
    Raises ValueError or what Pillow raises."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # one for the whole process, and bird.py sets it
    with Image.open(io.BytesIO(content)) as photo:
        if photo.width * photo.height > MOST_PHOTO_PIXELS:
            raise ValueError(f"{photo.width} x {photo.height} px")
        photo.draft("RGB", (2 * side, 2 * side))
        photo = ImageOps.exif_transpose(photo)
        if photo.mode.startswith("I"):
            photo = Image.fromarray((np.asarray(photo, np.float64) / 256).clip(0, 255).astype(np.uint8))
        if photo.mode in ("RGBA", "LA", "PA") or "transparency" in photo.info:
            photo = photo.convert("RGBA")
            photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
        photo = ImageOps.fit(photo.convert("L" if channels == 1 else "RGB"), (side, side), Image.BILINEAR)
    pixels = np.asarray(photo)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def _few(things, most=5):
    things = [str(thing) for thing in things]
    return (", ".join(things[:most]) or "none") + (f" and {len(things) - most} more" if len(things) > most else "")
