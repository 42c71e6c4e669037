"""The commands' mistakes: one line each, exit code 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from server.cli.evaluate import app


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ((), "nothing to evaluate"),
        (("--suite", "/nowhere.yaml", "--model", "demo"), "bundled suites: demo"),
        (("--model", "/nowhere/at/all"), "without --guard"),
        (("--model", "/nowhere/at/all", "--modes", "original"), "/nowhere/at/all"),
        (("--model", "demo", "--modes", "loud"), "loud"),
        (("--model", "demo", "--judge", "nobody"), "nobody"),
        (("--model", "demo", "--judge-url", "http://127.0.0.1:9/v1"), "belong together"),
        (("--model", "demo", "--eps-sweep", "a"), "--eps-sweep"),
        (("--model", "demo", "--eps-sweep", "0"), "above 0"),
        (("--url", "x"), "NAME=URL"),
        (("--url", "x=http://127.0.0.1:9/v1"), "x=http://127.0.0.1:9/v1"),
        (("--url", "x=http://127.0.0.1:9/v1#loud"), "loud"),
        (("--model", "demo", "--url", "original=http://127.0.0.1:9/v1"), "two columns of one name"),
        (("--model", "demo", "--threshold", "0.5", "--target-fpr", "0.01"), "give one of them"),
    ],
)
def test_a_mistake_of_eval_is_one_line(more: tuple[str, ...], says: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["eval", "--out", str(tmp_path / "run"), "--limit", "1", *more])
    assert result.exit_code == 2
    assert says in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_a_mistake_of_compare_is_one_line(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", str(tmp_path), str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no finished run" in result.stderr
