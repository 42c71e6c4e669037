"""Prompts that nobody sent before, beside running answers: where prompts are most of the work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from random import Random

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL
from benchmarks.estimate import Estimate, percentile
from benchmarks.load import Load
from benchmarks.report import Report, ms
from benchmarks.servers import OURS, autosteer
from benchmarks.workloads import Body, about_images, chat, words

DOUBLED = f"{OURS}, a step at most doubled"
WORDS = 300

Make = Callable[[int, int, int], list[Body]]  # count, tokens of an answer, seed


def _pictures(count: int, answer: int, seed: int) -> list[Body]:
    return about_images(count, max_tokens=answer, distinct=count, seed=seed, pictures=seed)


def _texts(count: int, answer: int, seed: int) -> list[Body]:
    chance = Random(seed)
    return [chat(words(chance, WORDS), max_tokens=answer) for _ in range(count)]


LOADS: dict[str, tuple[int, Make]] = {
    "16 clients, fresh pictures": (16, _pictures),
    f"16 clients, {WORDS} fresh words": (16, _texts),
    "48 clients, fresh pictures": (48, _pictures),
}


def run(bench: Bench) -> Report:
    """Ours with its default `max_gap_ms`, and with one so short that prompts may at most double a step."""
    report = Report(
        "fresh-prompts",
        f"closed loads of prompts that were never sent before, {bench.effort.answer} tokens each, small model",
        ("load", "server", "tokens/s", "first token p50", "p99", "between tokens p50", "p99"),
    )
    model = bench.checkpoint(SMALL)
    found: dict[str, dict[str, list[Load]]] = {name: {} for name in LOADS}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(autosteer(model)),
            stack.enter_context(autosteer(model, "--max-gap-ms", "1", name=DOUBLED)),
            *bench.others,
        ]
        for number, (name, (clients, make)) in enumerate(LOADS.items()):
            for each in bench.each(range(-1, bench.effort.rounds), name):  # the first is the warm-up
                bodies = make(2 * clients, bench.effort.answer, 1000 + 100 * number + each)
                for server in servers if each % 2 else servers[::-1]:
                    load = server.load(bodies, clients=clients, count=len(bodies))
                    if each >= 0:
                        found[name].setdefault(server.name, []).append(load)
    for name, loads in found.items():
        report.rows += [_row(name, server, some) for server, some in loads.items()]
        report.notes += [_ratios(name, server, loads[OURS], some) for server, some in loads.items() if server != OURS]
    report.notes.append(bench.generator(load for loads in found.values() for some in loads.values() for load in some))
    return report


def _gap(load: Load) -> float:
    return percentile(load.between_tokens, 99)


def _row(name: str, server: str, loads: list[Load]) -> tuple[str, ...]:
    first = [percentile([value for load in loads for value in load.first_token], share) for share in (50, 99)]
    between = [percentile([value for load in loads for value in load.between_tokens], share) for share in (50, 99)]
    speed = Estimate.of([load.tokens_per_second for load in loads]).value
    return name, server, f"{speed:.0f}", *map(ms, [*first, *between])


def _ratios(name: str, other: str, ours: list[Load], theirs: list[Load]) -> str:
    figures: dict[str, Callable[[Load], float]] = {
        "tokens/s": lambda load: load.tokens_per_second,
        "first token p50": lambda load: load.first_token_p50,
        "between tokens p99": _gap,
    }
    told = [
        f"{what} {Estimate.of_ratios([*map(figure, ours)], [*map(figure, theirs)]).show()}"
        for what, figure in figures.items()
    ]
    return f"{name}, {OURS} / {other}: {', '.join(told)}."
