"""Real `autosteer serve` processes on loopback, and what the tests ask of them."""

from __future__ import annotations

import base64
import io
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import psutil
from openai import OpenAI
from openai.types.chat import ChatCompletionContentPartParam, ChatCompletionUserMessageParam
from PIL import Image

from tests import plain_http
from tests.exposition import metric_of
from tests.living import cpu_seconds, living, resident_bytes
from tests.waiting import WAIT_SECONDS, wait_until

# The last line of a server that has started tells its URL, or follows the one that does: as text and as JSON.
READY = re.compile(
    r"^autosteer ready: http://\S+:(\d+) .*\ntry it: .*\n|\"message\":\"http://\S+:(\d+) .*\n", re.MULTILINE
)


# In float32, so that answers are those of our own engine.
ON_VLLM = ("--engine", "vllm", "--dtype", "float32", "--cache-gib", "0.5", "--threads", "1")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("autosteer")), *arguments]


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what would configure a server by accident."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AUTOSTEER_")}
    return {**kept, "HF_HUB_OFFLINE": "1", **(extra or {})}


class Program(Protocol):
    """A process that a test has started; `subprocess.Popen` is one."""

    pid: int

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def end(process: Program) -> None:
    """Ask a process to end, and make it; nothing happens if it has ended."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@dataclass
class ServerProcess:
    """One server, from start to end; use as a context manager."""

    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    key: str = "none"
    folder: Path | None = None  # that it is started in
    start_seconds: float = WAIT_SECONDS
    program: Sequence[str] = field(default_factory=command)
    port: int = field(default=0, init=False)  # the system's choice, as the server tells it
    ready_seconds: float = field(default=0.0, init=False)
    # Of the process that takes longer (they load side by side): no other work on the machine adds to it.
    ready_cpu_seconds: float = field(default=0.0, init=False)

    def __enter__(self) -> ServerProcess:
        self._log = Path(f"/proc/self/fd/{os.memfd_create('server-log')}")
        self._out = self._log.open("wb")
        started = time.monotonic()
        self.process = self._start(["serve", "--port", "0", *self.arguments])
        try:
            self._wait_ready(started)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        end(self.process)
        self._out.close()

    def _start(self, arguments: Sequence[str]) -> Program:
        return subprocess.Popen(
            [*self.program, *arguments],
            stdout=self._out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=clean_environment(self.environment),
            cwd=self.folder,
        )

    def _wait_ready(self, started: float) -> None:
        def announced() -> bool:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}:\n{self.log}"
            found = READY.search(self.log)
            self.port = int(found[1] or found[2]) if found else 0
            return found is not None

        try:
            wait_until(announced, "the ready line", self.start_seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}:\n{self.log}") from None
        self.ready_seconds = time.monotonic() - started
        self.ready_cpu_seconds = max(cpu_seconds(each) for each in self._processes)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @cached_property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, timeout=60)

    @cached_property
    def model(self) -> str:
        found = plain_http.get(f"{self.url}/v1/models", headers={"authorization": f"Bearer {self.key}"})
        name: str = found.json()["data"][0]["id"]
        return name

    @property
    def rss_bytes(self) -> int:
        """Of the server and its processes; what they share counts for each."""
        return sum(resident_bytes(each) for each in self._family)

    @property
    def computed_seconds(self) -> float:
        """CPU time of the server and its processes so far."""
        return sum(cpu_seconds(each) for each in self._family)

    @property
    def _family(self) -> list[psutil.Process]:
        """The server's own process, and all below it; some live for one question."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    @property
    def _processes(self) -> list[psutil.Process]:
        """The server's own, and those that it has started."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children()]

    @property
    def engine(self) -> psutil.Process:
        """The process that runs the model."""
        found, *_ = living(self._processes, lambda each: "server.engine.process" in each.cmdline())
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples whose labels include `labels`."""
        return metric_of(plain_http.get(f"{self.url}/metrics").text, name, **labels)


def data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def user(text: str, *images: Image.Image) -> ChatCompletionUserMessageParam:
    """One user message: the images first, then the words."""
    parts: list[ChatCompletionContentPartParam] = [
        {"type": "image_url", "image_url": {"url": data_url(image)}} for image in images
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
