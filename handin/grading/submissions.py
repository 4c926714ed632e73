"""The submissions of a class: zips and folders below a folder, such as an export of Gradescope, Moodle or Canvas. Each
becomes a Submission, whatever it contains, so that each student gets a row."""
import contextlib
import dataclasses
import re
import shutil
import zipfile
from pathlib import Path

from common.errors import InputError
from common.files import read_bytes
from common.text import one_line
from handin import forms
from handin.grading.contract import MODELS, SCRIPTS, part_of_script
from handin.grading.script import is_regular, temporary_folder

PART_OF_SCRIPT = {name: part for part, name in SCRIPTS.items()}
MAX_MEMBERS, MAX_BYTES = 1000, 10 ** 9  # of a zip, unpacked
MAX_SCRIPT, MAX_PDF = 2 * 10 ** 6, 3 * 10 ** 7  # bytes
ARCHIVE_SUFFIXES = (".zip", ".rar", ".7z", ".tar", ".gz", ".tgz", ".xz")
NEEDED_SUFFIXES = (".py", ".txt", ".pdf", ".ipynb", ".pth", ".pt", ".pkl", ".zip")  # unpacked of a too large zip
MODEL_SUFFIXES = (".pth", ".pkl")
METADATA = "submission_metadata.yml"  # of an export of Gradescope
# Names in downloads from Moodle and from Canvas, which puts the files of all students into one folder
DOWNLOADS = (re.compile(r"(?P<name>[^/]+)_(?P<id>[0-9]+)_assignsubmission_(?:file|onlinetext)_?(?P<file>[^/]*)"),
             re.compile(r"(?P<name>[^_/]+)_(?:LATE_)?(?P<id>[0-9]+)_[0-9]+_(?P<file>[^/]+)"))


@dataclasses.dataclass(frozen=True)
class Student:
    """A student, as far as known from an export; `id` is that of Moodle or Canvas."""
    name: str = ""
    email: str = ""
    sid: str = ""
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Submission:
    """A zip, a folder or another file, which may be missing; its students; its time, as in the export; or the files
    ((name, path), ...) of a student that a download has put into one folder with those of others."""
    path: Path
    students: tuple = ()
    time: str = ""
    files: tuple = ()

    def version(self):
        """A text that changes when the files change."""
        files = sorted(self.path.rglob("*")) if self.path.is_dir() else [self.path] if self.path.exists() else []
        files += [path for _, path in self.files]
        return str([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()])


# ------------------------------------------------------------------------------------------------------------- finding

def is_visible(path):
    """False for files and folders that operating systems and editors add: .DS_Store, ._x, __MACOSX ..."""
    return not path.name.startswith((".", "__MACOSX", "__pycache__"))


def is_script(path):
    return path.suffix.lower() == ".py" and path.is_file() and is_visible(path)


def is_archive(path):
    return path.suffix.lower() in ARCHIVE_SUFFIXES and path.is_file() and is_visible(path)


def find_submissions(folder, ignored=()):
    """{unique name: Submission} of the items below a folder, except `ignored` paths: each entry of Gradescope's
    metadata, else each archive, folder with a script, empty folder, and loose script or notebook. Raises InputError."""
    if not folder.is_dir():
        raise InputError(f"{folder}: expected a folder of submissions, found "
                         f"{'a file' if folder.exists() else 'nothing'}")
    metadata = read_metadata(folder)
    ignored = {path.resolve() for path in (*ignored, *metadata)}
    downloads = _download_files(folder, ignored)  # {path of the first file: all (name, path) of the student}
    ignored |= {path.resolve() for files in downloads.values() for _, path in files}
    paths = [*metadata, *downloads, *_submission_paths(folder, ignored, True)]
    submissions = {}
    for path in sorted(paths):
        students, time = metadata.get(path, (_student_in(path.relative_to(folder)), ""))
        name = label = (f"{students[0].name}_{students[0].id}" if path in downloads else
                        one_line(path.relative_to(folder).as_posix()))
        number = 1
        while label in submissions:  # names that differ only in whitespace
            number += 1
            label = f"{name} ({number})"
        submissions[label] = Submission(path, students, time, downloads.get(path, ()))
    if not submissions:
        raise InputError(f"{folder}: expected submissions, found none")
    return submissions


