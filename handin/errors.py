"""The one error type of this floor."""


class InputError(Exception):
    """Bad input: one line that names the file, what was expected and what was found. The command line prints it on
    stderr and ends with exit code 2."""
