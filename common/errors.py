"""The one error type of handin/ and studies/."""
import contextlib


class InputError(Exception):
    """Bad input: one line that names the file, what was expected and what was found. The command line prints it on
    stderr and ends with exit code 2."""


@contextlib.contextmanager
def convert_input_errors(*scripts):
    """Re-raises the InputError of bird.py or vae.py as common.errors.InputError."""
    try:
        yield
    except tuple(script.InputError for script in scripts) as error:
        raise InputError(str(error)) from None
