"""The forms of a submission: group.txt, model_path.txt and the report, read and checked."""
import contextlib
import io
import logging
import re
import urllib.parse
from pathlib import Path

from common.errors import InputError

ENTRY = "[0-9]{4}[A-Z]{2}[A-Z0-9][0-9]{4}"  # year, department, its letter or digit, number
EXAMPLE_ENTRY = "2021CS10001"
SAMPLE_ENTRIES = ("2021CS10001", "2021CS10002")  # what this repository's own group.txt holds
SAMPLE_LINK = "FILE_ID"                          # and its model_path.txt
MOST_PAGES = 3


def read_bytes(path, what):
    """Bytes of a file. Raises InputError that calls the missing or unreadable file `what`."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected {what}, found: {error.strerror}") from None


def read_lines(path, what):
    """Lines of a text file without their blanks and ends, whichever those are; a byte order mark is passed over.
    Raises InputError."""
    try:
        return [line.strip() for line in read_bytes(path, what).decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected {what} in UTF-8, found another encoding; save it as plain text") from None


def read_entries(path):
    """Entry numbers of a group.txt, one a line, as they stand there. Raises InputError."""
    return [line for line in read_lines(path, "the entry numbers of the group, one a line") if line]


def entry_problems(entries, path):
    """One line for each thing wrong with the entry numbers of `path`, and how to mend it."""
    problems = [f"{path}: expected an entry number like {EXAMPLE_ENTRY} on each line, found '{shorten(entry)}'"
                + ("; write it in upper case" if re.fullmatch(ENTRY, entry.upper()) else "")
                for entry in entries if not re.fullmatch(ENTRY, entry)]
    if not 1 <= len(entries) <= 2:
        problems.append(f"{path}: expected one or two entry numbers, found {len(entries)}; write one a line")
    if len(set(entries)) < len(entries):
        problems.append(f"{path}: expected different entry numbers, found one twice; leave out the repetition")
    return problems


def sample_problems(entries, path):
    """One line if an entry number of this repository's sample is left in place."""
    left = [entry for entry in entries if entry in SAMPLE_ENTRIES]
    return [f"{path}: expected your entry numbers, found the sample {' '.join(left)}; write yours over it"] * bool(left)


def link_problems(lines, path):
    """One line for what is wrong with the first of the lines of a model_path.txt, which is to be the model's link."""
    link = lines[0] if lines else ""
    if not link:
        return [f"{path}: expected the link of the model on the first line, found an empty line; write it there"]
    if SAMPLE_LINK in link:
        return [f"{path}: expected the link of your model, found the sample with {SAMPLE_LINK}; upload the model and "
                "write its link over it"]
    try:
        parts = urllib.parse.urlsplit(link)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"\s", link)
    except ValueError:  # brackets that hold no address
        fits = False
    return [] if fits else [f"{path}: expected a link that begins with https:// on the first line, found "
                            f"'{shorten(link)}'; write it there and nothing else"]


def file_name(entries):
    """2021CS10001_2021CS10002: the name of the report and of the folder of a submission, for one entry or two."""
    return "_".join(entries)


def read_pdf(content):
    """Number of pages and first line of text of a PDF's bytes. Raises ValueError for what is no PDF."""
    import pypdf
    with _quiet("pypdf"):
        try:
            pages = pypdf.PdfReader(io.BytesIO(content)).pages
            lines = pages[0].extract_text().strip().splitlines()
            return len(pages), " ".join(lines[0].split()) if lines else ""
        except Exception as error:  # broken bytes trip the reader in a dozen ways
            raise ValueError(shorten(str(error)) or type(error).__name__) from None


def report_problems(content, entries, path):
    """One line for each thing wrong with the bytes of a report: its pages and, where the entry numbers are known, its
    first line."""
    try:
        pages, first = read_pdf(content)
    except ValueError as error:
        return [f"{path}: expected a PDF, found: {error}; write it anew"]
    problems = []
    if pages > MOST_PAGES:
        problems.append(f"{path}: expected at most {MOST_PAGES} pages, found {pages}; shorten it")
    if entries and sorted(re.split(r"[\s,;&_]+", first)) != sorted(entries):
        problems.append(f"{path}: expected '{' '.join(entries)}' as the first line of text, found '{shorten(first)}'; "
                        "write the report anew")
    return problems


def shorten(text, most=60):
    """Text on one line, of `most` characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= most else text[:most - 1] + "…"


@contextlib.contextmanager
def _quiet(name):
    """Within, a library's log says nothing: what it finds is reported in one line of ours."""
    log, sink = logging.getLogger(name), logging.NullHandler()
    before, log.propagate = log.propagate, False
    log.addHandler(sink)
    try:
        yield
    finally:
        log.propagate = before
        log.removeHandler(sink)
