"""Text on a terminal: one line of anything, escaped file names, aligned tables."""
import re


def one_line(text, most=200):
    """A text, or what an exception says, on one line of at most `most` characters without control characters, cut
    between words where possible: the output of a script or a library may hold anything."""
    found = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", str(text))
    found = " ".join("".join(c if c.isprintable() else " " for c in found).split())
    if isinstance(text, Exception) and not found:
        return type(text).__name__
    if len(found) <= most:
        return found
    end = found.rfind(" ", most // 2, most - 3)
    return f"{found[:end]} ..." if end > 0 else f"{found[:most - 3]}..."


def printable(text):
    """The text with what is no UTF-8, which the names of files may have, as escapes: no figure or report takes it."""
    return text.encode("utf-8", "backslashreplace").decode()


def text_table(rows):
    """Rows of cells (text) as aligned columns, one line a row."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
