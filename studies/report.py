"""What a study leaves: figures, results.json, and a report.html that opens by itself, without network or script."""
import base64
import dataclasses
import json
import platform
import shlex
import time
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jinja2
import torch

from common.files import write_files
from studies import printable

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "numpy", "scikit-learn", "matplotlib", "pillow")


class Table(NamedTuple):
    """A table of a report; the first column names the rows."""
    caption: str
    header: list
    rows: list


class Section(NamedTuple):
    """A section of a report: paragraphs, then tables, then pictures."""
    title: str
    paragraphs: list = ()
    tables: list = ()
    pictures: list = ()


def compared(caption, columns, rows=None, digits=4):
    """A Table of columns {title: {key: number}} and rows {key: title}, by default the keys of the longest column."""
    rows = rows or {key: key for key in max(columns.values(), key=len)}
    return Table(caption, ["", *columns], [[title, *(number(column.get(key), digits) for column in columns.values())]
                                           for key, title in rows.items()])


def run_facts(study, how):
    """What results.json says of any study's run: data, settings, seeds, device, versions, command."""
    args, run, train, test = study.args, study.run, study.train, study.test
    cuda, skipped = run.device.type == "cuda", [*train.skipped, *test.skipped]
    name = torch.cuda.get_device_name(run.device) if cuda else f"{run.device} ({platform.machine()})"
    return {
        "study": args.study, "quick": args.quick, "variants": list(study.variants),
        "data": {"source": [printable(Path(source).name or source) for source in args.data], "train": len(train),
                 "held_out": len(test), "held_out_by": how, "shape": list(train.pixels.shape[1:]),
                 "classes": train.classes, "skipped": len(skipped), "skipped_first": skipped[:20]},
        "settings": dataclasses.asdict(study.settings), "seeds": study.seeds,
        "device": name if run.processes == 1 else f"{run.processes} x {name}", "precision": run.precision,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
        "command": " ".join(map(shlex.quote, ["python", "-m", "studies", args.study, *args.words]))}


def run_section(results):
    """The report's section on data, machine and settings, from results.json."""
    def table(caption, heading, found):
        return Table(caption, [heading, "value"], [
            [key.replace("_", " "), ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value]
            for key, value in found.items()])

    about = {**results["data"], "seconds, this call": round(results["seconds"]),
             **{key: results[key] for key in ("seeds", "device", "precision", "command")}}
    return Section("The run", [], [table("Data and machine", "", about),
                                   table("Settings", "setting", results["settings"])])


def number(value, digits=4):
    """A number for a table: 4 significant digits; a dash for None. Of {"mean", "sd"} both."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        mean = number(value["mean"], digits)
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


def features_text(about):
    """A paragraph on the features of the FID, from metrics.train_feature_extractor."""
    return (f"FID by a classifier trained here to tell {about['task']}: accuracy "
            f"{percent(about['accuracy'], about['interval'])} on {about['images']:,} held-out images (95 % interval), "
            f"guessing {percent(about['guessing'])}. Comparable within this report alone."
            + " The accuracy is low, so this FID decides little." * about["weak"])


def write_study(folder, title, lead, sections, results, began):
    """Writes FOLDER/figures/, results.json and report.html, all or none; returns a line on that. Raises InputError."""
    results["seconds"], folder = time.monotonic() - began, Path(folder)
    numbers = json.loads(json.dumps(results), parse_constant=lambda name: None)  # JSON has no NaN
    sections = [*sections, run_section(results)]
    pictures = [picture for section in sections for picture in section.pictures]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     trim_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    page = environment.get_template("report.html").render(
        title=title, lead=lead + (", the quick version of the study." if results["quick"] else "."), sections=sections,
        foot=", ".join(f"{name} {version}" for name, version in results["versions"].items()))
    write_files({
        **{str(folder / "figures" / f"{picture.name}.{picture.kind}"): picture.content for picture in pictures},
        str(folder / "results.json"): (json.dumps(numbers, indent=1, allow_nan=False) + "\n").encode(),
        str(folder / "report.html"): page.encode()})
    skipped = f"; {results['data']['skipped']} images skipped" if results["data"]["skipped"] else ""
    return f"wrote {printable(str(folder))}/report.html, results.json and {len(pictures)} figures{skipped}"
