"""README and docs/: links lead to files, commands are understood, figures stand in one place, the README is a page."""
import importlib
import re
import shlex
from pathlib import Path

import pytest

from common.command_line import Parser
from handin.__main__ import COMMANDS
from studies import __main__ as studies_command
from studies import sampling

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "studies" / "README.md",
         *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def commands():
    """(page, words) of each `python -m handin` and `python -m studies` on the pages, but for abridged ones."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for command in re.findall(r"(?:^    |`)(python -m (?:handin|studies) [^`\n]+)", text, re.M):
            words = shlex.split(command, comments=True)
            if "..." not in words:
                yield pytest.param(words[2:], id=f"{page.parent.name}-{page.stem}: {' '.join(words[2:])[:60]}")


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_is_understood(words):
    package, name, *rest = words
    if name in studies_command.TOOLS:
        parser = sampling.make_parser(name)
    elif package == "studies":
        parser = studies_command.make_parser(name, importlib.import_module(f"studies.{name}"))
    else:
        parser, module = Parser(), importlib.import_module(f"handin.{COMMANDS[name][0]}")
        module.add_arguments(parser)
    parser.parse_args(rest)


def test_no_figure_stands_on_two_pages():
    """A measured figure has three decimals or more, or three digits and two decimals; spreads may agree by chance."""
    figure, places = r"(?<![\d.,])(?:\d+\.\d{3,}|\d{3}\.\d\d)(?![\d.])", {}
    for page in PAGES:
        for found in set(re.findall(figure, re.sub(r"± [\d.]+", "", page.read_text(encoding="utf-8")))):
            places.setdefault(found, []).append(page.name)
    assert len(places) > 50
    assert {found: pages for found, pages in places.items() if len(pages) > 1} == {}


def test_the_readme_is_one_page_and_begins_with_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    shown = [line.split("#")[0].strip() for line in text.splitlines() if line.startswith("    ")]
    assert shown[:2] == ["bash install.sh demo", "bash install.sh test"]
