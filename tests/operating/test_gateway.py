"""nginx with the shipped config before two real servers: streams, limits, errors, what is hidden, a death."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import httpx2
import openai
import pytest
from openai import OpenAI

from tests import plain_http
from tests.end_to_end.processes import user
from tests.end_to_end.test_guarded_answers import eos_tokens
from tests.operating.stack import MODEL, Stack
from tests.waiting import WAIT_SECONDS, wait_until

LONG, LONGER = 300, 600  # tokens
KEY = "research"  # of long streams: whatever a model says past an answer's end, this policy shows it as it comes
ERROR_FIELDS = {"message", "type", "param", "code"}


def stream(client: OpenAI, tokens: int = LONG) -> list[str]:
    """The pieces of a long stream."""
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=[user("hello")],
        stream=True,
        temperature=0,
        max_tokens=tokens,
        logit_bias={str(token): -100 for token in eos_tokens()},
    )
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]


def error_of(response: httpx.Response) -> dict[str, object]:
    """The error, which must be in OpenAI's shape."""
    assert response.headers["content-type"].startswith("application/json")
    error: dict[str, object] = response.json()["error"]
    assert set(error) == ERROR_FIELDS
    return error


def test_a_stream_is_what_the_server_sends(stack: Stack) -> None:
    """The same text. Where one piece ends is chance: what has come while the other side was busy is sent together."""
    direct, through = stream(stack.direct(stack.servers[0], KEY)), stream(stack.client(KEY))
    assert "".join(through) == "".join(direct)
    assert min(len(direct), len(through)) > LONG / 8


@pytest.mark.parametrize(
    "path",
    [
        "/metrics", "/metrics/", "//metrics", "/v1/../metrics", "/v1/%2e%2e/metrics", "/%6detrics", "/metrics?x=1",
        "/v1/..%2fmetrics", "/ready/../metrics", "/METRICS", "/v1/models/../../metrics", "/docs",
        "/gateway/no_route", "/gateway/broken",
    ],
)  # fmt: skip
def test_metrics_are_not_reachable(path: str, stack: Stack) -> None:
    with stack.http() as http:
        url = httpx.URL(stack.url).copy_with(raw_path=path.encode())
        response = http.get(url, headers={"authorization": f"Bearer {stack.keys['everyday']}"})
    assert response.status_code in (400, 404)
    assert "autosteer_num_requests" not in response.text
    assert error_of(response)["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/openapi.json", "/v1/models"])
def test_what_is_for_everybody_is_reachable(path: str, stack: Stack) -> None:
    assert stack.get(path).status_code == 200


@pytest.mark.chance
def test_the_gateway_names_the_request_for_the_server_and_its_own_log(stack: Stack) -> None:
    with stack.http() as http:
        headers = {"authorization": f"Bearer {stack.keys['everyday']}"}
        given = http.get("/v1/models", headers={**headers, "x-request-id": "mine-1"}).headers
        made = http.get("/v1/models", headers=headers).headers
        odd = http.get("/v1/models", headers={**headers, "x-request-id": "a b{}"}).headers
    assert given.get_list("x-request-id") == ["mine-1"]
    assert made["x-request-id"].startswith("req-")
    assert odd["x-request-id"].startswith("req-")
    ids = {made["x-request-id"], odd["x-request-id"], "mine-1"}
    wait_until(lambda: ids <= {str(line["request_id"]) for line in stack.access_log}, "the log lines")
    assert stack.keys["everyday"] not in (stack.folder / "access.log").read_text()
    wait_until(lambda: any("mine-1" in file.read_text() for file in stack.folder.glob("audit-*.jsonl")), "its record")


def test_an_error_of_the_server_passes_through_as_it_is(stack: Stack) -> None:
    with stack.http() as http:
        response = http.post("/v1/chat/completions", json={}, headers={"authorization": "Bearer wrong"})
    assert response.status_code == 401
    assert error_of(response)["code"] == "invalid_api_key"


def test_a_body_over_the_limit_is_413(stack: Stack) -> None:
    with stack.http() as http:
        response = http.post(
            "/v1/chat/completions",
            content=b"x" * (32 * 2**20 + 1),
            headers={"authorization": f"Bearer {stack.keys['everyday']}", "content-type": "application/json"},
        )
    assert response.status_code == 413
    assert error_of(response)["type"] == "invalid_request_error"
    with pytest.raises(openai.APIStatusError) as raised:
        stack.client().chat.completions.create(model=MODEL, messages=[user("x" * (33 * 2**20))])
    assert raised.value.status_code == 413


def test_a_head_and_a_url_over_the_limits_and_plain_http(stack: Stack) -> None:
    with stack.http() as http:
        head = http.get("/v1/models", headers={"x": "y" * 40_000})
        url = http.get("/v1/" + "y" * 40_000)
    assert (head.status_code, url.status_code) == (400, 414)
    assert error_of(head)["type"] == error_of(url)["type"] == "invalid_request_error"
    response = plain_http.get(stack.url.replace("https", "http") + "/v1/models")
    assert response.status_code == 400
    assert "HTTPS" in str(error_of(response)["message"])