def _download_files(folder, ignored):
    """{first path: ((name, path), ...)} of the files in a folder that are named after their students."""
    files = {}
    for path in sorted(folder.iterdir()):
        match = _match_download(path.name)
        if match and match["file"] and path.is_file() and is_visible(path) and path.resolve() not in ignored:
            files.setdefault((match["name"], match["id"]), []).append((match["file"], path))
    return {student[0][1]: tuple(student) for student in files.values()}


def _submission_paths(folder, ignored, top=False):
    """Paths of the submissions below a folder that no metadata describes."""
    items = [path for path in sorted(folder.iterdir()) if is_visible(path)]
    with_files = {path.name.replace("_onlinetext", "_file") for path in items} & {path.name for path in items}
    items = [path for path in items if "_assignsubmission_onlinetext" not in path.name
                  or path.name.replace("_onlinetext", "_file") not in with_files]  # Moodle's second folder of a student
    children = [path for path in items if path.resolve() not in ignored]
    if not top and any(map(is_script, children)):
        return [folder]
    files = [path for path in children if is_archive(path)
             or top and path.is_file() and path.suffix.lower() in (".py", ".ipynb")]
    folders = [path for path in children if path.is_dir()]
    if not top and not files and not any(
            is_script(path) or is_archive(path) for child in folders for path in child.rglob("*")):
        return [folder] if children == items else []
    return files + [path for child in folders for path in _submission_paths(child, ignored)]


def read_metadata(folder):
    """{path of a submission: (its students, time)} of Gradescope's metadata in a folder or, if there is none, in the
    folders in it; malformed entries are skipped. Raises InputError for a file that is not YAML."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads Ruby's objects as plain mappings, sequences and scalars."""

    def untagged(loader, suffix, node):
        construct = {yaml.MappingNode: loader.construct_mapping, yaml.SequenceNode: loader.construct_sequence}
        return construct[type(node)](node, deep=True) if type(node) in construct else loader.construct_scalar(node)

    Loader.add_multi_constructor("!", untagged)
    files, metadata = [folder / METADATA] if (folder / METADATA).exists() else sorted(folder.glob(f"*/{METADATA}")), {}
    for path in files:
        try:
            entries = yaml.load(read_bytes(path, "Gradescope's metadata"), Loader)  # noqa: S506 - a SafeLoader
        except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
            raise InputError(f"{path}: expected Gradescope's metadata, found: {one_line(error)}") from None
        if not isinstance(entries, dict):
            raise InputError(f"{path}: expected Gradescope's metadata, found no entries")
        for name, entry in entries.items():
            submission, entry = path.parent / str(name), entry if isinstance(entry, dict) else {}
            if path.parent == folder or str(name).startswith("submission_"):  # not a student's own file
                students = entry.get(":submitters")
                students = students if isinstance(students, list) else []
                students = [student for student in students if isinstance(student, dict)]
                if submission.parent == path.parent and submission.name not in ("", ".."):
                    created = entry.get(":created_at")
                    created = created.get("utc", created.get("time")) if isinstance(created, dict) else created  # Rails
                    metadata[submission] = tuple(
                        Student(*(one_line(str(student.get(f":{key}") or "")) for key in ("name", "email", "sid")))
                        for student in students), one_line(str(created or ""))
    return metadata


def _student_in(path):
    """The student named in the path of a Moodle or Canvas download, as a tuple of one or none."""
    match = _match_download(path.parts[0])
    return (Student(name=one_line(match["name"]), id=match["id"]),) if match else ()


def _match_download(name):
    """The match of a name in a download of Moodle or Canvas, or None."""
    return next(filter(None, (pattern.fullmatch(name) for pattern in DOWNLOADS)), None)


# ------------------------------------------------------------------------------------------------------------- reading

