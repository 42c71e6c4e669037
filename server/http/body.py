"""JSON in and out: a body is read under limits of size and time, and not parsed before it is known to be small."""

from __future__ import annotations

import asyncio

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from server.errors import BadRequest, BodyTooLarge, ClientGone, UnsupportedBody, shown


async def read_json(request: Request, *, max_bytes: int, seconds: float) -> object:
    """The decoded JSON body. Raises BadRequest, BodyTooLarge, UnsupportedBody, ClientGone."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedBody(f"The content type must be application/json, not {shown(kind)}.")
    if request.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise UnsupportedBody("The body must not be compressed.")
    try:
        async with asyncio.timeout(seconds):
            body = await _read(request, max_bytes)
    except TimeoutError:
        raise BadRequest(
            f"The body did not arrive within {seconds:g} seconds.", headers={"connection": "close"}
        ) from None
    except ClientDisconnect:
        raise ClientGone from None
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"The body is not valid JSON: {error}.", code="invalid_json") from None


async def _read(request: Request, max_bytes: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > max_bytes):
        raise _too_large(max_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
    return bytes(body)


def _too_large(max_bytes: int) -> BodyTooLarge:
    # What is left of the body is not read: the connection ends with the answer.
    return BodyTooLarge(f"The body is larger than the limit of {max_bytes} bytes.", headers={"connection": "close"})


def as_json(data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(data), status, headers, media_type="application/json")
