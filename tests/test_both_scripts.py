"""What bird.py and vae.py have in common: outputs, bad input, full disks, signals, imports."""
import ast
import contextlib
import io
import itertools
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import types

import numpy as np
import pytest
import torch
from refusals import SENTINEL, Bomb, FullDisk, contents, files, refused, refuser, saved

FAST = "--epochs 2 --threads 1 --device cpu"
COMMANDS = {  # the words, with {places} of inputs and of one output; that output's default name
    "bird train": ("{photos} train {out} --image-size 32 " + FAST.replace("2", "1"), "bird.pth"),
    "bird test": ("{photo} test {model} --output {out}", "bird.csv"),
    "vae train": ("{train} {val} train {out} gmm_params.pkl " + FAST, "vae.pth"),
    "vae train, its mixture": ("{train} {val} train vae.pth {out} " + FAST, "gmm_params.pkl"),
    "vae test_reconstruction": ("{test} test_reconstruction {model} --output {out}", "vae_reconstructed.npz"),
    "vae test_classifier": ("{test} test_classifier {model} {mixture} --output {out}", "vae.csv"),
}
SCRIPTS = {"bird": "bird test", "vae": "vae test_reconstruction"}  # with a command of each that reads a model


@pytest.fixture
def scripts(bird, bird_alone, bird_call, bird_few, bird_data, bird_untrained, vae, alone, call, data, trained):
    """For each script the module, a copy of the file in a folder of its own, `call`, `load`, and good inputs."""
    return {
        "bird": types.SimpleNamespace(module=bird, path=bird_alone, call=bird_call, load=bird.load_model, inputs={
            "photos": bird_few, "photo": bird_data.test / "1" / "0.jpg", "model": bird_untrained}),
        "vae": types.SimpleNamespace(module=vae, path=alone, call=call, load=vae.load_checkpoint, inputs={
            "train": data.train, "val": data.val, "test": data.test, "model": trained.model,
            "mixture": trained.mixture})}


class Command:
    """A command of COMMANDS in a folder in which every output exists already."""

    def __init__(self, name, scripts, folder):
        (self.template, self.output), self.kind = COMMANDS[name], name.split()[0]
        self.script, self.trains, self.folder = scripts[self.kind], " train" in name, folder
        self.inputs = [place for place in re.findall(r"{(\w+)}", self.template) if place != "out"]
        self.refuse = refuser(self.script.call, folder)

    def words(self, **places):
        """The words, with `places` in place of the good ones; without `out` those of the bare command."""
        template = self.template if "out" in places else self.template.replace(" --output {out}", "")
        places = {**self.script.inputs, "out": self.output, **places}
        return [word.format(**places) for word in template.split()]


@pytest.fixture(params=COMMANDS)
def command(request, scripts, folder):
    return Command(request.param, scripts, folder)


@pytest.fixture(params=SCRIPTS)
def loading(request, scripts, folder):
    return Command(SCRIPTS[request.param], scripts, folder)


def test_commands_write_their_files_and_nothing_on_stderr(trained, alone, bird_trained, bird_alone, bird_data):
    for process in (*trained.processes, *bird_trained.processes):
        assert (process.returncode, process.stderr) == (0, "")
    for folder, expected in (
            (trained.folder, ["gmm_params.pkl", "vae.csv", "vae.pth", "vae_history.json", "vae_reconstructed.npz"]),
            (bird_trained.models, ["bird.pth", "bird_history.json"]), (bird_trained.folder, ["bird.csv"]),
            (alone.parent, ["vae.py"]), (bird_alone.parent, ["bird.py"]), (bird_data.folder, ["photos", "unseen"])):
        assert files(folder) == expected


