"""What the guard costs on vLLM: `autosteer serve --engine vllm`, guarded and not, against plain `vllm serve`.

All servers are up at once and take turns, each round the other way about; only ratios within a round are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL
from benchmarks.estimate import Estimate
from benchmarks.load import Load
from benchmarks.report import Goal, Report, ms
from benchmarks.servers import VLLM, Endpoint, autosteer
from benchmarks.workloads import about_images

CLIENTS = (1, 16)
ON, OFF = "steer, none flagged", "off"
SERVED = ["--engine", "vllm", "--max-rows", "64", "--prefill-tokens", "2048", "--cache-gib", "2"]
MODES = {ON: ["--mode", "steer", "--threshold", "1"], OFF: ["--mode", "off"]}


def run(bench: Bench) -> Report:
    """One client and 16 with images, none of which is flagged."""
    report = Report(
        "guard-vllm",
        f"image requests, {bench.effort.answer} tokens each, small model",
        ("clients", "server", "tokens/s", "first token p50", "between tokens p50"),
    )
    model = bench.checkpoint(SMALL)
    plain = [server for server in bench.beside(model) if server.name == VLLM]
    if not plain:
        report.notes.append("Left out: it needs `--vllm COMMAND`, and to be run in the environment of that command.")
        return report
    with ExitStack() as stack:
        ours = [
            stack.enter_context(autosteer(model, *SERVED, *options, name=name, guard=name == ON))
            for name, options in MODES.items()
        ]
        for clients in CLIENTS:
            loads = _rounds(bench, [*ours, *plain], clients)
            report.rows += [_row(clients, name, found) for name, found in loads.items()]
            report.goals += _goals(clients, loads)
            report.notes.append(bench.generator(load for found in loads.values() for load in found))
    return report


def _rounds(bench: Bench, servers: Sequence[Endpoint], clients: int) -> dict[str, list[Load]]:
    count = max(8, 2 * clients)

    def load(server: Endpoint, number: int) -> Load:
        bodies = about_images(
            count, max_tokens=bench.effort.answer, seed=bench.seed("guard-vllm", clients, number), distinct=8
        )
        return server.load(bodies, clients=clients, count=count)

    return bench.by_turns(f"guard-vllm, {clients} clients", servers, load)


def _row(clients: int, server: str, loads: Sequence[Load]) -> tuple[str, ...]:
    speed, first, between = map(Estimate.of, _measured(loads))
    return str(clients), server, speed.show(0), ms(first.value), ms(between.value)


def _goals(clients: int, loads: dict[str, list[Load]]) -> list[Goal]:
    goals = []
    for base in (VLLM, OFF):
        speed, first, between = (
            Estimate.of_ratios(above, below)
            for above, below in zip(_measured(loads[ON]), _measured(loads[base]), strict=True)
        )
        told = f"{clients} clients, {ON} / {base}"
        goals += [
            Goal(f"{told}: tokens/s", speed, at_least=0.98),
            Goal(f"{told}: first token p50", first, at_most=1.02),
            Goal(f"{told}: between tokens p50", between, at_most=1.01),
        ]
    return goals


def _measured(loads: Sequence[Load]) -> tuple[list[float], ...]:
    """Tokens per second, first tokens and gaps between tokens, of each load."""
    return (
        [load.tokens_per_second for load in loads],
        [load.first_token_p50 for load in loads],
        [load.between_tokens_p50 for load in loads],
    )
