"""What passes between the HTTP process and the engine's: frames on a pair of sockets, and tensors in shared memory.

A frame is a kind, a length, and so many bytes. Numbers stand for requests, so that a step's tokens are pairs of
integers; what is rare (a request, its decision, its log-probabilities, its end) is pickled. Both sides are this code
on this machine, so that neither byte order nor versions matter, and each trusts the other.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import struct
import tempfile
from array import array
from collections.abc import Callable, Iterable, Sequence
from copyreg import dispatch_table
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from models.sampling import Grammar, Logprobs, RowSampler
from server.request import EngineError, EngineFailed, Finish, Request, Timings
from steering.policy import Decision, ShadowDecision

if TYPE_CHECKING:
    from models.backbone import BackboneInfo
    from server.engine.engine import Engine
    from steering.policy import Calibrated

READ_BYTES = 65_536
MAX_DESCRIPTORS = 64  # that travel with one piece of data; the system has a limit
_HEADER = struct.Struct("<BxxxI")
_SUBMIT = struct.Struct("<qII")  # number of the first request, how many there are, how many buffers
_STEP = struct.Struct("<IIfI")  # running, waiting, cache usage, how many tokens
_ALIGNMENT = 64  # bytes, of a tensor in shared memory


class Kind(IntEnum):
    """What a frame says."""

    # to the engine
    SUBMIT = 1
    ABORT = 2
    STOP = 3
    # from the engine
    LOADED = 4
    NOT_LOADED = 5
    STEP = 6
    FAILED = 7


def frame(kind: Kind, *parts: bytes) -> bytes:
    """One frame."""
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


@dataclass(frozen=True)
class Facts:
    """What the engine's process tells of the model and the guard that it has loaded."""

    info: BackboneInfo
    guard: Calibrated | None
    layer: int | None  # the guarded one
    calibration: Sequence[float]  # scores of harmless prompts that the guard was calibrated on; none if it keeps none

    @classmethod
    def of(cls, engine: Engine) -> Facts:
        """Those of an engine."""
        guard = engine.guard
        if guard is None:
            return cls(engine.backbone.info, None, None, ())
        return cls(engine.backbone.info, guard.manifest, guard.layer, guard.calibration_scores)


def loaded(facts: Facts) -> bytes:
    """The frame that says so."""
    return frame(Kind.LOADED, pickle.dumps(facts))


def read_loaded(body: bytes) -> Facts:
    """The facts of such a frame."""
    facts: Facts = pickle.loads(body)  # noqa: S301  of our own process
    return facts


def not_loaded(error: BaseException) -> bytes:
    """The frame that says why. Only the error's kind and words: it may be of a library that is not imported there."""
    return frame(Kind.NOT_LOADED, pickle.dumps((type(error).__name__, str(error))))


def read_not_loaded(body: bytes) -> tuple[str, str]:
    """The kind of error, and its words."""
    kind, words = pickle.loads(body)  # noqa: S301  of our own process
    return kind, words


# requests ----------------------------------------------------------------------------------------------------------


class Memory:
    """Bytes in memory that another process can map. They live as long as somebody holds or maps them."""

    def __init__(self, buffers: Iterable[memoryview]) -> None:
        if hasattr(os, "memfd_create"):
            self.descriptor = os.memfd_create("autosteer")
        else:
            with tempfile.TemporaryFile(buffering=0) as file:
                self.descriptor = os.dup(file.fileno())
        place = 0
        for buffer in buffers:
            self._write(buffer, place)
            place = _aligned(place + len(buffer))

    def _write(self, data: memoryview, place: int) -> None:
        while data:
            written = os.pwrite(self.descriptor, data, place)  # without the interpreter's lock
            data, place = data[written:], place + written

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def mapped(descriptor: int, lengths: Sequence[int]) -> list[memoryview]:
    """What another process's `Memory` holds, without a copy. The descriptor is no longer needed then."""
    places = [0]
    for length in lengths:
        places.append(_aligned(places[-1] + length))
    view = memoryview(mmap.mmap(descriptor, places[-2] + lengths[-1]))
    return [view[place : place + length] for place, length in zip(places, lengths, strict=False)]


