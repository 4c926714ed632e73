"""A class: each submission, a zip or a folder, becomes one CSV row, whatever it holds; logs and a page beside the CSV.

The work is done by Dask's workers, on this machine or on those of a cluster: a worker that dies loses nothing but the
submission at hand, which is tried once more."""
import collections
import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import json
import os
import re
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from common.errors import InputError, one_line
from common.files import read_bytes, write_files
from handin import forms, grading
from handin.contract import SCRIPTS
from handin.sandbox import printable

COLUMNS = ("submission", "part", "entries", "names", "result", *grading.SHOWN, "parameters", "train_minutes", "failed",
           "warnings", "graded_by", "log")
PARTS = {name: part for part, name in SCRIPTS.items()}
MOST_MEMBERS, MOST_BYTES, MOST_SCRIPT = 200, 200 * 10 ** 6, 2 * 10 ** 6  # of a zip, unpacked; of a script
MODEL_ENDINGS = (".pth", ".pkl")  # of files that are graded where they lie and count for nothing else
METADATA = "submission_metadata.yml"  # of an export of Gradescope


# ------------------------------------------------------------------------------------------------------ what there is

def find_submissions(folder):
    """{name: path} of the zips below a folder, and of the folders with a script and no zip in them. Raises
    InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of submissions, found "
                         f"{'a file' if folder.exists() else 'nothing there'}")
    zips = {path for path in folder.rglob("*") if path.suffix.lower() == ".zip" and path.is_file()}
    roots = {path.parent for name in PARTS for path in folder.rglob(name)} - {folder}
    found = sorted(zips | {root for root in roots if not any(root in path.parents for path in zips)})
    if not found:
        raise InputError(f"{folder}: expected zips, or folders with bird.py or vae.py, found none")
    return {_safe(path.relative_to(folder).as_posix()): path for path in found}


def read_names(folder):
    """{name of a folder of Gradescope's export: names of those who submitted it}; {} without its metadata. Raises
    InputError."""
    path = folder / METADATA
    if not path.exists():
        return {}
    import yaml
    try:
        found = yaml.safe_load(read_bytes(path, "Gradescope's metadata"))
        return {name: ", ".join(one[":name"] for one in about[":submitters"]) for name, about in found.items()}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected Gradescope's metadata, found: {one_line(error)}") from None


def unpack(path, target):
    """Unpacks a zip into a folder. Raises InputError for what no honest one holds."""
    try:
        with zipfile.ZipFile(str(path)) as archive:
            members = [member for member in archive.infolist() if not member.filename.startswith("__MACOSX/")
                       and not member.filename.endswith((*MODEL_ENDINGS, ".DS_Store"))]
            leaving = [member.filename for member in members if member.filename.startswith("/")
                       or ".." in re.split(r"[/\\]", member.filename)]
            total = sum(member.file_size for member in members)
            if leaving:
                raise ValueError(f"a path that leads out of its folder: {printable(leaving[0])}")
            if len(members) > MOST_MEMBERS or total > MOST_BYTES:
                raise ValueError(f"{len(members)} files of {total / 1e6:.0f} MB, more than {MOST_MEMBERS} or "
                                 f"{MOST_BYTES / 1e6:g} MB")
            archive.extractall(str(target), members)
    except Exception as error:  # corrupt files raise many exception types
        raise InputError(f"zip: expected a zip of plain files in one folder, found: {one_line(error)}") from None


def look(folder, depth):
    """(part, path of the script, entry numbers, what is wrong with the layout and the forms) of a submission that lies
    in `folder`, its script so many folders deeper. Raises InputError."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()
             and path.suffix not in MODEL_ENDINGS]
    scripts = [path for path in files if path.name in PARTS and path.stat().st_size < MOST_SCRIPT]
    if len(scripts) != 1:
        found = ", ".join(path.relative_to(folder).as_posix() for path in (scripts or files)[:5])
        raise InputError(f"zip: expected one script, bird.py or vae.py, found {printable(found) or 'an empty zip'}")
    script, place, entries, problems = scripts[0], scripts[0].parent, [], []
    if len(script.relative_to(folder).parts) != depth + 1:
        problems.append(f"expected one folder, found the script {'deeper' if place != folder else 'at the top'}")
    try:
        if (place / "group.txt").exists():
            entries = forms.read_entries(place / "group.txt")
            problems += forms.entry_problems(entries, "group.txt")
        if (place / "model_path.txt").exists():
            problems += forms.link_problems(forms.read_link(place / "model_path.txt"), "model_path.txt")
    except InputError as error:
        problems.append(str(error).replace(f"{place}/", ""))
    wanted = {script.name, "model_path.txt", "group.txt", f"{'_'.join(entries) or 'ENTRY1_ENTRY2'}.pdf"}
    missing = sorted(wanted - {path.name for path in place.iterdir()})
    more = [path.relative_to(folder).as_posix() for path in files if path.parent != place or path.name not in wanted]
    problems += [f"{what}: {', '.join(names[:5])}" for what, names in (("missing", missing), ("besides", more))
                 if names]
    return PARTS[script.name], script, entries, printable("; ".join(problems), 300)


