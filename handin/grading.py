"""Grades one script: runs the graders' commands on it, alone in a fresh folder, bounded by time, memory and output;
checks and scores what they write, and the rules."""
import collections
import dataclasses
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from common.errors import InputError, bad_input_of
from common.files import read_bytes
from handin import contract, sandbox
from handin.contract import SCRIPTS, Rows
from handin.rules import check_rules
from handin.scores import f1_scores, mean_ssim, one_minus_mse, read_birds, read_digits, why_low

MODELS = {"birds": ("bird.pth",), "digits": ("vae.pth", "gmm_params.pkl")}
TESTS = {  # of each part: mode, what it writes, how many of the model files it takes
    "birds": (("test", "bird.csv", 1),),
    "digits": (("test_reconstruction", "vae_reconstructed.npz", 1), ("test_classifier", "vae.csv", 2))}
SAME_SCORE = 0.02  # most by which a retrained model may differ from the submitted one
SAME_PIXEL = 2e-3  # mean difference of two drawings of one image that rounding may make
PROBE_MINUTES = 2
CACHES = ("home/.", "home/Library/", "home/AppData/", "temporary/")  # what libraries write there is no offence
SHOWN = {"average_f1": "average F1", "macro_f1": "macro F1", "micro_f1": "micro F1", "ssim": "SSIM",
         "one_minus_mse": "1 - MSE"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of the commands: minutes of training for each part, minutes of one test command, bytes of memory; words
    that are added to the training commands; and the image of a container, "" for none."""
    minutes: dict = dataclasses.field(default_factory=lambda: {"birds": 120.0, "digits": 60.0})
    minutes_test: float = 20.0
    memory: float = 8e9
    train_flags: tuple = ()
    container: str = ""


@dataclasses.dataclass
class Result:
    """What grading one script gave: rows, scores, and the commands as they ran."""
    rows: Rows
    scores: dict = dataclasses.field(default_factory=dict)
    runs: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Data:
    """Paths of the data {"train", "val" for digits, "test"}; the labels that may occur; how many images the test has,
    their labels (N,) or None, and, for digits, the images float64 (N, 28, 28) in [0, 1]."""
    paths: dict
    labels: list
    number: int
    truth: object
    images: object = None


def load_birds(train, test):
    """Data of two ImageFolders. Raises InputError."""
    import bird
    train, test = Path(train).resolve(), Path(test).resolve()
    with bad_input_of(bird):
        classes, _ = bird.list_photos(str(train))
        _, truth = read_birds(str(test), classes)
    return Data({"train": train, "test": test}, list(range(len(classes))), len(truth), truth)


def load_digits(train, val, test):
    """Data of three .npz files. Raises InputError."""
    import vae
    paths = {name: Path(path).resolve() for name, path in (("train", train), ("val", val), ("test", test))}
    with bad_input_of(vae):
        vae.load_digits(train)
        val_labels = vae.load_digits(val, labelled=True).labels
        digits, truth = read_digits(test)
    for path in paths.values():
        if path.suffix != ".npz":
            raise InputError(f"{path}: expected a .npz file, found another ending")
    return Data(paths, sorted(set(val_labels.tolist())), len(digits), truth, digits[:][0].double().numpy())


class Grading:
    """One script alone in its folders, below one that is removed at the end: script/, data/, home/, temporary/, and a
    current folder and a folder of models for each round of commands."""

    def __init__(self, part, script, settings, say, place):
        self.part, self.settings, self.say, self.place = part, settings, say, place
        self.result, self.watched, self.elsewhere = Result(Rows(part)), [], []
        self.rows = self.result.rows
        for name in ("script", "data", "home", "temporary"):
            (place / name).mkdir()
        self.script = Path(shutil.copy(str(script), str(place / "script" / SCRIPTS[part])))
        self.environment = sandbox.clean_environment(place / "home", place / "temporary")

    def folders(self, name):
        """A fresh current folder, and the paths of the models in a fresh folder."""
        cwd, folder = self.place / f"current_{name}", self.place / f"models_{name}"
        cwd.mkdir()
        folder.mkdir()
        return cwd, [folder / file for file in MODELS[self.part]]

    def run(self, label, command, cwd, minutes, expected=None):
        """Outcome of a Python command in the sandbox; what it did outside of its current folder and that of the models
        is noted. Where paths are `expected`, rows say how it ended and whether it has written them."""
        self.say(f"{self.part}: {self.rows.prefix}{label}, at most {minutes:g} min ...")
        limits, folders = sandbox.Limits(minutes * 60, self.settings.memory), [self.place, *self.watched]
        before, instead = sandbox.listing(folders), []
        with sandbox.contained(self.settings.container, [sys.executable, *command], cwd, self.environment, limits,
                               self.place, [*self.watched, Path(__file__).parent]) as (command, environment):
            outcome = sandbox.run_bounded(command, cwd, environment, limits)
        for what, path in sandbox.changes(before, sandbox.listing(folders)):
            ours = path.relative_to(self.place).as_posix() if self.place in path.parents else ""
            if ours.startswith(("current_", "models_")) and what == "wrote":
                instead.append(self.where(path))
            elif path not in (expected or ()) and not ours.startswith(CACHES):
                self.elsewhere.append(f"{self.rows.prefix}{label} {what} {self.where(path)}")
        self.result.runs.append({"part": self.part, "command": self.rows.prefix + label, "code": outcome.code,
                                 "stopped": outcome.stopped, "seconds": round(outcome.seconds, 2),
                                 "peak_memory": outcome.peak, "output_tail": outcome.tail})
        if expected is not None:
            failure = outcome.failure.replace(f"{self.place}/", "")
            self.rows.check(label, not failure, failure,
                            f"{sandbox.duration(outcome.seconds)}, {outcome.peak / 1e9:.1f} GB")
        for path in expected or ():
            size = path.stat().st_size if path.is_file() else 0
            if size or not failure:
                found = "an empty file" if path.is_file() else "nothing there"
                found += f", but {', '.join(instead[:3])}: is the name fixed in the script?" if instead else ""
                self.rows.check(path.name, size > 0, f"{label}: expected {self.where(path)}, found "
                                + sandbox.printable(found), f"{size / 1e6:.2f} MB")
        return outcome

    def where(self, path):
        """In words, where a file lies."""
        if self.place not in path.parents:
            return str(path)
        top, *rest = path.relative_to(self.place).parts
        named = {"script": "beside the script", "home": "in the home folder", "data": "in the data folder",
                 "current": "in the current folder", "models": "in the folder of the model"}
        return f"{'/'.join(rest)} {named.get(top.split('_')[0], f'in {top}')}"

    def lay_out(self, data):
        """Paths of the data for the commands. Digits are copied, TEST without its labels; photos stay where they are,
        and are watched."""
        if self.part == "birds":
            self.watched = sorted(set(data.paths.values()))
            return data.paths
        paths = {name: self.place / "data" / f"{name}.npz" for name in data.paths}
        for name in ("train", "val"):
            shutil.copy(str(data.paths[name]), str(paths[name]))
        with np.load(str(data.paths["test"]), allow_pickle=False) as content:
            np.savez(str(paths["test"]), **{key: content[key] for key in content.files if key != "labels"})
        return paths

    def train(self, paths, cwd, models):
        """Runs the training command, which writes the models."""
        minutes = self.settings.minutes[self.part]
        data = [path for name, path in paths.items() if name != "test"]
        outcome = self.run("train", [self.script, *data, "train", *models, *self.settings.train_flags], cwd, minutes,
                           models)
        late = outcome.stopped == "time" or outcome.seconds > 60 * minutes
        if late or not outcome.failure:
            self.rows.check("training time", not late, "longer than allowed",
                            f"{sandbox.duration(outcome.seconds)} of {minutes:g} min")
        self.result.scores["train_minutes"] = round(outcome.seconds / 60, 3)

    def probe(self, model=None):
        """Rows on the script and a model file; returns {"parameters": their number}."""
        if model and model.read_bytes()[:2] not in (b"PK", b"\x80\x02"):  # a zip, or a pickle as before torch 1.6
            self.rows.add(f"{model.name} state_dict", "fail", "expected a file of torch.save, found something else")
            return {}
        target = self.place / "temporary" / f"probe_{len(self.result.runs)}.json"
        outcome = self.run("a fresh model", [Path(__file__).with_name("probe.py"), self.script, model or "", target],
                           target.parent, PROBE_MINUTES)
        try:
            found = json.loads(target.read_text())
        except (OSError, ValueError):
            self.rows.add("import", "fail", outcome.failure or "ended while it was imported")
            return {}
        contract.check_probe(self.rows, model and model.name, found)
        return {"parameters": found["parameters"]} if found["parameters"] else {}

    def test(self, data, test, cwd, models, prefix=""):
        """Runs the test commands with one set of models; their scores, and {file name: what was read of it}."""
        self.rows.prefix, outputs = prefix, {}
        scores = self.probe(models[0]) if models[0].is_file() else {}
        for mode, name, taken in TESTS[self.part]:
            missing = [path.name for path in models[:taken] if not path.is_file()]
            if missing:
                self.rows.add(mode, "skip", f"no {' and no '.join(missing)}")
                continue
            self.run(mode, [self.script, test, mode, *models[:taken]], cwd, self.settings.minutes_test, [cwd / name])
            if (cwd / name).is_file() and (cwd / name).stat().st_size:
                outputs[name] = self.read(self.rows, cwd / name, data)
                scores.update(self.score(name, outputs[name], data))
        self.rows.prefix = ""
        return scores, outputs

    @staticmethod
    def read(rows, path, data):
        """Labels (N,) or images (N, 28, 28) of an output, None where they cannot be scored, with Rows."""
        if path.suffix == ".csv":
            return contract.check_labels(rows, path, data.number, data.labels)
        return contract.check_reconstruction(rows, path, data.number)

    def score(self, name, found, data):
        """The scores of an output, each with a row, and a row on a CSV's labels that score low."""
        if found is None or data.truth is None and name.endswith(".csv"):
            self.rows.add(f"{name} scores", "skip", f"{name} cannot be scored" if found is None else
                          "TEST has no labels")
            return {}
        if name.endswith(".csv"):
            scores = f1_scores(data.truth, found)
            self.rows.add("row order", *why_low(data.truth, found))
        else:
            scores = {"ssim": mean_ssim(data.images, found), "one_minus_mse": one_minus_mse(data.images, found)}
        for key, value in scores.items():
            self.rows.add(SHOWN[key], "pass", "", f"{value:.4f}")
        return scores

    def compare(self, first, again):
        """Rows on whether the retrained model scores as the submitted one does."""
        for key in ("average_f1", "ssim", "one_minus_mse"):
            if key in first and key in again:
                self.rows.check(f"same {SHOWN[key]} retrained", abs(first[key] - again[key]) <= SAME_SCORE,
                                f"submitted {first[key]:.4f}, retrained {again[key]:.4f}: more than {SAME_SCORE} apart",
                                f"{again[key] - first[key]:+.4f}")

    def check_order(self, data, test, models, outputs):
        """A row on whether digits in reverse order give the same rows in reverse order: they do not where an image is
        decoded from a sampled latent, or normalised by its neighbours."""
        (cwd, _), differing = self.folders("reversed"), []
        backwards = self.place / "data" / "reversed.npz"
        with np.load(str(test), allow_pickle=False) as content:
            np.savez(str(backwards), **{key: np.atleast_1d(content[key])[::-1] for key in content.files})
        for mode, name, taken in TESTS[self.part]:
            self.run(f"{mode}, images in reverse order", [self.script, backwards, mode, *models[:taken]], cwd,
                     self.settings.minutes_test)
            again = self.read(Rows(self.part), cwd / name, data) if (cwd / name).is_file() else None
            if again is not None:
                difference = np.abs(outputs[name] - again[::-1]).reshape(data.number, -1).mean(1)
                differing += [name] if (difference > SAME_PIXEL).any() else []
        why = (f"in {' and '.join(differing)} an image's row depends on the images around it: from a sampled latent in "
               "place of the mean, or batch normalisation in training mode?")
        self.rows.add("order of images", "warn" if differing else "pass", why if differing else "")

    def grade(self, data, submitted):
        """Runs all commands."""
        paths = self.lay_out(data)
        first = {}
        if submitted:
            cwd, models = self.folders("submitted")
            for path, model in zip(submitted, models):
                shutil.copy(str(path), str(model))
            first, _ = self.test(data, paths["test"], cwd, models)
        cwd, models = self.folders("trained")
        self.train(paths, cwd, models)
        again, outputs = self.test(data, paths["test"], cwd, models, "retrained: " if submitted else "")
        self.result.scores.update({**again, **first, **({"retrained": again} if submitted else {})})
        self.compare(first, again)
        if self.part == "digits" and len(outputs) == 2 and all(found is not None for found in outputs.values()):
            self.check_order(data, paths["test"], models, outputs)
        self.rows.check("writes elsewhere", not self.elsewhere, sandbox.printable(
            "; ".join(list(dict.fromkeys(self.elsewhere))[:4]), 300))


def grade_script(part, script, data, settings, submitted=(), say=lambda line: None):
    """Result of all checks and scores of one script; where `data` is None of the rules, and of whether it imports and
    makes its model class without arguments, which takes seconds. `submitted` are the paths of trained models, which are
    then tested first and compared with retrained ones. `say` takes progress lines. Raises InputError for a script or
    model that is not there."""
    rules = check_rules(part, read_bytes(script, "a script"))
    for path in submitted:
        if not Path(path).is_file():
            raise InputError(f"{path}: expected a trained model, found nothing there")
    place = Path(tempfile.mkdtemp(prefix="grade_")).resolve()
    try:
        grading = Grading(part, script, settings, say, place)
        grading.rows += rules
        if rules[0].status == "fail":
            grading.rows.add("commands", "skip", "the script cannot be run")
        elif data is None:
            grading.probe()
        else:
            grading.grade(data, submitted)
        return grading.result
    finally:
        shutil.rmtree(str(place), ignore_errors=True)  # whatever a script has left there


def table(rows):
    """The rows as aligned text."""
    cells = [("part", "check", "status", "value"), *((row.part, row.check, row.status, row.value) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(("  ".join(cell.ljust(width) for cell, width in zip(line, widths)) + "  " + detail).rstrip()
                     for line, detail in zip(cells, ("detail", *(row.detail for row in rows))))


def summary(rows):
    """birds: 20 passed, 1 failed, 2 warnings, 0 skipped."""
    counts = collections.Counter((row.part, row.status) for row in rows)
    return "\n".join(f"{part}: {counts[part, 'pass']} passed, {counts[part, 'fail']} failed, {counts[part, 'warn']} "
                     f"warnings, {counts[part, 'skip']} skipped" for part in dict.fromkeys(row.part for row in rows))
