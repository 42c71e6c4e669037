"""`python -m benchmarks.soak`: careless and hostile clients against one server, and what is left of them afterwards.

Every request ends in one outcome for its client and in one for the server's metrics, and the two are compared. Only a
client that leaves cannot know how its request ended: those make up what the server counts beyond the others.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import psutil
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from models.demo.dialogue import pairs, utility
from server.access.keys import hash_key, new_key
from tests import plain_http
from tests.end_to_end.processes import ServerProcess, user

LEFT = "left"
REFUSED = "refused"  # no byte of an answer: the server is going, or gone
HALF = "half"  # an answer that began and has no end
GRAVEST_FIRST = ("content_filter", "length", "stop")
STATUS_REASONS = {
    "401": ("unauthorized",),
    "403": ("forbidden",),
    "400": ("invalid_request", "context_length_exceeded"),
    "404": ("not_found",),
    "413": ("body_too_large",),
    "415": ("unsupported_body",),
    "429": ("queue_full", "rate_limited"),
    "503": ("not_ready", "audit_failed", "deadline_exceeded", "error", "abort", "timeout"),
}
FINISH = re.compile(rb'"finish_reason":"(\w+)"')
CODE = re.compile(rb'"error":\{.*?"code":"(\w+)"')
SILENCE_SECONDS = 120.0  # a server that says nothing for so long hangs


class Kind(StrEnum):
    """What a client does with its request."""

    WHOLE = "whole answer"
    STREAM = "stream"
    SLOW = "stream, read slowly"
    SLOW_BODY = "body sent slowly"
    LEAVES = "leaves within the answer"
    LEAVES_EARLY = "leaves within its body"
    BAD = "bad body"


SHARES = {
    Kind.WHOLE: 6, Kind.STREAM: 6, Kind.SLOW: 1, Kind.SLOW_BODY: 1, Kind.LEAVES: 3, Kind.LEAVES_EARLY: 1, Kind.BAD: 3,
}  # fmt: skip


@dataclass
class Soak:
    """One load: what its clients saw, and the server's memory while they ran."""

    outcomes: Counter[str] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)
    memory: list[tuple[int, int]] = field(default_factory=list)  # (requests ended, bytes)
    seconds: float = 0.0

    @property
    def ended(self) -> int:
        """Requests that have ended for their clients."""
        return self.outcomes.total()

    def growth(self) -> tuple[float, float]:
        """MiB at half-time, and what the regression over the last half says was added until the end."""
        last = np.array([sample for sample in self.memory if sample[0] >= self.ended / 2], float)
        if len(last) < 3:
            return 0.0, 0.0
        slope, start = np.polyfit(last[:, 0] - last[0, 0], last[:, 1] / 2**20, 1)
        return float(start), float(slope * (last[-1, 0] - last[0, 0]))


@dataclass(frozen=True)
class Site:
    """A server's configuration with a key for each of several policies, one key that is unknown, and an audit log."""

    folder: Path
    keys: tuple[str, ...] = field(default_factory=lambda: tuple(new_key() for _ in range(6)))
    make: type[ServerProcess] = ServerProcess

    def __post_init__(self) -> None:
        policies: dict[str, dict[str, object]] = {
            "strict": {"mode": "block", "threshold": 0.3},
            "watched": {"mode": "monitor", "expose_scores": True},
            "trusted": {"may_loosen": True},
            "limited": {"requests_per_minute": 60, "tokens_per_minute": 6000},
        }
        keys = [
            {"name": name, "policy": name, "hash": hash_key(key)}
            for name, key in zip(("default", *policies), self.keys, strict=False)
        ]
        audit = {"url": f"file://{self.audit}"}
        self.audit.touch()
        self.config.write_text(yaml.safe_dump({"policies": policies, "keys": keys, "audit": audit}))

    @property
    def config(self) -> Path:
        """For `--config`."""
        return self.folder / "autosteer.yaml"

    @property
    def audit(self) -> Path:
        """One line for each request."""
        return self.folder.absolute() / "audit.jsonl"

    def records(self) -> int:
        """Records in the audit log. Raises ValueError for a line that is none."""
        lines = self.audit.read_text().splitlines()
        return len([json.loads(line)["request_id"] for line in lines])

    def server(self) -> ServerProcess:
        """A server of this site."""
        return self.make(["--config", str(self.config)], key=self.keys[0])


