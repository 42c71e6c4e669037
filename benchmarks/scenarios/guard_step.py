"""What the guard costs the engine, in one process: the same model, the same prompts, by turns.

Loads through HTTP differ from each other by more than the guard costs. Here every engine does the same work in turn,
within a second or two, so that what differs is the guard. An engine without a guard stands in twice: its ratio to
itself tells what the method can see.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, load_ours
from benchmarks.estimate import Estimate
from benchmarks.inprocess import EngineRun
from benchmarks.report import Goal, Report, ms
from benchmarks.workloads import picture, words
from models.inputs import InputBuilder, Prompt
from steering.bundle import load_guard
from steering.policy import Mode, Policy

ROWS = 16
STEPS = 32
OFF, AGAIN, MONITOR, STEER, STEERED = "off", "off again", "monitor", "steer, none flagged", "steer, all flagged"
THROUGHPUT, BETWEEN, FIRST = "time of all answers", "between tokens", "first token"
AT_MOST = {
    BETWEEN: {MONITOR: 1.01, STEER: 1.01},
    FIRST: {MONITOR: 1.02, STEER: 1.02},
    THROUGHPUT: {MONITOR: 1 / 0.99, STEER: 1 / 0.99, STEERED: 1 / 0.97},
}

Times = dict[str, list[float]]
Work = Callable[[EngineRun, Sequence[Prompt]], float]


def run(bench: Bench) -> Report:
    """The first token of one prompt with a picture, steps of 16 rows, and 16 whole answers."""
    report = Report(
        "guard-step",
        f"{ROWS} rows with images, {bench.effort.answer} tokens each, in process, small model",
        ("mode", FIRST, BETWEEN, THROUGHPUT),
    )
    engines = _engines(bench)
    rounds = bench.effort.fine_rounds
    works: dict[str, tuple[int, Work]] = {
        FIRST: (6 * rounds, _first),
        BETWEEN: (2 * rounds, _between),
        THROUGHPUT: (rounds, lambda engine, prompts: engine.answer(prompts, bench.effort.answer)),
    }
    found = {what: _in_turn(bench, what, engines, count, work) for what, (count, work) in works.items()}
    for mode in engines:
        report.rows.append((mode, *(ms(Estimate.of(times[mode]).value) for times in found.values())))
    for measure, times in found.items():
        for mode in engines:
            if mode != OFF:
                ratio = Estimate.of_ratios(times[mode], times[OFF])
                report.goals.append(Goal(f"{mode} / off: {measure}", ratio, at_most=AT_MOST[measure].get(mode)))
    return report


def _engines(bench: Bench) -> dict[str, EngineRun]:
    """One for each mode, on one model."""
    checkpoint = bench.checkpoint(SMALL)
    backbone = load_ours(checkpoint, ROWS)
    guard = load_guard(checkpoint.guard, backbone.info)

    def guarded(mode: Mode, threshold: float) -> EngineRun:
        return EngineRun.of(backbone, guard, Policy("default", mode, threshold, eps=1.0, refusal=""))

    return {
        OFF: EngineRun.of(backbone),
        AGAIN: EngineRun.of(backbone),
        MONITOR: guarded(Mode.MONITOR, 1.0),
        STEER: guarded(Mode.STEER, 1.0),
        STEERED: guarded(Mode.STEER, 0.0),
    }


def _in_turn(bench: Bench, what: str, engines: dict[str, EngineRun], count: int, work: Work) -> Times:
    """Seconds of `count` pieces of work by each engine, in an order of chance; the first is the warm-up."""
    chance = random.Random(0)
    times: Times = {mode: [] for mode in engines}
    for number in bench.each(range(-1, count), f"guard-step, {what}"):
        for mode in chance.sample(list(engines), len(engines)):
            engine = engines[mode]
            engine.engine.backbone.forget()
            prompts = [_prompt(engine.engine.backbone.inputs, ROWS * number + place) for place in range(ROWS)]
            seconds = work(engine, prompts)
            if number >= 0:
                times[mode].append(seconds)
    return times


def _first(engine: EngineRun, prompts: Sequence[Prompt]) -> float:
    """One prompt, of which nothing is known."""
    requests = engine.submit(prompts[:1], 2)
    seconds = engine.step()
    assert requests[0].output_ids, "the first step gave no token"
    engine.end(requests)
    return seconds


def _between(engine: EngineRun, prompts: Sequence[Prompt]) -> float:
    """A step of rows that stream."""
    requests = engine.start(prompts, 2 * STEPS)
    engine.step(2)
    seconds = engine.step(STEPS) / STEPS
    engine.end(requests)
    return seconds


def _prompt(inputs: InputBuilder, number: int) -> Prompt:
    content = [{"type": "image"}, {"type": "text", "text": words(random.Random(number), 12)}]
    return inputs.build([{"role": "user", "content": content}], [picture(number, (224, 224))])
