"""Images of any usual source as one uint8 tensor in memory: a torchvision name, a folder of class folders, of images or
of idx files, a .npz or a .npy file. Nothing is unpickled; images that cannot be read are skipped and counted."""
import contextlib
import dataclasses
import difflib
import gzip
import hashlib
import os
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from sklearn.model_selection import train_test_split
from torchvision import datasets, transforms

import bird
import vae
from common.errors import InputError
from common.text import escape_surrogates, one_line

NAMES = {"fashion": "FashionMNIST", "kmnist": "KMNIST", "mnist": "MNIST"}  # by a word in the path of idx files
IDX = "t*[.-]idx[13]-ubyte*"  # train-images-idx3-ubyte, t10k-labels.idx1-ubyte.gz and the like
INSTALLED = {"FashionMNIST": "/usr/share/datasets/fashion-mnist"}  # Debian's dataset-fashion-mnist
TRAIN_FOLDERS, TEST_FOLDERS = ("train", "training"), ("test", "testing", "valid", "val", "validation")
KEYS = (("train", "data", "labels"), ("train", "x_train", "y_train"), ("test", "x_test", "y_test"),  # also of Keras
        ("train", "train_images", "train_labels"), ("test", "test_images", "test_labels"))  # of MedMNIST
TEST_SHARE = 0.2  # of each class, held out where a source has no test files


@dataclasses.dataclass(frozen=True)
class Images(torch.utils.data.Dataset):
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

    def subsample(self, n, seed):
        """All images, or n of them drawn with `seed`, in their order."""
        drawn = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n]
        return self if len(self) <= n else self.subset(drawn.sort().values)

    def floats(self):
        """All images as float32 in [0, 1]."""
        return self.pixels.float() / 255

    def fingerprint(self):
        """16 hexadecimal digits, the same for the same data. The values of float features do not count: a network
        computes them, and their last digits differ between machines."""
        digest = hashlib.blake2b(repr((self.pixels.shape, self.classes, self.labels.tolist())).encode(), digest_size=8)
        digest.update(self.pixels.contiguous().numpy() if self.pixels.dtype == torch.uint8 else b"")
        return digest.hexdigest()


def read_split(sources, side, channels, seed=0, labelled=False, least=(10, 2)):
    """(training Images, held-out Images, how they were held out), squares of `side` px with 1 or 3 `channels`. Held out
    are the second source or the only one's own test files or, without these, TEST_SHARE of each class, drawn by `seed`.
    The parts must have `least` images and, if `labelled`, two classes. Raises InputError."""
    if len(sources) > 2:
        raise InputError(f"{sources[2]}: expected data to train on and to hold out, found {len(sources)} sources")
    parts = [read(str(source), side, channels) for source in sources]
    if len(parts) == 2:
        train, test, how = parts[0]["train"], parts[1].get("test", parts[1]["train"]), "a source of its own"
    elif "test" in parts[0]:
        train, test, how = parts[0]["train"], parts[0]["test"], "the source's own test files"
    else:
        train, test = split(parts[0]["train"], seed)
        how = f"{TEST_SHARE:.0%}{' of each class' * bool(train.classes)}, drawn with seed {seed}"
    for images, n, what, source in zip((train, test), least, ("train on", "hold out"), (sources[0], sources[-1])):
        if len(images) < n:
            raise InputError(f"{source}: expected at least {n} images to {what}, found {len(images)}")
        if labelled and len(images.classes) < 2:
            raise InputError(f"{source}: expected labels of at least two classes, found {len(images.classes)}")
    if train.classes and test.classes:
        unknown = bird.join_names(sorted(set(test.classes) - set(train.classes)))
        if unknown:
            raise InputError(f"{sources[-1]}: expected the classes of training alone, found {unknown} too")
        places = torch.tensor([train.classes.index(name) for name in test.classes])
        test = dataclasses.replace(test, labels=places[test.labels], classes=train.classes)
    if len(parts) == 2:
        check_held_out(train, test, sources[-1])
    return train, test, how


def check_held_out(train, test, source):
    """Raises InputError if more than a tenth of the held-out images of `source` are trained on; data sets may have some
    duplicates."""
    known = {image.numpy().tobytes() for image in train.pixels}
    same = sum(image.numpy().tobytes() in known for image in test.pixels)
    if same > 0.1 * len(test):
        raise InputError(f"{source}: expected other images to hold out than those trained on, found {same:,} of "
                         f"{len(test):,} among these")


