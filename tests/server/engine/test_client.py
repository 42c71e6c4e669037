"""The engine behind the wire: every accepted request ends in exactly one terminal event, whatever happens."""

import asyncio
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from models.prompt import Prompt
from models.schema import source_of
from server.engine import client
from server.engine.client import EngineClient
from server.engine.live import NotReady, QueueFull
from server.engine.loop import EngineLoop
from server.engine.own import OwnEngine
from server.engine.pace import Pace
from server.engine.protocol import Facts, Load
from server.engine.scheduler import Scheduler
from server.engine.wire import MAX_DESCRIPTORS, pack
from server.request import Ask, EngineFailed, Event, Finish, GrammarFailed, RequestFailed, Schema
from steering.policy import Mode, PolicyError
from steering.shadow import Shadow
from tests.server.fakes import REFUSAL_TOKEN, VOCAB, FakeBackbone, FakeGuard, as_any, ask, next_token, request
from tests.server.in_thread import InThread, engine_client
from tests.server.scripted import byte_tokenizer
from tests.waiting import WAIT_SECONDS, until


class Inbox:
    """Collects one request's events and can be awaited for its end."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    def __call__(self, events: Sequence[Event]) -> None:
        self.events.extend(events)
        self.begun.set()
        if self.events[-1].finish is not None:
            self.ended.set()

    @property
    def finishes(self) -> list[Finish]:
        return [e.finish for e in self.events if e.finish is not None]


async def started(backbone: FakeBackbone, **options: Any) -> EngineClient:
    runner = engine_client(lambda: OwnEngine(as_any(backbone), None, Scheduler(4, 1000)), **options)
    runner.start()
    await runner.loaded()
    return runner


def endless(name: str) -> Ask:
    return ask(name, [1, 2], max_tokens=1_000_000)


async def test_many_requests_each_end_once() -> None:
    backbone = FakeBackbone()
    runner = await started(backbone)
    inboxes = [Inbox() for _ in range(40)]
    for number, inbox in enumerate(inboxes):
        runner.submit(pack([ask(str(number), [number + 1])]), inbox)
    await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes))
    assert all(inbox.finishes == [Finish.LENGTH] for inbox in inboxes)
    assert all(len(inbox.events) == 5 for inbox in inboxes)
    assert (runner.live, backbone.rows) == (0, [])
    await runner.stop()


async def test_abort_while_running_and_while_waiting() -> None:
    backbone = FakeBackbone()
    runner = await started(backbone)
    inboxes = {name: Inbox() for name in "abcdef"}
    for name, inbox in inboxes.items():
        runner.submit(pack([endless(name)]), inbox)
    for name in inboxes:
        runner.abort(name)
        runner.abort(name)
    await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes.values()))
    assert all(inbox.finishes == [Finish.ABORT] for inbox in inboxes.values())
    assert backbone.rows == []
    await runner.stop()


class Standing(FakeBackbone):
    """Stands in its first step until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go = threading.Event(), threading.Event()

    def forward(self, *rows: Any, **options: Any) -> Tensor:
        self.entered.set()
        assert self.go.wait(WAIT_SECONDS)
        return super().forward(*rows, **options)


def shared_buffers() -> int:
    """How many buffers between the HTTP process and the engine this process holds or maps."""
    return sum(
        "memfd:autosteer" in str(each.readlink()) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()
    )


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors")
async def test_nothing_is_kept_of_a_picture_whose_client_left_before_the_engine_took_it() -> None:
    backbone = Standing()
    runner = await started(backbone)
    inboxes = {name: Inbox() for name in ("first", "left")}
    runner.submit(pack([endless("first")]), inboxes["first"])
    await asyncio.to_thread(backbone.entered.wait, WAIT_SECONDS)
    before = shared_buffers()
    runner.submit(pack([ask("left", [1], features={"pixels": torch.rand(1000)})]), inboxes["left"])
    for name in ("left", "first"):
        runner.abort(name)
    commands = as_any(runner._host).loop._inbox
    await until(lambda: commands.qsize() == 3, "all that was told to have come")
    assert shared_buffers() > before
    backbone.go.set()
    await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes.values()))
    await until(lambda: shared_buffers() == before, "the picture to be forgotten")
    await runner.stop()


