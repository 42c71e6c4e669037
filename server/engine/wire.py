"""What passes between the HTTP process and the engine's: frames on a pair of sockets, and tensors in shared memory.

A frame is a kind, a length, and so many bytes. Numbers stand for requests, so that a step's tokens are pairs of
integers; what is rare (a request, its decision, its log-probabilities, its end) is pickled. Both sides are this code
on this machine, so that neither byte order nor versions matter, and each trusts the other.
"""

from __future__ import annotations

import pickle
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from models.progress import LoadProgress
from server.engine.buffers import SharedBuffer, pickled
from server.engine.protocol import Facts, Load
from server.request import Ask, EngineError, EngineFailed, Finish, Request, Timings

if TYPE_CHECKING:
    from models.sampling import Logprobs
    from steering.policy import AnswerDecision, Decision, ShadowDecision
    from steering.token_scores import TokenScores

READ_BYTES = 65_536
MAX_DESCRIPTORS = 64  # that travel with one piece of data; the system has a limit
_HEADER = struct.Struct("<BxxxI")
_SUBMIT = struct.Struct("<qII")  # number of the first request, how many there are, how many buffers
_STEP = struct.Struct("<IIfI")  # running, waiting, cache usage, how many tokens


class Kind(IntEnum):
    """What a frame says."""

    # to the engine
    SUBMIT = 1
    ABORT = 2
    STOP = 3
    MEASURE = 9
    # from the engine
    LOADED = 4
    NOT_LOADED = 5
    STEP = 6
    FAILED = 7
    LOADING = 8
    MEASURED = 10


def frame(kind: Kind, *parts: bytes) -> bytes:
    """Encode a frame of any kind."""
    return b"".join((_HEADER.pack(kind, sum(map(len, parts))), *parts))


class Frames:
    """Cuts what arrives into frames."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[tuple[Kind, bytes]]:
        """The frames that this completes."""
        self._data += data
        found: list[tuple[Kind, bytes]] = []
        begin = 0
        while (body := begin + _HEADER.size) <= len(self._data):
            kind, length = _HEADER.unpack_from(self._data, begin)
            if (end := body + length) > len(self._data):
                break
            found.append((Kind(kind), bytes(self._data[body:end])))
            begin = end
        del self._data[:begin]
        return found


# what is loaded ----------------------------------------------------------------------------------------------------


def loading(progress: LoadProgress) -> bytes:
    """Encode LOADING."""
    return frame(Kind.LOADING, pickle.dumps(progress))


def read_loading(body: bytes) -> LoadProgress:
    """Decode LOADING."""
    progress: LoadProgress = pickle.loads(body)  # noqa: S301  of our own process
    return progress


def loaded(facts: Facts) -> bytes:
    """Encode LOADED."""
    return frame(Kind.LOADED, pickle.dumps(facts))


def read_loaded(body: bytes) -> Facts:
    """Decode LOADED."""
    facts: Facts = pickle.loads(body)  # noqa: S301  of our own process
    return facts


def not_loaded(error: BaseException) -> bytes:
    """Encode NOT_LOADED: the error's kind and words alone, as it may be of a library that is not imported there."""
    return frame(Kind.NOT_LOADED, pickle.dumps((type(error).__name__, str(error))))


def read_not_loaded(body: bytes) -> tuple[str, str]:
    """Decode NOT_LOADED: the kind of error, and its words."""
    kind, words = pickle.loads(body)  # noqa: S301  of our own process
    return kind, words


# requests ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parcel:
    """Requests that are submitted together, with the bytes that are sent of them."""

    requests: Sequence[Request]
    data: bytes = b""
    lengths: Sequence[int] = ()  # of the tensors in `buffer`
    buffer: SharedBuffer | None = None


def pack(asks: Sequence[Ask]) -> Parcel:
    """Requests for asks, ready to be sent: without their images' tensors, which only the engine has a use for.

    Copies the tensors: for worker threads.
    """
    buffers: list[memoryview] = []
    data = pickled(list(asks), lambda buffer: buffers.append(buffer.raw()))
    light = {id(ask.prompt): replace(ask.prompt, features={}) for ask in asks}
    requests = [Request(replace(ask, prompt=light[id(ask.prompt)])) for ask in asks]
    return Parcel(requests, data, [len(buffer) for buffer in buffers], SharedBuffer(buffers) if buffers else None)


def submit(first: int, parcel: Parcel) -> bytes:
    """Encode SUBMIT: a parcel whose requests are numbered from `first`; its buffer travels beside it."""
    header = _SUBMIT.pack(first, len(parcel.requests), len(parcel.lengths))
    return frame(Kind.SUBMIT, header, array("q", parcel.lengths).tobytes(), parcel.data)


@dataclass(frozen=True)
class Submission:
    """A parcel that has arrived: asks numbered from `first`, `lengths` of their tensors in bytes, and `data`."""

    first: int
    count: int
    lengths: Sequence[int]
    data: bytes


def read_submit(body: bytes) -> Submission:
    """Decode SUBMIT."""
    first, count, buffers = _SUBMIT.unpack_from(body)
    begin = _SUBMIT.size
    end = begin + 8 * buffers
    return Submission(first, count, array("q", body[begin:end]), body[end:])


def unpack(data: bytes, buffers: Sequence[memoryview]) -> list[Ask]:
    """The asks of a parcel's data, as they were packed, with tensors over the `buffers`."""
    asks: list[Ask] = pickle.loads(data, buffers=buffers)  # noqa: S301  of our own process
    return asks


# steps -------------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """What has become of a request, but for its tokens."""

    decision: Decision | None
    shadow: ShadowDecision | None
    answer: AnswerDecision | None
    timings: Timings
    cached_tokens: int | None
    token_scores: TokenScores | None = None
    shadow_answer: AnswerDecision | None = None
    prompt_logprobs: Sequence[Logprobs] | None = None


class Update(NamedTuple):
    """What a step did to one request, where that is more than a token.

    `state` with its first event, its last, and one without a token.
    """

    number: int
    token: int | None = None
    logprobs: Logprobs | None = None
    finish: Finish | None = None
    error: EngineError | None = None
    state: State | None = None
    scores: Sequence[float] = ()  # of tokens of its answer that were read since its last event


class Step(NamedTuple):
    """What one step did: pairs of a request's number and its token, and what is more than that."""

    load: Load
    tokens: Iterable[tuple[int, int]]
    updates: Sequence[Update]


def step(load: Load, tokens: Sequence[int], updates: Sequence[Update]) -> bytes:
    """Encode STEP; `tokens` holds a request's number, its token, the next one's number, and so on."""
    rest = pickle.dumps([tuple(each) for each in updates]) if updates else b""
    return frame(Kind.STEP, _STEP.pack(*load, len(tokens) // 2), array("q", tokens).tobytes(), rest)


def read_step(body: bytes) -> Step:
    """Decode STEP."""
    running, waiting, usage, count = _STEP.unpack_from(body)
    end = _STEP.size + 16 * count
    numbers = array("q", body[_STEP.size : end])
    rest = pickle.loads(body[end:]) if end < len(body) else ()  # noqa: S301  of our own process
    tokens = zip(numbers[::2], numbers[1::2], strict=True)
    return Step(Load(running, waiting, usage), tokens, [Update(*each) for each in rest])


def failed(failure: EngineFailed) -> bytes:
    """Encode FAILED: why the engine cannot go on."""
    return frame(Kind.FAILED, str(failure).encode(errors="backslashreplace"))


def read_failed(body: bytes) -> EngineFailed:
    """Decode FAILED."""
    return EngineFailed(body.decode())
