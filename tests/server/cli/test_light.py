"""Commands that compute nothing import nothing slow: they answer within a second."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from models import demo

EXAMPLE = Path(__file__).parents[3] / "docs" / "autosteer.example.yaml"
SLOW = ("torch", "transformers", "scipy.stats", "sklearn", "matplotlib", "fastapi", "sqlalchemy")
PROGRAM = """
import sys
from server.cli.main import main
sys.argv = ["autosteer", *sys.argv[1:]]
try:
    main()
finally:
    print("slow:", *(name for name in {slow} if name in sys.modules), file=sys.stderr)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(slow=SLOW)
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["version"],
        ["inspect", str(demo.GUARD)],
        ["config", "check", str(EXAMPLE), "--elsewhere"],
        ["config", "show"],
        ["keys", "new", "--name", "shop"],
    ],
    ids=lambda words: words[0],
)
def test_nothing_slow_is_imported(arguments: list[str]) -> None:
    found = run(*arguments)
    assert found.returncode == 0, found.stderr
    assert found.stderr.splitlines()[-1].split() == ["slow:"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "--model", "no/model", "--pairs", "rows.csv", "--out", "out"],
        ["score", "--model", "no/model", "--guard", str(demo.GUARD), "rows.csv"],
        ["eval", "--model", "demo", "--suite", "suite.yaml", "--out", "out"],
    ],
    ids=lambda words: words[0],
)
def test_torch_is_not_imported_to_say_what_is_wrong_with_a_row(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("toxc,txt,safe\na,b,c\n")
    Path("suite.yaml").write_text("name: s\nsets:\n  - {name: a, kind: harmful, path: rows.csv}\n")
    found = run(*arguments)
    assert found.returncode == 2
    assert "rows.csv:2: " in found.stderr
    assert "did you mean" in found.stderr
    assert not {"torch", "transformers", "sklearn"} & {*found.stderr.splitlines()[-1].split()}


@pytest.mark.parametrize(
    "arguments", [["inspect", "nowhere"], ["compare", "nowhere", "elsewhere"]], ids=lambda words: words[0]
)
def test_nothing_slow_is_imported_to_say_what_is_wrong(arguments: list[str]) -> None:
    found = run(*arguments)
    assert found.returncode == 2
    assert "nowhere" in found.stderr
    assert not {*SLOW} & {*found.stderr.splitlines()[-1].split()}
