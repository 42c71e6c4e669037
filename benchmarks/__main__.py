"""`make bench`: the server against its peers and itself. Every figure worth keeping is a ratio within one run."""

from __future__ import annotations

import json
import secrets
import signal
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer
from rich.console import Console
from rich.progress import Progress
from transformers.utils import logging

from benchmarks.bench import FULL, NORMAL, QUICK, Bench
from benchmarks.report import Report
from benchmarks.roofline import machine
from benchmarks.scenarios import SCENARIOS
from benchmarks.servers import external


def main(
    only: Annotated[list[str], typer.Option(help="A scenario; may be repeated.")] = [],  # noqa: B006
    url: Annotated[list[str], typer.Option(help="NAME=http://HOST:PORT: another server to compare with.")] = [],  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Rounds of each comparison; 0: as many as the run's kind has.")] = 0,
    vllm: Annotated[Path | None, typer.Option(help="A vllm command, to serve the same folder beside ours.")] = None,
    seconds: Annotated[float, typer.Option(help="Of a load of new prompts; 0: as the run's kind has.")] = 0,
    number: Annotated[int, typer.Option(help="Of an earlier run, to ask the same again.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write everything as JSON to this file.")] = None,
    *,
    listed: Annotated[bool, typer.Option("--list", help="Name the scenarios and end.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A trial run; its figures mean nothing.")] = False,
    full: Annotated[bool, typer.Option("--full", help="More rounds, and 4 and 64 clients too.")] = False,
) -> None:
    """Measure, and print Markdown."""
    if listed:
        width = max(map(len, SCENARIOS))
        print("\n".join(f"{name:{width}}  {scenario.about}" for name, scenario in SCENARIOS.items()))
        return
    if unknown := set(only) - set(SCENARIOS):
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}", param_hint="--only")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with it
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    number = number or secrets.randbits(32)
    print(f"{machine()}; {psutil.cpu_percent(1):.0f} % of it was busy before; run {number}\n", flush=True)
    effort = QUICK if quick else FULL if full else NORMAL
    effort = replace(
        effort,
        rounds=rounds or effort.rounds,
        fine_rounds=rounds or effort.fine_rounds,
        seconds=seconds or effort.seconds,
    )
    reports: list[Report] = []
    with (
        Progress(console=Console(stderr=True), transient=True, refresh_per_second=2) as progress,
        closing(Bench(effort, progress, [external(each) for each in url], number, vllm)) as bench,
    ):
        for name in only or SCENARIOS:
            reports.append(report_of(name, bench))
            print(reports[-1].markdown(), flush=True)
            if out is not None:
                found = {
                    "machine": vars(machine()),
                    "run": number,
                    "torch": torch.__version__,
                    "scenarios": [r.json() for r in reports],
                }
                out.write_text(json.dumps(found, indent=2))
    if any(report.failed for report in reports):
        sys.exit(1)


def report_of(name: str, bench: Bench) -> Report:
    """A scenario's findings, or how it failed, which is no reason to lose the others."""
    try:
        return SCENARIOS[name].run(bench)
    except Exception as error:  # noqa: BLE001  whatever a server does wrong
        told = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        return Report(name, SCENARIOS[name].about, notes=[f"FAILED\n```\n{told}\n```"], failed=True)


if __name__ == "__main__":
    typer.run(main)
