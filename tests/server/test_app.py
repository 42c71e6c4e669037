"""The HTTP half as its users meet it: routes, limits, errors, answers. The engine is scripted, all else is real."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from server.api.chat_request import ChatCompletionRequest
from server.request import EngineFailed, Finish, RequestFailed
from server.settings.schema import Settings
from server.version import server_version
from server.watch.metrics import Metrics
from steering.policy import Verdict
from tests.server.scripted import (
    CONTEXT,
    IMAGE_TOKENS,
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
    data_url,
    error_of,
    events_of,
    metric,
    png,
    serving,
)
from tests.waiting import until

CHAT = "/v1/chat/completions"
GOOD = data_url(png())


# answers -----------------------------------------------------------------------------------------------------------


async def test_a_whole_answer() -> None:
    before = int(time.time())
    async with serving(ScriptedRunner()) as client:
        response = await chat(client, "hé", GOOD, metadata={"k": "v"})
    answer = response.json()
    assert response.status_code == 200
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", answer.pop("id"))
    assert re.fullmatch(r"fp_[0-9a-f]{10}", answer.pop("system_fingerprint"))
    assert before <= answer.pop("created") <= time.time()
    message = {"role": "assistant", "content": "hé", "refusal": None}
    assert answer == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 3 + IMAGE_TOKENS,
            "completion_tokens": 3,
            "total_tokens": 6 + IMAGE_TOKENS,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": IMAGE_TOKENS},
        },
        "metadata": {"k": "v"},
    }


async def test_every_honoured_field_reaches_the_engine() -> None:
    runner = ScriptedRunner()
    sampling = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7, "repetition_penalty": 1.2,
        "frequency_penalty": 0.3, "presence_penalty": -0.4,
    }  # fmt: skip
    async with serving(runner) as client:
        response = await chat(client, "abcdef", max_tokens=2, logit_bias={"65": -5}, **sampling)
        await chat(client, top_k=-1)
        await chat(client, max_completion_tokens=3)
    first, second, third = runner.requests
    params = first.ask.params
    assert {name: getattr(params, name) for name in sampling} == sampling
    assert params.logit_bias == {65: -5.0}
    choice = response.json()["choices"][0]
    assert (first.max_tokens, choice["message"]["content"], choice["finish_reason"]) == (2, "ab", "length")
    assert (second.ask.params.top_k, second.ask.params.temperature, third.max_tokens) == (0, 1.0, 3)


async def test_messages_and_images_reach_the_template_in_order() -> None:
    runner = ScriptedRunner()
    messages = [
        {"role": "developer", "content": "rules"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": data_url(png(5, 5))}}]},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "and"},
                {"type": "image_url", "image_url": {"url": data_url(png(9, 9)), "detail": "auto"}},
            ],
        },
    ]
    async with serving(runner) as client:
        response = await client.post(CHAT, json={"model": MODEL, "messages": messages})
    assert response.status_code == 200
    assert [image.size for image in runner.inputs.images] == [(5, 5), (9, 9)]
    assert list(runner.inputs.messages) == [
        {"role": "system", "content": [{"type": "text", "text": "rules"}]},
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "never"}]},
        {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "image"}]},
    ]


async def test_forty_requests_at_once_each_get_their_own_answer() -> None:
    async with serving(ScriptedRunner()) as client:
        answers = await asyncio.gather(*(chat(client, f"text {i}", stream=i % 2 == 1) for i in range(40)))
    for i, answer in enumerate(answers):
        said = content_of(events_of(answer.text)) if i % 2 else answer.json()["choices"][0]["message"]["content"]
        assert said == f"text {i}"


# flagged answers ---------------------------------------------------------------------------------------------------

FLAGGED = {
    Verdict.STEERED: Script.saying(REFUSAL, verdict=Verdict.STEERED, score=0.9, finish=Finish.CONTENT_FILTER),
    Verdict.BLOCKED: Script(verdict=Verdict.BLOCKED, score=0.9, finish=Finish.CONTENT_FILTER),
}


@pytest.mark.parametrize("verdict", FLAGGED)
async def test_a_flagged_answer_is_a_refusal_and_hides_its_score(verdict: Verdict) -> None:
    async with serving(ScriptedRunner(answer=lambda _: FLAGGED[verdict])) as client:
        response = await chat(client, stop=["help"])
    assert response.status_code == 200
    choice = response.json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": REFUSAL, "refusal": None}
    assert choice["finish_reason"] == "content_filter"
    tokens = len(REFUSAL) if verdict is Verdict.STEERED else 0
    assert response.json()["usage"]["completion_tokens"] == tokens
    assert "moderation" not in response.json()
    assert not any(name.startswith("x-autosteer") for name in response.headers)


@pytest.mark.parametrize("verdict", FLAGGED)
async def test_where_json_is_asked_for_a_refusal_stands_apart_from_the_content(verdict: Verdict) -> None:
    async with serving(ScriptedRunner(answer=lambda _: FLAGGED[verdict])) as client:
        answers = [
            await chat(client, response_format=wanted)
            for wanted in ({"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}})
        ]
        plain = await chat(client, response_format={"type": "text"})
    for answer in answers:
        choice = answer.json()["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": None, "refusal": REFUSAL}
        assert choice["finish_reason"] == "stop"
    assert plain.json()["choices"][0]["message"] == {"role": "assistant", "content": REFUSAL, "refusal": None}


async def test_a_blocked_answer_is_the_policys_own_refusal() -> None:
    async with serving(
        ScriptedRunner(answer=lambda _: FLAGGED[Verdict.BLOCKED]), mode="block", refusal="Not here."
    ) as client:
        message = (await chat(client)).json()["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == ("Not here.", None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["asked", "exposed"])
async def test_verdict_and_score_are_shown_where_asked_for_or_exposed(how: str, stream: bool) -> None:
    runner = ScriptedRunner(answer=lambda text: FLAGGED[Verdict.STEERED] if text == "bad" else Script.saying(text))
    options = {"moderation": {"model": MODEL}} if how == "asked" else {}
    async with serving(runner, expose_scores=how == "exposed") as client:
        for text, verdict, score in [("bad", "steered", 0.9), ("good", "pass", 0.25)]:
            response = await chat(client, text, GOOD, stream=stream, **options)
            assert response.headers["x-autosteer-verdict"] == verdict
            assert response.headers["x-autosteer-score"] == f"{score:.6f}"
            first = events_of(response.text)[0] if stream else response.json()
            flagged = verdict != "pass"
            result = {
                "type": "moderation_result",
                "model": MODEL,
                "flagged": flagged,
                "categories": {"unsafe": flagged},
                "category_scores": {"unsafe": score},
                "category_applied_input_types": {"unsafe": ["text", "image"]},
            }
            found = first["moderation"]["input"]
            assert found == {"type": "moderation_results", "model": MODEL, "results": [result]}
            assert first["moderation"]["output"]["type"] == "error"


async def test_a_monitored_request_is_flagged_in_the_moderation_and_answered_all_the_same() -> None:
    script = Script.saying("answer", verdict=Verdict.MONITORED, score=0.9)
    async with serving(ScriptedRunner(answer=lambda _: script), mode="monitor") as client:
        response = await chat(client, moderation={"model": MODEL})
    choice = response.json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "answer", "refusal": None}
    assert choice["finish_reason"] == "stop"
    result = response.json()["moderation"]["input"]["results"][0]
    assert (result["flagged"], result["category_applied_input_types"]) == (True, {"unsafe": ["text"]})


async def test_where_no_guard_scores_the_moderation_says_so() -> None:
    script = Script.saying("answer", score=None)
    async with serving(ScriptedRunner(answer=lambda _: script, guarded=False)) as client:
        response = await chat(client, moderation={"model": MODEL})
    assert response.json()["moderation"]["input"]["code"] == "not_scored"
    assert response.headers["x-autosteer-verdict"] == "pass"
    assert "x-autosteer-score" not in response.headers


# refused requests --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    """Limits that a test reaches quickly."""
    return {"max_body_bytes": 20_000, "max_prompt_characters": 9_000, "max_images": 2, "max_image_bytes": 2_000,
            "max_image_pixels": 10_000}  # fmt: skip


@pytest.fixture
async def limited(small: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    async with serving(ScriptedRunner(), **small) as client:
        yield client


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON"),
        (b'{"model": "scripted",}', 400, "not valid JSON"),
        (b'{"temperature": NaN}', 400, "not valid JSON"),
        (b'{"model": "\xff"}', 400, "not valid JSON"),
        (b'{"model": "\\ud800"}', 400, "not valid JSON"),
        (b"[" * 15_000, 400, "not valid JSON"),
        (b"[]", 400, "must be a JSON object, not a list of 0"),
        (b'"hello"', 400, "must be a JSON object, not 'hello'"),
        (b"null", 400, "must be a JSON object, not None"),
        (b" " * 20_001, 413, "larger than the limit of 20000 bytes"),
    ],
)
async def test_a_body_that_is_no_request_is_refused(
    limited: httpx.AsyncClient, content: bytes, status: int, words: str
) -> None:
    error = error_of(
        await limited.post(CHAT, content=content, headers={"content-type": "application/json; charset=utf-8"}), status
    )
    assert words in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", None)
    assert error["code"] == ("invalid_json" if "JSON:" in error["message"] else None)


async def test_a_large_body_is_refused_whether_or_not_it_announces_its_size(limited: httpx.AsyncClient) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1_000
            yield b" " * 1_000

    headers = {"content-type": "application/json"}
    answers = [
        await limited.post(CHAT, content=endless(), headers=headers),
        await limited.post(CHAT, content=b"{}", headers={**headers, "content-length": "9" * 30}),
    ]
    for answer in answers:
        assert "limit of 20000 bytes" in error_of(answer, 413)["message"]
        assert answer.headers["connection"] == "close"
    assert read <= 22_000
    assert await metric(limited, "autosteer_admission_rejections_total", reason="body_too_large") == 2


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "multipart/form-data; boundary=x"},
        {},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
async def test_a_body_that_is_not_plain_json_by_its_headers_is_refused(
    limited: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    response = await limited.post(CHAT, content=orjson.dumps(body()), headers=headers)
    assert error_of(response, 415)["type"] == "invalid_request_error"


async def test_a_body_that_does_not_arrive_is_given_up() -> None:
    app = application(ScriptedRunner(), body_seconds=0.01)
    async with client_of(app):
        connection = Connection(app, None)
        await connection.task
    assert connection.sent[0]["status"] == 400
    assert "did not arrive within 0.01 seconds" in connection.text


IMAGE = "messages.0.content.0.image_url.url"
BAD_REQUESTS: dict[str, tuple[Callable[[], dict[str, Any]], str, str | None, str]] = {
    "unknown field": (lambda: body(temprature=1), "temprature", None, "Unknown field 'temprature'"),
    "wrong type": (lambda: body(max_tokens="5"), "max_tokens", None, "must be an integer; got '5'"),
    "out of range": (lambda: body(temperature=3), "temperature", None, "less than or equal to 2; got 3"),
    "not supported": (lambda: body(audio={}), "audio", None, "does not support it"),
    "more choices than ever": (lambda: body(n=129), "n", None, "less than or equal to 128; got 129"),
    "no messages": (lambda: body(messages=[]), "messages", None, "at least 1 item"),
    "text instead of an image": (
        lambda: body("x", data_url(b"hello")), IMAGE, "invalid_image", "not an image of a supported format"
    ),
    "truncated image": (lambda: body("x", data_url(png(90, 90)[:-30])), IMAGE, "invalid_image", "broken or truncated"),
    "image of too many bytes": (
        lambda: body("x", data_url(b"\x89PNG" + bytes(2_000))), IMAGE, "invalid_image", "the limit is 2000"
    ),
    "image of too many pixels": (
        lambda: body("x", data_url(png(101, 100))), IMAGE, "invalid_image", "10100 pixels, more than the limit of 10000"
    ),
    "image by https": (lambda: body("x", "https://example.com/a.png"), IMAGE, "invalid_image", "send the image as a"),
    "image by file": (lambda: body("x", "file:///etc/passwd"), IMAGE, "invalid_image", "only data URLs are accepted"),
    "image that is svg": (
        lambda: body("x", data_url(b"<svg/>", "image/svg+xml")), IMAGE, "invalid_image", "'image/svg+xml' is not"
    ),
    "the second image": (
        lambda: body("x", GOOD, data_url(b"hello")), "messages.0.content.1.image_url.url", "invalid_image", "content.1"
    ),
    "too many images": (
        lambda: body("x", GOOD, GOOD, GOOD), "messages", "too_many_images", "has 3 images, the limit is 2"
    ),
    "too many characters": (
        lambda: body("x" * 9_001), "messages", "context_length_exceeded",
        "9001 characters in your messages, and the limit is 9000"
    ),
    "prompt longer than the context": (
        lambda: body("x" * CONTEXT), "messages", "context_length_exceeded",
        f"This model's maximum context length is {CONTEXT} tokens. However, your messages resulted in {CONTEXT} tokens"
    ),
    "images count too": (
        lambda: body("x" * (CONTEXT - IMAGE_TOKENS), GOOD), "messages", "context_length_exceeded",
        f"resulted in {CONTEXT} tokens"
    ),
    "a bias for no token": (
        lambda: body(logit_bias={"258": 1}), "logit_bias", None, "258 is not below the vocabulary size 258"
    ),
    "messages the template refuses": (
        lambda: body(messages=[{"role": "assistant", "content": "x"}]), "messages", None, "must not be the assistant's"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_a_bad_request_names_its_field_and_the_limit(limited: httpx.AsyncClient, name: str) -> None:
    make, param, code, words = BAD_REQUESTS[name]
    error = error_of(await limited.post(CHAT, json=make()), 400)
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)
    assert words in error["message"]
    reason = code if code == "context_length_exceeded" else "invalid_request"
    assert await metric(limited, "autosteer_admission_rejections_total", reason=reason) == 1
    assert await metric(limited, "autosteer_prompt_tokens_total") == 0


async def test_what_is_just_within_the_limits_is_answered(limited: httpx.AsyncClient) -> None:
    answers = [
        await chat(limited, "x", GOOD, GOOD),
        await chat(limited, "x", data_url(png(100, 100))),
        await chat(limited, "x" * 100, max_tokens=CONTEXT - 100),
        await chat(limited, "x" * (CONTEXT - 1)),
    ]
    assert [answer.status_code for answer in answers] == [200] * 4


async def test_without_a_limit_an_answer_ends_at_the_default_or_with_the_context() -> None:
    runner = ScriptedRunner()
    async with serving(runner, default_max_tokens=10) as client:
        for length in (100, CONTEXT - 4):
            answer = (await chat(client, "x" * length)).json()
            assert answer["choices"][0]["finish_reason"] == "length"
        for limit in ({"max_tokens": CONTEXT - 99}, {"max_completion_tokens": 2**62}):  # more than there is room for
            assert (await chat(client, "x" * 100, **limit)).status_code == 200
    assert [request.max_tokens for request in runner.requests] == [10, 4, CONTEXT - 100, CONTEXT - 100]


async def test_an_unknown_model_is_not_found() -> None:
    async with serving(ScriptedRunner()) as client:
        answers = [
            (await client.post(CHAT, json={**body(), "model": "gpt"}), "model"),
            (await client.post(CHAT, json={**body(), "model": "x" * 10_000}), "model"),
            (await chat(client, moderation={"model": "omni"}), "moderation.model"),
            (await client.get("/v1/models/org/other"), "model"),
        ]
        for response, param in answers:
            error = error_of(response, 404)
            assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, "model_not_found")
            assert MODEL in error["message"]
        assert await metric(client, "autosteer_admission_rejections_total", reason="not_found") == 3


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("POST", "/v1/embeddings", 404), ("GET", CHAT, 405), ("POST", "/health", 405)],
)
async def test_a_wrong_route_has_an_error_of_the_same_shape(method: str, path: str, status: int) -> None:
    async with serving(ScriptedRunner()) as client:
        assert path in error_of(await client.request(method, path), status)["message"]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/models", f"/v1/models/{MODEL}"])
async def test_head_is_get_without_the_body(path: str) -> None:
    async with serving(ScriptedRunner()) as client:
        got, head = await client.get(path), await client.head(path)
        assert error_of(await client.get(CHAT), 405)
        assert (await client.head(CHAT)).status_code == 405
    assert (got.status_code, head.status_code, head.content) == (200, 200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


async def test_a_slash_at_the_end_of_a_path_is_none_and_nobody_is_sent_elsewhere() -> None:
    async with serving(ScriptedRunner()) as client:
        evil = {"host": "evil.example"}
        answers = [
            await client.post(CHAT + "/", json=body(), headers=evil),
            await client.get("/v1/models/", headers=evil),
            await client.get(f"/v1/models/{MODEL}/", headers=evil),
        ]
        nowhere = await client.get("/nowhere/", headers=evil)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert answers[1].json()["object"] == "list"
    assert nowhere.status_code == 404
    assert not any("location" in answer.headers for answer in [*answers, nowhere])


async def test_a_page_of_another_origin_may_call_where_the_settings_say_so() -> None:
    ask = {"origin": "https://chat.example.com", "access-control-request-method": "POST",
           "access-control-request-headers": "authorization,content-type,x-stainless-lang"}  # fmt: skip
    async with serving(ScriptedRunner(), cors_origins=("https://chat.example.com",)) as client:
        asked = await client.options(CHAT, headers=ask)
        other = await client.options(CHAT, headers={**ask, "origin": "https://evil.example"})
        answer = await client.post(CHAT, json=body(user="u"), headers={"origin": "https://chat.example.com"})
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://chat.example.com"
    assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
    assert (other.status_code, other.headers.get("access-control-allow-origin")) == (400, None)
    assert answer.headers["access-control-allow-origin"] == "https://chat.example.com"
    assert "x-autosteer-ignored" in answer.headers["access-control-expose-headers"]
    async with serving(ScriptedRunner()) as client:
        assert (await client.options(CHAT, headers=ask)).status_code == 405
        answer = await client.post(CHAT, json=body(), headers={"origin": "https://chat.example.com"})
    assert not any(name.startswith("access-control") for name in answer.headers)


async def test_a_model_answers_to_its_other_names() -> None:
    async with serving(ScriptedRunner(), model_aliases=("dummy", MODEL)) as client:
        answer = await client.post(CHAT, json={**body(), "model": "dummy"})
        listed = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
        alias = (await client.get("/v1/models/dummy")).json()
        error_of(await client.post(CHAT, json={**body(), "model": "gpt"}), 404)
    assert answer.json()["model"] == MODEL
    assert listed == [MODEL, "dummy"]
    assert alias["id"] == "dummy"
    async with serving(ScriptedRunner(), model_aliases=("*",)) as client:
        assert (await client.post(CHAT, json={**body(), "model": "gpt"})).status_code == 200
        assert [model["id"] for model in (await client.get("/v1/models")).json()["data"]] == [MODEL]


# load --------------------------------------------------------------------------------------------------------------


async def test_a_full_queue_answers_429_until_there_is_room() -> None:
    runner = ScriptedRunner(answer=lambda text: Script.saying(text, finish=None if text == "long" else Finish.STOP))
    app = application(runner, max_rows=1, max_queue=1)
    async with client_of(app) as client:
        long = [Connection(app, orjson.dumps(body("long"))) for _ in range(2)]
        await runner.accepted(2)
        response = await chat(client)
        error = error_of(response, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
        assert "2 of at most 2 requests are running or waiting" in error["message"]
        assert int(response.headers["retry-after"]) >= 1
        assert await metric(client, "autosteer_admission_rejections_total", reason="queue_full") == 1
        assert await metric(client, "autosteer_num_requests_waiting") == 2
        for connection in long:
            await connection.leave()
        assert (await chat(client)).status_code == 200


async def test_requests_whose_bodies_have_not_come_hold_no_place() -> None:
    """Who only begins to send them would keep all others out; what has come of them is counted in bytes."""
    app = application(ScriptedRunner(), max_rows=1, max_queue=1)
    async with client_of(app) as client:
        slow = [Connection(app, None) for _ in range(2)]
        for connection in slow:
            await connection.reading.wait()
        assert (await chat(client)).status_code == 200
        for connection in slow:
            await connection.leave()


async def test_a_queue_that_filled_up_meanwhile_answers_with_the_engines_own_guess() -> None:
    async with serving(ScriptedRunner(max_live=0)) as client:
        response = await chat(client)
    assert error_of(response, 429)["code"] == "queue_full"
    assert response.headers["retry-after"] == "3"


async def test_alive_while_loading_and_ready_after() -> None:
    runner = ScriptedRunner(ready=False, state="loading the model")
    model, runner.model = runner.model, None
    async with serving(runner) as client:
        assert (await client.get("/health")).json() == {"status": "alive"}
        for response in (await client.get("/ready"), await chat(client), await client.get(f"/v1/models/{MODEL}")):
            error = error_of(response, 503)
            assert (error["type"], error["code"]) == ("server_error", "not_ready")
            assert "loading the model" in error["message"]
            assert "retry-after" in response.headers
        assert (await client.get("/v1/models")).json() == {"object": "list", "data": []}
        assert await metric(client, "autosteer_kv_cache_usage_ratio") == 0
        assert await metric(client, "autosteer_admission_rejections_total", reason="not_ready") == 1

        runner.model, runner.ready = model, True
        assert (await client.get("/ready")).json() == {"status": "ready"}
        assert (await chat(client)).status_code == 200

        runner.ready, runner.state = False, "stopping"
        assert "stopping" in error_of(await client.get("/ready"), 503)["message"]
        assert "stopping" in error_of(await chat(client), 503)["message"]
        assert (await client.get("/health")).status_code == 200


async def test_not_ready_while_requests_wait_for_threads_that_get_nowhere() -> None:
    runner = ScriptedRunner()
    app = application(runner, prepare_threads=1, pool_seconds=0.01)
    async with client_of(app) as client:
        runner.inputs.gate.clear()
        asked = [asyncio.create_task(chat(client)) for _ in range(2)]
        await asyncio.to_thread(runner.inputs.entered.wait)
        await until(lambda: app.state.service._stalled, "requests to wait for too long")
        assert "'prepare' threads" in error_of(await client.get("/ready"), 503)["message"]
        assert await metric(client, "autosteer_ready") == 0
        runner.inputs.gate.set()
        await asyncio.gather(*asked)
        assert (await client.get("/ready")).status_code == 200


async def test_a_server_that_stops_while_a_prompt_is_made_refuses_it() -> None:
    runner = ScriptedRunner()
    app = application(runner)
    async with client_of(app):
        runner.inputs.gate.clear()
        connection = Connection(app, orjson.dumps(body()))
        await asyncio.to_thread(runner.inputs.entered.wait)
        runner.ready, runner.state = False, "stopping"
        runner.inputs.gate.set()
        await connection.task
    assert connection.sent[0]["status"] == 503
    assert "not_ready" in connection.text


async def test_the_lifespan_stops_the_engine() -> None:
    runner = ScriptedRunner(answer=lambda _: Script(finish=None))
    async with serving(runner) as client:
        waiting = asyncio.ensure_future(chat(client))
        await runner.accepted(1)
    assert runner.stopped
    assert error_of(await waiting, 503)["code"] == "shutting_down"


# failures ----------------------------------------------------------------------------------------------------------


async def test_a_request_that_fails_fails_alone() -> None:
    def answer(text: str) -> Script:
        match text:
            case "bad":
                return Script.saying("ab", finish=Finish.ERROR, error=RequestFailed("inner state"))
            case "worse":
                return Script(finish=Finish.ERROR, error=EngineFailed("inner state"))
        return Script.saying(text)

    texts = ["one", "bad", "two", "worse", "three"]
    async with serving(ScriptedRunner(answer=answer)) as client:
        responses = await asyncio.gather(*(chat(client, text) for text in texts))
        one, bad, two, worse, three = responses
        assert error_of(bad, 500)["code"] == "generation_failed"
        assert error_of(worse, 503)["code"] == "engine_failed"
        assert all("inner" not in response.text for response in responses)
        for response, text in [(one, "one"), (two, "two"), (three, "three")]:
            assert response.json()["choices"][0]["message"]["content"] == text
        assert await metric(client, "autosteer_request_success_total", finished_reason="error") == 2
        assert await metric(client, "autosteer_request_success_total", finished_reason="stop") == 3


async def test_an_exception_nobody_expected_is_a_500_that_tells_nothing_and_holds_no_place() -> None:
    runner = ScriptedRunner()
    async with serving(runner, max_rows=1, max_queue=0) as client:
        runner.inputs.fault = RuntimeError("inner state")
        for _ in range(3):
            response = await chat(client)
            error = error_of(response, 500)
            assert (error["type"], error["code"]) == ("server_error", "internal_error")
            assert "inner" not in response.text
            assert "x-request-id" in response.headers
        runner.inputs.fault = None
        assert (await chat(client)).status_code == 200


# the other routes --------------------------------------------------------------------------------------------------


async def test_models_and_version() -> None:
    async with serving(ScriptedRunner()) as client:
        listed = (await client.get("/v1/models")).json()
        one = (await client.get(f"/v1/models/{MODEL}")).json()
        version = (await client.get("/version")).json()
    assert (listed["object"], listed["data"]) == ("list", [one])
    assert one.items() >= {"id": MODEL, "object": "model", "owned_by": "autosteer", "max_model_len": CONTEXT}.items()
    assert abs(one["created"] - time.time()) < 60
    assert version == {"version": server_version()}


async def test_the_schema_of_the_api_names_every_field_and_needs_no_references() -> None:
    async with serving(ScriptedRunner()) as client:
        document = (await client.get("/openapi.json")).json()
    schema = document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"].keys() == ChatCompletionRequest.model_fields.keys()
    assert "$ref" not in orjson.dumps(document["paths"]).decode()


async def test_the_schema_of_the_api_is_made_once_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anyone may ask, without a key, and several at once."""
    app, threads = application(ScriptedRunner()), list[threading.Thread]()

    def make() -> dict[str, str]:
        threads.append(threading.current_thread())
        return {"made": "once"}

    monkeypatch.setattr(app, "openapi", make)
    async with client_of(app) as client:
        answers = await asyncio.gather(*(client.get("/openapi.json") for _ in range(4)))
    assert [answer.json() for answer in answers] == [{"made": "once"}] * 4
    assert threads != [threading.current_thread()]
    assert len(threads) == 1


