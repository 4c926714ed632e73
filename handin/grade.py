"""The course's autograder, at home: runs the graders' commands on any pair of scripts that keeps the contract, each
alone in a fresh folder, bounded by time, memory and output; checks and scores what they write, and the rules.

Without --bird and --vae it grades this project's own scripts. With --submissions it grades a class: each zip or folder
below FOLDER, one CSV row as each ends, logs and a report.html beside the CSV; a second call resumes, and completes rows
that --quick has made. --jobs grades several at a time, --scheduler on the machines of a Dask cluster. A script runs
with your rights: grade strangers with --container.
"""
import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path

import psutil

from common.errors import InputError
from common.files import read_bytes, write_files
from handin import contract, sandbox, submissions
from handin.contract import SCRIPTS
from handin.grading import Settings, grade_script, load_birds, load_digits, summary, table

EXAMPLE = ("python -m handin grade --birds birds/train birds/test --digits mnist_1_4_8_train.npz mnist_1_4_8_val.npz "
           "mnist_1_4_8_test.npz")
ROOT = Path(__file__).resolve().parent.parent


def _positive(text):
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text}")
    return value


def add_arguments(parser):
    add = parser.add_argument
    add("--birds", nargs=2, metavar=("TRAIN", "TEST"), help="folders of class folders of photos")
    add("--digits", nargs=3, metavar=("TRAIN", "VAL", "TEST"), help=".npz files; the script sees no labels of TEST")
    add("--bird", metavar="PATH", help="a script for part I (default: this project's)")
    add("--vae", metavar="PATH", help="a script for part II (default: this project's)")
    add("--bird-model", nargs=1, default=[], metavar="PTH", help="submitted model: tested first, then compared with a "
        "retrained one")
    add("--digit-models", nargs=2, default=[], metavar=("PTH", "PKL"), help="submitted models of part II")
    add("--submissions", type=Path, metavar="FOLDER", help="grade a class instead: each zip and each folder with a "
        "script below FOLDER, such as an export of Gradescope")
    add("--csv", type=Path, metavar="FILE", help="of a class: one row a submission, logs and report.html beside it")
    add("--models", type=Path, metavar="FOLDER", help="of a class: submitted models, as FOLDER/ENTRY/bird.pth "
        "(default: those beside a zip or in its folder)")
    add("--jobs", type=int, default=1, metavar="N", help="submissions at a time on this machine (default 1)")
    add("--scheduler", metavar="ADDRESS", help="of a running Dask scheduler, whose workers see the same files")
    add("--container", default="", metavar="IMAGE", help="run each command in a container of Docker or Podman, without "
        "network, the data read-only")
    add("--json", type=Path, metavar="FILE", help="rows, scores and commands, for machines")
    add("--minutes-birds", type=_positive, default=120, metavar="N", help="of training (default 120)")
    add("--minutes-digits", type=_positive, default=60, metavar="N", help="of training (default 60)")
    add("--minutes-test", type=_positive, default=20, metavar="N", help="of each test (default 20)")
    add("--memory", type=_positive, metavar="GB", help="of a command (default 16, or four fifths of this machine's)")
    add("--train-flags", default="", metavar="WORDS", help="added to the training command; the graders add none")
    add("--quick", action="store_true", help="only the rules, and whether the script imports; no data")


def settings_of(args):
    """Settings of the arguments. Raises InputError for those that do not go together."""
    if bool(args.csv) != bool(args.submissions):
        raise InputError("--submissions: expected together with --csv, found one alone")
    if not (args.birds or args.digits or args.quick):
        raise InputError("grade: expected --birds TRAIN TEST, --digits TRAIN VAL TEST or --quick, found none of them")
    for given, option, data in ((args.bird_model, "--bird-model", args.birds),
                                (args.digit_models, "--digit-models", args.digits)):
        if given and (args.submissions or args.quick or not data):
            raise InputError(f"{option}: expected with the data of its part alone, found without or with --quick or "
                             "--submissions")
    for part, path in (("birds", args.bird), ("digits", args.vae)):
        found = path and contract.part_of_script(read_bytes(path, f"a script of the {part}"))
        if found and found != part:
            raise InputError(f"{path}: expected a script of the {part}, which writes {contract.WORDS[part][0]}, found "
                             f"one of the {found}")
    if args.jobs < 1:
        raise InputError(f"--jobs: expected 1 or more, found {args.jobs}")
    if args.container:
        sandbox.container_engine()  # raises where there is none
    try:
        flags = tuple(shlex.split(args.train_flags))
    except ValueError as error:
        raise InputError(f"--train-flags: expected words as for a shell, found: {error}") from None
    memory = 1e9 * args.memory if args.memory else min(16e9, 0.8 * psutil.virtual_memory().total)
    return Settings({"birds": args.minutes_birds, "digits": args.minutes_digits}, args.minutes_test, memory, flags,
                    args.container)


def run(args):
    """Grades; returns 0, or 1 when a check fails. Raises InputError."""
    settings, data, results = settings_of(args), {}, {}
    if args.birds and not args.quick:
        data["birds"] = load_birds(*args.birds)
    if args.digits and not args.quick:
        data["digits"] = load_digits(*args.digits)

    def say(line):
        print(line, file=sys.stderr, flush=True)

    if args.submissions:
        return submissions.grade_class(args, data, settings, say)
    given = {"birds": args.bird, "digits": args.vae}
    for part, models in (("birds", args.bird_model), ("digits", args.digit_models)):
        if part in data or args.quick and (given[part] or not any(given.values())):
            results[part] = grade_script(part, given[part] or ROOT / SCRIPTS[part], data.get(part), settings, models,
                                         say)
    rows = [row for result in results.values() for row in result.rows]
    print(f"{table(rows)}\n\n{summary(rows)}")
    failed = any(row.status == "fail" for row in rows)
    if args.json:
        content = {"passed": not failed, "rows": [dataclasses.asdict(row) for row in rows],
                   "scores": {part: result.scores for part, result in results.items()},
                   "runs": [one for result in results.values() for one in result.runs]}
        write_files({str(args.json): (json.dumps(content, indent=1) + "\n").encode()})
    return int(failed)
