"""python -m handin COMMAND"""
import importlib
import sys

from common import command_line
from common.command_line import Parser, list_commands

COMMANDS = {  # module of this package, with EXAMPLE, add_arguments(parser) and run(args) -> exit code; what it does
    "grade": ("grading.grade", "runs the graders' commands on any pair of scripts, checks and scores what they write"),
    "autograder": ("grading.autograder", "makes an autograder for Gradescope, or tries one on this machine"),
    "figures": ("report.figures", "draws what the report needs from trained models, and measures it"),
    "ablate": ("report.ablate", "trains without one technique at a time: the table 'effect of model optimisation'"),
    "report": ("report.report", "lays out the PDF of each part from the figures and the numbers"),
    "zip": ("pack", "checks and packs a submission"),
    "demo": ("demo", "runs the graders' commands on data that needs no download, and scores them"),
}


def run(name, words):
    """Runs a command; returns its exit code."""
    module = importlib.import_module(f"handin.{COMMANDS[name][0]}")  # one alone: each takes seconds to import
    parser = Parser(prog=f"python -m handin {name}", description=module.__doc__, epilog=f"example: {module.EXAMPLE}")
    module.add_arguments(parser)
    return module.run(parser.parse_args(words))


def main(argv=None):
    """Runs one command; returns its exit code: 2 for bad input, 130 for Ctrl-C."""
    commands = {name: what for name, (_, what) in COMMANDS.items()}
    parser = Parser(prog="python -m handin", description="From the two scripts to a hand-in. Commands, each with its "
                    "own --help:\n\n" + list_commands(commands))
    return command_line.main(parser, commands, run, argv)


if __name__ == "__main__":
    sys.exit(main())
