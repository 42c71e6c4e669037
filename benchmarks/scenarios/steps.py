"""One decode step of the engine against the stock model's bare batched forward over rows of the same lengths."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, load_ours, load_stock
from benchmarks.estimate import Estimate
from benchmarks.inprocess import BareRun, EngineRun
from benchmarks.report import Goal, Report, ms
from benchmarks.roofline import Costs, machine

COLUMNS = ("rows", "engine", "bare forward", "its cache", "engine / bare", "roofline", "engine, of the roofline")
Round = dict[str, list[float]]


def small(bench: Bench) -> Report:
    """16 rows: of one length, and of 64 to 448 tokens."""
    report = Report("step-small", "one decode step of 16 rows in process, small model", COLUMNS)
    checkpoint = bench.checkpoint(SMALL)
    ours, model = EngineRun.of(load_ours(checkpoint, 16)), load_stock(checkpoint)
    cases = {"16 of 256 tokens": [256] * 16, "16 of 64 to 448 tokens": [64 + 25 * row for row in range(16)]}
    for name, lengths in cases.items():
        rounds = _rounds(bench, f"step-small, {name}", ours, model, lengths)
        report.rows.append(_row(name, lengths, rounds, bench.effort.steps))
        ratio = Estimate.of([median(r["engine"]) / _fastest(r) for r in rounds])
        report.goals.append(Goal(f"{name}: a step's time, engine / bare forward", ratio, at_most=1.15))
    return report


def rows(bench: Bench) -> Report:
    """8 rows and 256 rows of 128 tokens."""
    report = Report("rows-256", "growth of a step from 8 rows of 128 tokens to 256, in process, small model", COLUMNS)
    checkpoint = bench.checkpoint(SMALL)
    ours, model = EngineRun.of(load_ours(checkpoint, 256)), load_stock(checkpoint)
    found = {}
    for count in (8, 256):
        lengths = [128] * count
        found[count] = _rounds(bench, f"rows-256, {count} rows", ours, model, lengths)
        report.rows.append(_row(f"{count} of 128 tokens", lengths, found[count], bench.effort.steps))
    growth = [
        (median(many["engine"]) / median(few["engine"])) / (_fastest(many) / _fastest(few))
        for few, many in zip(found[8], found[256], strict=True)
    ]
    report.goals.append(Goal("growth of a step, engine's / bare forward's", Estimate.of(growth), at_most=1.0))
    return report


def _rounds(bench: Bench, what: str, ours: EngineRun, model: Any, lengths: Sequence[int]) -> list[Round]:  # noqa: ANN401
    """Rounds of steps in turn: the engine's and those of the bare forward with each cache of transformers."""
    rounds = []
    steps = bench.effort.steps
    for number in bench.each(range(bench.effort.rounds), what):
        chance = random.Random(number)
        sequences = [[chance.randrange(10, SMALL.vocabulary) for _ in range(length)] for length in lengths]
        prompts = [ours.engine.backbone.inputs.build_ids(ids) for ids in sequences]
        requests = ours.start(prompts, steps + 16)
        bare = {kind: BareRun(model, kind, sequences, steps + 16) for kind in BareRun.CACHES}
        runs = {"engine": ours.step, **{kind: run.step for kind, run in bare.items()}}
        times: Round = {name: [] for name in runs}
        for step in range(-4, steps):
            for name in runs if step % 2 else reversed(runs):
                seconds = runs[name]()
                if step >= 0:  # the first four are the warm-up
                    times[name].append(seconds)
        ours.end(requests)
        rounds.append(times)
    return rounds


def _fastest(times: Round) -> float:
    """The bare forward's step, with the cache that serves it best."""
    return min(median(times[kind]) for kind in BareRun.CACHES)


def _row(name: str, lengths: Sequence[int], rounds: Sequence[Round], steps: int) -> tuple[str, ...]:
    engine = median(median(r["engine"]) for r in rounds)
    kind = min(BareRun.CACHES, key=lambda kind: median(median(r[kind]) for r in rounds))
    bare = median(median(r[kind]) for r in rounds)
    length = sum(lengths) / len(lengths) + steps / 2
    bound = machine().seconds(Costs(SMALL).decode(len(lengths), length))
    ratio = Estimate.of([median(r["engine"]) / _fastest(r) for r in rounds])
    return name, ms(engine), ms(bare), kind, ratio.show(), ms(bound), f"{bound / engine:.0%}"
