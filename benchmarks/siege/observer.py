"""How long the server's event loop stands still: as its own heart tells, and as whoever asks `/health` sees it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.estimate import percentile
from benchmarks.siege import heart

PAUSE_SECONDS = 0.005


@dataclass
class Stops:
    """Seconds for which the event loop came late to each beat of its heart, and of these what the server caused."""

    late: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)

    def add(self, beat: heart.Beat) -> None:
        """One more beat.

        While the loop stands still its thread computes, or waits for another of the process that has the lock, so it
        is no longer than what all threads computed; nor than what is left without its own waiting for a core.
        """
        seconds, waited, computed = beat
        self.late.append(max(0.0, seconds - heart.PAUSE_SECONDS))
        self.own.append(max(0.0, min(self.late[-1] - waited, computed)))


def percentile_of_moments(stops: list[float], share: float) -> float:
    """What `share` per cent of all who might come, one every two milliseconds, wait at most for a stop's end."""
    waits = [np.arange(stop, 0.0, -heart.PAUSE_SECONDS) if stop > 0.0 else np.zeros(1) for stop in stops]
    return percentile(np.concatenate(waits).tolist(), share)


@contextmanager
def heard(file: Path) -> Iterator[Stops]:
    """The stops of a server with a heart, once the block has ended."""
    begin, found = file.stat().st_size, Stops()
    yield found
    data = file.read_bytes()[begin:]
    for beat in heart.BEAT.iter_unpack(data[: len(data) // heart.BEAT.size * heart.BEAT.size]):
        found.add(beat)


@dataclass
class Lateness:
    """Seconds that answers of `/health` took, and what of each the server's own process computed meanwhile."""

    waits: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    broken: int = 0  # connections that ended before their time

    def time(self, ask: Callable[[], bool], clock: int) -> bool:
        """Time one question; whether there was an answer."""
        begun, cpu = time.perf_counter(), time.clock_gettime(clock)
        answered = ask()
        self.waits.append(time.perf_counter() - begun)
        self.own.append(min(self.waits[-1], time.clock_gettime(clock) - cpu))
        return answered

    def own_percentile(self, share: float) -> float:
        """The part that no other program on the machine can have caused."""
        return percentile(self.own, share)


def _cpu_clock(pid: int) -> int:
    """The clock of another process's CPU time, as clock_getcpuclockid(3) makes it on Linux."""
    return (~pid << 3) | 2


def _ask(connection: socket.socket, request: bytes) -> bool:
    connection.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data and (part := connection.recv(4096)):
        data += part
    return b"\r\n\r\n" in data


@contextmanager
def watched(host: str, port: int, pid: int) -> Iterator[Lateness]:
    """Ask again and again, in a thread, until the block ends."""
    found = Lateness()
    over = threading.Event()
    clock = _cpu_clock(pid)

    def ask() -> None:
        request = f"GET /health HTTP/1.1\r\nhost: {host}\r\n\r\n".encode()
        while not over.is_set():
            with suppress(OSError), socket.create_connection((host, port), timeout=60) as connection:
                while not over.wait(PAUSE_SECONDS) and found.time(lambda: _ask(connection, request), clock):
                    pass
            found.broken += not over.is_set()

    thread = threading.Thread(target=ask, name="health", daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join(30)
