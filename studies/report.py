"""What a study leaves: figures, results.json, and a report.html that opens by itself, without network or script."""
import base64
import dataclasses
import json
import math
import platform
import shlex
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jinja2
import torch

from common.files import read_json, write_files
from common.text import escape_surrogates

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "scikit-learn", "matplotlib", "pillow")


class Table(NamedTuple):
    """A table of a report; the first column names the rows."""
    caption: str
    header: list
    rows: list
    text: bool = False  # all cells are text, also those that begin with a number


class Claim(NamedTuple):
    """A conclusion of the documents, compared with our numbers."""
    published: str
    found: str
    agrees: object    # True, False, or None where the numbers cannot decide
    figure: str = ""  # name of the figure below which `found` stands too


class Section(NamedTuple):
    """A section of a report: paragraphs, then tables, then pictures."""
    title: str
    paragraphs: list = ()
    tables: list = ()
    pictures: list = ()


def comparison_table(caption, columns, rows=None, digits=4):
    """A Table of columns {title: {key: number}} and rows {key: title}, by default the keys of the longest column."""
    rows = rows or {key: key for key in max(columns.values(), key=len)}
    return Table(caption, ["", *columns], [[title, *(number(column.get(key), digits) for column in columns.values())]
                                           for key, title in rows.items()])


def of_variant(study, variant):
    """What a conclusion on a variant begins with: its name, if there are several."""
    return f"{variant}: " if len(study.variants) > 1 else ""


def conclusions(claims, results):
    """The report's section that compares the documents' conclusions with ours."""
    little = results["quick"] or results["data"]["held_out"] < 100
    answers = {True: "yes", False: "no", None: "undecided"}
    return Section("Conclusions", ["This run is too short, or has too few images, to confirm or refute anything: the "
                                   "table is an example."] * little, [Table(
        "What the document says and what the numbers below say.", ["published", "we find", "agrees"],
        [[claim.published, claim.found, answers[None if little else claim.agrees]] for claim in claims], text=True)])


def trend(values):
    """"rises", "falls", "is flat" or "is not monotonic": a sequence of numbers and of {"mean", "sd", "values"}. A step
    counts if it exceeds two standard errors of a difference of means over seeds or, for one seed, 1 % of the largest
    value."""
    means = [value["mean"] if isinstance(value, dict) else value for value in values]
    variances = [value["sd"] ** 2 / len(value["values"]) for value in values  # of the means
                 if isinstance(value, dict) and value["sd"] is not None]
    least = 2 * math.sqrt(2 * sum(variances) / len(values)) if variances else 0.01 * max(map(abs, means))
    steps = [after - before for before, after in zip(means, means[1:])]
    if max(means) - min(means) <= least:
        return "is flat"
    if means[-1] - means[0] > least and min(steps) >= -least:
        return "rises"
    return "falls" if means[0] - means[-1] > least and max(steps) <= least else "is not monotonic"


def join_numbers(values, digits=3):
    """Numbers or {"mean", "sd"}, as "1.23, 4.56"."""
    return ", ".join(number(value["mean"] if isinstance(value, dict) else value, digits) for value in values)


def run_facts(study, how):
    """What results.json says of any study's run: data, settings, seeds, device, versions, command."""
    args, run = study.args, study.run
    train, test = ([split[part] for split in study.splits] for part in (0, 1))
    cuda, skipped = run.device.type == "cuda", [line for images in (*train, *test) for line in images.skipped]
    name = torch.cuda.get_device_name(run.device) if cuda else f"{run.device} ({platform.machine()})"
    return {
        "study": args.study, "quick": args.quick, "variants": list(study.variants),
        "data": {"source": source_names(args.data), "train": sum(map(len, train)),
                 "held_out": sum(map(len, test)), "held_out_by": how, "shape": list(train[0].pixels.shape[1:]),
                 "classes": train[-1].classes, "skipped": len(skipped), "skipped_first": skipped[:20]},
        "settings": dataclasses.asdict(study.settings), "seeds": study.seeds,
        "device": name if run.processes == 1 else f"{run.processes} x {name}", "precision": run.precision,
        "threads": run.threads,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        "command": " ".join(map(shlex.quote, ["python", "-m", "studies", args.study, *args.argv]))}


