"""The course's autograder for any machine: checks the rules, runs the graders' commands on any pair of scripts that
follow the assignment, each alone in fresh folders, isolated by bubblewrap or a container, with limits on time, memory
and output, and checks and scores the outputs.

Without --bird and --vae it grades this project's own scripts. With --submissions it grades a class: a row and a mark
for each script below FOLDER, as each ends, with logs, feedback and a report.html next to the CSV; a second call
resumes, and completes rows of --quick. --jobs grades several submissions in parallel, --scheduler on the machines of a
Dask cluster."""
import dataclasses
import json
import shlex
import signal
import sys
from pathlib import Path

import psutil

from common.command_line import number
from common.errors import InputError
from common.files import read_bytes, write_files
from handin.grading import classroom, contract, sandbox
from handin.grading.contract import SCRIPTS
from handin.grading.data import LOADERS, check_digit_paths
from handin.grading.script import Settings, format_checks, grade_script, remove_stale_folders, summary, temporary_folder

EXAMPLE = ("python -m handin grade --birds birds/train birds/test --digits mnist_1_4_8_train.npz mnist_1_4_8_val.npz "
           "mnist_1_4_8_test.npz")


POSITIVE = number(float, 0, strict=True)


def add_arguments(parser):
    add = parser.add_argument
    add("--birds", nargs=2, metavar=("TRAIN", "TEST"), help="folders of class folders of photos")
    add("--digits", nargs="+", metavar="NPZ", help="TRAIN VAL TEST [RECONSTRUCTION]: .npz files; the labels of TEST "
        "are hidden from scripts; the images of RECONSTRUCTION (default: TEST) are reconstructed")
    add("--bird", metavar="PATH", help="a script for part I (default: this project's)")
    add("--vae", metavar="PATH", help="a script for part II (default: this project's)")
    add("--bird-model", nargs=1, default=[], metavar="PTH", help="submitted model, tested first and compared with a "
        "retrained one")
    add("--digit-models", nargs=2, default=[], metavar=("PTH", "PKL"), help="submitted models of part II")
    add("--quick", action="store_true", help="check only the rules and whether the script imports; no data")
    add("--json", type=Path, metavar="FILE", help="output file of rows, scores and commands")
    add = parser.add_argument_group("limits").add_argument
    add("--minutes-birds", type=POSITIVE, default=120, metavar="N", help="training time limit of bird.py in minutes "
        "(default 120)")
    add("--minutes-digits", type=POSITIVE, default=60, metavar="N", help="training time limit of vae.py in minutes "
        "(default 60)")
    add("--minutes-test", type=POSITIVE, default=20, metavar="N", help="time limit of each test in minutes (default "
        "20)")
    add("--memory", type=POSITIVE, metavar="GB", help="memory limit of a command (default 16, or four fifths of this "
        "machine's)")
    add("--train-flags", default="", metavar="WORDS", help="flags added to the training command (default: none)")
    add("--sandbox", choices=("auto", "bwrap", "container", "none"), default="auto", help="isolation of each command: "
        "no network, no access to the answers, only its own folders writable (default: bubblewrap if it works)")
    add("--container", default="", metavar="IMAGE", help="image for Docker or Podman with the course's packages")
    add = parser.add_argument_group("a class").add_argument
    add("--submissions", type=Path, metavar="FOLDER", help="each zip and each folder with a script below FOLDER, such "
        "as an export of Gradescope, Moodle or Canvas")
    add("--csv", type=Path, metavar="FILE", help="output table, one row per script; other outputs are written next "
        "to it")
    add("--models", type=Path, metavar="FOLDER", help="submitted models, as FOLDER/ENTRY/bird.pth (default: those next "
        "to a zip or in its folder)")
    add("--fetch-models", type=Path, metavar="FOLDER", help="download missing submitted models from the links of "
        "model_path.txt to FOLDER/ENTRY/")
    add("--rubric", type=Path, metavar="FILE", help="points and deductions (default: handin/grading/rubric.yaml)")
    add("--regrade", nargs="+", default=[], metavar="NAME", help="regrade these submissions or entry numbers")
    add("--anonymous", action="store_true", help="no names in the CSV, the page and the feedback")
    add("--similar", action="store_true", help="list pairs of similar scripts in report.html")
    add("--jobs", type=number(int, 1), default=1, metavar="N", help="submissions graded in parallel (default 1)")
    add("--scheduler", metavar="ADDRESS", help="address of a running Dask scheduler whose workers see the same files")


