"""Builds the report of each part, a PDF of at most 3 pages, from the figures and the numbers next to them.

The layout is a Typst template, handin/report/report.typ, or a copy of it with your own text (--template). Every number
comes from FIGURES/numbers.json and FIGURES/ablation.json; the first line has the name and entry number of each student,
from --names or names.txt and from group.txt. Your own observations, plain text with an empty line between paragraphs,
come from observations_PART.txt. The report is written to REPORT/PART/ENTRIES.pdf.
"""
import dataclasses
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.files import read_bytes, read_json, write_files
from common.text import one_line
from handin import forms
from handin.report import results, sentences

EXAMPLE = 'python -m handin report both --names "Asha Rao, Ravi Iyer"'
TEMPLATE = Path(__file__).resolve().parent / "report.typ"
TITLES = {"birds": "Birds: a convolutional network from scratch",
          "digits": "Digits: a variational autoencoder and a Gaussian mixture"}
FIGURES = {"birds": ("birds_learning_curves", "birds_confusion", "birds_gradcam"),
           "digits": ("digits_learning_curves", "digits_reconstructions", "digits_manifold", "digits_latents",
                      "digits_mixture", "digits_ssim")}
SCALES = [percent / 100 for percent in range(100, 45, -5)]  # of the figures; smaller ones are unreadable
SCALE_COST = 1.3  # in blank pages, of scaling the figures from full size to zero
LAST_PAGE_WEIGHT = 1 / 3  # weight of blank rows on the last page, where they matter less
COLUMN_PX = 690  # a wider figure, at 200 dpi, is as wide as the page


def read_ablation(folder):
    """Content of ablation.json, or None if it is missing or has nothing to compare yet. Raises InputError."""
    path, expected = Path(folder, "ablation.json"), "the table that `python -m handin ablate TRAIN` writes"
    found = read_json(path, expected) if path.exists() else {}
    keys = ("variant", "seeds", "accuracy", "accuracy_sd", "f1", "f1_sd")
    try:
        rows = [{key: row[key] for key in keys} for row in found.get("rows", [])]
        if len(rows) < 2:
            return None
        return {**{key: found[key] for key in ("epochs", "image_size", "photos")}, "rows": rows}
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: expected {expected}, found one without {one_line(error)}; move it") from None


def read_figures(folder, part):
    """{name: (bytes of the PNG, whether it is as wide as the page)}. Raises InputError that names the command that
    draws a missing figure."""
    from PIL import Image
    found = {}
    for name in FIGURES[part]:
        path, expected = Path(folder, name + ".png"), f"a figure that `{results.COMMANDS[part]}` draws"
        content = read_bytes(path, expected)
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                found[name] = content, image.width > COLUMN_PX
        except Exception as error:  # corrupt files raise many exception types
            raise InputError(f"{path}: expected {expected}, found: {one_line(error)}") from None
    return found


def compile_typst(folder, **kwargs):
    """Compiles FOLDER/main.typ: returns the bytes of a PDF or, as `kwargs` say, other output."""
    import typst
    return typst.compile(str(folder / "main.typ"), root=str(folder), ignore_system_fonts=True, **kwargs)


def measure_pages(folder):
    """(number of pages, weighted number of blank pages, from their blank rows) of FOLDER/main.typ."""
    from PIL import Image
    pages, blank = compile_typst(folder, format="png", ppi=4), 0  # a row of px is a line of text
    pages = pages if isinstance(pages, list) else [pages]
    for page in pages:
        with Image.open(io.BytesIO(page)) as image:
            columns = np.array_split(np.asarray(image.convert("L")), 2, axis=1)
        blank += np.mean([column.min(1) >= 250 for column in columns]) * (LAST_PAGE_WEIGHT if page is pages[-1] else 1)
    return len(pages), blank


