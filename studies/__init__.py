"""The other experiments of the course family: python -m studies STUDY DATA... --out FOLDER"""


def printable(text):
    """The text with what is no UTF-8, which the names of files may have, as escapes: no figure or report takes it."""
    return text.encode("utf-8", "backslashreplace").decode()
