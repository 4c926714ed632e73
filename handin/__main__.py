"""python -m handin COMMAND"""
import importlib
import sys

from common import command_line
from common.command_line import Parser, list_commands

COMMANDS = {  # module of this package, with EXAMPLE, add_arguments(parser) and run(args) -> exit code; description
    "grade": ("grading.grade", "run the graders' commands on any pair of scripts; check and score the outputs"),
    "autograder": ("grading.autograder", "build an autograder for Gradescope, or run one on this machine"),
    "figures": ("report.figures", "draw the report's figures and compute its numbers from trained models"),
    "ablate": ("report.ablate", "ablation study: retrain bird.py without one technique at a time"),
    "report": ("report.report", "build the PDF report of each part"),
    "zip": ("pack", "check and pack a submission"),
    "demo": ("demo", "run the graders' commands on data that needs no download, and score them"),
}


def run(name, arguments):
    """Runs a command; returns its exit code."""
    module = importlib.import_module(f"handin.{COMMANDS[name][0]}")  # only this one: each takes seconds to import
    parser = Parser(prog=f"python -m handin {name}", description=module.__doc__, epilog=f"example: {module.EXAMPLE}")
    module.add_arguments(parser)
    return module.run(parser.parse_args(arguments))


def main(argv=None):
    """Runs one command; returns its exit code: 2 for bad input, 130 for Ctrl-C."""
    commands = {name: description for name, (_, description) in COMMANDS.items()}
    parser = Parser(prog="python -m handin", description="From the two scripts to a hand-in. Commands, each with its "
                    "own --help:\n\n" + list_commands(commands))
    return command_line.main(parser, commands, run, argv)


if __name__ == "__main__":
    sys.exit(main())
