"""Images of any usual source as one uint8 tensor in memory.

A source is a torchvision name (MNIST, FashionMNIST, KMNIST), a folder of idx files, a .npz or .npy file, a folder of
class folders, or a flat folder of images. Nothing is unpickled; images that cannot be read are skipped and counted.
"""
import contextlib
import dataclasses
import gzip
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import functional as transforms

from common.errors import InputError, one_line
from studies import printable

NAMES = ("MNIST", "FashionMNIST", "KMNIST")
INSTALLED = {"FashionMNIST": "/usr/share/datasets/fashion-mnist"}  # Debian's dataset-fashion-mnist
TRAIN_FOLDERS, TEST_FOLDERS = ("train", "training"), ("test", "testing", "valid", "val", "validation")
IDX = {"train": "train-{}-ubyte", "test": "t10k-{}-ubyte"}
MOST_BYTES = 8 * 2 ** 30  # of one dataset in memory
PHOTO_SIDE = 64


@dataclasses.dataclass(frozen=True)
class Images(Dataset):
    """A dataset in memory, for DataLoader: batches are float32 (B, C, H, W) in [0, 1] and labels int64 (B,)."""
    pixels: torch.Tensor            # uint8 (N, C, H, W); or float32 features (N, ...), in batches as they are
    labels: Optional[torch.Tensor]  # int64 (N,), indices into `classes`; None where the source has none
    classes: list                   # names, in the order of the labels
    skipped: list                   # "name: why" of each image that was left out

    def __len__(self):
        return len(self.pixels)

    def __getitems__(self, index):
        index = torch.as_tensor(index)
        pixels = self.pixels[index]
        return (pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels,
                torch.full((len(index),), -1) if self.labels is None else self.labels[index])

    def subset(self, index):
        """The images `index` (M,)."""
        return dataclasses.replace(self, pixels=self.pixels[index],
                                   labels=None if self.labels is None else self.labels[index])

    def at_most(self, n, seed):
        """All images, or n of them drawn with `seed`, in their order."""
        if len(self) <= n:
            return self
        drawn = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n]
        return self.subset(drawn.sort().values)

    def floats(self):
        """All images as float32 in [0, 1]."""
        return self.pixels.float() / 255


def read_split(sources, side=None, channels=None, share=0.2, seed=0, labelled=False, least=50):
    """(training Images, held-out Images, how they were held out). Two sources are training and held-out data; one
    source gives its own test files or, lacking them, `share` of each class, drawn with `seed`. `side` asks for squares
    of that many px, `channels` for 1 (grey) or 3 (RGB); None keeps what an array has, photos become RGB of 64 px.
    `labelled` asks for two classes or more, `least` for as many images in each. Raises InputError."""
    if len(sources) > 2:
        raise InputError(f"{sources[2]}: expected one source, or one to train on and one held out, found "
                         f"{len(sources)} of them")
    parts = [read(str(source), side, channels) for source in sources]
    if len(parts) == 2:
        train, test, how = parts[0]["train"], parts[1].get("test", parts[1]["train"]), "a source of its own"
    elif "test" in parts[0]:
        train, test, how = parts[0]["train"], parts[0]["test"], "the source's own test files"
    else:
        train, test = _held_out(parts[0]["train"], share, seed)
        how = f"{share:.0%} of each class, drawn with seed {seed}" if train.classes else f"{share:.0%}, seed {seed}"
    for images, what, source in ((train, "train on", sources[0]), (test, "hold out", sources[-1])):
        if len(images) < least:
            raise InputError(f"{source}: expected at least {least} images to {what}, found {len(images)}")
        if labelled and len(images.classes) < 2:
            raise InputError(f"{source}: expected labels of at least two classes, found {len(images.classes)}")
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise InputError(f"{sources[-1]}: expected images of shape {tuple(train.pixels.shape[1:])} as in training, "
                         f"found {tuple(test.pixels.shape[1:])}")
    if train.classes and test.classes and train.classes != test.classes:
        unknown = sorted(set(test.classes) - set(train.classes))
        if unknown:
            raise InputError(f"{sources[-1]}: expected the classes of training alone, found {', '.join(unknown)} too")
        places = torch.tensor([train.classes.index(name) for name in test.classes])
        test = dataclasses.replace(test, labels=places[test.labels], classes=train.classes)
    if len(parts) == 2 and torch.equal(train.pixels, test.pixels):
        raise InputError(f"{sources[-1]}: expected other images to hold out than those trained on, found the same")
    return train, test, how


def _held_out(images, share, seed):
    every = np.arange(len(images))
    if len(every) < 2:
        return images, images.subset(every[:0])
    try:
        kept, held = train_test_split(every, test_size=share, random_state=seed, stratify=images.labels)
    except ValueError:  # a class of one image
        kept, held = train_test_split(every, test_size=share, random_state=seed)
    return images.subset(np.sort(kept)), dataclasses.replace(images.subset(np.sort(held)), skipped=[])


