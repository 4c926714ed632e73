"""What a graded script must leave behind: the checks of its CSV, its reconstructions and its model file."""
import ast
import csv
import dataclasses
import io
import zipfile

import numpy as np

from handin.sandbox import printable

HEADER = "Predicted_Label"
SCRIPTS = {"birds": "bird.py", "digits": "vae.py"}
# Words that the scripts of one part have and those of the other have not
WORDS = {"birds": ("bird.csv",), "digits": ("vae.csv", "test_reconstruction", "test_classifier")}
MOST_PARAMETERS = {"birds": 80_000_000, "digits": 20_000_000}
BYTES_A_ROW = 200  # of a CSV: a longer file is no list of labels


@dataclasses.dataclass(frozen=True)
class Row:
    """One check of one part, "birds" or "digits": status "pass", "fail", "warn" or "skip", a value to show, and one
    line of detail."""
    part: str
    check: str
    status: str
    value: str = ""
    detail: str = ""


class Rows(list):
    """The Rows of one part; `prefix` stands before the names of the checks."""

    def __init__(self, part):
        super().__init__()
        self.part, self.prefix = part, ""

    def add(self, check, status, detail="", value=""):
        self.append(Row(self.part, self.prefix + check, status, str(value), detail))

    def check(self, name, fine, detail, value=""):
        """A row that passes or fails; the detail is that of a failure."""
        self.add(name, "pass" if fine else "fail", "" if fine else detail, value)


def part_of_script(source):
    """The part whose outputs a script's source names: "birds", "digits", or None where it names none or both."""
    try:
        strings = " ".join(node.value for node in ast.walk(ast.parse(source))
                           if isinstance(node, ast.Constant) and isinstance(node.value, str))
    except (SyntaxError, ValueError):
        return None
    parts = [part for part, words in WORDS.items() if any(word in strings for word in words)]
    return parts[0] if len(parts) == 1 else None


def _listed(values):
    values = [printable(str(value), 40) for value in values]
    return ", ".join(values[:12]) + (" and more" if len(values) > 12 else "")


def _whole(cell):
    try:
        value = float(cell)
        return int(value) if value == int(value) and abs(value) < 2 ** 62 else None
    except (ValueError, OverflowError):
        return None


def check_labels(rows, path, number, allowed):
    """Labels int64 (number,) of a CSV, or None where they cannot be scored, with Rows; what can be read in spite of a
    fault is scored all the same. `allowed` are the labels that may occur."""
    name, size = path.name, path.stat().st_size
    if size > 1000 + BYTES_A_ROW * number:
        return rows.add(f"{name} rows", "fail", f"expected {number} rows, found {size / 1e6:.1f} MB")
    try:
        table = [line for line in csv.reader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        return rows.add(f"{name} header", "fail", f"expected text, found: {printable(str(error))}")
    header = table[0] if table else []
    headless = bool(header) and all(_whole(cell) is not None for cell in header)
    body, width = table if headless else table[1:], max(map(len, table), default=0)
    column = header.index(HEADER) if HEADER in header else width - 1
    cells = [line[column] if column < len(line) else "" for line in body]
    labels = [_whole(cell) for cell in cells]
    broken = sorted({cell for cell, label in zip(cells, labels) if label is None})
    strange = sorted({label for label in labels if label is not None} - set(allowed))
    found = "no header" if headless else f"'{printable(','.join(header), 60)}'" if table else "an empty file"
    rows.check(f"{name} header", HEADER in header, f"expected {HEADER}, found {found}"
               + (" after a byte order mark" if "\ufeff" in "".join(header) else ""))
    rows.check(f"{name} columns", width == 1, f"expected one column, found {width}; pandas writes no index with "
               "index=False")
    rows.check(f"{name} rows", len(body) == number, f"expected {number} rows, one an image, found {len(body)}"
               + (": is the number of images hard-coded?" if len(body) in (1, 15, 16) else ""), len(body))
    rows.check(f"{name} labels", not broken and not strange,
               f"expected {_listed(sorted(allowed))}, found {_listed(broken or strange)}")
    return None if broken or len(labels) != number else np.array(labels, dtype=np.int64)


def check_reconstruction(rows, path, number):
    """Images float64 (number, 28, 28) of an .npz, or None where they cannot be scored, with Rows. Nothing is unpickled,
    and what is far too large is not read."""
    name, shape = path.name, (number, 28, 28)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > 2 ** 20 + 4 * np.prod(shape) * 8:
            return rows.add(f"{name} shape", "fail", f"expected float32 {shape}, found {size / 1e6:.0f} MB")
        with np.load(path, allow_pickle=False) as content:
            keys = content.files
            images = content["data"] if "data" in keys else content[keys[0]] if len(keys) == 1 else None
    except Exception as error:  # corrupt files raise many exception types
        return rows.add(f"{name} key", "fail", f"expected a .npz file of one array, found: {printable(str(error))}")
    rows.check(f"{name} key", keys == ["data"], f"expected the key 'data' alone, found {_listed(map(repr, keys))}")
    if images is None:
        return None
    rows.check(f"{name} shape", images.shape == shape, f"expected {shape}, found {images.shape}"
               + (": is the number of images hard-coded?" if images.shape[:1] in ((15,), (16,)) else ""))
    rows.check(f"{name} dtype", images.dtype == np.float32, f"expected float32, found {images.dtype}")
    if images.dtype.kind not in "buif" or images.size != np.prod(shape):
        return None
    finite = np.isfinite(images).all()
    span = f"{images.min():g} to {images.max():g}" if finite else "values that are not finite"
    rows.check(f"{name} range", _in_0_1(images), f"expected 0 to 1, found {span}", span)
    return images.reshape(shape).astype(np.float64) if finite else None


def _in_0_1(images):
    import vae
    try:
        return vae.pixel_scale(images) == 1
    except ValueError:
        return False


def check_probe(rows, name, found):
    """Rows for what probe.py found; `name` is the model file's, or None when the script alone is looked at."""
    classes, parameters, most = found["classes"], found["parameters"], MOST_PARAMETERS[rows.part]
    reasons = "; ".join(f"{label}: {printable(why, 120)}" for label, why in classes.items() if why) or "none"
    rows.check("import", not found["import"], printable(found["import"]))
    if name is None:
        made = [f"{label}()" for label, why in classes.items() if not why]
        rows.check("model class", bool(made), "expected a torch.nn.Module that is made without arguments, found "
                   + reasons, made[-1] if made else "")
    else:
        rows.check(f"{name} state_dict", not found["file"], "expected a state_dict, which torch.load(..., "
                   f"weights_only=True) reads, {printable(found['file'])}")
        if not found["file"]:
            rows.check("fresh model loads", bool(found["loads"]), f"expected a class of the script that loads {name}, "
                       f"found {reasons}", found["loads"] and f"{found['loads']}()")
    if parameters:
        rows.check("parameters", parameters <= most, f"expected at most {most:,}, found {parameters:,}",
                   f"{parameters:,}")
