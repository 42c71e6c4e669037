"""uvicorn around the application: ready only when the model is, drained on SIGTERM and SIGINT, exit code 0 after.

SIGHUP reads the settings again.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol, cast

import uvicorn
from starlette.types import ASGIApp

from server.http.connections import Connections, most_connections
from server.http.pace import LARGE_BYTES, Pace
from server.http.protocol import BoundedHttpProtocol
from server.settings.schema import Settings
from server.watch.logs import LIFE

logger = logging.getLogger(__name__)

BACKLOG = 2048  # connections that wait to be accepted
KEEP_ALIVE_SECONDS = 75  # longer than the idle timeout of common gateways, so that they close first
CLOSE_SECONDS = 5  # for streams to send their last event once the engine has ended them


class Loads(Protocol):
    """What is needed of an `EngineClient`."""

    @property
    def live(self) -> int:
        """Requests that have not ended."""

    async def loaded(self) -> object:
        """Wait for the model; raises what loading raised."""

    async def over(self) -> BaseException | None:
        """Wait for a failure that nothing is done about here; returns it."""

    async def drain(self, seconds: float) -> bool:
        """Take nothing new and wait for the rest."""

    async def stop(self) -> None:
        """End what still lives."""


class HttpServer(uvicorn.Server):
    """Serves on sockets that listen already.

    `prepare`: what may take long, while the engine loads. `announce` is called once requests are accepted and answered.
    """

    def __init__(
        self,
        app: ASGIApp,
        engine: Loads,
        settings: Settings,
        *,
        prepare: Callable[[], Awaitable[object]],
        announce: Callable[[], None],
        reload: Callable[[], Awaitable[None]],
    ) -> None:
        connections = Connections(most_connections(settings.max_connections))
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(
                    "type[asyncio.Protocol]",
                    partial(BoundedHttpProtocol, open_connections=connections, unread=Pace(LARGE_BYTES)),
                ),
                # The event loop accepts so many at once; what it must close for them is closed one or two turns later.
                backlog=max(1, min(BACKLOG, connections.limit // 4)),
                ws="none",
                lifespan="on",
                log_config=None,  # its lines go the way of all others
                log_level="warning",
                access_log=False,  # it would tell paths and queries as they were sent
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=CLOSE_SECONDS,
            )
        )
        self.start_failure: BaseException | None = None
        self.engine_failure: BaseException | None = None
        self._engine = engine
        self._drain_seconds = settings.drain_seconds
        self._prepare = prepare
        self._announce = announce
        self._reload = reload
        self._hangups = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen at once, so that `/health` answers; announce later."""
        await super().startup(sockets)
        steps = (self._announce_when_loaded(), self._reload_on_hangup(), self._end_with_the_engine())
        self._tasks = [asyncio.create_task(step) for step in steps]

    async def _announce_when_loaded(self) -> None:
        try:
            await self._prepare()
            await self._engine.loaded()
            self._announce()
        except Exception as error:  # noqa: BLE001  told to whoever started the server
            self.start_failure = error
            self.should_exit = True

    async def _end_with_the_engine(self) -> None:
        self.engine_failure = await self._engine.over()
        self.should_exit = True

    async def _reload_on_hangup(self) -> None:
        """One reload after another, however fast the signals come; none before the model is loaded."""
        await asyncio.wait(self._tasks[:1])
        while True:
            await self._hangups.wait()
            self._hangups.clear()
            try:
                await self._reload()
            except Exception:
                logger.exception("the settings could not be read again")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let running requests finish for a while, end the rest with an error, then close.

        Until then it goes on listening: `/ready` and new requests are answered with 503.
        """
        for task in self._tasks:
            task.cancel()
        LIFE.info("shutting down: %d requests may go on for %g s", self._engine.live, self._drain_seconds)
        await self._drain()
        LIFE.info("%d requests are left, and end now", self._engine.live)
        await self._engine.stop()
        await super().shutdown(sockets)
        LIFE.info("the server has ended")

    async def _drain(self) -> None:
        drain = asyncio.ensure_future(self._engine.drain(self._drain_seconds))
        while not drain.done() and not self.force_exit:  # a second SIGINT forces the exit
            await asyncio.wait((drain,), timeout=0.1)
        drain.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals, and do not raise them again afterwards: a drained server has ended well."""
        loop = asyncio.get_running_loop()
        try:
            before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
            loop.add_signal_handler(signal.SIGHUP, self._hangups.set)
        except (ValueError, RuntimeError):  # not the main thread, as in tests
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            for sig, handler in before.items():
                signal.signal(sig, handler)
