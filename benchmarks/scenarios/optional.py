"""Comparisons of what a server can be told to do; where it cannot, one line says so."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, TINY, Shape
from benchmarks.estimate import Estimate
from benchmarks.load import Load
from benchmarks.report import Goal, Report, ms
from benchmarks.servers import autosteer
from benchmarks.workloads import about_images
from server.config import Settings

CLIENTS = 16


def process(bench: Bench) -> Report:
    """The engine in a thread of the server, and in a process of its own."""
    title = "the engine in a thread, and in a process of its own, tiny model"
    return _compare(bench, "process", title, TINY, "engine_process", ["--no-engine-process"], ["--engine-process"])


def quantize(bench: Bench) -> Report:
    """Weights as they are, and in int8."""
    title = "weights as they are, and in int8, small model"
    return _compare(bench, "quantize", title, SMALL, "quantize", [], ["--quantize", "int8"])


def _compare(
    bench: Bench, name: str, title: str, shape: Shape, setting: str, without: list[str], with_it: list[str]
) -> Report:
    report = Report(name, title, ("server", "tokens/s", "first token p50", "between tokens p50"))
    if setting not in Settings.model_fields:
        report.notes.append(f"Left out: the server has no setting `{setting}`.")
        return report
    loads: dict[str, list[Load]] = {}
    with ExitStack() as stack:
        checkpoint = bench.checkpoint(shape)
        both = {" ".join(options) or "as it is": options for options in (without, with_it)}
        servers = {
            label: stack.enter_context(autosteer(checkpoint, *options, name=label)) for label, options in both.items()
        }
        for number in bench.each(range(-1, 2 * bench.effort.rounds), name):
            bodies = about_images(2 * CLIENTS, max_tokens=bench.effort.answer, seed=number)
            for label, server in servers.items():
                load = server.load(bodies, clients=CLIENTS, count=len(bodies))
                if number >= 0:  # the first is the warm-up
                    loads.setdefault(label, []).append(load)
    for label, found in loads.items():
        speed = Estimate.of([load.tokens_per_second for load in found])
        latencies = [
            ms(Estimate.of([getattr(load, measure) for load in found]).value)
            for measure in ("first_token_p50", "between_tokens_p50")
        ]
        report.rows.append((label, speed.show(0), *latencies))
    base, other = loads.values()
    ratio = Estimate.of_ratios([load.tokens_per_second for load in other], [load.tokens_per_second for load in base])
    report.goals.append(Goal(f"tokens/s, {' '.join(with_it)} / without", ratio))
    report.notes.append(bench.generator(load for found in loads.values() for load in found))
    return report
