"""python -m handin.grading.gradescope ROOT

Grades one submission on Gradescope, whose folders are below ROOT (/autograder there), and writes results/results.json:
at first, and again after each command, so that what was found is there if time runs out.
https://gradescope-autograders.readthedocs.io/en/latest/specs/
"""
import collections
import datetime
import json
import os
import sys
import time
from pathlib import Path

from dateutil import parser

from common.errors import InputError
from common.files import read_json, write_files
from handin.grading import classroom, outputs, sandbox, submissions
from handin.grading.contract import MODELS, SCRIPTS
from handin.grading.data import load_birds, load_digits
from handin.grading.marks import maximum, read_rubric
from handin.grading.script import SHOWN, Settings, temporary_folder

STUDENT = "student"          # the user that setup.sh makes
MINUTES_TRAIN = 10
MINUTES_TEST = 3
GRADER_MEMORY = 0.8          # GB, of this process
NO_MODEL = ("No submitted model was scored, so there are no points yet: hand in {models} with the script, or a link "
            "that anyone can open in model_path.txt.")
UNFINISHED = "The autograder was stopped before it was done. "
STATUS = {"pass": {"status": "passed"}, "fail": {"status": "failed"}, "warn": {"status": "passed"}, "skip": {}}


def main(root):
    """Grades; returns the exit code 0 in any case, because Gradescope shows students no results.json otherwise."""
    start, root = time.monotonic(), Path(root)
    settings = read_json(root / "source" / "settings.json", "the settings of the autograder")
    rubric = read_rubric(root / "source" / "rubric.yaml")
    target, results = root / "results" / "results.json", {}

    def write(output=""):
        content = results_json(list(results.values()), rubric, settings, output)
        write_files({target: json.dumps({**content, "execution_time": round(time.monotonic() - start)}).encode()})

    write(UNFINISHED)
    try:
        metadata = read_json(root / "submission_metadata.json", "Gradescope's metadata")
        refusal = daily_limit(metadata, settings["daily"])
        if refusal:
            write_files({target: json.dumps(refusal).encode()})
            return 0
        due = (metadata.get("assignment") or {}).get("due_date")
        for part in settings["data"]:
            if due and not rubric[part]["deadline"]:
                rubric[part]["deadline"] = parser.isoparse(due)
        students = tuple(submissions.Student(name=str(one.get("name") or ""), email=str(one.get("email") or ""),
                                             id=str(one.get("id") or "")) for one in metadata.get("users") or ())
        submission = submissions.Submission(root / "submission", students, str(metadata.get("created_at") or ""))
        with temporary_folder() as folder:
            folder.chmod(0o711)
            for part, path in scripts_of(submission, settings["data"]).items():
                def seen(result, part=part):
                    results[part] = result
                    write(UNFINISHED)

                seen(grade(submission, part, path, folder, root / "source", settings, start, seen))
        write()
    except Exception as error:  # a student must see something, whatever happens
        write(f"The autograder failed: {type(error).__name__}: {error}. ")
        raise
    return 0


def scripts_of(submission, parts):
    """{part: path of its script, or what is wrong} of the `parts` that are asked for."""
    try:
        with submissions.opened(submission) as folder:
            found = submissions.find_scripts(folder)
    except InputError as error:
        return dict.fromkeys(parts, str(error))
    return {part: found.get(part, f"expected {SCRIPTS[part]}, found none") for part in parts}


def grade(submission, part, path, folder, source, settings, start, seen):
    """The result of one part (see classroom.result_of)."""
    data = {}
    if not isinstance(path, str):
        load = {"birds": load_birds, "digits": load_digits}[part]
        (folder / part).mkdir(mode=0o711)
        data[part] = load(folder / part, *(source / name for name in settings["data"][part]))
    limits = Settings(
        dict.fromkeys(SCRIPTS, MINUTES_TRAIN), MINUTES_TEST, 1e9 * max(0.5, settings["memory"] - GRADER_MEMORY),
        sandbox=isolation(), hidden=(str(submission.path), str(source)), folder=str(folder), small_training=True,
        ends=start + 60 * settings["minutes"])
    return classroom.grade_part(submission, submission.path, part, path, data, {}, limits, False,
                                fetched=folder / "fetched", seen=seen)


def isolation():
    """bubblewrap if it works, else the user of the student's code if there is one."""
    try:
        return sandbox.choose("bwrap", "")
    except InputError:
        import pwd
        there = os.getuid() == 0 and any(account.pw_name == STUDENT for account in pwd.getpwall())
        return sandbox.Sandbox("user", user=STUDENT) if there else sandbox.choose("auto", "")


