"""What a study leaves behind: figures, results.json, and a report.html that opens by itself, without network or script.
"""
import base64
import dataclasses
import html
import json
import platform
import shlex
import time
from pathlib import Path
from typing import NamedTuple

import bird
from common.errors import InputError, bad_input_of, one_line
from studies import metrics, printable

PACKAGES = ("torch", "torchvision", "lightning-fabric", "torchmetrics", "numpy", "scikit-learn", "matplotlib", "pillow")

STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1c1d20; --soft: #5b5f66; --line: #d9dade; --card: #f3f3f1;
  --link: #0b62a8; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e7e7e4; --soft: #a3a7ae; --line: #383b41;
  --card: #1f2226; --link: #7cbcf0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.25rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.5rem; padding-top: 0.75rem; border-top: 1px solid var(--line); }
p { max-width: 44rem; margin: 0.6rem 0; }
.soft, figcaption, caption { color: var(--soft); font-size: 0.9rem; }
.box { overflow-x: auto; margin: 1rem 0; border: 1px solid var(--line); border-radius: 6px; }
.box:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 0.6rem 0.75rem; }
th, td { padding: 0.4rem 0.75rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: normal; }
thead th { background: var(--card); }
.words { text-align: left; }
td.long { white-space: normal; min-width: 14rem; overflow-wrap: anywhere; }
figure { margin: 1.25rem 0; }
figure .box { margin: 0; background: #fff; }
figure img { display: block; max-width: 100%; height: auto; padding: 6px; }
@media (max-width: 40rem) {
  th:first-child { white-space: normal; min-width: 8rem; }
  th, td { padding: 0.35rem 0.5rem; }
  figure img.wide { max-width: none; width: 38rem; }
}
figcaption { margin-top: 0.4rem; max-width: 44rem; }
code { background: var(--card); padding: 0.1em 0.3em; border-radius: 4px; font-size: 0.88em; overflow-wrap: anywhere; }
"""


class Table(NamedTuple):
    """A table of a report; the first column names the rows. Cells that are words are set as text."""
    caption: str
    header: list
    rows: list


class Section(NamedTuple):
    """A section of a report: paragraphs, then tables, then pictures."""
    title: str
    paragraphs: list
    tables: list = ()
    pictures: list = ()


def versions():
    """{name: version} of Python and of the packages that the numbers depend on."""
    from importlib import metadata
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def device_name(fabric):
    """What trained, in words, such as "cpu (x86_64)" or "2 x NVIDIA H100"."""
    import torch
    device = fabric.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"
    return name if fabric.world_size == 1 else f"{fabric.world_size} x {name}"


def run_facts(args, bench, settings, train, test, how):
    """What results.json says of any study's run: data, settings (a dataclass), seeds, device, versions, command."""
    return {"study": args.study, "quick": args.quick, "data": describe_data(args.data, train, test, how),
            "settings": dataclasses.asdict(settings), "seed": args.seed,
            "seeds": list(range(args.seed, args.seed + args.seeds)), "device": device_name(bench.fabric),
            "precision": args.precision, "versions": versions(),
            "command": " ".join(map(shlex.quote, ["python", "-m", "studies", args.study, *args.words]))}


def run_section(results):
    """The report's section on data, machine and settings, from results.json, which has "seconds" too."""
    about = results["data"]
    shown = {"data": ", ".join(about["source"]), "training images": number(about["train"]),
             "held-out images": number(about["held_out"]), "held out by": about["held_out_by"],
             "images skipped": number(about["skipped"]),
             "classes": ", ".join(about["classes"]) or "none",
             "seeds": ", ".join(map(str, results["seeds"])), "device": results["device"],
             "precision": results["precision"], "whole study, this call": f"{results['seconds']:.0f} s",
             "command": results["command"]}
    settings = [[key.replace("_", " "), _plain(value)] for key, value in results["settings"].items()]
    near = about["near_copies"]
    return Section("The run", [
        f"{near['held_out']:,} of {about['held_out']:,} held-out images are nearly one that was trained on: the root "
        f"mean square of their difference is at most {near['within']}, with pixels in [0, 1], and at most half the "
        "standard deviation of the image's own pixels."], [
        Table("Data and machine", ["", "value"], [list(row) for row in shown.items()]),
        Table("Settings", ["setting", "value"], settings)])


def _plain(value):
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def describe_data(source, train, test, how):
    """What results.json says of the data: n, classes, shape, how held out, what was skipped, how many held-out images
    are nearly a training image."""
    skipped, names = train.skipped + test.skipped, [Path(str(one)).name or str(one) for one in source]
    return {"source": list(map(printable, names)), "train": len(train), "held_out": len(test), "held_out_by": how,
            "shape": list(train.pixels.shape[1:]), "classes": train.classes, "skipped": len(skipped),
            "skipped_first": list(map(printable, skipped[:20])),
            "near_copies": {"held_out": metrics.near_copies(train.pixels, test.pixels), "within": metrics.NEAR}}


def weak_features(judge, guessing, undecided):
    """A sentence where the classifier behind the FID is nearer to guessing than to always right: what is `undecided`
    then. Else nothing. `judge` is from metrics.train_feature_net."""
    if judge["accuracy"] >= (1 + guessing) / 2:
        return ""
    return f" The classifier's held-out share is less than halfway from guessing to always right: {undecided}."


def number(value, digits=4):
    """A number for a table: 4 significant digits; a dash for None. Of {"mean", "sd"} both."""
    if isinstance(value, dict):
        mean, sd = number(value["mean"], digits), value["sd"]
        return mean if sd is None else f"{mean} ± {number(sd, 2)}"
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    text = f"{value:#.{digits}g}"
    return f"{value:,.0f}" if "e+" in text else text.rstrip(".")


def share(value, interval=None):
    """A proportion in per cent, with its interval if given."""
    text = f"{100 * value:.1f} %"
    return text if interval is None else f"{text} ({100 * interval[0]:.1f} to {100 * interval[1]:.1f})"


def html_page(title, lead, sections, foot=""):
    """The whole report as one HTML document: pictures are data URIs, nothing is loaded from elsewhere."""
    body = "\n".join(_section(section) for section in sections)
    foot = f"<footer><p class='soft'>{html.escape(foot)}</p></footer>" if foot else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p></header>
<main>
{body}
</main>
{foot}
</body>
</html>
"""


def _section(section):
    parts = [f"<section><h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
    parts += [_table(table) for table in section.tables]
    parts += [_picture(picture) for picture in section.pictures]
    return "\n".join(parts) + "</section>"


def _table(table):
    words = {i for row in table.rows for i, cell in enumerate(row) if str(cell)[:1].isalpha()}
    head = "".join(f"<th scope='col'{_text('', i in words)}>{html.escape(str(cell))}</th>"
                   for i, cell in enumerate(table.header))
    rows = []
    for first, *rest in table.rows:
        cells = [f"<th scope='row'>{html.escape(str(first))}</th>"]
        cells += [f"<td{_text(cell, i in words)}>{html.escape(str(cell))}</td>" for i, cell in enumerate(rest, 1)]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = html.escape(table.caption)
    return (f"<div class='box' tabindex='0' role='region' aria-label='{caption}'><table><caption>{caption}</caption>"
            f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>")


def _text(cell, words):
    kinds = ["words"] * words + ["long"] * (len(str(cell)) > 24)
    return f" class='{' '.join(kinds)}'" if kinds else ""


def _picture(picture):
    uri = f"data:image/{picture.kind};base64,{base64.b64encode(picture.content).decode()}"
    alt, shape = html.escape(picture.alt, quote=True), picture.shape
    wide = " class='wide'" if shape[0] > 700 else ""  # its lettering would be too small on a narrow screen
    size = f"width='{shape[0]}' height='{shape[1]}'"
    return (f"<figure><div class='box' tabindex='0' role='group' aria-label='figure'>"
            f"<img src='{uri}' alt='{alt}'{wide} {size}></div>"
            f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>")


def write(folder, title, lead, sections, results):
    """Writes FOLDER/figures/NAME.png or .gif, results.json and report.html, all or none; returns their paths. Raises
    InputError."""
    folder = Path(folder)
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder for the results, found: {one_line(error)}") from None
    payloads = {str(folder / "figures" / f"{picture.name}.{picture.kind}"): picture.content
                for section in sections for picture in section.pictures}
    payloads[str(folder / "results.json")] = (json.dumps(results, indent=1, allow_nan=False) + "\n").encode()
    foot = ", ".join(f"{name} {version}" for name, version in results["versions"].items() if version)
    payloads[str(folder / "report.html")] = html_page(title, lead, sections, foot).encode()
    with bad_input_of(bird):
        bird.write_files(payloads)
    return list(payloads)


def write_study(folder, title, lead, sections, pictures, results, began):
    """`write` for a study that began at that time.monotonic(): sections(results, pictures) gives the Sections, once the
    results have their "seconds". Returns a line that says what was written. Raises InputError."""
    results["seconds"] = time.monotonic() - began
    lead += ", the quick version of the study." if results["quick"] else "."
    write(folder, title, lead, sections(results, pictures), results)
    skipped = f"; {results['data']['skipped']} images skipped" if results["data"]["skipped"] else ""
    return f"wrote {printable(str(folder))}/report.html, results.json and {len(pictures)} figures{skipped}"
