"""One run of the benchmark: how thorough, against whom, and what all scenarios share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from rich.progress import Progress

from benchmarks.canned import canned_server
from benchmarks.checkpoints import Checkpoint, Shape, checkpoint
from benchmarks.client import request_bytes
from benchmarks.load import Load, closed_load
from benchmarks.report import Report
from benchmarks.servers import Endpoint, vllm_serve

T = TypeVar("T")


@dataclass(frozen=True)
class Effort:
    """How thorough a run is."""

    rounds: int  # of a comparison with large effects
    fine_rounds: int  # of one with effects of a per cent, for each start of the servers
    starts: int  # of the servers, in such a comparison
    steps: int  # of an engine, in one round
    clients: tuple[int, ...]
    seconds: float  # that new requests are sent for, in a load of prompts that were never sent before
    answer: int = 64  # tokens


QUICK = Effort(rounds=1, fine_rounds=2, starts=1, steps=8, clients=(1, 16), seconds=5, answer=16)
NORMAL = Effort(rounds=3, fine_rounds=10, starts=2, steps=48, clients=(1, 16), seconds=30)
FULL = Effort(rounds=7, fine_rounds=20, starts=4, steps=96, clients=(1, 4, 16, 64), seconds=60)


@dataclass(frozen=True)
class Ceiling:
    """What the load generator can by itself, and what it takes of a core for each token."""

    tokens_per_second: float
    seconds_per_token: float

    @classmethod
    def measure(cls, clients: int = 16, tokens: int = 64) -> Ceiling:
        """Against a canned server, which shares the cores with it as a real one does."""
        with canned_server(tokens) as url:
            request = [request_bytes(url, {"messages": []})]
            closed_load(url, request, clients=clients, count=clients)
            loads = [closed_load(url, request, clients=clients, count=20 * clients) for _ in range(3)]
        best = max(loads, key=lambda load: load.tokens_per_second)
        return cls(best.tokens_per_second, best.busy / best.tokens)


@dataclass
class Bench:
    """What a scenario is given. Servers that several scenarios ask stay up until `close`."""

    effort: Effort
    progress: Progress
    others: Sequence[Endpoint] = ()
    run: int = 0  # the run's own number
    vllm: Path | None = None  # the command, where there is one
    _checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    _vllm: dict[str, Endpoint] = field(default_factory=dict)
    _servers: ExitStack = field(default_factory=ExitStack)

    def close(self) -> None:
        """End the servers."""
        self._servers.close()

    def checkpoint(self, shape: Shape) -> Checkpoint:
        """The model, made at most once a run."""
        if shape.name not in self._checkpoints:
            self._checkpoints[shape.name] = checkpoint(shape)
        return self._checkpoints[shape.name]

    def beside(self, model: Checkpoint) -> list[Endpoint]:
        """Servers to compare with: vLLM on the same folder, where there is one, and those that are there already."""
        if self.vllm is None:
            return [*self.others]
        if model.shape.name not in self._vllm:
            task = self.progress.add_task("vllm serve starts", total=None)
            self._vllm[model.shape.name] = self._servers.enter_context(vllm_serve(model, self.vllm))
            self.progress.remove_task(task)
        return [self._vllm[model.shape.name], *self.others]

    def seed(self, *of: object) -> int:
        """A seed for one load of this run, and for no other load of any run: a server never sees a prompt again."""
        said = hashlib.blake2b(repr((self.run, *of)).encode(), digest_size=7)
        return int.from_bytes(said.digest())

    def each(self, things: Iterable[T], what: str) -> Iterator[T]:
        """Go through things with a progress bar."""
        listed = list(things)
        task = self.progress.add_task(what, total=len(listed))
        for thing in listed:
            yield thing
            self.progress.advance(task)
        self.progress.remove_task(task)

    def by_turns(
        self, what: str, servers: Sequence[Endpoint], load: Callable[[Endpoint, int], Load]
    ) -> dict[str, list[Load]]:
        """Load every server in every round, each round the other way about, after a warm-up of number -1."""
        loads: dict[str, list[Load]] = {server.name: [] for server in servers}
        for server in servers:
            load(server, -1)
        for number in self.each(range(self.effort.rounds), what):
            for server in servers if number % 2 else reversed(servers):
                loads[server.name].append(load(server, number))
        return loads

    @cached_property
    def ceiling(self) -> Ceiling:
        """The load generator's, measured once a run."""
        return Ceiling.measure()

    def generator(self, loads: Iterable[Load]) -> str:
        """A note on the load generator beside a table: its ceiling, and the most that it took of a core."""
        shares = [load.busy / load.seconds for load in loads]
        return (
            f"The load generator's ceiling: {self.ceiling.tokens_per_second:,.0f} tokens/s against a canned server "
            f"({self.ceiling.seconds_per_token * 1e6:.0f} µs of a core a token). In these loads it took at most "
            f"{max(shares):.1%} of a core."
        )


@dataclass(frozen=True)
class Scenario:
    """A named measurement."""

    about: str
    run: Callable[[Bench], Report]
