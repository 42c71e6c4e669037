"""Two ways to ask that are as good as the plain one: HEAD for GET, and a slash at the end of a path."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Tolerant:
    """Has HEAD answered as GET without the body, and a path with a slash at its end as the path without.

    Plain ASGI, so that streams pass through untouched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        plain = {**scope, "path": scope["path"].rstrip("/") or "/", "method": "GET" if head else scope["method"]}

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        try:
            await self._app(plain, receive, send_without_body if head else send)
        finally:
            if "route" in plain:
                scope["route"] = plain["route"]  # whoever is around this asks for it
