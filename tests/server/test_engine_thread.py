"""The engine's thread: every accepted request ends in exactly one terminal event, whatever happens."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from server.engine import Engine
from server.engine_thread import EngineThread, NotReady, QueueFull
from server.request import Event, Finish, Request
from server.scheduler import Scheduler
from tests.server.fakes import FakeBackbone, as_any, request


class Inbox:
    """Collects one request's events and can be awaited for its end."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = asyncio.Event()

    def __call__(self, events: Sequence[Event]) -> None:
        self.events.extend(events)
        if self.events[-1].finish is not None:
            self.ended.set()

    @property
    def finishes(self) -> list[Finish]:
        return [e.finish for e in self.events if e.finish is not None]


def thread_of(backbone: FakeBackbone, *, max_live: int = 100) -> EngineThread:
    return EngineThread(lambda: Engine(as_any(backbone), None, Scheduler(4, 1000)), max_live=max_live)


async def started(backbone: FakeBackbone, *, max_live: int = 100) -> EngineThread:
    thread = thread_of(backbone, max_live=max_live)
    thread.start()
    await thread.loaded()
    return thread


def endless(name: str) -> Request:
    return request(name, [1, 2], max_tokens=1_000_000)


async def test_many_requests_each_end_once() -> None:
    backbone = FakeBackbone()
    thread = await started(backbone)
    inboxes = [Inbox() for _ in range(40)]
    for number, inbox in enumerate(inboxes):
        thread.submit([request(str(number), [number + 1])], inbox)
    await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes))
    assert all(inbox.finishes == [Finish.LENGTH] for inbox in inboxes)
    assert all(len(inbox.events) == 5 for inbox in inboxes)
    assert (thread.live, backbone.rows) == (0, [])
    await thread.stop()


async def test_abort_while_running_and_while_waiting() -> None:
    backbone = FakeBackbone()
    thread = await started(backbone)
    inboxes = {name: Inbox() for name in "abcdef"}
    for name, inbox in inboxes.items():
        thread.submit([endless(name)], inbox)
    for name in inboxes:
        thread.abort(name)
        thread.abort(name)
    await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes.values()))
    assert all(inbox.finishes == [Finish.ABORT] for inbox in inboxes.values())
    assert backbone.rows == []
    await thread.stop()


async def test_stop_ends_what_lives_and_drain_waits_for_it() -> None:
    thread = await started(FakeBackbone())
    short, long = Inbox(), Inbox()
    thread.submit([request("short", [1])], short)
    assert await thread.drain(30)
    assert short.finishes == [Finish.LENGTH]
    with pytest.raises(NotReady, match="stopping"):
        thread.submit([endless("late")], long)

    thread = await started(FakeBackbone())
    thread.submit([endless("long")], long)
    assert not await thread.drain(0.01)
    await thread.stop()
    assert long.finishes == [Finish.ABORT]


async def test_too_many_live_requests_are_refused() -> None:
    thread = await started(FakeBackbone(), max_live=2)
    inboxes = [Inbox(), Inbox()]
    for number, inbox in enumerate(inboxes):
        thread.submit([endless(str(number))], inbox)
    with pytest.raises(QueueFull, match="limit is 2"):
        thread.submit([endless("third")], Inbox())
    await thread.stop()


async def test_an_engine_failure_ends_everything_and_readiness() -> None:
    backbone = FakeBackbone()
    thread = await started(backbone)
    inboxes = [Inbox() for _ in range(6)]
    for number, inbox in enumerate(inboxes):
        thread.submit([endless(str(number))], inbox)
    backbone.broken = True
    await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes))
    assert all(inbox.finishes == [Finish.ERROR] for inbox in inboxes)
    with pytest.raises(NotReady, match="failed"):
        thread.submit([endless("late")], Inbox())
    assert not thread.ready
    await thread.stop()


async def test_a_failed_load_is_told_to_those_who_wait() -> None:
    def load() -> Engine:
        raise OSError("no checkpoint")

    thread = EngineThread(load, max_live=1)
    thread.start()
    with pytest.raises(OSError, match="no checkpoint"):
        await thread.loaded()
    assert not thread.ready
    await thread.stop()


async def test_alive_but_not_ready_while_loading() -> None:
    go = threading.Event()

    def load() -> Engine:
        go.wait()
        return Engine(as_any(FakeBackbone()), None, Scheduler(1, 1000))

    thread = EngineThread(load, max_live=1)
    thread.start()
    assert (thread.ready, thread.state) == (False, "loading the model")
    go.set()
    await thread.loaded()
    assert thread.ready
    await thread.stop()
