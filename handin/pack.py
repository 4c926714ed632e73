"""Checks a submission and packs it: SUBMISSION/PART/submission.zip, which unpacks to one folder, named by the entry
numbers, with the script, model_path.txt, group.txt and the report. Whatever is wrong is listed, one line each, and
nothing is written.

The link of the part's model is the first line of model_path_PART.txt or, lacking that, of model_path.txt.
"""
import contextlib
import sys
import tempfile
import zipfile
from pathlib import Path

from common.errors import InputError
from common.files import read_bytes, write_files, zip_bytes
from handin import forms
from handin.grading.contract import MODELS, SCRIPTS, WORDS, part_of_script
from handin.grading.fetch import OFFLINE, FetchError, fetch
from handin.grading.script import Settings, grade_script

EXAMPLE = "python -m handin zip birds"
OTHER = {"birds": "digits", "digits": "birds"}


def links_of(part):
    """{where: link} of a part's model: in its own model_path file and in its zip, where these exist."""
    own, packed, found = Path(f"model_path_{part}.txt"), Path("submission", part, "submission.zip"), {}
    if own.exists():
        found[own] = forms.read_link(own)
    with contextlib.suppress(OSError, zipfile.BadZipFile, UnicodeDecodeError), zipfile.ZipFile(packed) as archive:
        for name in archive.namelist():
            if name.endswith("/model_path.txt"):
                found[packed] = archive.read(name).decode().strip()
    return found


def try_link(part, link):
    """One line on what the link of a model gives, which a grader would download."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = fetch(link, MODELS[part], folder)
        except FetchError as error:
            return f"note: model_path.txt: {'link not checked: ' if OFFLINE in str(error) else ''}{error}"
        return "model_path.txt: the link gives " + ", ".join(f"{file.name} ({file.stat().st_size / 1e6:.1f} MB)"
                                                             for file in files)


def collect(part, script, group, model_path, report):
    """What a submission is made of: its entry numbers, {name: bytes}, problems and notes, each a list of lines. Where
    there are problems the files are not complete."""
    files, problems, notes, entries = {}, [], [], []

    @contextlib.contextmanager
    def listing():
        try:
            yield
        except InputError as error:
            problems.append(str(error))

    with listing():
        found = forms.read_entries(group)
        wrong = forms.entry_problems(found, group)
        problems += wrong + forms.sample_problems(found, group)
        entries = [] if wrong else found
        files["group.txt"] = "".join(f"{entry}\n" for entry in entries).encode()
    with listing():
        own = Path(f"model_path_{part}.txt")
        path = model_path or (own if own.exists() else Path("model_path.txt"))
        link = forms.read_link(path)
        problems += forms.link_problems(link, path)
        files["model_path.txt"] = f"{link}\n".encode()
        taken = [where for where, other in links_of(OTHER[part]).items() if other == link]
        if taken:
            problems.append(f"{path}: expected another link than that of {taken[0]}, found the same; write this part's "
                            f"into {own}")
    with listing():
        if report or entries:  # else its name is not known
            report = report or Path("report", part, f"{'_'.join(entries)}.pdf")
            content = read_bytes(report, f"the report, which `python -m handin report {part}` writes")
            problems += forms.report_problems(part, content, entries, report)
            own = group.with_name(f"observations_{part}.txt")
            if own.exists() and own.stat().st_mtime > report.stat().st_mtime:
                notes.append(f"note: {own} is newer than {report}; `python -m handin report {part}` lays it out again")
            files[f"{'_'.join(entries)}.pdf"] = content
    with listing():
        content = files[SCRIPTS[part]] = read_bytes(script, f"the script of the {part}")
        if part_of_script(content) == OTHER[part]:
            raise InputError(f"{script}: expected the script of the {part}, which writes {WORDS[part][0]}, found that "
                             f"of the {OTHER[part]}")
        for row in grade_script(part, script, None, Settings({}, 0, 8e9)).rows:
            line = f"{script}: {row.check}: {row.detail}"
            problems += [f"{line}; `python -m handin grade` tells more"] * (row.status == "fail")
            notes += [f"note: {line}"] * (row.status == "warn")
    return entries, files, problems, notes


def add_arguments(parser):
    parser.add_argument("part", choices=SCRIPTS)
    parser.add_argument("--script", type=Path, metavar="FILE", help="default: bird.py or vae.py")
    parser.add_argument("--group", type=Path, default=Path("group.txt"), metavar="FILE", help="default: group.txt")
    parser.add_argument("--model-path", type=Path, metavar="FILE",
                        help="default: model_path_PART.txt or, lacking that, model_path.txt")
    parser.add_argument("--report", type=Path, metavar="FILE", help="default: report/PART/ENTRIES.pdf")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for submission.zip (default: submission/PART)")


def run(args):
    """Packs a submission; returns 0, or 2 when something is wrong with it."""
    script = args.script or Path(SCRIPTS[args.part])
    entries, files, problems, notes = collect(args.part, script, args.group, args.model_path, args.report)
    for line in notes:
        print(line)
    for line in problems:
        print(" ".join(line.splitlines()), file=sys.stderr)
    if problems:
        return 2
    path, folder = (args.out or Path("submission", args.part)) / "submission.zip", "_".join(entries)
    write_files({str(path): zip_bytes({f"{folder}/{name}": content for name, content in files.items()})})
    print(f"wrote {path}: {folder}/ with {', '.join(sorted(files))}")
    print("Hand in your own work, as the honour code says: this project is a reference to learn from.")
    print("checking the link of model_path.txt ...", flush=True)
    print(try_link(args.part, files["model_path.txt"].decode().strip()))
    return 0