@pytest.mark.parametrize("kind, most", [("bird", 30_000_000), ("vae", 20_000_000)])
def test_model_files_are_plain_state_dicts(scripts, bird_trained, trained, kind, most):
    module, path = scripts[kind].module, {"bird": bird_trained.model, "vae": trained.model}[kind]
    state = torch.load(str(path), weights_only=True)
    assert set(torch.load(str(path))) == set(state)
    assert all(type(value) is torch.Tensor and value.device.type == "cpu" for value in state.values())
    assert all(value.isfinite().all() for value in state.values())
    read, bare = scripts[kind].load(str(path)), module.VAE() if kind == "vae" else module.BirdClassifier()
    bare.load_state_dict(state)
    assert not read.training
    for model in (bare, read):
        assert set(model.state_dict()) == set(state)
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name].to(value.dtype)), name
        assert sum(parameter.numel() for parameter in model.parameters()) <= most
    assert sum(value.numel() for value in state.values()) <= most


@pytest.mark.parametrize("kind", SCRIPTS)
def test_flags_anywhere_and_an_old_table_replaced(scripts, bird_data, bird_trained, data, trained, tmp_path, kind):
    words, kept = {"bird": (("test", bird_data.test, "--output", "mine.csv", bird_trained.model), bird_trained.csv),
                   "vae": (("test_classifier", data.test, "--output", "mine.csv", trained.model, trained.mixture),
                           trained.csv)}[kind]
    (tmp_path / "mine.csv").write_text("old\n" * 1000)
    found = scripts[kind].call("--quiet", *words)
    assert (found.code, found.out, found.err) == (0, "", "") and files(tmp_path) == ["mine.csv"]
    assert (tmp_path / "mine.csv").read_bytes() == kept.read_bytes()


@pytest.mark.parametrize("kind, mode, paths, lines", [
    ("vae", "train", "a b c d", ["a b train c d", "train a b c d"]),
    ("vae", "train", "train train c d", ["train train train c d"]),  # files of that name: the documented order first
    ("vae", "test_reconstruction", "a c", ["a test_reconstruction c", "test_reconstruction a c"]),
    ("vae", "test_reconstruction", "train c", ["train test_reconstruction c"]),
    ("vae", "test_classifier", "a c d", ["test_classifier a c d"]),
    ("vae", "test_classifier", "test_classifier c d", ["test_classifier test_classifier c d"]),
    ("bird", "train", "photos m.pth", ["photos train m.pth", "train photos m.pth"]),
    ("bird", "test", "photos m.pth", ["test photos m.pth", "--seed 3 photos --quiet test m.pth"]),
    ("bird", "test", "test m.pth", ["test test m.pth"]), ("bird", "test", "train m.pth", ["train test m.pth"]),
    ("bird", "train", "test m.pth", ["test train m.pth"]), ("bird", "test", "photos train", ["photos test train"]),
    ("bird", "test", "/a/train /b/test", ["/a/train test /b/test"])])
def test_mode_after_the_data_or_in_first_place(scripts, kind, mode, paths, lines):
    for line in lines:
        args = scripts[kind].module.parse_arguments(line.split())
        found = [args.dataset, args.model] if kind == "bird" else args.files
        assert (args.mode, found) == (mode, paths.split()), line


@pytest.mark.parametrize("kind, words", [
    ("bird", ("python bird.py DATASET train bird.pth", "python bird.py DATASET test bird.pth", "--minutes",
              "--image-size", "--resume")),
    ("vae", ("python vae.py TRAIN VAL train", "python vae.py TEST test_reconstruction",
             "python vae.py TEST test_classifier", "--minutes", "--plain", "--mean"))])
def test_help_shows_the_commands(scripts, capsys, kind, words):
    with pytest.raises(SystemExit) as end:
        scripts[kind].call("--help")
    out, err = capsys.readouterr()
    assert not end.value.code and err == ""
    assert all(word in out for word in (*words, "--epochs", "--device", "--seed"))