def split(images, seed):
    """(training Images, held-out Images), TEST_SHARE of each class by `seed`; a class's only image is trained on."""
    every, labels = np.arange(len(images)), images.labels.clamp(min=0).numpy()  # those of no class are -1
    try:
        kept, held = train_test_split(every, test_size=TEST_SHARE, random_state=seed,
                                      stratify=labels if 0 < len(images.classes) < len(images) else None)
    except ValueError:  # too few images of a class or in total
        kept, held = bird.stratified_split(labels, TEST_SHARE, seed)
    return images.subset(np.sort(kept)), dataclasses.replace(images.subset(np.sort(held)), skipped=[])


def read(source, side, channels):
    """{"train": Images} of a source, with "test" where it has test files of its own. Raises InputError."""
    path = Path(source)
    try:
        if source in NAMES.values() and not path.exists():
            parts = _torchvision(source)
        elif path.is_dir():
            parts = _idx(path) or _folder(path, side, channels)
        elif path.suffix.lower() in (".npz", ".npy") and path.is_file():
            parts = _arrays(path)
        else:
            hint = [f"; did you mean {NAMES[key]}?" for key in difflib.get_close_matches(str(source).lower(), NAMES, 1)]
            found = "another file" if path.exists() else "".join(["nothing there", *hint])
            raise InputError(f"{source}: expected {', '.join(NAMES.values())}, a folder, .npz or .npy, found {found}")
    except OSError as error:
        raise InputError(f"{error.filename or source}: expected readable images, found: {error.strerror}") from None
    return {part: _sized(images, side, channels, source) for part, images in parts.items()}


def _sized(images, side, channels, source):
    if not images.pixels.numel():
        raise InputError(f"{source}: expected readable images, found {bird.join_names(images.skipped, 1) or 'none'}")
    steps = [transforms.Grayscale()] * (images.pixels.shape[1] > channels)
    sized = transforms.Compose([*steps, transforms.Resize(side, antialias=True), transforms.CenterCrop(side)])
    pixels = torch.cat([sized(part).expand(-1, channels, -1, -1) for part in images.pixels.split(1024)])
    return dataclasses.replace(images, pixels=pixels)


def _idx(folder):
    """The parts of the idx files in a folder or in torchvision's below it, None without; the path tells the classes."""
    raws = [raw for raw in (folder, folder / "raw", *folder.glob("*MNIST/raw")) if any(raw.glob(IDX))]
    if len(raws) > 1:
        raise InputError(f"{folder}: expected one dataset, found {bird.join_names(raws)}: name one of these")
    words = [word for raw in raws for step in raw.resolve().parts[::-1] for word in NAMES if word in step.lower()]
    return _torchvision(NAMES[(words or ["mnist"])[0]], raws[0]) if raws else None


