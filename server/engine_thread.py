"""The engine's thread: it loads the model, runs the steps, and hands events to the event loop once per step."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from server.engine import Engine
from server.request import EngineFailed, Event, Finish, Request

logger = logging.getLogger(__name__)

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


class EngineThread:
    """Owns one `Engine` in a thread of its own. Every method is for the event loop's thread.

    `load` makes the engine inside the thread, so that the server answers `/health` while a model loads. Events reach
    `deliver` callbacks on the event loop, one wake-up per step, whatever the number of rows.
    """

    RETRY_AFTER_SECONDS = 1

    def __init__(self, load: Callable[[], Engine], *, max_live: int) -> None:
        self._load = load
        self._max_live = max_live
        self._inbox: SimpleQueue[_Submit | _Abort | _Stop] = SimpleQueue()
        self._live: dict[str, Deliver] = {}
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loaded = asyncio.Event()
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._stopping = False
        self.engine: Engine | None = None
        self.failure: BaseException | None = None

    # life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load; must be called on the running event loop."""
        self._loop = asyncio.get_running_loop()
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
        if self.engine is not None:
            self._inbox.put(_Stop())
            await asyncio.to_thread(self._thread.join)
            await self._quiet.wait()

    @property
    def ready(self) -> bool:
        """Whether a request would be accepted now."""
        return self.engine is not None and self.failure is None and not self._stopping

    @property
    def live(self) -> int:
        """Requests accepted and not yet ended."""
        return len(self._live)

    # requests --------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> None:
        """Accept all requests or none. `deliver` gets their events, the last one of each with `finish` set.

        Raises NotReady, QueueFull.
        """
        if not self.ready:
            raise NotReady(self.state)
        if len(self._live) + len(requests) > self._max_live:
            raise QueueFull(len(self._live), self._max_live, self.RETRY_AFTER_SECONDS)
        for request in requests:
            assert request.id not in self._live, f"request id {request.id} is live already"
            self._live[request.id] = deliver
            self._inbox.put(_Submit(request))
        self._quiet.clear()

    def abort(self, request_id: str) -> None:
        """End a request before the next step; nothing happens if it has already ended."""
        self._inbox.put(_Abort(request_id))

    @property
    def state(self) -> str:
        """One phrase for `/ready`: ready, loading, stopping, or what failed."""
        if self.failure is not None:
            return f"failed: {self.failure}"
        if self._stopping:
            return "stopping"
        return "ready" if self.engine is not None else "loading the model"

    # the loop's side -------------------------------------------------------------------------------------------

    def _set_loaded(self, engine: Engine | None, failure: BaseException | None) -> None:
        self.engine, self.failure = engine, failure
        self._loaded.set()

    def _set_failure(self, failure: BaseException) -> None:
        self.failure = failure

    def _dispatch(self, events: Sequence[Event]) -> None:
        """Hand each request its events of one step; forget it at its end."""
        for event in events:
            deliver = self._live.get(event.request.id)
            if event.finish is not None:
                self._live.pop(event.request.id, None)
            if deliver is None:
                continue
            try:
                deliver([event])
            except Exception:
                logger.exception("delivering an event of request %s failed", event.request.id)
        if not self._live:
            self._quiet.set()

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
                if events := engine.step():
                    self._post(self._dispatch, events)
        except Exception as error:
            logger.critical("the engine failed", exc_info=True)
            engine.failure = EngineFailed(f"{type(error).__name__}: {error}")
        if engine.failure is not None:
            self._post(self._set_failure, engine.failure)
            self._refuse_everything(engine, engine.failure)

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

    def _refuse_everything(self, engine: Engine, failure: EngineFailed) -> None:
        """After a failure: end all that lives, and what was submitted before the loop heard of it."""
        self._post(self._dispatch, engine.fail_all(failure))
        while True:
            match self._inbox.get():
                case _Submit(request):
                    self._post(self._dispatch, [Event(request, finish=Finish.ERROR, error=failure)])
                case _Abort(_):
                    pass
                case _Stop():
                    return