@contextlib.contextmanager
def open_submission(submission, parent=""):
    """The folder with the files of a submission; a zip is unpacked temporarily. Raises InputError."""
    with temporary_folder(parent) as folder:
        path = submission.path
        if submission.files:
            for name, file in submission.files:
                unpack(file, folder) if is_archive(file) else shutil.copy(str(file), str(folder / name))
            yield folder
        elif path.is_dir():
            inner = [] if any(map(is_script, path.rglob("*"))) else sorted(filter(is_archive, path.rglob("*")))
            for number, archive in enumerate(inner):
                (folder / str(number)).mkdir()
                unpack(archive, folder / str(number))
            yield folder if inner else path
        else:
            unpack(path, folder)
            yield folder


def unpack(path, folder, nested=True):
    """Unpacks a zip and, if `nested`, a single zip in it, or copies a loose script. Raises InputError for
    contents that no honest one has."""
    if is_script(path):
        shutil.copy(str(path), str(folder))
        return
    if not path.exists():
        raise InputError("expected files, found none: the export lists this submission without them")
    if path.suffix.lower() != ".zip":
        raise InputError(f"expected a zip, found {one_line(path.name)}" + (
            "; hand in the script as .py" if path.suffix.lower() == ".ipynb" else ""))
    try:
        with zipfile.ZipFile(str(path)) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for member in members:  # zips of Windows PowerShell 5 have backslashes
                member.filename = member.filename.replace("\\", "/")
            leaving = [member.filename for member in members if member.filename.startswith("/")
                       or ".." in member.filename.split("/")]
            members = [member for member in members if all(map(is_visible, map(Path, Path(member.filename).parts)))]
            if len(members) > MAX_MEMBERS or sum(member.file_size for member in members) > MAX_BYTES:
                members = [member for member in members if member.filename.lower().endswith(NEEDED_SUFFIXES)]
            total = sum(member.file_size for member in members)
            if leaving:
                raise ValueError(f"a path outside its folder: {one_line(leaving[0])}")
            if len(members) > MAX_MEMBERS or total > MAX_BYTES:
                raise ValueError(f"{len(members)} files of {total / 1e6:.0f} MB, more than {MAX_MEMBERS} or "
                                 f"{MAX_BYTES / 1e6:g} MB")
            archive.extractall(str(folder), members)
    except Exception as error:  # corrupt files raise many exception types
        raise InputError(f"{one_line(path.name)}: expected a zip of plain files in one folder, found: "
                         f"{one_line(error)}") from None
    inner = sorted(filter(is_archive, folder.rglob("*")))
    if nested and len(inner) == 1 and not any(map(is_script, folder.rglob("*"))):
        (folder / "inner").mkdir()
        unpack(inner[0], folder / "inner", False)


def find_scripts(folder):
    """{part: path of its script, or a text on the problem}: bird.py and vae.py or, if missing, a file with a similar
    name or one that writes the outputs of the part; of several the one in the top folder. Raises InputError."""
    files = [path for path in sorted(folder.rglob("*")) if is_regular(path)
             and all(map(is_visible, map(Path, path.relative_to(folder).parts)))]
    scripts, found = [path for path in files if is_script(path) and path.stat().st_size < MAX_SCRIPT], {}
    for name, part in PART_OF_SCRIPT.items():
        named = [path for path in scripts if re.match(rf"{name[:-3]}(?![a-z])", path.name.lower())
                 and part_of_script(path.read_bytes()) in (part, None)]
        found[part] = [path for path in named if path.name == name] or named
    others = [path for path in scripts if not any(path in paths for paths in found.values())]
    for path in others:
        part = part_of_script(path.read_bytes())
        if part and not any(path.name in PART_OF_SCRIPT for path in found[part]):
            found[part].append(path)
    for part, paths in found.items():
        depth = min((len(path.parts) for path in paths), default=0)
        highest = [path for path in paths if len(path.parts) == depth]
        names = ", ".join(path.relative_to(folder).as_posix() for path in highest[:5])
        found[part] = highest[0] if len(highest) == 1 else f"expected one {SCRIPTS[part]}, found {one_line(names)}"
        found[part] = found[part] if highest else None
    if not any(found.values()):
        names = one_line(", ".join(path.relative_to(folder).as_posix() for path in files[:5])) or "no files"
        linked = any(path.is_symlink() for path in folder.rglob("*.py"))
        raise InputError(f"expected one script, bird.py or vae.py, found {names}" + (
            "; hand in the script as .py" if any(path.suffix == ".ipynb" for path in files) else
            "; links are not followed, hand in the script itself" if linked else ""))
    return {part: path for part, path in found.items() if path}


