"""Prompts that nobody sent before, beside running answers: where prompts are most of the work."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from random import Random

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL
from benchmarks.estimate import Estimate, percentile
from benchmarks.load import Load
from benchmarks.report import Goal, Report, ms
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


def pictures(bench: Bench) -> Report:
    """As many clients as rows, each request with words and a picture of its own."""
    return _compare(bench, "fresh-pictures", 16, _pictures)


def more_pictures(bench: Bench) -> Report:
    """Three times as many clients as rows."""
    return _compare(bench, "fresh-pictures-48", 48, _pictures)


def texts(bench: Bench) -> Report:
    """As many clients as rows, no pictures, long texts."""
    return _compare(bench, "fresh-words", 16, _texts)


def _compare(bench: Bench, name: str, clients: int, make: Make) -> Report:
    """Ours with its default `max_gap_ms`, and with one so short that prompts may at most double a step."""
    report = Report(
        name,
        f"{clients} clients, prompts that were never sent before, {bench.effort.answer} tokens each, small model",
        ("server", "tokens/s", "first token p50", "p99", "between tokens p50", "p99"),
    )
    model = bench.checkpoint(SMALL)
    loads: dict[str, list[Load]] = {}
    with ExitStack() as stack:
        servers = [
            stack.enter_context(autosteer(model)),
            stack.enter_context(autosteer(model, "--max-gap-ms", "1", name=DOUBLED)),
            *bench.others,
        ]
        for each in bench.each(range(-1, bench.effort.rounds), name):  # the first is the warm-up
            bodies = make(2 * clients, bench.effort.answer, 1000 + each)
            for server in servers if each % 2 else servers[::-1]:
                load = server.load(bodies, clients=clients, count=len(bodies))
                if each >= 0:
                    loads.setdefault(server.name, []).append(load)
    report.rows = [_row(name, some) for name, some in loads.items()]
    for other in sorted(loads.keys() - {OURS}):
        report.goals += _ratios(other, loads[OURS], loads[other])
    report.notes.append(bench.generator(load for some in loads.values() for load in some))
    return report


def _gap(load: Load) -> float:
    return percentile(load.between_tokens, 99)


def _row(server: str, loads: list[Load]) -> tuple[str, ...]:
    first = [percentile([value for load in loads for value in load.first_token], share) for share in (50, 99)]
    between = [percentile([value for load in loads for value in load.between_tokens], share) for share in (50, 99)]
    speed = Estimate.of([load.tokens_per_second for load in loads]).value
    return server, f"{speed:.0f}", *map(ms, [*first, *between])


def _ratios(other: str, ours: list[Load], theirs: list[Load]) -> list[Goal]:
    figures: dict[str, Callable[[Load], float]] = {
        "tokens/s": lambda load: load.tokens_per_second,
        "first token p50": lambda load: load.first_token_p50,
        "between tokens p99": _gap,
    }
    return [
        Goal(f"{what}, {OURS} / {other}", Estimate.of_ratios([*map(figure, ours)], [*map(figure, theirs)]))
        for what, figure in figures.items()
    ]
