"""The outputs for a graded class: the CSV, report.html, a log and a feedback page of each script, and CSVs to upload to
Gradescope, Moodle and Canvas. All are written from saved results, without grading again."""
import collections
import csv
import fnmatch
import hashlib
import io
import re
import unicodedata
from pathlib import Path

import numpy as np

from common.files import write_files
from common.text import one_line
from handin.grading.contract import SCRIPTS, Row
from handin.grading.marks import compute_mark, maximum
from handin.grading.script import SHOWN, format_checks

COLUMNS = ("submission", "part", "entries", "names", "emails", "sids", "status", "mark", "max_mark", *SHOWN,
           "parameters", "train_minutes", "deductions", "failed", "warnings", "machine", "grader_version", "log",
           "feedback")
POINTS_POSSIBLE = "    Points Possible"  # Canvas expects the blanks
ADVICE = {  # pattern of a check: how to fix a failure
    "*.csv header": "Write the header Predicted_Label and nothing before it: pandas' to_csv(path, index=False) does.",
    "*.csv columns": "Write one column: pandas' to_csv(path, index=False).",
    "*.csv rows": "Write one row per image: use len(dataset), do not hard-code a number.",
    "*.csv labels": "Write the class index of ImageFolder (birds) or the digit itself (digits).",
    "*.npz key": "np.savez(path, data=images).",
    "*.npz shape": "Write (N, 28, 28), N being the number of images given.",
    "*.npz dtype": "images.astype(np.float32).",
    "*.npz range": "Divide the inputs by 255, and end the decoder with a sigmoid.",
    "row order": "ImageFolder's order is that of sorted(); with a DataLoader, shuffle=False.",
    "* state_dict": "torch.save(model.state_dict(), path).",
    "fresh model loads": "Give each argument of __init__ a default value: ModelClass() and load_state_dict must work.",
    "model class": "Give each argument of __init__ a default value: ModelClass() must work.",
    "latent": "The encoder outputs the mean and the log variance of a Gaussian in two dimensions.",
    "torch.manual_seed(0)": "Call torch.manual_seed(0) once, at the start.",
    "training time": "Train for fewer epochs, or stop when a time limit is near.",
    "same scores retrained": "The submitted model must be trained with the submitted code.",
    "*.p[tk][hl]": "Write it to the path given on the command line.",
    "map_location": "torch.load(path, map_location=device).",
    "no plt.show()": "plt.savefig(path) or plt.close() instead.",
    "reconstruction": "Write the decoder's output for the latent, without the image itself.",
    "order of images": "Decode the mean of the latent, and call model.eval() before testing."}


def output_paths(table_path):
    """{output: path} of everything that is written next to the CSV of a class."""
    def named(suffix):
        return table_path.with_name(table_path.stem + suffix)

    return {"table": table_path, "state": table_path.with_suffix(".json"), "page": table_path.with_name("report.html"),
            "overrides": table_path.with_name("overrides.csv"), "names": named("_names.csv"), "logs": named("_logs"),
            "feedback": named("_feedback"), **{f"{system} {part}": named(f"_{system}_{part}.csv")
                                               for system in UPLOAD_FORMATS for part in SCRIPTS}}


def write_outputs(table_path, results, rubric, overrides, anonymous, similar, changed):
    """Writes everything from the results {name: [result]}; logs and feedback only of the `changed` names. Returns a
    message for each override that does not match one row and each student with several marks. Raises InputError."""
    paths, files = output_paths(table_path), {}
    rows = table_rows(results, rubric)
    problems = apply_overrides(rows, overrides, rubric)
    labels = {row["name"]: row["label"] if anonymous else row["name"] for row in rows}

    def redact(text, row=None):
        terms = {term for shown in ([row] if row else rows) for term in shown["terms"] if len(term) > 3}
        for term in sorted(terms, key=len, reverse=True) if anonymous else ():
            text = text.replace(term, labels.get(term, "..."))
        return text

    for row in rows:
        row.update(submission=labels[row["name"]], log=f"{paths['logs'].name}/{file_stem(row, anonymous)}.txt",
                   feedback=f"{paths['feedback'].name}/{file_stem(row, anonymous)}.html")
        if anonymous:
            row.update(dict.fromkeys(("entries", "names", "emails", "sids"), ""))
        if row["name"] in changed:
            feedback = render("feedback.html", row=row, advice=advice, shown=SHOWN)
            files[table_path.parent / row["log"]] = redact(log_text(row["result"]), row)
            files[table_path.parent / row["feedback"]] = redact(feedback, row)
    similar = [(labels.get(first, first), labels.get(second, second), share) for first, second, share in similar]
    files[paths["table"]], files[paths["page"]] = redact(csv_text(COLUMNS, rows)), redact(report_page(rows, similar))
    if anonymous:
        files[paths["names"]] = csv_text(("submission", "name"), rows)
    expected = {Path(row[kind]).name for row in rows for kind in ("log", "feedback")}
    for path in (*paths["logs"].glob("*.txt"), *paths["feedback"].glob("*.html")):
        if path.name not in expected:  # of a name that is no longer shown
            path.unlink()
    for part in sorted({row["part"] for row in rows} & set(SCRIPTS)):
        marks, duplicates = by_student(rows, part)
        problems += duplicates
        for system, (columns, values) in UPLOAD_FORMATS.items():
            title = f"{part} ({SCRIPTS[part]})"
            columns = [column.format(title=title) for column in columns]
            lines = [dict(zip(columns, values(student, row))) for student, row in marks]
            if system == "canvas":
                lines.insert(0, {"Student": POINTS_POSSIBLE, title: marks[0][1]["max_mark"] if marks else ""})
            files[paths[f"{system} {part}"]] = csv_text(columns, lines)
    write_files({str(path): text.encode() for path, text in files.items()})
    return problems


