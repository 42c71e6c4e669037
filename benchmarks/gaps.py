"""What `max_gap_ms` costs and brings in the engine itself, on a clock of CPU time that other work does not move.

`python -m benchmarks.gaps`; one thread, no HTTP, a closed load of clients whose every request has words and a picture
of its own. A bound of 1 ms lets prompts double a step, at most: the engine's rule before there was a bound.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from time import process_time
from typing import Annotated
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import SMALL, checkpoint, load_ours
from benchmarks.estimate import Estimate, percentile
from benchmarks.inprocess import OFF
from benchmarks.workloads import picture, words
from models.backbone import Backbone
from models.prompt import Prompt
from models.row_sampler import SamplingParams
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.request import Ask
from steering.data.questions import Question
from steering.fitting.offline import prompt_of
from steering.policy import Policy

ROWS = 16
ANSWER = 48
MOST_TOKENS = 4096  # of prompts in a step
FIGURES = ("tokens/s", "first token p50", "first token p99", "between tokens p50", "between tokens p99")


def prompts(backbone: Backbone, count: int, length: int, seed: int) -> list[Prompt]:
    """With a picture and a dozen words, or with so many words and no picture."""
    chance = random.Random(seed)

    def question(place: int) -> Question:
        if length:
            return Question(words(chance, length))
        return Question(words(chance, 12), [picture(1000 * seed + place, (224, 224))])

    return [prompt_of(backbone, question(place)) for place in range(count)]


def load(engine: OwnEngine, asked: list[Prompt], clients: int, policy: Policy = OFF) -> list[float]:
    """The figures of a closed load, in CPU seconds of this process; `on_cpu_clock` must be in force."""
    left = deque(Ask(str(place), prompt, SamplingParams.GREEDY, ANSWER, policy) for place, prompt in enumerate(asked))
    marks: dict[str, list[float]] = {}

    def ask() -> None:
        if left:
            (request,) = engine.prepare([left.popleft()])
            marks[request.id] = [process_time()]
            engine.add(request)

    begun = process_time()
    for _ in range(clients):
        ask()
    while not engine.idle:
        for event in engine.step():
            assert event.error is None, event.error
            marks[event.request.id].append(process_time())
            if event.finish is not None:
                ask()
    seconds = process_time() - begun
    assert all(len(times) == 1 + ANSWER for times in marks.values()), "an answer ended early"
    first = [times[1] - times[0] for times in marks.values()]
    gaps = [after - before for times in marks.values() for before, after in pairwise(times[1:])]
    return [ANSWER * len(marks) / seconds, *(percentile(each, share) for each in (first, gaps) for share in (50, 99))]


@contextmanager
def on_cpu_clock() -> Iterator[None]:
    """Have engines measure themselves in CPU time of this process."""
    with patch("server.engine.own.monotonic", process_time), patch("models.vision.monotonic", process_time):
        yield


def main(
    clients: Annotated[int, typer.Option(help="Clients at once.")] = 16,
    length: Annotated[int, typer.Option("--words", help="Words of a prompt without a picture; 0: pictures.")] = 0,
    rounds: Annotated[int, typer.Option(help="Loads with each bound, by turns.")] = 3,
    gap: Annotated[int, typer.Option(help="Milliseconds, beside 1.")] = 300,
) -> None:
    """Print the medians, and the ratios within a round."""
    torch.set_num_threads(1)
    backbone = load_ours(checkpoint(SMALL), ROWS)
    found: dict[int, list[list[float]]] = {1: [], gap: []}
    with on_cpu_clock():
        for number in range(-1, rounds):  # the first is the warm-up, and short
            asked = prompts(backbone, (4 if number >= 0 else 1) * clients, length, number + 2)
            for bound in [*found][:: 1 if number % 2 else -1]:
                backbone.forget()
                engine = OwnEngine(backbone, None, Scheduler(ROWS, MOST_TOKENS, bound / 1000))
                figures = load(engine, asked, clients)
                if number >= 0:
                    found[bound].append(figures)
    table = Table("figure", "1 ms", f"{gap} ms", "ratio")
    for place, name in enumerate(FIGURES):
        old, new = ([figures[place] for figures in found[bound]] for bound in (1, gap))
        ratio = Estimate.of_ratios(new, old)
        table.add_row(name, Estimate.of(old).show(3), Estimate.of(new).show(3), ratio.show())
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
