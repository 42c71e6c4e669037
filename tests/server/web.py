"""A small internet on loopback: public addresses lead to one web server, all others to a canary."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpcore
import trustme

from server.media.fetch import Fetcher
from server.settings.groups import MediaSettings
from tests.server.scripted import png

PUBLIC = "93.184.215.14"
ALSO_PUBLIC = "2606:2800:21f:cb07:6820:80da:af6b:8b2c"
NAMES = {"images.example.com": [PUBLIC], "cdn.example.org": [PUBLIC], "a.cdn.example.org": [PUBLIC]}
ALLOWED = ("images.example.com", "*.cdn.example.org", "rebinding.example.com")
SETTINGS = MediaSettings(allowed_domains=ALLOWED)
GOOD = "https://images.example.com/a.png"
MISSING = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"

Answer = Callable[[str], Awaitable[bytes] | bytes]


class Network(httpcore.AsyncNetworkBackend):
    """The world: public addresses lead to one server on loopback, every other address to the canary."""

    def __init__(self, server: int, canary: int) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._ports = {PUBLIC: server, ALSO_PUBLIC: server}
        self._canary = canary
        self.connected: list[tuple[str, int]] = []

    async def connect_tcp(self, host: str, port: int, *rest: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        self.connected.append((host, port))
        return await self._inner.connect_tcp("127.0.0.1", self._ports.get(host, self._canary), *rest, **more)


class World:
    """A web server for every public address, a canary for all others, a name server, and a fetcher between them."""

    def __init__(self, authority: trustme.CA) -> None:
        self.names: dict[str, Any] = dict(NAMES)
        self.asked: list[str] = []
        self.served: list[str] = []
        self.pages: dict[str, Answer] = {"/a.png": lambda _: ok(png())}
        self.canary_hits = 0
        self._authority = authority

    @asynccontextmanager
    async def fetcher(
        self,
        settings: MediaSettings = SETTINGS,
        *,
        max_bytes: int = 100_000,
        max_total: int = 1_000_000,
        names: Sequence[str] = ALLOWED,
    ) -> AsyncIterator[Fetcher]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._authority.issue_cert(*names).configure_cert(context)
        trusted = ssl.create_default_context()
        self._authority.configure_trust(trusted)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=None if settings.allow_http else context)
        canary = await asyncio.start_server(self._sing, "127.0.0.1", 0)
        self.network = Network(server.sockets[0].getsockname()[1], canary.sockets[0].getsockname()[1])
        async with server, canary:
            yield Fetcher(
                settings, max_bytes=max_bytes, max_total=max_total, resolve=self._resolve, network=self.network,
                tls=trusted,
            )  # fmt: skip

    async def _resolve(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        found = self.names.get(host)
        if found is None:
            raise OSError("no such name")
        return list(next(found) if isinstance(found, Iterator) else found)

    async def _sing(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.canary_hits += 1
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ")[1]
        self.served.append(path)
        page = self.pages[path](head) if path in self.pages else MISSING
        try:
            writer.write(page if isinstance(page, bytes) else await page)
            await writer.drain()
        except ConnectionError:
            pass
        writer.close()


def ok(data: bytes, **headers: str) -> bytes:
    fields = {"content-length": str(len(data)), **{name.replace("_", "-"): value for name, value in headers.items()}}
    return b"HTTP/1.1 200 OK\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()).encode() + b"\r\n" + data


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Moved\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()
