"""The command lines of handin/ and studies/: python -m PACKAGE COMMAND ..."""
import argparse
import sys

from common.errors import InputError


class Parser(argparse.ArgumentParser):
    """Raises InputError for words that it does not take; shows a docstring as it is."""

    def __init__(self, **options):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message):
        raise InputError(f"{self.prog}: {message}; see --help")


def list_commands(commands):
    """{command: what it does} as lines of a help text."""
    return "\n".join(f"  {name:{max(map(len, commands))}}  {what}" for name, what in commands.items())


def main(parser, commands, run, argv=None):
    """The exit code of run(command, its words), of the first word of the command line, one of `commands`, and those
    after it: 2 for bad input, 130 for Ctrl-C, each with one line on stderr."""
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
