"""Traces of requests through the application, on a small engine; and a collector that is there, or is not."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import ValidationError

from server.app import create_app
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.record.tracing import Tracing, TracingError, make_tracing
from server.settings.schema import Settings
from tests.server.fakes import as_any
from tests.server.in_thread import engine_client
from tests.server.scripted import MODEL, ScriptedRunner, body, chat, client_of, data_url, png
from tests.server.test_app_on_engine import HARMFUL, HARMLESS, Backbone, Guard, loaded
from tests.waiting import WAIT_SECONDS, until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "the secret of the prompt"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT", "PROTOCOL", "TRACES_PROTOCOL"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)


def memory() -> tuple[Tracing, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracing(provider), exporter


def app_on_engine(tracing: Tracing | None) -> Any:
    def make() -> OwnEngine:
        return OwnEngine(as_any(Backbone()), as_any(Guard()), Scheduler(4, 1000))

    return create_app(Settings(), engine_client(make), name=MODEL, tracing=tracing)


def named(spans: tuple[ReadableSpan, ...]) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans}


def times(span: ReadableSpan) -> tuple[int, int]:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.start_time, span.end_time


async def test_a_request_is_its_parts_one_after_another_in_the_trace_of_the_caller() -> None:
    tracing, exporter = memory()
    async with loaded(app_on_engine(tracing)) as client:
        await client.post(
            "/v1/chat/completions",
            json=body(HARMFUL + SECRET, temperature=0, max_tokens=3, user=SECRET),
            headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "gw=1", "x-request-id": "gw-1"},
        )
    spans = named(exporter.get_finished_spans())
    assert spans.keys() == {"POST /v1/chat/completions", "media", "queue", "prefill", "probe", "decode"}
    root = spans.pop("POST /v1/chat/completions")
    assert root.parent is not None
    assert (format(root.parent.span_id, "016x"), root.context.trace_state.get("gw")) == (PARENT, "1")
    assert all(format(span.context.trace_id, "032x") == TRACE for span in spans.values())
    assert all(span.parent is not None and span.parent.span_id == root.context.span_id for span in spans.values())
    before = times(root)[0]
    for name in ("media", "queue", "prefill", "probe", "decode"):
        begin, end = times(spans[name])
        assert before <= begin <= end <= times(root)[1], name
        before = end if name != "media" else begin  # the engine's thread may take it before the loop has noted so
    facts = dict(root.attributes or {})
    assert facts["autosteer.request_id"] == "gw-1"
    assert (facts["http.route"], facts["http.response.status_code"]) == ("/v1/chat/completions", 200)
    assert dict(spans["probe"].attributes or {})["autosteer.guard.decision"] == "steered"
    assert dict(spans["decode"].attributes or {})["gen_ai.usage.output_tokens"] == 3
    assert SECRET not in "".join(span.to_json() for span in (root, *spans.values()))


async def test_several_choices_are_several_decodes_and_streams_are_traced_too() -> None:
    tracing, exporter = memory()
    async with loaded(app_on_engine(tracing)) as client:
        await chat(client, HARMLESS, n=3, max_tokens=2, stream=True)
    names = [span.name for span in exporter.get_finished_spans()]
    assert names.count("decode") == 3
    assert names.count("prefill") == names.count("probe") == 1


@pytest.mark.parametrize(
    "given",
    ["", "forged\n", f"00-{TRACE}-{PARENT}", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "x" * 5000],
)
async def test_a_wrong_traceparent_begins_a_trace_of_its_own(given: str) -> None:
    tracing, exporter = memory()
    async with client_of(create_app(Settings(), as_any(ScriptedRunner()), name=MODEL, tracing=tracing)) as client:
        await client.get("/v1/models", headers={"traceparent": given.strip(), "tracestate": "a=" + "b" * 600})
    (span,) = exporter.get_finished_spans()
    assert span.parent is None
    assert not span.context.trace_state


async def test_who_did_not_sample_is_obeyed_and_health_is_no_trace() -> None:
    tracing, exporter = memory()
    async with client_of(create_app(Settings(), as_any(ScriptedRunner()), name=MODEL, tracing=tracing)) as client:
        await client.get("/health")
        await client.get("/metrics")
        await client.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-00"})
    assert not exporter.get_finished_spans()


async def test_a_refused_request_ends_with_what_there_is() -> None:
    tracing, exporter = memory()
    async with client_of(create_app(Settings(), as_any(ScriptedRunner()), name=MODEL, tracing=tracing)) as client:
        await chat(client, "x", data_url(png()[:20]))
        await client.post("/v1/chat/completions", content=b"{", headers={"content-type": "application/json"})
    first, second = (span for span in exporter.get_finished_spans() if span.name != "media")
    assert dict(first.attributes or {})["error.type"] == "invalid_image"
    assert dict(second.attributes or {})["error.type"] == "invalid_json"
    assert [span.name for span in exporter.get_finished_spans()].count("media") == 1


# collectors --------------------------------------------------------------------------------------------------------


@contextmanager
def collector(answers: threading.Event | None = None) -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """A server on loopback that takes OTLP over HTTP, and answers once `answers` is set."""
    got: list[ExportTraceServiceRequest] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            assert self.headers["content-type"] == "application/x-protobuf"
            data = self.rfile.read(int(self.headers["content-length"]))
            got.append(ExportTraceServiceRequest.FromString(data))
            if answers is not None:
                answers.wait(WAIT_SECONDS)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("by", ["setting", "variable"])
async def test_spans_reach_a_collector_before_the_server_ends(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with collector() as (url, got):
        if by == "variable":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        settings = Settings(otlp_endpoint=url if by == "setting" else None)
        async with loaded(app_on_engine(make_tracing(settings))) as client:
            await chat(client, HARMLESS, max_tokens=2)
    resources = [each for request in got for each in request.resource_spans]
    names = [span.name for each in resources for scope in each.scope_spans for span in scope.spans]
    assert sorted(names) == ["POST /v1/chat/completions", "decode", "media", "prefill", "probe", "queue"]
    attributes = {each.key: each.value.string_value for each in resources[0].resource.attributes}
    assert attributes["service.name"] == "autosteer"


async def fifty_answers(client: httpx.AsyncClient) -> set[int]:
    answers = await asyncio.gather(*(chat(client, HARMLESS, max_tokens=2) for _ in range(50)))
    return {answer.status_code for answer in answers}


@pytest.mark.chance
async def test_a_collector_that_is_down_fails_nothing() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # it does not listen, and nobody else can
        settings = Settings(otlp_endpoint=f"http://127.0.0.1:{closed.getsockname()[1]}")
        async with loaded(app_on_engine(make_tracing(settings))) as client:
            assert await fifty_answers(client) == {200}


@pytest.mark.chance
async def test_a_collector_that_takes_its_time_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers nobody before the clients have all their answers, and is sent to while they wait for them."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")  # milliseconds until spans are sent
    answered = threading.Event()
    with collector(answered) as (url, got):
        async with loaded(app_on_engine(make_tracing(Settings(otlp_endpoint=url)))) as client:
            assert await fifty_answers(client) == {200}
            await until(lambda: got, "what is sent to the collector")
            assert await fifty_answers(client) == {200}
            answered.set()


async def test_traces_are_off_unless_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_tracing(Settings()) is None
    for name, value in (("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert make_tracing(Settings(otlp_endpoint="http://127.0.0.1:4318")) is None


@pytest.mark.parametrize(
    ("name", "value"), [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]
)
def test_what_cannot_be_followed_is_a_mistake(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(TracingError, match=value):
        make_tracing(Settings(otlp_endpoint="http://127.0.0.1:4318"))


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingError, match=r"install autosteer-server\[otel\]"):
        make_tracing(Settings(otlp_endpoint="http://127.0.0.1:4318"))


@pytest.mark.parametrize("url", ["collector:4318", "http://user:word@collector", "http://a b", "http://c/?key=1"])
def test_an_endpoint_is_a_url_without_secrets(url: str) -> None:
    with pytest.raises(ValidationError):
        Settings(otlp_endpoint=url)
