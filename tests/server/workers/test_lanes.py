"""Threads of one kind of work each."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from server.workers.lanes import Lane
from tests.waiting import wait_until


async def test_work_is_done_in_order_and_raises_what_it_raises() -> None:
    lane = Lane(1, "test")
    done: list[int] = []
    for number in range(20):
        lane.submit(partial(done.append, number))
    assert await lane.run(lambda: len(done)) == 20
    assert done == [*range(20)]
    with pytest.raises(ZeroDivisionError):
        await lane.run(lambda: 1 // 0)
    lane.close()


async def test_work_whose_caller_has_gone_is_not_begun() -> None:
    lane, gate, begun = Lane(1, "test"), threading.Event(), []
    lane.submit(gate.wait)
    waiting = asyncio.create_task(lane.run(lambda: begun.append("left")))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    gate.set()
    await lane.run(lambda: None)
    assert begun == []
    lane.close()


async def test_a_lane_is_stalled_only_while_work_waits_and_none_is_taken_up() -> None:
    lane, gate = Lane(1, "test"), threading.Event()
    assert lane.stalled == 0
    taken = threading.Event()

    def long_work() -> None:
        taken.set()
        gate.wait()

    lane.submit(long_work)
    await asyncio.to_thread(taken.wait)
    assert (lane.stalled, lane.waiting(None)) == (0, 0), "long work for which nobody waits"
    last = lane.submit(lambda: None)
    before = lane.stalled
    wait_until(lambda: lane.stalled > before, "time to pass")
    assert lane.waiting(None) == 1
    gate.set()
    await asyncio.wrap_future(last)
    assert lane.stalled == 0
    lane.close()
