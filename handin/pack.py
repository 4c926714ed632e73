"""Checks a submission and packs it: a zip that unpacks to one folder, named by the entry numbers, with the script,
model_path.txt, group.txt and the report. Whatever is wrong is listed, one line each, and nothing is written."""
import io
import sys
import zipfile
from pathlib import Path

from common.errors import InputError, bad_input_of
from handin import forms

EXAMPLE = "python -m handin zip birds --script bird.py --report report/birds/2021CS10123_2021CS10124.pdf"
SCRIPTS = {"birds": "bird.py", "digits": "vae.py"}
DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip knows: the same files give the same bytes


def zip_bytes(folder, files):
    """Bytes of a zip with `files`, {name: bytes}, in one folder; they depend on nothing else."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{folder}/{name}", DATE)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def script_rows(path, part):
    """What grade's quick check finds: a list of (check, status, one line)."""
    from handin.grade import quick_check
    rows = [row if isinstance(row, dict) else {key: getattr(row, key) for key in ("check", "status", "detail")}
            for row in quick_check(path, part)]
    return [(row["check"], row["status"], row["detail"]) for row in rows]


def default_report(part, entries):
    """Where the command `report` writes."""
    return Path("report", part, f"{forms.file_name(entries)}.pdf")


def collect(part, script, group, model_path, report=None):
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
    lines = trying(forms.read_lines, model_path, "the link of the model on the first line")
    if lines is not None:
        problems += forms.link_problems(lines, model_path)
        files["model_path.txt"] = ("\n".join(lines).rstrip("\n") + "\n").encode()
    if report is not None or entries:  # else its name is not known
        report = default_report(part, entries) if report is None else report
        content = trying(forms.read_bytes, report, f"the report, which `python -m handin report {part}` writes")
        if content is not None:
            problems += forms.report_problems(content, entries, report)
            files[f"{forms.file_name(entries)}.pdf"] = content
    content = trying(forms.read_bytes, script, "the script")
    if content is not None:
        files[SCRIPTS[part]] = content
        for check, status, detail in trying(script_rows, script, part) or []:
            line = f"{script}: {check}: {detail}"
            problems += [f"{line}; `python -m handin grade` tells more"] * (status == "fail")
            notes += [f"note: {line}"] * (status == "warn")
    return entries, files, problems, notes


def add_arguments(parser):
    parser.add_argument("part", choices=SCRIPTS)
    parser.add_argument("--script", type=Path, metavar="FILE", help="default: bird.py or vae.py")
    parser.add_argument("--group", type=Path, default=Path("group.txt"), metavar="FILE", help="default: group.txt")
    parser.add_argument("--model-path", type=Path, default=Path("model_path.txt"), metavar="FILE",
                        help="default: model_path.txt")
    parser.add_argument("--report", type=Path, metavar="FILE", help="default: report/PART/ENTRIES.pdf")
    parser.add_argument("--out", type=Path, default=Path("submission.zip"), metavar="FILE",
                        help="default: submission.zip")


def run(args):
    """Packs a submission; returns 0, or 2 when something is wrong with it."""
    import bird
    script = args.script or Path(SCRIPTS[args.part])
    entries, files, problems, notes = collect(args.part, script, args.group, args.model_path, args.report)
    for line in notes:
        print(line)
    for line in problems:
        print(" ".join(line.splitlines()), file=sys.stderr)
    if problems:
        return 2
    folder = forms.file_name(entries)
    inputs = (script, args.group, args.model_path, args.report or default_report(args.part, entries))
    with bad_input_of(bird):
        bird.check_output(str(args.out), *map(str, inputs))
        bird.write_files({str(args.out): zip_bytes(folder, files)})
    print(f"wrote {args.out}: {folder}/ with {', '.join(sorted(files))}")
    return 0
