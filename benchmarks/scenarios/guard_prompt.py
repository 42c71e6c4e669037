"""What a guard's readers add to the first token, by the length of the prompt and by how much of it is known.

With SmolLM2 where `make real-model` has brought it, else with the small model. In one process, by turns, in CPU time of
one thread. The readers have random weights: what they cost does not depend on them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from statistics import median
from time import thread_time

import numpy as np
import torch

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, SMOLLM2, Checkpoint, load_ours
from benchmarks.inprocess import OFF, EngineRun
from benchmarks.report import Goal, Report, ms
from benchmarks.scenarios.guard_step import Added, in_turn
from benchmarks.workloads import words
from models.backbone import Backbone
from models.prompt import Prompt
from models.smollm2 import FOLDER
from steering.categories import CategoryReader
from steering.data.questions import Question
from steering.fitting.offline import prompt_of
from steering.guard import Guard
from steering.policy import Mode
from steering.readers import Cell, Conversation
from steering.scale import Scale
from tests.server.guards import random_guard

LENGTHS = (64, 512, 4096)  # tokens
NEW = 64  # tokens that differ, where the rest is known
AT_MOST = 1.01
CATEGORIES = 11
AGAIN, LAST, CONVERSATION, ALL = "off again", "last token", "conversation", f"conversation, {CATEGORIES} categories"
MONITOR = replace(OFF, mode=Mode.MONITOR)


def run(bench: Bench) -> Report:
    """Fresh prompts and known ones, with each reader against none; first none against none."""
    report = Report(
        "guard-prompt",
        "what readers add to the first token, {}, CPU time of one thread",
        ("tokens", "known", "off", *READERS),
    )
    if real := (FOLDER / "config.json").is_file():
        model = Checkpoint(SMOLLM2, FOLDER.absolute(), guard=FOLDER / "none")
    else:
        model = bench.checkpoint(SMALL)
    report.title = report.title.format("SmolLM2" if real else "small model")
    with one_thread():
        plain, reading = (load_ours(model, 4) for _ in range(2))
        for length in LENGTHS:
            for known in (0, length - NEW) if length > NEW else (0,):
                found = {
                    name: _firsts(
                        bench, name, EngineRun.of(plain), EngineRun.of(reading, make(reading), MONITOR), length, known
                    )
                    for name, make in READERS.items()
                }
                added = (f"+ {median(each.seconds) * 1e6:.0f} µs" for each in found.values())
                report.rows.append((str(length), str(known), ms(found[AGAIN].base), *added))
                for name, each in found.items():
                    told = f"{name} / off: {length} tokens, {known} known"
                    report.goals.append(Goal(told, each.ratio, at_most=AT_MOST if name == ALL else None))
    return report


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in the thread whose time is taken."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _firsts(bench: Bench, name: str, off: EngineRun, guarded: EngineRun, length: int, known: int) -> Added:
    """Prompts of which the first `known` tokens are known, one after the other."""
    base, added = [], []
    rounds = bench.effort.fine_rounds * (1 if length - known > 1000 else 4)
    for engine in (off, guarded):  # the readers before have forgotten, or not, what is to be known
        engine.engine.backbone.forget()
        engine.end(engine.start([_prompt(engine.engine.backbone, length, known, -3)], 2))
    for number in bench.each(range(-2, rounds), f"guard-prompt, {name}, {length} tokens, {known} known"):
        prompt = _prompt(off.engine.backbone, length, known, number)
        without, within = in_turn(number, partial(_first, off, prompt, known), partial(_first, guarded, prompt, known))
        if number >= 0:  # the first two are the warm-up
            base.append(without)
            added.append(within - without)
    return Added(median(base), added)


def _first(engine: EngineRun, prompt: Prompt, known: int) -> float:
    """CPU seconds of the step that gives the first token."""
    if not known:
        engine.engine.backbone.forget()
    requests = engine.submit([prompt], 2)
    begun = thread_time()
    engine.engine.step()
    seconds = thread_time() - begun
    assert requests[0].output_ids, "the first step gave no token"
    assert (requests[0].cached_tokens or 0) > known - NEW - 1, "what is known was computed again"
    engine.end(requests)
    return seconds


def _prompt(backbone: Backbone, length: int, known: int, number: int) -> Prompt:
    """A prompt of so many tokens that ends with a chat; the first `known` are those of all such prompts."""
    asked = prompt_of(backbone, Question("What is this about?", [])).ids
    shared, own = (
        backbone.inputs.build_text(words(random.Random(seed), length)).ids for seed in ("shared", f"{number}")
    )
    return Prompt([*[*shared[:known], *own][: length - len(asked)], *asked], {}, 0)


# the readers -------------------------------------------------------------------------------------------------------


def _conversation(backbone: Backbone, categories: int = 0) -> Guard:
    """A guard that reads conversations at three layers."""
    info = backbone.info
    layers = [info.num_layers // 4, info.num_layers // 2, 3 * info.num_layers // 4]
    inputs = info.hidden_size * len(layers)
    chance = np.random.default_rng(0)
    reader = Conversation(inputs, [Cell(has_image=False, most_tokens=None, samples=500)])
    reader.weight.copy_(torch.randn(reader.weight.shape) / inputs**0.5)
    reader.calibrate([[Scale.of(chance.normal(size=500)) for _ in range(3)]], 1.0, -9.0)
    plain = random_guard(info)
    told = None
    if categories:
        told = CategoryReader(inputs, [f"kind {n}" for n in range(categories)], [0.5] * categories, other=True)
        told.weight.copy_(torch.randn(told.weight.shape) / inputs**0.5)
    manifest = plain.manifest.model_copy(update={"probe_layers": layers})
    return Guard(manifest, reader, plain.head, {}, None, told).requires_grad_(requires_grad=False)


READERS: dict[str, Callable[[Backbone], Guard | None]] = {
    AGAIN: lambda _: None,
    LAST: lambda backbone: random_guard(backbone.info),
    CONVERSATION: _conversation,
    ALL: lambda backbone: _conversation(backbone, CATEGORIES),
}
