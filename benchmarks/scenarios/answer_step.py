"""What a reader of answers adds to a step of decoding rows, in one process: with it and without, by turns.

Both engines have the guard, and one of them watches answers, which are never flagged. The reader has random weights on
three layers: what it costs does not depend on them. Throughput is that of whole answers, prompts and the one step more
with them that a watched answer takes where its limit of tokens ends it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np
import torch

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, load_ours
from benchmarks.estimate import Estimate
from benchmarks.inprocess import EngineRun
from benchmarks.report import Goal, Report
from benchmarks.scenarios.guard_step import Added, in_turn
from benchmarks.workloads import words
from models.info import BackboneInfo
from models.prompt import Prompt
from steering.answers import AnswerReader
from steering.bundle import load_guard
from steering.data.questions import Question
from steering.fitting.offline import prompt_of
from steering.policy import Mode, OutputPolicy, Policy
from steering.scale import Scale

GOALS = {1: 1.005, 16: 1.01}  # rows: the most that a step may take of one without the reader
STREAMS, LEAST = 32, 0.98  # answers at once, and the least that is to be left of their tokens/s
UNWATCHED = Policy("default", Mode.MONITOR, threshold=1.0, eps=1.0, refusal="No.")
WATCHED = replace(UNWATCHED, output=OutputPolicy(Mode.STEER, threshold=1.0, hold=16))


def run(bench: Bench) -> Report:
    """Steps of 1 and of 16 rows, and 32 answers; first without a reader, to see what the method can see."""
    report = Report(
        "answer-step", "what a reader of answers adds between tokens, small model", ("rows", "off", "watched")
    )
    checkpoint = bench.checkpoint(SMALL)
    plain, watching = (load_ours(checkpoint, STREAMS) for _ in range(2))

    def engines(policy: Policy) -> tuple[EngineRun, EngineRun]:
        guard = load_guard(checkpoint.guard, watching.info)
        guard.answers = _reader(watching.info)
        off = EngineRun.of(plain, load_guard(checkpoint.guard, plain.info), UNWATCHED)
        return off, EngineRun.of(watching, guard, policy)

    for rows, most in GOALS.items():
        again, added = (_steps(bench, rows, *engines(policy)) for policy in (UNWATCHED, WATCHED))
        report.rows.append((str(rows), str(again), str(added)))
        report.goals += [
            Goal(f"off again / off: between tokens, {rows} rows", again.ratio),
            Goal(f"watched / off: between tokens, {rows} rows", added.ratio, at_most=most),
        ]
    again_speed, speed = (_speed(bench, *engines(policy)) for policy in (UNWATCHED, WATCHED))
    report.goals += [
        Goal(f"off again / off: tokens/s, {STREAMS} answers at once", again_speed),
        Goal(f"watched / off: tokens/s, {STREAMS} answers at once", speed, at_least=LEAST),
    ]
    return report


def _speed(bench: Bench, off: EngineRun, watched: EngineRun) -> Estimate:
    """Tokens/s of many answers at once, of those without the reader."""
    ratios = []
    for number in bench.each(range(3 * bench.effort.fine_rounds), f"answer-step, {STREAMS} answers"):
        questions = [Question(words(random.Random(1000 * number + place), 12), []) for place in range(STREAMS)]
        prompts = [prompt_of(off.engine.backbone, question) for question in questions]

        def answer(engine: EngineRun, prompts: Sequence[Prompt] = prompts) -> float:
            engine.engine.backbone.forget()
            return engine.answer(prompts, bench.effort.answer)

        without, within = in_turn(number, partial(answer, off), partial(answer, watched))
        ratios.append(without / within)
    return Estimate.of(ratios)


def _reader(info: BackboneInfo) -> AnswerReader:
    layers = [info.num_layers // 4, info.num_layers // 2, 3 * info.num_layers // 4]
    reader = AnswerReader(info.hidden_size, layers).to(info.device)
    reader.weight.copy_(torch.randn(reader.weight.shape) / reader.weight.shape[1] ** 0.5)
    reader.calibrate(Scale.of(np.random.default_rng(0).normal(size=500)), 0.01, -9.0)
    return reader


def _steps(bench: Bench, rows: int, off: EngineRun, watched: EngineRun) -> Added:
    base, added = [], []
    steps = bench.effort.steps
    for number in bench.each(range(bench.effort.fine_rounds), f"answer-step, {rows} rows"):
        questions = [Question(words(random.Random(rows * number + place), 12), []) for place in range(rows)]
        prompts = [prompt_of(off.engine.backbone, question) for question in questions]
        requests = [(engine, engine.start(prompts, steps + rows + 16)) for engine in (off, watched)]
        for step in range(-4, steps):
            without, within = in_turn(step, off.step, watched.step)
            if step >= 0:
                base.append(without)
                added.append(within - without)
        for engine, some in requests:
            engine.end(some)
    return Added(median(base), added)
