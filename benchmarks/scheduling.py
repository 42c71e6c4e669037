"""What the scheduler's bound on gaps costs and brings: the scheduler itself on a simulated clock, with measured costs.

`python -m benchmarks.scheduling`; the costs are those of the small model in this process, measured first, or those
given. A bound of 1 ms lets prompts double a step, at most: the engine's rule before there was a bound.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import process_time
from typing import Annotated, Any, NamedTuple, cast
from unittest.mock import patch

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.estimate import percentile
from benchmarks.inprocess import OFF
from models.prompt import Prompt
from models.row_sampler import SamplingParams
from server.engine.budget import Spent
from server.engine.own_request import OwnRequest
from server.engine.scheduler import Scheduler
from server.request import Ask

GAPS = (0.001, 0.1, 0.3, 1.0, None)  # seconds
ROWS = 16
ANSWER = 48
COUNT = 400  # requests of a load
SCATTER = 0.15  # of steps about their cost, as a standard deviation of the logarithm


@dataclass(frozen=True)
class Costs:
    """Seconds of a step: of itself, of each decoding row, and of each prompt token."""

    step: float
    row: float
    token: float

    def of(self, decoding: int, tokens: int) -> float:
        """A step with so many of them."""
        return self.step + self.row * decoding + self.token * tokens

    @classmethod
    def measure(cls) -> Costs:
        """Those of the small model's engine on one thread, in CPU time, which other work does not move."""
        from benchmarks.checkpoints import SMALL, checkpoint, load_ours
        from benchmarks.inprocess import EngineRun

        torch.set_num_threads(1)
        run = EngineRun.of(load_ours(checkpoint(SMALL), ROWS))
        chance, length, steps = random.Random(0), 256, 20

        def prompts(count: int) -> list[Prompt]:
            return [prompt_of(length, chance) for _ in range(count)]

        with patch("benchmarks.inprocess.perf_counter", process_time):
            run.answer(prompts(ROWS), 4)
            seconds = {}
            for rows in (1, ROWS):
                requests = run.start(prompts(rows), steps + 2)
                seconds[rows] = run.step(steps) / steps
                run.end(requests)
            filling = min(run.answer(prompts(4), 1) for _ in range(3))
        row = max(seconds[ROWS] - seconds[1], 0.0) / (ROWS - 1)
        step = seconds[1] - row
        return cls(step, row, (filling - step) / (4 * length))


def prompt_of(length: int, chance: random.Random) -> Prompt:
    """Tokens that begin like no other prompt's."""
    return Prompt(ids=[chance.randrange(200, 4000) for _ in range(length)], features={}, image_tokens=0)


@dataclass
class CountedRow:
    """As much of a row as a scheduler sees."""

    pending: int
    length: int = 0


class Boundless:
    """Room for everything."""

    def open(self, request: OwnRequest, *, alone: bool) -> None:  # noqa: ARG002  the protocol's
        """Give it a row."""
        request.row = cast(Any, CountedRow(request.pending))

    def chunk(self, request: OwnRequest, count: int) -> int:
        """As asked."""
        return min(count, request.pending)

    def unseen(self, request: OwnRequest, count: int) -> int:  # noqa: ARG002  the protocol's
        """No pictures here."""
        return 0

    def reserve(self, request: OwnRequest, count: int) -> bool:  # noqa: ARG002  the protocol's
        """There is room."""
        return True

    def release(self, request: OwnRequest) -> None:
        """Never needed: nobody makes room."""


@dataclass
class Clients:
    """Requests by when they come; in a closed load, each client's next when its last has ended."""

    lengths: Iterator[int]
    left: int
    due: list[float] = field(default_factory=list)
    closed: bool = False

    def ended(self, now: float) -> None:
        """An answer has."""
        if self.closed and self.left > len(self.due):
            heapq.heappush(self.due, now)

    def come(self, now: float) -> Iterator[tuple[float, int]]:
        """Those that have come by now: when, and their prompts' lengths."""
        while self.due and self.due[0] <= now and self.left:
            self.left -= 1
            yield heapq.heappop(self.due), next(self.lengths)


def simulate(clients: Clients, costs: Costs, max_gap: float | None) -> tuple[float, list[list[float]]]:
    """Seconds until all have their answers, and of each answer when it was asked for and when its tokens came."""
    seconds, (marks,) = simulate_keys([clients], costs, max_gap)
    return seconds, marks