async def test_stop_ends_what_lives_and_drain_waits_for_it() -> None:
    runner = await started(FakeBackbone())
    short, long = Inbox(), Inbox()
    runner.submit(pack([ask("short", [1])]), short)
    assert await runner.drain(30)
    assert short.finishes == [Finish.LENGTH]
    with pytest.raises(NotReady, match="stopping"):
        runner.submit(pack([endless("late")]), long)

    runner = await started(FakeBackbone())
    runner.submit(pack([endless("long")]), long)
    assert not await runner.drain(0.01)
    await runner.stop()
    assert long.finishes == [Finish.ABORT]


async def test_too_many_live_requests_are_refused() -> None:
    runner = await started(FakeBackbone(), max_live=2)
    inboxes = [Inbox(), Inbox()]
    for number, inbox in enumerate(inboxes):
        runner.submit(pack([endless(str(number))]), inbox)
    with pytest.raises(QueueFull, match="limit is 2"):
        runner.submit(pack([endless("third")]), Inbox())
    await runner.stop()


@pytest.mark.chance
async def test_an_engine_failure_ends_everything_and_readiness() -> None:
    backbone = FakeBackbone()
    runner = await started(backbone)
    inbox = Inbox()
    runner.submit(pack([endless(str(number)) for number in range(6)]), inbox)
    await inbox.begun.wait()  # a pass that fails before, with one request alone, is that request's failure
    backbone.broken = True
    await until(lambda: len(inbox.finishes) == 6, "every request to have ended")
    assert set(inbox.finishes) == {Finish.ERROR}
    with pytest.raises(NotReady, match="failed"):
        runner.submit(pack([endless("late")]), Inbox())
    assert not runner.ready
    await runner.stop()


async def test_a_failed_load_is_told_to_those_who_wait() -> None:
    def load() -> OwnEngine:
        raise OSError("no checkpoint")

    runner = engine_client(load)
    runner.start()
    with pytest.raises((OSError, EngineFailed), match="no checkpoint"):
        await runner.loaded()
    assert not runner.ready
    await runner.stop()


async def test_alive_but_not_ready_while_loading() -> None:
    go = threading.Event()

    def load() -> OwnEngine:
        go.wait()
        return OwnEngine(as_any(FakeBackbone()), None, Scheduler(1, 1000))

    runner = engine_client(load)
    runner.start()
    assert (runner.ready, runner.state) == (False, "loading the model")
    go.set()
    await runner.loaded()
    assert runner.ready
    await runner.stop()


# what crosses ------------------------------------------------------------------------------------------------------


def tokens_of(events: Sequence[Event]) -> list[int]:
    return [event.token for event in events if event.token is not None]


