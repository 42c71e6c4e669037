"""Server-sent events: their order, and what happens when the reader leaves or stalls."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from starlette.types import Message

from server.errors import ClientGone
from server.http.streaming import unless_gone
from server.request import Finish, RequestFailed
from steering.policy import Verdict
from tests.server.scripted import (
    MODEL,
    REFUSAL,
    Connection,
    Script,
    ScriptedRunner,
    application,
    body,
    chat,
    client_of,
    content_of,
    error_of,
    events_of,
    metric,
    serving,
)

JSON = {"type": "json_object"}


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def gone() -> Message:
    return {"type": "http.disconnect"}


# order -------------------------------------------------------------------------------------------------------------


async def test_the_order_of_chunks_with_usage() -> None:
    async with serving(ScriptedRunner()) as client:
        response = await chat(client, "hé", stream=True, stream_options={"include_usage": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    first, *texts, last, usage = events_of(response.text)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert all(chunk["choices"][0]["delta"].keys() == {"content"} for chunk in texts)
    assert content_of(texts) == "hé"
    assert last["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    for chunk in (first, *texts):
        assert chunk["choices"][0]["finish_reason"] is None
    for chunk in (first, *texts, last):
        assert chunk["usage"] is None
    assert usage["choices"] == []
    assert (usage["usage"]["prompt_tokens"], usage["usage"]["completion_tokens"]) == (3, 3)
    assert usage["usage"]["total_tokens"] == 6


async def test_without_include_usage_no_chunk_mentions_it() -> None:
    async with serving(ScriptedRunner()) as client:
        for options in ({}, {"stream_options": {"include_usage": False}}, {"stream_options": None}):
            events = events_of((await chat(client, stream=True, **options)).text)
            assert not any("usage" in chunk for chunk in events)
            assert events[-1]["choices"][0]["finish_reason"] == "stop"


async def test_all_chunks_share_id_model_and_fingerprint() -> None:
    async with serving(ScriptedRunner()) as client:
        events = events_of((await chat(client, stream=True, stream_options={"include_usage": True})).text)
    names = ("id", "object", "created", "model", "system_fingerprint")
    assert len({tuple(chunk[name] for name in names) for chunk in events}) == 1
    assert (events[0]["object"], events[0]["model"]) == ("chat.completion.chunk", MODEL)
    assert events[0]["id"].startswith("chatcmpl-")


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one STOP two", ["STOP"], "one "),
        ("one STO two", ["STOP"], "one STO two"),
        ("one STO", ["STOP"], "one STO"),
        ("aab", ["ab"], "a"),
        ("STOP", ["STOP"], ""),
        ("x é y", ["é"], "x "),
        ("abcd", ["bcd", "c"], "ab"),
    ],
)
async def test_no_part_of_a_stop_string_is_shown(text: str, stops: list[str], expected: str) -> None:
    """One token is one byte here, so that every stop string lies across tokens."""
    runner = ScriptedRunner(answer=lambda _: Script.saying(text))
    async with serving(runner) as client:
        whole = (await chat(client, stop=stops)).json()["choices"][0]
        events = events_of((await chat(client, stop=stops, stream=True)).text)
        assert await metric(client, "autosteer_num_requests_waiting") == 0
    assert (whole["message"]["content"], whole["finish_reason"]) == (expected, "stop")
    shown = ""
    for chunk in events:
        shown += content_of([chunk])
        assert expected.startswith(shown)
    assert (shown, events[-1]["choices"][0]["finish_reason"]) == (expected, "stop")


@pytest.mark.parametrize("tokens", ["", "ab"])
async def test_a_failure_is_a_status_before_the_first_token_and_an_event_after_it(tokens: str) -> None:
    script = Script.saying(tokens, finish=Finish.ERROR, error=RequestFailed("inner"))
    async with serving(ScriptedRunner(answer=lambda _: script)) as client:
        response = await chat(client, stream=True, stream_options={"include_usage": True})
        if not tokens:
            assert error_of(response, 500)["code"] == "generation_failed"
            return
        *chunks, last = events_of(response.text)
        assert content_of(chunks) == "ab"
        assert list(last) == ["error"]
        assert (last["error"]["code"], last["error"]["type"]) == ("generation_failed", "server_error")
        assert "inner" not in response.text
        assert await metric(client, "autosteer_request_success_total", finished_reason="error") == 1


async def test_a_shutdown_ends_a_stream_with_an_error_event() -> None:
    runner = ScriptedRunner(answer=lambda _: Script.saying("a", finish=None))
    app = application(runner)
    async with client_of(app):
        connection = Connection(app, orjson.dumps(body(stream=True)))
        await connection.has_sent(2)
        await runner.stop()
        await connection.task
    *chunks, last = events_of(connection.text)
    assert content_of(chunks) == "a"
    assert last["error"]["code"] == "shutting_down"


def refusing(verdict: Verdict) -> ScriptedRunner:
    """A runner whose every request is flagged: steered to say the refusal, or blocked."""
    said = REFUSAL if verdict is Verdict.STEERED else ""
    script = Script.saying(said, verdict=verdict, score=0.9, finish=Finish.CONTENT_FILTER)
    return ScriptedRunner(answer=lambda _: script)


@pytest.mark.parametrize("verdict", [Verdict.STEERED, Verdict.BLOCKED])
async def test_a_flagged_stream_is_the_refusal_as_content(verdict: Verdict) -> None:
    async with serving(refusing(verdict)) as client:
        response = await chat(client, stream=True, stop=["help"], moderation={"model": MODEL})
    events = events_of(response.text)
    assert (content_of(events), content_of(events, "refusal")) == (REFUSAL, "")
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "refusal": None}
    assert events[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert events[0]["moderation"]["input"]["results"][0]["flagged"] is True
    assert not any("moderation" in chunk for chunk in events[1:])
    assert response.headers["x-autosteer-verdict"] == verdict.value
    assert response.headers["x-autosteer-score"] == "0.900000"


@pytest.mark.parametrize("verdict", [Verdict.STEERED, Verdict.BLOCKED])
async def test_a_flagged_stream_of_json_has_no_content_and_its_refusal_apart(verdict: Verdict) -> None:
    async with serving(refusing(verdict)) as client:
        response = await chat(client, stream=True, response_format=JSON)
    first, *rest, last = [event["choices"][0] for event in events_of(response.text)]
    assert first["delta"] == {"role": "assistant", "content": None, "refusal": ""}
    assert all(choice["delta"].keys() == {"refusal"} for choice in rest)
    assert "".join(choice["delta"]["refusal"] for choice in rest) == REFUSAL
    assert (last["delta"], last["finish_reason"]) == ({}, "stop")


async def test_the_official_client_reads_either_refusal_once() -> None:
    from openai.lib.streaming.chat import ChatCompletionStreamState
    from openai.types.chat import ChatCompletionChunk

    shapes: list[tuple[dict[str, Any], str | None, str | None]] = [
        ({}, REFUSAL, None),
        ({"response_format": JSON}, None, REFUSAL),
    ]
    for options, content, refusal in shapes:
        async with serving(refusing(Verdict.STEERED)) as client:
            state: Any = ChatCompletionStreamState()
            for event in events_of((await chat(client, stream=True, **options)).text):
                state.handle_chunk(ChatCompletionChunk.model_validate(event))
        message = state.current_completion_snapshot.choices[0].message
        assert (message.content, message.refusal) == (content, refusal)


# keep-alives -------------------------------------------------------------------------------------------------------


async def test_a_stream_that_waits_gets_its_status_line_and_comments_and_then_its_answer() -> None:
    go = asyncio.Event()
    runner = ScriptedRunner(answer=lambda text: Script.saying(text), gate=go)
    app = application(runner, keep_alive_seconds=0.02)
    async with client_of(app):
        data = body("abc", stream=True, moderation={"model": MODEL})
        connection = Connection(app, orjson.dumps(data))
        await connection.has_sent(4)
        assert connection.text == ": keep-alive\n\n" * 3
        assert b"x-autosteer-verdict" not in dict(connection.sent[0]["headers"])  # it was not known yet
        go.set()
        await connection.task
    events = events_of("".join(each + "\n\n" for each in connection.text.split("\n\n")[:-1] if each[0] != ":"))
    assert content_of(events) == "abc"
    assert events[0]["moderation"]["input"]["results"][0]["flagged"] is False


async def test_a_failure_after_the_status_line_is_an_event() -> None:
    go = asyncio.Event()
    script = Script(finish=Finish.ERROR, error=RequestFailed("inner"))
    runner = ScriptedRunner(answer=lambda _: script, gate=go)
    app = application(runner, keep_alive_seconds=0.02)
    async with client_of(app):
        connection = Connection(app, orjson.dumps(body(stream=True)))
        await connection.has_sent(2)
        go.set()
        await connection.task
    assert connection.sent[0]["status"] == 200
    error, done, _ = [each for each in connection.text.split("\n\n") if not each.startswith(":")]
    assert orjson.loads(error.removeprefix("data: "))["error"]["code"] == "generation_failed"
    assert done == "data: [DONE]"


async def test_comments_come_between_tokens_that_are_far_apart_and_not_between_others() -> None:
    for pause, expected in ((0.05, True), (0, False)):
        runner = ScriptedRunner(answer=lambda _, pause=pause: Script.saying("ab", pause=pause))  # type: ignore[misc]
        app = application(runner, keep_alive_seconds=0.02)
        async with client_of(app):
            connection = Connection(app, orjson.dumps(body(stream=True)))
            await connection.task
        assert (": keep-alive\n\n" in connection.text) is expected
        assert connection.text.endswith("data: [DONE]\n\n")


async def test_a_waiting_reader_who_takes_no_comments_is_dropped() -> None:
    runner = ScriptedRunner(gate=asyncio.Event())
    app = application(runner, keep_alive_seconds=0.01, stall_seconds=0.05)
    async with client_of(app) as client:
        await Connection(app, orjson.dumps(body(stream=True)), reads=2).task
        assert runner.aborted == [runner.requests[0].id]
        assert await metric(client, "autosteer_request_success_total", finished_reason="abort") == 1


# readers -----------------------------------------------------------------------------------------------------------


async def test_a_reader_who_leaves_a_stream_aborts_it() -> None:
    runner = ScriptedRunner(answer=lambda _: Script.saying("ab", finish=None))
    app = application(runner)
    async with client_of(app) as client:
        connection = Connection(app, orjson.dumps(body(stream=True)))
        await connection.has_sent(3)
        await connection.leave()
        assert runner.aborted == [runner.requests[0].id]
        assert await metric(client, "autosteer_request_success_total", finished_reason="abort") == 1
        assert runner.live == 0


async def test_a_reader_who_leaves_before_a_whole_answer_aborts_it() -> None:
    runner = ScriptedRunner(answer=lambda _: Script.saying("ab", finish=None))
    app = application(runner)
    async with client_of(app) as client:
        connection = Connection(app, orjson.dumps(body()))
        await runner.accepted(1)
        await connection.leave()
        assert runner.aborted == [runner.requests[0].id]
        assert await metric(client, "autosteer_request_success_total", finished_reason="abort") == 1


async def test_a_reader_who_leaves_a_stream_before_its_first_token_aborts_it() -> None:
    runner = ScriptedRunner(answer=lambda _: Script(finish=None))
    app = application(runner)
    async with client_of(app):
        connection = Connection(app, orjson.dumps(body(stream=True)))
        await runner.accepted(1)
        await connection.leave()
    assert runner.aborted == [runner.requests[0].id]


async def test_a_client_who_leaves_while_its_prompt_is_made_never_reaches_the_engine() -> None:
    runner = ScriptedRunner()
    app = application(runner, prepare_threads=1, max_rows=1, max_queue=0)
    async with client_of(app) as client:
        runner.inputs.gate.clear()
        connection = Connection(app, orjson.dumps(body("first")))
        await asyncio.to_thread(runner.inputs.entered.wait)
        await connection.leave()
        runner.inputs.gate.set()
        assert (await chat(client, "second")).status_code == 200  # its place was given back
    assert [bytes(r.prompt.ids) for r in runner.requests] == [b"second"]


async def test_a_client_who_leaves_within_its_body_is_forgotten() -> None:
    runner = ScriptedRunner()
    app = application(runner, max_rows=1, max_queue=0)
    async with client_of(app) as client:
        await Connection(app, None).leave()
        assert (await chat(client)).status_code == 200
    assert len(runner.requests) == 1


async def test_a_reader_who_stalls_is_dropped_and_its_row_freed() -> None:
    runner = ScriptedRunner(answer=lambda _: Script.saying("abcdef", finish=None))
    app = application(runner, stall_seconds=0.02)
    async with client_of(app) as client:
        connection = Connection(app, orjson.dumps(body(stream=True)), reads=2)
        await connection.task
        assert len(connection.sent) == 2
        assert runner.aborted == [runner.requests[0].id]
        assert await metric(client, "autosteer_request_success_total", finished_reason="abort") == 1


async def test_a_model_that_takes_longer_than_the_stall_is_waited_for() -> None:
    """`stall_seconds` is about readers. Here the first token takes far longer."""
    runner = ScriptedRunner(answer=lambda text: Script.saying(text, pause=0.01))
    async with serving(runner, stall_seconds=0.001) as client:
        events = events_of((await chat(client, "abc", stream=True)).text)
    assert content_of(events) == "abc"


# unless_gone -------------------------------------------------------------------------------------------------------


async def test_work_that_is_done_is_returned_even_if_the_client_has_left() -> None:
    async def work() -> int:
        return 5

    assert await unless_gone(gone, work()) == 5
    assert await unless_gone(never, work()) == 5


async def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> int:
        raise ValueError("inner")

    with pytest.raises(ValueError, match="inner"):
        await unless_gone(never, work())


async def test_a_client_that_leaves_cancels_the_work_and_waits_for_its_clean_up() -> None:
    steps: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    with pytest.raises(ClientGone):
        await unless_gone(gone, work())
    assert steps == ["cleaned up"]


async def test_the_rest_of_a_body_is_no_disconnect() -> None:
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else await never()

    async def work() -> int:
        for _ in range(5):
            await asyncio.sleep(0)
        return 5

    assert await unless_gone(receive, work()) == 5


async def test_a_client_that_leaves_as_the_work_is_done_cancels_nothing_that_comes_after_it() -> None:
    left, done = asyncio.Event(), asyncio.Event()

    async def receive() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    async def work() -> int:
        await done.wait()
        return 5

    async def both() -> int:
        found = await unless_gone(receive, work())
        for _ in range(3):
            await asyncio.sleep(0)
        return found

    task = asyncio.create_task(both())
    await asyncio.sleep(0.01)
    left.set()
    done.set()
    assert await task == 5


async def test_every_chunk_tells_the_usage_so_far_where_that_is_asked_for() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with serving(ScriptedRunner()) as client:
        events = events_of((await chat(client, "abc", stream=True, stream_options=options)).text)
        completion = await client.post(
            "/v1/completions", json={"model": MODEL, "prompt": "abc", "stream": True, "stream_options": options}
        )
    for found in (events, events_of(completion.text)):
        counts = [event["usage"]["completion_tokens"] for event in found]
        assert counts == sorted(counts)
        assert counts[-1] == 3
        assert all(event["usage"]["prompt_tokens"] == 3 for event in found)