@pytest.mark.parametrize("kind", SCRIPTS)
def test_write_files_replaces_all_of_a_file_and_follows_a_link(scripts, tmp_path, kind):
    (tmp_path / "real").write_bytes(b"a long old content")
    os.symlink("real", str(tmp_path / "link"))
    content = b"new" if kind == "bird" else lambda file: file.write(b"new")
    scripts[kind].module.write_files({str(tmp_path / "link"): content})
    assert os.path.islink(str(tmp_path / "link")) and (tmp_path / "real").read_bytes() == b"new"
    assert files(tmp_path) == ["link", "real"]


def test_an_output_that_cannot_be_written(command):
    (command.folder / "folder").mkdir()
    os.symlink("missing/file", str(command.folder / "dangling"))
    for place in ("missing/file", "folder", f"{command.output}/file", "dangling", *([""] if command.trains else [])):
        assert command.refuse(place, *command.words(out=place)).out == ""
    (command.folder / command.output).unlink()
    (command.folder / command.output).mkdir()
    assert command.refuse(command.output, *command.words()).out == ""


def test_an_output_is_neither_an_input_nor_the_script(command, monkeypatch):
    (command.folder / "script.py").write_bytes(SENTINEL)
    monkeypatch.setattr(command.script.module, "__file__", str(command.folder / "script.py"))
    given = {name: command.script.inputs[name] for name in command.inputs if command.script.inputs[name].is_file()}
    copies = {name: name + path.suffix for name, path in given.items()}
    for name, path in given.items():
        shutil.copy(str(path), str(command.folder / copies[name]))
    for name in ("script.py", *copies.values()):
        os.symlink(name, str(command.folder / f"link_to_{name}"))
        for out in (name, f"./{name}", f"link_to_{name}"):
            assert command.refuse(out, *command.words(out=out, **copies)).out == ""


def test_a_missing_input(command):
    (command.folder / "folder").mkdir()
    for name in command.inputs:
        for place in ("missing", "missing/file", "folder", f"{command.output}/file"):
            command.refuse(place, *command.words(**{name: place}))
        command.refuse("no file [31m", *command.words(**{name: "no\nfile\x1b[31m"}))  # on one line


def _npz():
    buffer = io.BytesIO()
    np.savez(buffer, data=np.zeros(3))
    return buffer.getvalue()


def _with(state, part, change):
    """The state with the first entry whose name contains `part` replaced: by a value, or by a function of the old."""
    name = [name for name in state if part in name][0]
    return {**state, name: change(state[name]) if callable(change) else change}


