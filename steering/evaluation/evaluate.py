"""`evaluate`: a whole evaluation, from a suite's rows to the files of its run."""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from steering.errors import DataError
from steering.evaluation import results
from steering.evaluation.answer_reading import answer_figures, read_answers
from steering.evaluation.category_figures import category_figures
from steering.evaluation.conclusions import conclusions, differences
from steering.evaluation.cost import local_cost, remote_cost
from steering.evaluation.judges import Judge
from steering.evaluation.lengths import false_alarms_by_length
from steering.evaluation.remote import Remote
from steering.evaluation.report import write_reports
from steering.evaluation.run import Answers, Guarded, Verdicts, ask, judge_all
from steering.evaluation.store import Store
from steering.evaluation.suite import Loaded, Suite
from steering.evaluation.surrounded import surroundings
from steering.files import write_whole
from steering.versions import versions

FEW_SAFE = 100  # harmless rows below which a share of refusals says little

COST_NOTE = (
    "In process: medians over rounds in turn, of prompts that are not flagged; in brackets the median ratio to the "
    "same round without the guard. Servers: what the client saw, at its concurrency."
)


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated: rows, who answers, who judges (the first judge's figures are the main ones)."""

    suite: Suite
    loaded: Loaded
    guarded: Guarded | None
    remotes: Sequence[Remote]
    judges: Sequence[Judge]
    cost: bool = True

    def identity(self) -> dict[str, str]:
        """What answers depend on: a run goes on only where all of it is the same."""
        found = {"suite": self.loaded.digest}
        if self.guarded is not None:
            info = self.guarded.backbone.info
            found["model"] = f"{info.weights_hash} {info.dtype} {info.device.type} {info.template_hash}"
            found["batch size"] = str(self.guarded.backbone.max_rows)
            if self.guarded.guard is not None:
                found["guard"] = self.guarded.guard.manifest.tensors_hash
        return found | {f"server {each.name}": f"{each.url} {each.model} {each.mode}" for each in self.remotes}


def evaluate(plan: EvaluationPlan, out: Path, progress: Progress) -> dict[str, Any]:
    """Run a plan; writes `results.json`, `results.md`, `report.html`, `rows.jsonl`. Raises RunError, DataError."""
    if not plan.judges:
        raise DataError("an evaluation needs at least one judge")
    began = time.monotonic()
    with Store(out, plan.identity()) as store:
        answers = ask(plan.loaded, plan.guarded, plan.remotes, store, progress)
    answered = time.monotonic()
    verdicts = [judge_all(judge, plan.loaded, answers, progress) for judge in plan.judges]
    judged = time.monotonic()
    cost = _cost(plan, answers, progress)
    measured = time.monotonic()
    task = progress.add_task("figures", total=1)
    seconds = {"answers": answered - began, "judging": judged - answered, "cost": measured - judged}
    found = {**summarise(plan, answers, verdicts), "cost": cost, "seconds": seconds}
    rows = results.rows(plan.loaded, answers.systems, verdicts, _fitted_rows(plan))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    write_whole(out / "rows.jsonl", lines.encode())
    write_whole(out / "results.json", (json.dumps(found, indent=1, allow_nan=False) + "\n").encode())
    clean = plan.loaded.clean.asked
    write_reports(found, {each.name: each.by_kind(clean) for each in results.detectors_of(answers)}, out)
    progress.advance(task)
    return found


def summarise(plan: EvaluationPlan, answers: Answers, verdicts: Sequence[Verdicts]) -> dict[str, Any]:
    """Everything that `results.json` holds but cost and the time it took."""
    # Figures are of the rows as they are; the same rows in surroundings have a table of their own.
    loaded, main, guarded = plan.loaded.clean, verdicts[0], plan.guarded
    guard = None if guarded is None else guarded.guard
    policy = None if guarded is None else guarded.policy
    figures = results.figures(loaded, answers.systems, verdicts)
    detectors = results.detectors_of(answers)
    found = {
        "suite": {"name": plan.suite.name, "about": plan.suite.about, "rows_sha256": plan.loaded.digest},
        "model": None if guarded is None else _model(guarded),
        "guard": None if guard is None else _guard(guard),
        "threshold": None if policy is None else policy.threshold,
        "systems": [{"name": system.name, "about": system.about} for system in answers.systems],
        "judges": {each.judge.name: dict(each.judge.about) for each in verdicts},
        "sets": _sets(loaded),
        "figures": figures,
        "surroundings": surroundings(plan.loaded, answers.systems, detectors, main),
        "answers": answer_figures(
            read_answers(guarded, loaded.asked, answers.plain), loaded.asked, answers.plain, main
        ),
        "categories": category_figures(guarded, loaded.asked, answers.plain),
        "lengths": false_alarms_by_length(plan.loaded.asked, detectors),
        "groups": results.groups(loaded, answers.systems, main),
        "detectors": results.detection(loaded, detectors),
        "scores": results.set_scores(loaded, detectors[0]) if detectors else {},
        "sweeps": {
            "eps": results.eps_sweep(loaded, answers, main),
            "threshold": results.threshold_sweep(loaded, answers, main, _thresholds(guarded)),
        },
        "agreement": results.agreement(loaded, verdicts),
        "differences": differences(loaded, answers.systems, main),
        "fitted": count_fitted(loaded, _fitted_rows(plan)),
        "warnings": _warnings(figures),
        "cost": [],
        "cost_note": COST_NOTE,
        **_where_and_when(),
    }
    return {"conclusions": conclusions(found), **found}


def _thresholds(guarded: Guarded | None) -> list[float]:
    """Those that the bundle knows, and the one in effect."""
    guard, policy = (None, None) if guarded is None else (guarded.guard, guarded.policy)
    known = [] if guard is None else [each.threshold for each in guard.manifest.thresholds]
    return known if policy is None else [*known, policy.threshold]


def _where_and_when() -> dict[str, Any]:
    return {
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _fitted_rows(plan: EvaluationPlan) -> frozenset[int] | None:
    """What the guard in process was fitted on, where its bundle says so."""
    guard = None if plan.guarded is None else plan.guarded.guard
    return None if guard is None else guard.fitted_rows


def count_fitted(loaded: Loaded, fitted: frozenset[int] | None) -> dict[str, int] | None:
    """How many rows of each set the guard was fitted on; None where that is not known."""
    if fitted is None:
        return None
    seen = Counter(each.set for each in loaded.asked if each.row.question.fingerprint in fitted)
    return {name: seen[name] for name in dict.fromkeys(each.set for each in loaded.asked)}


def _model(guarded: Guarded) -> dict[str, str]:
    info = guarded.backbone.info
    dtype = str(info.dtype).removeprefix("torch.")
    named = {"name": guarded.name, "architecture": info.architecture, "revision": info.revision or ""}
    return {**named, "dtype": dtype, "device": str(info.device), "weights_hash": info.weights_hash}


def _guard(guard: Any) -> dict[str, Any]:  # noqa: ANN401
    manifest = guard.manifest
    return {
        "date": manifest.date,
        "layer": manifest.layer,
        "eps": manifest.eps,
        "data_hash": manifest.data_hash,
        "tensors_hash": manifest.tensors_hash,
    }


def _sets(loaded: Loaded) -> list[dict[str, Any]]:
    found = []
    for name, dropped in loaded.dropped.items():
        rows = [each for each in loaded.asked if each.set == name]
        found.append({"name": name, "kind": rows[0].kind, "rows": len(rows), "dropped": dict(dropped)})
    return found


def _cost(plan: EvaluationPlan, answers: Answers, progress: Progress) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    guarded = plan.guarded
    if plan.cost and guarded is not None and guarded.guard is not None and guarded.policy is not None:
        clean = plan.loaded.clean.asked
        harmless = [each for each in clean if each.kind != "harmful" and each.key not in answers.flagged]
        # A row that could not be answered cannot be timed either.
        answered = [each for each in harmless if answers.plain[each.key].error is None]
        found += local_cost(guarded.backbone, guarded.guard, guarded.policy, answered, progress)
    seen = [remote_cost(system.name, system.outputs) for system in answers.systems if system.remote is not None]
    return found + [each for each in seen if each is not None]


def _warnings(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before believing a figure."""
    found = []
    missing = [cell for cell in figures if cell["unjudged"] or cell["failed"]]
    if missing:
        worst = max(missing, key=lambda cell: cell["unjudged"] + cell["failed"])
        where, counts = f"{worst['set']} ({worst['system']})", f"{worst['unjudged']} unjudged, {worst['failed']} failed"
        found.append(
            f"Some answers are missing or unjudged, most in set {where}: {counts}. They are in no share; each share "
            "says what it could be at most."
        )
    few = sorted({cell["set"] for cell in figures if cell["figure"] == "over-refusal" and 0 < cell["n"] < FEW_SAFE})
    if few:
        found.append(f"Fewer than {FEW_SAFE} harmless rows: {', '.join(few)}. Their refusal rates are rough.")
    return found
