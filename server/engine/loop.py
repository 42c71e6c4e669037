"""The engine's side of the process boundary: take what was asked, make a step, tell what it did, and again."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

from models.progress import LoadProgress, Tell
from server.engine import buffers, wire
from server.engine.preparing import Preparing
from server.engine.progress import Reporter
from server.engine.protocol import Engine
from server.engine.wire import Kind, State, Update
from server.request import Ask, EngineFailed, Event, Finish, Request, RequestFailed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Submit:
    """Requests that were submitted together, numbered from `first`."""

    first: int
    requests: Sequence[Request]


@dataclass(frozen=True)
class _Refuse:
    """A request that could not be made of what arrived."""

    number: int
    error: RequestFailed


@dataclass(frozen=True)
class _Abort:
    request_id: str


class _Measure:
    """Tell the series of the engine's library."""


class _Stop:
    """Leave the loop; what still lives is ended as aborted."""


_Command = _Submit | _Refuse | _Abort | _Measure | _Stop


class _Gone(Exception):
    """Nobody is at the other end any more."""


class EngineLoop:
    """Runs one engine for whoever is at the other end of a socket.

    A thread of its own receives: requests are unpacked and prepared beside the steps, and those whose schema has to be
    compiled in further threads, so that nothing waits for that. A step never
    waits for the other side to read: what the socket does not take is kept and sent with the next. That is bounded by
    the tokens which the live requests may still have.

    `leave` is called by that thread once the other side has gone, whatever the engine is doing then.
    """

    def __init__(
        self, connection: socket.socket, load: Callable[[Tell], Engine[Any]], leave: Callable[[], object] = lambda: None
    ) -> None:
        self._connection = connection
        self._load = load
        self._leave = leave
        self._inbox: SimpleQueue[_Command] = SimpleQueue()
        self._unsent = bytearray()
        self._new: dict[Request, int] = {}  # numbers of the requests of which nothing has been told yet
        self._begun: dict[Request, int] = {}  # of those whose decision has been told
        self._preparing = Preparing()
        self._engine: Engine[Any] | None = None  # None until it is loaded

    def run(self) -> None:
        """Load, then serve until it is told to stop, the engine fails, or the other side has gone."""
        receiver = threading.Thread(target=self._receive, name="commands", daemon=True)
        receiver.start()
        try:
            self._serve()
        except _Gone:
            logger.debug("the server has gone")
        finally:
            try:
                self._connection.shutdown(socket.SHUT_RDWR)  # so that the receiver ends
            except OSError:
                logger.debug("the connection to the server has ended before")
            receiver.join()
            self._preparing.close()
            self._connection.close()

    def _serve(self) -> None:
        try:
            self._engine = engine = self._load(Reporter(self._tell_progress))
        except BaseException as error:  # noqa: BLE001  whatever loading raises is told to those who wait for it
            self._send(wire.not_loaded(error), wait=True)
            return
        failure: EngineFailed | None = None
        try:
            self._send(wire.loaded(engine.facts), wait=True)
            while engine.failure is None and self._take_commands(engine):
                self._report(engine, engine.step())
        except _Gone:
            self._free_rows(engine, EngineFailed("the server has gone"))
            raise
        except Exception as error:
            logger.critical("the engine failed", exc_info=True)
            failure = EngineFailed(f"{type(error).__name__}: {error}")
        if (failure := failure or engine.failure) is not None:
            try:
                self._send(wire.failed(failure), wait=True)
            finally:
                self._free_rows(engine, failure)

    def _take_commands(self, engine: Engine[Any]) -> bool:
        """Apply what has arrived, waiting for it while the engine is idle; False once the loop must end."""
        # What a command names ends with its call: the wait for the next one would keep a request, and its pictures.
        while engine.idle or not self._inbox.empty():
            if not self._apply(engine, self._inbox.get()):
                return False
        return True

    def _apply(self, engine: Engine[Any], command: _Command) -> bool:
        match command:
            case _Submit(first, requests):
                for number, request in enumerate(requests, first):
                    self._new[request] = number
                    engine.add(request)
            case _Refuse(number, error):
                self._tell(engine, [], [Update(number, finish=Finish.ERROR, error=error)])
            case _Abort(request_id):
                if (event := engine.abort(request_id)) is not None:
                    self._report(engine, [event])
            case _Measure():
                self._send(wire.frame(Kind.MEASURED, engine.series()), wait=engine.idle)
            case _Stop():
                ended = [engine.abort(request.id) for request in (*self._begun, *self._new)]
                self._report(engine, [event for event in ended if event is not None])
                return False
        return True

    def _free_rows(self, engine: Engine[Any], failure: EngineFailed) -> None:
        """What is left to do for an engine that nobody hears any more."""
        try:
            engine.fail_all(failure)
        except Exception:
            logger.exception("the rows of the engine could not be freed")

    # what is told ----------------------------------------------------------------------------------------------

    def _tell_progress(self, progress: LoadProgress) -> None:
        """While it loads, when nothing else is told."""
        self._send(wire.loading(progress), wait=True)

    def _report(self, engine: Engine[Any], events: Sequence[Event]) -> None:
        """Tell what a step did; also that it did nothing, which shows that the engine lives."""
        tokens: list[int] = []
        updates: list[Update] = []
        begun = self._begun
        for event in events:
            number = begun.get(event.request)
            if (
                number is None
                or event.token is None
                or event.finish is not None
                or event.logprobs is not None
                or event.request.ask.scores
            ):
                updates.append(self._update(event))
            else:
                tokens += (number, event.token)
        self._tell(engine, tokens, updates)

    def _update(self, event: Event) -> Update:
        request, state = event.request, None
        if (number := self._new.pop(request, None)) is not None:
            self._begun[request] = number
            state = _state(request)
        number = self._begun[request]
        if event.token is None:
            state = _state(request)
        if event.finish is not None:
            del self._begun[request]
            state = _state(request)
        scores, request.answer_scores = request.answer_scores, []
        return Update(number, event.token, event.logprobs, event.finish, event.error, state, scores)

    def _tell(self, engine: Engine[Any], tokens: Sequence[int], updates: Sequence[Update]) -> None:
        # Steps that did nothing are not kept for a server that does not read.
        new = tokens or updates or not self._unsent
        self._send(wire.step(engine.load, tokens, updates) if new else b"", wait=engine.idle)

    def _send(self, data: bytes, *, wait: bool) -> None:
        """`wait` where there is nothing to compute meanwhile. Raises _Gone."""
        self._unsent += data
        try:
            if wait:
                self._connection.sendall(self._unsent)
                self._unsent.clear()
            else:
                del self._unsent[: self._connection.send(self._unsent, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError) as error:
            raise _Gone from error

    # what is asked, in the receiving thread --------------------------------------------------------------------

    def _receive(self) -> None:
        frames = wire.Frames()
        descriptors: deque[int] = deque()
        try:
            while True:
                data, received, _, _ = socket.recv_fds(self._connection, wire.READ_BYTES, wire.MAX_DESCRIPTORS)
                descriptors.extend(received)
                if not data:
                    break
                for kind, body in frames.feed(data):
                    self._take(kind, body, descriptors)
        except ConnectionResetError:
            logger.debug("the server has gone")
        except Exception:
            logger.exception("what the server asks cannot be read")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            self._inbox.put(_Stop())
            self._leave()

    def _take(self, kind: Kind, body: bytes, descriptors: deque[int]) -> None:
        match kind:
            case Kind.SUBMIT:
                self._unpack(body, descriptors)
            case Kind.ABORT:
                request_id = body.decode()
                self._preparing.after(request_id, partial(self._inbox.put, _Abort(request_id)))
            case Kind.MEASURE:
                self._inbox.put(_Measure())
            case Kind.STOP:
                self._inbox.put(_Stop())
            case _:
                raise AssertionError(f"{kind!r} is not for the engine")

    def _unpack(self, body: bytes, descriptors: deque[int]) -> None:
        submission = wire.read_submit(body)
        numbers = range(submission.first, submission.first + submission.count)
        try:
            tensors: list[memoryview] = []
            if submission.lengths:
                descriptor = descriptors.popleft()
                try:
                    tensors = buffers.mapped(descriptor, submission.lengths)
                finally:
                    os.close(descriptor)
            assert self._engine is not None, "nothing is submitted before the model is loaded"
            asks = wire.unpack(submission.data, tensors)
            effort = self._engine.effort(asks)
        except Exception as error:
            logger.exception("requests could not be unpacked")
            self._refuse(numbers, RequestFailed(f"{type(error).__name__}: {error}"))
        else:
            work = partial(self._prepare, self._engine, asks, numbers)
            self._preparing.run(effort, [ask.id for ask in asks], work)

    def _prepare(self, engine: Engine[Any], asks: Sequence[Ask], numbers: range) -> None:
        """In the receiving thread, or in one that prepares."""
        try:
            requests = engine.prepare(asks)
        except RequestFailed as error:
            self._refuse(numbers, error)
        except Exception as error:
            logger.exception("requests could not be prepared")
            self._refuse(numbers, RequestFailed(f"{type(error).__name__}: {error}"))
        else:
            self._inbox.put(_Submit(numbers.start, requests))

    def _refuse(self, numbers: Sequence[int], error: RequestFailed) -> None:
        for number in numbers:
            self._inbox.put(_Refuse(number, error))


def _state(request: Request) -> State:
    return State(
        request.decision,
        request.shadow,
        request.answer,
        request.timings,
        request.cached_tokens,
        request.token_scores,
        request.shadow_answer,
        request.prompt_logprobs,
    )
