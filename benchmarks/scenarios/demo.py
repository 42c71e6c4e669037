"""The bundled model: how soon its server is ready, what it takes of memory, and what its guard costs."""

from __future__ import annotations

from contextlib import ExitStack

from transformers import AutoTokenizer

from benchmarks.bench import Bench
from benchmarks.estimate import Estimate
from benchmarks.load import Load
from benchmarks.report import Report
from benchmarks.servers import Endpoint
from benchmarks.workloads import Body
from models.demo import CHECKPOINT
from models.demo.dialogue import utility
from tests.end_to_end.processes import ServerProcess, user

MODES = ("off", "monitor", "steer")
MAX_TOKENS = 24
REQUESTS = 64


def run(bench: Bench) -> Report:
    """Harmless questions about pictures under every mode; ratios to `off` of the same round."""
    report = Report(
        "demo",
        f"the bundled model, {MAX_TOKENS} tokens each",
        ("clients", "mode", "tokens/s", "tokens/s / off", "first token / off", "between tokens / off"),
    )
    with ServerProcess() as server:
        report.notes.append(f"Ready after {server.ready_seconds:.1f} s, RSS {server.rss_bytes / 1e9:.2f} GB.")
    work = bodies(32)
    with ExitStack() as stack:
        servers = {mode: _start(stack, mode) for mode in MODES}
        for clients in bench.effort.clients:
            loads = _rounds(bench, servers, work, clients)
            report.rows += [_row(clients, mode, loads[mode], loads["off"]) for mode in MODES]
            report.data[f"{clients} clients"] = {
                mode: [load.tokens_per_second for load in found] for mode, found in loads.items()
            }
    return report


def _start(stack: ExitStack, mode: str) -> Endpoint:
    # Answers go on past their end, where the guard would end some.
    server = stack.enter_context(ServerProcess(["--mode", mode], {"AUTOSTEER_OUTPUT": '{"mode": "off"}'}))
    return Endpoint(mode, server.url, server.model)


def _rounds(bench: Bench, servers: dict[str, Endpoint], work: list[Body], clients: int) -> dict[str, list[Load]]:
    """One server for each mode, loaded in turn."""
    loads: dict[str, list[Load]] = {mode: [] for mode in servers}
    for server in servers.values():
        server.load(work, clients=clients, count=len(work))  # warm-up
    for _ in bench.each(range(bench.effort.rounds), f"demo, {clients} clients"):
        for mode, server in servers.items():
            loads[mode].append(server.load(work, clients=clients, count=REQUESTS))
    return loads


def bodies(count: int) -> list[Body]:
    """Harmless image questions that always run to MAX_TOKENS, so that every mode does the same work."""
    eos = AutoTokenizer.from_pretrained(CHECKPOINT).eos_token_id
    return [
        {
            "messages": [user(example.question, *([example.image] if example.image else []))],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "logit_bias": {str(eos): -100},
        }
        for example in utility(count, seed=77, split="test")
    ]


def _row(clients: int, mode: str, loads: list[Load], off: list[Load]) -> tuple[str, ...]:
    """Medians, and medians of the ratios within a round."""

    def ratio(measure: str) -> str:
        return Estimate.of_ratios([getattr(a, measure) for a in loads], [getattr(b, measure) for b in off]).show(3)

    speed = Estimate.of([load.tokens_per_second for load in loads])
    measures = ("tokens_per_second", "first_token_p50", "between_tokens_p50")
    return str(clients), mode, speed.show(0), *map(ratio, measures)
