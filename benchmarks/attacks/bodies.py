"""Bodies that are announced and do not come: what a server keeps free for them is kept from others."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from urllib.parse import urlsplit

from server.settings.units import MEBI


async def withheld_bodies(url: str, key: str = "none", *, sockets: int, announced: int, sent: int) -> WithheldBodies:
    """Announce bodies of so many bytes on so many sockets, and send the first `sent` of each and no more."""
    place = urlsplit(url)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {place.netloc}\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {announced}\r\n\r\n"
    ).encode()
    bodies = WithheldBodies()
    await asyncio.gather(*(bodies.open(place.hostname or "", place.port or 80, head, sent) for _ in range(sockets)))
    return bodies


class WithheldBodies:
    """The sockets of such bodies; `answers` counts the status of each that was answered, 0 for one that was closed."""

    def __init__(self) -> None:
        self.answers: Counter[int] = Counter()
        self._answered = asyncio.Condition()
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self, host: str, port: int, head: bytes, sent: int) -> None:
        """One more socket."""
        reader, writer = await asyncio.open_connection(host, port)
        self._writers.append(writer)
        self._tasks.append(asyncio.create_task(self._send(writer, head, sent)))
        self._tasks.append(asyncio.create_task(self._listen(reader)))

    async def _send(self, writer: asyncio.StreamWriter, head: bytes, left: int) -> None:
        with suppress(ConnectionError):
            writer.write(head)
            while left:
                part = min(left, MEBI)
                writer.write(b" " * part)
                await writer.drain()
                left -= part

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        line = b""
        with suppress(ConnectionError):
            line = await reader.readline()
        async with self._answered:
            self.answers[int(line.split()[1]) if line else 0] += 1
            self._answered.notify_all()

    async def answered(self, count: int) -> None:
        """Wait until as many are answered or closed."""
        async with self._answered:
            await self._answered.wait_for(lambda: self.answers.total() >= count)

    async def close(self) -> None:
        """Leave."""
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
