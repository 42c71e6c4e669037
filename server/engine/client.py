"""The HTTP process's side of the engine: requests go to its process, and what each step did comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from math import ceil

from models.progress import STAGES, Stage
from server.engine import wire
from server.engine.connection import Connection
from server.engine.host import Host, Inputs
from server.engine.launch import load_failure
from server.engine.live import Deliver, LiveRequests, NotReady, QueueFull
from server.engine.loading import load_in_thread
from server.engine.progress import Loading
from server.engine.protocol import Facts, Load
from server.engine.restarts import Restarts
from server.engine.silence import watch
from server.engine.wire import Kind, Parcel
from server.request import Ask, EngineFailed, Finish

logger = logging.getLogger(__name__)

MAX_FAILURE_CHARACTERS = 200  # of a failure's own words that are told to anyone who asks whether the server is ready
SERIES_SECONDS = 1.0  # for the step that runs when they are asked for
END_SECONDS = 1.0  # for the system to tell how a process ended that has closed its connection


class EngineClient:
    """Runs requests on the engine of a `host`. Every method but `pack` is for the event loop's thread.

    The model's weights are loaded there, and `inputs` in a thread here, so that the server answers `/health` meanwhile;
    `check` raises where what is loaded cannot be served. Events reach `deliver` callbacks on the event loop, one
    wake-up per step, whatever the number of rows. Every request that is accepted ends in exactly one event with
    `finish`, also where the host fails, dies, or stands still: nothing is heard of a request that has ended here.

    `step_seconds`: where requests live and the engine has told nothing for so long, it is taken for dead and killed.
    `again`: makes another host where one has failed that served before; without it, or once `restarts` gives up, the
    client is `over`.
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
        again: Callable[[], Host] | None = None,
        restarts: Restarts | None = None,
    ) -> None:
        self._host = host
        self._load_inputs = inputs
        self._check = check
        self._max_live = max_live
        self._step_seconds = step_seconds
        self._connection: Connection | None = None  # None before the start, and once nothing more is heard
        self._live = LiveRequests()
        self._series = b""
        self._measured = asyncio.Event()  # the engine has told all series that it was asked for
        self._measured.set()
        self._facts: Facts | None = None
        self._loading = Loading()
        self._inputs: Inputs | None = None
        self._again = again
        self._restarts = restarts or Restarts()
        self._serving = False  # an engine has loaded, and not failed since
        self._starts_again = False  # one that served has failed, and another is on its way
        self._over = asyncio.Event()
        self._loaded = asyncio.Event()
        self._closed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False
        self._ending = False  # the host is told to end
        self.model: tuple[Facts, Inputs] | None = None
        self.load = Load()
        self.failure: BaseException | None = None

    # life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load; must be called on the running event loop."""
        self._connect()
        stuck = partial(self._lose, f"a step of the engine did not end within {self._step_seconds:g} seconds")
        self._tasks.append(asyncio.create_task(watch(self._step_seconds, self._silent, stuck)))
        load_in_thread(self._load_inputs, self._set_inputs, self._fail)

    def _connect(self) -> None:
        self._closed.clear()
        self._loading = Loading()
        self._connection = Connection(self._host.connect(), self._take, self._ended)

    async def over(self) -> BaseException | None:
        """Wait until an engine that served has failed and none is started again; returns the last failure."""
        await self._over.wait()
        return self.failure

    @property
    def restarts(self) -> int:
        """How often an engine was started again."""
        return self._restarts.count

    async def loaded(self) -> None:
        """Wait until the model is there; raises what loading raised."""
        await self._loaded.wait()
        if self.model is None:
            assert self.failure is not None
            raise self.failure

    async def drain(self, seconds: float) -> bool:
        """Take no new request and wait until the live ones have ended; False if some have not after `seconds`."""
        self._stopping = True
        try:
            await asyncio.wait_for(self._live.quiet.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """End what still lives (each gets its terminal event), then the host; a load in progress is given up."""
        self._stopping = self._ending = True
        for task in self._tasks:
            task.cancel()
        if self._serving and self._connection is not None:
            self._connection.post(wire.frame(Kind.STOP))
            try:
                await asyncio.wait_for(self._closed.wait(), self.STOP_SECONDS)
            except TimeoutError:
                logger.warning("a step of the engine did not end within %g seconds; it is killed", self.STOP_SECONDS)
        self._close()
        self._host.kill()
        self._live.end_all(Finish.ABORT, None)
        await self._host.ended(END_SECONDS)

    @property
    def ready(self) -> bool:
        """Whether a request would be accepted now."""
        return self._serving and not self._stopping

    @property
    def live(self) -> int:
        """Requests accepted and not yet ended."""
        return len(self._live)

    @property
    def retry_after(self) -> int:
        """Seconds until about half of what lives will have ended: a guess at when to come back to a full queue."""
        return self._live.pace.seconds_for(ceil(len(self._live) / 2))

    @property
    def state(self) -> str:
        """One phrase for `/ready`: ready, loading, stopping, or what failed."""
        if self.failure is not None:
            why = " ".join(str(self.failure).split())[:MAX_FAILURE_CHARACTERS]
            return f"{'starting the engine again' if self._starts_again else 'failed'}: {why}"
        if self._stopping:
            return "stopping"
        if self.model is not None:
            return "ready"
        return f"loading the model{self._loading}"

    @property
    def load_shares(self) -> dict[Stage, float]:
        """How much of each stage of loading is done, 0 to 1."""
        return dict.fromkeys(STAGES, 1.0) if self._serving else self._loading.shares

    async def series(self) -> bytes:
        """What the engine's library tells of itself, for `/metrics`; what it told last, where a step takes long."""
        if self.model is not None and self.model[0].has_series and self.ready and self._connection is not None:
            if self._measured.is_set():  # however many ask, the engine is asked once
                self._measured.clear()
                self._connection.post(wire.frame(Kind.MEASURE))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._measured.wait(), SERIES_SECONDS)
        return self._series

    # requests --------------------------------------------------------------------------------------------------

    def pack(self, asks: Sequence[Ask]) -> Parcel:
        """Requests for asks, as `submit` takes them. Copies their tensors to where the engine reads: for threads."""
        return wire.pack(asks)

    def submit(self, parcel: Parcel, deliver: Deliver) -> None:
        """Accept all of a parcel's requests or none. `deliver` gets their events, the last of each with `finish`.

        Raises NotReady, QueueFull.
        """
        if not self.ready or self._connection is None:
            raise NotReady(self.state)
        if len(self._live) + len(parcel.requests) > self._max_live:
            raise QueueFull(len(self._live), self._max_live, self.retry_after)
        self._connection.post(wire.submit(self._live.add(parcel.requests, deliver), parcel), parcel.buffer)

    def abort(self, request_id: str) -> None:
        """End a request before the next step; nothing happens if it has already ended."""
        if request_id in self._live and self._connection is not None:
            self._connection.post(wire.frame(Kind.ABORT, request_id.encode()))

    # what the engine tells -------------------------------------------------------------------------------------

    def _take(self, kind: Kind, body: bytes) -> None:
        match kind:
            case Kind.STEP:
                step = wire.read_step(body)
                self.load = step.load
                self._live.take(step)
            case Kind.MEASURED:
                self._series = body
                self._measured.set()
            case Kind.LOADING:
                self._loading.take(wire.read_loading(body))
            case Kind.LOADED:
                self._facts = wire.read_loaded(body)
                self._set_model()
            case Kind.NOT_LOADED:
                self._fail(load_failure(*wire.read_not_loaded(body)))
            case Kind.FAILED:
                self._fail(wire.read_failed(body))
            case _:
                raise AssertionError(f"{kind!r} is not for this side")

    # loading ---------------------------------------------------------------------------------------------------

    def _set_inputs(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._set_model()

    def _set_model(self) -> None:
        """Ready, once both halves are there."""
        if self._facts is None or self._inputs is None or (self.failure is not None and not self._starts_again):
            return
        try:
            self._check(self._facts)
            if self.model is not None and self._facts != self.model[0]:
                raise EngineFailed("another model or guard was loaded than before; start the server anew")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  told to those who wait
            self._fail(error)
            return
        if self.model is None:
            self.model = self._facts, self._inputs
        else:
            logger.warning("the engine serves again")
        self._serving, self._starts_again, self.failure = True, False, None
        self._restarts.served()
        self._loaded.set()

    # ends ------------------------------------------------------------------------------------------------------

    def _fail(self, failure: BaseException) -> None:
        """Nothing more is accepted, and what lives ends, whatever has become of the host."""
        if self.failure is not None and not self._starts_again:
            return
        self.failure, self._serving, self._starts_again = failure, False, False
        self._close()
        self._host.kill()
        self._live.end_all(Finish.ERROR, failure if isinstance(failure, EngineFailed) else None)
        self._loaded.set()
        if self.model is not None and not self._stopping:
            self._go_on()

    def _go_on(self) -> None:
        """After the failure of an engine that served: another one, or none."""
        wait = None if self._again is None else self._restarts.wait()
        if wait is None:
            logger.critical("the engine is not started again: %s", self.state)
            self._over.set()
            return
        logger.warning("the engine is started again in %g seconds", wait)
        self._starts_again = True
        self._tasks.append(asyncio.create_task(self._start_again(wait)))

    async def _start_again(self, wait: float) -> None:
        assert self._again is not None
        await asyncio.sleep(wait)
        await self._host.ended(END_SECONDS)  # so that its memory is free
        self._facts = None
        try:
            self._host = self._again()
        except OSError as error:
            self._fail(EngineFailed(f"the engine cannot be started: {error.strerror or error}"))
            return
        self._connect()

    def _close(self) -> None:
        """Hear and tell nothing more."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.load = Load()
        self._series = b""
        self._measured.set()
        self._closed.set()

    def _ended(self) -> None:
        self._close()
        if not self._ending:
            self._tasks.append(asyncio.create_task(self._bury()))

    async def _bury(self) -> None:
        """The host has ended by itself."""
        how = await self._host.ended(END_SECONDS)
        self._lose(f"the engine's process {how or 'has closed its connection'}")

    def _lose(self, how: str) -> None:
        """The host has failed without a word of its own."""
        if self.failure is None or self._starts_again:
            logger.critical(how)
        self._fail(EngineFailed(how))

    def _silent(self) -> bool:
        """Whether requests live and nothing was heard since this was last asked."""
        return self._connection is not None and not self._connection.heard() and bool(self._live)
