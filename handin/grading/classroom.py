"""Grades a class: each submission becomes rows of a CSV, whatever it contains, with marks, logs, feedback and a page.

Dask workers grade, on this machine or on a cluster: if a worker dies, its submission is retried once. The results are
saved as JSON next to the CSV; all other outputs are written from them."""
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import time
from pathlib import Path

from common.errors import InputError
from common.files import read_json, write_files
from common.text import one_line
from handin import forms
from handin.grading import outputs, script, submissions
from handin.grading.contract import MODELS, Rows
from handin.grading.fetch import MAX_SECONDS, FetchError, fetch
from handin.grading.marks import read_overrides, read_rubric
from handin.grading.sandbox import duration, machine
from handin.grading.similar import similar_scripts

PROGRESS_SECONDS = 60  # between two lines of progress
LINK_CHECK = "model link"  # name of a check


# ------------------------------------------------------------------------------------------------------ one submission

def make_result(submission, **values):
    """The result of one script of a submission, a dict for JSON: `values`, and defaults for the other keys."""
    return {"part": "", "key": "", "entries": [], "link": "", "problem": "", "layout": "", "report_missing": "",
            "report_text": "", "rows": [], "scores": {}, "runs": [], "machine": "", "time": submission.time,
            "students": [dataclasses.asdict(student) for student in submission.students], **values}


def grade_submission(submission, data, keys, settings, quick, models, downloads):
    """The results (see `make_result`) of all scripts of a submission, or one with its problem; `data` and `keys` (see
    `fingerprint`) by part. No submission raises. Dask workers call this."""
    try:
        with submissions.open_submission(submission, settings.folder) as folder:
            try:
                scripts = submissions.find_scripts(folder)
            except InputError as error:
                entries = submissions.find_entries(folder) or re.findall(forms.ENTRY, submission.path.stem.upper())
                return [make_result(submission, problem=str(error), key=keys[""], entries=entries)]
            return [grade_part(submission, folder, part, path, data, keys, settings, quick, models, downloads)
                    for part, path in scripts.items()]
    except InputError as error:
        entries = re.findall(forms.ENTRY, submission.path.stem.upper())
        return [make_result(submission, problem=str(error), key=keys[""], entries=entries)]
    except Exception as error:  # one submission must not stop the grading of the others
        return [make_result(submission, problem=f"not graded: {type(error).__name__}: {one_line(error)}", key=keys[""])]


def grade_part(submission, folder, part, path, data, keys, settings, quick, models=None, downloads=None,
               on_progress=lambda result: None):
    """The result of the script of one part; `path` is its path or a text on the problem. Submitted models are in the
    submission or below the folder `models`, or are downloaded below `downloads`. `on_progress` is called with the
    result so far."""
    if isinstance(path, str):
        return make_result(submission, part=part, problem=path, key=keys.get(part, ""))
    try:
        files = submissions.check_files(folder, path, part, folder != submission.path)
        values = {"part": part, **dataclasses.asdict(files), "machine": machine(), "key": keys.get(part, "")}
        values["entries"] = values["entries"] or re.findall(forms.ENTRY, submission.path.stem.upper())
        if not quick and part not in data:
            return make_result(submission, **values, problem=f"no {part} data was given")
        submitted, rows = [], Rows(part)
        if not quick:
            submitted = submissions.find_models(folder, submission.path, part, files.entries, models)
        if downloads and not quick and not submitted:
            seconds = min(MAX_SECONDS, (settings.deadline - time.monotonic()) / 3)
            submitted = fetch_models(rows, files.link, download_folder(downloads, submission, files.entries), seconds)

        def as_dict(graded):
            return make_result(submission, **values, rows=[dataclasses.asdict(row) for row in [*rows, *graded.rows]],
                             scores=graded.scores, runs=graded.runs)

        return as_dict(script.grade_script(part, path, None if quick else data[part], settings, submitted,
                                           on_progress=lambda graded: on_progress(as_dict(graded))))
    except Exception as error:
        return make_result(submission, part=part, key=keys.get(part, ""),
                         problem=f"not graded: {type(error).__name__}: {one_line(error)}")


