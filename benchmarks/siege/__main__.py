"""`python -m benchmarks.siege`: some clients chat, first alone, then beside attackers; what the chatting ones feel."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.estimate import percentile
from benchmarks.siege import heart
from benchmarks.siege.attacks import ATTACKS, poisoned
from benchmarks.siege.observer import percentile_of_moments
from benchmarks.siege.phases import Chats, Site, phase
from tests.end_to_end.processes import ServerProcess

SETTLE_SECONDS = 20.0  # within which memory that is given back has come back
MORE_MEMORY = 1.05
LONGER_GAPS = 3.0
FREEZE_SECONDS = 0.050


def settled(server: ServerProcess, goal: float) -> int:
    """Resident bytes, once they are no more than `goal` or after so long."""
    until = time.monotonic() + SETTLE_SECONDS
    while server.rss_bytes > goal and time.monotonic() < until:
        time.sleep(0.5)
    return server.rss_bytes


def figures(alone: Chats, besieged: Chats, before: int, after: int) -> tuple[Table, list[str]]:
    """What the chatting ones felt in both phases, and which goals are missed."""
    table = Table("", "alone", "besieged", "ratio", title="those who chat")
    missed: list[str] = []

    def row(name: str, first: float, second: float, unit: str, *, most: float | None = None) -> None:
        ratio = second / first if first else float("nan")
        table.add_row(name, f"{first:.1f} {unit}", f"{second:.1f} {unit}", f"{ratio:.2f}")
        if most is not None and ratio > most:
            missed.append(f"{name}: {ratio:.2f} times of before, the goal is {most:g}")

    row("answers", len(alone.answers), len(besieged.answers), "")
    row("lost", len(alone.lost), len(besieged.lost), "")
    for share in (50.0, 99.0):
        gaps = [percentile(each.gaps, share) * 1e3 for each in (alone, besieged)]
        row(f"between tokens, p{share:g}", gaps[0], gaps[1], "ms", most=LONGER_GAPS if share == 99 else None)
        firsts = [percentile([a.first_token for a in each.answers], share) * 1e3 for each in (alone, besieged)]
        row(f"first token, p{share:g}", firsts[0], firsts[1], "ms")
    both = (alone, besieged)
    for share in (99.0, 99.9, 100.0):
        late = [percentile_of_moments(each.stops.late, share) * 1e3 for each in both]
        row(f"the event loop is late, p{share:g}", late[0], late[1], "ms")
        own = [percentile_of_moments(each.stops.own, share) * 1e3 for each in both]
        row(f"of it the server stands still, p{share:g}", own[0], own[1], "ms")
    for share in (50.0, 99.0, 99.9):
        waits = [percentile(each.lateness.waits, share) * 1e3 for each in both]
        row(f"/health, p{share:g}", waits[0], waits[1], "ms")
        own = [each.lateness.own_percentile(share) * 1e3 for each in both]
        row(f"what all threads computed meanwhile, p{share:g}", own[0], own[1], "ms")
    row("memory of all processes", before / 2**20, after / 2**20, "MiB", most=MORE_MEMORY)
    freeze = percentile_of_moments(besieged.stops.own, 99.9)
    if freeze > FREEZE_SECONDS:
        missed.append(f"the event loop stood still for {freeze * 1e3:.0f} ms (p99.9), the goal is 50")
    missed += [f"lost: {each}" for each in besieged.lost[:5]]
    if besieged.lateness.broken:
        missed.append(f"{besieged.lateness.broken} connections that ask for /health were closed")
    return table, missed


def wrong(outcomes: Mapping[tuple[str, str], int]) -> list[str]:
    """Attacks that ended in another way than they may."""
    expected = {each.name: each.expected for each in ATTACKS}
    return [
        f"{name}: {outcome}, {count} times"
        for (name, outcome), count in outcomes.items()
        if not set(outcome.split(" ") if outcome != "not connected" else [outcome]) <= expected[name]
    ]


def main(
    seconds: Annotated[float, typer.Option(help="Of each of the two phases.")] = 60.0,
    clients: Annotated[int, typer.Option(help="Clients that chat.")] = 4,
    attackers: Annotated[int, typer.Option(help="Attackers, each with one attack at a time.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the attacks.")] = 0,
) -> None:
    """Besiege a server of the bundled model; exit with 1 if a goal is missed."""
    console = Console(width=120)
    with TemporaryDirectory() as name:
        folder = Path(name)
        site = Site(folder)
        with (
            poisoned(folder) as proof,
            ServerProcess(
                ["--config", str(site.config)],
                key=site.keys["chat"],
                folder=folder,
                program=heart.program(site.beats),
            ) as server,
        ):
            phase(server, site, clients=clients, seconds=min(seconds, 10), attackers=0, seed=seed)  # warm
            alone = phase(server, site, clients=clients, seconds=seconds, attackers=0, seed=seed)
            before = server.rss_bytes
            besieged = phase(server, site, clients=clients, seconds=seconds, attackers=attackers, seed=seed)
            after = settled(server, before * MORE_MEMORY)
            table, missed = figures(alone, besieged, before, after)
            log = server.log
            began = time.monotonic()
            server.process.terminate()
            server.process.wait(60)
            ended = time.monotonic()
        if proof.exists():
            missed.append("a module of the folder that the server was started in was run")
        if "Traceback" in log:
            missed.append("the log holds a traceback:\n" + log[log.index("Traceback") :][:2000])
    tries = Table("attack", "outcome", "tries")
    for (attack_name, outcome), count in sorted(besieged.attacks.items()):
        tries.add_row(attack_name, outcome, str(count))
    console.print(tries, table, f"SIGTERM ended it in {ended - began:.1f} s; its log has {len(log)} characters")
    missed += wrong(besieged.attacks)
    console.print("\n".join(missed) or "every goal is met")
    raise typer.Exit(bool(missed))


if __name__ == "__main__":
    typer.run(main)
