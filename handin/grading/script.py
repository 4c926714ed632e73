"""Grades one script: checks the rules, runs the graders' commands on it, alone in fresh folders, isolated and with
limits on time, memory and output, and checks and scores the outputs."""
import collections
import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from common.errors import InputError
from common.files import read_bytes
from common.text import one_line, text_table
from handin.grading import contract, sandbox
from handin.grading.contract import MODELS, SCRIPTS, TESTS, Rows
from handin.grading.rules import check_rules
from handin.grading.sandbox import Sandbox
from handin.grading.scores import diagnose_labels, f1_scores, mean_ssim, one_minus_mse

SCORE_TOLERANCE = 0.05       # maximum difference between a retrained and the submitted model
PIXEL_TOLERANCE = 2e-3       # mean difference between two reconstructions of one image that rounding may cause
MAX_INPUT_CORRELATION = 0.1  # of an output with an input that no decoder of a small latent can reconstruct
PROBE_MINUTES = 2
MIN_SECONDS = 5  # left, to start a command
SHOWN = {"average_f1": "average F1", "macro_f1": "macro F1", "micro_f1": "micro F1", "ssim": "SSIM",
         "one_minus_mse": "1 - MSE"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of the commands, and paths hidden from scripts."""
    minutes: dict                 # of training, of each part
    minutes_test: float           # of one test command
    memory: float                 # bytes
    train_flags: tuple = ()       # added to the training command
    sandbox: Sandbox = Sandbox()
    hidden: tuple = ()            # paths, besides those of the data
    folder: str = ""              # parent of the temporary folders; "": the system's
    smoke_test: bool = False      # training is only a trial, on a sample of the data: its models are not scored
    deadline: float = float("inf")  # time.monotonic() at which grading must end


@dataclasses.dataclass
class Result:
    """Result of grading one script: rows, scores, and the commands that ran."""
    rows: Rows
    scores: dict = dataclasses.field(default_factory=dict)
    runs: list = dataclasses.field(default_factory=list)


def grade_script(part, script, data, settings, submitted=(), log=lambda line: None,
                 on_progress=lambda result: None):
    """Result of all checks. Without `data` only the rules are checked, and whether the script imports, which takes
    seconds. `submitted`: paths of trained models, which are tested first and compared with retrained ones. `log` takes
    lines of progress, `on_progress` the Result so far. Raises InputError for a script or model that does not exist."""
    rules = check_rules(part, read_bytes(script, "a script"))
    for path in submitted:
        if not Path(path).is_file():
            raise InputError(f"{path}: expected a trained model, found no file")
    with temporary_folder(settings.folder) as folder:
        workspace = Workspace(part, script, settings, folder, data.hidden if data else (), log, on_progress)
        workspace.rows += rules
        if rules[0].status == "fail":
            workspace.rows.add("commands", "skip", "not run: the script has a syntax error")
        elif data is None:
            check_model(workspace)
        else:
            try:
                run_all(workspace, data, submitted)
            except OutOfTime:
                workspace.rows.prefix = ""
                workspace.rows.add("commands", "skip", "no time was left for the other commands")
        return workspace.result


def run_all(workspace, data, submitted):
    """Runs all commands: tests of the submitted models, training, tests of the trained models."""
    result, submitted_scores, smoke_test = workspace.result, {}, workspace.settings.smoke_test
    if submitted:
        cwd, models = workspace.new_folders("submitted")
        for path, model in zip(submitted, models):
            shutil.copyfile(str(path), str(model))
        submitted_scores, _ = run_tests(workspace, data, cwd, models)
        result.scores.update(submitted_scores)
        workspace.on_progress(result)
    cwd, models = workspace.new_folders("trained")
    run_training(workspace, data, cwd, models)
    scores, outputs = run_tests(workspace, data, cwd, models, "retrained: " if submitted or smoke_test else "",
                                not smoke_test)
    if not smoke_test:
        result.scores.update({**scores, **submitted_scores, **({"retrained": scores} if submitted else {})})
        compare_scores(result.rows, submitted_scores, scores)
    if workspace.part == "digits" and len(outputs) == 2 and all(output is not None for output in outputs.values()):
        check_dependence(workspace, data, models, outputs)


def run_training(workspace, data, cwd, models):
    """Runs the training command, which writes the models."""
    minutes, rows = workspace.settings.minutes[workspace.part], workspace.rows
    n_rows = len(rows)
    inputs = [data.paths[name] for name in ("train", "val") if name in data.paths]
    outcome = workspace.run("train", [*inputs, "train", *models, *workspace.settings.train_flags], cwd, minutes,
                            [models[0].parent], [*inputs, *data.links], models)
    if workspace.settings.smoke_test and outcome.stopped == "time":
        del rows[n_rows:]
        for model in models:  # may be a checkpoint, or half of one
            model.unlink(missing_ok=True)
        return rows.add("train", "warn", f"stopped after {outcome.times}: too slow for this check, which has less time "
                        "than the grading of a class")
    timed_out = outcome.stopped == "time" or outcome.counted > 60 * minutes
    if timed_out or not outcome.failure:
        rows.check("training time", not timed_out, f"{outcome.times}, {minutes:g} min allowed, on {sandbox.machine()}",
                   f"{outcome.times} of {minutes:g} min")
    workspace.result.scores["train_minutes"] = round(outcome.seconds / 60, 3)


def run_tests(workspace, data, cwd, models, prefix="", scored=True):
    """Runs the test commands with one set of models. Returns their scores ({} unless `scored`) and {file name: labels
    or images}."""
    workspace.rows.prefix, outputs, scores = prefix, {}, {}
    if models[0].is_file():
        scores = check_model(workspace, models[0])
    for mode, data_name, output_name, n_models in TESTS[workspace.part]:
        missing = [path.name for path in models[:n_models] if not path.is_file()]
        if missing:
            workspace.rows.add(mode, "skip", f"no {' and no '.join(missing)}")
            continue
        workspace.run(mode, [data.paths[data_name], mode, *models[:n_models]], cwd, workspace.settings.minutes_test, [],
                      [data.paths[data_name], models[0].parent], [cwd / output_name])
        if (cwd / output_name).is_file() and (cwd / output_name).stat().st_size:
            n_rows = data.n_test if output_name.endswith(".csv") else len(data.reconstruction_images())
            outputs[output_name] = read_output(workspace.rows, cwd / output_name, n_rows, data)
            if scored:
                scores.update(score(workspace.rows, output_name, outputs[output_name], data))
    workspace.rows.prefix = ""
    return scores, outputs


def check_model(workspace, model=None):
    """Adds rows on the classes of the script and on a model file. Returns {"parameters": their number}, or {}."""
    rows = workspace.rows
    if model:
        with open(model, "rb") as file:
            start = file.read(2)
        if start not in (b"PK", b"\x80\x02"):  # a zip, or a pickle as before torch 1.6
            rows.add(f"{model.name} state_dict", "fail", "expected a file of torch.save, found something else")
            return {}
    outcome, report = workspace.probe(workspace.script, model)
    if not report:
        rows.add("import", "fail", outcome.failure or "the script ended while it was imported")
        return {}
    if model:  # facts about the file are read without the script's code, which could report anything
        _, of_file = workspace.probe("", model)
        own = report["parameters"]  # of the network; the file has buffers, too
        report.update({key: of_file[key] for key in ("file", "parameters", "narrowest") if of_file})
        report["parameters"] = own if 0.9 * report["parameters"] < own else report["parameters"]
    contract.check_probe(rows, model and model.name, report)
    return {"parameters": report["parameters"]} if report["parameters"] else {}


def read_output(rows, path, n_rows, data):
    """Labels (n_rows,) or images (n_rows, 28, 28) of an output, None if they cannot be scored; adds Rows."""
    if path.suffix == ".csv":
        return contract.check_labels(rows, path, n_rows, data.allowed_labels)
    return contract.check_reconstruction(rows, path, n_rows)


def score(rows, name, output, data):
    """The scores of an output; adds a row for each, and one that diagnoses labels."""
    if output is None or data.test_labels is None and name.endswith(".csv"):
        rows.add(f"{name} scores", "skip", f"{name} cannot be scored" if output is None else "TEST has no labels")
        return {}
    if name.endswith(".csv"):
        scores = f1_scores(data.test_labels, output)
        rows.add("row order", *diagnose_labels(data.test_labels, output, data.row_orders))
    else:
        images = data.reconstruction_images()
        scores = {"ssim": mean_ssim(images, output), "one_minus_mse": one_minus_mse(images, output)}
    for key, value in scores.items():
        rows.add(SHOWN[key], "pass", "", f"{value:.4f}")
    return scores


def compare_scores(rows, submitted, retrained):
    """Adds a row on whether the retrained model scores like the submitted one."""
    keys = [key for key in ("average_f1", "ssim", "one_minus_mse") if key in submitted and key in retrained]
    apart = [f"{SHOWN[key]} {submitted[key]:.4f}, retrained {retrained[key]:.4f}" for key in keys
             if abs(submitted[key] - retrained[key]) > SCORE_TOLERANCE]
    if keys:
        rows.check("same scores retrained", not apart, f"more than {SCORE_TOLERANCE} apart: {'; '.join(apart)}",
                   ", ".join(f"{retrained[key] - submitted[key]:+.4f}" for key in keys))


def check_dependence(workspace, data, models, outputs):
    """Adds two rows. Does reversing the images reverse the outputs? Not if an image is decoded from a sampled latent or
    normalized with its batch. Do reconstructions come only from the latent? Images with exchanged quarters are not
    digits: only a copy of the input can reconstruct them."""
    (cwd, _), folder, dependent = workspace.new_folders("again"), workspace.folder / "data", []
    folder.mkdir()
    for mode, data_name, output_name, n_models in TESTS[workspace.part]:
        path, output = folder / f"{data_name}.npz", None
        images = modified_copy(data.paths[data_name], path)
        workspace.run(f"{mode}, other images", [path, mode, *models[:n_models]], cwd, workspace.settings.minutes_test,
                      [], [path, models[0].parent])
        if is_regular(cwd / output_name):
            output = read_output(Rows(workspace.part), cwd / output_name, len(images), data)
        if output is None:
            check = "reconstruction" if output_name.endswith(".npz") else "order of images"
            workspace.rows.add(check, "fail" if check == "reconstruction" else "warn",
                               f"other images of the same number gave no readable {output_name}")
            continue
        dependent += [output_name] if batch_dependent(outputs[output_name], output) else []
        if output.ndim == 3 and len(output) > 1:
            correlation = input_correlation(images, output)
            why = (f"images with exchanged quarters are reproduced (correlation {correlation:.2f}), which a latent of "
                   "2 dimensions cannot encode")
            workspace.rows.check("reconstruction", correlation < MAX_INPUT_CORRELATION, why, f"{correlation:.2f}")
    why = (f"in {' and '.join(dependent)} the result for an image depends on the rest of the batch: a sampled latent "
           "instead of the mean, or batch norm in training mode?")
    workspace.rows.add("order of images", "warn" if dependent else "pass", why if dependent else "")


def modified_copy(source, target):
    """Writes and returns the images of `source`, reversed and every second one replaced by one with exchanged quarters:
    as many as before, since a script may expect the number."""
    with np.load(str(source), allow_pickle=False) as content:
        key, images = content.files[0], content[content.files[0]]
    modified = images[::-1].copy()
    modified[1::2] = np.roll(images.reshape(-1, 28, 28), (14, 14), (1, 2)).reshape(images.shape)[1::2]
    np.savez(str(target), **{key: modified})
    return modified


def batch_dependent(expected, output):
    """Whether the output of a `modified_copy` differs from the reversed `expected` one, replaced images aside."""
    return (np.abs(expected[::-1] - output)[::2].reshape(len(output[::2]), -1).mean(1) > PIXEL_TOLERANCE).any()


def input_correlation(images, output):
    """Mean correlation of the replaced images of a `modified_copy` with their reconstructions."""
    inputs, outputs = (array[1::2].reshape(len(array[1::2]), -1).astype(float) for array in (images, output))
    inputs, outputs = (array - array.mean(1, keepdims=True) for array in (inputs, outputs))
    norms = np.linalg.norm(inputs, axis=1) * np.linalg.norm(outputs, axis=1)
    return float(np.mean((inputs * outputs).sum(1) / np.maximum(norms, 1e-9)))


@contextlib.contextmanager
def temporary_folder(parent=""):
    """A fresh folder, removed at the end with everything that a script has left there."""
    folder = tempfile.mkdtemp(prefix=f"grade_{os.getpid()}_", dir=parent if parent and Path(parent).is_dir() else None)
    try:
        yield Path(folder).resolve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_stale_folders():
    """Removes the temporary folders of killed graders."""
    for path in Path(tempfile.gettempdir()).glob("grade_*_*"):
        number = path.name.split("_")[1]
        if number.isdigit() and not psutil.pid_exists(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def is_regular(path):
    """Whether a path is a file and not a link, which may lead anywhere, also outside of the sandbox."""
    return path.is_file() and not path.is_symlink()


class OutOfTime(Exception):
    """No time is left for a command."""


class Workspace:
    """Runs one script in folders below `folder`, and collects the Result. Each command gets fresh folders for HOME, for
    temporary files and for the script, without files of earlier commands."""

    def __init__(self, part, script, settings, folder, hidden, log, on_progress):
        self.part, self.settings, self.folder, self.log = part, settings, folder, log
        self.on_progress = on_progress
        self.source, self.hidden = Path(script), (*settings.hidden, *hidden)
        self.result = Result(Rows(part))
        self.rows = self.result.rows
        self.script = folder / "script" / SCRIPTS[part]

    def new_folders(self, name):
        """A fresh current folder, and the paths of the models in a fresh folder."""
        cwd, folder = self.folder / f"current_{name}", self.folder / f"models_{name}"
        cwd.mkdir()
        folder.mkdir()
        return cwd, [folder / file for file in MODELS[self.part]]

    def probe(self, script, model):
        """Outcome of probe.py, and its report, a dict, {} for none. `script` may be ""."""
        target, program = self.folder / "probe" / "report.json", self.folder / "probe.py"
        shutil.rmtree(target.parent, ignore_errors=True)
        target.parent.mkdir()
        shutil.copyfile(str(Path(__file__).with_name("probe.py")), str(program))
        label = "instantiate the model classes" if script else "read the model file"
        outcome = self.run(label, [script, model or "", target], target.parent, PROBE_MINUTES, [],
                           [program, *([model] if model else [])], program=program)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            report = json.loads(target.read_text()) if is_regular(target) else {}
            if all(type(report.get(key)) is type(value) for key, value in contract.EMPTY_REPORT.items()):
                return outcome, report
        return outcome, {}

    def run(self, label, arguments, cwd, minutes, writable, readable, outputs=None, program=None):
        """Outcome of the script, or another `program`, run in the sandbox. It can write to its current folder, its
        script's, HOME, TMPDIR and the paths `writable`. With `outputs`, required paths, adds rows on how it ended and
        whether it wrote them. Raises OutOfTime."""
        def progress(seconds):
            self.log(f"{self.part}: {self.rows.prefix}{label}, {seconds / 60:.0f} of at most {minutes:g} min")

        self.log(f"{self.part}: {self.rows.prefix}{label}, at most {minutes:g} min ...")
        own = [self.script.parent, self.folder / "home", self.folder / "temporary"]
        for path in own:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        shutil.copyfile(str(self.source), str(self.script))
        for path in outputs or ():
            path.unlink(missing_ok=True)
        left = self.settings.deadline - time.monotonic()
        if left < MIN_SECONDS:
            raise OutOfTime
        limits = sandbox.Limits(minutes * 60, self.settings.memory, max_wall_seconds=left)
        outcome = self.settings.sandbox.run(
            [program or self.script, *arguments], cwd, sandbox.clean_environment(*own[1:]), limits,
            [*own, cwd, *writable], readable, self.hidden, progress)
        self.result.runs.append({
            "part": self.part, "command": self.rows.prefix + label, "code": outcome.exit_code,
            "stopped": outcome.stopped, "seconds": round(outcome.seconds, 2),
            "cpu_seconds": round(outcome.cpu_seconds, 2), "peak_memory": outcome.peak_memory,
            "output_tail": outcome.output_tail})
        if outcome.stopped == "time" and self.settings.deadline - time.monotonic() < MIN_SECONDS:
            raise OutOfTime  # stopped by the deadline, not by its own limit: not the script's fault
        if outputs is not None:
            self.check_outputs(label, outcome, outputs, cwd)
        self.on_progress(self.result)
        return outcome

    def check_outputs(self, label, outcome, outputs, cwd):
        """Adds rows on how a command ended and whether it wrote its outputs; removes irregular files."""
        failure = outcome.failure.replace(f"{self.folder}/", "")
        self.rows.check(label, not failure, failure,
                        f"{sandbox.duration(outcome.seconds)}, {outcome.peak_memory / 1e9:.1f} GB")
        for path in outputs:
            size = path.stat().st_size if is_regular(path) else 0
            if size or not failure or os.path.lexists(path):
                found = ("an empty file" if is_regular(path) else
                         "no regular file" + self.describe_other_files(path, cwd))
                self.rows.check(path.name, size > 0, f"{label}: expected {path.name} in the "
                                f"{folder_name(path, cwd)}, found {found}", f"{size / 1e6:.2f} MB")
            if not is_regular(path) and os.path.lexists(path):
                path.unlink() if path.is_symlink() or not path.is_dir() else shutil.rmtree(path)

    def describe_other_files(self, path, cwd):
        """Text on the files that a command wrote instead of an expected one."""
        expected = {*MODELS[self.part], *(output_name for _, _, output_name, _ in TESTS[self.part])}
        files = [other for folder in {cwd, path.parent} for other in sorted(folder.iterdir())
                 if other.name not in expected or other.parent != path.parent]
        names = ", ".join(f"{one_line(other.name)} in the {folder_name(other, cwd)}" for other in files[:3])
        return f", but {names}: is the name hard-coded?" if files else ""


def folder_name(path, cwd):
    return "current folder" if path.parent == cwd else "model's folder"


def format_checks(rows):
    """Formats rows as aligned text."""
    return text_table([("part", "check", "status", "value", "detail"),
                       *((row.part, row.check, row.status, row.value, row.detail) for row in rows)])


def summary(rows):
    """One line per part, such as birds: 20 passed, 1 failed, 2 warnings, 0 skipped."""
    counts = collections.Counter((row.part, row.status) for row in rows)
    return "\n".join(f"{part}: {counts[part, 'pass']} passed, {counts[part, 'fail']} failed, {counts[part, 'warn']} "
                     f"warnings, {counts[part, 'skip']} skipped" for part in dict.fromkeys(row.part for row in rows))
