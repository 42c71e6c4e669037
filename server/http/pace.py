"""What clients send is taken up a little at a time: no turn of the event loop is long, however many send at once.

Hundreds of requests that begin, or end, in the same moment take .2 ms each, and as many large bodies whose parts are
there .4 ms each: between two turns, streams get their tokens.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

SMALL_BYTES = 2**14  # a message of more is a part of a large body
BEGINNINGS = 4  # requests that begin in a turn: some are answered at once, and metrics take milliseconds
MESSAGES = 16  # small ones, in a turn
LARGE_BYTES = 2**18  # of large bodies in a turn: one read of a socket


class Pace:
    """Lets so much through in one turn of the event loop, and the rest in the turns after it, in order of arrival."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._counting = False  # what is taken in this turn, until the next begins
        self._waiting: deque[tuple[Callable[[], bool], int]] = deque()

    def take(self, amount: int) -> bool:
        """Take so much of this turn, if it has room and nobody waits; none is too much for an empty one."""
        self._count()
        if self._taken >= self._most or self._waiting:
            return False
        self._taken += amount
        return True

    def later(self, amount: int, call: Callable[[], bool]) -> None:
        """Call in the turn that has room for so much; False says that nothing was taken."""
        self._count()
        self._waiting.append((call, amount))

    async def turn(self, amount: int) -> None:
        """Wait for the turn that has room for so much."""
        if not self.take(amount):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.later(amount, partial(_woken, waiter))
            await waiter

    def _count(self) -> None:
        if not self._counting:
            self._counting = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._taken = 0
        while self._waiting and self._taken < self._most:
            call, amount = self._waiting.popleft()
            if call():
                self._taken += amount
        self._counting = False
        if self._taken:
            self._count()


def _woken(waiter: asyncio.Future[None]) -> bool:
    """Whether it still waited, and was not cancelled."""
    if waiter.done():
        return False
    waiter.set_result(None)
    return True


class Paced:
    """Begins requests, and takes what comes for them, at the pace of one server. Large bodies hold up no small message.

    Plain ASGI. The sockets of bodies are not read on while what came of them waits here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._begin = Pace(BEGINNINGS)
        self._small = Pace(MESSAGES)
        self._large = Pace(LARGE_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def receive_in_turn() -> Message:
            message = await receive()
            size = len(message.get("body", b""))
            await (self._large.turn(size) if size > SMALL_BYTES else self._small.turn(1))
            return message

        await self._begin.turn(1)
        await self._app(scope, receive_in_turn, send)
