"""What a graded script must leave behind: the checks of its CSV, its reconstructions and its model file."""
import ast
import csv
import dataclasses
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

from handin.sandbox import printable

HEADER = "Predicted_Label"
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


def part_of_script(source):
    """The part whose outputs a script's source names: "birds", "digits", or None where it names none or both."""
    try:
        strings = " ".join(node.value for node in ast.walk(ast.parse(source))
                           if isinstance(node, ast.Constant) and isinstance(node.value, str))
    except (SyntaxError, ValueError):
        return None
    parts = [part for part, words in WORDS.items() if any(word in strings for word in words)]
    return parts[0] if len(parts) == 1 else None


def _some(values, most=5):
    values = [printable(str(value), 40) for value in values]
    return ", ".join(values[:most]) + (f" and {len(values) - most} more" if len(values) > most else "")


# ------------------------------------------------------------------------------------------------------------- labels

def check_labels(part, path, number, allowed):
    """Rows for a CSV of labels, and the labels int64 (number,), or None where they cannot be scored. What can be read
    in spite of a fault is scored all the same. `allowed` are the labels that may occur."""
    name = path.name
    if path.stat().st_size > 1000 + BYTES_A_ROW * number:
        return [Row(part, f"{name} rows", "fail", "", f"expected {number} rows, found "
                    f"{path.stat().st_size / 1e6:.1f} MB")], None
    try:
        table = [line for line in csv.reader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        return [Row(part, f"{name} header", "fail", "", f"expected text, found: {printable(str(error))}")], None
    header = table[0] if table else []
    headless = bool(header) and all(_whole(cell) is not None for cell in header)
    body = table if headless else table[1:]
    width = max(map(len, table), default=0)
    column = header.index(HEADER) if HEADER in header else width - 1
    found = "no header" if headless else f"'{printable(','.join(header), 60)}'" if table else "an empty file"
    if "\ufeff" in "".join(header):
        found += " after a byte order mark"
    rows = [_row(part, f"{name} header", HEADER in header, f"expected {HEADER}, found {found}"),
            _row(part, f"{name} columns", width == 1, f"expected one column, found {width}"
                 + ("; an index column? pandas writes none with index=False" if width == 2 else "")),
            _row(part, f"{name} rows", len(body) == number, f"expected {number} rows, one an image, found {len(body)}"
                 + (": is the number of images hard-coded?" if len(body) in (15, 16, 1) else ""), len(body))]
    cells = [line[column] if column < len(line) else "" for line in body]
    labels = [_whole(cell) for cell in cells]
    broken = sorted({cell for cell, label in zip(cells, labels) if label is None})
    strange = sorted({label for label in labels if label is not None} - set(allowed))
    rows.append(_row(part, f"{name} labels", not broken and not strange,
                     f"expected {_some(sorted(allowed), 12)}, found {_some(broken or strange)}"))
    if broken or len(labels) != number:
        return rows, None
    return rows, np.array(labels, dtype=np.int64)


def _whole(cell):
    try:
        value = float(cell)
        return int(value) if value == int(value) and abs(value) < 2 ** 62 else None
    except (ValueError, OverflowError):
        return None


def _row(part, check, fine, detail, value=""):
    return Row(part, check, "pass" if fine else "fail", str(value), "" if fine else detail)


# ---------------------------------------------------------------------------------------------------- reconstructions

def check_reconstruction(part, path, number):
    """Rows for an .npz of reconstructions, and the images float64 (number, 28, 28), or None where they cannot be
    scored. Nothing is unpickled, and what is far too large is not read."""
    name, shape = path.name, (number, 28, 28)

    def broken(check, detail):
        return [Row(part, f"{name} {check}", "fail", "", detail)], None

    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > 2 ** 20 + 4 * np.prod(shape) * 8:
            return broken("shape", f"expected float32 {shape}, found {size / 1e6:.0f} MB")
        with np.load(path, allow_pickle=False) as content:
            keys = content.files
            key = "data" if "data" in keys else keys[0] if len(keys) == 1 else None
            images = content[key] if key else None
    except Exception as error:  # broken bytes trip zipfile and NumPy in a dozen ways
        return broken("key", f"expected a .npz file of one array, found: {printable(str(error))}")
    rows = [_row(part, f"{name} key", keys == ["data"],
                 f"expected the key 'data' alone, found {_some(map(repr, keys))}")]
    if images is None:
        return rows, None
    rows += [_row(part, f"{name} shape", images.shape == shape, f"expected {shape}, found {images.shape}"
                  + (": is the number of images hard-coded?" if images.shape[:1] in ((15,), (16,)) else ""),
                  " x ".join(map(str, images.shape))),
             _row(part, f"{name} dtype", images.dtype == np.float32, f"expected float32, found {images.dtype}",
                  images.dtype)]
    if images.dtype.kind not in "buif" or not images.size:
        return rows, None
    finite = np.isfinite(images)
    low, high = (images[finite].min(), images[finite].max()) if finite.any() else (np.nan, np.nan)
    rows.append(_row(part, f"{name} range", finite.all() and low >= 0 and high <= 1, "expected 0 to 1, found "
                     + (f"{low:g} to {high:g}" if finite.all() else f"{(~finite).sum()} values that are not finite"),
                     f"{low:.2g} to {high:.2g}"))
    if not finite.all() or images.size != np.prod(shape):
        return rows, None
    return rows, images.reshape(shape).astype(np.float64)


# --------------------------------------------------------------------------------------------------------------- model

def probe_command(script, model, result):
    """The command that runs probe.py; the paths must be absolute."""
    return [sys.executable, Path(__file__).with_name("probe.py"), script, model, result]


def is_torch_file(path):
    """Whether a file begins as those of torch.save do: a zip, or a pickle as before torch 1.6."""
    with open(path, "rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02")


def check_probe(part, name, outcome, result):
    """Rows for what probe.py found, and the number of parameters, from its Outcome and the path of its result. `name`
    is the model file's, or None when the script alone is looked at."""
    try:
        found = json.loads(result.read_text())
    except (OSError, ValueError):
        return [Row(part, "import", "fail", "", outcome.failure or "ended while it was imported")], 0
    rows = [Row(part, "import", "warn" if found["import"] else "pass", "", printable(found["import"]) and
            f"works when imported, so that only its definitions can be: {printable(found['import'])}")]
    missing = found["import"].startswith(("ModuleNotFoundError", "ImportError"))
    if missing:
        rows = [Row(part, "import", "fail", "", printable(found["import"]))]
    reasons = "; ".join(f"{label}: {printable(why, 120)}" for label, why in found["classes"].items() if why)
    constructible = [label for label, why in found["classes"].items() if not why]
    most, parameters = MOST_PARAMETERS[part], found["parameters"]
    if name is None:
        rows.append(Row(part, "model class", "pass" if constructible else "fail", f"{constructible[-1]}()"
                        if constructible else "", "" if constructible else "expected a torch.nn.Module that is made "
                        f"without arguments, found {reasons or 'none'}"))
    else:
        rows.append(_row(part, f"{name} state_dict", not found["file"], f"expected a state_dict, which torch.load(..., "
                         f"weights_only=True) reads, {printable(found['file'])}"))
        if found["file"]:
            rows.append(Row(part, "fresh model loads", "skip", "", f"no state_dict in {name}"))
        else:
            rows.append(_row(part, "fresh model loads", bool(found["loads"]), f"no class of the script loads {name}: "
                             f"{reasons or 'it has none'}", f"{found['loads']}()" if found["loads"] else ""))
    if parameters:
        rows.append(_row(part, "parameters", parameters <= most, f"expected at most {most:,}, found {parameters:,}",
                         f"{parameters:,}"))
    return rows, parameters
