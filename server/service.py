"""One server's state behind its routes: what is served, who may come in, and how a request reaches the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import TypeVar

from fastapi import Request as HttpRequest

from server.access.keys import Client
from server.access.limits import RateLimiter
from server.access.policies import make_policies, make_policy
from server.access.rules import Rules
from server.admission import Admission, Gate, counted
from server.answer.choices import Choices
from server.answer.deadline import Deadline
from server.answer.pipeline import Pipeline
from server.api.job import Intake, Job
from server.api.schemas import Schemas, WantedSchema
from server.api.served import Served
from server.engine.client_protocol import ClientProtocol
from server.engine.live import NotReady, QueueFull
from server.engine.wire import Parcel
from server.errors import NotFound, TooManyRequests, Unavailable, shown
from server.http.body import BodyLimits, JsonLimits, read_body, validated
from server.media.images import Images, RequestImages
from server.record.audit.log import AuditLog
from server.record.audit.sink import Sink
from server.record.call import Call, call_of
from server.record.recorder import Recorder
from server.record.tracing import Tracing
from server.request import Request, Schema
from server.settings.schema import Settings
from server.settings.values import DEFAULT_POLICY
from server.watch.metrics import Metrics
from server.workers.threads import Threads
from steering.policy import Policy, PolicyError

T = TypeVar("T")


class Service:
    """One server's state: its rules, engine, metrics, rate limits, audit log and worker threads."""

    def __init__(
        self,
        settings: Settings,
        engine: ClientProtocol,
        name: str,
        images: Images | None = None,
        sink: Sink | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.rules = Rules.of(settings)
        self.origin: Callable[[str], str] = lambda _: "the settings"  # where the value of a setting comes from
        self.engine = engine
        self.name = name
        self.metrics = Metrics()
        self.images = images or Images(settings)
        self.limiter = RateLimiter()
        audit = None
        if sink is not None:
            assert settings.audit is not None
            audit = AuditLog(sink, settings.audit, self.metrics)
            self.metrics.watch_audit(audit)
        self.recorder = Recorder(audit, tracing)
        self.gate = Gate.of(engine, self.limiter, settings)
        self._served: Served | None = None
        self._threads = Threads(settings.prepare_threads)
        self._schemas: Schemas | None = None  # until the model is there
        running, usage = lambda: self.engine.load.running, lambda: self.engine.load.cache_usage
        self.metrics.watch(running, self._waiting, usage, settings.max_rows)
        self.metrics.watch_ready(self._ready)
        self.metrics.watch_restarts(lambda: self.engine.restarts)
        self.metrics.watch_loading(lambda: self.engine.load_shares)

    @property
    def settings(self) -> Settings:
        """The settings in effect."""
        return self.rules.settings

    def change(self, settings: Settings) -> list[str]:
        """Put other settings in effect for requests to come; tells which were not. Raises as `Rules.changed`."""
        served = self.served
        if served is None:
            raise PolicyError("the model is not loaded yet; try again when the server is ready")
        self.rules, kept = self.rules.changed(settings, served.guard)
        self.limiter.forget_all_but(self.rules.clients.names)
        self.gate.seats.shared = self.settings.shared_live
        self._tell(served)
        return kept

    @property
    def served(self) -> Served | None:
        """The model, once it is loaded."""
        if self._served is None and self.engine.model is not None:
            self._served = Served.of(*self.engine.model, self.name)
            self._schemas = Schemas(self._served.vocabulary, self.settings)
            self._tell(self._served)
        return self._served

    def default_policy(self, served: Served) -> Policy:
        """What a request is served under where nothing says otherwise."""
        return make_policy(DEFAULT_POLICY, self.settings.policy(DEFAULT_POLICY), served.guard)

    def _tell(self, served: Served) -> None:
        policies = make_policies(self.settings, served.guard)
        self.metrics.expect(policies.values(), () if served.guard is None else served.guard.category_names)
        if served.guard is not None:
            self.metrics.watch_policies(policies, served.calibration, served.answer_calibration)
        self.metrics.model_info.info(served.facts(policies[DEFAULT_POLICY]))

    def _ready(self) -> bool:
        return self.engine.ready and self.served is not None and self.recorder.ready and self._stalled is None

    @property
    def _stalled(self) -> str | None:
        """Which threads have taken up nothing for too long, while requests wait for them."""
        lanes = [self._threads.texts, self._threads.images, *(() if self._schemas is None else self._schemas.lanes)]
        return next((lane.name for lane in lanes if lane.stalled > self.settings.pool_seconds), None)

    def check_progress(self) -> None:
        """Raise Unavailable if requests wait for worker threads and none has become free for too long."""
        if (name := self._stalled) is not None:
            raise Unavailable(
                f"The server is not ready: requests wait for its {name!r} threads, and none has become free for "
                f"{self.settings.pool_seconds:g} seconds.",
                code="not_ready",
                headers={"retry-after": "1"},
            )

    def _waiting(self) -> int:
        return max(0, self.engine.live - self.engine.load.running)

    def start(self) -> None:
        """Begin to load the model, and to write the audit log."""
        self._threads.start()
        self.recorder.start()
        self.engine.start()

    def start_processes(self) -> None:
        """Start the processes that would else be started when they are first needed, once the server is ready."""
        if self._schemas is not None:
            self._schemas.start()
        if self.require_served().inputs.sees:
            self._threads.images.submit(self.images.start)

    async def stop(self) -> None:
        """End what lives, let the worker threads end, and write the last records."""
        await self.engine.stop()
        self._threads.close()
        if self._schemas is not None:
            self._schemas.close()
        self.images.close()
        await self.recorder.stop()

    def authenticate(self, http: HttpRequest, find: Callable[[HttpRequest], Client]) -> None:
        """Have `find` tell who asks; from here on the request is recorded. Raises what `find` raises."""
        call = call_of(http)
        call.route = f"{http.method} {http.scope['route'].path}"
        self.recorder.begin(call, http.headers)
        with counted(self.metrics) if http.method == "POST" else nullcontext():
            call.client = find(http)

    def headers(self, call: Call) -> dict[str, str]:
        """What every answer to this client carries."""
        return {} if call.client is None else self.limiter.headers(call.client)

    def end(self, call: Call) -> None:
        """A request has had its last byte: settle its tokens, record and trace it."""
        if call.reservation is not None:
            used = 0
            if call.choices is not None:
                used = call.choices.tokens + sum(len(each.request.prompt.ids) for each in call.choices.leaders)
            call.reservation.settle(used)
        if call.seat is not None:
            call.seat.release()
        if call.schema is not None and self._schemas is not None:
            self._schemas.release(call.schema)
        self.recorder.end(call, None if self._served is None else self._served.judge)

    @property
    def names(self) -> Sequence[str]:
        """The names of the served model, its own first."""
        return [self.name, *(name for name in self.settings.model_aliases if name not in ("*", self.name))]

    def check_model(self, name: str, param: str | None) -> None:
        """Raise NotFound unless this is a name of the served model."""
        if name not in self.names and "*" not in self.settings.model_aliases:
            raise NotFound(
                f"The model {shown(name)} does not exist here; this server serves {self.name!r}.",
                param=param,
                code="model_not_found",
            )

    def require_served(self) -> Served:
        """The model; raises Unavailable while there is none."""
        if not self.engine.ready or (served := self.served) is None:
            raise self.unavailable()
        return served

    def unavailable(self) -> Unavailable:
        """Why no request is accepted now. The connection closes: the next one may lead to a server that is ready."""
        return Unavailable(
            f"The server is not ready: {self.engine.state}.",
            code="not_ready",
            headers={"retry-after": "1", "connection": "close"},
        )

    @contextmanager
    def admission(self, http: HttpRequest) -> Iterator[Admission]:
        """Hold what a request takes while it is read and prepared, and count it if it never reaches the engine.

        Raises Unavailable, and what `Admission` does, before anything of the request is read.
        """
        call = call_of(http)
        with counted(self.metrics):
            self.require_served()
            self.recorder.check()
            admission = Admission(self.gate, call)
            try:
                yield admission
            finally:
                admission.release()

    async def read(self, admission: Admission, http: HttpRequest, validate: Callable[[object], T]) -> T:
        """What `validate` makes of the JSON body, within the limits. Raises ApiError, ClientGone."""
        settings, call = self.settings, admission.call
        body = await read_body(http, BodyLimits.of(settings), admission.body)
        admission.enter()

        def kept(data: object) -> T:
            call.read = monotonic()
            if self.recorder.keeps_bodies:
                call.body = data
            return validate(data)

        return await validated(body, kept, JsonLimits.of(settings), self._threads.bodies)

    async def prepared(
        self, admission: Admission, images: Mapping[str, str], prepare: Callable[[RequestImages], T], deadline: Deadline
    ) -> T:
        """What `prepare` makes in a worker thread. Raises ApiError.

        `images`: the URL of each image by the path of its field; they are fetched before a thread is taken.
        """
        async with deadline.held():
            found = await self.images.of(images)
            lane = self._threads.images if images else self._threads.texts
            return await lane.run(partial(self._prepared, admission.call, prepare, found), admission.tenant)

    async def accept(self, admission: Admission, job: Job, intake: Intake, deadline: Deadline) -> Choices:
        """What a job prepares in a worker thread, accepted by the engine, all or none. Raises ApiError."""
        call = admission.call
        if (wanted := job.schema(intake.served)) is not None:
            async with deadline.held():
                intake = replace(intake, schema=await self._compiled(call, wanted))
        prepare = partial(self._packed, job, intake)
        parcel = await self.prepared(admission, job.images(intake.served, intake.settings), prepare, deadline)
        self._reserve(call, parcel.requests)
        parser = partial(job.parser, intake.served)
        pipeline = partial(Pipeline.of, decoder=intake.served.decoder, stops=job.stops, parser=parser)
        choices = Choices(parcel, self.engine, pipeline, self.metrics, keep=self.recorder.keeps_answers)
        try:
            choices.start(deadline)
        except NotReady:
            raise self.unavailable() from None
        except QueueFull as error:
            raise TooManyRequests(f"{error}.", retry_after=error.retry_after) from None
        admission.release()
        call.choices, call.accepted = choices, monotonic()
        return choices

    async def _compiled(self, call: Call, wanted: WantedSchema) -> Schema:
        """A schema that the engine may compile too; it is held until the call ends. Raises ApiError."""
        assert self._schemas is not None, "a request is prepared once the model is there"
        assert call.client is not None, "a request is authenticated before it is prepared"
        schema = await self._schemas.compiled(wanted, call.client.tenant)
        self._schemas.hold(schema, self.engine.retry_after)
        call.schema = schema
        return schema

    def _prepared(self, call: Call, prepare: Callable[[RequestImages], T], images: RequestImages) -> T:
        """In a worker thread: what was asked, for the audit log, then what is to be made of it."""
        self.recorder.describe(call, images.fetched, max_characters=self.settings.max_prompt_characters)
        with closing(images):
            return prepare(images)

    def _packed(self, job: Job, intake: Intake, images: RequestImages) -> Parcel:
        return self.engine.pack(job.prepare(intake, images))

    def _reserve(self, call: Call, requests: Sequence[Request]) -> None:
        """Hold as many tokens as the answer can take. Raises RateLimited."""
        assert call.client is not None
        prompts = sum(len(each.prompt.ids) for each in requests if each.leader is None)
        call.reservation = self.limiter.reserve(call.client, prompts + sum(each.max_tokens for each in requests))
