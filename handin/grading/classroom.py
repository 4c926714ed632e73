"""Grades a class: each submission becomes rows of a CSV, whatever it holds, with marks, logs, feedback and a page.

The work is done by Dask's workers, on this machine or on those of a cluster: if a worker dies, the submission that it
was grading is tried once more. What was found is kept as JSON next to the CSV; everything else is written from it."""
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

PROGRESS = 60  # seconds between two lines of progress
LINK = "model link"  # name of a check


# ------------------------------------------------------------------------------------------------------ one submission

def result_of(submission, **values):
    """What is known of one script of a submission, a dict for JSON: `values`, and defaults for the other keys."""
    return {"part": "", "key": "", "entries": [], "link": "", "problem": "", "layout": "", "report_missing": "",
            "report_text": "", "rows": [], "scores": {}, "runs": [], "machine": "", "time": submission.time,
            "students": [dataclasses.asdict(student) for student in submission.students], **values}


def grade_one(submission, data, keys, settings, quick, models, downloads):
    """[result_of each script] of a submission, or of its problem. `data` and `keys` (see `fingerprint`) are those of
    each part. Nothing that the submission holds raises. This is what a worker of Dask does."""
    try:
        with submissions.opened(submission, settings.folder) as folder:
            try:
                scripts = submissions.find_scripts(folder)
            except InputError as error:
                entries = submissions.find_entries(folder) or re.findall(forms.ENTRY, submission.path.stem.upper())
                return [result_of(submission, problem=str(error), key=keys[""], entries=entries)]
            return [grade_part(submission, folder, part, path, data, keys, settings, quick, models, downloads)
                    for part, path in scripts.items()]
    except InputError as error:
        entries = re.findall(forms.ENTRY, submission.path.stem.upper())
        return [result_of(submission, problem=str(error), key=keys[""], entries=entries)]
    except Exception as error:  # of hundreds of submissions one must not cost the others their grade
        return [result_of(submission, problem=f"not graded: {type(error).__name__}: {one_line(error)}", key=keys[""])]


def grade_part(submission, folder, part, path, data, keys, settings, quick, models=None, downloads=None,
               on_progress=lambda result: None):
    """result_of the script of one part; `path` is that of the script or a text that says what is wrong. Submitted
    models are in the submission or below the folder `models`, or are downloaded to one below `downloads`. `on_progress`
    takes the result so far."""
    if isinstance(path, str):
        return result_of(submission, part=part, problem=path, key=keys.get(part, ""))
    try:
        form = submissions.read_forms(folder, path, part, folder != submission.path)
        values = {"part": part, **dataclasses.asdict(form), "machine": machine(), "key": keys.get(part, "")}
        values["entries"] = values["entries"] or re.findall(forms.ENTRY, submission.path.stem.upper())
        if not quick and part not in data:
            return result_of(submission, **values, problem=f"no data of the {part} was given")
        submitted, rows = [], Rows(part)
        if not quick:
            submitted = submissions.find_models(folder, submission.path, part, form.entries, models)
        if downloads and not quick and not submitted:
            seconds = min(MAX_SECONDS, (settings.stop_at - time.monotonic()) / 3)
            submitted = fetch_models(rows, form.link, download_folder(downloads, submission, form.entries), seconds)

        def as_dict(graded):
            return result_of(submission, **values, rows=[dataclasses.asdict(row) for row in [*rows, *graded.rows]],
                             scores=graded.scores, runs=graded.runs)

        return as_dict(script.grade_script(part, path, None if quick else data[part], settings, submitted,
                                           on_progress=lambda graded: on_progress(as_dict(graded))))
    except Exception as error:
        return result_of(submission, part=part, key=keys.get(part, ""),
                         problem=f"not graded: {type(error).__name__}: {one_line(error)}")


def download_folder(downloads, submission, entries):
    """Where the models of a submission are downloaded to."""
    return downloads / ("_".join(entries) or one_line(submission.path.stem).replace("/", "_"))


