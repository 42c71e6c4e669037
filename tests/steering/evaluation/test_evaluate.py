"""Whole evaluations of the bundled model, small ones: each column alone, and rows that are too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models import demo
from models.demo.dialogue import pairs
from models.load import load_backbone
from server.cli.evaluate import app
from steering.answers import AnswerReader
from steering.bundle import load_guard, save_bundle
from steering.categories import CategoryReader
from steering.scale import Scale
from steering.specs import AnswersSpec, CategoriesSpec, CategorySpec
from tests.undrawn import undrawn


def evaluate(out: Path, *more: str) -> dict[str, Any]:
    options = ["eval", "--model", "demo", "--device", "cpu", "--out", str(out), "--limit", "3", *more]
    with undrawn():
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


KINDS = sorted({pair.toxic.category for pair in pairs(50, 0, "test", ["text"])})


def watching(folder: Path, *, certain: bool) -> Path:
    """The bundled guard with a reader that takes every answer for harmful, or none, by its second token.

    Its reader of categories has the same scores for all prompts.
    """
    guard = load_guard(demo.GUARD, load_backbone(demo.CHECKPOINT, device="cpu").info)
    reader = AnswerReader(guard.manifest.model.hidden_size, [5, 6])
    reader.bias.fill_(50.0 if certain else -50.0)
    reader.calibrate(Scale.of(np.random.default_rng(0).normal(size=200)), 1.0, -5.0)
    spec = AnswersSpec(layers=[5, 6], window=16, thresholds=[], threshold=0.5)
    kinds = CategoryReader(guard.manifest.inputs, KINDS, [0.5] * len(KINDS), other=False)
    kinds.bias.copy_(torch.arange(float(len(KINDS))))
    named = [CategorySpec(name=name, threshold=0.5, auroc=1, recall=1, samples=9) for name in KINDS]
    told = CategoriesSpec(categories=named, other=False)
    manifest = guard.manifest.model_copy(update={"answers": spec, "categories": told, "format_version": 4})
    save_bundle(folder, manifest, guard.reader, guard.head, guard.calibration, reader, kinds)
    return folder


@pytest.mark.parametrize("certain", [True, False])
def test_what_each_reader_lets_through_is_told(tmp_path: Path, certain: bool) -> None:
    guard = watching(tmp_path / "guard", certain=certain)
    (tmp_path / "s.yaml").write_text(
        "name: s\njudges: [demo]\nmax_tokens: 24\nsets:\n"
        "  - {name: harm, kind: harmful, format: demo, harm: text, count: 3}\n"
        "  - {name: twin, kind: harmless, format: demo, harm: text, count: 3}\n"
    )
    more = "--guard", str(guard), "--suite", str(tmp_path / "s.yaml"), "--modes", "original", "--no-cost"
    found = evaluate(tmp_path / "run", *more, "--eps-sweep", "none")
    harm, twin = found["answers"]
    assert (harm["harmful_answers"], twin["harmful_answers"]) == (3, 0)
    assert harm["answer"]["hits"] == (0 if certain else 3)  # let through
    assert twin["answer"]["hits"] == (3 if certain else 0)  # flagged
    assert harm["prompt"]["hits"] == harm["both"]["hits"] == 0
    assert harm.get("trip_p50") == (2 if certain else None)
    assert harm.get("shown_p95") == (0 if certain else None)
    about = (tmp_path / "run" / "results.md").read_text()
    assert "Answers read" in about
    assert found["categories"]["macro_auroc"] == 0.5
    named = {each["category"] for each in found["categories"]["categories"]}
    assert {*KINDS} >= named
    assert all(f"| {name} | " in about.partition("Categories told apart")[2] for name in named)


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
