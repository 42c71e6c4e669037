"""One server's state behind its routes: what is served, who may come in, and how a request reaches the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Protocol

from fastapi import Request as HttpRequest

from server.body import read_json
from server.choices import Choices, Submits
from server.config import Settings
from server.deadline import Deadline
from server.engine import Engine
from server.engine_thread import NotReady, QueueFull
from server.errors import ApiError, BadRequest, ClientGone, NotFound, TooManyRequests, Unavailable, shown
from server.images import Images, RequestImages
from server.metrics import Metrics
from server.request import Request
from server.serving import Served


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

    @property
    def retry_after(self) -> int:
        """Seconds after which a full queue may have room."""

    def start(self) -> None:
        """Begin to load."""

    async def stop(self) -> None:
        """End what lives, then the thread."""


class Admission:
    """Places held for one HTTP request while it is read and prepared: one, until it is known to want more."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.places = 1

    def widen(self, places: int, param: str) -> None:
        """Hold as many places as the request has generations. Raises BadRequest if no queue could, TooManyRequests."""
        limit = self._service.settings.max_live
        if places > limit:
            raise BadRequest(
                f"'{param}' asks for {places} generations at once; this server runs and queues at most {limit}.",
                param=param,
            )
        self._service.hold(places - self.places)
        self.places = places

    def release(self) -> None:
        """Hold none any more: the engine counts what it has accepted."""
        self._service.hold(-self.places)
        self.places = 0


class Service:
    """One server's state: its settings, engine, metrics and worker threads."""

    def __init__(self, settings: Settings, runner: Runner, name: str, images: Images | None = None) -> None:
        self.settings = settings
        self.runner = runner
        self.name = name
        self.metrics = Metrics()
        self.images = images or Images(settings)
        self._held = 0
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
        self.images.close()

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
        """Why no request is accepted now. The connection closes: the next one may lead to a server that is ready."""
        return Unavailable(
            f"The server is not ready: {self.runner.state}.",
            code="not_ready",
            headers={"retry-after": "1", "connection": "close"},
        )

    @contextmanager
    def admission(self) -> Iterator[Admission]:
        """Hold a place while a request is read and prepared, and count it if it never reaches the engine.

        Raises Unavailable and TooManyRequests before anything of the request is read.
        """
        admission = Admission(self)
        try:
            self.require_served()
            self.hold(admission.places)
            try:
                yield admission
            finally:
                admission.release()
        except ApiError as error:
            self.metrics.rejections.labels(error.reason).inc()
            raise
        except ClientGone:
            self.metrics.rejections.labels("client_gone").inc()
            raise
        except Exception:
            self.metrics.rejections.labels("internal_error").inc()
            raise

    def hold(self, places: int) -> None:
        """Hold more places, or less. Raises TooManyRequests, and holds no more, if there are not as many."""
        if places > 0 and self._held + self.runner.live + places > self.settings.max_live:
            raise TooManyRequests(
                f"{self._held + self.runner.live} of at most {self.settings.max_live} requests are running or waiting.",
                retry_after=self.runner.retry_after,
            )
        self._held += places

    async def body(self, http: HttpRequest) -> object:
        """The decoded JSON body, within the limits. Raises ApiError, ClientGone."""
        return await read_json(http, max_bytes=self.settings.max_body_bytes, seconds=self.settings.body_seconds)

    async def accept(
        self,
        admission: Admission,
        images: Mapping[str, str],
        prepare: Callable[[RequestImages], Sequence[Request]],
        served: Served,
        stops: Sequence[str],
        deadline: Deadline,
    ) -> Choices:
        """What `prepare` makes in a worker thread, accepted by the engine, all or none. Raises ApiError.

        `images`: the URL of each image by the path of its field; they are fetched before a thread is taken.
        """
        try:
            async with asyncio.timeout(deadline.left) as limit:
                found = await self.images.of(images)
                requests = await asyncio.get_running_loop().run_in_executor(self._threads, prepare, found)
        except TimeoutError:
            if not limit.expired():
                raise
            raise deadline.exceeded() from None
        choices = Choices(requests, self.runner, served.decoder, stops, self.metrics)
        try:
            choices.start(deadline)
        except NotReady:
            raise self.unavailable() from None
        except QueueFull as error:
            raise TooManyRequests(f"{error}.", retry_after=error.retry_after) from None
        admission.release()
        return choices