def fetch_models(rows, link, folder, seconds=MAX_SECONDS):
    """Paths of the models downloaded from a link, or [] and a warning among the Rows."""
    try:
        for problem in forms.link_problems(link, "model_path.txt"):
            raise FetchError(problem)
        return fetch(link, MODELS[rows.part], folder, seconds)
    except FetchError as error:
        rows.add(LINK, "warn", str(error))
        return []


def link_works_now(result, submission, downloads):
    """Whether the models of a result whose link gave nothing can be downloaded now."""
    failed = any(row["check"] == LINK and row["status"] == "warn" for row in result["rows"])
    return failed and bool(fetch_models(Rows(result["part"]), result["link"],
                                        download_folder(downloads, submission, result["entries"])))


def fingerprint(part, paths, settings, quick, downloads):
    """"full" or "quick" and a hash of what decides a grade of a part, "" for none: the grader, the limits, the data,
    and whether models are downloaded."""
    limits = [settings.minutes, settings.minutes_test, settings.train_flags, dataclasses.asdict(settings.sandbox),
              bool(downloads)]
    state = hashlib.sha256(json.dumps([part, limits]).encode())
    for source in ("script", "contract", "rules", "probe", "sandbox", "scores", "submissions", "data", "fetch"):
        state.update(Path(__file__).with_name(f"{source}.py").read_bytes())
    for place in map(Path, paths):
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            state.update(f"{file} {file.stat().st_size if file.is_file() else ''}\n".encode())
    return f"{'quick' if quick else 'full'} {state.hexdigest()[:12]}"


# ------------------------------------------------------------------------------------------------------------- a class

def in_parallel(work, data, jobs, scheduler):
    """Yields (name, result of grade_one, or an exception) of {name: (submission, further arguments)} as each ends, and
    (None, None) about once a minute."""
    import dask
    from distributed import Client, LocalCluster, wait
    once_more = {"distributed.scheduler.allowed-failures": 1, "distributed.scheduler.worker-saturation": 1.0}
    with dask.config.set(once_more), contextlib.ExitStack() as stack:
        if not scheduler:
            threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} if jobs > 1 else {}
            scheduler = stack.enter_context(LocalCluster(n_workers=jobs, threads_per_worker=1, memory_limit=0,
                                                         dashboard_address=":0", silence_logs=50, env=threads))
        try:
            client = stack.enter_context(Client(scheduler, timeout=10))
        except (OSError, ValueError, TimeoutError) as error:
            raise InputError(f"--scheduler: expected the address of a Dask scheduler, found: "
                             f"{one_line(error)}") from None
        names = {client.submit(grade_one, submission, data, *arguments, pure=False): name
                 for name, (submission, *arguments) in work.items()}
        while names:
            try:
                done = wait(list(names), timeout=PROGRESS, return_when="FIRST_COMPLETED").done
            except (TimeoutError, asyncio.TimeoutError):  # one class from Python 3.11 on
                yield None, None
                continue
            for future in done:
                result = future.exception() or future.result()
                future.release()  # else the death of the worker that has the result would have it graded again
                yield names.pop(future), result


