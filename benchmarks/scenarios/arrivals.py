"""Requests that arrive at random, at shares of what our server can take: how many are answered as a reader likes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import AutoTokenizer

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, Checkpoint
from benchmarks.estimate import Estimate, percentile
from benchmarks.load import PROMPT_SECONDS, STALL_SECONDS, Load, open_load
from benchmarks.report import Goal, Report, ms
from benchmarks.servers import OURS, PEER, VLLM, Endpoint, autosteer, missing_for_peer, transformers_serve
from benchmarks.workloads import LONGEST, SHORTEST, Body, fresh

SHARES = (0.5, 0.8, 0.95)
GOAL_AT = 0.8
AT_LEAST = {VLLM: 2.0, PEER: 10.0}  # of our goodput to theirs
CLIENTS = 16

COLUMNS = (
    "of the capacity",
    "server",
    "goodput, requests/s",
    "arrived",
    "answered",
    "first token p50",
    "p99",
    "between tokens p50",
    "p99",
    "tokens/s",
)

Found = dict[tuple[float, str], list[Load]]  # by share and server


@dataclass(frozen=True)
class _Arrivals:
    """The same requests at the same times for every server, others in each round."""

    bench: Bench
    tokenizer: Any
    capacity: float = 0.0  # requests a second

    def bodies(self, count: int, *of: object) -> list[Body]:
        """So many that nobody has sent before."""
        seed = self.bench.seed("open-loop", *of)
        return fresh(
            count, lambda text: len(self.tokenizer.encode(text)), max_tokens=self.bench.effort.answer, seed=seed
        )

    def warm(self, server: Endpoint) -> None:
        """Have it compute once what it will have to."""
        server.load(self.bodies(4, "warm", server.name), clients=4, count=4)

    def load(self, server: Endpoint, share: float, number: int) -> Load:
        """One load at a share of the capacity."""
        rate = share * self.capacity
        count = max(1, round(rate * self.bench.effort.seconds))
        asked, seed = self.bodies(count, share, number), self.bench.seed("arrivals", share, number)
        return open_load(server.url, server.requests(asked), rate=rate, count=count, seed=seed)


def run(bench: Bench) -> Report:
    """Every server is sent the same; the capacity is our server's in a closed load of 16 clients."""
    report = Report(
        "open-loop",
        f"Poisson arrivals; by turns texts of {SHORTEST} to {LONGEST:,} tokens and questions with a picture each, none "
        f"sent before; {bench.effort.answer} tokens each, small model",
        COLUMNS,
    )
    model = bench.checkpoint(SMALL)
    arrivals = _Arrivals(bench, AutoTokenizer.from_pretrained(model.model))
    found: Found = {}
    with autosteer(model) as ours:
        servers = [ours, *bench.beside(model)]
        for server in servers:
            arrivals.warm(server)
        asked = arrivals.bodies(20 * CLIENTS, "capacity")
        closed = ours.load(asked, clients=CLIENTS, count=len(asked), seconds=bench.effort.seconds)
        arrivals = replace(arrivals, capacity=len(closed.answers) / closed.seconds)
        turns = [(share, number) for number in range(bench.effort.rounds) for share in SHARES]
        for share, number in bench.each(turns, "open-loop"):
            for server in servers if number % 2 else servers[::-1]:
                found.setdefault((share, server.name), []).append(arrivals.load(server, share, number))
    report.notes += _goodput_note(arrivals.capacity), *_peer(arrivals, model, found)
    report.rows = [_row(share, server, found[share, server]) for share, server in sorted(found)]
    others = [server for share, server in found if share == GOAL_AT and server != OURS]
    report.goals = [_goal(other, found[GOAL_AT, OURS], found[GOAL_AT, other]) for other in others]
    report.notes += _losses(found)
    report.notes.append(bench.generator([closed, *(load for some in found.values() for load in some)]))
    report.data["goodput"] = [_point(share, server, some) for (share, server), some in found.items()]
    return report


def _peer(arrivals: _Arrivals, model: Checkpoint, found: Found) -> list[str]:
    """The same for `transformers serve`, at one share and by itself; why it is left out.

    It goes on computing for clients that have left, so it is started anew for each load, and nothing runs beside it.
    """
    if missing := missing_for_peer():
        return [f"{PEER} is left out: it needs {', '.join(missing)}."]
    for number in arrivals.bench.each(range(arrivals.bench.effort.rounds), f"open-loop, {PEER}"):
        with transformers_serve(model) as server:
            arrivals.warm(server)
            found.setdefault((GOAL_AT, PEER), []).append(arrivals.load(server, GOAL_AT, number))
    return []


def _row(share: float, server: str, loads: Sequence[Load]) -> tuple[str, ...]:
    def latencies(values: list[float]) -> list[str]:
        return [ms(percentile(values, part)) if values else "-" for part in (50, 99)]

    answered = sum(len(load.answers) for load in loads)
    arrived = answered + sum(len(load.lost) for load in loads)
    return (
        f"{share:.0%}",
        server,
        Estimate.of([load.goodput for load in loads]).show(),
        f"{arrived / sum(load.asking for load in loads):.2f} /s",
        f"{answered} of {arrived}",
        *latencies([value for load in loads for value in load.first_token]),
        *latencies([value for load in loads for value in load.between_tokens]),
        f"{sum(load.tokens for load in loads) / sum(load.seconds for load in loads):.0f}",
    )


def _goal(other: str, ours: Sequence[Load], theirs: Sequence[Load]) -> Goal:
    """Who answered nothing well is counted as if one answer of each load had been good."""
    least = [max(load.goodput, 1 / load.asking) for load in theirs]
    return Goal(
        f"goodput at {GOAL_AT:.0%} of the capacity, {OURS} / {other}",
        Estimate.of_ratios([load.goodput for load in ours], least),
        at_least=AT_LEAST.get(other),
    )


def _goodput_note(capacity: float) -> str:
    within = f"within {PROMPT_SECONDS:g} s and whose gaps between tokens stayed under {STALL_SECONDS * 1e3:g} ms"
    return (
        f"Goodput: requests a second whose first token came {within}. "
        f"The capacity: {capacity:.2f} requests/s, {OURS}'s own in a closed load of {CLIENTS} clients."
    )


def _losses(found: Found) -> list[str]:
    return [
        f"{share:.0%}, {server}: {count} lost: {why}."
        for (share, server), loads in found.items()
        for why, count in Counter(why for load in loads for why in load.lost).items()
    ]


def _point(share: float, server: str, loads: Sequence[Load]) -> dict[str, Any]:
    firsts = [value for load in loads for value in load.first_token]
    return {
        "share": share,
        "server": server,
        "arrived": Estimate.of([(len(load.answers) + len(load.lost)) / load.asking for load in loads]).value,
        "good": [load.goodput for load in loads],
        "first_token_p50": percentile(firsts, 50) if firsts else None,
    }