def find_models(path, part, entries, folder):
    """Paths of the submitted models of a part, [] where they are not all there: in FOLDER/ENTRY/, else in the submitted
    folder, in one named as the zip, or beside a zip that lies alone."""
    places = [Path(folder, entry) for entry in ("_".join(entries), *entries) if entry] if folder else []
    places += [path, *path.rglob("*")] if path.is_dir() else [path.with_suffix("")]
    if path.is_file() and len(list(path.parent.glob("*.zip"))) == 1:
        places.append(path.parent)
    found = ([place / name for name in grading.MODELS[part]] for place in places)
    return next((files for files in found if all(file.is_file() for file in files)), [])


# ------------------------------------------------------------------------------------------------------------- grading

@functools.lru_cache(maxsize=None)
def _load(part, paths):
    return {"birds": grading.load_birds, "digits": grading.load_digits}[part](*paths)


def grade_one(path, paths, settings, quick, models):
    """(dict of some COLUMNS, text of the log) of one submission; `paths` are those of each part's data. Nothing that
    the submission holds raises. This is what a worker of Dask does."""
    line, zipped = {"result": "fail", "failed": ""}, path.is_file()
    with tempfile.TemporaryDirectory(prefix="submission_") as folder:
        try:
            if zipped:
                unpack(path, folder)
            part, script, entries, problems = look(Path(folder).resolve() if zipped else path, int(zipped))
            line.update(part=part, entries=" ".join(map(printable, entries[:2])))
            if not quick and part not in paths:
                return {**line, "result": "skip", "failed": f"no data of the {part} was given"}, ""
            data, found = (None, []) if quick else (_load(part, paths[part]), find_models(path, part, entries, models))
            result = grading.grade_script(part, script, data, settings, found)
        except InputError as error:
            return {**line, "failed": str(error)}, ""
        except Exception as error:  # of hundreds of strangers' files one must not cost the others their grade
            return {**line, "failed": f"not graded: {type(error).__name__}: {one_line(error)}"}, ""
    if problems:
        result.rows.add("submission", "warn", problems)
    line.update({key: f"{value:.4f}" if isinstance(value, float) else value
                 for key, value in result.scores.items() if key in COLUMNS})
    for column, status in (("failed", "fail"), ("warnings", "warn")):
        line[column] = "; ".join(f"{row.check}: {row.detail}" for row in result.rows if row.status == status)
    log = [grading.table(result.rows), *(f"\n$ {run['command']}  (exit code {run['code']}, {run['seconds']} s)\n"
                                         f"{run['output_tail']}" for run in result.runs)]
    return {**line, "result": "fail" if line["failed"] else "pass"}, "\n".join(log) + "\n"


