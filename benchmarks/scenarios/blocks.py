"""After loads of every kind, and clients that leave within their answers, nothing is held in the cache."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL
from benchmarks.client import Connection
from benchmarks.estimate import Estimate
from benchmarks.load import run as run_bounded
from benchmarks.report import Goal, Report
from benchmarks.servers import Endpoint, autosteer
from benchmarks.workloads import WORKLOADS

CLIENTS = 24  # more than there are rows, so that some wait when they leave
SETTLE_SECONDS = 10.0
GAUGES = ("autosteer_kv_cache_usage_ratio", "autosteer_num_requests_running", "autosteer_num_requests_waiting")


def run(bench: Bench) -> Report:
    """Each workload to its end, and each left within."""
    report = Report("blocks", "what the server still holds after a load", ("load", "cache", "running", "waiting"))
    worst = 0.0
    with autosteer(bench.checkpoint(SMALL), "--max-rows", "16") as server:
        for name, bodies in bench.each(WORKLOADS.items(), "blocks"):
            work = bodies(4 * CLIENTS, max_tokens=bench.effort.answer)
            server.load(work, clients=CLIENTS, count=len(work))
            worst = max(worst, _row(report, name, server))
            run_bounded(_leave(server, server.requests(work)))
            worst = max(worst, _row(report, f"{name}, every client leaves", server))
    report.goals.append(Goal("the largest share of the cache still held", Estimate.of([worst]), at_most=0.0))
    return report


def _row(report: Report, name: str, server: Endpoint) -> float:
    """The gauges once all are 0, or after a while."""
    until = time.monotonic() + SETTLE_SECONDS
    while any(found := [server.metric(gauge) for gauge in GAUGES]) and time.monotonic() < until:
        time.sleep(0.1)
    report.rows.append((name, *(f"{value:g}" for value in found)))
    return found[0]


async def _leave(server: Endpoint, requests: Sequence[bytes]) -> None:
    """Send all requests at once and leave each of them sometime within two seconds."""
    chance = random.Random(0)

    async def client(request: bytes, patience: float) -> None:
        connection = await Connection.open(server.url)
        try:
            async with asyncio.timeout(patience):
                await connection.ask(request)
        except TimeoutError:
            pass
        finally:
            connection.close()

    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(client(request, 2 * chance.random()))
