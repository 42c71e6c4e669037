"""The HTTP application: its life, its routes, the shape of its errors. `create_app` makes one; nothing is global."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.body import as_json
from server.config import Settings
from server.errors import ApiError, ClientGone, ServerFault, error_body, shown
from server.images import Images
from server.routes import chat, models, operations
from server.service import Runner, Service
from server.serving import server_version

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def create_app(settings: Settings, runner: Runner, *, name: str, images: Images | None = None) -> FastAPI:
    """The application over an engine thread that its lifespan starts and stops. `name`: the served model's."""
    service = Service(settings, runner, name, images)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        runner.start()
        try:
            yield
        finally:
            await runner.stop()
            service.close()

    app = FastAPI(title="Autosteer Server", version=server_version(), lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    add_error_handlers(app)
    for router in (chat, models, operations):
        app.include_router(router.routes(service))
    app.add_middleware(Outermost)
    return app


# errors ------------------------------------------------------------------------------------------------------------


def add_error_handlers(app: FastAPI) -> None:
    """Every error in OpenAI's shape."""

    async def on_api_error(_: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return as_json(error.body, error.status, error.headers)

    async def on_http_error(http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        messages = {
            404: f"There is no route {shown(http.url.path)}.",
            405: f"The method {http.method} is not allowed on {shown(http.url.path)}.",
        }
        body = error_body(messages.get(error.status_code, str(error.detail)), "invalid_request_error")
        return as_json(body, error.status_code, dict(error.headers or {}))

    async def on_client_gone(_: HttpRequest, __: Exception) -> Response:
        return Response(status_code=499)

    handlers: dict[type[Exception], Callable[..., Any]] = {
        ApiError: on_api_error,
        HTTPException: on_http_error,
        ClientGone: on_client_gone,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


class Outermost:
    """Gives every answer its `X-Request-Id`, and turns an exception nobody handled into a 500 of our shape.

    Plain ASGI, so that streams pass through untouched.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else "req-" + secrets.token_hex(16)
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            if started:
                raise
            logger.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            fault = ServerFault("The server failed on this request.", code="internal_error")
            await as_json(fault.body, fault.status)(scope, receive, send_with_id)
