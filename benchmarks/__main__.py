"""`make bench`: start-up, and what the guard costs, on the bundled demo model.

Every mode runs interleaved, several rounds, and only ratios against `off` of the same round are worth keeping.
"""

import json
import platform
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.load import Load, run_load
from models.demo.dialogue import utility
from tests.end_to_end.processes import ServerProcess, user

MODES = ("off", "monitor", "steer")
MAX_TOKENS = 24


@dataclass(frozen=True)
class Figure:
    """One row of the table: medians over the rounds."""

    mode: str
    clients: int
    tokens_per_second: float
    throughput_against_off: float
    first_token_against_off: float
    between_tokens_against_off: float


def bodies(server: ServerProcess, count: int) -> list[dict[str, Any]]:
    """Harmless image questions that always run to MAX_TOKENS, so that every mode does the same work."""
    from transformers import AutoTokenizer

    from models.demo import CHECKPOINT

    eos = AutoTokenizer.from_pretrained(CHECKPOINT).eos_token_id
    return [
        {
            "model": server.model,
            "messages": [user(example.question, *([example.image] if example.image else []))],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "logit_bias": {str(eos): -100},
        }
        for example in utility(count, seed=77, split="test")
    ]


def measure(clients: int, requests: int, rounds: int, progress: Progress) -> list[Figure]:
    """All modes side by side, one server each, loaded in turn."""
    loads: dict[str, list[Load]] = {mode: [] for mode in MODES}
    task = progress.add_task(f"{clients} clients", total=rounds * len(MODES))
    with ExitStack() as stack:
        servers = {mode: stack.enter_context(ServerProcess(["--mode", mode])) for mode in MODES}
        work = bodies(servers["off"], 32)
        for _ in range(rounds):
            for mode, server in servers.items():
                loads[mode].append(run_load(server.url, work, clients=clients, requests=requests))
                progress.advance(task)
    return [figure(mode, clients, loads[mode], loads["off"]) for mode in MODES]


def figure(mode: str, clients: int, loads: list[Load], off: list[Load]) -> Figure:
    """Medians of the per-round ratios."""
    pairs = list(zip(loads, off, strict=True))
    return Figure(
        mode=mode,
        clients=clients,
        tokens_per_second=median(load.tokens_per_second for load in loads),
        throughput_against_off=median(a.tokens_per_second / b.tokens_per_second for a, b in pairs),
        first_token_against_off=median(a.first_token_p50 / b.first_token_p50 for a, b in pairs),
        between_tokens_against_off=median(a.between_tokens_p50 / b.between_tokens_p50 for a, b in pairs),
    )


def main(
    clients: Annotated[list[int], typer.Option(help="Clients at once; may be repeated.")] = [1, 16],  # noqa: B006
    requests: Annotated[int, typer.Option(help="Requests per round and mode.")] = 64,
    rounds: Annotated[int, typer.Option(help="Rounds; the medians are printed.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Also write the figures as JSON to this file.")] = None,
) -> None:
    """Time the bundled model with the guard off, watching and steering (no request is flagged)."""
    console = Console()
    with ServerProcess() as server:
        console.print(f"ready after {server.ready_seconds:.1f} s, RSS {server.rss_bytes / 1e9:.2f} GB")
    with Progress(console=console) as progress:
        figures = [row for count in clients for row in measure(count, requests, rounds, progress)]
    table = Table("clients", "mode", "tok/s", "throughput / off", "first token / off", "between tokens / off")
    for row in figures:
        table.add_row(
            str(row.clients),
            row.mode,
            f"{row.tokens_per_second:.0f}",
            f"{row.throughput_against_off:.3f}",
            f"{row.first_token_against_off:.3f}",
            f"{row.between_tokens_against_off:.3f}",
        )
    console.print(table)
    console.print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}"
    )
    if out is not None:
        out.write_text(json.dumps([row.__dict__ for row in figures], indent=2))


if __name__ == "__main__":
    typer.run(main)