@pytest.mark.parametrize("given", ["abc-123", "a" * 128])
async def test_a_request_id_is_returned(given: str) -> None:
    async with serving(ScriptedRunner()) as client:
        for response in (
            await client.get("/health", headers={"x-request-id": given}),
            await client.get("/nowhere", headers={"x-request-id": given}),
            await client.post(CHAT, json=body(stream=True), headers={"x-request-id": given}),
        ):
            assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "<script>", "é"])
async def test_a_request_id_that_is_none_is_replaced(given: str) -> None:
    async with serving(ScriptedRunner()) as client:
        response = await client.get("/health", headers=[(b"x-request-id", given.encode())])
    assert re.fullmatch(r"req-[0-9a-f]{32}", response.headers["x-request-id"])


async def test_the_metrics_after_some_requests() -> None:
    scripts = {
        "bad": Script.saying(REFUSAL, verdict=Verdict.STEERED, score=0.9, finish=Finish.CONTENT_FILTER),
        "good": Script.saying("fine", score=0.1),
    }
    async with serving(ScriptedRunner(answer=scripts.__getitem__)) as client:
        assert (await client.get("/ready")).status_code == 200
        for text, urls in [("bad", []), ("good", []), ("good", [GOOD]), ("good", [GOOD])]:
            await chat(client, text, *urls)
        decisions = "autosteer_guard_decisions_total"
        labels = {"policy": "default", "mode": "steer"}
        assert await metric(client, decisions, decision="steered", modality="text", **labels) == 1
        assert await metric(client, decisions, decision="pass", modality="text", **labels) == 1
        assert await metric(client, decisions, decision="pass", modality="image", **labels) == 2
        assert await metric(client, decisions) == 4
        assert await metric(client, "autosteer_guard_score_count", policy="default") == 4
        assert await metric(client, "autosteer_guard_score_bucket", le="0.5") == 3
        assert await metric(client, "autosteer_prompt_tokens_total") == 3 + 3 * 4 + 2 * IMAGE_TOKENS
        assert await metric(client, "autosteer_generation_tokens_total") == len(REFUSAL) + 3 * 4
        assert await metric(client, "autosteer_time_to_first_token_seconds_count") == 4
        assert await metric(client, "autosteer_inter_token_latency_seconds_count") == len(REFUSAL) + 3 * 4 - 4
        assert await metric(client, "autosteer_request_success_total", finished_reason="content_filter") == 1
        assert await metric(client, "autosteer_request_success_total", finished_reason="stop") == 3
        assert await metric(client, "autosteer_e2e_request_latency_seconds_count") == 4
        assert await metric(client, "autosteer_model_info", model=MODEL, guarded_layer="3", mode="steer") == 1
        assert await metric(client, "autosteer_num_requests_waiting") == 0


# the page ----------------------------------------------------------------------------------------------------------


def test_the_page_about_the_api_names_every_field_setting_and_metric() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    limits = [name for name in Settings.model_fields if name.startswith(("max_", "default_", "body_", "stall_"))]
    metrics = Metrics()
    metrics.watch(lambda: 0, lambda: 0, lambda: 0.0, 1)
    collected = [family.name for family in metrics.registry.collect()]
    for name in [*ChatCompletionRequest.model_fields, *limits, *collected]:
        assert re.search(rf"`(AUTOSTEER_)?{name}(_total|_info)?`", page, re.IGNORECASE), name
