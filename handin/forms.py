"""The forms of a submission: group.txt, names.txt, model_path.txt and the report, read and checked."""
import io
import logging
import re
import urllib.parse
from pathlib import Path

from common.errors import InputError
from common.files import read_bytes
from common.text import one_line

ENTRY = "[0-9]{4}[A-Z]{2}[A-Z0-9][0-9]{4}"  # year, department, its letter or digit, number
PLACEHOLDER_ENTRIES = ("2021CS10001", "2021CS10002")  # in this repository's group.txt
PLACEHOLDER_LINK = "FILE_ID"      # in this repository's model_path.txt
MAX_PAGES = 3                     # of a report
NO_OBSERVATIONS = "No observations yet"  # appears in a report without the students' own observations
NOT_MEASURED = "Not measured yet"        # appears in a report without an ablation
# Words that are more frequent in the reports of one part than in those of the other
TOPICS = {"birds": ("bird", "grad-cam"), "digits": ("digit", "autoencoder", "mixture")}


def read_lines(path, expected):
    """Lines of a text file, stripped; a byte order mark is skipped. Raises InputError."""
    try:
        return [line.strip() for line in read_bytes(path, expected).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected {expected} in UTF-8, found another encoding; save it as UTF-8") from None


def read_observations(path):
    """The text of an observations file, "" if there is none. Raises InputError."""
    return "\n".join(read_lines(path, "your observations")).strip() if path.exists() else ""


def read_entries(path):
    """Entry numbers of a group.txt, one per line, unchecked. Raises InputError."""
    return [line for line in read_lines(path, "the entry numbers of the group, one per line") if line]


def read_link(path):
    """The first line of a model_path.txt. Raises InputError."""
    return (read_lines(path, "the link of the model on the first line") or [""])[0]


def entry_problems(entries, path):
    """One line for each problem with the entry numbers of `path`, and how to fix it."""
    problems = [f"{path}: expected an entry number like {PLACEHOLDER_ENTRIES[0]} on each line, found "
                f"'{one_line(entry)}'"
                + ("; write it in upper case" if re.fullmatch(ENTRY, entry.upper()) else "")
                for entry in entries if not re.fullmatch(ENTRY, entry)]
    if not 1 <= len(entries) <= 2:
        problems.append(f"{path}: expected one or two entry numbers, found {len(entries)}; write one per line")
    if len(set(entries)) < len(entries):
        problems.append(f"{path}: expected distinct entry numbers, found a duplicate; remove it")
    return problems


def placeholder_problems(entries, path):
    """One line if `entries` include a placeholder of this repository's group.txt."""
    left = [entry for entry in entries if entry in PLACEHOLDER_ENTRIES]
    return [f"{path}: expected your entry numbers, found the sample {' '.join(left)}; replace it"] * bool(left)


def authors(entries, names, group):
    """["Name (ENTRY)"] of the students, from names separated by commas or, if None, from the lines of names.txt
    next to group.txt; only the entry numbers if both are missing. Raises InputError."""
    source = Path(group).with_name("names.txt")
    if names is not None:
        found, source = names.split(","), "--names"
    elif source.exists():
        found = read_lines(source, "the students' names, one per line")
    else:
        return list(entries)
    found = [one_line(name) for name in found if name.strip()]
    if len(found) != len(entries):
        raise InputError(f"{source}: expected {len(entries)} names, one for each entry number of {group}, found "
                         f"{len(found)}")
    return [f"{name} ({entry})" for name, entry in zip(found, entries)]


def link_problems(link, path):
    """One line if the first line of a model_path.txt is not a link of a model."""
    if not link:
        return [f"{path}: expected the link of the model on the first line, found none; write it there"]
    if PLACEHOLDER_LINK in link:
        return [f"{path}: expected the link of your model, found the sample with {PLACEHOLDER_LINK}; upload the "
                "model and replace the sample by its link"]
    try:
        parts = urllib.parse.urlsplit(link)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:  # brackets without an address
        valid = False
    if valid and not re.search(r"\s", link):
        return []
    expected = "only the link" if valid else "a link that begins with https://"
    return [f"{path}: expected {expected} on the first line, found '{one_line(link)}'; write only the link there"]


def read_pdf(content):
    """Number of pages and lines of text of a PDF's bytes. Raises ValueError for an invalid PDF."""
    import pypdf
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # its problems are reported in one line below
    try:
        pages = pypdf.PdfReader(io.BytesIO(content)).pages
        lines = [" ".join(line.split()) for page in pages for line in page.extract_text().splitlines()]
        return len(pages), [line for line in lines if line]
    except Exception as error:  # corrupt files raise many exception types
        raise ValueError(one_line(error)) from None


def report_problems(part, content, entries, path):
    """One line for each problem with the bytes of a report: number of pages, part and, if the entry numbers are known,
    the first line, which names the students."""
    try:
        pages, lines = read_pdf(content)
    except ValueError as error:
        return [f"{path}: expected a PDF, found: {error}; export it again"]
    problems, first, text = [], lines[0] if lines else "", " ".join(lines).lower()
    if pages > MAX_PAGES:
        problems.append(f"{path}: expected at most {MAX_PAGES} pages, found {pages}; shorten it")
    if entries and sorted(re.findall(ENTRY, first)) != sorted(entries):
        problems.append(f"{path}: expected name and entry number of each student ({' '.join(entries)}) in the first "
                        f"line of text, found '{one_line(first)}'; rebuild the report")
    elif entries and not re.search(r"[^\W\d_]{2}", re.sub(ENTRY, "", first)):
        problems.append(f"{path}: expected the students' names in the first line of text, found '{one_line(first)}'; "
                        "`python -m handin report --names \"...\"` writes them")
    problems += [f"{path}: expected {expected}, found '{words}'; rebuild the report" for words, expected in (
        (NO_OBSERVATIONS, f"your own observations, which observations_{part}.txt holds"),
        (NOT_MEASURED, "the effect of model optimisation, which `python -m handin ablate` measures"))
        if words.lower() in text]
    counts = {topic: sum(text.count(word) for word in words) for topic, words in TOPICS.items()}
    other = max(counts, key=counts.get)
    if counts[other] > 2 * counts[part]:
        problems.append(f"{path}: expected the {part} report, found the {other} report")
    return problems
