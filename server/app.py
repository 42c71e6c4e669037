"""The HTTP application: its life, its routes, the shape of its errors. `create_app` makes one; nothing is global."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import orjson
from fastapi import Depends, FastAPI
from fastapi import Request as HttpRequest
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.anthropic_errors import anthropic_error, is_anthropic
from server.console import routes as console
from server.engine.client_protocol import ClientProtocol
from server.errors import ApiError, ClientGone, ServerFault, error_body, shown
from server.http.body import as_json
from server.http.cookies import plain_cookies
from server.http.pace import Paced
from server.http.tolerant import Tolerant
from server.media.images import Images
from server.record.access_log import log_access
from server.record.audit.sink import Sink
from server.record.call import Call, call_of
from server.record.tracing import Tracing
from server.routes import anthropic, chat, completions, models, moderations, operations, responses, tokens
from server.routes.authentication import authentication
from server.service import Service
from server.settings.schema import Settings
from server.version import server_version
from server.watch.logs import request_id

logger = logging.getLogger(__name__)

# What a page of another origin may read of an answer beside its body.
EXPOSED_HEADERS = [
    "retry-after",
    "x-autosteer-ignored",
    "x-autosteer-score",
    "x-autosteer-verdict",
    "x-request-id",
    "x-should-retry",
]
REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def create_app(
    settings: Settings,
    engine: ClientProtocol,
    *,
    name: str,
    images: Images | None = None,
    sink: Sink | None = None,
    tracing: Tracing | None = None,
) -> FastAPI:
    """The application over an engine that its lifespan starts and stops.

    `name`: the served model's. `sink`: where audit records go, as `settings.audit` says.
    `tracing`: where spans go.
    """
    service = Service(settings, engine, name, images, sink, tracing)
    app = FastAPI(
        title="Autosteer Server",
        version=server_version(),
        lifespan=_while_it_serves(service),
        openapi_url=None,  # the route for it is below
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect's address would be made of the client's Host header
    )
    app.state.service = service
    add_error_handlers(app)
    app.include_router(operations.routes(service))
    for router in (chat, completions, responses, anthropic, moderations, models, tokens):
        app.include_router(router.routes(service), dependencies=[Depends(authentication(service))])
    app.include_router(console.routes(service))
    _add_document(app)
    add_middleware(app, service)
    return app


def _while_it_serves(service: Service) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """The application's lifespan: that of the service."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()

    return lifespan


def add_middleware(app: FastAPI, service: Service) -> None:
    """What stands around the routes, from the innermost to the outermost."""
    app.add_middleware(Tolerant)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(Outermost, service=service)
    app.add_middleware(Paced)


class Document:
    """The body of `/openapi.json`, made once, in a thread: it takes some hundred milliseconds of Python."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._body: asyncio.Future[bytes] | None = None

    async def body(self) -> bytes:
        """The document as JSON. However many ask meanwhile, it is made once; also where who asked first has gone."""
        if self._body is None:
            self._body = asyncio.ensure_future(asyncio.to_thread(lambda: orjson.dumps(self._app.openapi())))
        return await asyncio.shield(self._body)


def _add_document(app: FastAPI) -> None:
    app.state.document = document = Document(app)

    @app.get("/openapi.json", include_in_schema=False)
    async def answer() -> Response:
        return Response(await document.body(), media_type="application/json")


# errors ------------------------------------------------------------------------------------------------------------


def add_error_handlers(app: FastAPI) -> None:
    """Every error in the shape of its API."""

    async def on_api_error(http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        call_of(http).error = error
        return as_json(in_shape(http.scope, error.body, error.status), error.status, error.headers)

    async def on_http_error(http: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        messages = {
            404: f"There is no route {shown(http.url.path)}.",
            405: f"The method {http.method} is not allowed on {shown(http.url.path)}.",
        }
        body = error_body(messages.get(error.status_code, str(error.detail)), "invalid_request_error")
        status = error.status_code
        return as_json(in_shape(http.scope, body, status), status, dict(error.headers or {}))

    async def on_client_gone(http: HttpRequest, _: Exception) -> Response:
        call_of(http).gone = True
        return Response(status_code=499)

    handlers: dict[type[Exception], Callable[..., Any]] = {
        ApiError: on_api_error,
        HTTPException: on_http_error,
        ClientGone: on_client_gone,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def in_shape(scope: Scope, body: dict[str, Any], status: int) -> Mapping[str, Any]:
    """An error's body, which is in OpenAI's shape, in that of the API that was asked."""
    return anthropic_error(body, status, scope["state"]["call"].id) if is_anthropic(scope["path"]) else body


class Outermost:
    """Begins and ends the call that a request is, gives its answer headers, and an exception nobody handled a 500.

    Plain ASGI, so that streams pass through untouched.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = Call(given_id(scope))
        scope["headers"] = plain_cookies(scope["headers"])
        scope.setdefault("state", {})["call"] = call

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                call.status = message["status"]
                MutableHeaders(scope=message).update({**ids_of(call, scope), **self._service.headers(call)})
            await send(message)

        with request_id(call.id, call.record_id):
            try:
                await self._serve(call, scope, receive, send_with_headers)
            finally:
                self._service.end(call)
                log_access(call, scope["method"], route_of(scope))

    async def _serve(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:
            call.error = ServerFault("The server failed on this request.", code="internal_error")
            if call.status is not None:
                raise
            logger.exception("%s %s failed", scope["method"], route_of(scope))
            body, status = call.error.body, call.error.status
            await as_json(in_shape(scope, body, status), status)(scope, receive, send)


def ids_of(call: Call, scope: Scope) -> dict[str, str]:
    """The headers that name a call; Anthropic's client looks for one of another name."""
    name = {"request-id": call.id} if is_anthropic(scope["path"]) else {}
    return {"x-request-id": call.id, **name}


def given_id(scope: Scope) -> str:
    """The `X-Request-Id` that a request came with; empty where there is none, several, or none that can be logged."""
    given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"]
    return given[0] if len(given) == 1 and REQUEST_ID.fullmatch(given[0]) else ""


def route_of(scope: Scope) -> str | None:
    """The template of the route that a request found; None if there is none for its path."""
    return getattr(scope.get("route"), "path", None)
