"""What comes at once is taken up over several turns of the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

from starlette.types import Message, Receive, Scope, Send

from server.http.pace import BEGINNINGS, LARGE_BYTES, Pace, Paced
from tests.server.fakes import as_any


async def test_many_at_once_take_as_many_turns_as_they_need_in_their_order() -> None:
    pace, at, order, turn = Pace(10), Counter[int](), list[int](), 0

    async def one(number: int) -> None:
        await pace.turn(1)
        order.append(number)
        at[turn] += 1

    tasks = [asyncio.create_task(one(number)) for number in range(95)]
    while len(order) < 95:
        turn += 1
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == [*range(95)]
    assert max(at.values()) == 10


async def test_what_is_alone_waits_for_no_turn() -> None:
    pace = Pace(1)
    for _ in range(3):
        await asyncio.sleep(0)  # the turns of those before are over
        await asyncio.sleep(0)
        taking = pace.turn(10**6)
        with suppress(StopIteration):
            taking.send(None)
            raise AssertionError("it waited")


async def test_who_has_gone_takes_no_turn() -> None:
    pace = Pace(1)
    first, gone, last = (asyncio.create_task(pace.turn(1)) for _ in range(3))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(first, last)
    assert gone.cancelled()


async def test_small_messages_do_not_wait_for_large_bodies() -> None:
    sizes = [LARGE_BYTES] * 2 + [10] * (BEGINNINGS - 2)
    taken: list[int] = []

    async def app(_: Scope, receive: Receive, __: Send) -> None:
        taken.append(len((await receive())["body"]))

    paced = Paced(app)

    async def request(size: int) -> None:
        async def receive() -> Message:
            return {"type": "http.request", "body": b" " * size, "more_body": True}

        async def send(_: Message) -> None: ...

        await paced({"type": "http"}, receive, send)

    await asyncio.gather(*map(request, sizes))
    assert taken == [LARGE_BYTES] + [10] * (BEGINNINGS - 2) + [LARGE_BYTES]


async def test_few_requests_begin_in_a_turn() -> None:
    """Those that are answered at once are: metrics take milliseconds."""
    at, turn = Counter[int](), 0

    async def app(_: Scope, __: Receive, ___: Send) -> None:
        at[turn] += 1

    paced, unused = Paced(app), as_any(None)
    tasks = [asyncio.create_task(paced({"type": "http"}, unused, unused)) for _ in range(30)]
    while at.total() < 30:
        turn += 1
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert max(at.values()) == BEGINNINGS