async def test_events_are_those_of_an_engine_that_is_asked_directly() -> None:
    """Seeds, penalties, biases, log-probabilities, decisions and choices come through as they were."""

    def asks() -> list[Ask]:
        sampled = ask("sampled", [3], temperature=1.5, seed=7, logprobs=2)
        shaped = ask("shaped", [4], temperature=0.9, seed=8, repetition_penalty=1.7, logit_bias={9: 2.0})
        flagged = ask("flagged", [45, 1], logprobs=0)
        blocked = ask("blocked", [46], mode=Mode.BLOCK)
        choice = ask("choice", [5], temperature=2.0, seed=9)
        other = ask("other", [5], temperature=2.0, seed=10, leader="choice")
        return [sampled, shaped, flagged, blocked, choice, other, ask("scored", [6], max_tokens=0)]

    def make() -> OwnEngine:
        guard = as_any(Guard())
        return OwnEngine(as_any(Noisy()), guard, Scheduler(9, 1000), Shadow("next", guard, threshold=0.1))

    engine = make()
    direct = engine.prepare(asks())
    for each in direct:
        engine.add(each)
    events: list[Event] = []
    while not engine.idle:
        events += engine.step()

    runner = engine_client(make)
    runner.start()
    await runner.loaded()
    parcel, inbox = runner.pack(asks()), Inbox()
    crossed = parcel.requests
    runner.submit(parcel, inbox)
    assert await runner.drain(30)
    await runner.stop()
    for before, after in zip(direct, crossed, strict=True):
        theirs, ours = ([e for e in each if e.request is r] for each, r in ((events, before), (inbox.events, after)))
        assert [(e.token, e.logprobs, e.finish) for e in ours] == [(e.token, e.logprobs, e.finish) for e in theirs]
        assert (after.decision, after.shadow, after.output_ids) == (before.decision, before.shadow, before.output_ids)
        assert after.timings.arrived <= as_any(after.timings.scheduled) <= as_any(after.timings.prefilled)
        assert as_any(after.timings.prefilled) <= as_any(after.timings.finished)
        assert (after.timings.first_token is None) == (before.timings.first_token is None)
    assert {e.request.id: e.finish for e in inbox.events if e.finish} == {
        "sampled": Finish.LENGTH, "shaped": Finish.LENGTH, "flagged": Finish.CONTENT_FILTER, "scored": Finish.STOP,
        "blocked": Finish.CONTENT_FILTER, "choice": Finish.LENGTH, "other": Finish.LENGTH,
    }  # fmt: skip
    assert len(set(crossed[0].output_ids)) > 2


class Guard(FakeGuard):
    manifest = None
    calibration_scores = (0.5,)


class Noisy(FakeBackbone):
    """Every token may come next."""

    def logits(self, hidden: Tensor) -> Tensor:
        rows = [torch.rand(VOCAB, generator=torch.Generator().manual_seed(int(row))) for row in hidden[:, 0]]
        return torch.stack(rows) * 3 + super().logits(hidden) * (hidden[:, :1] == REFUSAL_TOKEN) * 9


async def test_decision_and_times_are_there_with_the_first_event() -> None:
    seen: list[tuple[bool, ...]] = []
    ended = asyncio.Event()
    parcel = pack([ask("a", [1])])
    (one,) = parcel.requests

    def deliver(events: Sequence[Event]) -> None:
        seen.append((one.decision is not None, one.timings.prefilled is not None, one.timings.finished is not None))
        if events[-1].finish is not None:
            ended.set()

    runner = await started(FakeBackbone())
    runner.submit(parcel, deliver)
    await ended.wait()
    assert seen == [(True, True, False)] * 4 + [(True, True, True)]
    await runner.stop()


class Seeing(FakeBackbone):
    """Keeps the sums of the pictures that it is shown."""

    def __init__(self) -> None:
        super().__init__(max_rows=1000)
        self.sums: list[float] = []

    def open_row(self, prompt: Prompt, max_tokens: int, *more: Any) -> Any:
        self.sums += [float(each.sum()) for each in prompt.features.values()]
        return super().open_row(prompt, max_tokens, *more)


async def test_pictures_reach_the_engine_however_many_come_at_once() -> None:
    backbone = Seeing()
    before = psutil.Process().num_fds()
    runner = await started(backbone, max_live=1000)
    inboxes = [Inbox() for _ in range(5 * MAX_DESCRIPTORS)]
    for number, inbox in enumerate(inboxes):
        pixels = torch.full((10_000,), number / 10_000)
        parcel = runner.pack([ask(str(number), [number % 50], max_tokens=1, features={"pixels": pixels})])
        runner.submit(parcel, inbox)
        assert parcel.requests[0].prompt.features == {}
        if number % 3 == 0:
            runner.submit(pack([ask(f"{number}-text", [1] * 5000, max_tokens=1)]), Inbox())
    del parcel  # it holds its tensors
    await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes))
    assert [round(value) for value in backbone.sums] == [float(number) for number in range(len(inboxes))]
    assert await runner.drain(30)
    await runner.stop()
    assert psutil.Process().num_fds() <= before


