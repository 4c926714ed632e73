"""The one error type of handin/ and studies/, and how their command lines report it."""
import argparse
import contextlib
import textwrap


class InputError(Exception):
    """Bad input: one line that names the file, what was expected and what was found. The command line prints it on
    stderr and ends with exit code 2."""


class Parser(argparse.ArgumentParser):
    """Raises InputError for words that it does not take."""

    def error(self, message):
        raise InputError(f"{self.prog}: {message}; see --help")


@contextlib.contextmanager
def bad_input_of(*scripts):
    """Within, bad input that a graded script reports counts as bad input of handin/ and studies/."""
    try:
        yield
    except tuple(script.InputError for script in scripts) as error:
        raise InputError(str(error)) from None


def one_line(error):
    """What an exception says, in one line of at most 200 characters, cut between words where possible."""
    words = [word if len(word) <= 196 else f"{word[:193]}..." for word in str(error).split()]
    return textwrap.shorten(" ".join(words), 200, placeholder=" ...", break_on_hyphens=False) or type(error).__name__