def read(source, side=None, channels=None):
    """{"train": Images} of a source, with "test" where it has files of its own for that; `side` and `channels` as in
    read_split. Raises InputError."""
    path = Path(source)
    try:
        if source in NAMES and not path.exists():
            parts = _torchvision(source)
        elif path.is_dir():
            parts = _idx_folder(path) or _photo_folders(path, side or PHOTO_SIDE, channels or 3)
        elif path.suffix in (".npz", ".npy") and path.exists():
            parts = _arrays(path)
        else:
            found = "another file" if path.exists() else "nothing there"
            raise InputError(f"{source}: expected {', '.join(NAMES)}, a folder, a .npz or a .npy file, found {found}")
    except OSError as error:
        raise InputError(f"{source}: expected a source of images, found: {one_line(error)}") from None
    return {part: _sized(images, side, channels, source) for part, images in parts.items()}


# --------------------------------------------------------------------------------------------------------------- arrays

def _torchvision(name):
    if os.path.isdir(INSTALLED.get(name, "")):
        return _idx_folder(Path(INSTALLED[name]), getattr(datasets, name).classes)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "birds-and-digits" / "datasets"
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            sets = {part: getattr(datasets, name)(str(root), train=part == "train", download=True)
                    for part in ("train", "test")}
    except (OSError, RuntimeError) as error:
        raise InputError(f"{name}: expected a network to download it, or the path of a folder with its idx files, "
                         f"found: {one_line(error)}") from None
    return {part: Images(one.data[:, None], one.targets.long(), list(one.classes), []) for part, one in sets.items()}


def _idx_folder(folder, classes=None):
    """{"train": Images, "test": Images} of a folder with the four files of MNIST, packed or not, also in raw/ below
    it; else {}."""
    for place in (folder, folder / "raw"):
        files = {part: [_packed_or_not(place / name.format(kind)) for kind in ("images-idx3", "labels-idx1")]
                 for part, name in IDX.items()}
        found = {part: paths for part, paths in files.items() if all(paths)}
        if "train" in found:
            return {part: _labelled(_as_pixels(_idx(images), images), _idx(labels), labels, classes)
                    for part, (images, labels) in found.items()}
    return {}


def _packed_or_not(path):
    return next((each for each in (path, path.with_name(path.name + ".gz")) if each.is_file()), None)


def _idx(path):
    """Array uint8 of an idx file: two zero bytes, 8 for uint8, the number of axes, their lengths, the numbers."""
    try:
        content = (gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes())
        axes = content[3]
        if content[:3] != b"\0\0\x08":
            raise ValueError(f"a file that begins with {content[:4]!r}")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(np.frombuffer(content, ">u4", axes, 4))
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise InputError(f"{path}: expected an idx file, found: {one_line(error)}") from None


