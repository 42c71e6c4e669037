"""OpenTelemetry traces: each request's way from its arrival to its last token, from the times that it keeps anyway.

Spans are made when a request has ended, so that nothing is done for them while it runs; they hold numbers and names of
ours, never what a client wrote. Needs the extra `otel`; nothing of it is imported where traces are not configured.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from server.settings.schema import Settings
from server.watch.trace_context import outgoing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

    from server.record.call import Call
    from server.request import Request

STOP_SECONDS = 5.0  # for the last spans; a collector that is away is waited for no longer
MAX_TRACESTATE = 512  # characters, as the specification wants it at least
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
NOT_INSTALLED = (
    "traces are configured (otlp_endpoint, or OTEL_EXPORTER_OTLP_ENDPOINT), but OpenTelemetry is not "
    "installed; install autosteer-server[otel], or unset them"
)


class TracingError(ValueError):
    """Traces are configured in a way that cannot be followed."""


def tracing_problem(settings: Settings) -> str | None:
    """Why `make_tracing` would fail; nothing is made, and little imported."""
    try:
        if _wanted(settings) and importlib.util.find_spec("opentelemetry.exporter") is None:
            return NOT_INSTALLED
    except TracingError as error:
        return str(error)
    except ModuleNotFoundError:
        return NOT_INSTALLED
    return None


def _wanted(settings: Settings) -> bool:
    """Whether the settings or OpenTelemetry's own variables ask for traces. Raises TracingError."""
    environment = os.environ
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or not (
        settings.otlp_endpoint or any(environment.get(name) for name in ENDPOINTS)
    ):
        return False
    exporter = environment.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter == "none":
        return False
    if exporter != "otlp":
        raise TracingError(f"OTEL_TRACES_EXPORTER is {exporter[:80]!r}; this server has otlp, or none")
    protocol = next((environment[name] for name in PROTOCOLS if environment.get(name)), "http/protobuf")
    if protocol != "http/protobuf":
        raise TracingError(
            f"the OTLP protocol is {protocol[:80]!r}; this server has http/protobuf, on port 4318 by custom"
        )
    return True


def make_tracing(settings: Settings) -> Tracing | None:
    """What the settings or OpenTelemetry's own variables ask for; None: nothing. Raises TracingError."""
    if not _wanted(settings):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError(NOT_INSTALLED) from error
    environment = os.environ
    named = "OTEL_SERVICE_NAME" in environment or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "autosteer"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    endpoint = settings.otlp_endpoint and settings.otlp_endpoint.rstrip("/") + "/v1/traces"
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return Tracing(provider)


class Tracing:
    """Makes the spans of one server. For the event loop; they are exported by a thread of the provider's."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("autosteer")
        self._propagator = TraceContextTextMapPropagator()
        self._trace = trace

    def begin(self, call: Call, headers: Mapping[str, str]) -> None:
        """Begin a request's span, as a part of the trace that its `traceparent` names."""
        given = {name: headers[name] for name in ("traceparent", "tracestate") if name in headers}
        if len(given.get("tracestate", "")) > MAX_TRACESTATE:
            del given["tracestate"]
        call.clock_offset = time.time_ns() - time.monotonic_ns()
        call.span = self._tracer.start_span(
            call.route or "",
            context=self._propagator.extract(given),
            kind=self._trace.SpanKind.SERVER,
            start_time=_nanoseconds(call, call.arrived),
        )
        call.trace_id = format(call.span.get_span_context().trace_id, "032x")
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, self._trace.set_span_in_context(call.span))
        outgoing.set(carrier)

    def end(self, call: Call) -> None:
        """End it, with a span for each part of its way."""
        span = call.span
        if span is None:
            return
        now = time.monotonic()
        if span.is_recording():
            span.set_attributes(_facts(call))
            if call.error is not None and call.error.status >= 500:
                span.set_status(self._trace.StatusCode.ERROR)
            if call.read is not None:
                self._part(call, span, "media", call.read, call.accepted or now)
            for request in [] if call.choices is None else [each.request for each in call.choices.generations]:
                self._parts_of(call, span, request, now)
        span.end(_nanoseconds(call, now))

    def _parts_of(self, call: Call, span: Span, request: Request, now: float) -> None:
        """Of each prompt: queue, prefill, probe; of each choice: decode."""
        times, decision = request.timings, request.decision
        if request.leader is None and call.accepted is not None:
            self._part(call, span, "queue", call.accepted, times.scheduled or now)
        if times.scheduled is None or times.prefilled is None:
            return
        probed = times.prefilled + times.guard_seconds
        if request.leader is None:
            tokens = {
                "gen_ai.usage.input_tokens": len(request.prompt.ids),
                "autosteer.image_tokens": request.prompt.image_tokens,
            }
            self._part(call, span, "prefill", times.scheduled, times.prefilled, tokens)
            if decision is not None and decision.score is not None:
                judged = {
                    "autosteer.guard.decision": decision.verdict.value,
                    "autosteer.guard.score": decision.score,
                    "autosteer.guard.threshold": request.policy.threshold,
                }
                self._part(call, span, "probe", times.prefilled, probed, judged)
        if times.first_token is not None:
            tokens = {"gen_ai.usage.output_tokens": len(request.output_ids)}
            self._part(call, span, "decode", probed, times.finished or now, tokens)

    def _part(
        self, call: Call, parent: Span, name: str, begin: float, end: float, facts: Mapping[str, Any] | None = None
    ) -> None:
        context = self._trace.set_span_in_context(parent)
        part = self._tracer.start_span(name, context, attributes=facts, start_time=_nanoseconds(call, begin))
        part.end(_nanoseconds(call, max(begin, end)))

    async def stop(self) -> None:
        """Export what is left, for `STOP_SECONDS` at most."""
        ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._provider.shutdown()
            with suppress(RuntimeError):  # nobody waited for it
                loop.call_soon_threadsafe(ended.set)

        threading.Thread(target=shut_down, name="traces", daemon=True).start()
        try:
            await asyncio.wait_for(ended.wait(), STOP_SECONDS)
        except TimeoutError:
            return


def _nanoseconds(call: Call, moment: float) -> int:
    """A moment of the monotonic clock as OpenTelemetry has it."""
    return int(moment * 1e9) + call.clock_offset


def _facts(call: Call) -> dict[str, Any]:
    method, _, route = (call.route or "").partition(" ")
    facts: dict[str, Any] = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": call.status,
        "autosteer.request_id": call.id,
        "autosteer.client": None if call.client is None else call.client.name,
        "autosteer.policy": None if call.policy is None else call.policy.name,
        "autosteer.mode": None if call.policy is None else call.policy.mode.value,
        "error.type": None if call.error is None else call.error.code or call.error.reason,
    }
    if call.choices is not None:
        facts["autosteer.choices"] = len(call.choices.generations)
        facts["autosteer.finish"] = None if call.choices.outcome is None else call.choices.outcome.value
    return {name: value for name, value in facts.items() if value is not None}
