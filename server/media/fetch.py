"""Fetching images from https URLs of allowed domains: public addresses only, and everything bounded.

Every connection of the client here goes through `PublicNetwork`, which resolves the name once, checks all its
addresses and connects to one of those: no second look-up that could say something else. The client follows no redirect,
reads no proxy from the environment and decodes nothing by itself; each hop is checked here as if it were the first.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NoReturn
from urllib.parse import urljoin
from weakref import WeakValueDictionary

import httpcore
import httpx

from server.media.addresses import is_public
from server.media.files import MediaError
from server.settings.groups import MediaSettings
from server.watch.trace_context import outgoing

# Only what RFC 3986 allows, written as it is sent. A part that another parser could read differently is refused.
URL = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<target>(?:/[a-z0-9._~:/@!$&'()*+,;=%-]*)?"
    r"(?:\?[a-z0-9._~:/?@!$&'()*+,;=%\[\]-]*)?)(?:\#[!-~]*)?",
    re.IGNORECASE,
)
LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
NAME = re.compile(rf"(?:{LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")  # the last label is never a number
MAX_URL = 4096
PORTS = {"https": 443, "http": 80}
REDIRECTS = frozenset({301, 302, 303, 307, 308})
ADDRESSES_TRIED = 3
HEADERS = [("accept", "image/*"), ("accept-encoding", "identity"), ("user-agent", "autosteer-server")]
# One sentence for refused, timed out, not public, not found and not verified: it must not map a network.
NOT_FETCHED = "the image could not be fetched from this URL"
NETWORK_ERRORS = (TimeoutError, OSError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


def is_remote(url: str) -> bool:
    """Whether a URL asks for a fetch."""
    return url[:8].lower().startswith(("http://", "https://"))


@dataclass(frozen=True)
class Target:
    """A URL that passed every check that needs no network."""

    scheme: str
    host: str
    path: str

    @property
    def url(self) -> httpcore.URL:
        """The URL for the client; the host is the plain lower-case name that was checked."""
        return httpcore.URL(scheme=self.scheme, host=self.host, port=PORTS[self.scheme], target=self.path)


def check_url(url: str, settings: MediaSettings) -> Target:
    """The target of a URL. Raises MediaError with what is not accepted in it."""
    if len(url) > MAX_URL:
        raise MediaError(f"the URL has {len(url)} characters, the limit is {MAX_URL}")
    parts = URL.fullmatch(url)
    if parts is None:
        raise MediaError("the URL is not a plain http(s) URL")
    scheme, authority = parts["scheme"].lower(), parts["authority"].lower()
    if scheme == "http" and not settings.allow_http:
        raise MediaError("http URLs are not fetched here, only https")
    if "@" in authority:
        raise MediaError("a URL with a user name or password is not fetched")
    host, colon, port = authority.partition(":")
    if colon and port != str(PORTS[scheme]):
        raise MediaError(f"only port {PORTS[scheme]} of {scheme} is fetched from")
    if len(host) > 253 or NAME.fullmatch(host) is None:
        raise MediaError("the host of the URL must be a plain domain name, not an address")
    if not any(_covers(domain, host) for domain in settings.allowed_domains):
        raise MediaError("the domain of the URL is not one that this server fetches from")
    path = parts["target"]
    return Target(scheme, host, path if path.startswith("/") else "/" + path)


def _covers(domain: str, host: str) -> bool:
    return host.endswith(domain[1:]) if domain.startswith("*.") else host == domain


class PublicNetwork(httpcore.AsyncNetworkBackend):
    """TCP to public addresses only. The addresses that were checked are the ones that are connected to."""

    def __init__(self, resolve: Resolve, network: httpcore.AsyncNetworkBackend) -> None:
        self._resolve = resolve
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  as the base class has it
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect by name. Raises ConnectError, also where only one of the name's addresses is not public."""
        addresses = await self._resolve(host, port)
        if not all(map(is_public, addresses)):
            raise httpcore.ConnectError("an address is not public")
        for address in addresses[:ADDRESSES_TRIED]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        raise httpcore.ConnectError("no address answers")

    async def connect_unix_socket(self, *_: object, **__: object) -> NoReturn:
        """No URL leads here. Raises ConnectError."""
        raise httpcore.ConnectError("only TCP")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class SystemResolver:
    """`getaddrinfo` in threads of its own: a name server that does not answer holds up fetches and nothing else."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a name. Raises OSError."""
        loop = asyncio.get_running_loop()
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await loop.run_in_executor(self._threads, look_up)
        return [str(address[0]) for *_, address in found]

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Room:
    """How many bytes all fetches of one request may still bring."""

    def __init__(self, total: int) -> None:
        self._total = self._left = total

    def take(self, count: int) -> None:
        """Take so many bytes of the room. Raises MediaError once there is none."""
        self._left -= count
        if self._left < 0:
            raise MediaError(f"the fetched images of the request have more than {self._total} bytes, the limit")


