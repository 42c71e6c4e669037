"""JSON in and out: a body is read under limits of size, time and values, and not parsed before it is known to be small.

It must come at a rate: one that stalls is given up. What has come of it is counted in a budget of all bodies.

Parsing and validating hold the interpreter's lock, and with it every other request. A body of many values is therefore
counted before it is parsed, parsed and validated in a thread of its own, and refused where that would take too long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.errors import BadRequest, BodyTooLarge, ClientGone, UnsupportedBody, shown
from server.http.body_budget import HeldBody
from server.http.long_strings import TooLong, loads
from server.settings.schema import Settings
from server.settings.units import MEBI

T = TypeVar("T")

FEW_VALUES = 1_000  # so many are parsed and validated in a few milliseconds, on the event loop
COUNTED_AT_ONCE = 2**20  # bytes: counting these takes about a millisecond, and so does parsing them
PARSED_AT_ONCE = 12 * MEBI  # bytes outside of long strings, which are parsed in 20 milliseconds
CHARACTER_BYTES = 12  # of one character in JSON, at most


@dataclass(frozen=True)
class BodyLimits:
    """How large a body may be, and how slow: after `stall_seconds` it has come at `rate` bytes a second on average."""

    max_bytes: int
    seconds: float
    stall_seconds: float
    rate: float

    @classmethod
    def of(cls, settings: Settings) -> BodyLimits:
        """The limits of bodies that the settings state."""
        return cls(settings.max_body_bytes, settings.body_seconds, settings.body_stall_seconds, settings.body_rate)

    def due(self, received: int) -> float:
        """Seconds from the start until more than `received` bytes must have come."""
        return min(self.seconds, self.stall_seconds + received / self.rate)


@dataclass(frozen=True)
class JsonLimits:
    """How much a body may hold.

    `values`: commas and opening brackets, also those within texts, since nothing is parsed to count them.
    `containers`: arrays and objects, counted exactly. `apart`: bytes outside of long strings, as files are.
    """

    values: int
    containers: int
    apart: int = PARSED_AT_ONCE

    @classmethod
    def of(cls, settings: Settings) -> JsonLimits:
        """The limits of JSON that the settings state."""
        apart = max(PARSED_AT_ONCE, CHARACTER_BYTES * settings.max_prompt_characters)
        return cls(settings.max_json_values, settings.max_json_containers, apart)


async def read_body(request: Request, limits: BodyLimits, held: HeldBody) -> bytearray:
    """The bytes of a JSON body. Raises BadRequest, BodyTooLarge, BodiesFull, UnsupportedBody, ClientGone."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedBody(f"The content type must be application/json, not {shown(kind)}.")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedBody("The body must not be compressed.")
    try:
        async with asyncio.timeout(limits.due(0)) as clock:
            return await _read(request, limits, held, clock)
    except TimeoutError:
        raise BadRequest(
            f"The body did not arrive within {limits.seconds:g} seconds, or came at less than {limits.rate:g} bytes a "
            f"second after the first {limits.stall_seconds:g} seconds.",
            code="slow_body",
            headers={"connection": "close"},
        ) from None
    except ClientDisconnect:
        raise ClientGone from None


async def validated(
    body: bytes | bytearray, validate: Callable[[object], T], limits: JsonLimits, threads: Executor
) -> T:
    """What `validate` makes of a JSON body; one of many values or bytes is parsed and validated by `threads`.

    Raises BadRequest, and what `validate` raises.
    """
    values = await count_values(body)
    if values > limits.values:
        raise BadRequest(
            f"The body holds {values} commas and brackets; the limit is {limits.values} (max_json_values).",
            code="too_many_values",
        )

    def work() -> T:
        data = parsed(body, limits.apart)
        if values > limits.containers:  # or there cannot be more
            check_containers(data, limits.containers)
        return validate(data)

    if values <= FEW_VALUES and len(body) <= COUNTED_AT_ONCE:
        return work()
    return await asyncio.get_running_loop().run_in_executor(threads, work)


async def count_values(body: bytes | bytearray) -> int:
    """An upper bound of the values in a JSON body, found without parsing it; others run in between."""
    found = 0
    for begin in range(0, len(body), COUNTED_AT_ONCE):
        part = body[begin : begin + COUNTED_AT_ONCE]
        found += part.count(b",") + part.count(b"[") + part.count(b"{")
        if begin:
            await asyncio.sleep(0)
    return found


def parsed(body: bytes | bytearray, apart: int = PARSED_AT_ONCE) -> object:
    """The JSON value; `apart`: bytes that may stand outside of long strings. Raises BadRequest."""
    try:
        return loads(body, apart)
    except TooLong:
        raise BadRequest(
            f"The body is not valid JSON, or holds more than {apart} bytes that are no file: only a string in base64 "
            "may be longer.",
            code="too_much_text",
        ) from None
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None


def check_containers(data: object, limit: int) -> None:
    """Raise BadRequest if more than `limit` arrays and objects are within a JSON value."""
    found, left = 0, [data]
    while left:
        value = left.pop()
        if isinstance(value, (list, dict)):
            found += 1
            if found > limit:
                raise BadRequest(
                    f"The body holds more than {limit} arrays and objects (max_json_containers).",
                    code="too_many_values",
                )
            left.extend(value if isinstance(value, list) else value.values())


async def _read(request: Request, limits: BodyLimits, held: HeldBody, clock: asyncio.Timeout) -> bytearray:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal():
        if len(announced) > 18 or int(announced) > limits.max_bytes:
            raise _too_large(limits.max_bytes)
        held.expect(int(announced))
    begun = asyncio.get_running_loop().time()
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limits.max_bytes:
            raise _too_large(limits.max_bytes)
        held.grow(len(chunk))
        body += chunk
        clock.reschedule(begun + limits.due(len(body)))
    return body


def _too_large(max_bytes: int) -> BodyTooLarge:
    # What is left of the body is not read: the connection ends with the answer.
    return BodyTooLarge(f"The body is larger than the limit of {max_bytes} bytes.", headers={"connection": "close"})


def as_json(data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(data), status, headers, media_type="application/json")