def file_stem(row, anonymous):
    """File name without suffix of a row's log and feedback, unique for each name."""
    readable = "" if anonymous else re.sub(r"[^A-Za-z0-9.-]+", "_", row["name"])[:60] + "_"
    return f"{readable}{row['label']}_{row['part'] or 'none'}"


# ---------------------------------------------------------------------------------------------------------------- rows

def table_rows(results, rubric):
    """A dict for each script, with the COLUMNS and, for the pages, "name", "label" (anonymous), "terms"
    (identifying texts), "students", "result", "points" and "reasons"."""
    rows, owners = [], collections.defaultdict(set)  # of entry numbers
    for name, of_name in results.items():
        for result in of_name:
            for number in result["entries"]:
                owners[result["part"], number].add(name)
    for name in sorted(results):
        for result in results[name]:
            part, students = result["part"], result["students"]
            students = students or [{"name": "", "email": "", "sid": number, "id": ""}
                                    for number in result["entries"]]
            shared = [f"entry number {number} also in {', '.join(sorted(owners[part, number] - {name}))}"
                      for number in result["entries"] if len(owners[part, number]) > 1]
            remarks = [result["layout"], result["report_missing"], result["report_text"]]
            failed = failures(result)
            terms = {name, *result["entries"], *(student[key] for student in students
                                                 for key in ("name", "email", "sid"))}
            row = {"name": name, "label": hashlib.sha256(name.encode()).hexdigest()[:8], "part": part,
                   "result": result, "students": students, "terms": terms - {""}, "status": "cannot be graded",
                   "mark": "", "max_mark": "", "points": [], "reasons": [], "deductions": "",
                   "machine": result["machine"], "grader_version": result["key"],
                   "entries": " ".join(result["entries"]), "failed": "; ".join(failed), "failures": failed,
                   "warnings": "; ".join([*shared, *filter(None, remarks),
                                          *messages_with_status(result["rows"], "warn")]),
                   **{f"{key}s": ", ".join(filter(None, (student[key] for student in students)))
                      for key in ("name", "email", "sid")},
                   **{key: value for key, value in result["scores"].items() if key in COLUMNS}}
            if part:
                computed = compute_mark(rubric, part, result)
                quick = result["key"].startswith("quick") and not result["problem"]
                row.update(status="rules checked" if quick else computed.status, max_mark=computed.maximum,
                           mark="" if computed.status == "cannot be graded" else computed.value,
                           points=computed.points, reasons=computed.deductions, deductions="; ".join(
                               f"{percent:g} % {reason}" for reason, percent in computed.deductions))
            rows.append(row)
    return rows


def apply_overrides(rows, overrides, rubric):
    """Writes the teacher's marks into the rows; a submission without a script gets a row for the named part. Returns a
    message for each override that does not match exactly one row."""
    problems = []
    for entry, part, value, why in overrides:
        entry = unicodedata.normalize("NFC", entry)
        matches = [row for row in rows if entry in {unicodedata.normalize("NFC", term) for term in row["terms"]}]
        if part:
            matches = [row for row in matches if row["part"] == part] or [row for row in matches if not row["part"]]
        if len(matches) == 1 and not part and not matches[0]["part"]:
            problems.append(f"overrides.csv: expected a column part for {entry}, who has no script, found none")
        elif len(matches) == 1:
            row = matches[0]
            if part and not row["part"]:
                row = {**row, "part": part, "max_mark": maximum(rubric, part)}
                rows.append(row)
            row.update(mark=value, status="graded by hand", deductions=why)
        else:
            problems.append(f"overrides.csv: expected one row for {entry}, found {len(matches)}"
                            + ("; add a column part, or name the submission" if matches else ""))
    return problems


