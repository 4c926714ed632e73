"""Checks a submission and packs it: SUBMISSION/PART/submission.zip, which unpacks to one folder, named by the entry
numbers, with the script, model_path.txt, group.txt and the report. If there are problems, lists them, one per line, and
writes nothing.

The link of the part's model is the first line of model_path_PART.txt or, if that is missing, of model_path.txt.
"""
import contextlib
import sys
import tempfile
import zipfile
from pathlib import Path

from common.errors import InputError
from common.files import read_bytes, write_files, zip_bytes
from handin import forms
from handin.grading.contract import MODELS, PART_STRINGS, SCRIPTS, part_of_script
from handin.grading.fetch import OFFLINE, FetchError, fetch
from handin.grading.script import Settings, grade_script

EXAMPLE = "python -m handin zip birds"
OTHER = {"birds": "digits", "digits": "birds"}


def model_links(part):
    """{path: link} of a part's model, in its own model_path file and in its zip if these exist."""
    own, packed, links = Path(f"model_path_{part}.txt"), Path("submission", part, "submission.zip"), {}
    if own.exists():
        links[own] = forms.read_link(own)
    with contextlib.suppress(OSError, zipfile.BadZipFile, UnicodeDecodeError), zipfile.ZipFile(packed) as archive:
        for name in archive.namelist():
            if name.endswith("/model_path.txt"):
                links[packed] = archive.read(name).decode().strip()
    return links


def check_link(part, path, link):
    """One line on the files behind the link of a model in the file `path`, which a grader would download."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            files = fetch(link, MODELS[part], folder)
        except FetchError as error:
            return f"note: {path}: {'link not checked: ' if OFFLINE in str(error) else ''}{error}"
        return f"{path}: the link gives " + ", ".join(f"{file.name} ({file.stat().st_size / 1e6:.1f} MB)"
                                                       for file in files)


class Collection:
    """The contents of a submission: entry numbers, files {name: bytes}, problems and notes, both lists of lines. If
    there are problems the files are incomplete."""

    def __init__(self, part, script, group, model_path, report):
        self.part, self.entries, self.files, self.problems, self.notes = part, [], {}, [], []
        for add, *paths in ((self.add_group, group), (self.add_link, model_path), (self.add_report, report, group),
                            (self.add_script, script)):
            try:
                add(*paths)
            except InputError as error:
                self.problems.append(str(error))

    def add_group(self, path):
        entries = forms.read_entries(path)
        problems = forms.entry_problems(entries, path)
        self.problems += problems + forms.placeholder_problems(entries, path)
        self.entries = [] if problems else entries
        self.files["group.txt"] = "".join(f"{entry}\n" for entry in self.entries).encode()

    def add_link(self, path):
        own = Path(f"model_path_{self.part}.txt")
        self.link_path = path = path or (own if own.exists() else Path("model_path.txt"))
        link = forms.read_link(path)
        self.problems += forms.link_problems(link, path)
        self.files["model_path.txt"] = f"{link}\n".encode()
        taken = [other for other, other_link in model_links(OTHER[self.part]).items() if other_link == link]
        if taken:
            self.problems.append(f"{path}: expected another link than that of {taken[0]}, found the same; write this "
                                 f"part's into {own}")

    def add_report(self, path, group):
        if not path and not self.entries:  # its name is unknown
            return
        path = path or Path("report", self.part, f"{'_'.join(self.entries)}.pdf")
        content = read_bytes(path, f"the report, which `python -m handin report {self.part}` writes")
        self.problems += forms.report_problems(self.part, content, self.entries, path)
        own = group.with_name(f"observations_{self.part}.txt")
        if own.exists() and own.stat().st_mtime > path.stat().st_mtime:
            self.notes.append(f"note: {own} is newer than {path}; run `python -m handin report {self.part}` again")
        self.files[f"{'_'.join(self.entries)}.pdf"] = content

    def add_script(self, path):
        content = self.files[SCRIPTS[self.part]] = read_bytes(path, f"the {self.part} script")
        if part_of_script(content) == OTHER[self.part]:
            raise InputError(f"{path}: expected the {self.part} script, which writes {PART_STRINGS[self.part][0]}, "
                             f"found the {OTHER[self.part]} script")
        for row in grade_script(self.part, path, None, Settings({}, 0, 8e9)).rows:
            line = f"{path}: {row.check}: {row.detail}"
            self.problems += [f"{line}; see `python -m handin grade`"] * (row.status == "fail")
            self.notes += [f"note: {line}"] * (row.status == "warn")


def add_arguments(parser):
    parser.add_argument("part", choices=SCRIPTS)
    parser.add_argument("--script", type=Path, metavar="FILE", help="default: bird.py or vae.py")
    parser.add_argument("--group", type=Path, default=Path("group.txt"), metavar="FILE", help="default: group.txt")
    parser.add_argument("--model-path", type=Path, metavar="FILE",
                        help="default: model_path_PART.txt or, if missing, model_path.txt")
    parser.add_argument("--report", type=Path, metavar="FILE", help="default: report/PART/ENTRIES.pdf")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="output folder (default: submission/PART)")


def run(args):
    """Packs a submission; returns 0, or 2 if there are problems."""
    script = args.script or Path(SCRIPTS[args.part])
    submission = Collection(args.part, script, args.group, args.model_path, args.report)
    for line in submission.notes:
        print(line)
    for line in submission.problems:
        print(" ".join(line.splitlines()), file=sys.stderr)
    if submission.problems:
        return 2
    path, folder = (args.out or Path("submission", args.part)) / "submission.zip", "_".join(submission.entries)
    files = submission.files
    write_files({str(path): zip_bytes({f"{folder}/{name}": content for name, content in files.items()})})
    print(f"wrote {path}: {folder}/ with {', '.join(sorted(files))}")
    print("Submit your own work, as the honour code requires; this project is a reference to learn from.")
    print(f"checking the link in {submission.link_path} ...", flush=True)
    print(check_link(args.part, submission.link_path, files["model_path.txt"].decode().strip()))
    return 0
