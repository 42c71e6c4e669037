"""What the guard costs: effects of about a per cent, below the noise of one load.

All servers are up at once and loaded in turn. Each load of a mode has one of a server without a guard beside it, before
or after it by chance, and only the ratios of such pairs are kept. A server's luck (where its memory lies) is no part of
the guard, so that all are started anew several times. A second server without a guard tells what the method can see:
its ratios should be 1.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL
from benchmarks.estimate import Estimate
from benchmarks.load import Load
from benchmarks.report import Goal, Report, ms
from benchmarks.servers import Endpoint, autosteer
from benchmarks.workloads import Body, about_images

CLIENTS = 16
OFF, AGAIN = "off", "off again"
MONITOR, STEER, STEERED = "monitor", "steer, none flagged", "steer, all flagged"
MODES = {
    OFF: ["--mode", "off"],
    AGAIN: ["--mode", "off"],
    MONITOR: ["--mode", "monitor", "--threshold", "1"],
    STEER: ["--mode", "steer", "--threshold", "1"],
    STEERED: ["--mode", "steer", "--threshold", "0"],
}
SPEED, BETWEEN, FIRST = "tokens/s", "between tokens p50", "first token p50"
MEASURES = (SPEED, BETWEEN, FIRST, "CPU time per token")
AT_LEAST = {SPEED: {MONITOR: 0.99, STEER: 0.99, STEERED: 0.97}}
AT_MOST = {BETWEEN: {MONITOR: 1.01, STEER: 1.01}, FIRST: {MONITOR: 1.02, STEER: 1.02}}

Measured = tuple[float, ...]  # in the order of MEASURES


@dataclass
class _Pairs:
    """What a mode's loads measured, and the load of `off` beside each."""

    own: list[Measured] = field(default_factory=list)
    off: list[Measured] = field(default_factory=list)

    def ratio(self, measure: str) -> Estimate:
        """Of the mode to `off`, within each pair."""
        place = MEASURES.index(measure)
        return Estimate.of_ratios([each[place] for each in self.own], [each[place] for each in self.off])


def run(bench: Bench) -> Report:
    """16 clients with images; every mode against off."""
    report = Report(
        "guard-small",
        f"{CLIENTS} clients with images, {bench.effort.answer} tokens each, small model",
        ("mode", *MEASURES),
    )
    pairs = {mode: _Pairs() for mode in MODES if mode != OFF}
    loads: list[Load] = []
    chance = random.Random(0)
    rounds = bench.effort.starts * bench.effort.fine_rounds
    with ExitStack() as stack:
        servers: dict[str, Endpoint] = {}
        for number in bench.each(range(rounds), "guard-small"):
            if number % bench.effort.fine_rounds == 0:
                stack.pop_all().close()
                servers = _start(bench, stack, chance)
            for mode in chance.sample(list(pairs), len(pairs)):
                bodies = about_images(2 * CLIENTS, max_tokens=bench.effort.answer, seed=len(loads))
                found = pairs[mode]
                turns = [(servers[mode], found.own), (servers[OFF], found.off)]
                for server, measured in chance.sample(turns, 2):
                    loads.append(_load(server, bodies, measured))
    report.rows.append((OFF, *_medians([each for found in pairs.values() for each in found.off])))
    for mode, found in pairs.items():
        report.rows.append((mode, *_medians(found.own)))
        for measure in MEASURES:
            report.goals.append(goal(mode, measure, found.ratio(measure)))
    report.notes.append(bench.generator(loads))
    report.data["pairs"] = {mode: vars(found) for mode, found in pairs.items()}
    return report


def goal(mode: str, measure: str, ratio: Estimate) -> Goal:
    """What is asked of a mode's ratio to `off`."""
    bounds = AT_LEAST.get(measure, {}).get(mode), AT_MOST.get(measure, {}).get(mode)
    return Goal(f"{mode} / off: {measure}", ratio, *bounds)


def _start(bench: Bench, stack: ExitStack, chance: random.Random) -> dict[str, Endpoint]:
    """One server for each mode, in any order, each warmed up."""
    checkpoint = bench.checkpoint(SMALL)
    servers = {
        mode: stack.enter_context(autosteer(checkpoint, *MODES[mode], name=mode, guard=not mode.startswith(OFF)))
        for mode in chance.sample(list(MODES), len(MODES))
    }
    warm = about_images(2 * CLIENTS, max_tokens=bench.effort.answer, seed=-1)
    for server in servers.values():
        server.load(warm, clients=CLIENTS, count=len(warm))
    return servers


def _load(server: Endpoint, bodies: Sequence[Body], measured: list[Measured]) -> Load:
    busy = server.cpu_seconds()
    load = server.load(bodies, clients=CLIENTS, count=len(bodies))
    each = (server.cpu_seconds() - busy) / load.tokens
    measured.append((load.tokens_per_second, load.between_tokens_p50, load.first_token_p50, each))
    return load


def _medians(measured: Sequence[Measured]) -> tuple[str, ...]:
    speed, *seconds = (Estimate.of(values).value for values in zip(*measured, strict=True))
    return f"{speed:.0f}", *map(ms, seconds)
