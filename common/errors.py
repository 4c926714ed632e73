"""The one error type of handin/ and studies/."""
import contextlib


class InputError(Exception):
    """Bad input: one line that names the file, what was expected and what was found. The command line prints it on
    stderr and ends with exit code 2."""


@contextlib.contextmanager
def bad_input_of(*scripts):
    """Within, bad input that a graded script reports counts as bad input of handin/ and studies/."""
    try:
        yield
    except tuple(script.InputError for script in scripts) as error:
        raise InputError(str(error)) from None
