"""Every command of README and docs is run, or a comment before it says why not; also those name what there is.

The two first-hour pages and docs/kubernetes.md are run whole, by tests of their own; what asks a server is asked of
one in `tests/end_to_end/test_documented_requests.py`. Here are the others: each is one of `autosteer` that answers at
once.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import typer

from server.cli import main
from server.cli.main import app
from server.record.audit.sinks import make_sink
from server.settings.schema import Settings
from tests.end_to_end.commands import run
from tests.markdown import PAGES, ROOT, RUN_WHOLE, commands
from tests.server.records import audit_settings, record

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


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example's settings, and audit logs. What would be served is only made ready for it."""
    logs = tmp_path / "logs"
    for name in ("audit.jsonl", "server-a/audit.jsonl", "server-b/audit.jsonl"):
        (logs / name).parent.mkdir(parents=True, exist_ok=True)
        sink = make_sink(audit_settings(url=f"file://{logs / name}"))
        sink.write([record(1, key="web-shop", decision="steered")])
        sink.close()
    example = (ROOT / "docs" / "autosteer.example.yaml").read_text()
    (tmp_path / "autosteer.yaml").write_text(example.replace("/var/log/autosteer/", f"{logs}/"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "listen", lambda *_: nullcontext())
    monkeypatch.setattr(main, "_serve", lambda settings, *_: typer.echo(f"would serve {type(settings).__name__}"))
    return tmp_path


def told(words: list[str], site: Path) -> str:
    """What a command of ours prints; a log of all servers is one of the site's."""
    assert words[0] == "autosteer", f"only our own commands are run here; this needs a mark: {shlex.join(words)}"
    ended = run(*(each.replace("file:///logs/", f"file://{site}/logs/") for each in words[1:]))
    assert ended.returncode == 0, f"{shlex.join(words)}: {ended.stderr}"
    return ended.stdout


@pytest.mark.parametrize("page", [each for each in PAGES if each.stem not in RUN_WHOLE], ids=lambda each: each.stem)
def test_every_command_is_run_or_says_why_not(page: Path, site: Path) -> None:
    for block in commands(page):
        if block.not_run is None and not block.asks_a_server:
            for words in itertools.chain.from_iterable(map(simple, lines(block.text))):
                said = told(words, site)
                assert said.strip(), shlex.join(words)
                assert words[1] != "serve" or said == f"would serve {Settings.__name__}\n"


def test_a_command_that_cannot_be_run_here_needs_a_mark(site: Path) -> None:
    for wrong in ("autosteer audit --config autosteer.yaml --decision stered", "docker compose up"):
        with pytest.raises(AssertionError):
            told(shlex.split(wrong), site)


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
