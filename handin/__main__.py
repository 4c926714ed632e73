"""python -m handin COMMAND"""
import sys

from handin import demo

COMMANDS = {"demo": (demo.main, "runs the graders' commands on data that needs no download, and scores them")}


def main(argv):
    if len(argv) != 1 or argv[0] not in COMMANDS:
        lines = [f"  {name:8} {what}" for name, (_, what) in COMMANDS.items()]
        asked = argv[:1] == ["--help"]
        print("\n".join(["python -m handin COMMAND", *lines]), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    return COMMANDS[argv[0]][0]()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