async def test_a_prompt_larger_than_the_sockets_buffers() -> None:
    runner = engine_client(lambda: OwnEngine(as_any(FakeBackbone()), None, Scheduler(4, 1_000_000)))
    runner.start()
    await runner.loaded()
    long, short = Inbox(), Inbox()
    ids = [i % 40 for i in range(500_000)]
    runner.submit(pack([ask("long", ids, max_tokens=1)]), long)
    runner.submit(pack([ask("short", [1])]), short)
    await asyncio.gather(long.ended.wait(), short.ended.wait())
    assert tokens_of(long.events) == [next_token(ids)]
    await runner.stop()


async def test_a_request_that_cannot_be_made_of_what_arrives_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = FakeBackbone()
    backbone.tokenizer = as_any(byte_tokenizer())
    runner = await started(backbone)
    bad, odd, good = Inbox(), Inbox(), Inbox()
    constrained = ask("bad", [1], schema=Schema(source_of({"enum": []})))
    broken = [replace(each, params=as_any(None)) for each in (ask("odd", [1]), ask("even", [2]))]
    runner.submit(pack([constrained]), bad)
    runner.submit(pack(broken), odd)
    runner.submit(pack([ask("good", [1])]), good)
    await asyncio.gather(*(inbox.ended.wait() for inbox in (bad, odd, good)))
    assert isinstance(bad.events[0].error, GrammarFailed)
    assert [type(event.error) for event in odd.events] == [RequestFailed] * 2
    assert good.finishes == [Finish.LENGTH]
    assert runner.ready
    await runner.stop()


@pytest.mark.chance
async def test_an_event_loop_that_stands_still_holds_up_no_step_and_misses_nothing() -> None:
    backbone = FakeBackbone()
    runner = await started(backbone, step_seconds=0.1)
    inboxes = [Inbox() for _ in range(4)]
    for number, inbox in enumerate(inboxes):
        runner.submit(pack([ask(str(number), [number + 1], max_tokens=2500)]), inbox)
    as_any(runner._connection)._outbox.flush()
    until = time.monotonic() + 60
    while (backbone.rows or not backbone.prefills) and time.monotonic() < until:
        time.sleep(0.01)  # noqa: ASYNC251  the event loop is what stands still
    assert backbone.rows == []
    await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes))
    assert all(len(inbox.events) == 2500 for inbox in inboxes)
    assert runner.ready
    await runner.stop()


def test_steps_that_did_nothing_are_not_kept_for_a_server_that_does_not_read() -> None:
    engine = OwnEngine(as_any(FakeBackbone()), None, Scheduler(4, 1000))
    engine.add(request("waits", [1]))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        loop = EngineLoop(theirs, lambda _: engine)
        for _ in range(5_000):
            loop._report(engine, [])
        assert 0 < len(loop._unsent) < 100


@pytest.mark.chance
async def test_what_the_engine_has_to_do_is_told_with_every_step() -> None:
    backbone = QuarterFull()
    runner = await started(backbone)
    assert runner.load == Load()
    inbox = Inbox()
    runner.submit(pack([endless(str(number)) for number in range(6)]), inbox)  # together: no step knows only some
    await inbox.begun.wait()
    assert runner.load == Load(4, 2, 0.25)
    for number in range(6):
        runner.abort(str(number))
    assert await runner.drain(30)
    assert runner.load == Load(0, 0, 0.25)
    await runner.stop()