def fingerprint(paths, settings, quick):
    """"full" or "quick" and a hash of what decides a grade: this package, the settings and the data."""
    state = hashlib.sha256(json.dumps(dataclasses.asdict(settings), sort_keys=True).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        state.update(source.read_bytes())
    for part in sorted(paths):
        for place in map(Path, paths[part]):
            for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
                state.update(f"{part} {file} {file.stat().st_size if file.is_file() else ''}\n".encode())
    return f"{'quick' if quick else 'full'} {state.hexdigest()[:12]}"


def in_parallel(work, jobs, scheduler):
    """Yields (name, result of grade_one, or an exception) of {name: its arguments} as each ends."""
    import dask
    from distributed import Client, LocalCluster, as_completed
    once_more = {"distributed.scheduler.allowed-failures": 1, "distributed.scheduler.worker-saturation": 1.0}
    with dask.config.set(once_more), contextlib.ExitStack() as stack:
        if not scheduler:
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
            scheduler = stack.enter_context(LocalCluster(n_workers=jobs, threads_per_worker=1, memory_limit=0,
                                                         dashboard_address=None, silence_logs=50, env=threads))
        try:
            client = stack.enter_context(Client(scheduler, timeout=10))
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(f"--scheduler: expected the address of a Dask scheduler, found: "
                             f"{one_line(error)}") from None
        names = {client.submit(grade_one, *words, pure=False): name for name, words in work.items()}
        for future in as_completed(list(names)):
            found = future.exception() or future.result()
            future.release()  # else the death of the worker that has the result would have it graded again
            yield names.pop(future), found


# --------------------------------------------------------------------------------------------------------- CSV and page

def _safe(value):
    """A cell that no spreadsheet takes for a formula: names and messages come from strangers."""
    text = printable(str(value), 2000)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def read_rows(path):
    """{submission: row} of an earlier call's CSV. Raises InputError."""
    if not path.exists():
        return {}
    reader = csv.DictReader(io.StringIO(read_bytes(path, "a CSV").decode("utf-8", "replace"), newline=""))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(f"{path}: expected the columns of an earlier call ({', '.join(COLUMNS[:4])}, ...), found "
                         "others; name another file")
    return {row["submission"]: row for row in reader}


def page(rows):
    """report.html of a class: how the scores are distributed, what fails how often, each submission with its log."""
    import jinja2
    histograms = {}
    for part, key in (("birds", "average_f1"), ("digits", "average_f1"), ("digits", "ssim")):
        values = [float(row[key]) for row in rows if row["part"] == part and row[key]]
        if values:
            counts = np.histogram(values, 10, (0, 1))[0].tolist()
            histograms[f"{part}: {grading.SHOWN[key]}"] = {"counts": counts, "most": max(counts), "n": len(values),
                                                           "mean": np.mean(values)}
    fails = collections.Counter(check for row in rows
                                for check in set(re.findall(r"(?:^|; )([^:;]+): ", row["failed"])))
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     trim_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("class.html").render(
        rows=rows, histograms=histograms, counts=collections.Counter(row["result"] for row in rows),
        fails=sorted(fails.items(), key=lambda item: (-item[1], item[0])))


def write_class(path, rows, files):
    """Writes the CSV of the rows {submission: row}, report.html beside it, and further files {path: bytes}."""
    text, ordered = io.StringIO(), [rows[name] for name in sorted(rows)]
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(ordered)
    write_files({**files, str(path): text.getvalue().encode(),
                 str(path.with_name("report.html")): page(ordered).encode()})


def grade_class(args, data, settings, say):
    """Grades each submission of args.submissions for which args.csv has no row of the same grader, data and settings
    (a full row stands for a quick one); rewrites the CSV and report.html beside it after each. Returns 0, or 1 when a
    row says "fail". Raises InputError."""
    found, names, rows = find_submissions(args.submissions), read_names(args.submissions), read_rows(args.csv)
    paths = {part: tuple(str(Path(path).resolve()) for path in getattr(args, part)) for part in data}  # for any worker
    key, logs, work = fingerprint(paths, settings, args.quick), args.csv.with_name(f"{args.csv.stem}_logs"), {}
    for name, path in found.items():
        before = rows.get(name, {}).get("graded_by", "")
        if before == key or args.quick and before.startswith("full"):
            say(f"{name}: graded before")
        else:
            work[name] = path.resolve(), paths, settings, args.quick, args.models and args.models.resolve()
    write_class(args.csv, rows, {})
    for name, result in in_parallel(work, args.jobs, args.scheduler) if work else ():
        line, log = ({"result": "fail", "failed": f"not graded: its worker died twice ({type(result).__name__})"}, ""
                     ) if isinstance(result, BaseException) else result
        place = logs / (re.sub(r"[^\w.-]+", "_", name) + ".txt")
        line.update(submission=name, names=next((names[part] for part in Path(name).parts if part in names), ""),
                    graded_by=key, log=f"{logs.name}/{place.name}" if log else "")
        rows[name] = {column: _safe(line.get(column, "")) for column in COLUMNS}
        write_class(args.csv, rows, {str(place): log.encode()} if log else {})
        print(f"{name}: {line['result']}" + (f": {rows[name]['failed']}" if line["failed"] else ""), flush=True)
    return int(any(row["result"] == "fail" for row in rows.values()))
