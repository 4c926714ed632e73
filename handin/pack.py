"""Checks a submission and packs it: SUBMISSION/PART/submission.zip, which unpacks to one folder, named by the entry
numbers, with the script, model_path.txt, group.txt and the report. Whatever is wrong is listed, one line each, and
nothing is written.

The link of the part's model is the first line of model_path_PART.txt or, lacking that, of model_path.txt.
"""
import contextlib
import io
import logging
import re
import sys
import zipfile
from pathlib import Path

from common.errors import InputError, one_line
from common.files import read_bytes, write_files
from handin import forms
from handin.contract import SCRIPTS, WORDS, part_of_script
from handin.grading import Settings, grade_script

EXAMPLE = "python -m handin zip birds"
OTHER = {"birds": "digits", "digits": "birds"}
# Words that the reports of one part have more often than those of the other
TOPICS = {"birds": ("bird", "grad-cam", "convolution"), "digits": ("digit", "autoencoder", "mixture")}
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip knows: the same files give the same bytes


def zip_bytes(folder, files):
    """Bytes of a zip with `files`, {name: bytes}, in one folder, opened again and compared. Raises InputError."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{folder}/{name}", DATE)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16
            archive.writestr(entry, files[name])
    with zipfile.ZipFile(buffer) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    if found != {f"{folder}/{name}": content for name, content in files.items()}:
        raise InputError(f"{folder}: expected the zip to hold {', '.join(sorted(files))}, found it differs when read")
    return buffer.getvalue()


def read_pdf(content):
    """Number of pages and lines of text of a PDF's bytes. Raises ValueError for what is no PDF."""
    import pypdf
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # what it finds is reported in one line of ours
    try:
        pages = pypdf.PdfReader(io.BytesIO(content)).pages
        lines = [" ".join(line.split()) for page in pages for line in page.extract_text().splitlines()]
        return len(pages), [line for line in lines if line]
    except Exception as error:  # corrupt files raise many exception types
        raise ValueError(one_line(error)) from None


def report_problems(part, content, entries, path):
    """One line for each thing wrong with the bytes of a report: its pages, the part that its words are about and,
    where the entry numbers are known, its first line, which names the students."""
    try:
        pages, lines = read_pdf(content)
    except ValueError as error:
        return [f"{path}: expected a PDF, found: {error}; write it anew"]
    problems, first, text = [], lines[0] if lines else "", " ".join(lines).lower()
    if pages > forms.MOST_PAGES:
        problems.append(f"{path}: expected at most {forms.MOST_PAGES} pages, found {pages}; shorten it")
    if entries and sorted(re.findall(forms.ENTRY, first)) != sorted(entries):
        problems.append(f"{path}: expected name and entry number of each student ({' '.join(entries)}) in the first "
                        f"line of text, found '{one_line(first)}'; write the report anew")
    elif entries and not re.search(r"[^\W\d_]{2}", re.sub(forms.ENTRY, "", first)):
        problems.append(f"{path}: expected the students' names in the first line of text, found '{one_line(first)}'; "
                        "`python -m handin report --names \"...\"` writes them")
    counts = {topic: sum(text.count(word) for word in words) for topic, words in TOPICS.items()}
    if counts[OTHER[part]] > 2 * counts[part]:
        problems.append(f"{path}: expected the report of the {part}, found that of the {OTHER[part]}")
    return problems


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
            problems += report_problems(part, content, entries, report)
            files[f"{'_'.join(entries)}.pdf"] = content
    with listing():
        content = files[SCRIPTS[part]] = read_bytes(script, f"the script of the {part}")
        if part_of_script(content) == OTHER[part]:
            raise InputError(f"{script}: expected the script of the {part}, which writes {WORDS[part][0]}, found that "
                             f"of the {OTHER[part]}")
        for row in grade_script(part, script, None, Settings()).rows:
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
    write_files({str(path): zip_bytes(folder, files)})
    print(f"wrote {path}: {folder}/ with {', '.join(sorted(files))}")
    return 0
