"""Requests that arrive at random, at shares of what the server can take."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL
from benchmarks.estimate import percentile
from benchmarks.load import open_load
from benchmarks.report import Report, ms
from benchmarks.servers import autosteer
from benchmarks.workloads import mixed

SHARES = (0.3, 0.6, 0.9)
CLIENTS = 16


def run(bench: Bench) -> Report:
    """Texts and images by turns; the capacity is that of a closed load of 16 clients."""
    report = Report(
        "open-loop",
        f"Poisson arrivals, texts and images, {bench.effort.answer} tokens each, small model",
        ("of the capacity", "requests/s", "first token p50", "p99", "between tokens p50", "p99", "tokens/s"),
    )
    loads = []
    with autosteer(bench.checkpoint(SMALL)) as server:
        work = mixed(4 * CLIENTS, max_tokens=bench.effort.answer, seed=-1)
        closed = [server.load(work, clients=CLIENTS, count=len(work)) for _ in range(2)][-1]  # the first is the warm-up
        capacity = len(closed.answers) / closed.seconds
        for number, share in enumerate(bench.each(SHARES, "open-loop")):
            count = 40 * bench.effort.rounds
            requests = server.requests(mixed(count + count % 2, max_tokens=bench.effort.answer, seed=number))
            load = open_load(server.url, requests, rate=share * capacity, count=count, seed=number)
            loads.append(load)
            latencies = [percentile(v, p) for v in (load.first_token, load.between_tokens) for p in (50, 99)]
            shown = f"{share:.0%}", f"{share * capacity:.1f}", *map(ms, latencies), f"{load.tokens_per_second:.0f}"
            report.rows.append(shown)
    report.notes.append(f"The capacity, of {CLIENTS} clients in a closed load: {capacity:.1f} requests/s.")
    report.notes.append(bench.generator([closed, *loads]))
    return report
