"""A server with weights in 8 bits against one with weights as they are."""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL
from benchmarks.estimate import Estimate
from benchmarks.load import Load
from benchmarks.report import Goal, Report, ms
from benchmarks.servers import autosteer
from benchmarks.workloads import about_images

CLIENTS = 16
INT8 = "--quantize int8"


def quantize(bench: Bench) -> Report:
    """Weights as they are, and in int8."""
    title = "weights as they are, and in int8, small model"
    report = Report("quantize", title, ("server", "tokens/s", "first token p50", "between tokens p50"))
    loads: dict[str, list[Load]] = {}
    with ExitStack() as stack:
        checkpoint = bench.checkpoint(SMALL)
        both = {"as it is": [], INT8: INT8.split()}
        servers = {
            label: stack.enter_context(autosteer(checkpoint, *options, name=label)) for label, options in both.items()
        }
        for number in bench.each(range(-1, 2 * bench.effort.rounds), "quantize"):
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
    report.goals.append(Goal(f"tokens/s, {INT8} / without", ratio))
    report.notes.append(bench.generator(load for found in loads.values() for load in found))
    return report
