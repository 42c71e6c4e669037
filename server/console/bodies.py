"""Small bodies of requests to the console."""

from __future__ import annotations

from fastapi import Request as HttpRequest
from starlette.requests import ClientDisconnect

from server.errors import BodyTooLarge, ClientGone


async def small_body(http: HttpRequest, most: int) -> bytes:
    """A body of at most so many bytes. Raises BodyTooLarge, ClientGone."""
    body = b""
    try:
        async for chunk in http.stream():
            body += chunk
            if len(body) > most:
                raise BodyTooLarge(f"The body has more than {most} bytes.", headers={"connection": "close"})
    except ClientDisconnect:
        raise ClientGone from None
    return body
