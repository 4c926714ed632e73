"""What a graded script must leave behind: the checks of its CSV, its reconstructions and its model file."""
import ast
import csv
import dataclasses
import io
import json
import zipfile
from pathlib import Path

import numpy as np

from handin.sandbox import printable

HEADER = "Predicted_Label"
# Words that the scripts of one part have and those of the other have not
WORDS = {"birds": ("bird.csv",), "digits": ("vae.csv", "test_reconstruction", "test_classifier")}
SCRIPTS = {"birds": "bird.py", "digits": "vae.py"}
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


def part_of_script(source):
    """The part whose outputs a script's source names: "birds", "digits", or None where it names none or both."""
    try:
        strings = " ".join(node.value for node in ast.walk(ast.parse(source))
                           if isinstance(node, ast.Constant) and isinstance(node.value, str))
    except (SyntaxError, ValueError):
        return None
    parts = [part for part, words in WORDS.items() if any(word in strings for word in words)]
    return parts[0] if len(parts) == 1 else None


def _row(part, check, fine, detail, value=""):
    return Row(part, check, "pass" if fine else "fail", str(value), "" if fine else detail)


def _listed(values, most=12):
    values = [printable(str(value), 40) for value in values]
    return ", ".join(values[:most]) + (" and more" if len(values) > most else "")


# ------------------------------------------------------------------------------------------------------------- outputs

def _whole(cell):
    try:
        value = float(cell)
        return int(value) if value == int(value) and abs(value) < 2 ** 62 else None
    except (ValueError, OverflowError):
        return None


def check_labels(part, path, number, allowed):
    """Rows for a CSV of labels, and the labels int64 (number,), or None where they cannot be scored. What can be read
    in spite of a fault is scored all the same. `allowed` are the labels that may occur."""
    name, size = path.name, path.stat().st_size
    if size > 1000 + BYTES_A_ROW * number:
        return [Row(part, f"{name} rows", "fail", "", f"expected {number} rows, found {size / 1e6:.1f} MB")], None
    try:
        table = [line for line in csv.reader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        return [Row(part, f"{name} header", "fail", "", f"expected text, found: {printable(str(error))}")], None
    header = table[0] if table else []
    headless = bool(header) and all(_whole(cell) is not None for cell in header)
    body, width = table if headless else table[1:], max(map(len, table), default=0)
    column = header.index(HEADER) if HEADER in header else width - 1
    found = "no header" if headless else f"'{printable(','.join(header), 60)}'" if table else "an empty file"
    found += " after a byte order mark" if "\ufeff" in "".join(header) else ""
    cells = [line[column] if column < len(line) else "" for line in body]
    labels = [_whole(cell) for cell in cells]
    broken = sorted({cell for cell, label in zip(cells, labels) if label is None})
    strange = sorted({label for label in labels if label is not None} - set(allowed))
    rows = [_row(part, f"{name} header", HEADER in header, f"expected {HEADER}, found {found}"),
            _row(part, f"{name} columns", width == 1, f"expected one column, found {width}; pandas writes no index "
                 "with index=False"),
            _row(part, f"{name} rows", len(body) == number, f"expected {number} rows, one an image, found {len(body)}"
                 + (": is the number of images hard-coded?" if len(body) in (1, 15, 16) else ""), len(body)),
            _row(part, f"{name} labels", not broken and not strange,
                 f"expected {_listed(sorted(allowed))}, found {_listed(broken or strange)}")]
    return rows, None if broken or len(labels) != number else np.array(labels, dtype=np.int64)


def check_reconstruction(part, path, number):
    """Rows for an .npz of reconstructions, and the images float64 (number, 28, 28), or None where they cannot be
    scored. Nothing is unpickled, and what is far too large is not read."""
    name, shape = path.name, (number, 28, 28)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > 2 ** 20 + 4 * np.prod(shape) * 8:
            return [_row(part, f"{name} shape", False, f"expected float32 {shape}, found {size / 1e6:.0f} MB")], None
        with np.load(path, allow_pickle=False) as content:
            keys = content.files
            images = content["data"] if "data" in keys else content[keys[0]] if len(keys) == 1 else None
    except Exception as error:  # broken bytes trip zipfile and NumPy in a dozen ways
        return [_row(part, f"{name} key", False, "expected a .npz file of one array, found: "
                     + printable(str(error)))], None
    rows = [_row(part, f"{name} key", keys == ["data"],
                 f"expected the key 'data' alone, found {_listed(map(repr, keys))}")]
    if images is None:
        return rows, None
    rows += [_row(part, f"{name} shape", images.shape == shape, f"expected {shape}, found {images.shape}"
                  + (": is the number of images hard-coded?" if images.shape[:1] in ((15,), (16,)) else "")),
             _row(part, f"{name} dtype", images.dtype == np.float32, f"expected float32, found {images.dtype}")]
    if images.dtype.kind not in "buif" or images.size != np.prod(shape):
        return rows, None
    finite, low, high = np.isfinite(images).all(), images.min(), images.max()
    span = f"{low:g} to {high:g}" if finite else "values that are not finite"
    rows.append(_row(part, f"{name} range", finite and low >= 0 and high <= 1, f"expected 0 to 1, found {span}", span))
    return rows, images.reshape(shape).astype(np.float64) if finite else None


# --------------------------------------------------------------------------------------------------------------- model

def probe_command(script, model, result):
    """The command, less Python itself, that runs probe.py; the paths must be absolute."""
    return [Path(__file__).with_name("probe.py"), script, model, result]


def check_probe(part, name, outcome, result):
    """Rows for what probe.py found, and the number of parameters, from its Outcome and the path of its result. `name`
    is the model file's, or None when the script alone is looked at."""
    try:
        found = json.loads(result.read_text())
    except (OSError, ValueError):
        return [Row(part, "import", "fail", "", outcome.failure or "ended while it was imported")], 0
    trouble, parameters, most = printable(found["import"]), found["parameters"], MOST_PARAMETERS[part]
    rows = [Row(part, "import", "warn" if trouble else "pass", "", trouble and
                f"works when imported, so that only its definitions can be: {trouble}")]
    if trouble.startswith(("ModuleNotFoundError", "ImportError")):
        rows = [Row(part, "import", "fail", "", trouble)]
    reasons = "; ".join(f"{label}: {printable(why, 120)}" for label, why in found["classes"].items() if why)
    made = [f"{label}()" for label, why in found["classes"].items() if not why]
    if name is None:
        rows.append(_row(part, "model class", bool(made), "expected a torch.nn.Module that is made without arguments, "
                         f"found {reasons or 'none'}", made[-1] if made else ""))
    else:
        rows.append(_row(part, f"{name} state_dict", not found["file"], "expected a state_dict, which torch.load(..., "
                         f"weights_only=True) reads, {printable(found['file'])}"))
        rows.append(Row(part, "fresh model loads", "skip", "", f"no state_dict in {name}") if found["file"] else
                    _row(part, "fresh model loads", bool(found["loads"]), f"no class of the script loads {name}: "
                         f"{reasons or 'it has none'}", f"{found['loads']}()" if found["loads"] else ""))
    if parameters:
        rows.append(_row(part, "parameters", parameters <= most, f"expected at most {most:,}, found {parameters:,}",
                         f"{parameters:,}"))
    return rows, parameters