def find_entries(folder):
    """Entry numbers in the group.txt files below a folder, with any text around and blanks or hyphens within them."""
    contents = [path.read_bytes()[:2000] for path in sorted(folder.rglob("*.txt"))
                if path.name.lower().startswith("group") and is_regular(path)]
    text = " ".join(content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", "replace")
                    for content in contents)
    return list(dict.fromkeys(re.findall(forms.ENTRY, re.sub(r"[\s-]", "", text).upper())))[:4]


@dataclasses.dataclass(frozen=True)
class SubmissionFiles:
    """The files next to a script: entry numbers; the model's link; problems with the layout and the text files; why
    there is no report, a PDF with as many pages as allowed; and problems with its text. Each is a line, "" for none."""
    entries: tuple
    link: str
    layout: str
    report_missing: str
    report_text: str


def check_files(folder, script, part, zipped):
    """SubmissionFiles in `folder`: a zip must contain one folder, which an export may have unpacked."""
    parent, problems, link = script.parent, [], ""
    entries = find_entries(parent) or find_entries(folder)
    if script.name != SCRIPTS[part]:
        problems.append(f"expected {SCRIPTS[part]}, found {one_line(script.name)}")
    if len(script.relative_to(folder).parts) > 2 or zipped and parent == folder:
        problems.append(f"expected one folder, found the script {'deeper' if parent != folder else 'at the top'}")
    try:
        if is_regular(parent / "group.txt"):
            problems += forms.entry_problems(forms.read_entries(parent / "group.txt")[:9], "group.txt")
        if is_regular(parent / "model_path.txt"):
            link = forms.read_link(parent / "model_path.txt")
            problems += forms.link_problems(link, "model_path.txt")
    except InputError as error:
        problems.append(str(error).replace(f"{parent}/", ""))
    required = {"model_path.txt", "group.txt"}
    missing = sorted(required - {path.name for path in parent.iterdir()})
    more = [path.name for path in sorted(parent.iterdir()) if path.is_file() and is_visible(path)
            and path.name not in required and path.suffix not in (".py", ".pdf", *MODEL_SUFFIXES)]
    problems += [f"{title}: {', '.join(names[:5])}"
                 for title, names in (("missing", missing), ("unexpected files", more)) if names]
    pdfs = [path for path in sorted(folder.rglob("*.pdf"))
            if is_visible(path) and is_regular(path) and path.stat().st_size < MAX_PDF]
    faults = [forms.report_problems(part, path.read_bytes(), entries, path.name) for path in pdfs]
    best = min(faults, key=len) if faults else ["expected a PDF, found none"]
    lost = [fault for fault in best if "expected a PDF" in fault or "pages" in fault]
    layout, missing, text = (one_line("; ".join(lines), 300) for lines in (
        problems, lost, [fault for fault in best if fault not in lost]))
    return SubmissionFiles(tuple(entries), link, layout, missing, text)


def find_models(folder, path, part, entries, models):
    """Paths of the submitted models of a part, [] unless all exist: in MODELS/ENTRY/, else in the submitted folder, in
    one with the name of the zip, or next to a zip without other zips."""
    folders = [Path(models, entry) for entry in ("_".join(entries), *entries) if entry] if models else []
    folders += [folder, *sorted(child for child in folder.rglob("*") if child.is_dir())]
    if not path.is_dir():
        folders.append(path.with_suffix(""))
        if path.parent.is_dir() and len(list(filter(is_archive, path.parent.iterdir()))) == 1:
            folders.append(path.parent)
    candidates = ([parent / name for name in MODELS[part]] for parent in folders)
    return next((files for files in candidates if all(map(is_regular, files))), [])
