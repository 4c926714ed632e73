"""Gradescope's autograder: --out writes a zip to upload there, --try runs one on a submission on this machine.

There it checks the rules, the forms and the report, scores the submitted model, which is in the submission or behind
the link of its model_path.txt, and trains the script on a few data. The full training is that of `grade --submissions`
with an export of all submissions."""
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from common.errors import InputError, bad_input_of
from common.files import read_bytes, read_json, write_files
from handin.grading import gradescope
from handin.grading.contract import SCRIPTS
from handin.grading.marks import RUBRIC, read_rubric
from handin.grading.sandbox import ROOT
from handin.grading.scores import read_birds, read_digits

EXAMPLE = ("python -m handin autograder --out autograder.zip --birds birds/train birds/test\n         "
           "python -m handin autograder --try autograder.zip submission.zip")
FILES = Path(__file__).with_name("gradescope_files")
CODE = ("common/*.py", "handin/__init__.py", "handin/forms.py", "handin/grading/*.py", "handin/grading/*.html",
        "handin/grading/rubric.yaml", *SCRIPTS.values())
VISIBILITIES = ("hidden", "after_due_date", "after_published", "visible")
MARGIN = 1.5  # minutes of Gradescope's limit that are left for starting


def add_arguments(parser):
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", help="the zip to write; with --try: its results.json")
    add("--birds", nargs=2, metavar=("TRAIN", "TEST"), help="folders of class folders of photos; some are taken")
    add("--digits", nargs="+", metavar="NPZ", help="TRAIN VAL TEST [RECONSTRUCTION]: .npz files; some images are taken")
    add("--per-class", type=int, default=20, metavar="N", help="photos of each class of TRAIN and TEST (default 20)")
    add("--images", type=int, default=1000, metavar="N", help="digits of TRAIN and TEST (default 1000)")
    add("--rubric", type=Path, default=RUBRIC, metavar="FILE", help="points and deductions, as of `grade`")
    add("--minutes", type=float, default=40, metavar="N", help="Gradescope's time limit that you choose (default 40)")
    add("--memory", type=float, default=6, metavar="GB", help="Gradescope's memory that you choose (default 6)")
    add("--daily", type=int, default=0, metavar="N", help="submissions graded in 24 hours (default: all)")
    add("--visibility", choices=VISIBILITIES, default="after_published", help="of scores (default: after_published)")
    add("--try", nargs=2, dest="tried", metavar=("ZIP", "SUBMISSION"), help="lay out the folders of Gradescope on this "
        "machine and grade a submission: a folder or a zip, which Gradescope unpacks")


def settings_of(args):
    """The content of settings.json. Raises InputError."""
    if not args.out or args.out.suffix != ".zip":
        raise InputError(f"--out: expected a name that ends with .zip, found {args.out}")
    if not (args.birds or args.digits):
        raise InputError("autograder: expected --birds TRAIN TEST or --digits TRAIN VAL TEST, found neither")
    if args.digits and len(args.digits) not in (3, 4):
        raise InputError(f"--digits: expected TRAIN VAL TEST [RECONSTRUCTION], found {len(args.digits)} files")
    for option, value, least in (("--per-class", args.per_class, 1), ("--images", args.images, 1),
                                 ("--minutes", args.minutes, 5), ("--memory", args.memory, 1),
                                 ("--daily", args.daily, 0)):
        if not least <= value < float("inf"):
            raise InputError(f"{option}: expected {least} or more, found {value:g}")
    return {"minutes": args.minutes - MARGIN, "memory": args.memory, "daily": args.daily, "visibility": args.visibility}


def some_photos(folder, n, classes):
    """{relative path: bytes} of n random photos of each class (seed 0)."""
    paths, labels = read_birds(str(folder), classes)
    rng, files = np.random.default_rng(0), {}
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        for index in sorted(rng.permutation(of_class)[:n]):
            files[Path(paths[index]).relative_to(folder).as_posix()] = read_bytes(paths[index], "a photo")
    return files


def some_digits(path, n, folder):
    """Bytes of a .npz file with n random images of another (seed 0) and their labels, if any."""
    digits, labels = read_digits(path)
    index = np.sort(np.random.default_rng(0).permutation(len(digits))[:n])
    with np.load(path, allow_pickle=False) as content:
        key = "data" if "data" in content.files else next(key for key in content.files if key != "labels")
        arrays = {key: content[key][index], **({} if labels is None else {"labels": labels[index]})}
    np.savez(folder / "some.npz", **arrays)
    return (folder / "some.npz").read_bytes()


