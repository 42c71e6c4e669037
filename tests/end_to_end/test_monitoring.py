"""A real server as it is watched: JSON lines alone, a shadow, and traces at a collector."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from models.demo import GUARD
from tests.end_to_end.commands import run
from tests.end_to_end.forked import ForkedServer
from tests.end_to_end.processes import user
from tests.server.record.test_tracing import collector
from tests.waiting import wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SECRET = "xyzzy-secret"


def raw(port: int, request: bytes) -> bytes:
    """What the server answers to bytes that no client library would send."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_what_a_watched_server_tells(tmp_path: Path) -> None:
    config = tmp_path / "autosteer.yaml"
    with collector() as (url, got):
        settings = {
            "log_format": "json",
            "access_log": True,
            "otlp_endpoint": url,
            "shadow": {"name": "candidate", "guard": str(GUARD), "threshold": 0.0},
            "audit": {"url": f"file://{tmp_path}/audit.jsonl"},
        }
        config.write_text(json.dumps(settings))  # which YAML is a superset of
        with ForkedServer(["--config", str(config)]) as server:
            answer = server.client.chat.completions.create(
                model=server.model,
                messages=[user("How do I make a cake?")],
                extra_headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-request-id": "gw-1"},
            )
            assert answer.choices[0].message.content
            forged = b'x"}\r\n\t{"level":"forged"}'
            for head in (
                b"X-Request-Id: " + forged,
                b"User-Agent: \x1b[31m" + SECRET.encode(),
                b"Traceparent: \xff\xfe",
            ):
                line = b"GET /v1/models?key=" + SECRET.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                raw(server.port, line + head + b"\r\n\r\n")
            raw(server.port, b"GET /%0a%7b%22level%22:%22forged%22%7d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            raw(server.port, b"NONSENSE " + SECRET.encode() + b"\r\n\r\n")
            labels = {"policy": "default", "shadow": "candidate", "acting": "pass", "decision": "monitored"}
            wait_until(
                lambda: server.metric("autosteer_shadow_decisions_total", **labels) == 1, "the shadow's decision"
            )
            wait_until(lambda: server.metric("autosteer_guard_drift_window", policy="default") == 1, "the score")
            wait_until(lambda: len((tmp_path / "audit.jsonl").read_text().splitlines()) >= 2, "both records")
    lines: list[dict[str, Any]] = [json.loads(line) for line in server.log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    assert SECRET not in server.log
    assert not [line for line in lines if line["level"] == "forged"]
    assert next(line["message"] for line in lines if line["logger"] == "server.ready").startswith("http://127.0.0.1:")
    (access,) = [line for line in lines if line.get("request_id") == "gw-1"]
    assert (access["route"], access["status"], access["trace_id"]) == ("/v1/chat/completions", 200, TRACE)
    records = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    (record,) = [record for record in records if record["request_id"] == "gw-1"]
    assert (record["decision"], record["shadow"], record["shadow_decision"]) == ("pass", "candidate", "monitored")
    assert record["shadow_score"] == record["score"]
    spans = [s for request in got for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
    assert {span.name for span in spans if span.trace_id.hex() == TRACE} == {
        "POST /v1/chat/completions", "media", "queue", "prefill", "probe", "decode",
    }  # fmt: skip


def test_a_shadow_of_another_model_is_refused_with_what_differs(tmp_path: Path) -> None:
    text = (GUARD / "guard.json").read_text()
    (tmp_path / "guard.safetensors").write_bytes((GUARD / "guard.safetensors").read_bytes())
    (tmp_path / "guard.json").write_text(text.replace("LlavaOnevisionForConditionalGeneration", "OtherForGeneration"))
    config = tmp_path / "autosteer.yaml"
    config.write_text(json.dumps({"port": 0, "shadow": {"guard": str(tmp_path)}}))
    result = run("serve", "--config", str(config))
    assert result.returncode == 2
    assert "shadow: the guard was fitted on" in result.stderr
    assert "OtherForGeneration" in result.stderr
    assert "Traceback" not in result.stderr
    config.write_text(json.dumps({"shadow": {"target_fpr": 0.2}}))
    checked = run("config", "check", str(config))
    assert checked.returncode == 2
    assert "shadow: target_fpr 0.2 is not calibrated" in checked.stderr
