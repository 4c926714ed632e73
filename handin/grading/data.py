"""The inputs of a script: copies of the data that do not reveal the answers."""
import dataclasses
import os
import re
import shutil
from pathlib import Path

import numpy as np

from common.errors import InputError, convert_input_errors
from handin.grading.scores import read_birds, read_digits


@dataclasses.dataclass(frozen=True)
class Data:
    """Data of a part, as passed to a script."""
    paths: dict                   # {"train", "test"; for digits also "val" and "reconstruction"}
    hidden: tuple                 # paths of files and folders with answers, hidden from scripts
    allowed_labels: list
    test_labels: object           # (N,), or None
    n_test: int
    links: tuple = ()             # folders outside of TRAIN that its photos are links to
    row_orders: dict = dataclasses.field(default_factory=dict)  # birds: {a frequent mistake: indices (N,)}

    def reconstruction_images(self):
        """Images float64 (M, 28, 28) in [0, 1] that the digits' script is to reconstruct."""
        return read_digits(self.paths["reconstruction"])[0][:][0].double().numpy()


def check_disjoint(train, test):
    """Raises InputError if one of two folders is or contains the other."""
    train, test = Path(train).resolve(), Path(test).resolve()
    if train in (test, *test.parents) or test in train.parents:
        raise InputError(f"{test}: expected a folder apart from {train}, found one within the other")


def load_birds(folder, train, test):
    """Data of two ImageFolders. `folder` gets a copy of TEST whose photos have neutral names and are shuffled among the
    class folders: ImageFolder works, but its labels are wrong. Raises InputError."""
    import bird
    train, test = Path(train).resolve(), Path(test).resolve()
    with convert_input_errors(bird):
        classes, train_photos = bird.list_photos(str(train))
        photos, labels = read_birds(str(test), classes)
        test_classes = bird.list_test_photos(str(test))[0]
    check_disjoint(train, test)
    folders = [Path(photo).relative_to(test).parts[0] for photo in photos]  # in ImageFolder's order
    copy, order = Path(folder, "test"), np.random.default_rng().permutation(len(photos))  # no seed: unpredictable
    for name in test_classes:
        (copy / name).mkdir(parents=True)
    copies = [copy / name / f"{i:06d}{Path(photos[source]).suffix}"
              for i, (name, source) in enumerate(zip(folders, order))]
    for source, target in zip(order, copies):  # not links: these would reveal inode and time of the photo
        shutil.copyfile(photos[source], target)
        os.utime(target, (0, 0))
    hidden = {test.parent, test, *(Path(photo).resolve().parent for photo in photos)}
    links = {Path(photo).resolve().parent for photo, _ in train_photos}
    links = tuple(sorted(folder for folder in links if train not in (folder, *folder.parents)))
    shared = [folder for folder in links if any(folder in (path, *path.parents) for path in hidden - {test.parent})]
    if shared:
        raise InputError(f"{train}: expected photos apart from those of {test}, found links of both to {shared[0]}; "
                         "copy the photos")
    return Data({"train": train, "test": copy}, tuple(sorted(hidden)), list(range(len(classes))), labels[order],
                len(order), links, wrong_orders(copy, copies))


def wrong_orders(folder, paths):
    """{description: indices (N,)} of frequent row orders that differ from ImageFolder's, which `paths` have."""
    def numbers(name):
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]

    index, orders = {path: i for i, path in enumerate(paths)}, {}
    for folder_order, sort_folders in (("sorted as numbers", lambda names: sorted(names, key=numbers)),
                                       ("by os.listdir", list), ("sorted as strings", sorted)):
        for photo_order, sort_photos in (("sorted", sorted), ("by os.listdir", list)):
            indices = [index[folder / name / photo] for name in sort_folders(os.listdir(folder))
                       for photo in sort_photos(os.listdir(folder / name))]
            if indices != sorted(indices):
                orders[f"class folders {folder_order}, photos {photo_order}"] = np.array(indices)
    return orders


def image_key(content):
    """Key of the images in an opened .npz file that vae.load_digits takes."""
    return "data" if "data" in content.files else next(key for key in content.files if key != "labels")


def check_digit_paths(paths):
    """Raises InputError unless the number of paths is what --digits takes."""
    if len(paths) not in (3, 4):
        raise InputError("--digits: expected TRAIN VAL TEST [RECONSTRUCTION], found "
                         f"{len(paths)} file{'s' * (len(paths) > 1)}")


def load_digits(folder, train, val, test, reconstruction=None):
    """Data of .npz files; without RECONSTRUCTION the images of TEST are reconstructed. `folder` gets copies: TRAIN
    keeps its labels, shuffled, because a script may expect some; TEST and RECONSTRUCTION have none, and their images
    are shuffled. Raises InputError."""
    import vae
    given = {"train": train, "val": val, "test": test, "reconstruction": reconstruction or test}
    given = {name: Path(path).resolve() for name, path in given.items()}
    for path in given.values():
        if path.suffix != ".npz":
            raise InputError(f"{path}: expected a .npz file, found another extension")
    with convert_input_errors(vae):
        vae.load_digits(given["train"])
        val_labels = vae.load_digits(given["val"], labelled=True).labels
        digits, labels = read_digits(given["test"])
        vae.load_digits(given["reconstruction"])
    copies, orders = {name: Path(folder, f"{name}.npz") for name in given}, {}
    for name, path in given.items():
        with np.load(path, allow_pickle=False) as content:  # other arrays are not read
            key = image_key(content)
            arrays = {key: content[key]}
            if name in ("train", "val") and "labels" in content.files:
                arrays["labels"] = content["labels"]
        if name == "train" and "labels" in arrays:
            arrays["labels"] = np.random.default_rng().permutation(arrays["labels"])  # no seed: unpredictable
        if name in ("test", "reconstruction"):  # a file may be sorted by label
            arrays[key] = arrays[key][orders.setdefault(path, np.random.default_rng().permutation(len(arrays[key])))]
        np.savez(copies[name], **arrays)
    labels = None if labels is None else labels[orders[given["test"]]]
    hidden = {*given.values(), *(path.parent for path in given.values())}
    return Data(copies, tuple(sorted(hidden)), sorted(set(val_labels.tolist())), labels, len(digits))


LOADERS = {"birds": load_birds, "digits": load_digits}  # folder for the copies, paths of the part -> Data
