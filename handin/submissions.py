"""A folder of submissions, each a zip: one CSV row for each, whatever it holds."""
import csv
import io
import stat
import tempfile
import zipfile
from pathlib import Path

from common.errors import InputError
from handin import forms, grade
from handin.contract import Row
from handin.sandbox import printable

COLUMNS = ("submission", "part", "entries", "result", "average_f1", "macro_f1", "micro_f1", "ssim", "one_minus_mse",
           "parameters", "train_minutes", "failed", "warnings")
MOST_MEMBERS, MOST_BYTES = 200, 200 * 10 ** 6  # of a zip, unpacked
MOST_SCRIPT = 2 * 10 ** 6  # bytes of any file but the report
PARTS = {name: part for part, name in grade.SCRIPTS.items()}


class BadZip(Exception):
    """One line that says why a zip cannot be graded."""


def unpack(path, target):
    """Unpacks the four files of a submission into `target`, flat; nothing else of the zip is written, so that no name
    in it leads elsewhere. Returns the part, the path of the script, and rows on the zip. Raises BadZip."""
    try:
        archive = zipfile.ZipFile(str(path))
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise BadZip(f"expected a zip, found: {printable(str(error))}") from None
    with archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        _refuse(members)
        files = {tuple(member.filename.split("/")): member for member in members}
        files = {name: member for name, member in files.items() if "__MACOSX" not in name and name[-1] != ".DS_Store"}
        scripts = [name for name in files if name[-1] in PARTS]
        if len(scripts) != 1:
            found = ", ".join("/".join(name) for name in sorted(scripts or files)[:5])
            raise BadZip(f"expected one script, bird.py or vae.py, found {printable(found) or 'an empty zip'}")
        folder, wanted = scripts[0][:-1], {scripts[0][-1], "model_path.txt", "group.txt"}
        part = PARTS[scripts[0][-1]]
        for name, member in files.items():
            if name[:-1] == folder and (name[-1] in wanted or name[-1].lower().endswith(".pdf")):
                most = MOST_BYTES if name[-1].lower().endswith(".pdf") else MOST_SCRIPT
                if member.file_size > most:
                    raise BadZip(f"expected at most {most / 1e6:g} MB, found {member.file_size / 1e6:.0f} MB as "
                                 f"{printable(name[-1])}")
                try:
                    (target / name[-1]).write_bytes(archive.read(member))
                except Exception as error:  # a broken member trips the decoders in a dozen ways
                    raise BadZip(f"{printable(name[-1])}: cannot be unpacked: {printable(str(error))}") from None
        return part, target / scripts[0][-1], _layout_rows(part, folder, set(files), wanted, target)


def _refuse(members):
    """Raises BadZip for what no honest submission holds."""
    if len(members) > MOST_MEMBERS or sum(member.file_size for member in members) > MOST_BYTES:
        raise BadZip(f"expected at most {MOST_MEMBERS} files of {MOST_BYTES / 1e6:g} MB in all, found "
                     f"{len(members)} of {sum(member.file_size for member in members) / 1e6:.0f} MB")
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if parts[0] == "" or ".." in parts or ":" in parts[0]:
            raise BadZip("expected files in one folder, found a path that leads out of it: "
                         f"{printable(member.filename)}")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BadZip(f"expected files, found a link: {printable(member.filename)}")
        if member.flag_bits & 1:
            raise BadZip(f"expected an open zip, found an encrypted file: {printable(member.filename)}")


