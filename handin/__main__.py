"""python -m handin COMMAND"""
import argparse
import importlib
import sys

from common.errors import InputError, Parser

COMMANDS = {  # module of this package, with EXAMPLE, add_arguments(parser) and run(args) -> exit code; what it does
    "grade": ("grading.grade", "runs the graders' commands on any pair of scripts, checks and scores what they write"),
    "autograder": ("grading.autograder", "makes an autograder for Gradescope, or tries one on this machine"),
    "figures": ("report.figures", "draws what the report needs from trained models, and measures it"),
    "ablate": ("report.ablate", "trains without one technique at a time: the table 'effect of model optimisation'"),
    "report": ("report.report", "lays out the PDF of each part from the figures and the numbers"),
    "zip": ("pack", "checks and packs a submission"),
    "demo": ("demo", "runs the graders' commands on data that needs no download, and scores them"),
}


def main(argv=None):
    """Runs one command; returns its exit code: 2 for bad input, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    listed = "\n".join(f"  {name:10} {what}" for name, (_, what) in COMMANDS.items())
    parser = Parser(prog="python -m handin", formatter_class=argparse.RawDescriptionHelpFormatter,
                    description=f"From the two scripts to a hand-in. Commands, each with its own --help:\n\n{listed}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    if not argv:
        parser.print_help(sys.stderr)
        return 2
    name = ""
    try:
        name = parser.parse_args(argv[:1]).command
        module = importlib.import_module(f"handin.{COMMANDS[name][0]}")  # one alone: each takes seconds to import
        parser = Parser(prog=f"python -m handin {name}", description=module.__doc__,
                        epilog=f"example: {module.EXAMPLE}", formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(parser)
        return module.run(parser.parse_args(argv[1:]))
    except InputError as error:
        print(" ".join(str(error).splitlines()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"python -m handin {name}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
