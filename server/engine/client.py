"""The HTTP process's side of the engine: requests go to its process, and what each step did comes back."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from server.engine import wire
from server.engine.wire import Facts, Kind, Load, Memory, News, Step
from server.request import EngineFailed, Event, Finish, Request

if TYPE_CHECKING:
    from models.inputs import InputBuilder

logger = logging.getLogger(__name__)

MAX_FAILURE_CHARACTERS = 200  # of a failure's own words that are told to anyone who asks whether the server is ready
END_SECONDS = 1.0  # for the system to tell how a process ended that has closed its connection

Deliver = Callable[[Sequence[Event]], None]


class NotReady(Exception):
    """The engine is still loading, has failed, or is shutting down."""


class QueueFull(Exception):
    """Too many live requests; `retry_after` in seconds is the server's guess at when to come back."""

    def __init__(self, live: int, limit: int, retry_after: int) -> None:
        super().__init__(f"{live} requests are running or waiting, the limit is {limit}")
        self.retry_after = retry_after


class Pace:
    """How fast requests end, from the last of them. Only for the event loop's thread."""

    LONGEST = 60  # seconds; after more than that, waiting is no better than trying

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=64)

    def count(self) -> None:
        """A request has ended."""
        self._ends.append(monotonic())

    def seconds_for(self, requests: int) -> int:
        """When so many more will have ended, in whole seconds from 1 to LONGEST; 1 where nothing is known."""
        if not self._ends:
            return 1
        each = (monotonic() - self._ends[0]) / len(self._ends)
        return max(1, min(self.LONGEST, ceil(each * requests)))


class Host(Protocol):
    """Where an `EngineLoop` runs."""

    def connect(self) -> socket.socket:
        """The server's side of its connection; it begins to load, if it has not."""

    def kill(self) -> None:
        """End it now, whatever it does; nothing happens if it has ended."""

    async def ended(self, seconds: float) -> str | None:
        """How it has ended, waiting for that for so long; None if it has not."""


class Inputs(NamedTuple):
    """What prompts and texts are made with: of the model's folder, without its weights."""

    builder: InputBuilder
    tokenizer: Any


class Model(NamedTuple):
    """A loaded model, as the HTTP process knows it."""

    facts: Facts
    inputs: Inputs


@dataclass(frozen=True, slots=True)
class _Live:
    request: Request
    deliver: Deliver