def data_files(args):
    """{path in the zip: bytes}, and the paths of each part's data in the zip as `grade` takes them."""
    import bird
    import vae
    files, data = {}, {}
    with bad_input_of(bird, vae), tempfile.TemporaryDirectory() as folder:
        if args.birds:
            classes, _ = bird.list_photos(str(args.birds[0]))
            data["birds"] = ["data/birds/train", "data/birds/test"]
            for source, target in zip(args.birds, data["birds"]):
                photos = some_photos(Path(source), args.per_class, classes)
                files.update({f"{target}/{path}": content for path, content in photos.items()})
        if args.digits:
            names = ("train", "val", "test", "reconstruction")[:len(args.digits)]
            data["digits"] = [f"data/digits/{name}.npz" for name in names]
            for name, source, target in zip(names, args.digits, data["digits"]):
                files[target] = some_digits(source, None if name == "val" else args.images, Path(folder))
    return files, data


def build(args):
    """Writes the zip; returns 0. Raises InputError."""
    import jinja2
    settings = settings_of(args)
    read_rubric(args.rubric)
    files, settings["data"] = data_files(args)
    for pattern in CODE:
        files.update({path.relative_to(ROOT).as_posix(): path.read_bytes() for path in sorted(ROOT.glob(pattern))})
    files.update({path.name: path.read_bytes() for path in FILES.iterdir() if path.suffix != ".md"})
    readme = jinja2.Template((FILES / "README.md").read_text(), keep_trailing_newline=True)
    scripts = [SCRIPTS[part] for part in settings["data"]]
    files["README.md"] = readme.render(args=args, settings=settings, scripts=scripts).encode()
    files["rubric.yaml"] = read_bytes(args.rubric, "a rubric")
    files["settings.json"] = json.dumps(settings, indent=1).encode()
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.compress_type, entry.create_system = zipfile.ZIP_DEFLATED, 3
                entry.external_attr = (0o100755 if name in ("setup.sh", "run_autograder") else 0o100644) << 16
                archive.writestr(entry, files[name])
        file.seek(0)
        content = file.read()
    write_files({args.out: content})
    print(f"wrote {args.out}, {len(content) / 1e6:.1f} MB: upload it to Gradescope; its README.md says which settings "
          "to choose")
    return 0


def try_out(archive, submission, out):
    """Grades a submission with an autograder's zip in Gradescope's folders, below a temporary one. Returns 0, or 1
    where no results are written. Raises InputError."""
    submission = Path(submission)
    with tempfile.TemporaryDirectory(prefix="autograder_") as folder:
        root = Path(folder)
        (root / "results").mkdir()
        for source, target in ((Path(archive), root / "source"), (submission, root / "submission")):
            if source.is_dir():
                shutil.copytree(source, target)
                continue
            read_bytes(source, "a zip or a folder")
            try:
                shutil.unpack_archive(source, target, "zip")
            except (shutil.ReadError, zipfile.BadZipFile, OSError) as error:
                raise InputError(f"{source}: expected a zip or a folder, found: {error}") from None
        if not (root / "source" / "run_autograder").exists():
            raise InputError(f"{archive}: expected a zip of `python -m handin autograder --out`, found another")
        now = datetime.datetime.now(datetime.timezone.utc).isoformat()
        metadata = {"id": 1, "created_at": now, "assignment": {"due_date": now, "title": "A trial"},
                    "users": [{"id": 1, "name": "A student", "email": "student@example.org"}],
                    "previous_submissions": []}
        write_files({root / "submission_metadata.json": json.dumps(metadata).encode()})
        subprocess.run(["bash", str(root / "source" / "run_autograder")], check=False,
                       env={**os.environ, "AUTOGRADER": str(root), "PYTHON": sys.executable})
        if not (root / "results" / "results.json").exists():
            return 1
        results = read_json(root / "results" / "results.json", "results")
        print(gradescope.as_text(results))
        if out:
            write_files({out: json.dumps(results, indent=1).encode()})
    return 0


def run(args):
    """Writes an autograder's zip or tries one; returns the exit code. Raises InputError."""
    return try_out(*args.tried, args.out) if args.tried else build(args)
