"""The engine's thread: it loads the model, runs the steps, and hands events to the event loop once per step."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from queue import SimpleQueue
from time import monotonic

from server.engine import Engine
from server.request import EngineFailed, Event, Finish, Request

logger = logging.getLogger(__name__)

MAX_FAILURE_CHARACTERS = 200  # of a failure's own words that are told to anyone who asks whether the server is ready

Deliver = Callable[[Sequence[Event]], None]


class NotReady(Exception):
    """The engine is still loading, has failed, or is shutting down."""


class QueueFull(Exception):
    """Too many live requests; `retry_after` in seconds is the server's guess at when to come back."""

    def __init__(self, live: int, limit: int, retry_after: int) -> None:
        super().__init__(f"{live} requests are running or waiting, the limit is {limit}")
        self.retry_after = retry_after


@dataclass(frozen=True)
class _Submit:
    request: Request


@dataclass(frozen=True)
class _Abort:
    request_id: str


class _Stop:
    """Leave the thread; what still lives is ended as aborted."""


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


class EngineThread:
    """Owns one `Engine` in a thread of its own. Every method is for the event loop's thread.

    `load` makes the engine inside the thread, so that the server answers `/health` while a model loads. Events reach
    `deliver` callbacks on the event loop, one wake-up per step, whatever the number of rows.

    `step_seconds`: a step that takes longer is taken for one that will never end. Nothing can stop the thread then:
    everything that lives is ended without it.
    """

    STOP_SECONDS = 5.0  # for the step that runs when the server stops

    def __init__(self, load: Callable[[], Engine], *, max_live: int, step_seconds: float = 300.0) -> None:
        self._load = load
        self._max_live = max_live
        self._step_seconds = step_seconds
        self._step_began: float | None = None  # written by the thread, None between steps
        self._inbox: SimpleQueue[_Submit | _Abort | _Stop] = SimpleQueue()
        self._live: dict[str, tuple[Request, Deliver]] = {}
        self._pace = Pace()
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loaded = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._ended = asyncio.Event()  # the thread, or the wait for it
        self._watch: asyncio.Task[None] | None = None
        self._stopping = False
        self.engine: Engine | None = None
        self.failure: BaseException | None = None

    # life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load; must be called on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._watch = asyncio.create_task(self._watch_steps())
        self._thread.start()

    async def loaded(self) -> Engine:
        """Wait until the engine is there; raises what loading raised."""
        await self._loaded.wait()
        if self.engine is None:
            assert self.failure is not None
            raise self.failure
        return self.engine

    async def drain(self, seconds: float) -> bool:
        """Take no new request and wait until the live ones have ended; False if some have not after `seconds`."""
        self._stopping = True
        try:
            await asyncio.wait_for(self._quiet.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """End what still lives (each gets its terminal event), then the thread; a load in progress is left behind."""
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
        if self.engine is None:
            return
        self._inbox.put(_Stop())
        try:
            await asyncio.wait_for(self._ended.wait(), self.STOP_SECONDS)
        except TimeoutError:
            logger.warning("a step of the engine did not end within %g seconds; it is left behind", self.STOP_SECONDS)
            self._end_all(Finish.ABORT, None)

    @property
    def ready(self) -> bool:
        """Whether a request would be accepted now."""
        return self.engine is not None and self.failure is None and not self._stopping

    @property
    def live(self) -> int:
        """Requests accepted and not yet ended."""
        return len(self._live)

    @property
    def retry_after(self) -> int:
        """Seconds until about half of what lives will have ended: a guess at when to come back to a full queue."""
        return self._pace.seconds_for(ceil(len(self._live) / 2))

    # requests --------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> None:
        """Accept all requests or none. `deliver` gets their events, the last one of each with `finish` set.

        Raises NotReady, QueueFull.
        """
        if not self.ready:
            raise NotReady(self.state)
        if len(self._live) + len(requests) > self._max_live:
            raise QueueFull(len(self._live), self._max_live, self.retry_after)
        for request in requests:
            assert request.id not in self._live, f"request id {request.id} is live already"
            self._live[request.id] = request, deliver
            self._inbox.put(_Submit(request))
        self._quiet.clear()

    def abort(self, request_id: str) -> None:
        """End a request before the next step; nothing happens if it has already ended."""
        self._inbox.put(_Abort(request_id))

    @property
    def state(self) -> str:
        """One phrase for `/ready`: ready, loading, stopping, or what failed."""
        if self.failure is not None:
            return "failed: " + " ".join(str(self.failure).split())[:MAX_FAILURE_CHARACTERS]
        if self._stopping:
            return "stopping"
        return "ready" if self.engine is not None else "loading the model"

    # the loop's side -------------------------------------------------------------------------------------------

    def _set_loaded(self, engine: Engine | None, failure: BaseException | None) -> None:
        self.engine, self.failure = engine, failure
        self._loaded.set()

    def _give_up(self, failure: EngineFailed) -> None:
        """Nothing more is accepted, and what lives ends, whatever has become of the thread."""
        self.failure = failure
        self._end_all(Finish.ERROR, failure)

    def _dispatch(self, events: Sequence[Event]) -> None:
        """Hand each request its events of one step; forget it at its end."""
        for event in events:
            known = self._live.get(event.request.id)
            if known is None:
                continue
            if event.finish is not None:
                del self._live[event.request.id]
                self._pace.count()
            try:
                known[1]([event])
            except Exception:
                logger.exception("delivering an event of request %s failed", event.request.id)
        if not self._live:
            self._quiet.set()

    def _end_all(self, finish: Finish, error: EngineFailed | None) -> None:
        """End what lives without the thread; what it may still say of it is not heard."""
        self._dispatch([Event(request, finish=finish, error=error) for request, _ in self._live.values()])
        self._ended.set()

    async def _watch_steps(self) -> None:
        """Give the engine up once a step takes too long."""
        while True:
            await asyncio.sleep(self._step_seconds / 4)
            began = self._step_began
            if began is None or monotonic() - began < self._step_seconds:
                continue
            assert self.engine is not None
            failure = EngineFailed(f"a step of the engine did not end within {self._step_seconds:g} seconds")
            logger.critical("%s; nothing more is served", failure)
            self.engine.failure = failure  # should the step end after all, the thread ends with it
            self._give_up(failure)
            return

    # the thread's side -----------------------------------------------------------------------------------------

    def _post(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            logger.warning("the event loop is gone; %s is dropped", function.__name__)

    def _main(self) -> None:
        try:
            engine = self._load()
        except BaseException as error:  # noqa: BLE001  whatever loading raises is told to those who wait for it
            self._post(self._set_loaded, None, error)
            return
        self._post(self._set_loaded, engine, None)
        try:
            while engine.failure is None and self._take_commands(engine):
                self._step_began = monotonic()
                events = engine.step()
                self._step_began = None
                if events:
                    self._post(self._dispatch, events)
        except Exception as error:
            logger.critical("the engine failed", exc_info=True)
            engine.failure = EngineFailed(f"{type(error).__name__}: {error}")
        self._step_began = None
        if engine.failure is not None:
            self._post(self._give_up, engine.failure)
            self._free_rows(engine, engine.failure)
        self._post(self._ended.set)

    def _take_commands(self, engine: Engine) -> bool:
        """Apply what has arrived, waiting for it while the engine is idle; False once the thread must end."""
        while engine.scheduler.idle or not self._inbox.empty():
            match self._inbox.get():
                case _Submit(request):
                    engine.scheduler.add(request)
                case _Abort(request_id):
                    if (event := engine.abort(request_id)) is not None:
                        self._post(self._dispatch, [event])
                case _Stop():
                    ended = [engine.abort(request.id) for request in engine.scheduler.live()]
                    self._post(self._dispatch, [event for event in ended if event is not None])
                    return False
        return True

    def _free_rows(self, engine: Engine, failure: EngineFailed) -> None:
        """What is left to do for an engine that failed; the requests have been told."""
        try:
            engine.fail_all(failure)
        except Exception:
            logger.exception("the rows of the failed engine could not be freed")