def _torchvision(name, source=None):
    """The parts of a torchvision dataset: of the idx files of a folder, packed or not, or downloaded into the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "birds-and-digits" / "datasets"
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(None):
        os.makedirs(raw := os.path.join(root, name, "raw"))
        files = sorted(path for path in Path(source or INSTALLED.get(name, root)).glob(IDX) if path.is_file())
        what = "images and labels of train and t10k" if files else f"a network, or its files in {cache / name / 'raw'}"
        try:
            for path in files:
                with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
                    Path(raw, path.name.replace(".idx", "-idx").replace(".gz", "")).write_bytes(file.read())
            if files and len(os.listdir(raw)) < 4:
                raise FileNotFoundError(f"only {bird.join_names(path.name for path in files)}")
            sets = {part: getattr(datasets, name)(root if files else str(cache), train=part == "train",
                                                  download=not files) for part in ("train", "test")}
        except Exception as error:  # corrupt files raise many exception types; torchvision advises to download them
            raise InputError(f"{source or name}: expected {what}, found: {one_line(error).split(' You')[0]}") from None
    return {part: _labelled(one.data[:, None], one.targets.numpy(), source or name, one.classes * (name != "MNIST"))
            for part, one in sets.items()}


def _arrays(path):
    """The parts of a .npz file with KEYS, labels being optional, or of a .npy file."""
    try:
        content = np.load(path, allow_pickle=False)
        content = {"data": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # corrupt files raise many exception types; NumPy advises to unpickle others
        raise InputError(f"{path}: expected arrays of numbers, found: {one_line(error).split(' If you')[0]}") from None
    parts = {part: _array(content[key], content.get(labels), path) for part, key, labels in KEYS if key in content}
    if "train" not in parts:
        raise InputError(f"{path}: expected data, x_train or train_images, found {bird.join_names(content) or 'none'}")
    return parts


def _array(array, labels, path):
    shape = array.shape
    try:
        if len(shape) == 2 and (side := round(shape[1] ** 0.5)) ** 2 == shape[1]:
            array = array.reshape(-1, side, side)
        array = array[:, None] if array.ndim == 3 else np.moveaxis(array, 3, 1) if shape[3:] in ((1,), (3,)) else array
        if array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
            raise ValueError(f"shape {shape}")
        scale = vae.pixel_scale(array)
    except ValueError as error:
        raise InputError(f"{path}: expected images, (N, H, W[, 3]), (N, 3, H, W) or (N, H*H), found {error}") from None
    array = (array * np.float32(255) if scale == 1 else array).round().clip(0, 255).astype(np.uint8, order="C")
    return _labelled(torch.from_numpy(array), labels, path)


def _labelled(pixels, labels, source, names=(), skipped=()):
    """Images with labels of shape (N,) or (N, 1), whole numbers (indices into `names`, if any) or names; or None."""
    if labels is None:
        return Images(pixels, torch.full((len(pixels),), -1), [], sorted(skipped))
    labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and not (labels % 1).any():
        labels = labels.astype(np.int64)
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "biuU":
        raise InputError(f"{source}: expected labels, a whole number or a name for each of {len(pixels)} images, found "
                         f"{labels.dtype} of shape {labels.shape}")
    values, index = np.unique(labels, return_inverse=True)
    classes = [escape_surrogates(str(dict(enumerate(names)).get(value, value))) for value in values]
    return Images(pixels, torch.from_numpy(index.astype(np.int64)), classes, sorted(skipped))


def _folder(folder, side, channels):
    """{"train": Images} of a folder, with "test" where its sub-folders are parts such as train and valid."""
    below = {name.lower(): folder / name for name in next(bird.walk(str(folder)))[1]}
    found = [[below[name] for name in names if name in below] for names in (TRAIN_FOLDERS, TEST_FOLDERS)]
    parts = {"train": found[0][0], "test": found[1][0]} if all(found) else {"train": folder}
    return {part: _photos(path, side, channels) for part, path in parts.items()}


def _photos(folder, side, channels):
    """Images of a folder of class folders, or of a flat one; what cannot be read is skipped."""
    files = sorted(path for where, _, names in bird.walk(str(folder)) for path in
                   (*(Path(where, name) for name in names), *Path(where).glob("[!.]*.[gG][iI][fF]")))
    flat = 2 * sum(path.parent == folder for path in files) > len(files)
    skipped, mode = [], "L" if channels == 1 else "RGB"

    def load(path):
        try:
            if path.suffix.lower() == ".gif" or not path.is_file():  # opening a named pipe would wait forever
                raise OSError("only regular files, and no GIFs, are read")
            if path.parent == folder and not flat:
                raise ValueError("in no class folder")
            with Image.open(path) as photo:
                photo.draft("RGB", (2 * side, 2 * side))  # the JPEG decoder scales down while it decodes
                photo = ImageOps.exif_transpose(photo)
                if photo.mode[0] in "IF":
                    photo = bird.to_8_bits(photo)
                if "transparency" in photo.info or "A" in photo.getbands():
                    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo.convert("RGBA"))
                return transforms.PILToTensor()(ImageOps.fit(photo.convert(mode), (side, side), Image.BILINEAR))
        except Exception as error:  # corrupt files raise many exception types; the other photos are still read
            skipped.append(f"{escape_surrogates(str(path.relative_to(folder)))}: {one_line(error)}")

    ImageFile.LOAD_TRUNCATED_IMAGES = False  # bird.py, which reads what there is of a photo, sets it for the process
    with ThreadPoolExecutor() as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd files
        photos = {path: photo for path, photo in zip(files, pool.map(load, files)) if photo is not None}
    pixels = torch.stack(list(photos.values())) if photos else torch.empty(0, channels, side, side)
    labels = None if flat else np.array([path.relative_to(folder).parts[0] for path in photos], str)
    return _labelled(pixels, labels, folder, skipped=skipped)