def test_too_many_requests_of_one_address_are_429(stack: Stack) -> None:
    def ask(http: httpx.Client) -> httpx.Response:
        return http.get("/v1/models", headers={"authorization": f"Bearer {stack.keys['everyday']}"})

    def many(_: int) -> list[httpx.Response]:
        with stack.http() as http:
            return [ask(http) for _ in range(150)]

    with ThreadPoolExecutor(8) as pool:
        responses = [response for some in pool.map(many, range(8)) for response in some]
    refused = [response for response in responses if response.status_code == 429]
    assert {response.status_code for response in responses} == {200, 429}
    assert error_of(refused[0])["type"] == "rate_limit_error"
    assert refused[0].headers["retry-after"] == "1"
    assert refused[0].headers["x-request-id"]
    wait_until(lambda: stack.get("/v1/models").status_code == 200, "an end of the limit")


# a stack of their own: a server dies in each --------------------------------------------------------------------------


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path, watched=False) as running:
        yield running


@pytest.mark.chance
def test_a_server_that_dies_takes_only_its_own_streams(mortal: Stack) -> None:
    """Eight streams run, one server is killed: the other's all end well, and every new request is answered."""
    client = mortal.client(KEY)

    def one(_: int) -> str:
        try:
            return "whole" if len(stream(client, LONGER)) > LONGER / 2 else "short"
        except (openai.APIError, httpx2.HTTPError):
            return "broken"

    def running() -> list[float]:
        return [server.metric("autosteer_num_requests_running") for server in mortal.servers]

    with ThreadPoolExecutor(8) as pool:
        outcomes = pool.map(one, range(8))
        wait_until(lambda: sum(running()) == 8, "eight streams")
        dying, staying = running()
        assert dying == staying == 4, "least connections shares evenly"
        mortal.servers[0].process.kill()
        new = [stream(client, 20) for _ in range(10)]
        counted = sorted(outcomes)
    assert counted == ["broken"] * 4 + ["whole"] * 4
    assert all(new)


@pytest.mark.chance
def test_a_server_that_drains_refuses_nobody(mortal: Stack) -> None:
    """On SIGTERM its streams go on to their end, and what it turns away the other answers."""
    client = mortal.client(KEY)
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(stream, client, LONGER) for _ in range(4)]
        wait_until(lambda: sum(s.metric("autosteer_num_requests_running") for s in mortal.servers) == 4, "four streams")
        mortal.servers[0].process.send_signal(signal.SIGTERM)
        wait_until(lambda: plain_http.get(f"{mortal.servers[0].url}/ready").status_code == 503, "the drain")
        for _ in range(10):
            assert stream(client, 10)
        assert all(len(each.result()) > LONGER / 2 for each in streams)


# the gateway before servers of the test's own -----------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    """Is ready."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


class _Closing(_Handler):
    """Keeps no connection: none is left when its server has ended."""

    protocol_version = "HTTP/1.0"


class _Redirecting(_Handler):
    """Leads `/v1/here` to `/v1/there` of the host that the request names, over HTTP, as servers behind a gateway do."""

    def do_GET(self) -> None:
        if self.path != "/v1/here":
            super().do_GET()
            return
        self.send_response(307)
        self.send_header("location", f"http://{self.headers['host']}/v1/there")
        self.send_header("content-length", "0")
        self.end_headers()


class _StackBefore(Stack):
    """The gateway alone, before servers that answer as `handler` does."""

    def __init__(self, folder: Path, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(folder, watched=False)
        self._handler = handler
        self.behind: list[_Answering] = []

    @contextmanager
    def _server(self, name: str) -> Iterator[_Answering]:  # type: ignore[override]
        with ThreadingHTTPServer(("127.0.0.1", 0), self._handler) as server:
            answering = _Answering(server)
            self.behind.append(answering)
            try:
                yield answering
            finally:
                answering.end()


class _Answering:
    """A server of the test's own, in a thread."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.port = server.server_port
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever)
        self._thread.start()

    def end(self) -> None:
        """Listen no longer; a second time, nothing."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def test_with_no_server_left_the_gateway_says_so(tmp_path: Path) -> None:
    with _StackBefore(tmp_path, _Closing) as stack:
        assert stack.get("/v1/models").status_code == 200
        for server in stack.behind:
            server.end()
        response = stack.get("/v1/models")
    assert response.status_code == 503
    assert error_of(response) == {
        "message": "No server is there to answer.",
        "type": "server_error",
        "param": None,
        "code": "not_ready",
    }
    assert response.headers["retry-after"] == "1"


def test_a_redirect_keeps_the_port_and_https(tmp_path: Path) -> None:
    with _StackBefore(tmp_path, _Redirecting) as stack, stack.http() as http:
        redirect = http.get("/v1/here")
        assert redirect.status_code == 307
        assert redirect.headers["location"] == f"{stack.url}/v1/there"
        assert http.get(redirect.headers["location"]).status_code == 200


@pytest.mark.chance
def test_nothing_of_a_stream_is_held_back(tmp_path: Path) -> None:
    """The server sends each piece once the client has the one before: a gateway that kept one would hang both."""
    turn = threading.Semaphore()

    class Streaming(_Handler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for number in range(LONG):
                assert turn.acquire(timeout=WAIT_SECONDS), "the client has not got the piece before"
                data = b"data: %d\n\n" % number
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")

    got = []
    with (
        _StackBefore(tmp_path, Streaming) as stack,
        stack.http() as http,
        http.stream("POST", "/v1/chat/completions", json={"stream": True}) as response,
    ):
        for line in response.iter_lines():
            if line:
                got.append(line)
                turn.release()
    assert got == [f"data: {number}" for number in range(LONG)]
