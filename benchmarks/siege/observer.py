"""How late the server's event loop comes, as whoever asks `/health` sees it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from benchmarks.estimate import percentile

PAUSE_SECONDS = 0.005


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
