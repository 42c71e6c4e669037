"""Requests through HTTP: ours, `transformers serve` on the same folder, and whatever `--url` names."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, SMOLLM2, TINY, Checkpoint, Shape
from benchmarks.estimate import Estimate, percentile
from benchmarks.load import Load
from benchmarks.report import Goal, Report, ms
from benchmarks.roofline import Costs, machine
from benchmarks.servers import OURS, PEER, Endpoint, autosteer, missing_for_peer, transformers_serve
from benchmarks.workloads import Body, about_images, stories
from models.smollm2 import FOLDER

MAX_ROWS = 64


@dataclass(frozen=True)
class Case:
    """Clients at once, and how many different pictures their requests have between them.

    0: each its own; None: they are texts.
    """

    clients: int
    pictures: int | None

    @property
    def count(self) -> int:
        """Requests of a round."""
        return max(8, 2 * self.clients)

    @property
    def images(self) -> int:
        """Of each request."""
        return int(self.pictures is not None)

    def bodies(self, tokens: int, seed: int) -> list[Body]:
        """New questions for each seed; about the same pictures, or about new ones where each request has its own."""
        if self.pictures is None:
            return stories(self.count, max_tokens=tokens, seed=seed)
        kind = {"distinct": self.pictures} if self.pictures else {"distinct": self.count, "pictures": seed}
        return about_images(self.count, max_tokens=tokens, seed=seed, **kind)

    def __str__(self) -> str:
        if self.pictures is None:
            return f"{self.clients} clients"
        return f"{self.clients} clients, " + (f"{self.pictures} pictures" if self.pictures else "a picture each")


def tiny(bench: Bench) -> Report:
    """The tiny model, where the server's own work is most of the time."""
    return _compare(bench, "peers-tiny", bench.checkpoint(TINY), _pictured(bench), {1: 1.2, 16: 6.0})


def small(bench: Bench) -> Report:
    """The small model, where the model's is."""
    return _compare(bench, "peers-small", bench.checkpoint(SMALL), _pictured(bench), {1: 1.2, 16: 4.0})


def real(bench: Bench) -> Report:
    """A published model, about texts."""
    if not (FOLDER / "config.json").is_file():
        return Report("peers-real", "text requests, SmolLM2", notes=[f"Left out: `make real-model` brings {FOLDER}."])
    cases = [Case(clients, None) for clients in bench.effort.clients]
    model = Checkpoint(SMOLLM2, FOLDER.absolute(), guard=FOLDER / "none")  # it is served without one
    return _compare(bench, "peers-real", model, cases, {1: 1.5, 16: 4.0})


def _pictured(bench: Bench) -> list[Case]:
    return [Case(clients, 8) for clients in bench.effort.clients] + [Case(16, 0)]


def _compare(bench: Bench, name: str, model: Checkpoint, cases: Sequence[Case], at_least: dict[int, float]) -> Report:
    shape = model.shape
    report = Report(
        name,
        f"{'image' if cases[0].images else 'text'} requests, {bench.effort.answer} tokens each, {shape.name} model",
        ("load", "server", "tokens/s", "first token p50", "between tokens p50", "p99", "of the roofline"),
    )
    with ExitStack() as stack:
        servers = [stack.enter_context(autosteer(model, "--max-rows", str(MAX_ROWS)))]
        if missing := missing_for_peer():
            report.notes.append(f"{PEER} is left out: it needs {', '.join(missing)}.")
        else:
            servers.append(stack.enter_context(transformers_serve(model)))
        servers += bench.beside(model) if shape is SMALL else bench.others  # vLLM has no kernels for the tiny one
        loads = {case: _rounds(bench, name, servers, case) for case in cases}
    for case, found in loads.items():
        report.rows += [_row(bench, shape, case, server, load) for server, load in found.items()]
        if PEER in found:
            report.goals += _goals(case, found[OURS], found[PEER], at_least)
    report.notes.append(bench.generator(load for found in loads.values() for some in found.values() for load in some))
    report.data["rounds"] = {
        f"{case}, {server}": [(load.tokens_per_second, load.first_token_p50, load.between_tokens_p50) for load in some]
        for case, found in loads.items()
        for server, some in found.items()
    }
    return report


def _rounds(bench: Bench, name: str, servers: Sequence[Endpoint], case: Case) -> dict[str, list[Load]]:
    def load(server: Endpoint, number: int) -> Load:
        bodies = case.bodies(bench.effort.answer, bench.seed(name, case, number))
        # A published model may end an answer earlier, and in bf16 two servers may not end it at the same token.
        return server.load(bodies, clients=case.clients, count=case.count, whole=bool(case.images))

    return bench.by_turns(f"{name}, {case}", servers, load)


def _row(bench: Bench, shape: Shape, case: Case, server: str, loads: Sequence[Load]) -> tuple[str, ...]:
    speed = Estimate.of([load.tokens_per_second for load in loads])
    gaps = [gap for load in loads for gap in load.between_tokens]
    prompt = loads[0].answers[0].prompt_tokens
    return (
        str(case),
        server,
        speed.show(0),
        ms(Estimate.of([load.first_token_p50 for load in loads]).value),
        ms(Estimate.of([load.between_tokens_p50 for load in loads]).value),
        ms(percentile(gaps, 99)),
        "" if prompt is None else f"{speed.value / _bound(bench, shape, case, prompt):.1%}",
    )


def _bound(bench: Bench, shape: Shape, case: Case, prompt: int) -> float:
    """Tokens per second that the machine could reach, were there nothing but the model."""
    tokens = bench.effort.answer
    return case.clients * tokens / Costs(shape).answers(machine(), case.clients, prompt, tokens, images=case.images)


def _goals(case: Case, ours: Sequence[Load], peer: Sequence[Load], at_least: dict[int, float]) -> list[Goal]:
    speed = Estimate.of_ratios([a.tokens_per_second for a in ours], [b.tokens_per_second for b in peer])
    first = Estimate.of_ratios([a.first_token_p50 for a in ours], [b.first_token_p50 for b in peer])
    goals = [Goal(f"{case}: tokens/s, ours / {PEER}", speed, at_least=at_least.get(case.clients))]
    limit = 1 / 6 if case.clients == 16 else None
    return [*goals, Goal(f"{case}: first token p50, ours / {PEER}", first, at_most=limit)]
