"""Gradescope's autograder: --out writes a zip to upload there, --try runs one on a submission on this machine.

It checks the rules, the forms and the report, scores the submitted model, which is in the submission or behind the link
of its model_path.txt, and trains the script on a small sample of the data. `grade --submissions` runs the full training
on an export of all submissions."""
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from common.command_line import number
from common.errors import InputError, convert_input_errors
from common.files import read_bytes, read_json, write_files, zip_bytes
from handin.grading import gradescope, submissions
from handin.grading.contract import SCRIPTS
from handin.grading.data import check_digit_paths, check_disjoint, image_key
from handin.grading.marks import RUBRIC, maximum, read_rubric
from handin.grading.sandbox import ROOT
from handin.grading.scores import read_birds, read_digits

EXAMPLE = ("python -m handin autograder --out autograder.zip --birds birds/train birds/test\n         "
           "python -m handin autograder --try autograder.zip submission.zip")
TEMPLATES = Path(__file__).with_name("gradescope_files")
PACKED_CODE = ("common/*.py", "handin/__init__.py", "handin/forms.py", "handin/grading/*.py", "handin/grading/*.html",
               "handin/grading/rubric.yaml", *SCRIPTS.values())
VISIBILITIES = ("after_due_date", "after_published", "visible")
RESERVED_MINUTES = 1.5  # of Gradescope's timeout, for starting the container and writing the results


def add_arguments(parser):
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", help="output zip; with --try: a copy of results.json")
    add("--birds", nargs=2, metavar=("TRAIN", "TEST"), help="folders of class folders of photos, of which a sample is "
        "packed")
    add("--digits", nargs="+", metavar="NPZ", help="TRAIN VAL TEST [RECONSTRUCTION]: .npz files, of which a sample is "
        "packed")
    add("--per-class", type=number(int, 1), default=20, metavar="N", help="photos of each class, from TRAIN and from "
        "TEST (default 20)")
    add("--digits-per-file", type=number(int, 1), default=1000, metavar="N", help="digits from TRAIN and from TEST "
        "(default 1000)")
    add("--rubric", type=Path, default=RUBRIC, metavar="FILE", help="points and deductions, as for `grade`")
    add("--minutes", type=number(float, 5, 40), default=40, metavar="N", help="the timeout set on Gradescope, at "
        "most 40 (default 40)")
    add("--memory", type=number(float, 1), default=6, metavar="GB", help="the memory set on Gradescope (default 6)")
    add("--max-per-day", type=number(int, 0), default=0, metavar="N", help="submissions graded in 24 hours "
        "(default: all)")
    add("--visibility", choices=VISIBILITIES, default="after_published", help="when students see their scores "
        "(default: after_published)")
    add("--try", nargs=2, dest="simulate", metavar=("ZIP", "SUBMISSION"), help="grade a submission, a folder or a zip, "
        "in a copy of Gradescope's folders on this machine")


def sample_photos(folder, n, classes):
    """{relative path: bytes} of n random photos of each class (seed 0)."""
    paths, labels = read_birds(str(folder), classes)
    rng, files = np.random.default_rng(0), {}
    for label in np.unique(labels):
        for index in sorted(rng.permutation(np.flatnonzero(labels == label))[:n]):
            files[Path(paths[index]).relative_to(folder).as_posix()] = read_bytes(paths[index], "a photo")
    return files


def sample_digits(path, n, folder):
    """Bytes of a .npz file with n random images of another (seed 0) and their labels, if any."""
    digits, labels = read_digits(path)
    index = np.sort(np.random.default_rng(0).permutation(len(digits))[:n])
    with np.load(path, allow_pickle=False) as content:
        key = image_key(content)
        arrays = {key: content[key][index], **({} if labels is None else {"labels": labels[index]})}
    np.savez(folder / "sample.npz", **arrays)
    return (folder / "sample.npz").read_bytes()