LAST = {"bird": "head.bias", "vae": "decoder.4.bias"}
BAD_MODELS = {  # of a good state and the name of one of its entries
    "empty file": lambda state, last: b"",
    "text": lambda state, last: b"this is no model\n",
    "truncated": lambda state, last: saved(state)[:100_000],
    "an empty dict": lambda state, last: saved({}),
    "another architecture": lambda state, last: saved(torch.nn.Linear(784, 2).state_dict()),
    "one layer missing": lambda state, last: saved({key: state[key] for key in state if key != last}),
    "one layer too many": lambda state, last: saved({**state, "extra": torch.zeros(3)}),
    "one layer of another width": lambda state, last: saved(_with(state, last, torch.zeros(7))),
    "NaN": lambda state, last: saved(_with(state, last, lambda old: old * np.nan)),
    "NaN statistics": lambda state, last: saved(_with(state, "running_mean", lambda old: old * np.nan)),
    "infinite": lambda state, last: saved(_with(state, last, lambda old: old + np.inf)),
    "negative variances": lambda state, last: saved(_with(state, "running_var", lambda old: -1 - old)),
    "words for weights": lambda state, last: saved(_with(state, last, "zero")),
    "a list": lambda state, last: saved([1, 2, 3]),
    "a whole module": lambda state, last: saved(torch.nn.Linear(3, 3)),
    "an npz": lambda state, last: _npz(),
    "a tar": lambda state, last: tarfile.TarInfo("storages").tobuf() + bytes(9728),
    "a hostile pickle": lambda state, last: pickle.dumps(Bomb("marker"), protocol=2),
    "a hostile model": lambda state, last: saved(Bomb("marker")),
    "a hostile state": lambda state, last: saved({**state, "extra": Bomb("marker")}),
    "a hostile model of the old format": lambda state, last: saved(Bomb("marker"),
                                                                   _use_new_zipfile_serialization=False),
    "nothing changed, which is fine": lambda state, last: saved(_with(state, last, lambda old: old + 0)),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model(loading, name):
    state = torch.load(str(loading.script.inputs["model"]), weights_only=True)
    (loading.folder / "broken.pth").write_bytes(BAD_MODELS[name](state, LAST[loading.kind]))
    if "fine" in name:
        assert loading.script.call(*loading.words(model="broken.pth")).code == 0
        return
    found = loading.refuse("broken.pth", *loading.words(model="broken.pth"))
    assert not (loading.folder / "marker").exists()
    assert "weights_only" not in found.err and "trust" not in found.err  # torch's message advises to run the file


def test_a_damaged_model_is_read_or_refused(loading):
    """With bytes outside the weights changed at random, nothing but an InputError is raised."""
    good, chance, refusals = loading.script.inputs["model"].read_bytes(), random.Random(0), 0
    path, places = loading.folder / "damaged.pth", [*range(3000), *range(len(good) - 3000, len(good))]
    for _ in range(40):
        damaged = bytearray(good)
        for _ in range(3):
            damaged[chance.choice(places)] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            assert isinstance(loading.script.load(str(path)), torch.nn.Module)
        except loading.script.module.InputError as error:
            refusals += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refusals > 10


def test_bad_arguments(command):
    """A word too few or too many, an unknown flag, numbers out of range or not numbers at all, a bad device."""
    words = command.words(**{name: f"my_{name}" for name in command.inputs})
    words = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    (mode,) = [place for place, word in enumerate(words) if word.startswith(("train", "test"))]
    wrong = [[], words[:1], [*words, "more"], ["what\never", *words], [*words[:mode], *words[mode + 1:], words[mode]],
             *([*words[:mode], other, *words[mode + 1:]] for other in (words[mode].title(), "predict")),
             *(words[:place] + words[place + 1:] for place in range(len(words))),
             *([*words, *flags.split(" ")] for flags in (
                 "--unknown", "-x", "--unknown 3", "--epochs", "--epochs ", "--epochs 0", "--epochs -1", "--epochs 2.5",
                 "--epochs many", "--seed -1", "--seed x", "--threads 0", "--minutes 0", "--minutes nan")),
             *([*command.words(), "--device", device] for device in (
                 "nonsense", "cuda:99", "cpu:x", "", "meta", ":", "cuda:", "CPU!"))]
    for line in wrong:
        command.refuse(f"{command.kind}.py", *line)
    for flag in ("--seed", "--threads"):
        assert "at least" not in command.refuse(flag, *words, flag, 2 ** 32).err


@pytest.mark.parametrize("command, limit", [("bird test", 10), ("vae train", 100_000), (SCRIPTS["vae"], 100_000)],
                         indirect=["command"])
def test_a_disk_that_fills_up_in_the_middle_of_a_file(command, limit):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        command.refuse(command.output, *command.words(), "--quiet")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("command, name", [
    ("bird train", "bird.pth."), ("bird train", "bird_history.json"),
    ("vae train", "vae.pth."), ("vae train", "gmm_params.pkl"),
    ("vae train", "vae_history.json.")], indirect=["command"])
def test_a_full_disk_in_training_keeps_the_old_files(command, monkeypatch, name):
    """A new file next to an old one would not match it. The checkpoint of bird.py is kept for --resume."""
    def full_open(path, mode="r", *rest, **options):
        return FullDisk() if name in str(path) and mode[0] in "wx" else open(path, mode, *rest, **options)

    before = contents(command.folder)
    monkeypatch.setattr(command.script.module, "open", full_open, raising=False)
    refused(command.script.call(*command.words(), "--quiet"), name.rstrip("."))
    left = contents(command.folder)
    resume = left.pop(str(command.folder / "bird_checkpoint.pth"), None)
    assert (resume is not None) == (name in ("bird.pth.", "bird_history.json"))
    assert left == before


def test_interrupted_while_writing(command, monkeypatch):
    before = contents(command.folder)
    monkeypatch.setattr(os, "replace", lambda *_: signal.raise_signal(signal.SIGINT))
    refused(command.script.call(*command.words()), f"{command.kind}.py: interrupted", code=130)
    assert contents(command.folder) == before


def test_ctrl_c_while_the_libraries_load_is_one_line(loading, run, tmp_path):
    """A numpy.py next to the script presses Ctrl-C during the imports."""
    script = shutil.copy(str(loading.script.path), str(tmp_path))
    (tmp_path / "numpy.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    process = run(script, *loading.words(), cwd=tmp_path)
    assert (process.returncode, process.stderr) == (130, f"{loading.kind}.py: interrupted\n")


def test_a_closed_pipe_is_no_traceback(loading, environment):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run([sys.executable, str(loading.script.path), *loading.words()], cwd=str(loading.folder),
                             env=environment, stdout=write, stderr=subprocess.PIPE, timeout=600)
    os.close(write)
    assert (process.returncode, process.stderr) == (0, b"")
    assert (loading.folder / loading.output).read_bytes() != SENTINEL


ALLOWED = {"bird": {"torch", "torchvision", "numpy", "PIL", "sklearn", "skimage", "matplotlib", "scipy"},
           "vae": {"torch", "numpy", "scipy"}}
BANNED = ("torchvision.models", "torch.hub", "torch.utils.model_zoo", "urllib", "http", "socket", "ftplib", "requests",
          "timm")
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


@pytest.mark.parametrize("name", ["bird train", "vae train"])
def test_epochs_are_a_progress_bar_on_a_terminal(scripts, environment, folder, name):
    command = Command(name, scripts, folder)
    master, slave = os.openpty()
    with subprocess.Popen([sys.executable, str(command.script.path), *command.words()], cwd=str(folder), stdout=slave,
                          stderr=subprocess.PIPE, env={**environment, "COLUMNS": "80"}) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the process has ended
            while True:
                shown += os.read(master, 10_000)
        assert process.wait() == 0 and process.stderr.read() == b""
    os.close(master)
    bars = re.findall(r"( *(\d+)% \[=* *\] epoch +\d+/\d+  [\d.]+ \w+ left  (?:val F1|SSIM) \d.*?)\r", shown.decode())
    assert [int(share) for _, share in bars] == ([100] if name == "bird train" else [33, 67])
    assert {len(bar) for bar, _ in bars} == {79} and "wrote" in shown.decode().splitlines()[-1]


@pytest.mark.parametrize("kind", SCRIPTS)
def test_sources_keep_the_rules_of_the_assignment(scripts, kind):
    """Python 3.8, imports that the grader has, no ready-made network, nothing from the internet, the seed 0; importing
    the script only defines."""
    text, imported = scripts[kind].path.read_text(), []
    tree = ast.parse(text, feature_version=(3, 8))
    nodes = list(ast.walk(tree))
    for node in tree.body[1:]:  # after the docstring
        assert "__main__" in ast.dump(node.test) if isinstance(node, ast.If) else isinstance(node, DEFINITIONS)
        assert kind == "vae" or not isinstance(node, ast.Assign) or "Call" not in ast.dump(node)
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
    for name in imported:
        assert not name.startswith(BANNED), name
        if sys.version_info >= (3, 10):
            assert name.split(".")[0] in sys.stdlib_module_names | ALLOWED[kind], name
    assert "http" not in text and not {node.attr for node in nodes if isinstance(node, ast.Attribute)} & {
        "models", "hub", "model_zoo", "load_state_dict_from_url", "pretrained", "urlopen"}
    wanted = ast.dump(ast.parse("torch.manual_seed(0)").body[0].value)
    assert any(ast.dump(node) == wanted for node in nodes if isinstance(node, ast.Call))
