"""Checks a submission and packs it: SUBMISSION/PART/submission.zip, which unpacks to one folder, named by the entry
numbers, with the script, model_path.txt, group.txt and the report. Whatever is wrong is listed, one line each, and
nothing is written.

The link of the part's model is the first line of model_path_PART.txt or, lacking that, of model_path.txt.
"""
import io
import sys
import zipfile
from pathlib import Path

from common.errors import InputError
from common.files import read_bytes, write_files
from handin import forms
from handin.contract import WORDS, part_of_script

EXAMPLE = "python -m handin zip birds"
SCRIPTS = {"birds": "bird.py", "digits": "vae.py"}
OTHER = {"birds": "digits", "digits": "birds"}
# Words that the reports of one part have more often than those of the other
TOPICS = {"birds": ("bird", "grad-cam", "convolution"), "digits": ("digit", "autoencoder", "mixture")}
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip knows: the same files give the same bytes


def zip_bytes(folder, files):
    """Bytes of a zip with `files`, {name: bytes}, in one folder; they depend on nothing else. It is opened again and
    compared. Raises InputError."""
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


def part_of_report(content):
    """The part that the words of a report's PDF are about, "birds" or "digits", or None where that is not clear."""
    try:
        text = " ".join(forms.read_pdf(content)[1]).lower()
    except ValueError:
        return None
    counts = {part: sum(text.count(word) for word in words) for part, words in TOPICS.items()}
    most, least = sorted(counts, key=counts.get, reverse=True)
    return most if counts[most] > 2 * counts[least] else None


def link_of(part, given=None):
    """(path, first line) of the part's model_path.txt. Raises InputError."""
    own = Path(f"model_path_{part}.txt")
    path = given or (own if own.exists() else Path("model_path.txt"))
    return path, (forms.read_lines(path, "the link of the model on the first line") or [""])[0]


def collect(part, script, group, model_path, report):
    """What a submission is made of: its entry numbers, {name: bytes}, problems and notes, each a list of lines. Where
    there are problems the files are not complete."""
    files, problems, notes, entries = {}, [], [], []

    def trying(step, *arguments):
        try:
            return step(*arguments)
        except InputError as error:
            problems.append(str(error))
            return None

    found = trying(forms.read_entries, group)
    if found is not None:
        wrong = forms.entry_problems(found, group)
        entries = [] if wrong else found
        problems += wrong + forms.sample_problems(found, group)
        files["group.txt"] = "".join(f"{entry}\n" for entry in found).encode()
    link = trying(link_of, part, model_path)
    if link is not None:
        problems += forms.link_problems(link[1], link[0])
        files["model_path.txt"] = f"{link[1]}\n".encode()
        with_other = Path(f"model_path_{OTHER[part]}.txt")
        if model_path is None and with_other.exists() and link_of(OTHER[part])[1] == link[1]:
            problems.append(f"{link[0]}: expected another link than that of {with_other}, found the same; each part "
                            "has a model of its own")
    packed = Path("submission", OTHER[part], "submission.zip")
    if link is not None and not problems and packed.exists() and _link_in(packed) == link[1]:
        problems.append(f"{link[0]}: expected another link than that in {packed}, found the same; write this part's "
                        f"into model_path_{part}.txt")
    if report is not None or entries:  # else its name is not known
        report = report or Path("report", part, f"{forms.file_name(entries)}.pdf")
        content = trying(read_bytes, report, f"the report, which `python -m handin report {part}` writes")
        if content is not None:
            problems += forms.report_problems(content, entries, report)
            if part_of_report(content) == OTHER[part]:
                problems.append(f"{report}: expected the report of the {part}, found that of the {OTHER[part]}")
            files[f"{forms.file_name(entries)}.pdf"] = content
    content = trying(read_bytes, script, f"the script of the {part}")
    if content is not None:
        files[SCRIPTS[part]] = content
        if part_of_script(content) == OTHER[part]:
            problems.append(f"{script}: expected the script of the {part}, which writes {WORDS[part][0]}, found that "
                            f"of the {OTHER[part]}")
        else:
            from handin.grading import quick_check
            for row in trying(quick_check, script, part) or []:
                line = f"{script}: {row.check}: {row.detail}"
                problems += [f"{line}; `python -m handin grade` tells more"] * (row.status == "fail")
                notes += [f"note: {line}"] * (row.status == "warn")
    return entries, files, problems, notes


def _link_in(packed):
    """The link in an earlier zip, or None."""
    try:
        with zipfile.ZipFile(packed) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/model_path.txt"))
            return archive.read(name).decode().strip()
    except (OSError, zipfile.BadZipFile, StopIteration, UnicodeDecodeError):
        return None


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
    path, folder = (args.out or Path("submission", args.part)) / "submission.zip", forms.file_name(entries)
    write_files({str(path): zip_bytes(folder, files)})
    print(f"wrote {path}: {folder}/ with {', '.join(sorted(files))}")
    return 0
