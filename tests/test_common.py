"""common/: text on a terminal, and the command line of handin/ and studies/."""
import pytest

from common.command_line import Parser, main, number
from common.errors import InputError
from common.text import one_line, text_table


@pytest.mark.parametrize("text, line", [
    ("two\nlines\tof\x00text\x1b[31m, red\x1b[0m", "two lines of text, red"),
    (ValueError("what it says"), "what it says"), (ValueError(), "ValueError"), ("", ""),
    ("word " * 100, "word " * 39 + "..."),
    ("the-name-of-a-file " * 15, "the-name-of-a-file " * 10 + "..."), ("w" * 300, "w" * 197 + "...")])
def test_anything_becomes_one_line_of_200_characters(text, line):
    assert one_line(text) == line and len(line) <= 200


def test_columns_are_aligned_and_nothing_trails():
    assert text_table([("part", "value", ""), ("birds", "1", "x"), ("", "22", "")]) == (
        "part   value\nbirds  1      x\n       22")


@pytest.mark.parametrize("outcome, code, said", [
    (0, 0, ""), (1, 1, ""), (InputError("a.npz: expected\nimages"), 2, "a.npz: expected images\n"),
    (KeyboardInterrupt(), 130, "tool do: interrupted\n"),
    (KeyboardInterrupt("; --resume continues"), 130, "tool do: interrupted; --resume continues\n")])
def test_a_command_ends_with_its_code_and_at_most_one_line(outcome, code, said, capsys):
    def run(name, words):
        assert (name, words) == ("do", ["this", "--that"])
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    assert main(Parser(prog="tool"), {"do": "does it"}, run, ["do", "this", "--that"]) == code
    assert capsys.readouterr().err == said


def test_an_unknown_command_is_one_line_and_none_shows_the_help(capsys):
    assert main(Parser(prog="tool"), {"do": "does it"}, None, ["undo"]) == 2
    assert capsys.readouterr().err.startswith("tool: argument COMMAND: invalid choice: 'undo'")
    assert main(Parser(prog="tool"), {"do": "does it"}, None, []) == 2
    assert capsys.readouterr().err.startswith("usage: tool")


@pytest.mark.parametrize("kind, text, said", [
    (int, "0", "expected a number of 1 or more, found 0"), (int, "1.5", "invalid whole number value: '1.5'"),
    (int, "1_0", "invalid whole number value: '1_0'"),
    (float, "0.5", "expected a finite number of 1 or more, found 0.5"),
    (float, "inf", "finite number of 1 or more, found inf"), (float, "nan", "finite number of 1 or more, found nan"),
    (float, "x", "invalid number value: 'x'")])
def test_numbers_that_are_refused(kind, text, said):
    parser = Parser(prog="tool")
    parser.add_argument("--n", type=number(kind, 1))
    with pytest.raises(InputError, match=said):
        parser.parse_args(["--n", text])
    assert parser.parse_args(["--n", "2"]).n == 2