@dataclass(frozen=True)
class Client:
    """Where requests go and who sends them; `keys` are drawn from, none where the server has none."""

    host: str
    port: int
    keys: Sequence[str] = ()

    def head(self, chance: random.Random, length: int) -> bytes:
        """A request's head, for a body of so many bytes."""
        key = f"authorization: Bearer {chance.choice(self.keys)}\r\n" if self.keys else ""
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\n"
            f"{key}connection: close\r\ncontent-length: {length}\r\n\r\n"
        ).encode()

    async def request(self, kind: Kind, body: bytes, chance: random.Random) -> str:
        """Send one request as `kind` says; its outcome."""
        try:
            reader, writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            return REFUSED
        try:
            return await self._exchange(kind, body, chance, reader, writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _exchange(
        self, kind: Kind, body: bytes, chance: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> str:
        writer.write(self.head(chance, len(body)))
        if kind is Kind.LEAVES_EARLY:
            writer.write(body[: chance.randrange(len(body))])
            await asyncio.sleep(chance.random() * 0.05)
            return LEFT
        if kind is Kind.SLOW_BODY:
            cut = chance.randrange(len(body))
            writer.write(body[:cut])
            await asyncio.sleep(chance.random() * 0.5)
            body = body[cut:]
        writer.write(body)
        if kind is Kind.LEAVES:
            with suppress(TimeoutError, EOFError, ConnectionError):
                await asyncio.wait_for(reader.readexactly(chance.choice([10**6, 1, 700])), chance.random() * 0.5)
            return LEFT
        pause = (lambda: chance.random() * 0.02) if kind is Kind.SLOW else None
        return outcome(await read_all(reader, pause))


async def read_all(reader: asyncio.StreamReader, pause: Callable[[], float] | None) -> bytes:
    """Everything up to the end of the connection, however it ends. Raises TimeoutError if the server hangs."""
    data = bytearray()
    with suppress(ConnectionError):
        while part := await asyncio.wait_for(reader.read(256 if pause else 2**16), SILENCE_SECONDS):
            data += part
            if pause:
                await asyncio.sleep(pause())
    return bytes(data)


def outcome(answer: bytes) -> str:
    """How an answer ended: a finish reason, a status and a code, or HALF where it has no end."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if not head:
        return REFUSED
    status = head[9:12].decode()
    length = re.search(rb"content-length: (\d+)", head)
    complete = len(body) == int(length[1]) if length else body.endswith(b"0\r\n\r\n") and b"data: [DONE]" in body
    if not complete:
        return HALF
    if (code := CODE.search(body)) is not None or status != "200":
        return f"{status} {code[1].decode() if code else ''}".strip()
    found = {each.decode() for each in FINISH.findall(body)}
    return next(reason for reason in GRAVEST_FIRST if reason in found)


def bodies(model: str, chance: random.Random) -> Iterator[dict[str, Any]]:
    """Requests without end: about pictures and words, harmless and harmful, short and long, of one choice or two."""
    examples = [
        *utility(64, seed=5, split="test"),
        *(each for pair in pairs(8, 5, "test") for each in (pair.toxic, pair.safe)),
    ]
    messages = [[user(each.question, *([each.image] if each.image else []))] for each in examples]
    while True:
        request: dict[str, Any] = {
            "model": model,
            "messages": chance.choice(messages),
            "max_tokens": chance.choice([1, 4, 8, 16, 32]),
            "temperature": chance.choice([0, 1]),
        }
        if chance.random() < 0.1:
            request |= {"n": 2}
        if chance.random() < 0.1:
            request |= {"stop": ["e", "zz"]}
        if chance.random() < 0.1:
            request |= {"guard": {"mode": chance.choice(["off", "monitor", "block"])}}
        yield request


def bad(request: dict[str, Any], chance: random.Random) -> bytes:
    """A body that must be refused, made of one that need not be."""
    broken_image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    wrong: list[dict[str, Any]] = [
        {"model": "another"},
        {"max_tokens": -1},
        {"max_tokens": 10**9},
        {"temperature": "hot"},
        {"no_such_field": 1},
        {"messages": []},
        {"messages": [{"role": "user", "content": [broken_image]}]},
    ]
    body = json.dumps(request).encode()
    damaged = [b"{", b"", b"\xff\xfe" + body, body[: len(body) // 2], b"[" * 5000]
    return chance.choice([*damaged, *(json.dumps(request | each).encode() for each in wrong)])


async def soak(
    client: Client,
    model: str,
    *,
    clients: int,
    requests: int,
    seed: int = 0,
    at_half: Callable[[], object] = lambda: None,
    memory: Callable[[], int] = lambda: 0,
) -> Soak:
    """Send `requests`, `clients` at a time, each its own way. `at_half` is called once half of them have ended."""
    chance = random.Random(seed)
    result = Soak()
    numbers = iter(range(requests))
    work = bodies(model, chance)
    kinds, shares = list(SHARES), list(SHARES.values())
    half = iter([at_half])

    async def one_client() -> None:
        for _ in numbers:
            (kind,) = chance.choices(kinds, shares)
            streamed = kind in (Kind.STREAM, Kind.SLOW) or (kind is not Kind.WHOLE and chance.random() < 0.5)
            body = next(work) | {"stream": streamed}
            data = bad(body, chance) if kind is Kind.BAD else json.dumps(body).encode()
            result.kinds[kind] += 1
            ended = await client.request(kind, data, chance)
            result.outcomes[ended] += 1
            if result.ended * 2 >= requests:
                next(half, lambda: None)()
            if ended == REFUSED:
                return

    async def sample() -> None:
        while True:
            result.memory.append((result.ended, memory()))
            await asyncio.sleep(0.5)

    sampler = asyncio.create_task(sample())
    began = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(clients)))
    result.seconds = time.perf_counter() - began
    sampler.cancel()
    return result


# the server's own books --------------------------------------------------------------------------------------------


def counted(url: str) -> Counter[str]:
    """How the server says its requests ended: finish reasons, and reasons why some never began."""
    books: Counter[str] = Counter()
    for family in text_string_to_metric_families(plain_http.get(f"{url}/metrics", timeout=60).text):
        for sample in family.samples:
            if sample.name in ("autosteer_request_success_total", "autosteer_admission_rejections_total"):
                books[sample.labels.get("finished_reason") or sample.labels["reason"]] += int(sample.value)
    return books


def discrepancies(result: Soak, books: Counter[str]) -> list[str]:
    """Where the clients' books and the server's differ; `books`: what the server counted during the load."""
    problems = [f"{count} answers are {name}" for name, count in result.outcomes.items() if name in (HALF, REFUSED)]
    if books.total() != result.ended:
        problems.append(f"the clients sent {result.ended} requests, the server counted {books.total()}")
    for ended, count in result.outcomes.items():
        if ended == LEFT:
            continue
        reasons = STATUS_REASONS.get(ended[:3], ("error",) if ended[:3].isdecimal() else (ended,))
        there = sum(books[reason] for reason in reasons)
        if there < count:
            problems.append(f"{count} clients saw {ended!r}, the server counted {there} of {reasons}")
    problems += [f"{books[name]} requests ended as {name}" for name in ("error", "internal_error") if books[name]]
    return problems


@dataclass(frozen=True)
class Leftovers:
    """What a server holds."""

    rows: float
    waiting: float
    cache: float
    descriptors: Mapping[str, int]  # by what they are of
    threads: int

    @classmethod
    def of(cls, server: ServerProcess) -> Leftovers:
        """Ask the system, and then the server, which has a connection more for a moment after each question."""
        server_process = psutil.Process(server.process.pid)
        processes = [server_process, *server_process.children()]
        return cls(
            descriptors=descriptors(processes),
            threads=sum(each.num_threads() for each in processes),
            rows=server.metric("autosteer_num_requests_running"),
            waiting=server.metric("autosteer_num_requests_waiting"),
            cache=server.metric("autosteer_kv_cache_usage_ratio"),
        )

    def unlike(self, before: Leftovers) -> list[str]:
        """What is not as it was before, with both."""
        was, now = ({**asdict(each), **each.descriptors} for each in (before, self))
        names = [name for name in was | now if name != "descriptors" and was.get(name, 0) != now.get(name, 0)]
        return [f"{name} {was.get(name, 0)} and {now.get(name, 0)}" for name in names]

    @classmethod
    def settled(cls, server: ServerProcess, pause: float = 0.3) -> Leftovers:
        """Once they are the same twice: what the last requests were sent over is closed by then."""
        before, now = None, cls.of(server)
        while now != before:
            time.sleep(pause)
            before, now = now, cls.of(server)
        return now

    @classmethod
    def after(cls, server: ServerProcess, before: Leftovers, seconds: float = 10.0) -> Leftovers:
        """Once they are what they were before, or after so long."""
        until = time.monotonic() + seconds
        while (now := cls.of(server)) != before and time.monotonic() < until:
            time.sleep(0.1)
        return now


def descriptors(processes: Iterable[psutil.Process]) -> Mapping[str, int]:
    """How many descriptors the processes have of sockets, pipes and each file."""
    found: Counter[str] = Counter()
    for process in processes:
        for each in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found[re.sub(r":?\[?\d+\]?", "", str(each.readlink()))] += 1
    return dict(sorted(found.items()))


def resident(server: ServerProcess) -> int:
    """Resident bytes of the server, its engine and its decoders."""
    return server.rss_bytes


def run(site: Site, *, clients: int, requests: int) -> tuple[Soak, list[str]]:
    """One load on one server, and all that is wrong afterwards."""
    with site.server() as server:
        client = Client("127.0.0.1", server.port, site.keys)
        model = server.model
        # The first requests start the decoders and the threads that are started when they are first needed.
        warm = asyncio.run(soak(client, model, clients=clients, requests=4 * clients, seed=1))
        idle = Leftovers.settled(server)
        before = counted(server.url)
        result = asyncio.run(soak(client, model, clients=clients, requests=requests, memory=lambda: resident(server)))
        after = Leftovers.after(server, idle)
        problems = discrepancies(result, counted(server.url) - before)
        problems += [f"before the load and after it: {each}" for each in after.unlike(idle)]
    sent = warm.ended + result.ended + 1  # the one for the model's name
    if (records := site.records()) != sent:
        problems.append(f"{sent} requests left {records} audit records")
    return result, problems


def run_until_signal(site: Site, sig: signal.Signals, *, clients: int, requests: int) -> tuple[Soak, int, list[str]]:
    """A load within which the server gets a signal: what clients saw, its exit code, and what is wrong."""
    with site.server() as server:
        before = site.records()
        model = server.model
        client = Client("127.0.0.1", server.port, site.keys)
        work = soak(
            client,
            model,
            clients=clients,
            requests=requests,
            at_half=lambda: server.process.send_signal(sig),
        )
        result = asyncio.run(work)
        code = server.process.wait(60)
    problems: list[str] = []
    if sig is not signal.SIGKILL:
        if result.outcomes[HALF]:
            problems.append(f"{result.outcomes[HALF]} answers began and have no end")
        # Of those who found the server going, some were let in and sent away without a byte; most were not let in.
        answered = result.ended - result.outcomes[REFUSED] - result.outcomes[LEFT]
        if site.records() - before < answered:
            problems.append(f"{answered} answers left {site.records() - before} audit records")
    return result, code, problems


def table(title: str, result: Soak) -> Table:
    """What the clients saw."""
    shown = Table("outcome", "requests", title=title)
    for name, count in sorted(result.outcomes.items(), key=lambda item: -item[1]):
        shown.add_row(name, str(count))
    return shown


def main(
    clients: Annotated[int, typer.Option(help="Clients at once.")] = 200,
    requests: Annotated[int, typer.Option(help="Requests of the long load; the others have a tenth.")] = 10_000,
) -> None:
    """Load a server of the bundled model, then stop one with SIGTERM and kill another within a load."""
    console = Console()
    failed = False
    with TemporaryDirectory() as folder:
        site = Site(Path(folder))
        result, problems = run(site, clients=clients, requests=requests)
        start, growth = result.growth()
        console.print(table(f"{requests} requests of {clients} clients", result))
        console.print(
            f"{result.seconds:.0f} s; memory at half-time {start:.0f} MiB, added until the end {growth:+.1f} MiB"
        )
        console.print("\n".join(problems) or "every request ended in one outcome and one audit record; nothing is left")
        failed |= bool(problems)
        for sig in (signal.SIGTERM, signal.SIGKILL):
            result, code, problems = run_until_signal(site, sig, clients=clients, requests=requests // 10)
            console.print(table(f"{sig.name} within the load", result))
            console.print(f"exit code {code}; " + ("\n".join(problems) or f"half answers: {result.outcomes[HALF]}"))
            failed |= bool(problems) or (sig is signal.SIGTERM and code != 0)
        with site.server() as server:
            console.print(f"started again in {server.ready_seconds:.1f} s; {site.records()} audit records are readable")
    raise typer.Exit(failed)


if __name__ == "__main__":
    typer.run(main)
