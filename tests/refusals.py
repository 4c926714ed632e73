"""What it means that a script refuses its input, the same for both."""

SENTINEL = b"what an earlier run left here"


class Bomb:
    """An object that leaves a file if it is ever unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


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