def download_folder(downloads, submission, entries):
    """The folder that the models of a submission are downloaded to."""
    return downloads / ("_".join(entries) or one_line(submission.path.stem).replace("/", "_"))


def fetch_models(rows, link, folder, seconds=MAX_SECONDS):
    """Paths of the models downloaded from a link; if that fails, [], and a warning is added to the Rows."""
    try:
        for problem in forms.link_problems(link, "model_path.txt"):
            raise FetchError(problem)
        return fetch(link, MODELS[rows.part], folder, seconds)
    except FetchError as error:
        rows.add(LINK_CHECK, "warn", str(error))
        return []


def link_works_now(result, submission, downloads):
    """Whether the models of a result whose link failed can be downloaded now."""
    failed = any(row["check"] == LINK_CHECK and row["status"] == "warn" for row in result["rows"])
    return failed and bool(fetch_models(Rows(result["part"]), result["link"],
                                        download_folder(downloads, submission, result["entries"])))


def fingerprint(part, paths, settings, quick, downloads):
    """"full" or "quick" and a hash of everything that affects the grade of a part ("": of no part): the grader, the
    limits, the data, and whether models are downloaded."""
    limits = [settings.minutes, settings.minutes_test, settings.train_flags, dataclasses.asdict(settings.sandbox),
              bool(downloads)]
    state = hashlib.sha256(json.dumps([part, limits]).encode())
    for source in ("script", "contract", "rules", "probe", "sandbox", "scores", "submissions", "data", "fetch"):
        state.update(Path(__file__).with_name(f"{source}.py").read_bytes())
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            state.update(f"{file} {file.stat().st_size if file.is_file() else ''}\n".encode())
    return f"{'quick' if quick else 'full'} {state.hexdigest()[:12]}"


# ------------------------------------------------------------------------------------------------------------- a class

def in_parallel(tasks, data, jobs, scheduler):
    """Yields (name, results of grade_submission, or an exception) for {name: (submission, further arguments)} as each
    ends, and (None, None) about once a minute."""
    import dask
    from distributed import Client, LocalCluster, wait
    dask_config = {"distributed.scheduler.allowed-failures": 1, "distributed.scheduler.worker-saturation": 1.0}
    with dask.config.set(dask_config), contextlib.ExitStack() as stack:
        if not scheduler:
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
            scheduler = stack.enter_context(LocalCluster(n_workers=jobs, threads_per_worker=1, memory_limit=0,
                                                         dashboard_address=":0", silence_logs=50, env=threads))
        try:
            client = stack.enter_context(Client(scheduler, timeout=10))
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(f"--scheduler: expected the address of a Dask scheduler, found: "
                             f"{one_line(error)}") from None
        names = {client.submit(grade_submission, submission, data, *arguments, pure=False): name
                 for name, (submission, *arguments) in tasks.items()}
        while names:
            try:
                done = wait(list(names), timeout=PROGRESS_SECONDS, return_when="FIRST_COMPLETED").done
            except (TimeoutError, asyncio.TimeoutError):  # one class from Python 3.11 on
                yield None, None
                continue
            for future in done:
                result = future.exception() or future.result()
                future.release()  # otherwise the submission is graded again if the worker with its result dies
                yield names.pop(future), result


