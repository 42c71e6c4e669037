"""Moderations: the guard's score by itself, and the request's own wish to be scored or blocked."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from openai.types import Moderation

from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.request import Finish
from steering.policy import CategoryScore, Mode, Verdict
from tests.server.fakes import FakeBackbone, FakeGuard, as_any, request
from tests.server.scripted import (
    CONTEXT,
    IMAGE_TOKENS,
    MODEL,
    Script,
    ScriptedRunner,
    chat,
    content_of,
    data_url,
    error_of,
    events_of,
    metric,
    png,
    serving,
)

MODERATIONS = "/v1/moderations"
GOOD = data_url(png())


def scoring() -> ScriptedRunner:
    """Texts that begin with "bad" score 0.9; the engine says what it is told all the same."""

    def answer(text: str) -> Script:
        bad = text.startswith("bad")
        return Script.saying(
            "never said", verdict=Verdict.MONITORED if bad else Verdict.PASS, score=0.9 if bad else 0.1
        )

    return ScriptedRunner(answer=answer)


async def moderate(client: httpx.AsyncClient, given: Any, **options: Any) -> httpx.Response:
    return await client.post(MODERATIONS, json={"input": given, **options})


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(url: str = GOOD, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


@pytest.mark.parametrize(
    ("given", "flags", "types"),
    [
        ("good", [False], ["text"]),
        (["good", "bad", "good"], [False, True, False], ["text"]),
        ([text("bad")], [True], ["text"]),
        ([text("bad "), image(), text("thing")], [True], ["text", "image"]),
        ([image()], [False], ["text", "image"]),
    ],
)
async def test_each_input_has_a_result_and_parts_have_one_together(
    given: Any, flags: list[bool], types: list[str]
) -> None:
    runner = scoring()
    async with serving(runner) as client:
        answer = await moderate(client, given, model=MODEL)
        assert await metric(client, "autosteer_generation_tokens_total") == 0
        assert await metric(client, "autosteer_request_success_total", finished_reason="stop") == 1
    assert answer.status_code == 200
    body = answer.json()
    assert body["id"].startswith("modr-")
    assert body["model"] == MODEL
    assert [result["flagged"] for result in body["results"]] == flags
    for result in body["results"]:
        assert result["categories"]["unsafe"] is result["flagged"]
        assert result["category_scores"]["unsafe"] == (0.9 if result["flagged"] else 0.1)
        assert result["category_applied_input_types"]["unsafe"] == types
    assert [each.max_tokens for each in runner.requests] == [0] * len(flags)
    assert {each.policy.mode for each in runner.requests} == {Mode.MONITOR}


async def test_openai_s_own_categories_apply_to_no_type_of_input() -> None:
    """The prober tells safe from unsafe and no more: a score of theirs would be made up."""
    async with serving(scoring()) as client:
        (result,) = (await moderate(client, "bad")).json()["results"]
    Moderation.model_validate(result, strict=True)
    theirs = set(result["categories"]) - {"unsafe"}
    assert len(theirs) == 13
    assert not any(result["categories"][name] for name in theirs)
    assert {result["category_scores"][name] for name in theirs} == {0.0}
    assert all(result["category_applied_input_types"][name] == [] for name in theirs)


async def test_the_bundle_s_categories_stand_beside_and_in_the_place_of_openai_s() -> None:
    told = [CategoryScore("weapons", 0.8, reached=True), CategoryScore("hate", 0.2, reached=False)]
    harm = Script(verdict=Verdict.MONITORED, score=0.9, categories=told)
    quiet = Script(score=0.1, categories=[CategoryScore("weapons", 0.8, reached=True)])
    async with serving(ScriptedRunner(answer=lambda text: harm if text == "bad" else quiet)) as client:
        flagged, passed = (await moderate(client, ["bad", "good"])).json()["results"]
        (asked,) = (await chat(client, "bad", **wish("score"))).json()["moderation"]["input"]["results"]
    Moderation.model_validate(flagged, strict=True)
    assert {name for name, found in flagged["categories"].items() if found} == {"unsafe", "weapons"}
    assert (flagged["category_scores"]["weapons"], flagged["category_scores"]["hate"]) == (0.8, 0.2)
    assert flagged["category_applied_input_types"]["hate"] == ["text"]
    assert len(flagged["categories"]) == 13 + 2
    assert asked["categories"] == {"unsafe": True, "weapons": True, "hate": False}
    # What is not flagged is of no category, however high its scores.
    assert not any(passed["categories"].values())
    assert passed["category_scores"]["weapons"] == 0.8


async def test_it_is_scored_whatever_the_policy_does() -> None:
    for mode in ("off", "monitor", "steer", "block"):
        runner = scoring()
        async with serving(runner, mode=mode) as client:
            assert (await moderate(client, "bad")).json()["results"][0]["flagged"] is True
        assert [each.policy.mode for each in runner.requests] == [Mode.MONITOR]


BAD: dict[str, tuple[Any, str | None, str]] = {
    "nothing": ({}, "input", "Missing"),
    "null": ({"input": None}, "input", "must be a string"),
    "an empty list": ({"input": []}, "input", "at least 1"),
    "too many": ({"input": ["x"] * 129}, "input", "at most 128"),
    "texts and parts": ({"input": ["x", text("y")]}, "input.1", "must be a string"),
    "an unknown part": ({"input": [{"type": "audio"}]}, "input.0.type", "audio"),
    "a broken image": ({"input": [text("x"), image("data:image/png;base64,AAAA")]}, "input.1.image_url.url", "image"),
    "too many images": ({"input": [image()] * 17}, "input", "17 images"),
    "too long": ({"input": ["x", "x" * CONTEXT]}, "input", "context"),
    "too many characters": ({"input": "x" * 2_000_000}, "input", "characters"),
    "an unknown field": ({"input": "x", "stream": True}, "stream", "Unknown"),
}


@pytest.mark.parametrize("name", BAD)
async def test_a_bad_request_names_its_field(name: str) -> None:
    body, param, words = BAD[name]
    async with serving(scoring()) as client:
        error = error_of(await client.post(MODERATIONS, json=body), 400)
    assert error["param"] == param
    assert words in error["message"]


async def test_another_model_is_not_found() -> None:
    async with serving(scoring()) as client:
        assert error_of(await moderate(client, "x", model="gpt-4o"), 404)["param"] == "model"


@pytest.mark.parametrize("model", ["omni-moderation-latest", "omni-moderation-2024-09-26", "text-moderation-stable"])
async def test_the_served_model_answers_for_openai_s_moderators_and_says_so(model: str) -> None:
    async with serving(scoring()) as client:
        alone = await moderate(client, "x", model=model)
        chat = await client.post(
            "/v1/chat/completions",
            json={"model": MODEL, "messages": [{"role": "user", "content": "x"}], "moderation": {"model": model}},
        )
    assert (alone.json()["model"], alone.headers["x-autosteer-ignored"]) == (MODEL, "model")
    assert chat.json()["moderation"]["input"]["model"] == MODEL
    assert chat.headers["x-autosteer-ignored"] == "moderation.model"


async def test_without_a_guard_there_is_nothing_to_ask() -> None:
    async with serving(ScriptedRunner(guarded=False)) as client:
        assert error_of(await moderate(client, "x"), 400)["code"] == "no_guard"


def test_the_engine_ends_a_scored_prompt_with_its_prefill_beside_rows_that_go_on() -> None:
    backbone = FakeBackbone()
    engine = OwnEngine(as_any(backbone), as_any(FakeGuard()), Scheduler(4, 1000))
    scored = [request(f"scored{i}", [10 + 30 * i], max_tokens=0, mode=Mode.MONITOR) for i in range(2)]
    going = request("going", [10])
    for each in (scored[0], going, scored[1]):
        engine.add(each)
    events = engine.step()
    assert {(event.request.id, event.token is None, event.finish) for event in events} == {
        ("scored0", True, Finish.STOP),
        ("scored1", True, Finish.STOP),
        ("going", False, None),
    }
    assert [each.decision.verdict for each in scored if each.decision] == [Verdict.PASS, Verdict.MONITORED]
    assert (backbone.prefills, len(backbone.rows)) == ([3], 1)
    while not engine.idle:
        engine.step()
    assert backbone.decodes == [1] * 4


# of a chat ---------------------------------------------------------------------------------------------------------


def wish(mode: str) -> dict[str, Any]:
    return {"moderation": {"model": MODEL, "policy": {"input": {"mode": mode}}}}


@pytest.mark.parametrize(
    ("server_mode", "asked", "expected"),
    [
        ("off", "score", Mode.MONITOR),
        ("monitor", "score", Mode.MONITOR),
        ("steer", "score", Mode.STEER),
        ("block", "score", Mode.BLOCK),
        ("off", "block", Mode.BLOCK),
        ("monitor", "block", Mode.BLOCK),
        ("steer", "block", Mode.BLOCK),
    ],
)
async def test_a_chat_may_ask_for_a_score_or_a_block_and_never_for_less(
    server_mode: str, asked: str, expected: Mode
) -> None:
    runner = ScriptedRunner()
    async with serving(runner, mode=server_mode) as client:
        (await chat(client, **wish(asked))).raise_for_status()
        (await chat(client)).raise_for_status()
    assert [each.policy.mode for each in runner.requests] == [expected, Mode(server_mode)]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_blocked_chat_says_why(stream: bool) -> None:
    blocked = Script(verdict=Verdict.BLOCKED, score=0.9, finish=Finish.CONTENT_FILTER)
    async with serving(ScriptedRunner(answer=lambda _: blocked), mode="monitor", refusal="Not here.") as client:
        answer = await chat(client, "x", GOOD, stream=stream, **wish("block"))
    if stream:
        events = events_of(answer.text)
        assert (content_of(events), content_of(events, "refusal")) == ("Not here.", "")
        moderation = events[0]["moderation"]
    else:
        assert answer.json()["choices"][0]["message"]["content"] == "Not here."
        moderation = answer.json()["moderation"]
    (result,) = moderation["input"]["results"]
    assert (result["flagged"], result["category_applied_input_types"]) == (True, {"unsafe": ["text", "image"]})


async def test_a_block_without_a_guard_is_refused() -> None:
    async with serving(ScriptedRunner(guarded=False)) as client:
        assert error_of(await chat(client, **wish("block")), 400)["param"] == "moderation.policy.input.mode"
        assert (await chat(client, **wish("score"))).status_code == 200


# tokens ------------------------------------------------------------------------------------------------------------


async def test_tokens_are_those_of_the_chat_and_of_the_completion() -> None:
    async with serving(ScriptedRunner()) as client:
        messages = [{"role": "user", "content": [image(), text("hé")]}]
        counted = (await client.post("/tokenize", json={"model": MODEL, "messages": messages})).json()
        used = (await client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})).json()["usage"]
        plain = (await client.post("/tokenize", json={"prompt": "hé", "return_token_strs": True})).json()
        assert await metric(client, "autosteer_request_success_total") == 1
    assert counted == {
        "count": used["prompt_tokens"],
        "max_model_len": CONTEXT,
        "image_tokens": IMAGE_TOKENS,
        "tokens": [*"hé".encode(), *[257] * IMAGE_TOKENS],
    }
    assert plain["tokens"] == list("hé".encode())
    assert plain["token_strs"] == ["h", "\ufffd", "\ufffd"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": [{"role": "user", "content": "x"}], "prompt": "x"}, "messages"),
        ({"prompt": 5}, "prompt"),
        ({"messages": []}, "messages"),
        ({"prompt": "x", "add_special_tokens": True}, "add_special_tokens"),
    ],
)
async def test_a_bad_count_names_its_field(body: dict[str, Any], param: str) -> None:
    async with serving(ScriptedRunner()) as client:
        assert error_of(await client.post("/tokenize", json=body), 400)["param"] == param


async def test_many_at_once() -> None:
    async with serving(scoring()) as client:
        answers = await asyncio.gather(*(moderate(client, "bad" if i % 2 else "good") for i in range(20)))
    assert [answer.json()["results"][0]["flagged"] for answer in answers] == [i % 2 == 1 for i in range(20)]


# details of images -------------------------------------------------------------------------------------------------


async def test_the_detail_of_each_image_reaches_the_model_wherever_it_stands() -> None:
    runner = scoring()
    content = [image(detail="low"), text("x"), image(), image(detail="auto"), image(detail="high")]
    async with serving(runner) as client:
        (await moderate(client, content)).raise_for_status()
        assert list(runner.inputs.asked) == ["low", "auto", "auto", "high"]
        messages = [{"role": "user", "content": content}]
        (await client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})).raise_for_status()
        assert list(runner.inputs.asked) == ["low", "auto", "auto", "high"]


async def test_a_detail_that_the_model_does_not_have_is_refused_by_name() -> None:
    runner = scoring()
    runner.inputs.details = frozenset({"auto"})
    async with serving(runner) as client:
        error = error_of(await moderate(client, [text("x"), image(detail="high")]), 400)
        assert error["param"] == "input.1.image_url.detail"
        messages = [{"role": "user", "content": "x"}, {"role": "user", "content": [image(detail="low")]}]
        response = await client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
        assert error_of(response, 400)["param"] == "messages.1.content.0.image_url.detail"
        assert (await moderate(client, [image(detail="auto")])).status_code == 200


async def test_names_reach_the_template() -> None:
    runner = scoring()
    messages = [{"role": "system", "content": "x", "name": "Ada"}, {"role": "user", "content": "y"}]
    async with serving(runner) as client:
        (await client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})).raise_for_status()
        assert [message.get("name") for message in runner.inputs.messages] == ["Ada", None]