def source_names(sources):
    """The last part of each path, or as many parts as are needed to distinguish them."""
    for parts in (1, 2, 99):
        names = [escape_surrogates(str(Path(*Path(source).resolve().parts[-parts:]))) for source in sources]
        if len(set(names)) == len(names):
            break
    return names


def run_section(results):
    """The report's section on data, machine and settings, from results.json."""
    def table(caption, heading, found):
        return Table(caption, [heading, "value"], [
            [key.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value]
            for key, value in found.items()])

    facts = {**results["data"], "seconds, this call": round(results["seconds"]),
             **{key: results[key] for key in ("seeds", "device", "threads", "precision", "command")}}
    return Section("The run", [], [table("Data and machine", "", facts),
                                   table("Settings", "setting", results["settings"])])


def number(value, digits=4):
    """A number for a table: 4 significant digits; a dash for None, "NaN" for NaN. Of {"mean", "sd"} both."""
    if value is None:
        return "–"
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, dict):
        whole = isinstance(value["values"][0], int) and len(value["values"]) == 1
        mean = number(value["values"][0] if whole else value["mean"], digits)
        return mean if value["sd"] is None else f"{mean} ± {number(value['sd'], 2)}"
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:#.{digits}g}"
    return f"{value:,.0f}" if "e+" in text else text.rstrip(".")


def percent(value, interval=None):
    """A proportion in per cent, with its interval if given."""
    text = f"{100 * value:.1f} %"
    return text if interval is None else f"{text} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def seeds_text(results):
    """"one seed", or what the numbers of several are."""
    n = len(results["seeds"])
    return "one seed" if n == 1 else f"mean ± standard deviation of {n} seeds"


def features_text(facts):
    """A paragraph on the features of the FID, from metrics.train_feature_extractor."""
    return (f"The FID uses features of a classifier trained here to predict {facts['task']}: accuracy "
            f"{percent(facts['accuracy'], facts['interval'])} on {facts['images']:,} held-out images (95 % interval; "
            f"guessing: {percent(facts['guessing'])}). It is comparable only within this report."
            + " The accuracy is less than halfway between guessing and 100 %, so this FID is not reliable."
            * facts["weak"])


def write_study(folder, title, subtitle, sections, results, start, keep_frames=False):
    """Writes FOLDER/figures/, results.json and report.html and removes figures that an earlier run left; returns a line
    on that. With `keep_frames` each frame of the GIFs too, in FOLDER/frames/. Raises InputError."""
    results["seconds"], folder = time.monotonic() - start, Path(folder)
    pictures = [picture for section in sections for picture in section.pictures]
    drawn = {f"figures/{picture.name}.{picture.kind}": picture.content for picture in pictures}
    drawn.update({f"frames/{picture.name}/{i:03}.png": frame for picture in pictures
                  for i, frame in enumerate(picture.frames) if keep_frames})
    results["files"] = list(drawn)
    numbers = json.loads(json.dumps(results), parse_constant=lambda name: None)  # JSON has no NaN
    sections = [*sections, run_section(results)]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    page = environment.get_template("report.html").render(
        title=title, sections=sections,
        lead=subtitle + (", the quick version of the study." if results["quick"] else "."),
        foot=", ".join(f"{name} {version}" for name, version in results["versions"].items()))
    results_file = folder / "results.json"
    stale = read_json(results_file, "results of a study").get("files", []) if results_file.exists() else []
    write_files({
        **{str(folder / name): content for name, content in drawn.items()},
        str(results_file): (json.dumps(numbers, indent=1, allow_nan=False) + "\n").encode(),
        str(folder / "report.html"): page.encode()})
    for name in set(stale) - set(drawn):
        if name.startswith(("figures/", "frames/")) and ".." not in name:
            (folder / name).unlink(missing_ok=True)
    skipped = f"; {results['data']['skipped']} images skipped" if results["data"]["skipped"] else ""
    return f"wrote {escape_surrogates(str(folder))}/report.html, results.json and {len(pictures)} figures{skipped}"