def make_settings(args):
    """Settings of the arguments. Raises InputError for incompatible ones."""
    if bool(args.csv) != bool(args.submissions):
        found, missing = ("--csv", "--submissions") if args.csv else ("--submissions", "--csv")
        raise InputError(f"{found}: expected together with {missing}, which is missing")
    for name in ("models", "rubric", "regrade", "anonymous", "similar", "scheduler", "jobs"):
        if not args.submissions and getattr(args, name) and (name != "jobs" or args.jobs > 1):
            raise InputError(f"--{name}: expected together with --submissions, which is missing")
    if args.csv and args.csv.suffix != ".csv":
        raise InputError(f"--csv: expected a name that ends with .csv, found {args.csv}")
    if not (args.birds or args.digits or args.quick):
        raise InputError("grade: expected --birds TRAIN TEST, --digits TRAIN VAL TEST or --quick, found none of them")
    if args.digits:
        check_digit_paths(args.digits)
    for given, option, data in ((args.bird_model, "--bird-model", args.birds),
                                (args.digit_models, "--digit-models", args.digits)):
        if given and (args.submissions or args.quick or not data):
            raise InputError(f"{option}: needs the data of its part and cannot be combined with --quick or "
                             "--submissions")
    for path in filter(None, (args.bird, args.vae)):
        if not path.endswith(".py"):
            raise InputError(f"{path}: expected a Python script, a .py file, found another extension")
    for part, path in (("birds", args.bird), ("digits", args.vae)):
        found = path and contract.part_of_script(read_bytes(path, f"a {part} script"))
        if found and found != part:
            raise InputError(f"{path}: expected a {part} script, which writes {contract.PART_STRINGS[part][0]}, found "
                             f"a {found} script")
    try:
        flags = tuple(shlex.split(args.train_flags))
    except ValueError as error:
        raise InputError(f"--train-flags: expected words as for a shell, found: {error}") from None
    memory = 1e9 * args.memory if args.memory else min(16e9, 0.8 * psutil.virtual_memory().total)
    if args.fetch_models and (args.quick or not args.submissions):
        raise InputError("--fetch-models: needs --submissions and cannot be combined with --quick")
    hidden = [args.submissions, args.models, args.fetch_models, args.csv.parent] if args.submissions else []
    return Settings({"birds": args.minutes_birds, "digits": args.minutes_digits}, args.minutes_test, memory, flags,
                    sandbox.choose_sandbox(args.sandbox, args.container),
                    tuple(str(path.resolve()) for path in hidden if path))


def run(args):
    """Grades; returns 0, or 1 if a check fails. Raises InputError."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # folders are removed, as after Ctrl-C
    remove_stale_folders()
    settings, data, results = make_settings(args), {}, {}

    def log(line):
        print(line, file=sys.stderr, flush=True)

    # Workers on other machines see the folder of the CSV.
    with temporary_folder(str(args.csv.resolve().parent) if args.scheduler else "") as folder:
        for part, load in LOADERS.items():
            if getattr(args, part) and not args.quick:
                (folder / part).mkdir()
                data[part] = load(folder / part, *getattr(args, part))
        if args.submissions:
            settings = dataclasses.replace(settings, folder="" if args.scheduler else str(folder))
            return classroom.grade_class(args, data, settings, log)
        given = {"birds": args.bird, "digits": args.vae}
        for part, models in (("birds", args.bird_model), ("digits", args.digit_models)):
            if part in data or args.quick and (given[part] or not any(given.values())):
                path = given[part] or sandbox.ROOT / SCRIPTS[part]
                results[part] = grade_script(part, path, data.get(part), settings, models, log)
    rows = [row for result in results.values() for row in result.rows]
    print(f"{format_checks(rows)}\n\n{summary(rows)}")
    failed = any(row.status == "fail" for row in rows)
    if args.json:
        content = {"passed": not failed, "machine": sandbox.machine(),
                   "rows": [dataclasses.asdict(row) for row in rows],
                   "scores": {part: result.scores for part, result in results.items()},
                   "runs": [run for result in results.values() for run in result.runs]}
        write_files({str(args.json): (json.dumps(content, indent=1) + "\n").encode()})
    return int(failed)
