"""Small bodies of requests to the console."""

from __future__ import annotations

import asyncio

from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect

from server.errors import BadRequest, BodyTooLarge, ClientGone

SECONDS = 20.0  # in which one comes


async def small_body(http: HttpRequest, most: int) -> bytes:
    """A body of at most so many bytes. Raises BodyTooLarge, BadRequest where it does not come, ClientGone."""
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in http.stream():
                body += chunk
                if len(body) > most:
                    raise BodyTooLarge(f"The body has more than {most} bytes.", headers={"connection": "close"})
    except TimeoutError:
        why = f"The body did not arrive within {SECONDS:g} seconds."
        raise BadRequest(why, code="slow_body", headers={"connection": "close"}) from None
    except ClientDisconnect:
        raise ClientGone from None
    return bytes(body)
