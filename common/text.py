"""Text on a terminal: one line of anything, escaped file names, aligned tables."""
import re
import textwrap


def one_line(text, max_length=200):
    """A text, or what an exception says, on one line of at most `max_length` characters without control characters, cut
    between words where possible: the output of a script or a library may hold anything."""
    found = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", str(text))
    found = " ".join("".join(c if c.isprintable() else " " for c in found).split())
    if isinstance(text, Exception) and not found:
        return type(text).__name__
    short = textwrap.shorten(found, max_length, break_on_hyphens=False, placeholder=" ...")
    return short if len(short) > min(len(found) - 1, max_length // 2) else f"{found[:max_length - 3]}..."


def escape_surrogates(text):
    """Returns the text with characters that UTF-8 cannot encode (in file names) as backslash escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def text_table(rows):
    """Formats rows of cells (text) as aligned columns, one line per row."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
