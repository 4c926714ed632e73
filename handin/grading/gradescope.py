"""python -m handin.grading.gradescope ROOT

Grades one submission on Gradescope, whose folders are below ROOT (/autograder there), and writes results/results.json:
at first, and again after each command. https://gradescope-autograders.readthedocs.io/en/latest/specs/
"""
import collections
import contextlib
import datetime
import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from common.errors import InputError
from common.files import read_json, write_files
from common.text import one_line
from handin.grading import classroom, outputs, sandbox, submissions
from handin.grading.contract import MODELS, SCRIPTS, TESTS
from handin.grading.data import LOADERS
from handin.grading.marks import maximum, parse_time, read_rubric
from handin.grading.script import SHOWN, Settings, temporary_folder

STUDENT = "student"          # the user that setup.sh creates
MINUTES_TRAIN = 10
MINUTES_TEST = 3
GRADER_MEMORY = 0.8          # GB, of this process
UNFINISHED = "The autograder did not finish; what it found so far: "
NO_MODEL = ("There are no points yet, because no submitted model was scored: hand in {models} with the script, or a "
            "link that anyone can open in model_path.txt. ")
UNPARSABLE = "There are no points yet, because the script cannot be read: see the failed check. "
NOT_SCORED = "There are no points yet, because the submitted model could not be scored: see the failed checks. "
STATUS = {"pass": {"status": "passed"}, "fail": {"status": "failed"}, "warn": {"status": "passed"}, "skip": {}}


