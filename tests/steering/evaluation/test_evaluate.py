"""Whole evaluations of the bundled model, small ones: each column alone, and rows that are too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from server.cli.evaluate import app


def evaluate(out: Path, *more: str) -> dict[str, Any]:
    options = ["eval", "--model", "demo", "--device", "cpu", "--out", str(out), "--limit", "3", *more]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


@pytest.mark.parametrize("mode", ["original", "steer-always", "autosteer", "block"])
def test_each_column_can_be_asked_for_alone(mode: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(
        "name: s\njudges: [demo]\nmax_tokens: 24\nsets:\n"
        "  - {name: harm, kind: harmful, format: demo, harm: text, count: 3}\n"
        "  - {name: twin, kind: harmless, format: demo, harm: text, count: 3}\n"
    )
    found = evaluate(
        tmp_path / "run", "--suite", str(tmp_path / "s.yaml"), "--modes", mode, "--no-cost", "--eps-sweep", "1"
    )
    assert [system["name"] for system in found["systems"]] == [mode]
    assert found["sweeps"]["eps"]


def test_rows_that_pass_the_context_or_leave_little_room_end_no_run(tmp_path: Path) -> None:
    rows = [{"id": "short", "text": "hello"}]
    rows += [{"id": f"long {count}", "text": "hello " * count} for count in (1018, 5000)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "s.yaml").write_text(
        "name: s\nmax_tokens: 64\nsets:\n  - {name: plain, kind: harmless, path: rows.jsonl}\n"
    )
    found = evaluate(tmp_path / "run", "--suite", str(tmp_path / "s.yaml"))
    cell = found["figures"][0]
    assert (cell["n"], cell["failed"]) == (2, 1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    assert "pass the context" in lines[2]["answers"]["original"]["error"]
    assert found["cost"][0]["prompts"] <= 2
