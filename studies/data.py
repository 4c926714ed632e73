"""Images of any usual source as one uint8 tensor in memory: a torchvision name, a folder of class folders, a flat
folder of images, a .npz or a .npy file. Nothing is unpickled; images that cannot be read are skipped and counted."""
import contextlib
import dataclasses
import io
import os
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.datasets.utils import extract_archive
from torchvision.transforms import functional as transforms

import vae
from common.errors import InputError, one_line
from studies import printable

NAMES = ("MNIST", "FashionMNIST", "KMNIST")
INSTALLED = {"FashionMNIST": "/usr/share/datasets/fashion-mnist"}  # Debian's dataset-fashion-mnist
TRAIN_FOLDERS, TEST_FOLDERS = ("train", "training"), ("test", "testing", "valid", "val", "validation")
TEST_SHARE = 0.2  # of each class, held out where a source has no test files


@dataclasses.dataclass(frozen=True)
class Images(Dataset):
    """A dataset in memory, for DataLoader: batches are float32 (B, C, H, W) in [0, 1] and labels int64 (B,)."""
    pixels: torch.Tensor  # uint8 (N, C, H, W); or float32 features (N, ...), in batches as they are
    labels: torch.Tensor  # int64 (N,), indices into `classes`; -1 where the source has none
    classes: list         # names, in the order of the labels
    skipped: list         # "name: why" of each image that was left out

    def __len__(self):
        return len(self.pixels)

    def __getitems__(self, index):
        pixels = self.pixels[index]
        return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels, self.labels[index]

    def subset(self, index):
        """The images `index` (M,)."""
        return dataclasses.replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def at_most(self, n, seed):
        """All images, or n of them drawn with `seed`, in their order."""
        if len(self) <= n:
            return self
        drawn = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n]
        return self.subset(drawn.sort().values)

    def floats(self):
        """All images as float32 in [0, 1]."""
        return self.pixels.float() / 255


def read_split(sources, side, channels, seed=0, labelled=False, least=50):
    """(training Images, held-out Images, how they were held out) as squares of `side` px with 1 or 3 `channels`. One
    source gives its own test files or, lacking them, TEST_SHARE of each class, drawn with `seed`. `labelled` asks for
    two classes or more, `least` for as many images in each. Raises InputError."""
    if len(sources) > 2:
        raise InputError(f"{sources[2]}: expected one source, or one to train on and one held out, found "
                         f"{len(sources)} of them")
    parts = [read(str(source), side, channels) for source in sources]
    if len(parts) == 2:
        train, test, how = parts[0]["train"], parts[1].get("test", parts[1]["train"]), "a source of its own"
    elif "test" in parts[0]:
        train, test, how = parts[0]["train"], parts[0]["test"], "the source's own test files"
    else:
        train, test = _held_out(parts[0]["train"], seed)
        how = f"{TEST_SHARE:.0%}{' of each class' * bool(train.classes)}, drawn with seed {seed}"
    for images, what, source in ((train, "train on", sources[0]), (test, "hold out", sources[-1])):
        if len(images) < least:
            raise InputError(f"{source}: expected at least {least} images to {what}, found {len(images)}")
        if labelled and len(images.classes) < 2:
            raise InputError(f"{source}: expected labels of at least two classes, found {len(images.classes)}")
    if train.classes and test.classes:
        unknown = sorted(set(test.classes) - set(train.classes))
        if unknown:
            raise InputError(f"{sources[-1]}: expected the classes of training alone, found {', '.join(unknown)} too")
        places = torch.tensor([train.classes.index(name) for name in test.classes])
        test = dataclasses.replace(test, labels=places[test.labels], classes=train.classes)
    if len(parts) == 2 and torch.equal(train.pixels, test.pixels):
        raise InputError(f"{sources[-1]}: expected other images to hold out than those trained on, found the same")
    return train, test, how


def _held_out(images, seed):
    every = np.arange(len(images))
    if len(every) < 2:
        return images, images.subset(every[:0])
    classes = images.labels if images.classes else None
    try:
        kept, held = train_test_split(every, test_size=TEST_SHARE, random_state=seed, stratify=classes)
    except ValueError:  # a class of one image
        kept, held = train_test_split(every, test_size=TEST_SHARE, random_state=seed)
    return images.subset(np.sort(kept)), dataclasses.replace(images.subset(np.sort(held)), skipped=[])


def read(source, side, channels):
    """{"train": Images} of a source, with "test" where it has files of its own for that. Raises InputError."""
    path = Path(source)
    try:
        if source in NAMES and not path.exists():
            parts = _torchvision(source)
        elif path.is_dir():
            parts = _folder(path, side, channels)
        elif path.suffix in (".npz", ".npy") and path.exists():
            parts = {"train": _array(path)}
        else:
            found = "another file" if path.exists() else "nothing there"
            raise InputError(f"{source}: expected {', '.join(NAMES)}, a folder, a .npz or a .npy file, found {found}")
    except OSError as error:
        raise InputError(f"{source}: expected a source of images, found: {one_line(error)}") from None
    return {part: _sized(images, side, channels, source) for part, images in parts.items()}