class Runner:
    """Runs requests on the engine of a `host`. Every method but `pack` is for the event loop's thread.

    The model's weights are loaded there, and `inputs` in a thread here, so that the server answers `/health` meanwhile;
    `check` raises where what is loaded cannot be served. Events reach `deliver` callbacks on the event loop, one
    wake-up per step, whatever the number of rows. Every request that is accepted ends in exactly one event with
    `finish`, also where the host fails, dies, or stands still: nothing is heard of a request that has ended here.

    `step_seconds`: where requests live and the engine has told nothing for so long, it is taken for dead and killed.
    """

    STOP_SECONDS = 5.0  # for the step that runs when the server stops

    def __init__(
        self,
        host: Host,
        inputs: Callable[[], Inputs],
        *,
        max_live: int,
        step_seconds: float = 300.0,
        check: Callable[[Facts], object] = lambda _: None,
    ) -> None:
        self._host = host
        self._load_inputs = inputs
        self._check = check
        self._max_live = max_live
        self._step_seconds = step_seconds
        self._connection: socket.socket | None = None  # None before the start, and once nothing more is heard
        self._frames = wire.Frames()
        self._outbox: deque[tuple[bytes, Memory | None]] = deque()
        self._flushing = False  # a call of `_flush` is to come
        self._next = 0  # number of the next request
        self._live: dict[int, _Live] = {}
        self._numbers: dict[str, int] = {}
        self._pace = Pace()
        self._facts: Facts | None = None
        self._inputs: Inputs | None = None
        self._loaded = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._closed = asyncio.Event()
        self._heard = False  # since the watch last looked
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._ending = False  # the host is told to end
        self.model: Model | None = None
        self.load = Load()
        self.failure: BaseException | None = None

    # life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load; must be called on the running event loop."""
        loop = asyncio.get_running_loop()
        self._connection = self._host.connect()
        self._connection.setblocking(False)
        loop.add_reader(self._connection, self._read)
        self._tasks.append(asyncio.create_task(self._watch()))
        threading.Thread(target=self._read_inputs, args=(loop,), name="inputs", daemon=True).start()

    async def loaded(self) -> Model:
        """Wait until the model is there; raises what loading raised."""
        await self._loaded.wait()
        if self.model is None:
            assert self.failure is not None
            raise self.failure
        return self.model

    async def drain(self, seconds: float) -> bool:
        """Take no new request and wait until the live ones have ended; False if some have not after `seconds`."""
        self._stopping = True
        try:
            await asyncio.wait_for(self._quiet.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """End what still lives (each gets its terminal event), then the host; a load in progress is given up."""
        self._stopping = self._ending = True
        for task in self._tasks:
            task.cancel()
        if self.model is not None and self._connection is not None:
            self._post(wire.frame(Kind.STOP))
            try:
                await asyncio.wait_for(self._closed.wait(), self.STOP_SECONDS)
            except TimeoutError:
                logger.warning("a step of the engine did not end within %g seconds; it is killed", self.STOP_SECONDS)
        self._close()
        self._host.kill()
        self._end_all(Finish.ABORT, None)
        await self._host.ended(END_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether a request would be accepted now."""
        return self.model is not None and self.failure is None and not self._stopping

    @property
    def live(self) -> int:
        """Requests accepted and not yet ended."""
        return len(self._live)

    @property
    def retry_after(self) -> int:
        """Seconds until about half of what lives will have ended: a guess at when to come back to a full queue."""
        return self._pace.seconds_for(ceil(len(self._live) / 2))

    @property
    def state(self) -> str:
        """One phrase for `/ready`: ready, loading, stopping, or what failed."""
        if self.failure is not None:
            return "failed: " + " ".join(str(self.failure).split())[:MAX_FAILURE_CHARACTERS]
        if self._stopping:
            return "stopping"
        return "ready" if self.model is not None else "loading the model"

    # requests --------------------------------------------------------------------------------------------------

    def pack(self, requests: Sequence[Request]) -> None:
        """Make requests ready for `submit`, in a worker thread: their tensors are copied to where the engine reads."""
        requests[0].parcel = wire.pack(requests)

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> None:
        """Accept all requests or none. `deliver` gets their events, the last one of each with `finish` set.

        Raises NotReady, QueueFull.
        """
        if not self.ready:
            raise NotReady(self.state)
        if len(self._live) + len(requests) > self._max_live:
            raise QueueFull(len(self._live), self._max_live, self.retry_after)
        parcel, requests[0].parcel = requests[0].parcel or wire.pack(requests), None
        for number, request in enumerate(requests, self._next):
            assert request.id not in self._numbers, f"request id {request.id} is live already"
            self._live[number] = _Live(request, deliver)
            self._numbers[request.id] = number
        self._post(wire.submit(self._next, parcel), parcel.memory)
        self._next += len(requests)
        self._quiet.clear()

    def abort(self, request_id: str) -> None:
        """End a request before the next step; nothing happens if it has already ended."""
        if request_id in self._numbers:
            self._post(wire.frame(Kind.ABORT, request_id.encode()))

    # what is told to the engine --------------------------------------------------------------------------------

    def _post(self, data: bytes, memory: Memory | None = None) -> None:
        """Send with what else is posted before the event loop looks for events again."""
        if self._connection is None:
            return
        self._outbox.append((data, memory))
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        while self._outbox and self._connection is not None:
            batch = [self._outbox.popleft() for _ in range(min(len(self._outbox), wire.MAX_DESCRIPTORS))]
            data = b"".join(data for data, _ in batch)
            descriptors = [memory.descriptor for _, memory in batch if memory is not None]
            try:
                if descriptors:
                    sent = socket.send_fds(self._connection, [data], descriptors)
                else:
                    sent = self._connection.send(data)
            except (BlockingIOError, InterruptedError):
                self._outbox.extendleft(reversed(batch))
                self._flush_when_writable()
            except ConnectionError:
                return  # what there is left to read tells why
            else:
                if sent < len(data):  # the descriptors travel with the first byte
                    self._outbox.appendleft((data[sent:], None))
                    self._flush_when_writable()
            if self._flushing:
                return

    def _flush_when_writable(self) -> None:
        assert self._connection is not None
        self._flushing = True
        asyncio.get_running_loop().add_writer(self._connection, self._flush_on)

    def _flush_on(self) -> None:
        assert self._connection is not None
        asyncio.get_running_loop().remove_writer(self._connection)
        self._flush()

    # what the engine tells -------------------------------------------------------------------------------------

    def _read(self) -> None:
        assert self._connection is not None
        try:
            data = self._connection.recv(wire.READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except ConnectionError:
            data = b""
        if not data:
            self._close()
            if not self._ending:
                self._tasks.append(asyncio.create_task(self._bury()))
            return
        self._heard = True
        for kind, body in self._frames.feed(data):
            self._take(kind, body)

    def _take(self, kind: Kind, body: bytes) -> None:
        match kind:
            case Kind.STEP:
                self._take_step(wire.read_step(body))
            case Kind.LOADED:
                self._facts = wire.read_loaded(body)
                self._set_model()
            case Kind.NOT_LOADED:
                self._fail(_load_failure(*wire.read_not_loaded(body)))
            case Kind.FAILED:
                self._fail(wire.read_failed(body))
            case _:
                raise AssertionError(f"{kind!r} is not for this side")

    def _take_step(self, step: Step) -> None:
        """Hand each request its events; forget it at its end."""
        self.load = step.load
        for number, token in step.tokens:
            if (live := self._live.get(number)) is not None:
                live.request.output_ids.append(token)
                _hand(live, Event(live.request, token))
        for news in step.news:
            if (live := self._live.get(news.number)) is not None:
                self._take_news(live, news)

    def _take_news(self, live: _Live, news: News) -> None:
        request = live.request
        if news.state is not None:
            request.decision, request.shadow, request.timings, request.cached_tokens = news.state
        if news.token is not None:
            request.output_ids.append(news.token)
        if news.finish is not None:
            self._forget(news.number)
        _hand(live, Event(request, news.token, news.logprobs, news.finish, news.error))

    def _forget(self, number: int) -> None:
        del self._numbers[self._live.pop(number).request.id]
        self._pace.count()
        if not self._live:
            self._quiet.set()

    # loading ---------------------------------------------------------------------------------------------------

    def _read_inputs(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: the half of the model that is needed here."""
        try:
            inputs = self._load_inputs()
        except BaseException as error:  # noqa: BLE001  told to those who wait
            report = partial(self._fail, error)
        else:
            report = partial(self._set_inputs, inputs)
        try:
            loop.call_soon_threadsafe(report)
        except RuntimeError:
            logger.debug("the event loop has ended before the tokenizer was read")

    def _set_inputs(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._set_model()

    def _set_model(self) -> None:
        """Ready, once both halves are there."""
        if self._facts is None or self._inputs is None or self.failure is not None:
            return
        try:
            self._check(self._facts)
        except Exception as error:  # noqa: BLE001  told to those who wait
            self._fail(error)
            return
        self.model = Model(self._facts, self._inputs)
        self._loaded.set()

    # ends ------------------------------------------------------------------------------------------------------

    def _fail(self, failure: BaseException) -> None:
        """Nothing more is accepted, and what lives ends, whatever has become of the host."""
        if self.failure is not None:
            return
        self.failure = failure
        self._close()
        self._host.kill()
        self._end_all(Finish.ERROR, failure if isinstance(failure, EngineFailed) else None)
        self._loaded.set()

    def _end_all(self, finish: Finish, error: EngineFailed | None) -> None:
        """End what lives without the engine."""
        for number, live in list(self._live.items()):
            self._forget(number)
            _hand(live, Event(live.request, finish=finish, error=error))

    def _close(self) -> None:
        """Hear and tell nothing more."""
        if self._connection is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._connection)
            loop.remove_writer(self._connection)
            self._connection.close()
            self._connection = None
            self._outbox.clear()
        self.load = Load()
        self._closed.set()

    async def _bury(self) -> None:
        """The host has ended by itself."""
        how = await self._host.ended(END_SECONDS)
        failure = EngineFailed(f"the engine's process {how or 'has closed its connection'}")
        if self.failure is None:
            logger.critical("%s; nothing more is served", failure)
        self._fail(failure)

    async def _watch(self) -> None:
        """Give the engine up once it has been silent for too long.

        Only time in which this loop came to read counts: what was told while something held it up has been heard by
        the next look.
        """
        looks = 0
        while True:
            await asyncio.sleep(self._step_seconds / 4)
            looks = looks + 1 if self._live and not self._heard else 0
            self._heard = False
            if looks > 4:
                failure = EngineFailed(f"a step of the engine did not end within {self._step_seconds:g} seconds")
                logger.critical("%s; nothing more is served", failure)
                self._fail(failure)
                return


def _hand(live: _Live, event: Event) -> None:
    try:
        live.deliver([event])
    except Exception:
        logger.exception("delivering an event of request %s failed", event.request.id)


def _load_failure(kind: str, words: str) -> Exception:
    """What the host's loading raised: of the kinds that explain themselves, or EngineFailed."""
    from models.load import LoadError
    from steering.manifest import BundleError
    from steering.policy import PolicyError

    known: dict[str, type[Exception]] = {each.__name__: each for each in (LoadError, BundleError, PolicyError)}
    return known.get(kind, EngineFailed)(words or kind)