def grade_class(args, data, settings, log):
    """Grades every submission without a result of this grader, data and settings (a full result also satisfies
    --quick), and those of --regrade; rewrites all outputs after each. Returns 0, or 1 if something cannot be graded or
    fails a check. Raises InputError."""
    rubric = read_rubric(args.rubric) if args.rubric else read_rubric()
    places = outputs.paths(args.csv)
    handed_in = submissions.find_submissions(args.submissions, places.values())
    known = read_state(args.csv, places["state"])
    paths = {part: getattr(args, part) for part in data}
    downloads, models = (path and path.resolve() for path in (args.fetch_models, args.models))
    keys = {part: fingerprint(part, paths.get(part, ()), settings, args.quick, downloads)
            for part in ("", *script.SCRIPTS) if part in paths or args.quick or not part}
    regrade = names_to_regrade(known, args.regrade, places["state"])
    overrides, work, graded, start = read_overrides(places["overrides"]), {}, 0, time.monotonic()
    versions, unchanged = {}, {}

    def write(changed=(), similar=()):
        return outputs.write(args.csv, {name: known[name]["results"] for name in known if name in handed_in}, rubric,
                             overrides, args.anonymous, similar, changed)

    for name, submission in handed_in.items():
        submission = dataclasses.replace(submission, path=submission.path.resolve())
        version, before = submission.version(), known.get(name, {})
        same = before.get("version") == version and name not in regrade
        current = same and before["results"] and all(is_current(one, keys, args.quick) for one in before["results"])
        if current and not (downloads and any(link_works_now(one, submission, downloads) for one in before["results"])):
            log(f"{name}: graded before")
            for result in before["results"]:
                result.update({key: result_of(submission)[key] for key in ("students", "time")})
        else:
            work[name] = submission, keys, settings, args.quick, models, downloads
            known[name] = {"version": "", "results": before.get("results", [])}  # until the new ones are there
            versions[name], unchanged[name] = version, same
    write_files({str(places["state"]): json.dumps(known, indent=1).encode()})
    write()
    for name, results in in_parallel(work, data, args.jobs, args.scheduler) if work else ():
        if name is None:
            log(progress_line(graded, len(work), time.monotonic() - start, args.jobs))
            continue
        if isinstance(results, BaseException):
            results = [result_of(work[name][0], key=keys[""], problem="not graded: the grading process crashed twice "
                                 f"({type(results).__name__})")]
        before = {result["part"]: result for result in known[name]["results"] if result["scores"] and unchanged[name]}
        known[name] = {"version": versions[name], "results": [  # a part without data now may have been graded before
            before[result["part"]] if result["part"] in before and result["part"] not in keys else result
            for result in results]}
        graded += 1
        write_files({str(places["state"]): json.dumps(known, indent=1).encode()})
        with contextlib.suppress(InputError):  # half-written at the moment
            overrides = read_overrides(places["overrides"])
        write([name])
        for result in known[name]["results"]:
            print(f"{name}: {result['part'] or 'cannot be graded'}: {'; '.join(failures(result)) or 'all checks pass'}",
                  flush=True)
    for problem in write(known, similar_scripts(handed_in)[:50] if args.similar else ()):
        log(problem)
    return int(any(failures(result) for name in handed_in for result in known[name]["results"]))


def read_state(table_path, state):
    """{name: {"version", "results"}} that an earlier call found, {} if there was none. Raises InputError."""
    known = read_json(state, "what an earlier call found") if state.exists() else {}
    if table_path.exists() and not state.exists() or any("results" not in entry for entry in known.values()):
        raise InputError(f"{table_path}: expected the file of an earlier call, with {state.name} next to it, found "
                         "another; name another file")
    return known


def names_to_regrade(known, terms, state):
    """Names of the submissions that --regrade gives, as names or entry numbers. Raises InputError for unknown ones."""
    names = {name for name, entry in known.items()
             if {name, *(number for result in entry["results"] for number in result["entries"])} & set(terms)}
    unknown = set(terms) - names - {number for name in names for result in known[name]["results"]
                                    for number in result["entries"]}
    if unknown:
        raise InputError(f"--regrade: expected submissions or entry numbers of {state}, found "
                         f"{', '.join(sorted(unknown))}")
    return names


def is_current(result, keys, quick):
    """Whether grading again would change nothing: the same grader, data and settings, or no data for the part."""
    return (result["part"] not in keys or result["key"] == keys[result["part"]]
            or quick and result["key"].startswith("full"))


def failures(result):
    """["check: detail"] of what fails in a result."""
    return [result["problem"]] if result["problem"] else outputs.of_status(result["rows"], "fail")


def progress_line(graded, total, seconds, jobs):
    left = (f"about {duration(seconds / graded * (total - graded))} left" if graded else
            f"{min(jobs, total)} in progress")
    return f"{graded} of {total} graded after {duration(seconds)}, {left}"
