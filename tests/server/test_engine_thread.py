"""The engine's thread: every accepted request ends in exactly one terminal event, whatever happens."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from server.engine import Engine
from server.engine_thread import EngineThread, NotReady, Pace, QueueFull
from server.request import EngineFailed, Event, Finish, Request
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


# the thread does not answer ----------------------------------------------------------------------------------------


class Hung:
    """A backbone whose decode stands still until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backbone = FakeBackbone()
        self.entered, self.release = threading.Event(), threading.Event()
        decode = self.backbone.decode

        def hang(rows: Any, ids: Any) -> Any:
            self.entered.set()
            self.release.wait()
            return decode(rows, ids)

        monkeypatch.setattr(self.backbone, "decode", hang)

    async def thread(self, step_seconds: float) -> EngineThread:
        thread = EngineThread(
            lambda: Engine(as_any(self.backbone), None, Scheduler(1, 1000)), max_live=9, step_seconds=step_seconds
        )
        thread.start()
        await thread.loaded()
        return thread


async def test_a_step_that_does_not_end_fails_everything_and_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    hung = Hung(monkeypatch)
    thread = await hung.thread(0.2)
    running, waiting = Inbox(), Inbox()
    thread.submit([endless("running")], running)
    thread.submit([endless("waiting")], waiting)
    await asyncio.gather(running.ended.wait(), waiting.ended.wait())
    assert running.finishes == waiting.finishes == [Finish.ERROR]
    assert isinstance(running.events[-1].error, EngineFailed)
    assert (thread.ready, thread.live) == (False, 0)
    assert "did not end within 0.2 seconds" in thread.state
    with pytest.raises(NotReady):
        thread.submit([endless("late")], Inbox())
    hung.release.set()  # the step ends after all: nobody hears of it, its rows are freed, and the thread ends
    await asyncio.to_thread(thread._thread.join)
    assert running.finishes == [Finish.ERROR]
    assert hung.backbone.rows == []
    await thread.stop()


async def test_stopping_does_not_wait_for_a_step_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineThread, "STOP_SECONDS", 0.05)
    hung = Hung(monkeypatch)
    thread = await hung.thread(300)
    inbox = Inbox()
    thread.submit([endless("a")], inbox)
    await asyncio.to_thread(hung.entered.wait)
    await thread.stop()
    assert inbox.finishes == [Finish.ABORT]
    hung.release.set()
    await asyncio.to_thread(thread._thread.join)


async def test_a_device_that_fails_ends_everything_even_where_its_rows_cannot_be_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = FakeBackbone()
    thread = await started(backbone)

    monkeypatch.setattr(backbone, "decode", fail_device)
    monkeypatch.setattr(backbone, "close_row", fail_device)
    inboxes = [Inbox() for _ in range(6)]
    for number, inbox in enumerate(inboxes):
        thread.submit([endless(str(number))], inbox)
    await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes))
    assert all(inbox.finishes == [Finish.ERROR] for inbox in inboxes)
    assert not thread.ready
    await thread.stop()


async def test_a_single_row_that_meets_a_failed_device_fails_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = FakeBackbone()
    thread = await started(backbone)
    monkeypatch.setattr(backbone, "prefill", fail_device)
    inbox = Inbox()
    thread.submit([endless("alone")], inbox)
    await inbox.ended.wait()
    assert isinstance(inbox.events[-1].error, EngineFailed)
    assert not thread.ready
    await thread.stop()


def fail_device(*_: Any) -> Any:
    raise torch.AcceleratorError("device-side assert")


async def test_a_failure_is_told_in_one_line_of_bounded_length() -> None:
    def load() -> Engine:
        raise OSError("no\ncheckpoint " + "x" * 10_000)

    thread = EngineThread(load, max_live=1)
    thread.start()
    await asyncio.gather(thread.loaded(), return_exceptions=True)
    assert thread.state.startswith("failed: no checkpoint xxx")
    assert len(thread.state) < 250
    await thread.stop()


# when to come back -------------------------------------------------------------------------------------------------


def test_a_full_queue_is_come_back_to_when_half_of_it_should_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("server.engine_thread.monotonic", lambda: now[0])
    pace = Pace()
    assert pace.seconds_for(50) == 1
    for _ in range(10):
        pace.count()
        now[0] += 0.5
    assert [pace.seconds_for(count) for count in (0, 1, 2, 20, 10_000)] == [1, 1, 1, 10, 60]