def simulate_keys(
    keys: Sequence[Clients], costs: Costs, max_gap: float | None, *, turns: bool = True
) -> tuple[float, list[list[list[float]]]]:
    """The same of several keys' clients, until those of the last have all their answers; keys take turns, or not."""
    scheduler, rows, chance = Scheduler(ROWS, 4096, max_gap), Boundless(), random.Random(1)
    marks: list[dict[OwnRequest, list[float]]] = [{} for _ in keys]
    whose: dict[OwnRequest, int] = {}
    now = 0.0
    while keys[-1].left or any(whose[request] == len(keys) - 1 for request in scheduler.live()):
        if scheduler.idle:
            now = max(now, min(clients.due[0] for clients in keys if clients.due))
        for key, clients in enumerate(keys):
            for at, length in clients.come(now):
                prompt = Prompt(ids=[0] * length, features={}, image_tokens=0)
                tenant = key if turns else 0
                ask = Ask(str(len(whose)), prompt, SamplingParams.GREEDY, ANSWER, OFF, tenant=tenant)
                request = OwnRequest(ask, sampler=cast(Any, None))
                marks[key][request], whose[request] = [at], key
                scheduler.add(request)
        plan = scheduler.schedule(rows)
        seconds = costs.of(plan.decoding, plan.prompt_tokens) * chance.lognormvariate(0.0, SCATTER)
        scheduler.budget.observe(Spent(seconds, plan.decoding, plan.prompt_tokens, plan.prompt_pairs))
        now += seconds
        for request, count in plan.work:
            row = cast(CountedRow, request.row)
            row.length, row.pending = row.length + count, row.pending - count
            if row.pending:
                continue
            marks[whose[request]][request].append(now)
            request.output_ids.append(0)
            row.pending = 1
            if len(request.output_ids) == ANSWER:
                scheduler.finish(request)
                keys[whose[request]].ended(now)
    return now, [[*each.values()] for each in marks]


def _varied(seed: int) -> Iterator[int]:
    """From 16 to 2,000 tokens, short ones as often as long ones by the logarithm."""
    chance = random.Random(seed)
    while True:
        yield int(16 * (2000 / 16) ** chance.random())


def _alike() -> Iterator[int]:
    while True:
        yield 280


def loads(costs: Costs) -> dict[str, Clients]:
    """Fresh loads by name."""
    mean = sum(length for length, _ in zip(_varied(0), range(1000), strict=False)) / 1000
    capacity = 1 / (mean * costs.token + ANSWER * costs.of(ROWS, 0) / ROWS)
    chance, at = random.Random(2), [0.0]
    for _ in range(COUNT - 1):
        at.append(at[-1] + chance.expovariate(0.8 * capacity))
    return {
        "16 clients, 280 tokens": Clients(_alike(), COUNT, [0.0] * 16, closed=True),
        "48 clients, 280 tokens": Clients(_alike(), COUNT, [0.0] * 48, closed=True),
        "16 clients, 16 to 2,000 tokens": Clients(_varied(0), COUNT, [0.0] * 16, closed=True),
        "Poisson, 80 % of capacity, 16 to 2,000": Clients(_varied(0), COUNT, at),
    }


def quiet_key(costs: Costs, max_gap: float, *, turns: bool) -> list[float]:
    """First tokens of a key with one client beside a key with 48 that never stop asking."""
    crowd = Clients(_varied(0), 10**6, [0.0] * 48, closed=True)
    quiet = Clients(_varied(3), 60, [5.0], closed=True)
    _, (_, marks) = simulate_keys([crowd, quiet], costs, max_gap, turns=turns)
    return [times[1] - times[0] for times in marks]


class Figures(NamedTuple):
    """Of a load: tokens a second, and seconds."""

    tokens_per_second: float
    first_p50: float
    first_p99: float
    gap_p50: float
    gap_p99: float


def figures(seconds: float, marks: Sequence[Sequence[float]]) -> Figures:
    """Those of what `simulate` found."""
    first = [times[1] - times[0] for times in marks]
    gaps = [after - before for times in marks for before, after in pairwise(times[1:])]
    latencies = [percentile(values, share) for values in (first, gaps) for share in (50, 99)]
    return Figures(ANSWER * len(marks) / seconds, *latencies)


def _row(found: Figures) -> list[str]:
    speed, *latencies = found
    return [f"{speed:.0f}", *(f"{1000 * value:,.0f}" for value in latencies)]


def main(
    step: Annotated[float, typer.Option(help="Milliseconds of a step itself; 0: measure all three costs.")] = 0.0,
    row: Annotated[float, typer.Option(help="Milliseconds of a decoding row.")] = 0.5,
    token: Annotated[float, typer.Option(help="Milliseconds of a prompt's token.")] = 0.3,
) -> None:
    """Print a table for each load."""
    costs = Costs(step / 1000, row / 1000, token / 1000) if step else Costs.measure()
    console = Console(width=120)
    told = [f"{name} {1000 * value:.3f} ms" for name, value in vars(costs).items()]
    console.print(f"What they cost: {', '.join(told)}")
    for name in loads(costs):
        table = Table("max_gap_ms", "tokens/s", "first token p50, ms", "p99", "between tokens p50", "p99", title=name)
        for gap in GAPS:
            shown = "none" if gap is None else f"{1000 * gap:.0f}"
            table.add_row(shown, *_row(figures(*simulate(loads(costs)[name], costs, gap))))
        console.print(table)
    for turns in (False, True):
        first = quiet_key(costs, 0.3, turns=turns)
        shown = ", ".join(f"p{share} {percentile(first, share):.2f} s" for share in (50, 99))
        console.print(
            f"First token of a key with 1 client beside one with 48, {'in' if turns else 'no'} turns: {shown}"
        )


if __name__ == "__main__":
    typer.run(main)