def daily_limit(metadata, most):
    """A results.json that refuses to grade more than `most` submissions in 24 hours, with the score of the last graded
    one, or None."""
    def time_of(text):
        return parser.isoparse(str(text))

    now, graded = time_of(metadata["created_at"]), []
    for earlier in metadata.get("previous_submissions") or () if most else ():
        refused = ((earlier.get("results") or {}).get("extra_data") or {}).get("refused")
        if not refused and now - time_of(earlier["submission_time"]) < datetime.timedelta(days=1):
            graded.append(earlier)
    if not most or len(graded) < most:
        return None
    last = max(graded, key=lambda earlier: time_of(earlier["submission_time"]))
    again = min(time_of(earlier["submission_time"]) for earlier in graded) + datetime.timedelta(days=1)
    return {"score": float(last.get("score") or 0), "extra_data": {"refused": True},
            "output": f"Not graded: {most} submissions in 24 hours are allowed. The score is that of your last graded "
                      f"one; the next can be graded from {again:%d %B, %H:%M %Z} on."}


def results_json(found, rubric, settings, output=""):
    """Content of results.json for the results (see classroom.result_of) of the parts graded so far."""
    tests, score, extra, leaderboard = [], 0.0, {}, []
    rows = [row for row in outputs.class_rows({"submission": found}, rubric) if row["part"]]
    for part in settings["data"]:
        row = next((row for row in rows if row["part"] == part), None)
        if row:
            score, scored = score + (row["mark"] or 0), row["mark"] != "" or row["result"]["problem"]
            tests += part_tests(part, row, settings["visibility"])
            output += NO_MODEL.format(models=" and ".join(MODELS[part])) + " " if not scored else ""
            leaderboard += [{"name": f"{part}: {name}", "value": round(row[key], 4)}
                            for key, name in SHOWN.items() if key in row]
            extra[part] = {"status": row["status"], "scores": row["result"]["scores"], "runs": row["result"]["runs"]}
        else:
            tests.append({"name": f"{part}: {SCRIPTS[part]}", "score": 0.0, "max_score": maximum(rubric, part),
                          "status": "failed", "output": "not graded yet", "visibility": "visible"})
    return {"score": round(score, 2), "output": output.strip(), "output_format": "text", "test_output_format": "text",
            "tests": tests, "leaderboard": leaderboard, "extra_data": extra}


def part_tests(part, row, visibility):
    """The tests of a part: points, deductions, then the checks, what fails first."""
    result, tests = row["result"], []

    def add(name, output="", seen="visible", **values):
        tests.append({"name": f"{part}: {name}", "output": output, "output_format": "text", "visibility": seen,
                      **values})

    if result["problem"]:
        add(SCRIPTS[part], result["problem"], status="failed", score=0.0, max_score=row["max_mark"])
        return tests
    graded = row["mark"] != ""
    for name, earned, possible in row["points"]:
        key = next((key for key, shown in SHOWN.items() if shown == name), "")
        value = f"{row[key]:.4f}" if key in row else "no submitted model was scored" if key else ""
        add(name, value or result["report_missing"] or "read by a person, who may change these points",
            visibility if key else "visible", status="passed" if earned else "failed",
            score=round(earned, 2) if graded else 0.0, max_score=possible)
    total = sum(earned for _, earned, _ in row["points"]) if graded else 0.0
    capped = total - row["mark"] if graded else 0.0
    for reason, percent in row["reasons"]:
        add(f"deduction of {percent:g} %", reason, status="failed")
    if capped:
        add("deductions in all", "", visibility, status="failed", score=-round(capped, 2), max_score=0.0)
    checks = collections.defaultdict(list)
    for one in result["rows"]:
        if one["check"] not in SHOWN.values():
            checks[one["status"]].append(one)
    for one in (*checks["fail"], *checks["warn"], *checks["skip"], *checks["pass"]):
        lines = ["warning" if one["status"] == "warn" else "", one["value"], one["detail"], outputs.advice(one["check"])
                 if one["status"] in ("fail", "warn") else ""]
        add(one["check"], "\n".join(filter(None, lines)), **STATUS[one["status"]])
    for name, text in (("files", result["layout"]), ("report", result["report_text"])):
        if text:
            add(name, text)
    return tests


def as_text(results):
    """The content of a results.json as aligned text."""
    lines = [f"score {results['score']:g}", *filter(None, [results.get("output", "")])]
    for one in results.get("tests", ()):
        points = f"{one['score']:g} of {one['max_score']:g}" if "score" in one else one.get("status", "skipped")
        lines.append(f"{points:>14}  {one['name']}" + "".join(f"\n{'':16}{line}" for line in
                                                              one["output"].splitlines()))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