def _arrays(path):
    """Images of a .npz file (key 'data' or its only array, and 'labels'; or x_train, y_train, x_test, y_test) or a
    .npy file."""
    try:
        content = np.load(path, allow_pickle=False)
        content = {"data": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # broken bytes trip zipfile and NumPy in a dozen ways
        why = one_line(error).split(" If you")[0]  # NumPy advises to unpickle it all the same
        raise InputError(f"{path}: expected a .npz or .npy file of numbers, found: {why}") from None
    if {"x_train", "y_train", "x_test", "y_test"} <= set(content):
        return {part: _labelled(_as_pixels(content[f"x_{part}"], path), content[f"y_{part}"], path)
                for part in ("train", "test")}
    names = [name for name in content if name != "labels"]
    name = "data" if "data" in names else names[0] if len(names) == 1 else None
    if name is None:
        raise InputError(f"{path}: expected the key 'data' or a single array, found {', '.join(names) or 'none'}")
    pixels, labels = _as_pixels(content[name], path), content.get("labels")
    if labels is None:
        return {"train": Images(torch.from_numpy(pixels), None, [], [])}
    return {"train": _labelled(pixels, labels, path)}


def _as_pixels(array, source):
    """uint8 (N, C, H, W) of numbers in 0..255 or 0..1, of shape (N, H, W), (N, H, W, C), (N, C, H, W) or (N, H^2)."""
    shape, root = array.shape, int(round(array.shape[-1] ** 0.5)) if array.ndim else 0
    if 0 in shape:
        raise InputError(f"{source}: expected images, found none in an array of shape {shape}")
    if array.ndim == 2 and root ** 2 == shape[1]:
        array = array.reshape(-1, 1, root, root)
    elif array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and shape[1] not in (1, 3) and shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    elif array.ndim != 4 or shape[1] not in (1, 3):
        raise InputError(f"{source}: expected images of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C of 1 or "
                         f"3, found {shape}")
    if array.dtype.kind not in "buif":
        raise InputError(f"{source}: expected pixels in 0..1 or 0..255, found {array.dtype}")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise InputError(f"{source}: expected pixels in 0..1 or 0..255, found {low}..{high}")
    if high <= 1:
        array = array * np.float32(255)
    return np.ascontiguousarray(array.round().astype(np.uint8))


def _labelled(pixels, labels, source, classes=None):
    if labels.shape not in ((len(pixels),), (len(pixels), 1)):
        raise InputError(f"{source}: expected one label an image, {len(pixels)} in all, found labels of shape "
                         f"{labels.shape}")
    if labels.dtype.kind == "f" and np.isnan(labels).any():
        raise InputError(f"{source}: expected a label of each image, found NaN")
    values, index = np.unique(labels, return_inverse=True)
    classes = list(classes) if classes and len(classes) == len(values) else [printable(str(value)) for value in values]
    return Images(torch.from_numpy(pixels.copy()), torch.from_numpy(index.reshape(-1).astype(np.int64)), classes, [])


def _sized(images, side, channels, source):
    """The images as squares of `side` px with `channels`, where asked."""
    if not len(images):
        why = f"; {len(images.skipped)} skipped, such as {images.skipped[0]}" if images.skipped else ""
        raise InputError(f"{source}: expected images, found none that can be read{why}")
    pixels = images.pixels
    if channels == 1 and pixels.shape[1] == 3:
        pixels = torch.cat([transforms.rgb_to_grayscale(part) for part in pixels.split(1024)])
    elif channels == 3 and pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1).contiguous()
    if side and pixels.shape[2:] != (side, side):
        pixels = torch.cat([transforms.center_crop(transforms.resize(part, side, antialias=True), [side, side])
                            for part in pixels.split(1024)])
    return dataclasses.replace(images, pixels=pixels)


# --------------------------------------------------------------------------------------------------------------- photos

def _photo_folders(folder, side, channels):
    """{"train": Images} of a folder, with "test" where its sub-folders are parts such as train and valid."""
    below = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    train = next((below[name] for name in TRAIN_FOLDERS if name in below), None)
    test = next((below[name] for name in TEST_FOLDERS if name in below), None)
    if train and test:
        return {"train": _photos(train, side, channels), "test": _photos(test, side, channels)}
    return {"train": _photos(folder, side, channels)}


def _photos(folder, side, channels):
    """Images of a folder of class folders, or of a flat one; what cannot be read is skipped."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in datasets.folder.IMG_EXTENSIONS
             and not any(step.startswith(".") for step in path.relative_to(folder).parts)]
    nested = [path for path in files if path.parent != folder]
    skipped, flat = [], 2 * len(nested) < len(files)
    if not flat:
        skipped = [f"{printable(path.name)}: in no class folder" for path in files if path.parent == folder]
        files = nested
    if len(files) * side * side * channels > MOST_BYTES:
        raise InputError(f"{folder}: expected at most {MOST_BYTES:,} bytes of images, found {len(files):,} images")

    def load(path):
        try:
            with Image.open(path) as photo:
                photo.draft("RGB", (2 * side, 2 * side))
                photo = ImageOps.exif_transpose(photo)
                if photo.mode.startswith("I"):  # 16 bits, which `convert` would clip
                    photo = Image.fromarray((np.asarray(photo) >> 8).astype(np.uint8))
                if "transparency" in photo.info or "A" in photo.getbands():
                    photo = photo.convert("RGBA")
                    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
                photo = photo.convert("L" if channels == 1 else "RGB")
            return transforms.pil_to_tensor(ImageOps.fit(photo, (side, side), Image.BILINEAR))
        except Exception as error:  # broken photos trip Pillow in a dozen ways, and one must not cost the others
            return f"{printable(str(path.relative_to(folder)))}: {one_line(error)}"

    ImageFile.LOAD_TRUNCATED_IMAGES = False  # bird.py, which reads what there is of a photo, sets it for the process
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd files
        photos = list(pool.map(load, files))
    kept = [i for i, photo in enumerate(photos) if torch.is_tensor(photo)]
    skipped += [photo for photo in photos if not torch.is_tensor(photo)]
    pixels = torch.stack([photos[i] for i in kept]) if kept else torch.empty(0, channels, side, side, dtype=torch.uint8)
    if flat or not kept:
        return Images(pixels, None, [], skipped)
    named = _labelled(pixels.numpy(), np.array([files[i].relative_to(folder).parts[0] for i in kept]), folder)
    return dataclasses.replace(named, skipped=skipped)