class FetchFailed(Exception):
    """One URL of several was not fetched; `url` says which, `reason` why."""

    def __init__(self, url: str, reason: MediaError) -> None:
        super().__init__(str(reason))
        self.url = url
        self.reason = reason


class Fetcher:
    """Fetches images under one policy, so many at once and so many of one host. Lives on the event loop.

    `max_bytes` is per image, `max_total` per request.
    """

    def __init__(
        self,
        settings: MediaSettings,
        *,
        max_bytes: int,
        max_total: int,
        resolve: Resolve,
        network: httpcore.AsyncNetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._max_bytes = max_bytes
        self._max_total = max_total
        self._slots = asyncio.Semaphore(settings.fetches)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._client = httpcore.AsyncConnectionPool(
            ssl_context=tls or httpx.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=0,  # a connection is checked when it is made, so none outlives its fetch
            network_backend=PublicNetwork(resolve, network or httpcore.AnyIOBackend()),
        )

    async def fetch_all(self, urls: Iterable[str]) -> Mapping[str, bytes]:
        """What each URL holds, fetched side by side. Raises FetchFailed for the first that fails, and ends the rest."""
        room = Room(self._max_total)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = {url: group.create_task(self._fetch(url, room)) for url in dict.fromkeys(urls)}
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return {url: task.result() for url, task in tasks.items()}

    async def _fetch(self, url: str, room: Room) -> bytes:
        try:
            target = check_url(url, self._settings)
            async with asyncio.timeout(self._settings.seconds), self._slots:
                return await self._follow(target, room)
        except MediaError as error:
            raise FetchFailed(url, error) from None
        except NETWORK_ERRORS as error:
            raise FetchFailed(url, MediaError(NOT_FETCHED)) from error

    async def _follow(self, target: Target, room: Room) -> bytes:
        """The image at the end of the redirects. Raises MediaError, and whatever the network raises."""
        for _ in range(self._settings.redirects + 1):
            found = await self._get(target, room)
            if isinstance(found, bytes):
                return found
            target = found
        raise MediaError(f"the URL redirects more than {self._settings.redirects} times")

    async def _get(self, target: Target, room: Room) -> bytes | Target:
        """One answer: its content, or where it redirects to."""
        host = self._hosts.setdefault(target.host, asyncio.Semaphore(self._settings.fetches_per_host))
        timeouts = {"connect": self._settings.seconds / ADDRESSES_TRIED}
        headers = [*HEADERS, *outgoing.get().items()]
        async with (
            host,
            self._client.stream("GET", target.url, headers=headers, extensions={"timeout": timeouts}) as response,
        ):
            answered = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in REDIRECTS and b"location" in answered:
                return self._redirected(target, answered[b"location"])
            if response.status != 200:
                raise MediaError(NOT_FETCHED)
            if answered.get(b"content-encoding", "identity").lower() != "identity":
                raise MediaError("the image is sent compressed, which it must not be")
            return await self._read(response, room)

    def _redirected(self, target: Target, location: str) -> Target:
        base = f"{target.scheme}://{target.host}{target.path}"
        try:
            return check_url(urljoin(base, location), self._settings)
        except (MediaError, ValueError):
            raise MediaError("the URL redirects to one that is not fetched") from None

    async def _read(self, response: httpcore.Response, room: Room) -> bytes:
        """The content. What it says of its own length is not asked: it is counted as it comes."""
        data = bytearray()
        async for chunk in response.aiter_stream():
            data += chunk
            room.take(len(chunk))
            if len(data) > self._max_bytes:
                raise MediaError(f"the image has more than {self._max_bytes} bytes, the limit")
        return bytes(data)