def _layout_rows(part, folder, names, wanted, target):
    """Rows on the folder and the forms, in which a fault is worth a warning: the script can be graded all the same."""
    entries, problems = [], []
    try:
        if (target / "group.txt").exists():
            entries = forms.read_entries(target / "group.txt")
            problems += forms.entry_problems(entries, "group.txt")
        if (target / "model_path.txt").exists():
            lines = forms.read_lines(target / "model_path.txt", "the link of the model")
            problems += forms.link_problems((lines or [""])[0], "model_path.txt")
    except InputError as error:
        problems.append(str(error))
    wanted = wanted | {f"{forms.file_name(entries) or 'ENTRY1_ENTRY2'}.pdf"}
    if len(folder) != 1:
        problems.append(f"expected one folder, found the script {'at the top' if not folder else 'deeper'}")
    missing = sorted(wanted - {name[-1] for name in names if name[:-1] == folder})
    more = sorted("/".join(name) for name in names if name[:-1] != folder or name[-1] not in wanted)
    problems += [f"missing: {printable(', '.join(missing))}"] * bool(missing)
    problems += [f"besides: {printable(', '.join(more[:5]))}"] * bool(more)
    problems = [problem.replace(f"{target}/", "") for problem in problems]
    return [Row(part, "submission", "warn" if problems else "pass", "", printable("; ".join(problems), 300)),
            Row(part, "entries", "pass", " ".join(map(printable, entries[:2])))]


def grade_zip(path, data, settings, quick, say):
    """The CSV row, a dict, of one zip. Nothing that it holds raises."""
    line = dict.fromkeys(COLUMNS, "")
    line.update(submission=path.name, result="fail")
    with tempfile.TemporaryDirectory(prefix="submission_") as folder:
        try:
            part, script, rows = unpack(path, Path(folder).resolve())
        except BadZip as error:
            return {**line, "failed": f"zip: {error}"}
        line.update(part=part, entries=rows.pop().value)
        if quick:
            result = grade.Result(grade.quick_check(script, part, settings.memory))
        elif part in data:
            result = grade.grade_script(part, script, data[part], settings, (), say)
        else:
            return {**line, "result": "skip", "failed": f"no data of the {part} was given"}
    rows += result.rows
    for key, value in result.scores.items():
        if key in COLUMNS:
            line[key] = f"{value:.4f}" if isinstance(value, float) else value
    for column, status in (("failed", "fail"), ("warnings", "warn")):
        line[column] = "; ".join(f"{row.check}: {row.detail}" for row in rows if row.status == status)
    return {**line, "result": "fail" if line["failed"] else "pass"}


def _safe(value):
    """A cell that no spreadsheet takes for a formula: names and messages come from strangers."""
    text = printable(str(value), 2000)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def read_rows(path):
    """Rows of an earlier call's CSV, as dicts. Raises InputError."""
    if not path.exists():
        return []
    try:
        with open(str(path), newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise InputError(f"{path}: expected the columns of an earlier call ({', '.join(COLUMNS[:4])}, ...), "
                                 "found others; name another file")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a CSV of an earlier call, found: {error}") from None


def csv_text(rows):
    """The rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def grade_folder(folder, target, data, settings, quick, say):
    """Grades each zip of `folder` that `target` has no row for; rewrites `target` after each. Returns 0, or 1 when a
    row says "fail". Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of zips, found "
                         f"{'a file' if folder.exists() else 'nothing there'}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".zip" and path.is_file())
    if not paths:
        raise InputError(f"{folder}: expected zips, found none")
    rows = read_rows(target)
    done = {row["submission"] for row in rows}
    grade.write_text(target, csv_text(rows))
    for number, path in enumerate(paths, 1):
        if _safe(path.name) in done:
            say(f"{printable(path.name)}: graded before")
            continue
        say(f"{printable(path.name)}: {number} of {len(paths)}")
        try:
            line = grade_zip(path, data, settings, quick, say)
        except Exception as error:  # of hundreds of strangers' files one must not cost the others their grade
            line = {**dict.fromkeys(COLUMNS, ""), "submission": path.name, "result": "fail",
                    "failed": f"not graded: {type(error).__name__}: {error}"}
        row = {column: _safe(value) for column, value in line.items()}
        rows.append(row)
        grade.write_text(target, csv_text(rows))
        print(f"{row['submission']}: {row['result']}" + (f": {row['failed']}" if row["failed"] else ""), flush=True)
    return int(any(row["result"] == "fail" for row in rows))
