"""JSON schemas that cost more than they show, asked of a real server: each is refused, and nobody else waits."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from tests.end_to_end.forked import ForkedServer
from tests.end_to_end.processes import ServerProcess
from tests.living import living
from tests.server.workers.test_schemas import multiples
from tests.waiting import WAIT_SECONDS, wait_until

HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "a large number": ({"type": "integer", "multipleOf": 9_999_991}, "'multipleOf': 9999991"),
    "a common multiple": ({"type": "integer", "allOf": [{"multipleOf": n} for n in (97, 89, 83)]}, "'multipleOf'"),
    "the same through references": (multiples(97, 89, 83), "make it simpler"),
    "optional properties": ({"type": "object", "properties": {f"p{i}": {} for i in range(3000)}}, "cannot be used"),
    "a long enumeration": ({"enum": [*range(100_000)]}, "8192 values"),
    "nested repetitions": ({"type": "string", "pattern": "(a{1000}){1000}"}, "repetitions"),
    "a deep nesting": ({"items": {"$ref": "#/items"}, "allOf": [[[[[[{"a": [[[[]]]]}]]]]]] * 9}, "cannot be used"),
}


def ask(server: ServerProcess, schema: dict[str, Any] | None = None) -> httpx.Response:
    """A short chat, bound to a schema if there is one."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return httpx.post(
        f"{server.url}/v1/chat/completions",
        json={
            "model": server.model,
            "messages": [{"role": "user", "content": "What is green?"}],
            "max_tokens": 3,
            **({} if schema is None else {"response_format": wanted}),
        },
        timeout=120,
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_a_schema_that_is_too_dear_is_400_and_says_why(guarded: ServerProcess, name: str) -> None:
    schema, words = HOSTILE[name]
    answer = ask(guarded, schema)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == "response_format.json_schema"
    assert words in error["message"]


@pytest.mark.chance
def test_others_are_served_while_dear_schemas_are_compiled(guarded: ServerProcess) -> None:
    small = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": False}
    before = guarded.rss_bytes
    with ThreadPoolExecutor(4) as threads:
        # New ones each time: the server remembers which were too dear, and refuses those at once.
        dear = [threads.submit(ask, guarded, multiples(97, 89, 83, title=str(uuid4()))) for _ in range(4)]
        assert ask(guarded).status_code == 200
        assert ask(guarded, small).status_code == 200
        assert ask(guarded, {**small, "title": "another"}).status_code == 200
        assert not all(each.done() for each in dear)
        assert httpx.get(f"{guarded.url}/ready").status_code == 200
        assert {each.result().status_code for each in dear} == {400}
    assert guarded.rss_bytes - before < 200e6


@pytest.mark.chance
def test_a_server_ends_in_spite_of_a_compile_that_runs() -> None:
    arguments = ["--mode", "off", "--schema-seconds", "600", "--schema-mib", "2048", "--drain-seconds", "0.5"]
    with ForkedServer(arguments) as server:
        server_process = psutil.Process(server.process.pid)
        assert ask(server).status_code == 200

        def ask_in_vain() -> None:
            with suppress(httpx.HTTPError):
                ask(server, multiples(97, 89, 83))

        asking = threading.Thread(target=ask_in_vain)
        asking.start()

        def compiles(process: psutil.Process) -> bool:
            return "server.workers.compiler" in process.cmdline() and process.parent() != server_process

        def compiling() -> list[psutil.Process]:
            return living(server_process.children(recursive=True), compiles)

        wait_until(compiling, "the schema to be compiled")
        started = server_process.children(recursive=True)
        server.process.terminate()
        server.process.wait(WAIT_SECONDS)
        asking.join()
        _, alive = psutil.wait_procs(started, timeout=WAIT_SECONDS)
        assert alive == []
