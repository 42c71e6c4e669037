"""The commands of README and docs name what there is: subcommands, options, targets, modules, files.

The two first-hour pages and docs/kubernetes.md are run whole, by tests of their own.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from server.cli.main import app
from tests.markdown import commands

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
BETWEEN = {"|", "&&", "||", ";", "&", ">", ">>", "2>&1"}


def lines(block: str) -> Iterator[list[str]]:
    """The words of each command; one that goes on in the next lines, in quotes or after a backslash, is one."""
    text = ""
    for line in block.splitlines():
        text += line
        if text.endswith("\\"):
            text = text[:-1] + " "
            continue
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # a quotation that goes on
            text += "\n"
            continue
        text = ""
        yield words


def simple(words: list[str]) -> Iterator[list[str]]:
    """The commands of a line, without what is between them."""
    found: list[str] = []
    for word in [*words, ";"]:
        if word in BETWEEN:
            if found:
                yield found
            found = []
        else:
            found.append(word)


def problem(words: list[str]) -> str | None:
    """What a command names that is not there; nothing of commands that are not ours."""
    match words:
        case ["autosteer", *rest]:
            return _problem_of_ours(rest)
        case ["make", target, *_]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            return None if target in known else f"no target {target}"
        case ["python" | "python3", "-m", "venv", *_]:
            return None
        case ["python" | "python3", "-m", module, *_]:
            return None if importlib.util.find_spec(module) else f"no module {module}"
        case ["docker", "compose", *rest]:
            files = [after for word, after in itertools.pairwise(rest) if word == "-f"]
            return next((f"no file {each}" for each in files if not (ROOT / each).is_file()), None)
    return None


def _problem_of_ours(words: list[str]) -> str | None:
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        if words[0] not in command.commands:
            return f"no command {words[0]}"
        command, words = command.commands[words[0]], words[1:]
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    given = [word.partition("=")[0] for word in words if word.startswith("--")]
    return next((f"no option {each} of {command.name}" for each in given if each not in {*known, "--help"}), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda each: each.stem)
def test_every_command_names_what_there_is(page: Path) -> None:
    for block in commands(page):
        for line in lines(block.text):
            for words in simple(line):
                assert problem(words) is None, f"{page.name}: {shlex.join(words)}: {problem(words)}"


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("autosteer fitt --model x", "no command fitt"),
        ("autosteer keys usage --url x --since y", "no option --since of usage"),
        ("make serv", "no target serv"),
        ("python -m benchmarks.dashbords write", "no module benchmarks.dashbords"),
        ("docker compose -f docker/compose.yml up", "no file docker/compose.yml"),
        ("autosteer audit --config autosteer.yaml --last 5", None),
    ],
)
def test_a_wrong_command_is_found(command: str, found: str | None) -> None:
    assert problem(shlex.split(command)) == found


def test_commands_over_several_lines_are_one() -> None:
    block = "curl -d '{\n}' | jq .  # a comment\nautosteer fit --model a \\\n    --out b && make serve\n"
    assert [list(simple(line)) for line in lines(block)] == [
        [["curl", "-d", "{\n}"], ["jq", "."]],
        [["autosteer", "fit", "--model", "a", "--out", "b"], ["make", "serve"]],
    ]
