"""Prompts that nobody sent before, beside running answers: where prompts are most of the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL
from benchmarks.estimate import Estimate, percentile
from benchmarks.load import Load
from benchmarks.report import Goal, Report, ms
from benchmarks.servers import OURS, VLLM, Endpoint, autosteer
from benchmarks.workloads import Body, about_images, chat, words

DOUBLED = f"{OURS}, a step at most doubled"
WORDS = 300

Make = Callable[[int, int, int], list[Body]]  # count, tokens of an answer, seed
Figures = dict[str, Callable[[Load], float]]

FIGURES: Figures = {
    "tokens/s": lambda load: load.tokens_per_second,
    "first token p50": lambda load: load.first_token_p50,
    "between tokens p99": lambda load: percentile(load.between_tokens, 99),
}


class Bound(NamedTuple):
    """What a ratio to vLLM's figure must be."""

    at_least: float | None = None
    at_most: float | None = None


@dataclass(frozen=True)
class Case:
    """So many clients, each of whose requests is made like this; goals against vLLM by figure."""

    what: str
    clients: int
    make: Make
    goals: dict[str, Bound] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.clients} client{'s' if self.clients > 1 else ''}, {self.what}"

    def bodies(self, bench: Bench, number: int) -> list[Body]:
        """A round's, or as many as there are clients for the warm-up, -1."""
        count = self.clients if number < 0 else max(8, 4 * self.clients)
        return self.make(count, bench.effort.answer, bench.seed(str(self), number))


def _pictures(count: int, answer: int, seed: int) -> list[Body]:
    return about_images(count, max_tokens=answer, distinct=count, seed=seed, pictures=seed)


def _known(count: int, answer: int, seed: int) -> list[Body]:
    return about_images(count, max_tokens=answer, distinct=8, seed=seed)


def _texts(count: int, answer: int, seed: int) -> list[Body]:
    chance = Random(seed)
    return [chat(words(chance, WORDS), max_tokens=answer) for _ in range(count)]


def _goals(speed: float, first: float | None = None, between: float | None = None) -> dict[str, Bound]:
    bounds = (Bound(at_least=speed), Bound(at_most=first), Bound(at_most=between))
    return dict(zip(FIGURES, bounds, strict=True))


def pictures(bench: Bench) -> Report:
    """16 clients, each request with words and a picture of its own."""
    return _compare(bench, "fresh-pictures", [Case("a picture each", 16, _pictures, _goals(1.4, 1 / 5, 1 / 4))])


def more_pictures(bench: Bench) -> Report:
    """48 clients."""
    return _compare(bench, "fresh-pictures-48", [Case("a picture each", 48, _pictures, _goals(1.3, 0.6))])


def texts(bench: Bench) -> Report:
    """16 clients, no pictures, long texts."""
    return _compare(bench, "fresh-words", [Case(f"{WORDS} words", 16, _texts, _goals(1.8, 1 / 6))])


def one(bench: Bench) -> Report:
    """One client, who waits for nobody."""
    goals = _goals(1.1, 0.8)
    cases = [Case("a picture each", 1, _pictures, goals), Case(f"{WORDS} words", 1, _texts, goals)]
    return _compare(bench, "fresh-one", cases)


def known_pictures(bench: Bench) -> Report:
    """Pictures that were asked about before, and new words."""
    cases = [Case("8 pictures between them", clients, _known, _goals(1.35)) for clients in (16, 48)]
    return _compare(bench, "known-pictures", cases)


def _compare(bench: Bench, name: str, cases: Sequence[Case]) -> Report:
    """Ours with its defaults against other servers, or with a `max_gap_ms` by which prompts may only double a step."""
    report = Report(
        name,
        f"{bench.effort.answer} tokens each, small model",
        ("load", "server", "tokens/s", "first token p50", "p99", "between tokens p50", "p99", "goodput, requests/s"),
    )
    model = bench.checkpoint(SMALL)
    loads: list[Load] = []
    with ExitStack() as stack:
        servers = [stack.enter_context(autosteer(model))]
        beside = bench.beside(model)
        servers += beside or [stack.enter_context(autosteer(model, "--max-gap-ms", "1", name=DOUBLED))]
        for case in cases:
            found = _rounds(bench, f"{name}, {case}", case, servers)
            report.rows += [_row(case, server, some) for server, some in found.items()]
            for other in found.keys() - {OURS}:
                report.goals += _ratios(case, other, found[OURS], found[other])
            loads += [load for some in found.values() for load in some]
    report.notes.append(bench.generator(loads))
    return report


def _rounds(bench: Bench, what: str, case: Case, servers: Sequence[Endpoint]) -> dict[str, list[Load]]:
    """Every server in every round, each round the other way about; a load takes no more than so many seconds."""
    loads: dict[str, list[Load]] = {server.name: [] for server in servers}
    for number in bench.each(range(-1, bench.effort.rounds), what):  # the first is the warm-up
        bodies = case.bodies(bench, number)
        for server in servers if number % 2 else servers[::-1]:
            load = server.load(bodies, clients=case.clients, count=len(bodies), seconds=bench.effort.seconds)
            if number >= 0:
                loads[server.name].append(load)
    return loads


def _row(case: Case, server: str, loads: Sequence[Load]) -> tuple[str, ...]:
    first = [percentile([value for load in loads for value in load.first_token], share) for share in (50, 99)]
    between = [percentile([value for load in loads for value in load.between_tokens], share) for share in (50, 99)]
    speed = Estimate.of([load.tokens_per_second for load in loads]).value
    good = Estimate.of([load.goodput for load in loads]).value
    return str(case), server, f"{speed:.0f}", *map(ms, [*first, *between]), f"{good:.2f}"


def _ratios(case: Case, other: str, ours: Sequence[Load], theirs: Sequence[Load]) -> list[Goal]:
    bounds = case.goals if other == VLLM else {}
    return [
        Goal(
            f"{case}: {what}, {OURS} / {other}",
            Estimate.of_ratios([*map(figure, ours)], [*map(figure, theirs)]),
            *bounds.get(what, Bound()),
        )
        for what, figure in FIGURES.items()
    ]
