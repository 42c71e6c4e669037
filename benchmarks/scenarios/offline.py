"""The engine without HTTP against the offline yardstick: `model.generate` on the same prompts as one static batch."""

from __future__ import annotations

import random
from typing import Any

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, load_ours, load_stock
from benchmarks.estimate import Estimate
from benchmarks.inprocess import EngineRun, generate
from benchmarks.report import Goal, Report
from benchmarks.roofline import Costs, machine
from benchmarks.workloads import picture, words
from models.prompt import Prompt
from steering.data.questions import Question
from steering.fitting.offline import prompt_of

ROWS = 16


def run(bench: Bench) -> Report:
    """Texts, and pictures with short questions; the prompts are made before the clock starts."""
    report = Report(
        "offline-small",
        f"{ROWS} prompts, {bench.effort.answer} tokens each, in process, small model",
        ("prompts", "engine, tokens/s", "model.generate, tokens/s", "engine, of the roofline"),
    )
    checkpoint = bench.checkpoint(SMALL)
    ours, model = EngineRun.of(load_ours(checkpoint, ROWS)), load_stock(checkpoint)
    tokens = ROWS * bench.effort.answer
    for kind, images in (("texts", 0), ("images", 1)):
        engine, stock, length = _rounds(bench, ours, model, kind, images)
        bound = tokens / Costs(SMALL).answers(machine(), ROWS, length, bench.effort.answer, images)
        speed = [Estimate.of([tokens / seconds for seconds in found]) for found in (engine, stock)]
        report.rows.append((kind, speed[0].show(0), speed[1].show(0), f"{speed[0].value / bound:.1%}"))
        ratio = Estimate.of_ratios(stock, engine)
        report.goals.append(Goal(f"{kind}: tokens/s, engine / model.generate", ratio, at_least=1.0))
    return report


def _rounds(
    bench: Bench,
    ours: EngineRun,
    model: Any,  # noqa: ANN401 - a transformers model
    kind: str,
    images: int,
) -> tuple[list[float], list[float], float]:
    """Seconds of the engine and of `model.generate` in each round, and the prompts' mean length."""
    engine, stock = [], []
    answer = bench.effort.answer
    for number in bench.each(range(-1, 2 * bench.effort.rounds), f"offline-small, {kind}"):
        prompts = _prompts(ours, images, seed=number)
        if number % 2:
            engine.append(ours.answer(prompts, answer))
        stock.append(generate(model, prompts, answer))
        if not number % 2:
            engine.append(ours.answer(prompts, answer))
    return engine[1:], stock[1:], sum(len(prompt.ids) for prompt in prompts) / ROWS  # the first is the warm-up


def _prompts(ours: EngineRun, images: int, seed: int) -> list[Prompt]:
    chance = random.Random(seed)
    prompts = []
    for place in range(ROWS):
        text = words(chance, chance.randint(8, 16) if images else chance.randint(40, 60))
        question = Question(text, [picture(100 * seed + place, (224, 224))] * images)
        prompts.append(prompt_of(ours.engine.backbone, question))
    return prompts
