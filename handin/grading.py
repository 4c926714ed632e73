"""Grades one script: runs the graders' commands on it, alone in a fresh folder, bounded by time, memory and output;
checks and scores what they write, and the rules."""
import contextlib
import dataclasses
import os
import re
import shutil
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np

from common.errors import InputError, bad_input_of
from common.files import read_bytes
from handin import contract, sandbox
from handin.contract import Row
from handin.rules import check_rules
from handin.scores import f1_scores, mean_ssim, one_minus_mse, order_mistake, weakness

SCRIPTS = {"birds": "bird.py", "digits": "vae.py"}
MODELS = {"birds": ("bird.pth",), "digits": ("vae.pth", "gmm_params.pkl")}
SAME_SCORE = 0.02  # most by which a retrained model may differ from the submitted one
SAME_PIXEL = 2e-3  # mean difference of two drawings of one image that rounding may make
PROBE_SECONDS = 120
CACHES = ("home/.", "home/Library/", "home/AppData/", "temporary/")  # what libraries write there is no offence
SHOWN = {"average_f1": "average F1", "macro_f1": "macro F1", "micro_f1": "micro F1", "ssim": "SSIM",
         "one_minus_mse": "1 - MSE"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of the commands: minutes of training for each part, minutes of one test command, bytes of memory; and
    words that are added to the training commands."""
    minutes: dict = dataclasses.field(default_factory=lambda: {"birds": 120.0, "digits": 60.0})
    minutes_test: float = 20.0
    memory: float = 8e9
    train_flags: tuple = ()
    container: str = ""  # an image of Docker or Podman


@dataclasses.dataclass
class Result:
    """What grading one script gave: rows, scores, and the commands as they ran."""
    rows: list = dataclasses.field(default_factory=list)
    scores: dict = dataclasses.field(default_factory=dict)
    runs: list = dataclasses.field(default_factory=list)


# ------------------------------------------------------------------------------------------------------------- data in

@dataclasses.dataclass(frozen=True)
class Photos:
    """Two folders of birds; of the second, the label index (N,) of each photo and, {words: labels (N,)}, what they
    would be in other orders. `labels` are those that may occur."""
    train: Path
    test: Path
    truth: np.ndarray
    labels: range
    orders: dict


@dataclasses.dataclass(frozen=True)
class Digits:
    """Three files of digits; of the third, images float64 (N, 28, 28) in [0, 1] and labels (N,) or None."""
    train: Path
    val: Path
    test: Path
    images: np.ndarray
    truth: object
    labels: list


def load_birds(train, test):
    """Photos of two ImageFolders. Raises InputError."""
    import bird
    train, test = Path(train).resolve(), Path(test).resolve()
    with bad_input_of(bird):
        classes, _ = bird.list_photos(str(train))
        test_classes, photos = bird.list_photos(str(test))
    if not photos:
        raise InputError(f"{test}: expected photos in class folders, found none")
    strange = sorted(set(test_classes) - set(classes))
    if strange or len(classes) < 2:
        raise InputError(f"{test}: expected the class folders of {train} ({', '.join(classes[:10])}), found "
                         f"{', '.join(strange[:5]) or 'too few'}")
    names = [os.path.relpath(path, str(test)).split(os.sep) for path, _ in photos]
    truth = np.array([classes.index(name[0]) for name in names])
    return Photos(train, test, truth, range(len(classes)), _other_orders(test, names, truth))


def _other_orders(folder, names, truth):
    """{words: labels (N,)} for the orders, other than ImageFolder's, in which scripts are known to list photos, with
    the classes numbered as they should be or in the same order."""
    listed = {name: rank for rank, name in enumerate(os.listdir(str(folder)))}

    def natural(text):
        return [int(part) if part.isdigit() else part.lower() for part in re.split(r"(\d+)", text)]

    keys = {"with the class folders ordered as numbers: order them as strings": lambda name: natural(name[0]),
            "in the order of an unsorted os.listdir of the class folders: sort it": lambda name: listed[name[0]],
            "with the photos of all classes ordered by file name: order them by class first": lambda name: name[-1]}
    found = {}
    for words, key in keys.items():
        index = np.array(sorted(range(len(names)), key=lambda index: key(names[index])))
        if (np.diff(truth[index]) >= 0).all():
            continue  # the same labels as in ImageFolder's order
        found[words] = truth[index]
        classes = list(dict.fromkeys(names[row][0] for row in index))
        found[f"{words} (rows and labels alike)"] = np.array([classes.index(names[row][0]) for row in index])
    return found


def load_digits(train, val, test):
    """Digits of three .npz files. Raises InputError."""
    import vae
    with bad_input_of(vae):
        vae.load_images(str(train))
        _, val_labels = vae.load_labelled(str(val))
        images = vae.load_images(str(test))
        with np.load(str(test), allow_pickle=False) as content:
            labelled = isinstance(content, np.lib.npyio.NpzFile) and "labels" in content.files
        truth = vae.load_labelled(str(test))[1] if labelled else None
    for path in (train, val, test):
        if Path(path).suffix != ".npz":
            raise InputError(f"{path}: expected a .npz file, found another ending")
    return Digits(*(Path(path).resolve() for path in (train, val, test)),
                  images.reshape(-1, 28, 28).astype(np.float64), truth, sorted(set(val_labels.tolist())))


# --------------------------------------------------------------------------------------------------------- one script

class _Bench:
    """One script alone in its folders, below one that is removed at the end: script/, data/, home/, temporary/, and a
    current folder and a folder of models for each round of commands."""

    def __init__(self, part, script, settings, say, place):
        self.part, self.settings, self.say, self.place = part, settings, say, place
        self.result, self.watched, self.elsewhere = Result(), [], []
        for name in ("script", "data", "home", "temporary"):
            (place / name).mkdir()
        self.script = Path(shutil.copy(str(script), str(place / "script" / SCRIPTS[part])))
        self.environment = sandbox.clean_environment(place / "home", place / "temporary")

    def row(self, check, status, value="", detail=""):
        self.result.rows.append(Row(self.part, check, status, value, detail))

    def folders(self, name):
        """A fresh current folder and a fresh folder for models."""
        for kind in ("current", "models"):
            (self.place / f"{kind}_{name}").mkdir()
        return self.place / f"current_{name}", self.place / f"models_{name}"

    def run(self, label, command, cwd, minutes, expected=()):
        """Outcome of a command in the sandbox, and what it wrote in the current folder and beside the models besides
        the `expected` paths. What it did elsewhere is noted."""
        self.say(f"{self.part}: {label}, at most {minutes:g} min ...")
        before = self._listings()
        limits = sandbox.Limits(minutes * 60, self.settings.memory)
        if self.settings.container:
            with sandbox.contained(self.settings.container, command, cwd, self.environment, limits, self.place,
                                   [*self.watched, Path(__file__).parent]) as inside:
                outcome = sandbox.run_bounded(inside, cwd, dict(os.environ), limits, self.say.watch)
        else:
            outcome = sandbox.run_bounded(command, cwd, self.environment, limits, self.say.watch)
        besides = []
        after = self._listings()
        for folder, listing in after.items():
            for what, path in sandbox.changes(before[folder], listing):
                full = folder / path
                if full in expected:
                    continue
                top = path.split("/")[0]
                if folder == self.place and top.startswith(("current_", "models_")) and what == "wrote":
                    besides.append(full)
                elif folder != self.place or not path.startswith(CACHES):
                    self.elsewhere.append(f"{label} {what} {_place(full, self.place)}")
        self.result.runs.append({"part": self.part, "command": label, "code": outcome.code, "stopped": outcome.stopped,
                                 "seconds": round(outcome.seconds, 2), "peak_memory": outcome.peak,
                                 "output_tail": outcome.tail})
        return outcome, besides

    def _listings(self):
        return {folder: sandbox.listing(folder) for folder in [self.place, *self.watched]}

    def ran(self, label, outcome):
        """The row of a command that ended."""
        value = f"{sandbox.duration(outcome.seconds)}, {outcome.peak / 1e9:.1f} GB"
        failure = outcome.failure.replace(f"{self.place}/", "")
        self.row(label, "fail" if failure else "pass", value, failure)

    def output(self, label, path, besides, check=None):
        """Whether a command wrote `path`; a row if it did not, which names what it wrote instead."""
        if path.is_file() and path.stat().st_size:
            return True
        found = "an empty file" if path.exists() else "nothing there"
        instead = ", ".join(_place(other, self.place) for other in besides[:3])
        self.row(check or path.name, "fail", "", f"{label}: expected {_place(path, self.place)}, found {found}"
                 + (f", but {sandbox.printable(instead)}: is the name fixed in the script?" if instead else ""))
        return False


def _size(number):
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number / 1e3:.1f} kB"


def _place(path, place):
    """Where a file lies, in words, for one below the bench's folder `place`."""
    try:
        inside = path.relative_to(place).as_posix()
    except ValueError:
        return str(path)
    top, _, rest = inside.partition("/")
    named = {"script": "beside the script", "home": "in the home folder", "data": "in the data folder"}.get(top)
    if top.startswith(("current_", "models_")):
        named = f"in the {'current folder' if top.startswith('current') else 'folder of the model'}"
    return f"{rest} {named}" if named else inside


def grade_script(part, script, data, settings, submitted=(), say=None):
    """Result of all checks and scores of one script. `data` is Photos or Digits; `submitted` are the paths of trained
    models, which are then tested first and compared with retrained ones. `say` takes progress lines. Raises InputError
    for a script or model that is not there."""
    say = say or Progress(None)
    source = read_bytes(script, "a script")
    submitted = [Path(path).resolve() for path in submitted]
    for path in submitted:
        if not path.is_file():
            raise InputError(f"{path}: expected a trained model, found nothing there")
    place = Path(tempfile.mkdtemp(prefix="grade_")).resolve()
    try:
        bench = _Bench(part, script, settings, say, place)
        bench.result.rows += check_rules(part, source)
        if bench.result.rows[0].status == "fail":
            bench.row("commands", "skip", "", "the script cannot be run")
        else:
            _grade_commands(bench, data, submitted)
        return bench.result
    finally:
        shutil.rmtree(str(place), ignore_errors=True)


def _grade_commands(bench, data, submitted):
    part = bench.part
    paths = _lay_out(bench, data)
    first = None
    if submitted:
        cwd, models = bench.folders("submitted")
        files = [Path(shutil.copy(str(path), str(models / name))) for path, name in zip(submitted, MODELS[part])]
        first = _test_round(bench, data, paths, cwd, files, "")
    cwd, models = bench.folders("trained")
    files = [models / name for name in MODELS[part]]
    minutes = bench.settings.minutes[part]
    words = {"birds": [paths["train"], "train", *files],
             "digits": [paths["train"], paths.get("val"), "train", *files]}[part]
    command = [sys.executable, bench.script, *words, *bench.settings.train_flags]
    outcome, besides = bench.run("train", command, cwd, minutes, files)
    bench.ran("train", outcome)
    late = outcome.stopped == "time" or outcome.seconds > 60 * minutes
    bench.row("training time", "fail" if late else "skip" if outcome.failure else "pass",
              f"{sandbox.duration(outcome.seconds)} of {minutes:g} min", "longer than allowed" if late else
              "training did not end well" if outcome.failure else "")
    bench.result.scores["train_minutes"] = round(outcome.seconds / 60, 3)
    stems = tuple(file.stem for file in files)
    beside = [path for path in besides if path.parent == models and path.name.startswith(stems)]
    if all(file.is_file() for file in files):
        _note_besides(bench, "train", [path for path in besides if path not in beside])
    for file in files:
        if outcome.failure and not file.is_file():
            bench.row(file.name, "skip", "", "train did not end well")
        elif bench.output("train", file, besides):
            bench.row(file.name, "pass", _size(file.stat().st_size), "besides it: " + ", ".join(
                path.name for path in beside) if beside and file == files[0] else "")
    prefix = "retrained: " if submitted else ""
    again = _test_round(bench, data, paths, cwd, files, prefix)
    bench.result.scores.update(first if submitted else again)
    if submitted:
        bench.result.scores["retrained"] = again
        _compare(bench, first, again)
    _check_order(bench, data, paths, files)
    bench.row("writes elsewhere", "fail" if bench.elsewhere else "pass", "", sandbox.printable(
        "; ".join(list(dict.fromkeys(bench.elsewhere))[:4]), 300))


def _check_order(bench, data, paths, files):
    """A row on whether digits in the reverse order give the same rows in the reverse order: they do not where an image
    is decoded from a sampled latent, or normalised by its neighbours. Photos cannot change their order."""
    written = [bench.place / "current_trained" / name for name in ("vae_reconstructed.npz", "vae.csv")]
    if bench.part != "digits" or not all(path.is_file() for path in (*files, *written)):
        return
    cwd, _ = bench.folders("reversed")
    backwards = paths["test"].with_name("reversed.npz")
    with np.load(str(paths["test"]), allow_pickle=False) as content:
        np.savez(str(backwards), data=content["data"][::-1])
    found = []
    for mode, path, models in (("test_reconstruction", written[0], files[:1]), ("test_classifier", written[1], files)):
        bench.run(f"{mode}, images in reverse order", [sys.executable, bench.script, backwards, mode, *models], cwd,
                  bench.settings.minutes_test, [cwd / path.name])
        if (cwd / path.name).is_file():
            found.append(_differences(path, cwd / path.name, data))
    names = [name for name, share in found if share > 0]
    detail = (f"an image's {' and '.join(names)} depends on the images around it: from a sampled latent in place "
              "of the mean, or batch normalisation in training mode?") if names else ""
    bench.row("order of images", "warn" if names else "pass" if len(found) == 2 else "skip", "", detail)


def _differences(path, other, data):
    """What a file of outputs holds, and the share of its rows that differ from those of `other`, which are reversed."""
    if path.suffix == ".csv":
        (_, first), (_, second) = (contract.check_labels("digits", one, len(data.images), data.labels)
                                   for one in (path, other))
        same = first is None or second is None
        return "label", 0.0 if same else float(np.mean(first != second[::-1]))
    (_, first), (_, second) = (contract.check_reconstruction("digits", one, len(data.images)) for one in (path, other))
    same = first is None or second is None
    return "reconstruction", 0.0 if same else float(np.mean(np.abs(first - second[::-1]).mean((1, 2)) > SAME_PIXEL))


def _lay_out(bench, data):
    """The data for the commands, by name. Digits are copied, TEST without its labels; photos stay where they are, and
    are watched."""
    if bench.part == "birds":
        bench.watched = [data.train, data.test] if data.train != data.test else [data.train]
        return {"train": data.train, "test": data.test}
    folder = bench.place / "data"
    with np.load(str(data.test), allow_pickle=False) as content:
        names = [name for name in content.files if name != "labels"]
        np.savez(str(folder / "test.npz"), **{name: content[name] for name in names})
    return {"train": Path(shutil.copy(str(data.train), str(folder / "train.npz"))),
            "val": Path(shutil.copy(str(data.val), str(folder / "val.npz"))), "test": folder / "test.npz"}


def _note_besides(bench, label, besides):
    if besides:
        names = ", ".join(_place(path, bench.place) for path in besides[:4])
        bench.row(f"{label}: files", "warn", "", sandbox.printable(f"wrote also {names}"))


def _test_round(bench, data, paths, cwd, files, prefix):
    """Scores of the test commands with one set of models; their rows, the check named after `prefix`."""
    scores, part = {}, bench.part
    tests = {"birds": [("test", [paths["test"], "test", files[0]], "bird.csv")],
             "digits": [("test_reconstruction", [paths["test"], "test_reconstruction", files[0]],
                         "vae_reconstructed.npz"),
                        ("test_classifier", [paths["test"], "test_classifier", *files], "vae.csv")]}[part]
    if files[0].is_file():
        scores.update(_probe(bench, files[0], prefix))
    for label, words, name in tests:
        missing = [str(word.name) for word in words if word in files and not word.is_file()]
        if missing:
            bench.row(f"{prefix}{label}", "skip", "", f"no {' and no '.join(missing)}")
            continue
        outcome, besides = bench.run(f"{prefix}{label}", [sys.executable, bench.script, *words], cwd,
                                     bench.settings.minutes_test, [cwd / name])
        bench.ran(f"{prefix}{label}", outcome)
        if outcome.failure and not (cwd / name).is_file():
            bench.row(f"{prefix}{name}", "skip", "", f"{label} did not end well")
        elif bench.output(label, cwd / name, besides, f"{prefix}{name}"):
            _note_besides(bench, f"{prefix}{label}", besides)
            check = _score_images if name.endswith(".npz") else _score_labels
            rows, found = check(part, cwd / name, data)
            bench.result.rows += [dataclasses.replace(row, check=prefix + row.check) for row in rows]
            scores.update(found)
    return scores


def _probe(bench, model, prefix):
    """Rows on the model file; the number of parameters as a dict."""
    if not contract.is_torch_file(str(model)):
        bench.row(f"{prefix}{model.name} state_dict", "fail", "", "expected a file of torch.save, found something else")
        bench.row(f"{prefix}fresh model loads", "skip", "", f"no state_dict in {model.name}")
        return {}
    target = bench.place / "temporary" / "probe.json"
    with contextlib.suppress(OSError):
        target.unlink()
    outcome, _ = bench.run(f"{prefix}a fresh model", contract.probe_command(bench.script, model, target),
                           bench.place / "temporary", PROBE_SECONDS / 60)
    rows, parameters = contract.check_probe(bench.part, model.name, outcome, target)
    bench.result.rows += [dataclasses.replace(row, check=prefix + row.check) for row in rows]
    return {"parameters": parameters} if parameters else {}


def _score_labels(part, path, data):
    rows, labels = contract.check_labels(part, path, len(data.truth if part == "birds" else data.images), data.labels)
    if data.truth is None or labels is None:
        why = "TEST has no labels" if data.truth is None else f"{path.name} cannot be scored"
        return [*rows, *(Row(part, SHOWN[key], "skip", "", why) for key in ("average_f1", "macro_f1", "micro_f1"))], {}
    scores = f1_scores(data.truth, labels)
    mistake = order_mistake(data.truth, labels, data.orders if part == "birds" else {})
    weak = weakness(data.truth, labels)  # a low score, and no failed check
    rows.append(Row(part, "row order", "fail" if mistake else "warn" if weak else "pass", "", mistake or weak))
    return [*rows, *(Row(part, SHOWN[key], "pass", f"{value:.4f}") for key, value in scores.items())], scores


def _score_images(part, path, data):
    rows, images = contract.check_reconstruction(part, path, len(data.images))
    if images is None:
        return [*rows, *(Row(part, SHOWN[key], "skip", "", f"{path.name} cannot be scored")
                         for key in ("ssim", "one_minus_mse"))], {}
    scores = {"ssim": mean_ssim(data.images, images), "one_minus_mse": one_minus_mse(data.images, images)}
    return [*rows, *(Row(part, SHOWN[key], "pass", f"{value:.4f}") for key, value in scores.items())], scores


def _compare(bench, first, again):
    for key in ("average_f1", "ssim", "one_minus_mse"):
        if key in first and key in again:
            same = abs(first[key] - again[key]) <= SAME_SCORE
            bench.row(f"same {SHOWN[key]} retrained", "pass" if same else "fail", f"{again[key] - first[key]:+.4f}",
                      "" if same else f"submitted {first[key]:.4f}, retrained {again[key]:.4f}: more than {SAME_SCORE} "
                      "apart")
        elif key in first or key in again:
            bench.row(f"same {SHOWN[key]} retrained", "skip", "", "one of the two models could not be scored")


def quick_check(script, part, memory=8e9):
    """Rows of the checks that take seconds: the rules, and that the script imports and its model class is made
    without arguments. Raises InputError for a script that is not there."""
    source = read_bytes(script, "a script")
    rows = check_rules(part, source)
    if rows[0].status == "fail":
        return [*rows, Row(part, "import", "skip", "", "the script cannot be run")]
    place = Path(tempfile.mkdtemp(prefix="grade_")).resolve()
    try:
        bench = _Bench(part, script, Settings(memory=memory), Progress(None), place)
        target = place / "temporary" / "probe.json"
        outcome, _ = bench.run("import", contract.probe_command(bench.script, "", target), place / "temporary",
                               PROBE_SECONDS / 60)
        return rows + contract.check_probe(part, None, outcome, target)[0]
    finally:
        shutil.rmtree(str(place), ignore_errors=True)


# ------------------------------------------------------------------------------------------------------------- the text

class Progress:
    """Progress lines on a stream; on a terminal, how long the command at hand has been running."""

    def __init__(self, stream):
        self.stream, self.alive, self.shown = stream, stream is not None and stream.isatty(), 0.0

    def __call__(self, line):
        if self.stream:
            print(("\r\033[K" if self.alive else "") + line, file=self.stream, flush=True)

    def watch(self, seconds, memory):
        if self.alive and time.monotonic() - self.shown > 1:
            self.shown = time.monotonic()
            print(f"\r\033[K  {sandbox.duration(round(seconds))}, {memory / 1e9:.1f} GB", end="\r", file=self.stream,
                  flush=True)


def table(rows, width=120):
    """The rows as aligned text of at most `width` columns; details wrap within their column."""
    cells = [(row.part, row.check, row.status, row.value) for row in rows]
    widths = [max(map(len, column)) for column in zip(("part", "check", "status", "value"), *cells)]
    indent = sum(widths) + 2 * len(widths)
    lines = []
    for head, detail in [(("part", "check", "status", "value"), "detail"),
                         *((cell, row.detail) for cell, row in zip(cells, rows))]:
        text = "  ".join(cell.ljust(size) for cell, size in zip(head, widths))
        wrapped = textwrap.wrap(detail, max(30, width - indent)) or [""]
        lines += [f"{text}  {wrapped[0]}".rstrip(), *(" " * indent + more for more in wrapped[1:])]
    return "\n".join(lines)


def summary(rows):
    """birds: 20 passed, 1 failed, 2 warnings."""
    lines = []
    for part in dict.fromkeys(row.part for row in rows):
        count = {status: sum(row.part == part and row.status == status for row in rows)
                 for status in ("pass", "fail", "warn", "skip")}
        lines.append(f"{part}: {count['pass']} passed, {count['fail']} failed, {count['warn']} warnings, "
                     f"{count['skip']} skipped")
    return "\n".join(lines)
