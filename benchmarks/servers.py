"""The servers that are measured: ours, `transformers serve` on the same folder, and any other by its URL."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import httpx
import psutil

from benchmarks.checkpoints import Checkpoint, serving_dtype
from benchmarks.client import request_bytes
from benchmarks.load import Load, closed_load
from benchmarks.workloads import Body
from tests.end_to_end.processes import ServerProcess, clean_environment, end, free_port
from tests.exposition import metric_of

START_SECONDS = 120
LOG_CHARACTERS = 2000
OURS = "autosteer"
PEER = "transformers serve"


@dataclass(frozen=True)
class Endpoint:
    """A server that answers."""

    name: str
    url: str
    model: str
    pid: int | None = None

    def requests(self, bodies: Sequence[Body]) -> list[bytes]:
        """Bodies as requests to this server."""
        return [request_bytes(self.url, {"model": self.model, **body}) for body in bodies]

    def load(self, bodies: Sequence[Body], *, clients: int, count: int, whole: bool = True) -> Load:
        """A closed load; every answer must have all its tokens, or some unless `whole`. Raises AssertionError."""
        load = closed_load(self.url, self.requests(bodies), clients=clients, count=count)
        wanted = bodies[0]["max_tokens"]
        enough = range(wanted if whole else 1, wanted + 1)
        short = [answer.tokens for answer in load.answers if answer.tokens not in enough]
        assert not short, f"{self.name}: {len(short)} of {count} answers are not of {wanted} tokens: {short[:5]}"
        return load

    def cpu_seconds(self) -> float:
        """What the server's processes have taken of the cores so far, all threads together."""
        process = psutil.Process(self.pid)
        return float(sum(sum(each.cpu_times()[:2]) for each in (process, *process.children(recursive=True))))

    def metric(self, name: str) -> float:
        """A metric of our server."""
        return metric_of(httpx.get(f"{self.url}/metrics").text, name)


@contextmanager
def _explained(log: Callable[[], str]) -> Iterator[None]:
    """What goes wrong within is told together with the end of the server's log."""
    try:
        yield
    except Exception as error:
        error.add_note(log()[-LOG_CHARACTERS:])
        raise


@contextmanager
def autosteer(checkpoint: Checkpoint, *arguments: str, name: str = OURS, guard: bool = False) -> Iterator[Endpoint]:
    """Our server, without its guard unless `guard`."""
    guarded = ["--guard", str(checkpoint.guard)] if guard else []
    options = ["--model", str(checkpoint.model), "--dtype", serving_dtype(), *guarded, *arguments]
    with ServerProcess(options) as server, _explained(lambda: server.log):
        yield Endpoint(name, server.url, server.model, server.process.pid)


def missing_for_peer() -> list[str]:
    """Packages that `transformers serve` needs and that are not here."""
    needed = ("accelerate", "fastapi", "openai", "pydantic", "uvicorn")
    return [package for package in needed if importlib.util.find_spec(package) is None]


@contextmanager
def transformers_serve(checkpoint: Checkpoint) -> Iterator[Endpoint]:
    """`transformers serve` of the same folder, in the same dtype, with the model loaded.

    It answers image requests one at a time: its continuous batching is for models without images.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program = Path(sys.executable).with_name("transformers")
    options = ["--port", str(port), "--host", "127.0.0.1", "--dtype", serving_dtype(), "--device", "cpu"]

    def told() -> str:
        log.seek(0)
        return log.read().decode(errors="replace")

    with TemporaryFile() as log:
        process = subprocess.Popen(
            [program, "serve", str(checkpoint.model), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=clean_environment(),
        )
        try:
            with _explained(told):
                _wait(process, url)
                yield Endpoint(PEER, url, str(checkpoint.model), process.pid)
        finally:
            end(process)


def _wait(process: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, f"{PEER} ended with {process.returncode}"
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{PEER} is not ready after {START_SECONDS} s")


def external(named: str) -> Endpoint:
    """A server given as NAME=URL, with the first of its models."""
    name, _, url = named.partition("=")
    if not url.startswith("http://"):
        raise ValueError(f"{named}: give NAME=http://HOST:PORT")
    url = url.rstrip("/").removesuffix("/v1")
    return Endpoint(name, url, httpx.get(f"{url}/v1/models").json()["data"][0]["id"])