def grade_class(args, data, settings, log):
    """Grades all submissions without a saved result of this grader, data and settings (a full result also satisfies
    --quick), and those of --regrade; rewrites all outputs after each. Returns 0, or 1 if a submission cannot be graded
    or fails a check. Raises InputError."""
    rubric = read_rubric(args.rubric) if args.rubric else read_rubric()
    output_paths = outputs.output_paths(args.csv)
    found = submissions.find_submissions(args.submissions, output_paths.values())
    saved = read_results(args.csv, output_paths["state"])
    data_paths = {part: getattr(args, part) for part in data}
    downloads, models = (path and path.resolve() for path in (args.fetch_models, args.models))
    keys = {part: fingerprint(part, data_paths.get(part, ()), settings, args.quick, downloads)
            for part in ("", *script.SCRIPTS) if part in data_paths or args.quick or not part}
    regrade = names_to_regrade(saved, args.regrade, output_paths["state"])
    overrides, tasks, graded, start = read_overrides(output_paths["overrides"]), {}, 0, time.monotonic()
    versions, unchanged = {}, {}

    def write(changed=(), similar=()):
        return outputs.write_outputs(args.csv, {name: saved[name]["results"] for name in saved if name in found},
                                     rubric, overrides, args.anonymous, similar, changed)

    for name, submission in found.items():
        submission = dataclasses.replace(submission, path=submission.path.resolve())
        version, before = submission.version(), saved.get(name, {})
        same = before.get("version") == version and name not in regrade
        earlier = before.get("results", [])
        current = same and earlier and all(is_current(result, keys, args.quick) for result in earlier)
        if current and not (downloads and any(link_works_now(result, submission, downloads) for result in earlier)):
            log(f"{name}: graded before")
            for result in earlier:
                result.update({key: make_result(submission)[key] for key in ("students", "time")})
        else:
            tasks[name] = submission, keys, settings, args.quick, models, downloads
            saved[name] = {"version": "", "results": earlier}  # until there are new ones
            versions[name], unchanged[name] = version, same
    write_files({str(output_paths["state"]): json.dumps(saved, indent=1).encode()})
    write()
    for name, results in in_parallel(tasks, data, args.jobs, args.scheduler) if tasks else ():
        if name is None:
            log(progress_line(graded, len(tasks), time.monotonic() - start, args.jobs))
            continue
        if isinstance(results, BaseException):
            results = [make_result(tasks[name][0], key=keys[""], problem="not graded: the grading process crashed "
                                   f"twice ({type(results).__name__})")]
        before = {result["part"]: result for result in saved[name]["results"] if result["scores"] and unchanged[name]}
        saved[name] = {"version": versions[name], "results": [  # a part without data now may have been graded before
            before[result["part"]] if result["part"] in before and result["part"] not in keys else result
            for result in results]}
        graded += 1
        write_files({str(output_paths["state"]): json.dumps(saved, indent=1).encode()})
        with contextlib.suppress(InputError):  # half-written
            overrides = read_overrides(output_paths["overrides"])
        write([name])
        for result in saved[name]["results"]:
            failed = "; ".join(outputs.failures(result)) or "all checks pass"
            print(f"{name}: {result['part'] or 'cannot be graded'}: {failed}", flush=True)
    for problem in write(saved, similar_scripts(found)[:50] if args.similar else ()):
        log(problem)
    return int(any(outputs.failures(result) for name in found for result in saved[name]["results"]))


def read_results(table_path, state):
    """{name: {"version", "results"}} saved by an earlier call, {} if there was none. Raises InputError."""
    saved = read_json(state, "the results of an earlier call") if state.exists() else {}
    if table_path.exists() and not state.exists() or any("results" not in entry for entry in saved.values()):
        raise InputError(f"{table_path}: expected the file of an earlier call, with {state.name} next to it, found "
                         "another; choose another file")
    return saved


def names_to_regrade(saved, terms, state):
    """Names of the submissions that --regrade selects by name or entry number. Raises InputError for unknown ones."""
    names = {name for name, entry in saved.items()
             if {name, *(number for result in entry["results"] for number in result["entries"])} & set(terms)}
    unknown = set(terms) - names - {number for name in names for result in saved[name]["results"]
                                    for number in result["entries"]}
    if unknown:
        raise InputError(f"--regrade: expected submissions or entry numbers of {state}, found "
                         f"{', '.join(sorted(unknown))}")
    return names


def is_current(result, keys, quick):
    """Whether grading again would change nothing: the same grader, data and settings, or no data for the part."""
    return (result["part"] not in keys or result["key"] == keys[result["part"]]
            or quick and result["key"].startswith("full"))


def progress_line(graded, total, seconds, jobs):
    left = (f"about {duration(seconds / graded * (total - graded))} left" if graded else
            f"{min(jobs, total)} in progress")
    return f"{graded} of {total} graded after {duration(seconds)}, {left}"
