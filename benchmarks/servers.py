"""The servers that are measured: ours, `transformers serve` and vLLM on the same folder, any other by its URL."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import httpx
import psutil

from benchmarks.checkpoints import Checkpoint, serving_dtype
from benchmarks.client import request_bytes
from benchmarks.load import LIMIT_SECONDS, Load, closed_load
from benchmarks.workloads import Body
from tests.end_to_end.processes import ServerProcess, clean_environment, end, free_port
from tests.exposition import metric_of

START_SECONDS = 600  # vLLM compiles what it computes, which takes minutes
LOG_CHARACTERS = 2000
OURS = "autosteer"
PEER = "transformers serve"
VLLM = "vllm serve"


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

    def load(
        self,
        bodies: Sequence[Body],
        *,
        clients: int,
        count: int,
        whole: bool = True,
        seconds: float = LIMIT_SECONDS,
    ) -> Load:
        """A closed load; every answer must have all its tokens, or some unless `whole`. Raises AssertionError."""
        load = closed_load(self.url, self.requests(bodies), clients=clients, count=count, seconds=seconds)
        wanted = bodies[0]["max_tokens"]
        enough = range(wanted if whole else 1, wanted + 1)
        short = [answer.tokens for answer in load.answers if answer.tokens not in enough]
        assert not short, (
            f"{self.name}: {len(short)} of {len(load.answers)} answers are not of {wanted} tokens: {short[:5]}"
        )
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
    program = Path(sys.executable).with_name("transformers")
    options = ["serve", str(checkpoint.model), "--dtype", serving_dtype(), "--device", "cpu"]
    with _program(PEER, [str(program), *options], checkpoint) as server:
        yield server


@contextmanager
def vllm_serve(checkpoint: Checkpoint, command: Path) -> Iterator[Endpoint]:
    """`vllm serve` of the same folder, in the same dtype, as it is by itself; `command` is its `vllm`."""
    options = ["serve", str(checkpoint.model), "--dtype", serving_dtype()]
    # By itself it would take a share of all memory for its cache, whatever else runs there.
    memory = {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2")}  # GiB
    with _program(VLLM, [str(command), *options], checkpoint, memory) as server:
        yield server


@contextmanager
def _program(
    name: str, command: Sequence[str], checkpoint: Checkpoint, environment: Mapping[str, str] | None = None
) -> Iterator[Endpoint]:
    """Another server, until it has answered nothing any more; `command` without the port."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def told() -> str:
        log.seek(0)
        return log.read().decode(errors="replace")

    with TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=clean_environment(environment),
        )
        try:
            with _explained(told):
                _wait(name, process, url)
                yield Endpoint(name, url, str(checkpoint.model), process.pid)
        finally:
            end(process)


def _wait(name: str, process: subprocess.Popen[bytes], url: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        assert process.poll() is None, f"{name} ended with {process.returncode}"
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{name} is not ready after {START_SECONDS} s")


def external(named: str) -> Endpoint:
    """A server given as NAME=URL, with the first of its models."""
    name, _, url = named.partition("=")
    if not url.startswith("http://"):
        raise ValueError(f"{named}: give NAME=http://HOST:PORT")
    url = url.rstrip("/").removesuffix("/v1")
    return Endpoint(name, url, httpx.get(f"{url}/v1/models").json()["data"][0]["id"])