def _aligned(place: int) -> int:
    return -(-place // _ALIGNMENT) * _ALIGNMENT


@dataclass(frozen=True)
class Parcel:
    """Requests that are submitted together, ready to be sent."""

    count: int
    data: bytes
    lengths: Sequence[int]  # of the tensors in `memory`
    memory: Memory | None


def pack(requests: Sequence[Request]) -> Parcel:
    """Blocks, for worker threads. The requests lose their prompts' tensors: only the engine has a use for them."""
    places = {request: place for place, request in enumerate(requests)}
    rows = [
        (
            request.id,
            request.prompt,
            request.sampler.params,
            request.schema,
            request.max_tokens,
            request.policy,
            None if request.leader is None else places[request.leader],
            request.timings.arrived,
        )
        for request in requests
    ]
    buffers: list[memoryview] = []
    data = _pickled(rows, lambda buffer: buffers.append(buffer.raw()))
    light = {id(request.prompt): replace(request.prompt, features={}) for request in requests}
    for request in requests:
        request.prompt = light[id(request.prompt)]
    return Parcel(len(rows), data, [len(buffer) for buffer in buffers], Memory(buffers) if buffers else None)


def _pickled(value: object, keep: Callable[[pickle.PickleBuffer], object]) -> bytes:
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=5, buffer_callback=keep)
    pickler.dispatch_table = {**dispatch_table, Tensor: _reduced}
    pickler.dump(value)
    return file.getvalue()


def _reduced(tensor: Tensor) -> tuple[Callable[..., Tensor], tuple[object, ...]]:
    if not tensor.numel():
        return _empty, (tensor.dtype, tuple(tensor.shape))
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()  # NumPy lacks some of the dtypes
    return _rebuilt, (pickle.PickleBuffer(data.data), tensor.dtype, tuple(tensor.shape))


def _empty(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _rebuilt(buffer: memoryview, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return torch.frombuffer(buffer, dtype=dtype).reshape(shape)


def submit(first: int, parcel: Parcel) -> bytes:
    """The frame of a parcel whose requests are numbered from `first`; its memory travels beside it."""
    header = _SUBMIT.pack(first, parcel.count, len(parcel.lengths))
    return frame(Kind.SUBMIT, header, array("q", parcel.lengths).tobytes(), parcel.data)


@dataclass(frozen=True)
class Submission:
    """A parcel that has arrived."""

    first: int
    count: int
    lengths: Sequence[int]
    data: bytes


def read_submit(body: bytes) -> Submission:
    """What is in a frame of a parcel."""
    first, count, buffers = _SUBMIT.unpack_from(body)
    begin = _SUBMIT.size
    end = begin + 8 * buffers
    return Submission(first, count, array("q", body[begin:end]), body[end:])


def unpack(data: bytes, buffers: Sequence[memoryview], grammar: Callable[[str], Grammar]) -> list[Request]:
    """The requests, as they were packed but for their own samplers. `grammar` makes one of a schema, for each row."""
    requests: list[Request] = []
    rows = pickle.loads(data, buffers=buffers)  # noqa: S301  of our own process
    for name, prompt, params, schema, max_tokens, policy, leader, arrived in rows:
        sampler = RowSampler(params, prompt.ids, None if schema is None else grammar(schema))
        requests.append(
            Request(
                id=name,
                prompt=prompt,
                sampler=sampler,
                max_tokens=max_tokens,
                policy=policy,
                schema=schema,
                leader=None if leader is None else requests[leader],
                timings=Timings(arrived=arrived),
            )
        )
    return requests


# steps -------------------------------------------------------------------------------------------------------------


class Load(NamedTuple):
    """How much the engine has to do."""

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0  # 0 to 1


State = tuple[Decision | None, ShadowDecision | None, Timings, int | None]  # the last: `cached_tokens`


class News(NamedTuple):
    """What a step did to one request, where that is more than a token. `state` with the first of it and its end."""

    number: int
    token: int | None = None
    logprobs: Logprobs | None = None
    finish: Finish | None = None
    error: EngineError | None = None
    state: State | None = None


class Step(NamedTuple):
    """What one step did: tokens of (request, token), and the rest."""

    load: Load
    tokens: Iterable[tuple[int, int]]
    news: Sequence[News]


def step(load: Load, tokens: Sequence[int], news: Sequence[News]) -> bytes:
    """The frame of a step; `tokens` holds a request's number, its token, the next one's number, and so on."""
    rest = pickle.dumps([tuple(each) for each in news]) if news else b""
    return frame(Kind.STEP, _STEP.pack(*load, len(tokens) // 2), array("q", tokens).tobytes(), rest)


def read_step(body: bytes) -> Step:
    """What is in such a frame."""
    running, waiting, usage, count = _STEP.unpack_from(body)
    end = _STEP.size + 16 * count
    numbers = array("q", body[_STEP.size : end])
    news = pickle.loads(body[end:]) if end < len(body) else ()  # noqa: S301  of our own process
    return Step(Load(running, waiting, usage), zip(numbers[::2], numbers[1::2], strict=True), [News(*n) for n in news])


def failed(failure: EngineFailed) -> bytes:
    """The frame of an engine that cannot go on."""
    return frame(Kind.FAILED, str(failure).encode(errors="backslashreplace"))


def read_failed(body: bytes) -> EngineFailed:
    """Why it cannot."""
    return EngineFailed(body.decode())
