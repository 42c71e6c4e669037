"""The HTTP application: routes, limits, errors. `create_app` makes one; nothing here is global."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from time import monotonic
from typing import Any, Protocol

import orjson
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.body import read_json
from server.config import Settings
from server.engine import Engine
from server.engine_thread import NotReady, QueueFull
from server.errors import ApiError, ClientGone, NotFound, ServerFault, TooManyRequests, Unavailable, error_body, shown
from server.generation import Generation, Submits
from server.metrics import TEXT_FORMAT, Metrics
from server.prepare import prepare
from server.responses import Answer, model_object
from server.schemas import ChatCompletionRequest, parse_chat_request
from server.serving import Served, server_version
from server.streaming import EventStream, unless_gone

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class Runner(Submits, Protocol):
    """What the application needs of `EngineThread`."""

    engine: Engine | None

    @property
    def ready(self) -> bool:
        """Whether a request would be accepted now."""

    @property
    def state(self) -> str:
        """One phrase for `/ready`."""

    @property
    def live(self) -> int:
        """Requests accepted and not yet ended."""

    def start(self) -> None:
        """Begin to load."""

    async def stop(self) -> None:
        """End what lives, then the thread."""


class Service:
    """One server's state: its settings, engine, metrics and worker threads."""

    def __init__(self, settings: Settings, runner: Runner, name: str) -> None:
        self.settings = settings
        self.runner = runner
        self.name = name
        self.metrics = Metrics()
        self._preparing = 0
        self._served: Served | None = None
        self._threads = ThreadPoolExecutor(settings.prepare_threads, thread_name_prefix="prepare")
        self.metrics.watch(self._running, self._waiting, self._cache_usage)

    # state -----------------------------------------------------------------------------------------------------

    @property
    def served(self) -> Served | None:
        """The model, once it is loaded."""
        if self._served is None and self.runner.engine is not None:
            self._served = Served.of(self.runner.engine, self.settings, self.name)
            info = self._served.info
            self.metrics.model_info.info(
                {
                    "model": self.name,
                    "architecture": info.architecture,
                    "dtype": str(info.dtype).removeprefix("torch."),
                    "device": str(info.device),
                    "guarded_layer": str(self._served.layer),
                    "policy": self._served.policy.name,
                    "mode": self._served.policy.mode.value,
                }
            )
        return self._served

    def _running(self) -> int:
        return len(self.runner.engine.scheduler.running) if self.runner.engine else 0

    def _waiting(self) -> int:
        return max(0, self.runner.live - self._running())

    def _cache_usage(self) -> float:
        if self.runner.engine is None:
            return 0.0
        backbone = self.runner.engine.backbone
        return backbone.cached_tokens / (self.settings.max_rows * backbone.info.context_length)

    def close(self) -> None:
        """Let the worker threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # requests --------------------------------------------------------------------------------------------------

    def check_model(self, name: str, param: str | None) -> None:
        """Raise NotFound unless this is the served model."""
        if name != self.name:
            raise NotFound(
                f"The model {shown(name)} does not exist here; this server serves {self.name!r}.",
                param=param,
                code="model_not_found",
            )

    def require_served(self) -> Served:
        """The model; raises Unavailable while there is none."""
        if not self.runner.ready or (served := self.served) is None:
            raise self.unavailable()
        return served

    def unavailable(self) -> Unavailable:
        """Why no request is accepted now."""
        return Unavailable(
            f"The server is not ready: {self.runner.state}.", code="not_ready", headers={"retry-after": "1"}
        )

    @contextmanager
    def admission(self) -> Iterator[None]:
        """Hold a place while a request is read and prepared, and count it if it is refused.

        Raises TooManyRequests before anything of the request is read.
        """
        try:
            if self._preparing + self.runner.live >= self.settings.max_live:
                raise TooManyRequests(
                    f"{self.settings.max_live} requests are running or waiting, which is the limit.", retry_after=1
                )
            self._preparing += 1
            try:
                yield
            finally:
                self._preparing -= 1
        except ApiError as error:
            self.metrics.rejections.labels(error.reason).inc()
            raise

    async def accept(self, chat: ChatCompletionRequest, served: Served, arrived: float) -> Generation:
        """A generation that the engine has accepted; its prompt is made in a worker thread. Raises ApiError."""
        request_id = "chatcmpl-" + secrets.token_hex(16)
        work = partial(prepare, chat, served, self.settings, request_id, arrived)
        request = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        generation = Generation(request, self.runner, served.decoder, chat.stop or (), self.metrics)
        try:
            generation.start()
        except NotReady:
            raise self.unavailable() from None
        except QueueFull as error:
            raise TooManyRequests(f"{error}.", retry_after=error.retry_after) from None
        return generation


def create_app(settings: Settings, runner: Runner, *, name: str) -> FastAPI:
    """The application over an engine thread that its lifespan starts and stops. `name`: the served model's."""
    service = Service(settings, runner, name)

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
    add_routes(app, service)
    app.add_middleware(Outermost)
    return app


def add_routes(app: FastAPI, service: Service) -> None:
    """Every route."""

    @app.post("/v1/chat/completions", openapi_extra=_request_body())
    async def chat_completions(http: HttpRequest) -> Response:
        arrived = monotonic()
        settings = service.settings
        with service.admission():
            chat = parse_chat_request(
                await read_json(http, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds)
            )
            service.check_model(chat.model, "model")
            if chat.moderation is not None:
                service.check_model(chat.moderation.model, "moderation.model")
            served = service.require_served()
            generation = await unless_gone(http.receive, service.accept(chat, served, arrived))
        answer = Answer(generation, chat, served)
        if not chat.stream:
            return await unless_gone(http.receive, _whole(answer))
        await unless_gone(http.receive, _begun(generation))
        return EventStream(
            answer, include_usage=chat.include_usage, stall_seconds=settings.stall_seconds, headers=answer.headers
        )

    @app.get("/v1/models")
    async def models() -> Response:
        served = service.served
        return as_json({"object": "list", "data": [] if served is None else [model_object(served)]})

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> Response:
        service.check_model(model, "model")
        if (served := service.served) is None:
            raise service.unavailable()
        return as_json(model_object(served))

    @app.get("/health")
    async def health() -> Response:
        return as_json({"status": "alive"})

    @app.get("/ready")
    async def ready() -> Response:
        if not service.runner.ready or service.served is None:
            raise service.unavailable()
        return as_json({"status": "ready"})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=TEXT_FORMAT)

    @app.get("/version")
    async def version() -> Response:
        return as_json({"version": server_version()})


async def _begun(generation: Generation) -> None:
    """Wait until the decision, and with it the headers, are known. Raises ApiError; cancelled, it aborts."""
    try:
        await generation.begin()
    except BaseException:
        generation.abort()
        raise


async def _whole(answer: Answer) -> Response:
    """Wait for the whole answer. Raises the failure it ends with; cancelled, it aborts."""
    try:
        text = "".join([piece async for piece in answer.generation.texts()])
    finally:
        answer.generation.abort()
    if (failure := answer.generation.failure) is not None:
        raise failure
    return as_json(answer.whole(text), headers=answer.headers)


def as_json(data: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(orjson.dumps(data), status, headers, media_type="application/json")


def _request_body() -> dict[str, Any]:
    """The chat request's part of `/openapi.json`; its references are from the root of that document."""
    place = "#/paths/~1v1~1chat~1completions/post/requestBody/content/application~1json/schema/$defs/{model}"
    schema = ChatCompletionRequest.model_json_schema(ref_template=place)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


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
