"""Asking servers: what is sent, what is read from a stream, what a failure leaves behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.progress import Progress
from starlette.responses import Response

from steering.data.questions import Question, Turn
from steering.errors import RunError
from steering.evaluation import remote
from steering.evaluation.remote import FAILURES_IN_A_ROW, Remote, look
from steering.evaluation.sets import Row
from steering.evaluation.store import Output, Store
from steering.evaluation.suite import Asked
from tests.steering.evaluation.conftest import FakeServer, status


def stream(*chunks: dict[str, Any], usage: int = 3) -> Response:
    whole = [{"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", **chunk} for chunk in chunks]
    whole.append(
        {**whole[0], "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": usage, "total_tokens": 4}}
    )
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in whole) + "data: [DONE]\n\n"
    return Response(body, media_type="text/event-stream")


def delta(finish: str | None = None, **content: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": content, "finish_reason": finish}]}


def asked(*texts: str) -> list[Asked]:
    return [Asked("s", "harmful", Row(text, Question(text)), 7) for text in texts]


def ask(fake: FakeServer, folder: Path, rows: Sequence[Asked], **more: Any) -> dict[str, Output]:
    told = Remote("it", fake.url, retries=0, **more)
    with Store(folder, {"suite": "x"}) as store, Progress(disable=True) as progress:
        return remote.answer_all(told, rows, store, progress)


def test_a_stream_becomes_an_answer(fake: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda _: stream(delta(content="a "), delta(content="cake"), delta("stop"))
    found = ask(fake, tmp_path, asked("one"))["s/one"]
    assert (found.text, found.tokens, found.finish, found.flagged, found.error) == ("a cake", 3, "stop", False, None)
    assert found.first_token is not None
    assert found.seconds is not None
    assert 0 < found.first_token <= found.seconds
    (body,) = fake.bodies
    assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 7, "m")
    assert "moderation" not in body  # only this project's servers know it


def test_the_turns_around_a_question_are_sent(fake: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda _: stream(delta(content="a"), delta("stop"))
    question = Question("q", before=(Turn("system", "s"),), after=(Turn("assistant", "a"), Turn("user", "go on")))
    ask(fake, tmp_path, [Asked("s", "harmful", Row("r", question), 5)])
    assert fake.bodies[0]["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "go on"},
    ]


@pytest.mark.parametrize(
    "chunks",
    [
        (delta(content="no"), delta("content_filter")),
        (delta(content="no", refusal="no"), delta("stop")),
    ],
)
def test_a_filtered_answer_of_any_server_is_flagged(
    chunks: tuple[dict[str, Any], ...], fake: FakeServer, tmp_path: Path
) -> None:
    fake.answer = lambda _: stream(*chunks)
    assert ask(fake, tmp_path, asked("one"))["s/one"].flagged is True


def test_our_servers_are_asked_for_the_score_and_may_be_given_a_mode(fake: FakeServer, tmp_path: Path) -> None:
    fake.owner = "autosteer"
    result = {"flagged": True, "category_scores": {"unsafe": 0.75}}
    first = {**delta(content=""), "moderation": {"input": {"results": [result]}}}
    fake.answer = lambda _: stream(first, delta("stop", content="x"))
    found = ask(fake, tmp_path, asked("one"), mode="steer-always")["s/one"]
    assert (found.score, found.detected, found.flagged) == (0.75, True, False)  # seen, and nothing was done about it
    assert fake.bodies[0]["guard"] == {"mode": "steer", "threshold": 0.0, "output": {"mode": "off"}}
    assert fake.bodies[0]["moderation"] == {"model": "m"}


def test_images_are_sent_without_loss(fake: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda _: stream(delta("stop", content="x"))
    ask(fake, tmp_path, [Asked("s", "harmful", Row("r", Question("q", [Image.new("RGB", (3, 3), "red")])), 5)])
    parts = fake.bodies[0]["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "text"]
    assert parts[0]["image_url"]["url"].startswith("data:image/png;base64,")


def test_a_row_that_fails_says_why_and_is_asked_again_and_the_others_are_not(fake: FakeServer, tmp_path: Path) -> None:
    def answer(body: dict[str, Any]) -> Response:
        text = body["messages"][0]["content"][-1]["text"]
        return status(400) if text == "bad" else stream(delta("stop", content=text))

    fake.answer = answer
    rows = asked("good", "bad")
    found = ask(fake, tmp_path, rows)
    assert found["s/good"].error is None
    assert str(found["s/bad"].error).startswith("400")
    fake.bodies.clear()
    fake.answer = lambda body: stream(delta("stop", content=body["messages"][0]["content"][-1]["text"]))
    assert ask(fake, tmp_path, rows)["s/bad"].text == "bad"
    assert len(fake.bodies) == 1


def test_a_stream_that_breaks_off_is_a_failure_and_no_short_answer(fake: FakeServer, tmp_path: Path) -> None:
    fake.answer = lambda _: stream(delta(content="half an ans"))
    assert "finish_reason" in str(ask(fake, tmp_path, asked("one"))["s/one"].error)


def test_a_server_that_is_gone_ends_the_run_and_nothing_is_lost(fake: FakeServer, tmp_path: Path) -> None:
    good = 5

    def answer(body: dict[str, Any]) -> Response:
        if len(fake.bodies) <= good:
            return stream(delta("stop", content="x"))
        return Response("{", media_type="text/event-stream", headers={"content-length": "1000"})  # breaks off

    fake.answer = answer
    rows = asked(*(f"r{n}" for n in range(200)))
    with pytest.raises(RunError, match="in a row failed"):
        ask(fake, tmp_path, rows, concurrency=1)
    assert len(fake.bodies) == good + FAILURES_IN_A_ROW
    with Store(tmp_path, {"suite": "x"}) as store:
        kept = store.outputs("url:it")
    assert sum(output.error is None for output in kept.values()) == good


def test_a_server_that_cannot_be_used_is_one_clear_error(fake: FakeServer) -> None:
    assert look(Remote("it", fake.url)).model == "m"
    with pytest.raises(RunError, match=r"no model 'other'; it has m"):
        look(Remote("it", fake.url, model="other"))
    with pytest.raises(RunError, match="mode block"):
        look(Remote("it", fake.url, mode="block"))
    with pytest.raises(RunError, match=r"it=http://127\.0\.0\.1:9/v1"):
        look(Remote("it", "http://127.0.0.1:9/v1", retries=0))


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["socks", "socks5"])
def test_a_proxy_that_cannot_be_used_is_one_line_that_names_the_variable(
    fake: FakeServer, monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
) -> None:
    monkeypatch.setenv(name, f"{scheme}://127.0.0.1:9")
    with pytest.raises(RunError, match=f"the proxy in {name} cannot be used, unset it") as caught:
        look(Remote("it", fake.url))
    assert "\n" not in str(caught.value)