async def test_a_connection_that_breaks_ends_everything(caplog: pytest.LogCaptureFixture) -> None:
    backbone = FakeBackbone()
    host = InThread(lambda: OwnEngine(as_any(backbone), None, Scheduler(4, 1000)))
    runner = EngineClient(host, host.inputs, max_live=9)
    runner.start()
    await runner.loaded()
    inboxes = [Inbox() for _ in range(6)]
    for number, inbox in enumerate(inboxes):
        runner.submit(pack([endless(str(number))]), inbox)
    await inboxes[0].begun.wait()
    host.loop._connection.shutdown(socket.SHUT_RDWR)
    await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes))
    assert all(inbox.finishes == [Finish.ERROR] for inbox in inboxes)
    assert runner.state == "failed: the engine's process has ended"
    await asyncio.to_thread(host.thread.join)
    assert backbone.rows == []
    await runner.stop()


async def test_what_is_loaded_and_cannot_be_served_is_a_failed_load() -> None:
    def check(facts: Facts) -> None:
        assert facts.info.vocab_size == VOCAB
        raise PolicyError("eps needs a guard")

    runner = engine_client(lambda: OwnEngine(as_any(FakeBackbone()), None, Scheduler(4, 1000)), check=check)
    runner.start()
    with pytest.raises(PolicyError, match="eps needs a guard"):
        await runner.loaded()
    assert not runner.ready
    await runner.stop()


# the engine does not answer ----------------------------------------------------------------------------------------


class QuarterFull(FakeBackbone):
    """Says so of its cache."""

    cache_usage = 0.25


class Hung:
    """A backbone whose passes after the first stand still until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backbone = FakeBackbone()
        self.entered, self.release = threading.Event(), threading.Event()
        forward = self.backbone.forward

        def hang(rows: Any, counts: Any, **options: bool) -> Any:
            if any(row.length for row in rows):
                self.entered.set()
                self.release.wait()
            return forward(rows, counts, **options)

        monkeypatch.setattr(self.backbone, "forward", hang)

    async def runner(self, step_seconds: float, engine: type[OwnEngine] = OwnEngine) -> EngineClient:
        self.host = InThread(lambda: engine(as_any(self.backbone), None, Scheduler(1, 1000)))
        runner = EngineClient(self.host, self.host.inputs, max_live=9, step_seconds=step_seconds)
        runner.start()
        await runner.loaded()
        return runner


class Told(OwnEngine):
    """An engine on a library with series of its own: how often they were asked for."""

    asked = 0

    @property
    def facts(self) -> Facts:
        return replace(super().facts, has_series=True)

    def series(self) -> bytes:
        self.asked += 1
        return f"asked {self.asked}".encode()


async def test_the_series_of_an_engines_library_are_told_between_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a step takes long, they are those that were told last; once the engine has failed, there are none."""
    monkeypatch.setattr(client, "SERIES_SECONDS", 0.2)
    hung = Hung(monkeypatch)
    runner = await hung.runner(600.0, Told)
    assert [await runner.series(), await runner.series()] == [b"asked 1", b"asked 2"]
    runner.submit(pack([endless("long")]), Inbox())
    await asyncio.to_thread(hung.entered.wait)
    assert await runner.series() == b"asked 2"
    hung.release.set()
    await runner.stop()
    assert await runner.series() == b""


async def test_many_who_ask_for_series_at_once_are_told_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's thread is stopped once for all of them, also where some asked in vain while a step took long."""
    monkeypatch.setattr(client, "SERIES_SECONDS", 0.05)
    hung = Hung(monkeypatch)
    runner = await hung.runner(600.0, Told)
    runner.submit(pack([endless("long")]), Inbox())
    await asyncio.to_thread(hung.entered.wait)
    assert await asyncio.gather(*[runner.series() for _ in range(9)]) == [b""] * 9
    monkeypatch.setattr(client, "SERIES_SECONDS", WAIT_SECONDS)
    asked = asyncio.gather(*[runner.series() for _ in range(9)])
    await asyncio.sleep(0)
    hung.release.set()
    assert await asked == [b"asked 1"] * 9
    await runner.stop()


async def test_our_own_engine_has_no_series_of_a_library() -> None:
    runner = await started(FakeBackbone())
    assert await runner.series() == b""
    await runner.stop()


