"""What it means that a script refuses its input, the same for both; what it left in a folder."""
import io
import os
import re
from pathlib import Path

import torch

SENTINEL = b"what an earlier run left here"


class Bomb:
    """An object that leaves a file if it is ever unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class FullDisk(io.BytesIO):
    """A file on a full disk."""

    def write(self, _):
        raise OSError(28, "No space left on device")


def saved(content, **options):
    """What torch.save makes of it."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def files(folder):
    return sorted(os.listdir(str(folder)))


def touch(folder, names):
    """Empty files in the folder, each with the folders above it."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def read_labels(path):
    """The labels of a bird.csv or vae.csv."""
    content = Path(str(path)).read_bytes()
    assert re.fullmatch(rb"Predicted_Label\n(\d+\n)*", content)
    return [int(line) for line in content.split()[1:]]


def contents(folder):
    """{path: bytes, None for a folder} of all below a folder."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(found, name, code=2):
    """Whether a run ended as bad input should: `code`, and one line on stderr that names `name`."""
    assert found.code == code, found.err
    assert len(found.err.splitlines()) == 1, found.err
    assert name in found.err and "Traceback" not in found.err
    assert all(character.isprintable() for character in found.err.rstrip("\n")), found.err
    assert len(found.err) < 500


def refuser(call, folder):
    """refuse(name, *words): runs the command, asserts that it is refused with what was expected and found, and that it
    changes no file of the folder."""
    def refuse(name, *words):
        before = contents(folder)
        found = call(*words)
        refused(found, name)
        assert "expected" in found.err and "found" in found.err
        assert contents(folder) == before
        return found

    return refuse