def build_report(part, folder, authors, template=TEMPLATE, observations=""):
    """Bytes of the report of one part from the figures and numbers in `folder`, its first line the authors ("Name
    (ENTRY)"), the same for the same input: on at most 3 pages, with large figures and little blank space. Raises
    InputError."""
    pictures, ablation = read_figures(folder, part), read_ablation(folder) if part == "birds" else None
    found, path = results.read_results(folder, part), Path(folder, "numbers.json")
    try:
        words = sentences.bird_sentences(found, ablation) if part == "birds" else sentences.digit_sentences(found)
    except (ArithmeticError, LookupError, TypeError, ValueError, StopIteration) as error:
        raise InputError(f"{path}: expected valid numbers for {part}, found: {one_line(error)}") from None
    data = {"part": part, "title": TITLES[part], "authors": authors, "results": dataclasses.asdict(found),
            "ablation": ablation, "words": words, "observations": observations,
            "no-observations": f"{forms.NO_OBSERVATIONS}: write them into observations_{part}.txt.",
            "not-measured": f"{forms.NOT_MEASURED}: python -m handin ablate measures it.",
            "wide": {name: wide for name, (_, wide) in pictures.items()}}
    with tempfile.TemporaryDirectory() as temporary:
        build, fitting = Path(temporary), []
        shutil.copy(str(template), str(build / "main.typ"))
        for name, (content, _) in pictures.items():
            (build / f"{name}.png").write_bytes(content)
        try:
            for scale in SCALES:
                (build / "data.json").write_text(json.dumps({**data, "scale": scale}), encoding="utf-8")
                pages, blank = measure_pages(build)
                if pages <= forms.MAX_PAGES:
                    fitting.append((blank + SCALE_COST * (1 - scale), scale))
            if fitting:
                (build / "data.json").write_text(json.dumps({**data, "scale": min(fitting)[1]}), encoding="utf-8")
                return compile_typst(build)
        except Exception as error:  # typst's errors have no class of their own
            raise InputError(f"{template}: expected a template for the {part} report, found: "
                             f"{one_line(error)}") from None
    raise InputError(f"{part} report: expected at most {forms.MAX_PAGES} pages, found {pages} even with "
                     f"figures at {SCALES[-1]:.0%} of their size; shorten observations_{part}.txt or the template")


def add_arguments(parser):
    parser.add_argument("part", nargs="?", choices=(*FIGURES, "both"), default="both", help="default: both")
    parser.add_argument("--figures", type=Path, default=Path("figures"), metavar="FOLDER", help="default: figures")
    parser.add_argument("--group", type=Path, default=Path("group.txt"), metavar="FILE", help="default: group.txt")
    parser.add_argument("--names", metavar="NAMES", help="names of the students, separated by commas, in the order of "
                        "the entry numbers (default: the lines of names.txt next to group.txt)")
    parser.add_argument("--template", type=Path, default=TEMPLATE, metavar="FILE",
                        help="default: handin/report/report.typ")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER", help="default: report")


def run(args):
    """Writes the reports; returns 0."""
    entries = forms.read_entries(args.group)
    for problem in forms.entry_problems(entries, args.group):
        raise InputError(problem)
    read_bytes(args.template, "a Typst template")
    authors = forms.authors(entries, args.names, args.group)
    parts = tuple(FIGURES) if args.part == "both" else (args.part,)
    observations = {part: forms.read_observations(args.group.with_name(f"observations_{part}.txt")) for part in parts}
    reports = {str(args.out / part / f"{'_'.join(entries)}.pdf"):
               build_report(part, args.figures, authors, args.template, observations[part]) for part in parts}
    notes = [f"{problem}; `zip` will reject it" for problem in forms.placeholder_problems(entries, args.group)]
    if authors == entries:
        notes.append("the first line has no names; give --names or write a names.txt; `zip` will reject it")
    notes += [f"observations_{part}.txt is missing or empty; `zip` will reject the report" for part in parts
              if not observations[part]]
    if "birds" in parts and read_ablation(args.figures) is None:
        notes.append(f"{args.figures / 'ablation.json'} is missing or has one row, so the effect of model optimisation "
                     "is missing; run `python -m handin ablate TRAIN`; `zip` will reject the report")
    write_files(reports)
    print("\n".join([*(f"note: {note}" for note in notes), *(f"wrote {path}" for path in reports)]))
    return 0