async def test_a_step_that_does_not_end_fails_everything_and_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    hung = Hung(monkeypatch)
    runner = await hung.runner(0.2)
    running, waiting = Inbox(), Inbox()
    runner.submit(pack([endless("running")]), running)
    runner.submit(pack([endless("waiting")]), waiting)
    await asyncio.gather(running.ended.wait(), waiting.ended.wait())
    assert running.finishes == waiting.finishes == [Finish.ERROR]
    assert isinstance(running.events[-1].error, EngineFailed)
    assert (runner.ready, runner.live) == (False, 0)
    assert "did not end within 0.2 seconds" in runner.state
    with pytest.raises(NotReady):
        runner.submit(pack([endless("late")]), Inbox())
    hung.release.set()  # the step ends after all: nobody hears of it, its rows are freed, and the thread ends
    await asyncio.to_thread(hung.host.thread.join)
    assert running.finishes == [Finish.ERROR]
    assert hung.backbone.rows == []
    await runner.stop()


async def test_stopping_does_not_wait_for_a_step_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EngineClient, "STOP_SECONDS", 0.05)
    monkeypatch.setattr("server.engine.client.END_SECONDS", 0.05)
    hung = Hung(monkeypatch)
    runner = await hung.runner(300)
    inbox = Inbox()
    runner.submit(pack([endless("a")]), inbox)
    await asyncio.to_thread(hung.entered.wait)
    await runner.stop()
    assert inbox.finishes == [Finish.ABORT]
    hung.release.set()
    await asyncio.to_thread(hung.host.thread.join)


async def test_a_device_that_fails_ends_everything_even_where_its_rows_cannot_be_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = FakeBackbone()
    runner = await started(backbone)

    forward = backbone.forward

    def fail_to_go_on(rows: Any, counts: Any, **options: bool) -> Any:
        return fail_device() if any(row.length for row in rows) else forward(rows, counts, **options)

    monkeypatch.setattr(backbone, "forward", fail_to_go_on)
    monkeypatch.setattr(backbone, "close_row", fail_device)
    inboxes = [Inbox() for _ in range(6)]
    for number, inbox in enumerate(inboxes):
        runner.submit(pack([endless(str(number))]), inbox)
    await asyncio.gather(*(inbox.ended.wait() for inbox in inboxes))
    assert all(inbox.finishes == [Finish.ERROR] for inbox in inboxes)
    assert not runner.ready
    await runner.stop()


async def test_a_single_row_that_meets_a_failed_device_fails_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = FakeBackbone()
    runner = await started(backbone)
    monkeypatch.setattr(backbone, "forward", fail_device)
    inbox = Inbox()
    runner.submit(pack([endless("alone")]), inbox)
    await inbox.ended.wait()
    assert isinstance(inbox.events[-1].error, EngineFailed)
    assert not runner.ready
    await runner.stop()


def fail_device(*_: Any, **__: Any) -> Any:
    raise torch.AcceleratorError("device-side assert")


async def test_a_failure_is_told_in_one_line_of_bounded_length() -> None:
    def load() -> OwnEngine:
        raise OSError("no\ncheckpoint " + "x" * 10_000)

    runner = engine_client(load)
    runner.start()
    await asyncio.gather(runner.loaded(), return_exceptions=True)
    assert runner.state.startswith("failed: no checkpoint xxx")
    assert len(runner.state) < 250
    await runner.stop()


# when to come back -------------------------------------------------------------------------------------------------


def test_a_full_queue_is_come_back_to_when_half_of_it_should_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("server.engine.pace.monotonic", lambda: now[0])
    pace = Pace()
    assert pace.seconds_for(50) == 1
    for _ in range(10):
        pace.count()
        now[0] += 0.5
    assert [pace.seconds_for(count) for count in (0, 1, 2, 20, 10_000)] == [1, 1, 1, 10, 60]
