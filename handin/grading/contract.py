"""The outputs that a graded script must write: checks of its CSV, its reconstructions and its model file."""
import ast
import csv
import dataclasses
import io
import zipfile

import numpy as np

from common.text import one_line

HEADER = "Predicted_Label"
SCRIPTS = {"birds": "bird.py", "digits": "vae.py"}
MODELS = {"birds": ("bird.pth",), "digits": ("vae.pth", "gmm_params.pkl")}
TESTS = {  # of each part: mode, name of its data, name of its output, number of model files that it takes
    "birds": (("test", "test", "bird.csv", 1),),
    "digits": (("test_reconstruction", "reconstruction", "vae_reconstructed.npz", 1),
               ("test_classifier", "test", "vae.csv", 2))}
# Strings that occur only in the scripts of that part
PART_STRINGS = {"birds": ("bird.csv",), "digits": ("vae.csv", "test_reconstruction", "test_classifier")}
MAX_PARAMETERS = {"birds": 80_000_000, "digits": 20_000_000}
LATENT_DIM = 2
SUSPICIOUS_COUNTS = (1, 10, 15, 16, 30, 32, 64)  # of images: these are often hard-coded
MAX_BYTES_PER_ROW = 200  # of a CSV: a longer file is not a list of labels
# What probe.py reports of nothing
EMPTY_REPORT = {"import": "", "classes": {}, "loads": "", "file": "", "parameters": 0, "narrowest": 0}


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

    def check(self, name, passed, detail, value=""):
        """Adds a row that passes or fails; the detail is that of a failure."""
        self.add(name, "pass" if passed else "fail", "" if passed else detail, value)


def part_of_script(source):
    """The part whose outputs a script's source names: "birds", "digits", or None if it names none or both."""
    try:
        strings = " ".join(node.value for node in ast.walk(ast.parse(source))
                           if isinstance(node, ast.Constant) and isinstance(node.value, str))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    parts = [part for part, words in PART_STRINGS.items() if any(word in strings for word in words)]
    return parts[0] if len(parts) == 1 else None


def _join_first(values):
    values = [one_line(str(value), 40) for value in values]
    return ", ".join(values[:12]) + (" and more" if len(values) > 12 else "")


def _parse_int(cell):
    try:
        value = float(cell)
        return int(value) if value == int(value) and abs(value) < 2 ** 62 else None
    except (ValueError, OverflowError):
        return None


def check_labels(rows, path, number, allowed):
    """Labels int64 (number,) of a CSV, or None if they cannot be scored; adds Rows. Labels that can be read despite a
    failed check are still scored. `allowed` are the labels that may occur."""
    name, size = path.name, path.stat().st_size
    if size > 1000 + MAX_BYTES_PER_ROW * number:
        return rows.add(f"{name} rows", "fail", f"expected {number} rows, found {size / 1e6:.1f} MB")
    try:
        table = [line for line in csv.reader(io.StringIO(path.read_bytes().decode("utf-8"), newline="")) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        return rows.add(f"{name} header", "fail", f"expected text, found: {one_line(str(error))}")
    header = table[0] if table else []
    no_header = bool(header) and all(_parse_int(cell) is not None for cell in header)
    body, width = table if no_header else table[1:], max(map(len, table), default=0)
    column = header.index(HEADER) if HEADER in header else width - 1
    cells = [line[column] if column < len(line) else "" for line in body]
    labels = [_parse_int(cell) for cell in cells]
    broken = sorted({cell for cell, label in zip(cells, labels) if label is None})
    unexpected = sorted({label for label in labels if label is not None} - set(allowed))
    found = "no header" if no_header else f"'{one_line(','.join(header), 60)}'" if table else "an empty file"
    rows.check(f"{name} header", HEADER in header, f"expected {HEADER}, found {found}"
               + (" after a byte order mark" if "\ufeff" in "".join(header) else ""))
    rows.check(f"{name} columns", width == 1, f"expected one column, found {width}; pandas writes no index with "
               "index=False")
    rows.check(f"{name} rows", len(body) == number, f"expected {number} rows, one per image, found {len(body)}"
               + (": is the number of images hard-coded?" if len(body) in SUSPICIOUS_COUNTS else ""), len(body))
    rows.check(f"{name} labels", not broken and not unexpected,
               f"expected {_join_first(sorted(allowed))}, found {_join_first(broken or unexpected)}")
    return None if broken or len(labels) != number else np.array(labels, dtype=np.int64)


def check_reconstruction(rows, path, number):
    """Images float64 (number, 28, 28) of an .npz, or None if they cannot be scored; adds Rows. Nothing is unpickled,
    and a far too large file is not read."""
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
        return rows.add(f"{name} key", "fail", f"expected a .npz file of one array, found: {one_line(str(error))}")
    rows.check(f"{name} key", keys == ["data"], f"expected only the key 'data', found {_join_first(map(repr, keys))}")
    if images is None:
        return None
    rows.check(f"{name} shape", images.shape == shape, f"expected {shape}, found {images.shape}"
               + (": is the number of images hard-coded?" if len(images) in SUSPICIOUS_COUNTS else ""))
    rows.check(f"{name} dtype", images.dtype == np.float32, f"expected float32, found {images.dtype}")
    if images.dtype.kind not in "buif" or images.size != np.prod(shape):
        return None
    finite = np.isfinite(images).all()
    span = f"{images.min():g} to {images.max():g}" if finite else "values that are not finite"
    rows.check(f"{name} range", _in_unit_range(images), f"expected 0 to 1, found {span}", span)
    # Values far out of range, such as bytes, are still scored; overflows are not.
    return images.reshape(shape).astype(np.float64) if finite and np.abs(images).max(initial=0) < 1e6 else None


def _in_unit_range(images):
    import vae
    try:
        return vae.pixel_scale(images) == 1
    except ValueError:
        return False


def check_probe(rows, name, report):
    """Adds rows for what probe.py reports; `name` is that of the model file, or None if only the script was probed."""
    classes, parameters, limit = report["classes"], report["parameters"], MAX_PARAMETERS[rows.part]
    reasons = "; ".join(f"{one_line(label, 40)}: {one_line(str(why), 120)}"
                        for label, why in classes.items() if why) or "none"
    rows.check("import", not report["import"], one_line(report["import"]))
    # A class that takes arguments is only a warning: other rows show whether the commands work.
    otherwise = "warn" if "required positional argument" in reasons else "fail"
    if name is None:
        instances = [f"{label}()" for label, why in classes.items() if not why]
        rows.add("model class", "pass" if instances else otherwise, "" if instances else
                 f"expected a torch.nn.Module that can be instantiated without arguments, found {reasons}",
                 instances[-1] if instances else "")
    else:
        rows.check(f"{name} state_dict", not report["file"], "expected a state_dict, which torch.load(..., "
                   f"weights_only=True) reads, {one_line(report['file'])}")
        if not report["file"]:
            loads = one_line(report["loads"], 40)
            rows.add("fresh model loads", "pass" if loads else otherwise, "" if loads else
                     f"expected a class of the script that loads {name} when instantiated without arguments, found "
                     f"{reasons}",
                     f"{loads}()" if loads else "")
        if rows.part == "digits" and report["narrowest"]:
            rows.check("latent", report["narrowest"] <= LATENT_DIM, f"expected a latent of {LATENT_DIM} dimensions, "
                       f"found no weight matrix of {name} with a side below {report['narrowest']}")
    if parameters:
        rows.check("parameters", parameters <= limit, f"expected at most {limit:,}, found {parameters:,}",
                   f"{parameters:,}")