def sample_data(args):
    """{path in the zip: bytes}, and {part: paths in the zip, as `grade` takes them}. Raises InputError."""
    import bird
    import vae
    files, data = {}, {}
    with convert_input_errors(bird, vae), tempfile.TemporaryDirectory() as folder:
        if args.birds:
            check_disjoint(*args.birds)
            classes, _ = bird.list_photos(str(args.birds[0]))
            data["birds"] = ["data/birds/train", "data/birds/test"]
            for source, target in zip(args.birds, data["birds"]):
                photos = sample_photos(Path(source), args.per_class, classes)
                files.update({f"{target}/{path}": content for path, content in photos.items()})
        if args.digits:
            check_digit_paths(args.digits)
            if read_digits(args.digits[2])[1] is None:
                raise InputError(f"{args.digits[2]}: expected labels, which scores need, found none")
            names = ("train", "val", "test", "reconstruction")[:len(args.digits)]
            data["digits"] = [f"data/digits/{name}.npz" for name in names]
            for name, source, target in zip(names, args.digits, data["digits"]):
                files[target] = sample_digits(source, None if name == "val" else args.digits_per_file, Path(folder))
    return files, data


def build(args):
    """Writes the zip; returns 0. Raises InputError."""
    import jinja2
    if not args.out or args.out.suffix != ".zip":
        raise InputError("--out: expected a name that ends with .zip, found " + (str(args.out) if args.out else
                         "none; or give --try to run one on this machine"))
    if not (args.birds or args.digits):
        raise InputError("autograder: expected --birds TRAIN TEST or --digits TRAIN VAL TEST, found neither")
    rubric = read_rubric(args.rubric)
    files, data = sample_data(args)
    settings = {"data": data, "grading_minutes": args.minutes - RESERVED_MINUTES, "memory": args.memory,
                "max_per_day": args.max_per_day, "visibility": args.visibility}
    for pattern in PACKED_CODE:
        files.update({path.relative_to(ROOT).as_posix(): path.read_bytes() for path in sorted(ROOT.glob(pattern))})
    files.update({path.name: path.read_bytes() for path in TEMPLATES.iterdir() if path.suffix != ".md"})
    readme = jinja2.Template((TEMPLATES / "README.md").read_text(encoding="utf-8"), keep_trailing_newline=True)
    points = {SCRIPTS[part]: maximum(rubric, part) for part in data}
    files["README.md"] = readme.render(args=args, settings=settings, points=points).encode()
    files["rubric.yaml"] = read_bytes(args.rubric, "a rubric")
    files["settings.json"] = json.dumps(settings, indent=1).encode()
    content = zip_bytes(files, ("setup.sh", "run_autograder"))
    write_files({args.out: content})
    print(f"wrote {args.out}, {len(content) / 1e6:.1f} MB: upload it to Gradescope; its README.md lists the settings "
          "to choose there")
    return 0


def simulate(archive, submission, out):
    """Grades a submission with an autograder's zip in a temporary copy of Gradescope's folders. Returns 0, or 1 if the
    autograder failed. Raises InputError."""
    with tempfile.TemporaryDirectory(prefix="autograder_") as folder:
        root = Path(folder)
        (root / "results").mkdir()
        for source, target in ((Path(archive), root / "source"), (Path(submission), root / "submission")):
            if source.is_dir():
                try:
                    shutil.copytree(source, target, symlinks=True)
                except (shutil.Error, OSError) as error:
                    raise InputError(f"{source}: expected readable files, found: {error}") from None
                continue
            if not source.is_file():
                raise InputError(f"{source}: expected a zip or a folder, found none")
            target.mkdir()
            submissions.unpack(source, target, nested=False)
        if not (root / "source" / "run_autograder").exists():
            raise InputError(f"{archive}: expected a zip of `python -m handin autograder --out`, found another")
        now = datetime.datetime.now(datetime.timezone.utc).isoformat()
        metadata = {"id": 1, "created_at": now, "assignment": {"due_date": now, "title": "A trial"},
                    "users": [{"id": 1, "name": "A student", "email": "student@example.org"}],
                    "previous_submissions": []}
        write_files({root / "submission_metadata.json": json.dumps(metadata).encode()})
        print("grading, which may take some minutes ...", file=sys.stderr, flush=True)
        done = subprocess.run(["bash", str(root / "source" / "run_autograder")], check=False,
                              env={**os.environ, "AUTOGRADER": str(root), "PYTHON": sys.executable})
        results = read_json(root / "results" / "results.json", "the results of the autograder")
        print(gradescope.as_text(results))
        if out:
            write_files({out: json.dumps(results, indent=1).encode()})
    return int(done.returncode != 0)


def run(args):
    """Writes an autograder's zip or tries one; returns the exit code. Raises InputError."""
    return simulate(*args.simulate, args.out) if args.simulate else build(args)
