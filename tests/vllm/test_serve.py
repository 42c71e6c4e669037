"""A server with `--engine vllm`, as a user starts it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import psutil
import pytest
from openai import APIError

from models.demo.dialogue import pairs
from tests import plain_http
from tests.end_to_end.processes import ON_VLLM, ServerProcess, user
from tests.vllm.models import tiny_model
from tests.waiting import wait_until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
START_SECONDS = 500
STREAMS = 16
WATCHED = {"AUTOSTEER_OUTPUT": json.dumps({"mode": "monitor"})}


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with ServerProcess(ON_VLLM, environment=WATCHED, start_seconds=START_SECONDS) as server:
        yield server


def test_it_answers_refuses_and_follows_schemas(server: ServerProcess) -> None:
    pair = next(pair for pair in pairs(1, seed=921, split="test") if pair.kind == "cross")
    for example, reason in ((pair.safe, "stop"), (pair.toxic, "content_filter")):
        messages = [user(example.question, *([example.image] if example.image else []))]
        answer = server.client.chat.completions.create(model=server.model, messages=messages, max_tokens=40)
        assert answer.choices[0].finish_reason == reason
        assert answer.choices[0].message.content
    assert server.metric("autosteer_guard_decisions_total", decision="steered") == 1
    assert server.metric("vllm:generation_tokens_total", model_name=server.model) > 0
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
    }
    answer = server.client.chat.completions.create(
        model=server.model,
        messages=[user("What colour is the sign?")],
        response_format={"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema}},
    )
    assert json.loads(answer.choices[0].message.content or "")["colour"] in ("red", "blue")


def test_each_stream_of_an_engine_that_is_killed_ends_once_and_another_one_starts(server: ServerProcess) -> None:
    """On one rank its process holds all of vLLM: core and worker."""
    kill_under_streams(server, lambda: server.engine)


def test_each_stream_of_two_ranks_of_which_one_is_killed_ends_once_and_others_start(tmp_path: Path) -> None:
    """Also where one dies while there is nothing to compute."""
    model, guard, _ = tiny_model("llama", tmp_path, max_position_embeddings=2048)
    given = [*ON_VLLM, "--model", str(model), "--guard", str(guard), "--tensor-parallel", "2", "--threshold", "1"]
    with ServerProcess(given, environment=WATCHED, start_seconds=START_SECONDS) as server:
        kill_under_streams(server, lambda: ranks(server)[1])
        ranks(server)[0].kill()
        wait_until(lambda: server.metric("autosteer_engine_restarts_total") == 2, "another engine", START_SECONDS)


def ranks(server: ServerProcess) -> list[psutil.Process]:
    """The processes of vLLM's workers."""
    children = server.engine.children()
    found = [each for each in children if "resource_tracker" not in " ".join(each.cmdline())]
    assert len(found) == 2
    return found


def kill_under_streams(server: ServerProcess, victim: Callable[[], psutil.Process]) -> None:
    """Each stream ends once, and the server answers again."""
    endless = {"max_tokens": 600, "logit_bias": {str(eos): -100 for eos in range(3)}, "stream": True}
    under_way = Barrier(STREAMS + 1)

    def ended(number: int) -> tuple[str | None, list[str | None]]:
        """The error that a stream ended with, and the reasons to end that it told."""
        reasons = []
        try:
            stream = server.client.chat.completions.create(  # type: ignore[call-overload]
                model=server.model, messages=[user(f"hello {number}")], **endless
            )
            for place, chunk in enumerate(stream):
                reasons += [choice.finish_reason for choice in chunk.choices if choice.finish_reason]
                if place == 1:
                    under_way.wait()
        except APIError as error:
            return error.code, reasons
        return None, reasons

    with ThreadPoolExecutor(STREAMS) as clients:
        streams = [clients.submit(ended, number) for number in range(STREAMS)]
        under_way.wait()
        victim().kill()
        found = [stream.result() for stream in streams]
    assert found == [("engine_failed", [])] * STREAMS
    wait_until(lambda: plain_http.get(f"{server.url}/ready").status_code == 200, "another engine", START_SECONDS)
    server.client.chat.completions.create(model=server.model, messages=[user("hello")], max_tokens=4)
    assert server.metric("autosteer_engine_restarts_total") == 1