def messages_with_status(rows, status):
    """["check: detail"] of the rows with a status."""
    return [f"{row['check']}: {row['detail']}" for row in rows if row["status"] == status]


def failures(result):
    """["check: detail"] of the failed checks of a result, or [its problem]."""
    return [result["problem"]] if result["problem"] else messages_with_status(result["rows"], "fail")


def advice(check):
    """How to fix a failed check, or ""."""
    return next((text for pattern, text in ADVICE.items() if fnmatch.fnmatchcase(check.split(": ")[-1], pattern)), "")


def log_text(result):
    """Checks, commands and their output as text."""
    runs = (f"\n$ {run['command']}  (exit code {run['code']}, {run['seconds']} s, CPU time {run['cpu_seconds']} s)\n"
            f"{run['output_tail']}" for run in result["runs"])
    return "\n".join([result["problem"] or format_checks([Row(**row) for row in result["rows"]]), *runs]) + "\n"


# ---------------------------------------------------------------------------------------------------------------- CSVs

def csv_cell(value):
    """A cell that spreadsheets do not interpret as a formula: names and messages come from students."""
    if value == POINTS_POSSIBLE:
        return value
    text = f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else one_line(str(value), 2000)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def csv_text(columns, rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([csv_cell(row.get(column, "")) for column in columns] for row in rows)
    return text.getvalue()


def by_student(rows, part):
    """[(student, row)] of a part, for students with one row or, if they have none, another row without a part. And
    messages: students with several rows, rows without a student."""
    found, problems = collections.defaultdict(list), []
    for row in sorted(rows, key=lambda row: row["part"] != part):
        keys = [student["email"] or student["sid"] or student["id"] or student["name"] for student in row["students"]]
        if row["part"] == part and not any(keys):
            problems.append(f"{row['name']}: no mark to upload, because no student is known")
        for key, student in zip(keys, row["students"]):
            if key and (row["part"] == part or not row["part"] and not found[key]):
                found[key].append((student, row))
    problems += [f"{key}: no mark to upload, because there are several {part} submissions: "
                 + ", ".join(row["name"] for _, row in pairs) for key, pairs in found.items() if len(pairs) > 1]
    return [pairs[0] for pairs in found.values() if len(pairs) == 1], problems


UPLOAD_FORMATS = {  # system: its columns, and their values for a student and a row
    "gradescope": (("Name", "Email", "SID", "Total Score", "Max Points"), lambda student, row: (
        student["name"], student["email"], student["sid"], row["mark"], row["max_mark"])),
    "moodle": (("Identifier", "Full name", "Email address", "ID number", "Grade", "Maximum Grade", "Feedback comments"),
               lambda student, row: (
                   student["id"] and f"Participant {student['id']}", student["name"], student["email"], student["sid"],
                   row["mark"], row["max_mark"], row["deductions"])),
    "canvas": (("Student", "ID", "SIS User ID", "SIS Login ID", "Section", "{title}"), lambda student, row: (
        student["name"], student["id"], student["sid"], student["email"], "", row["mark"]))}


# --------------------------------------------------------------------------------------------------------------- pages

def render(template, **values):
    """Renders a template of this folder."""
    import jinja2
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                     trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.get_template(template).render(**values)


def report_page(rows, similar):
    """report.html: a table of all scripts, the distributions of their scores and the frequencies of failed checks."""
    histograms = {}
    for part in SCRIPTS:
        for key in ("mark", "average_f1", "ssim"):
            of_part = [row for row in rows if row["part"] == part and isinstance(row.get(key), float)]
            most = of_part[0]["max_mark"] if of_part and key == "mark" else 1
            if of_part:
                values = [row[key] for row in of_part]
                counts, edges = np.histogram(np.clip(values, 0, most), 10, (0, most))
                bars = [(f"{low:g} to {high:g}", count) for low, high, count in zip(edges, edges[1:], counts.tolist())]
                histograms[f"{part}: {SHOWN.get(key, key)}"] = {
                    "bars": bars, "most": max(counts), "n": len(values), "mean": np.mean(values),
                    "median": np.median(values)}
    fails = collections.Counter((row["part"], check) for row in rows for check in
                                {check["check"] for check in row["result"]["rows"] if check["status"] == "fail"})
    return render("class.html", rows=rows, histograms=histograms, similar=similar,
                  counts=collections.Counter(row["status"] for row in rows),
                  fails=sorted(fails.items(), key=lambda item: (-item[1], item[0])))
