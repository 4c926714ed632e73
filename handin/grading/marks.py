"""The mark of a script by a rubric: points for its scores, deductions for failed checks and late submission."""
import csv
import dataclasses
import datetime
import fnmatch
import io
import math
from pathlib import Path

from common.errors import InputError
from common.files import read_bytes
from common.text import one_line
from handin.grading.contract import SCRIPTS
from handin.grading.script import SHOWN

RUBRIC = Path(__file__).with_name("rubric.yaml")
OVERRIDES = ("entry", "mark", "why")


@dataclasses.dataclass(frozen=True)
class Mark:
    """`value` of `maximum` points; `points`: [(item, earned, possible)]; `deductions`: [(reason, percent)]; `status`:
    "graded", "graded with deductions" or "cannot be graded"."""
    value: float
    maximum: float
    points: list
    deductions: list
    status: str


def read_rubric(path=RUBRIC):
    """Content of a rubric, a dict like rubric.yaml. Raises InputError."""
    import yaml
    try:
        rubric = yaml.safe_load(read_bytes(path, "a rubric"))
        numbers = [rubric["max_deduction"], *rubric["deductions"].values()]
        for part in SCRIPTS:
            rules = rubric[part]
            scores = {key: rule for key, rule in rules.items() if key in SHOWN}
            numbers += [rules["report"], *rules["late"],
                        *(rule[key] for rule in scores.values() for key in ("points", "zero", "full"))]
            unknown = set(rules) - set(SHOWN) - {"report", "late", "deadline"}
            if not scores or unknown:
                raise ValueError(f"{part}: no scores, or unknown keys: {', '.join(map(str, unknown))}")
            if any(rule["zero"] >= rule["full"] for rule in scores.values()):
                raise ValueError(f"{part}: `zero` not below `full`")
            deadline = rules["deadline"]
            if deadline is not None and not (isinstance(deadline, datetime.datetime) and deadline.tzinfo):
                raise ValueError(f"{part}: a deadline without date, time and time zone: {deadline}")
        wrong = [number for number in numbers
                 if not isinstance(number, (int, float)) or isinstance(number, bool) or not 0 <= number < math.inf]
        if wrong:
            raise ValueError(f"{wrong[0]} instead of a number >= 0")
        if not all(isinstance(pattern, str) for pattern in rubric["deductions"]):
            raise ValueError("every pattern of the deductions must be a text")
        return rubric
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a YAML rubric, found: {one_line(error)}") from None
    except KeyError as error:
        raise InputError(f"{path}: expected the keys of handin/grading/rubric.yaml, found no {error}") from None
    except (TypeError, AttributeError):
        raise InputError(f"{path}: expected a rubric like handin/grading/rubric.yaml, found a value of another kind, "
                         "such as a number instead of a list") from None
    except ValueError as error:
        raise InputError(f"{path}: expected a rubric, found: {one_line(error)}") from None


def maximum(rubric, part):
    """The points of a part."""
    return rubric[part]["report"] + sum(rule["points"] for key, rule in rubric[part].items() if key in SHOWN)


def check_deductions(rubric, rows):
    """[(reason, percent)] of the failed rows, each check once."""
    deductions = {}
    for row in rows:
        check = row["check"].replace("retrained: ", "")
        if row["status"] == "fail" and check not in deductions:
            percent = next((percent for pattern, percent in rubric["deductions"].items()
                            if fnmatch.fnmatchcase(check, pattern)), 0)
            deductions[check] = f"{check}: {row['detail']}", percent
    return [(reason, percent) for reason, percent in deductions.values() if percent]


def parse_time(text):
    """A datetime with a time zone, UTC if there is none, from a text of an export or of Gradescope."""
    from dateutil import parser
    time = parser.parse(str(text))
    return time if time.tzinfo else time.replace(tzinfo=datetime.timezone.utc)


def late_deductions(rubric, part, time):
    """[(reason, percent)] for a submission at `time`, a text of the export; [] if on time or unknown."""
    deadline, late = rubric[part]["deadline"], rubric[part]["late"]
    if not deadline or not time:
        return []
    try:
        days = math.ceil((parse_time(time) - deadline).total_seconds() / 86400)
    except (ValueError, OverflowError):
        return [(f"the time of the export is not understood: {time}", 0)]
    if days < 1:
        return []
    return [(f"late by {days} day{'s' if days > 1 else ''}", late[days - 1] if days <= len(late) else 100)]


def compute_mark(rubric, part, result):
    """Mark of a grading result, a dict with "rows", "scores", "report_missing" and "time". One that cannot be graded
    has no points: a teacher decides."""
    points, scores = [], result["scores"]
    for key, rule in rubric[part].items():
        if key in SHOWN:
            share = (scores.get(key, -math.inf) - rule["zero"]) / (rule["full"] - rule["zero"])
            points.append((SHOWN[key], rule["points"] * min(1.0, max(0.0, share)), rule["points"]))
    report = rubric[part]["report"]
    points.append(("report", 0.0 if result["report_missing"] else report, report))
    deductions, late = check_deductions(rubric, result["rows"]), late_deductions(rubric, part, result["time"])
    percent = min(rubric["max_deduction"], sum(value for _, value in deductions)) + sum(value for _, value in late)
    value = sum(earned for _, earned, _ in points) * max(0.0, 1 - percent / 100)
    scored = any(key in scores for key in SHOWN)
    status = "cannot be graded" if not scored else "graded with deductions" if deductions or late else "graded"
    return Mark(round(value, 2) if scored else 0.0, maximum(rubric, part), points, deductions + late, status)


def read_overrides(path):
    """[(entry, part or "", mark, why)] of a CSV that a teacher writes, with the columns entry, mark, why and, if
    needed, part; [] if there is none. Raises InputError."""
    if not path.exists():
        return []
    reader, overrides = csv.DictReader(io.StringIO(read_bytes(path, "overrides").decode("utf-8-sig", "replace"))), []
    if not set(OVERRIDES) <= set(reader.fieldnames or ()):
        raise InputError(f"{path}: expected the columns {', '.join(OVERRIDES)}, separated by commas, found "
                         f"{', '.join(reader.fieldnames or ())}")
    for row in reader:
        try:
            value = float(row["mark"])
            if not 0 <= value < math.inf or row.get("part") not in (None, "", *SCRIPTS):
                raise ValueError
        except (TypeError, ValueError):
            raise InputError(f"{path}: line {reader.line_num}: expected a mark of 0 or more and, if any, a part "
                             f"({', '.join(SCRIPTS)}), found {', '.join(map(str, row.values()))}") from None
        overrides.append((row["entry"].strip(), row.get("part") or "", value, row["why"] or ""))
    return overrides
