"""The command lines of handin/ and studies/: python -m PACKAGE COMMAND ..."""
import argparse
import math
import sys

from common.errors import InputError


class Parser(argparse.ArgumentParser):
    """Raises InputError for invalid arguments; prints docstrings unwrapped in --help."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message):
        raise InputError(f"{self.prog}: {message}; see --help")


def number(kind, low, high=math.inf, strict=False):
    """The type of an argument: a finite int or float (`kind`) from `low`, which `strict` excludes, to `high`."""
    limits = f"above {low}" if strict else f"of {low} or more" if high == math.inf else f"from {low} to {high}"

    def parse(text):
        value = kind(text.replace("_", "?"))  # Python's 1_0 is 10
        if not low <= value <= high or value == math.inf or strict and value == low:
            raise argparse.ArgumentTypeError(f"expected a {'finite ' * (kind is float)}number {limits}, found {text}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # which argparse shows for other text
    return parse


def list_commands(commands):
    """Formats {command: description} as lines of a help text."""
    return "\n".join(f"  {name:{max(map(len, commands))}}  {text}" for name, text in commands.items())


def main(parser, commands, run, argv=None):
    """Calls run(command, arguments) for the command line and returns its exit code: 2 for bad input, 130 for Ctrl-C,
    each with one line on stderr."""
    argv = sys.argv[1:] if argv is None else argv
    parser.add_argument("command", choices=commands, metavar="COMMAND")
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    try:
        return run(parser.parse_args(argv[:1]).command, argv[1:])
    except InputError as error:
        print(" ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        after_bar = "\n" * sys.stderr.isatty()
        print(f"{after_bar}{parser.prog} {argv[0]}: interrupted{error}", file=sys.stderr)
        return 130
