"""`autosteer` with a heart: its event loop notes every two milliseconds how long it stood still.

Run by its path, so that nothing is imported from the folder that it is started in: `python -P heart.py FILE serve ...`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic, process_time
from unittest.mock import patch

from server.cli.main import main as autosteer
from server.http.server import HttpServer

PAUSE_SECONDS = 0.002
# Of each beat: seconds since the one before, those of them that the loop's thread waited for a core, and those that all
# threads of the process computed.
BEAT = struct.Struct("<3d")
Beat = tuple[float, float, float]


def program(file: Path) -> list[str]:
    """The command that takes `autosteer`'s place; the beats are appended to a file."""
    return [sys.executable, "-P", str(Path(__file__).absolute()), str(file)]


def clocks() -> Callable[[], Beat]:
    """What tells, of the thread that calls this, the time of each column of a beat."""
    statistics = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
    return lambda: (monotonic(), int(os.pread(statistics, 100, 0).split()[1]) / 1e9, process_time())


async def beat(tell: Callable[[Beat], object]) -> None:
    """Beat until it is cancelled."""
    now = clocks()
    last = now()
    while True:
        await asyncio.sleep(PAUSE_SECONDS)
        before, last = last, now()
        tell((last[0] - before[0], last[1] - before[1], last[2] - before[2]))


def main() -> None:
    """Run `autosteer` with the arguments after the file."""
    file = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    startup = HttpServer.startup
    hearts: list[asyncio.Task[None]] = []

    async def with_heart(server: HttpServer, sockets: list[socket.socket] | None = None) -> None:
        await startup(server, sockets)
        hearts.append(asyncio.create_task(beat(lambda found: os.write(file, BEAT.pack(*found)))))

    with patch.object(HttpServer, "startup", with_heart):
        autosteer()


if __name__ == "__main__":
    main()
