"""Legacy completions: prompts of every kind, their own shapes, and the guard as in a chat."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.access.keys import hash_key
from server.api.completion_request import CompletionRequest
from server.request import Finish
from steering.policy import Verdict
from tests.server.scripted import (
    CONTEXT,
    EOS,
    MODEL,
    REFUSAL,
    Script,
    ScriptedRunner,
    chat,
    error_of,
    events_of,
    metric,
    serving,
)

COMPLETIONS = "/v1/completions"


async def complete(client: httpx.AsyncClient, prompt: Any = "hello", **options: Any) -> httpx.Response:
    return await client.post(COMPLETIONS, json={"model": MODEL, "prompt": prompt, **options})


def texts(answer: httpx.Response) -> list[str]:
    choices = answer.json()["choices"]
    assert [choice["index"] for choice in choices] == list(range(len(choices)))
    return [choice["text"] for choice in choices]


def streamed_texts(answer: httpx.Response, count: int) -> list[str]:
    found = [""] * count
    ends = [0] * count
    for event in events_of(answer.text):
        for choice in event["choices"]:
            found[choice["index"]] += choice["text"]
            ends[choice["index"]] += choice["finish_reason"] is not None
    assert ends == [1] * count
    return found


async def test_a_whole_completion() -> None:
    async with serving(ScriptedRunner()) as client:
        answer = (await complete(client, "hé", max_tokens=10)).json()
    assert answer.pop("id").startswith("cmpl-")
    assert answer.pop("system_fingerprint").startswith("fp_")
    assert answer.pop("created") > 0
    assert answer == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"index": 0, "text": "hé", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 3,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 0},
        },
    }


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([97, 98], ["ab"]),
        ([[97], [98, 99]], ["a", "bc"]),
    ],
)
async def test_prompts_of_every_kind_whole_and_streamed(prompt: Any, expected: list[str]) -> None:
    async with serving(ScriptedRunner(), completions="on") as client:
        assert texts(await complete(client, prompt)) == expected
        assert streamed_texts(await complete(client, prompt, stream=True), len(expected)) == expected


async def test_choices_of_several_prompts_are_in_order_and_each_prompt_counts_once() -> None:
    runner = ScriptedRunner()
    async with serving(runner) as client:
        answer = await complete(client, ["ab", "cde"], n=2, seed=3, max_tokens=5)
        assert await metric(client, "autosteer_prompt_tokens_total") == 5
        assert await metric(client, "autosteer_guard_decisions_total") == 2
        assert await metric(client, "autosteer_request_success_total") == 1
    assert texts(answer) == ["ab", "ab", "cde", "cde"]
    assert answer.json()["usage"]["prompt_tokens"] == 5
    assert [each.leader for each in runner.requests] == [None, runner.requests[0].id, None, runner.requests[2].id]
    assert len({each.ask.params.seed for each in runner.requests}) == 4


async def test_the_default_limit_is_openai_s() -> None:
    async with serving(ScriptedRunner()) as client:
        answer = await complete(client, "x" * 30)
        assert (texts(answer), answer.json()["choices"][0]["finish_reason"]) == (["x" * 16], "length")


@pytest.mark.parametrize("stream", [False, True])
async def test_the_prompt_is_echoed(stream: bool) -> None:
    runner = ScriptedRunner(answer=lambda _: Script.saying("!"))
    async with serving(runner, completions="on") as client:
        answer = await complete(client, [[104, 105], [97]], echo=True, n=2, stream=stream)
    expected = ["hi!", "hi!", "a!", "a!"]
    assert (streamed_texts(answer, 4) if stream else texts(answer)) == expected


@pytest.mark.parametrize("top", [0, 2])
async def test_log_probabilities_in_the_legacy_shape(top: int) -> None:
    async with serving(ScriptedRunner()) as client:
        whole = (await complete(client, "ab STOP", logprobs=top, stop=" STOP")).json()["choices"][0]["logprobs"]
        events = events_of((await complete(client, "ab STOP", logprobs=top, stop=" STOP", stream=True)).text)
    a, b, c = -97 / 256, -98 / 256, -99 / 256
    likeliest = [{"a": a, "b": b}, {"b": b, "c": c}] if top else [{"a": a}, {"b": b}]
    assert whole == {
        "tokens": ["a", "b"],
        "token_logprobs": [a, b],
        "top_logprobs": likeliest,
        "text_offset": [0, 1],
    }
    parts = [choice["logprobs"] for event in events for choice in event["choices"]]
    assert {name: [each for part in parts for each in part[name]] for name in whole} == whole


def told(answer: httpx.Response, stream: bool) -> list[dict[str, Any]]:
    """Text, log-probabilities and end of each choice, in order."""
    objects = events_of(answer.text) if stream else [answer.json()]
    found: dict[int, dict[str, Any]] = {}
    for choice in (choice for each in objects for choice in each["choices"]):
        of = found.setdefault(choice["index"], {"text": "", "finish_reason": None})
        of["text"] += choice["text"]
        of["finish_reason"] = choice["finish_reason"] or of["finish_reason"]
        for name, values in choice["logprobs"].items():
            of[name] = of.get(name, []) + values
    return [found[index] for index in sorted(found)]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("tokens", [0, 1])
async def test_log_probabilities_of_prompts_as_harnesses_ask_for_them(tokens: int, stream: bool) -> None:
    async with serving(ScriptedRunner(answer=lambda _: Script.saying("!?")), completions="on") as client:
        answer = await complete(
            client, [[97, 98, 99], [100, 98]], echo=True, logprobs=1, max_tokens=tokens, temperature=0, stream=stream
        )
    first, second = told(answer, stream)
    end = "!" if tokens else ""
    assert (first["text"], second["text"]) == ("abc" + end, "db" + end)
    assert (first["tokens"], second["tokens"]) == ([*"abc", *end], [*"db", *end])
    assert first["token_logprobs"][:3] == [None, -98 / 256, -99 / 256]
    assert first["top_logprobs"][:3] == [None, {"b": -98 / 256}, {"c": -99 / 256}]
    assert first["text_offset"] == [*range(3 + tokens)]
    assert (first["finish_reason"], second["finish_reason"]) == ("length", "length")


async def test_an_answer_that_ends_before_its_first_token_is_one_token_beside_an_echo() -> None:
    """lm-eval asks for one token after the prompt, and cuts the last one off."""
    async with serving(ScriptedRunner(answer=lambda _: Script())) as client:
        choice = (await complete(client, "ab", echo=True, logprobs=1, max_tokens=1)).json()["choices"][0]
        without = (await complete(client, "ab", logprobs=1, max_tokens=1)).json()["choices"][0]
    assert choice["logprobs"]["tokens"] == ["a", "b", ""]
    assert choice["logprobs"]["token_logprobs"][2] is None
    assert without["logprobs"]["tokens"] == []


async def test_every_choice_of_a_prompt_echoes_its_log_probabilities_which_are_asked_for_once() -> None:
    runner = ScriptedRunner(answer=lambda _: Script.saying("!"))
    async with serving(runner) as client:
        choices = (await complete(client, ["ab", "cd"], n=2, echo=True, logprobs=0, max_tokens=0)).json()["choices"]
    assert [choice["logprobs"]["tokens"] for choice in choices] == [["a", "b"]] * 2 + [["c", "d"]] * 2
    assert [each.ask.prompt_logprobs for each in runner.requests] == [0, None, 0, None]


@pytest.mark.parametrize("verdict", [Verdict.STEERED, Verdict.BLOCKED])
async def test_of_a_blocked_prompt_there_are_no_log_probabilities(verdict: Verdict) -> None:
    bad = Script(verdict=verdict, score=0.9, finish=Finish.CONTENT_FILTER)
    async with serving(ScriptedRunner(answer=lambda _: bad)) as client:
        choice = (await complete(client, "bad", echo=True, logprobs=1, max_tokens=1)).json()["choices"][0]
    assert choice["text"] == "bad" + REFUSAL
    assert choice["finish_reason"] == "content_filter"
    assert choice["logprobs"]["tokens"] == [*"bad", ""]
    logprobs = choice["logprobs"]["token_logprobs"]
    assert logprobs == ([None] * 4 if verdict is Verdict.BLOCKED else [None, -97 / 256, -100 / 256, None])


async def test_a_completion_of_no_tokens_is_empty() -> None:
    async with serving(ScriptedRunner()) as client:
        choice = (await complete(client, "ab", max_tokens=0)).json()["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("", "length")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("verdict", [Verdict.STEERED, Verdict.BLOCKED])
async def test_a_flagged_prompt_is_refused_as_in_a_chat(verdict: Verdict, stream: bool) -> None:
    said = REFUSAL if verdict is Verdict.STEERED else ""
    bad = Script.saying(said, verdict=verdict, score=0.9, finish=Finish.CONTENT_FILTER)
    runner = ScriptedRunner(answer=lambda text: bad if text == "bad" else Script.saying(text))
    async with serving(runner, expose_scores=True) as client:
        answer = await complete(client, ["good", "bad"], stop=["help"], stream=stream, max_tokens=100)
    assert (streamed_texts(answer, 2) if stream else texts(answer)) == ["good", REFUSAL]
    choices = [choice for event in events_of(answer.text) for choice in event["choices"]] if stream else []
    reasons = [(c["index"], c["finish_reason"]) for c in (choices or answer.json()["choices"]) if c["finish_reason"]]
    assert sorted(reasons) == [(0, "stop"), (1, "content_filter")]
    assert answer.headers["x-autosteer-verdict"] == verdict.value  # of the worst
    assert answer.headers["x-autosteer-score"] == "0.900000"


async def test_usage_comes_at_the_end_of_a_stream_that_wants_it() -> None:
    async with serving(ScriptedRunner()) as client:
        *chunks, usage = events_of(
            (await complete(client, "ab", stream=True, stream_options={"include_usage": True})).text
        )
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 4)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"prompt": None}, "prompt"),
    "an empty list": ({"prompt": []}, "prompt"),
    "an empty text": ({"prompt": ""}, "prompt"),
    "an empty list of ids": ({"prompt": [[]]}, "prompt.0"),
    "texts and ids": ({"prompt": ["a", 5]}, "prompt.1"),
    "a negative id": ({"prompt": [-1]}, "prompt.0"),
    "an id that the model lacks": ({"prompt": [258]}, "prompt"),
    "true is no id": ({"prompt": [True]}, "prompt.0"),
    "too long": ({"prompt": "x" * CONTEXT}, "prompt"),
    "more than there may be": ({"max_tokens": 2, "min_tokens": 3}, "min_tokens"),
    "suffix": ({"suffix": "x"}, "suffix"),
    "best_of": ({"best_of": 2}, "best_of"),
    "best_of less than n": ({"best_of": 1, "n": 2}, "best_of"),
    "too many log-probabilities": ({"logprobs": 6}, "logprobs"),
    "log-probabilities as of a chat": ({"logprobs": True}, "logprobs"),
    "fewer tokens than none": ({"max_tokens": -1}, "max_tokens"),
    "messages": ({"messages": []}, "messages"),
    "tools": ({"tools": []}, "tools"),
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_not_supported_is_refused_by_name(name: str) -> None:
    options, param = BAD[name]
    async with serving(ScriptedRunner(), completions="on") as client:
        response = await client.post(COMPLETIONS, json={"model": MODEL, "prompt": "hello", **options})
        assert error_of(response, 400)["param"] == param
        assert await metric(client, "autosteer_prompt_tokens_total") == 0


IDS = [[97], [97, EOS, 98]]  # an id can be that of a special token, which no text spells


@pytest.mark.parametrize(
    ("setting", "guarded", "text", "ids"),
    [
        (None, True, None, "token_ids_off"),  # nobody has said that ids are wanted
        (None, False, None, None),
        ("on", True, None, None),
        ("text", False, None, "token_ids_off"),
        ("off", True, "completions_off", "completions_off"),
        ("off", False, "completions_off", "completions_off"),
    ],
)
async def test_a_setting_says_whether_texts_or_ids_are_completed(
    setting: str | None, guarded: bool, text: str | None, ids: str | None
) -> None:
    runner = ScriptedRunner(guarded=guarded)
    async with serving(runner, completions=setting) as client:
        for prompt, code in ((["a", "b"], text), (IDS, ids), (IDS[1], ids)):
            response = await complete(client, prompt)
            if code is None:
                assert response.status_code == 200
            else:
                error = error_of(response, 403)
                assert (error["code"], error["type"]) == (code, "permission_error")
                assert "'completions'" in error["message"]
        refused = sum(code is not None for code in (text, ids, ids))
        assert await metric(client, "autosteer_admission_rejections_total", reason="forbidden") == refused
        assert (await chat(client)).status_code == 200  # chats go on


async def test_ids_that_are_a_text_s_are_taken_where_only_texts_are() -> None:
    async with serving(ScriptedRunner(), completions="text") as client:
        assert texts(await complete(client, [[97, 98], [99]])) == ["ab", "c"]


async def test_a_policy_says_it_for_its_keys() -> None:
    keys = [{"name": name, "hash": hash_key(f"sk-{name}"), "policy": name} for name in ("lab", "shop")]
    policies = {"lab": {"completions": "on"}, "shop": {}}
    async with serving(ScriptedRunner(), completions="off", keys=keys, policies=policies) as client:
        client.headers["authorization"] = "Bearer sk-lab"
        assert texts(await complete(client, [97])) == ["a"]
        client.headers["authorization"] = "Bearer sk-shop"
        error = error_of(await complete(client), 403)
    assert (error["code"], "'shop' is 'off'" in error["message"]) == ("completions_off", True)


async def test_a_best_of_that_asks_for_nothing_more_is_accepted() -> None:
    async with serving(ScriptedRunner()) as client:
        assert texts(await complete(client, "a", best_of=2, n=2)) == ["a", "a"]


async def test_prompts_hold_a_place_each() -> None:
    async with serving(ScriptedRunner(), max_rows=2, max_queue=1) as client:
        error = error_of(await complete(client, ["a", "b"], n=2), 400)
        assert (error["param"], "at most 3" in error["message"]) == ("prompt", True)
        assert texts(await complete(client, ["a", "b", "c"])) == ["a", "b", "c"]


async def test_every_field_of_the_published_schema_is_known() -> None:
    """Each is honoured or refused by name; the official client's types say which there are."""
    from openai.types.completion_create_params import CompletionCreateParamsBase, CompletionCreateParamsStreaming

    published = set(CompletionCreateParamsBase.__annotations__) | set(CompletionCreateParamsStreaming.__annotations__)
    assert published <= set(CompletionRequest.model_fields)