def main(root):
    """Grades; returns 0, or 1 if the autograder itself failed. A results.json is written in any case."""
    start, root, results = time.monotonic(), Path(root), {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # folders are removed
    settings = rubric = None

    def write(output="", counted=True):
        content = {"score": 0.0, "output": output.strip(), "tests": []}
        if settings and rubric:
            content = results_json(list(results.values()), rubric, settings, output)
        if not counted:
            content.setdefault("extra_data", {})["not_counted"] = True
        write_json({**content, "execution_time": round(time.monotonic() - start)})

    def write_json(content):
        write_files({root / "results" / "results.json": json.dumps(content).encode()})

    def on_progress(result):
        results[result["part"]] = result
        write(UNFINISHED)

    try:
        write(UNFINISHED)
        settings = read_json(root / "source" / "settings.json", "the settings of the autograder")
        rubric = read_rubric(root / "source" / "rubric.yaml")
        metadata = read_json(root / "submission_metadata.json", "Gradescope's metadata")
        refusal = daily_limit_result(metadata, settings["max_per_day"])
        if refusal:
            write_json(refusal)
            return 0
        set_deadlines(rubric, metadata)
        grade(root, settings, metadata, start, on_progress)
        write()
        return 0
    except Exception as error:  # a student must see a message, whatever happens
        traceback.print_exc()
        write(f"The autograder failed, which is not your fault: {type(error).__name__}: {one_line(error)}. ", False)
        return 1


def grade(root, settings, metadata, start, on_progress):
    """Grades the parts for which the autograder has data, each in its share of the time."""
    students = tuple(submissions.Student(name=str(user.get("name") or ""), email=str(user.get("email") or ""),
                                         id=str(user.get("id") or "")) for user in metadata.get("users") or ())
    submission = submissions.Submission(root / "submission", students, str(metadata.get("created_at") or ""))
    parts, isolation = settings["data"], gradescope_sandbox()
    with temporary_folder() as folder, contextlib.ExitStack() as stack:
        unpacked, found, missing = submission.path, {}, "expected {}, found none"
        try:
            unpacked = stack.enter_context(submissions.open_submission(submission))
            found = submissions.find_scripts(unpacked)
        except InputError as error:
            missing = str(error).replace("{", "{{").replace("}", "}}")
        for number, part in enumerate(parts):
            path, data = found.get(part, missing.format(SCRIPTS[part])), {}
            if not isinstance(path, str):
                data[part] = load_data(part, root / "source", parts[part], folder / part)
            limits = Settings(
                dict.fromkeys(SCRIPTS, MINUTES_TRAIN), MINUTES_TEST,
                1e9 * max(0.5, settings["memory"] - GRADER_MEMORY), sandbox=isolation, hidden=(str(root),),
                folder=str(folder), smoke_test=True,
                deadline=start + 60 * settings["grading_minutes"] * (number + 1) / len(parts))
            on_progress(classroom.grade_part(submission, unpacked, part, path, data, {}, limits, False,
                                             downloads=folder / "downloads", on_progress=on_progress))


def load_data(part, source, paths, folder):
    """Data of a part, in a folder that the student's user can read, unlike the autograder's own."""
    folder.mkdir()
    paths = [source / path for path in paths]
    if part == "birds":
        shutil.copytree(paths[0], folder / "given" / "train", copy_function=shutil.copyfile)
        paths[0] = folder / "given" / "train"
    return LOADERS[part](folder, *paths)


def gradescope_sandbox():
    """bubblewrap if it works, otherwise the user of the student's code. Raises InputError if neither exists, except in
    a trial on another machine."""
    try:
        return sandbox.choose_sandbox("bwrap", "")
    except InputError:
        import pwd
        if os.getuid() == 0 and STUDENT in {account.pw_name for account in pwd.getpwall()}:
            return sandbox.Sandbox("user", user=pwd.getpwnam(STUDENT).pw_uid)
        if "AUTOGRADER" not in os.environ:
            raise InputError(f"expected bubblewrap or the user {STUDENT}, found neither: has setup.sh run?") from None
        return sandbox.choose_sandbox("auto", "")


# ---------------------------------------------------------------------------------------------------------- Gradescope

def set_deadlines(rubric, metadata):
    """Sets the due date as the deadline of the parts without one in the rubric: the assignment's or, if students have
    their own dates, the latest of these."""
    owners = (metadata, *(metadata.get("users") or ()))
    dates = [(owner.get("assignment") or {}).get("due_date") for owner in owners]
    dates = [parse_time(date) for date in dates if date]
    for part in SCRIPTS if dates else ():
        rubric[part]["deadline"] = rubric[part]["deadline"] or max(dates)


def daily_limit_result(metadata, max_per_day):
    """The results.json of a submission that exceeds `max_per_day` in 24 hours: that of the last graded one, with
    another output. None if it may be graded."""
    now, graded = parse_time(metadata["created_at"]), []
    for earlier in metadata.get("previous_submissions") or () if max_per_day else ():
        results, day = earlier.get("results") or {}, datetime.timedelta(days=1)
        skipped = (results.get("extra_data") or {}).get("not_counted") or earlier.get("score") is None
        if not skipped and earlier.get("submission_time") and now - parse_time(earlier["submission_time"]) < day:
            graded.append((parse_time(earlier["submission_time"]), float(earlier["score"]), results))
    if not max_per_day or len(graded) < max_per_day:
        return None
    graded.sort(key=lambda submission: submission[0])
    (_, score, results), again = graded[-1], graded[-max_per_day][0] + datetime.timedelta(days=1)
    return {"tests": [], **results, "score": score, "extra_data": {"not_counted": True},
            "output": f"Not graded: at most {max_per_day} in 24 hours. What you see is the result of your "
                      f"last graded one; the next can be graded from {again:%d %B %Y, %H:%M (UTC%z)}."}


def results_json(results, rubric, settings, output=""):
    """Content of results.json for the results (see classroom.make_result) of the parts graded so far."""
    tests, score, extra, leaderboard = [], 0.0, {}, []
    rows = {row["part"]: row for row in outputs.table_rows({"submission": results}, rubric)}
    for part in settings["data"]:
        if part not in rows:
            tests.append({"name": f"{part}: {SCRIPTS[part]}", "score": 0.0, "max_score": maximum(rubric, part),
                          "status": "failed", "output": "not graded yet", "visibility": "visible"})
            continue
        row = rows[part]
        score += row["mark"] or 0
        tests += part_tests(part, row, settings["visibility"])
        if row["mark"] == "" and not row["result"]["problem"]:
            modes = {mode for mode, *_ in TESTS[part]}  # without a prefix they were run on the submitted model
            tried = any(check["check"] in (*modes, "commands") for check in row["result"]["rows"])
            broken = any(check["check"] == "syntax" and check["status"] == "fail" for check in row["result"]["rows"])
            output += (UNPARSABLE if broken else NOT_SCORED if tried else
                       NO_MODEL.format(models=" and ".join(MODELS[part])))
        leaderboard += [{"name": f"{part}: {name}", "value": round(row[key], 4)} for key, name in SHOWN.items()
                        if key in row and settings["visibility"] == "visible"]
        extra[part] = {"status": row["status"], "scores": row["result"]["scores"], "runs": [
            {key: value for key, value in run.items() if key != "output_tail"} for run in row["result"]["runs"]]}
    return {"score": round(score, 2), "output": output.strip(), "output_format": "text", "test_output_format": "text",
            "tests": tests, "leaderboard": leaderboard, "extra_data": extra}


def part_tests(part, row, visibility):
    """The tests of a part: points, deductions, then the checks, failed ones first. `visibility` is that of scores."""
    result, tests, graded = row["result"], [], row["mark"] != ""

    def add(name, output="", shown="visible", **values):
        tests.append({"name": f"{part}: {name}", "output": output, "output_format": "text", "visibility": shown,
                      **values})

    if result["problem"]:
        add(SCRIPTS[part], result["problem"], status="failed", score=0.0, max_score=row["max_mark"])
        return tests
    keys = {name: key for key, name in SHOWN.items()}
    for name, earned, possible in row["points"]:
        earned = round(earned, 2) if graded else 0.0
        if name in keys:
            output = f"{row[keys[name]]:.4f}" if keys[name] in row else "no submitted model was scored"
        else:
            output = result["report_missing"] or "provisional: a grader reads the report and may change this"
        add(name, output, visibility if name in keys else "visible", status="passed" if earned else "failed",
            score=earned, max_score=possible)
    for reason, percent in row["reasons"]:
        add(f"deduction of {percent:g} %", reason, status="failed")
    deducted = sum(test.get("score", 0) for test in tests) - row["mark"] if graded else 0.0
    if deducted > 0.005 and row["reasons"]:
        add("total deductions", f"from {deducted + row['mark']:.2f} points", visibility, status="failed",
            score=-round(deducted, 2), max_score=0.0)
    checks = collections.defaultdict(list)
    for check in result["rows"]:
        if check["check"] not in keys:
            checks[check["status"]].append(check)
    for check in (*checks["fail"], *checks["warn"], *checks["skip"], *checks["pass"]):
        advice = outputs.advice(check["check"]) if check["status"] in ("fail", "warn") else ""
        lines = ["warning" if check["status"] == "warn" else "", check["value"], check["detail"], advice]
        add(check["check"], "\n".join(filter(None, lines)),
            visibility if "row order" in check["check"] else "visible", **STATUS[check["status"]])
    for name, text in (("files", result["layout"]), ("form of the report", result["report_text"])):
        if text:
            add(name, text)
    return tests


def as_text(results):
    """The content of a results.json as text."""
    lines = [f"score {results['score']:g}", *filter(None, [results.get("output", "")])]
    for test in results["tests"]:
        points = f"{test['score']:g} of {test['max_score']:g}" if "score" in test else test.get("status", "note")
        lines.append(f"{points:>14}  {test['name']}" + "".join(f"\n{'':16}{line}" for line in
                                                               test["output"].splitlines()))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