def _sized(images, side, channels, source):
    if not len(images):
        why = f"; {len(images.skipped)} skipped, such as {images.skipped[0]}" if images.skipped else ""
        raise InputError(f"{source}: expected images, found none that can be read{why}")
    pixels = images.pixels
    if channels == 1 and pixels.shape[1] == 3:
        pixels = torch.cat([transforms.rgb_to_grayscale(part) for part in pixels.split(1024)])
    elif channels == 3 and pixels.shape[1] == 1:
        pixels = pixels.expand(-1, 3, -1, -1).contiguous()
    if pixels.shape[2:] != (side, side):
        pixels = torch.cat([transforms.center_crop(transforms.resize(part, side, antialias=True), [side, side])
                            for part in pixels.split(1024)])
    return dataclasses.replace(images, pixels=pixels)


def _torchvision(name):
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "birds-and-digits" / "datasets"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        packed, raw = list(Path(INSTALLED.get(name, folder)).glob("*.gz")), Path(folder, name, "raw")
        raw.mkdir(parents=True)
        for path in packed:
            extract_archive(str(path), str(raw))
        try:
            sets = {part: getattr(datasets, name)(folder if packed else str(cache), train=part == "train",
                                                  download=True) for part in ("train", "test")}
        except (OSError, RuntimeError) as error:
            raise InputError(f"{name}: expected a network to download it, or its unpacked files in "
                             f"{cache / name / 'raw'}, found: {one_line(error)}") from None
    return {part: Images(one.data[:, None], one.targets.long(), list(one.classes), []) for part, one in sets.items()}


def _array(path):
    """Images of a .npz file with "data" and perhaps "labels", or of a .npy file."""
    try:
        content = np.load(path, allow_pickle=False)
        content = {"data": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # corrupt files raise many exception types
        why = one_line(error).split(" If you")[0]  # NumPy advises to unpickle it all the same
        raise InputError(f"{path}: expected a .npz or .npy file of numbers, found: {why}") from None
    if "data" not in content:
        raise InputError(f"{path}: expected the key 'data', found {', '.join(content) or 'none'}")
    array, labels = content["data"], content.get("labels")
    if 0 in array.shape or array.ndim not in (3, 4) or array.shape[3:] not in ((), (1,), (3,)):
        raise InputError(f"{path}: expected images of shape (N, H, W) or (N, H, W, 3), found {array.shape}")
    try:
        scale = vae.pixel_scale(array)
    except ValueError as error:
        raise InputError(f"{path}: expected images, found {error}") from None
    array = (array * np.float32(255) if scale == 1 else array).round().clip(0, 255).astype(np.uint8)
    pixels = torch.from_numpy(array.reshape(*array.shape[:3], -1)).movedim(3, 1)
    pixels = pixels.clone(memory_format=torch.contiguous_format)  # `contiguous` leaves one channel in channels_last
    return _labelled(pixels, labels, path)


def _labelled(pixels, labels, source, skipped=()):
    """Images with labels, whole numbers or names, or None."""
    if labels is None:
        return Images(pixels, torch.full((len(pixels),), -1), [], sorted(skipped))
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "biuU":
        raise InputError(f"{source}: expected labels, a whole number or a name for each of {len(pixels)} images, found "
                         f"{labels.dtype} of shape {labels.shape}")
    values, index = np.unique(labels, return_inverse=True)
    return Images(pixels, torch.from_numpy(index.astype(np.int64)), [printable(str(value)) for value in values],
                  sorted(skipped))


def _folder(folder, side, channels):
    """{"train": Images} of a folder, with "test" where its sub-folders are parts such as train and valid."""
    below = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    found = [[below[name] for name in names if name in below] for names in (TRAIN_FOLDERS, TEST_FOLDERS)]
    parts = {"train": found[0][0], "test": found[1][0]} if all(found) else {"train": folder}
    return {part: _photos(path, side, channels) for part, path in parts.items()}


def _photos(folder, side, channels):
    """Images of a folder of class folders, or of a flat one; what cannot be read is skipped."""
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in datasets.folder.IMG_EXTENSIONS
             and not any(step.startswith(".") for step in path.relative_to(folder).parts)]
    nested = [path for path in files if path.parent != folder]
    skipped, flat = [], 2 * len(nested) < len(files)
    if not flat:
        skipped = [f"{printable(path.name)}: in no class folder" for path in files if path.parent == folder]
        files = nested

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
        except Exception as error:  # corrupt photos raise many exception types; the others are still read
            skipped.append(f"{printable(str(path.relative_to(folder)))}: {one_line(error)}")

    ImageFile.LOAD_TRUNCATED_IMAGES = False  # bird.py, which reads what there is of a photo, sets it for the process
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd files
        photos = {path: photo for path, photo in zip(files, pool.map(load, files)) if photo is not None}
    pixels = torch.stack(list(photos.values())) if photos else torch.empty(0, channels, side, side)
    labels = None if flat else np.array([path.relative_to(folder).parts[0] for path in photos], str)
    return _labelled(pixels, labels, folder, skipped)
