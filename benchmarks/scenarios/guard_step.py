"""What the guard costs the engine, in one process: work with it and without, by turns.

Loads through HTTP differ from each other by more than the guard costs. Here an engine with a guard and one without, on
one model, do the same piece of work one right after the other, and what is kept is the difference. An engine without a
guard stands in for one with it, too: its difference tells what the method can see.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, load_ours
from benchmarks.estimate import Estimate
from benchmarks.inprocess import OFF, EngineRun
from benchmarks.report import Report, ms
from benchmarks.scenarios.guard import AGAIN, BETWEEN, FIRST, MONITOR, SPEED, STEER, STEERED, goal
from benchmarks.workloads import picture, words
from models.prompt import Prompt
from steering.bundle import load_guard
from steering.data.questions import Question
from steering.fitting.offline import prompt_of
from steering.policy import Mode, Policy

ROWS = 16

Work = Callable[[], float]  # its seconds


@dataclass(frozen=True)
class Added:
    """Seconds without a guard, and what the guard adds to them in each pair."""

    base: float
    seconds: list[float]

    @property
    def ratio(self) -> Estimate:
        """With the guard to without."""
        return Estimate.of([1 + each / self.base for each in self.seconds])

    def __str__(self) -> str:
        added = Estimate.of([each * 1e6 for each in self.seconds])
        return f"{ms(self.base)} + {added.show(0)} µs"


def run(bench: Bench) -> Report:
    """The first token of a prompt with a picture, and steps of 16 rows."""
    answer = bench.effort.answer
    report = Report(
        "guard-step",
        f"what a guard adds to an engine, {ROWS} rows with images, small model",
        ("mode", "first token", "between tokens"),
    )
    checkpoint = bench.checkpoint(SMALL)
    # A model each: a guard reads all prompts of its own, also while rows of both are open.
    plain, watched = (load_ours(checkpoint, 2 * ROWS) for _ in range(2))
    guard = load_guard(checkpoint.guard, watched.info)
    step = _step_alone(bench, EngineRun.of(plain))
    for mode, policy in _modes().items():
        off, engine = EngineRun.of(plain), EngineRun.of(watched, guard if policy.mode is not Mode.OFF else None, policy)
        first = _firsts(bench, mode, off, engine)
        between = Added(step, _steps(bench, mode, off, engine))
        report.rows.append((mode, str(first), str(between)))
        report.goals += [
            goal(mode, FIRST, first.ratio),
            goal(mode, BETWEEN, between.ratio),
            goal(mode, SPEED, _kept(first, between, answer)),
        ]
    report.notes.append(
        f"Tokens/s follow from the other two: {ROWS} answers of {answer} tokens are {ROWS} first tokens, "
        f"one after the other, and {answer - 1} steps."
    )
    return report


def _modes() -> dict[str, Policy]:
    """What engines with a guard do; first, to see what the method can see, one without."""

    def guarded(mode: Mode, threshold: float) -> Policy:
        return Policy("default", mode, threshold, eps=1.0, refusal="")

    return {
        AGAIN: OFF,
        MONITOR: guarded(Mode.MONITOR, 1.0),
        STEER: guarded(Mode.STEER, 1.0),
        STEERED: guarded(Mode.STEER, 0.0),
    }


def _kept(first: Added, between: Added, answer: int) -> Estimate:
    """Throughput with the guard to without, at the ends of both intervals."""
    base = ROWS * first.base + (answer - 1) * between.base

    def ratio(a: float, b: float) -> float:
        return base / (ROWS * first.base * a + (answer - 1) * between.base * b)

    one, other = first.ratio, between.ratio
    return Estimate(ratio(one.value, other.value), ratio(one.high, other.high), ratio(one.low, other.low), one.count)


def _step_alone(bench: Bench, engine: EngineRun) -> float:
    """Seconds of a step of 16 rows while there are no others."""
    requests = engine.start([_prompt(engine, place) for place in range(ROWS)], bench.effort.steps + 16)
    engine.step(4)
    times = [engine.step() for _ in range(bench.effort.steps)]
    engine.end(requests)
    return median(times)


def _firsts(bench: Bench, mode: str, off: EngineRun, guarded: EngineRun) -> Added:
    """One prompt, of which nothing is known."""

    def first(engine: EngineRun, prompt: Prompt) -> float:
        engine.engine.backbone.forget()
        requests = engine.submit([prompt], 2)
        seconds = engine.step()
        assert requests[0].output_ids, "the first step gave no token"
        engine.end(requests)
        return seconds

    base, added = [], []
    for number in bench.each(range(-2, 20 * bench.effort.fine_rounds), f"guard-step, {mode}, first token"):
        prompt = _prompt(off, number)
        without, within = in_turn(number, partial(first, off, prompt), partial(first, guarded, prompt))
        if number >= 0:  # the first two are the warm-up
            base.append(without)
            added.append(within - without)
    return Added(median(base), added)


def _steps(bench: Bench, mode: str, off: EngineRun, guarded: EngineRun) -> list[float]:
    """What is added to steps of decoding rows. The rows of both lie side by side, so that neither reach further."""
    added = []
    steps = bench.effort.steps
    for number in bench.each(range(bench.effort.fine_rounds), f"guard-step, {mode}, steps"):
        requests = []
        for place in range(ROWS):
            prompt = _prompt(off, ROWS * number + place)
            requests += [(engine, engine.start([prompt], steps + ROWS + 16)) for engine in (off, guarded)]
        for step in range(-4, steps):
            without, within = in_turn(step, off.step, guarded.step)
            if step >= 0:
                added.append(within - without)
        for engine, some in requests:
            engine.end(some)
    return added


def in_turn(number: int, one: Work, other: Work) -> tuple[float, float]:
    """Seconds of both. Each goes first as often as the other: who does pays for kernels of a new length."""
    if number % 2:
        first = one()
        return first, other()
    second = other()
    return one(), second


def _prompt(engine: EngineRun, number: int) -> Prompt:
    question = Question(words(random.Random(number), 12), [picture(number, (224, 224))])
    return prompt_of(engine.engine.backbone, question)
