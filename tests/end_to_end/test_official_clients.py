"""The official clients over a live server: Python with strict validation of every answer, and Node."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from openai import APIStatusError, BadRequestError, NotFoundError, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from PIL import Image
from pydantic import BaseModel

from models.demo.dialogue import pairs
from models.demo.judge import refused
from tests import plain_http
from tests.end_to_end.processes import ServerProcess, data_url, user

APPLE = Image.new("RGB", (96, 96), "white")
NODE = Path(__file__).parent / "node"
CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="module")
def client(guarded: ServerProcess) -> Iterator[OpenAI]:
    """Raises APIResponseValidationError for an answer that is not exactly as published."""
    with OpenAI(
        base_url=f"{guarded.url}/v1", api_key="none", max_retries=0, timeout=60, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture(scope="module")
def model(client: OpenAI) -> str:
    return client.models.list().data[0].id


@pytest.fixture
def messages() -> list[ChatCompletionMessageParam]:
    return [user("what is in the picture?", APPLE)]


@pytest.fixture(scope="module")
def harmful() -> list[ChatCompletionMessageParam]:
    example = next(pair for pair in pairs(1, seed=921, split="test") if pair.kind == "cross").toxic
    return [user(example.question, *([example.image] if example.image else []))]


# chat --------------------------------------------------------------------------------------------------------------


def test_choices_and_log_probabilities_whole_and_streamed(
    client: OpenAI, model: str, messages: list[ChatCompletionMessageParam]
) -> None:
    options: dict[str, Any] = {"n": 3, "seed": 5, "logprobs": True, "top_logprobs": 3, "max_tokens": 12}
    whole = client.chat.completions.create(model=model, messages=messages, **options)
    again = client.chat.completions.create(model=model, messages=messages, **options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert [choice.message for choice in again.choices] == [choice.message for choice in whole.choices]
    texts, entries = ["", "", ""], [b"", b"", b""]
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, **options):
        for part in chunk.choices:
            texts[part.index] += part.delta.content or ""
            for token in (part.logprobs and part.logprobs.content) or []:
                entries[part.index] += bytes(token.bytes or [])
    for choice, text, said in zip(whole.choices, texts, entries, strict=True):
        assert choice.message.content == text == said.decode()
        assert choice.logprobs is not None
        assert all(len(token.top_logprobs) <= 3 for token in choice.logprobs.content or [])


def test_a_temperature_makes_the_choices_differ(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=[user("hello")], n=8, seed=1, temperature=2, max_tokens=8
    )
    assert len({choice.message.content for choice in answer.choices}) > 1


def test_answers_follow_a_json_schema(client: OpenAI, model: str, messages: list[ChatCompletionMessageParam]) -> None:
    schema = {
        "type": "object",
        "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 9}, "sure": {"type": "boolean"}},
        "required": ["count", "sure"],
        "additionalProperties": False,
    }
    answer = client.chat.completions.create(
        model=model,
        messages=messages,
        n=2,
        seed=3,
        response_format={"type": "json_schema", "json_schema": {"name": "seen", "schema": schema, "strict": True}},
    )
    for choice in answer.choices:
        found = json.loads(choice.message.content or "")
        assert found.keys() == {"count", "sure"}
        assert choice.finish_reason == "stop"
    anything = client.chat.completions.create(
        model=model, messages=messages, max_tokens=20, response_format={"type": "json_object"}, temperature=0
    )
    assert (anything.choices[0].message.content or "").startswith("{")


def test_a_steered_refusal_breaks_its_schema(
    client: OpenAI, model: str, harmful: list[ChatCompletionMessageParam]
) -> None:
    answer = client.chat.completions.create(
        model=model, messages=harmful, n=2, logprobs=True, response_format={"type": "json_object"}
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert choice.message.content is None
        assert refused(choice.message.refusal or "")
        assert choice.logprobs is not None
        assert choice.logprobs.refusal
        assert not choice.logprobs.content


@pytest.mark.parametrize("mode", ["score", "block"])
def test_moderation_of_a_chat(
    mode: Any,
    client: OpenAI,
    model: str,
    harmful: list[ChatCompletionMessageParam],
    messages: list[ChatCompletionMessageParam],
) -> None:
    for asked, flagged in [(harmful, True), (messages, False)]:
        whole = client.chat.completions.create(
            model=model, messages=asked, temperature=0, moderation={"model": model, "policy": {"input": {"mode": mode}}}
        )
        first, *rest = client.chat.completions.create(
            model=model,
            messages=asked,
            temperature=0,
            stream=True,
            moderation={"model": model, "policy": {"input": {"mode": mode}}},
        )
        assert whole.moderation is not None
        assert whole.moderation.input.type == "moderation_results"
        (result,) = whole.moderation.input.results
        assert result.flagged is flagged
        assert result.category_applied_input_types == {"unsafe": ["text", "image"]}
        assert first.moderation is not None
        assert first.moderation.input.model_dump() == whole.moderation.input.model_dump()
        (last,) = [chunk.moderation for chunk in rest if chunk.moderation is not None]
        assert last.model_dump() == whole.moderation.model_dump()
        text = "".join(part.delta.content or "" for chunk in rest for part in chunk.choices)
        assert text == whole.choices[0].message.content
        assert whole.usage is not None
        assert (whole.usage.completion_tokens == 0) == (flagged and mode == "block")


# the other routes --------------------------------------------------------------------------------------------------


def test_completions_whole_and_streamed(client: OpenAI, model: str, guarded: ServerProcess) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "logprobs": 2}
    whole = client.completions.create(model=model, prompt=["The red", "x"], n=2, **options)
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.usage is not None
    texts = ["", "", "", ""]
    # The published type has no null for a piece that is not the last, though OpenAI's own streams do: all but that is
    # checked.
    for chunk in guarded.client.completions.create(model=model, prompt=["The red", "x"], n=2, stream=True, **options):
        data = chunk.model_dump()
        for part in data["choices"]:
            texts[part["index"]] += part["text"]
            part["finish_reason"] = part["finish_reason"] or "stop"
        Completion.model_validate(data, strict=True)
    assert texts == [choice.text for choice in whole.choices]
    ids = client.completions.create(model=model, prompt=[[50, 60], [70]], temperature=0, max_tokens=2, echo=True)
    assert [choice.index for choice in ids.choices] == [0, 1]


def test_harm_is_refused_by_the_legacy_route_too(client: OpenAI, model: str, guarded: ServerProcess) -> None:
    example = next(pair for pair in pairs(1, seed=922, split="test") if pair.kind == "text").toxic
    tokens = plain_http.post(
        f"{guarded.url}/tokenize", json={"messages": [{"role": "user", "content": example.question}]}
    ).json()["tokens"]
    answer = client.completions.create(model=model, prompt=tokens, max_tokens=40)
    assert answer.choices[0].finish_reason == "content_filter"
    assert refused(answer.choices[0].text)


def test_moderations_of_texts_and_images(
    client: OpenAI, model: str, harmful: list[ChatCompletionMessageParam], guarded: ServerProcess
) -> None:
    content: Any = harmful[0].get("content")
    tokens = guarded.metric("autosteer_generation_tokens_total")
    alone = client.moderations.create(model=model, input=content).results[0]
    chat = client.chat.completions.with_raw_response.create(model=model, messages=harmful, max_tokens=1)
    assert alone.flagged
    scores: Any = alone.category_scores.model_dump()
    assert scores["unsafe"] == pytest.approx(float(chat.headers["x-autosteer-score"]), abs=2e-2)
    texts = client.moderations.create(input=["hello", "what is in the picture?", "hello"])
    assert [result.flagged for result in texts.results] == [False] * 3
    assert guarded.metric("autosteer_generation_tokens_total") <= tokens + 1  # the chat's


def test_models(client: OpenAI, model: str) -> None:
    assert client.models.retrieve(model).id == model
    with pytest.raises(NotFoundError):
        client.models.retrieve("gpt")


def test_tokens_are_counted_without_generating(
    client: OpenAI, model: str, guarded: ServerProcess, messages: list[ChatCompletionMessageParam]
) -> None:
    counted = plain_http.post(f"{guarded.url}/tokenize", json={"model": model, "messages": messages}).json()
    usage = client.chat.completions.create(model=model, messages=messages, max_tokens=1).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert counted["count"] == usage.prompt_tokens
    assert counted["image_tokens"] == usage.prompt_tokens_details.image_tokens


REFUSED: dict[str, tuple[Callable[[OpenAI, str], Any], type[APIStatusError], str]] = {
    "a search": (
        lambda c, m: c.chat.completions.create(model=m, messages=[user("x")], web_search_options={}),
        BadRequestError, "web_search_options",
    ),
    "a schema": (
        lambda c, m: c.chat.completions.create(
            model=m, messages=[user("x")],
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}},
        ),
        BadRequestError, "response_format.json_schema",
    ),
    "suffix": (lambda c, m: c.completions.create(model=m, prompt="x", suffix="y"), BadRequestError, "suffix"),
    "another model": (lambda c, m: c.moderations.create(input="x", model="gpt-4o"), NotFoundError, "model"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_an_error_of_the_client_with_its_field(name: str, client: OpenAI, model: str) -> None:
    call, kind, param = REFUSED[name]
    with pytest.raises(kind) as caught:
        call(client, model)
    assert caught.value.param == param


def test_hints_are_taken_and_named(client: OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": "hello", "name": "Ada"}],
        max_completion_tokens=4,
        metadata={"k": "v"},
        parallel_tool_calls=False,
        prompt_cache_key="k",
        reasoning_effort="low",
        service_tier="auto",
        stop=[f"never {number}" for number in range(9)],
        store=True,
        tools=[],
        top_p=0,
        user="u",
        verbosity="low",
    )
    ignored = "messages.name, prompt_cache_key, reasoning_effort, service_tier, store, user, verbosity"
    assert raw.headers["x-autosteer-ignored"] == ignored
    assert raw.parse().usage is not None


def test_the_answer_s_own_message_is_sent_back(client: OpenAI, model: str) -> None:
    first = client.chat.completions.create(model=model, messages=[user("hello")], max_tokens=4)
    turn: Any = first.choices[0].message.model_dump()
    second = client.chat.completions.create(
        model=model, messages=[user("hello"), turn, user("hello")], max_tokens=4, stream_options={"include_usage": True}
    )
    assert second.choices[0].message.content


WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather of a place",
        "parameters": {
            "type": "object",
            "properties": {"place": {"enum": ["Rome", "Oslo"]}, "days": {"$ref": "#/$defs/Days"}},
            "required": ["place", "days"],
            "additionalProperties": False,
            "$defs": {"Days": {"type": "integer", "minimum": 1, "maximum": 9}},
        },
    },
}
CLOCK: ChatCompletionToolParam = {"type": "function", "function": {"name": "clock"}}
CHOICES: dict[str, Any] = {
    "required": "required",
    "by name": {"type": "function", "function": {"name": "weather"}},
    "allowed": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "weather"}}]},
    },
}


@pytest.mark.parametrize("how", CHOICES)
def test_forced_calls_are_the_same_whole_and_streamed(client: OpenAI, model: str, how: str) -> None:
    options: dict[str, Any] = {
        "model": model, "messages": [user("hello")], "tools": [CLOCK, WEATHER], "tool_choice": CHOICES[how],
        "temperature": 0, "parallel_tool_calls": False,
    }  # fmt: skip
    whole = client.chat.completions.create(**options).choices[0]
    assert whole.finish_reason == "tool_calls"
    [call] = whole.message.tool_calls or []
    assert call.type == "function"
    arguments = json.loads(call.function.arguments)
    assert arguments == {} if call.function.name == "clock" else arguments.keys() == {"place", "days"}
    assert how == "required" or call.function.name == "weather"
    with client.chat.completions.stream(**options) as stream:
        for _ in stream:
            pass
        found = stream.get_final_completion().choices[0]
    [streamed] = found.message.tool_calls or []
    assert (streamed.function.name, streamed.function.arguments) == (call.function.name, call.function.arguments)
    assert (found.finish_reason, found.message.content) == ("tool_calls", None)


def test_a_loop_of_a_tool_in_three_turns(client: OpenAI, model: str) -> None:
    messages: list[Any] = [user("hello")]
    for _ in range(3):
        message = client.chat.completions.create(
            model=model, messages=messages, tools=[WEATHER], tool_choice=CHOICES["by name"], temperature=0
        ).choices[0].message  # fmt: skip
        [call] = message.tool_calls or []
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "It is sunny."}]
    raw = client.chat.completions.with_raw_response.create(
        model=model, messages=messages, tools=[WEATHER], max_tokens=8
    )
    last = raw.parse().choices[0]
    assert last.finish_reason in ("stop", "length")
    assert last.message.tool_calls is None
    assert "tools" in raw.headers["x-autosteer-ignored"].split(", ")


def test_a_refused_call_is_a_refusal(client: OpenAI, model: str, harmful: list[ChatCompletionMessageParam]) -> None:
    answer = client.chat.completions.create(
        model=model, messages=harmful, tools=[WEATHER], tool_choice="required"
    ).choices[0]  # fmt: skip
    assert (answer.finish_reason, answer.message.content, answer.message.tool_calls) == ("stop", None, None)
    assert refused(answer.message.refusal or "")


# responses ---------------------------------------------------------------------------------------------------------


def test_a_response_whole_and_streamed(client: OpenAI, model: str) -> None:
    picture: Any = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "what is in the picture?"},
                {"type": "input_image", "image_url": data_url(APPLE), "detail": "auto"},
            ],
        }
    ]
    for given in ("hello", picture):
        whole = client.responses.create(model=model, input=given, temperature=0)
        with client.responses.stream(model=model, input=given, temperature=0) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            last = stream.get_final_response()
        assert whole.output_text == text == last.output_text != ""
        assert whole.usage is not None
        assert last.usage is not None
        assert whole.usage.total_tokens == last.usage.total_tokens


def test_a_loop_of_a_function_by_responses(client: OpenAI, model: str) -> None:
    function = WEATHER["function"]
    tools: Any = [{"type": "function", **function}]
    items: list[Any] = [{"role": "user", "content": "hello"}]
    for _ in range(3):
        answer = client.responses.create(model=model, input=items, tools=tools, tool_choice="required", store=False)
        [call] = answer.output
        assert call.type == "function_call"
        assert json.loads(call.arguments).keys() == {"place", "days"}
        items += [call, {"type": "function_call_output", "call_id": call.call_id, "output": "It is sunny."}]
    assert client.responses.create(model=model, input=items, max_output_tokens=8).output[0].type == "message"


def test_a_response_that_is_refused_and_one_that_is_json(
    client: OpenAI, model: str, harmful: list[ChatCompletionMessageParam]
) -> None:
    class Seen(BaseModel):
        colour: Literal["red", "green"]

    parsed = client.responses.parse(model=model, input="hello", text_format=Seen)
    assert parsed.output_parsed is not None
    content: Any = harmful[0].get("content")
    parts = [
        {"type": "input_text", "text": part["text"]}
        if part["type"] == "text"
        else {"type": "input_image", "image_url": part["image_url"]["url"], "detail": "auto"}
        for part in content
    ]
    asked: Any = [{"role": "user", "content": parts}]
    answer = client.responses.create(model=model, input=asked)
    [message] = answer.output
    assert message.type == "message"
    assert message.content[0].type == "refusal"
    assert refused(message.content[0].refusal)


def test_what_load_generators_send(client: OpenAI, model: str) -> None:
    # Few more tokens than the answer has: the guard reads what comes after its end, too.
    whole = client.chat.completions.create(model=model, messages=[user("hello")], temperature=0)
    assert whole.usage is not None
    asked = whole.usage.completion_tokens + 4
    chunks = [
        *client.chat.completions.create(
            model=model,
            messages=[user("hello")],
            temperature=0,
            max_completion_tokens=asked,
            stream=True,
            extra_body={
                "ignore_eos": True,
                "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            },
        )
    ]
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks)
    assert counts[-1] == asked


def test_moderations_by_openai_s_name(client: OpenAI, model: str) -> None:
    assert client.moderations.create(model="omni-moderation-latest", input="hello").model == model


# Node --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def node_client() -> Path:
    """A folder with the official Node client and the script, installed once for each lock file."""
    npm = shutil.which("npm")
    if shutil.which("node") is None or npm is None:
        pytest.skip("node or npm is not installed")
    lock = NODE / "package-lock.json"
    folder = CACHE / f"node-{hashlib.sha256(lock.read_bytes()).hexdigest()[:16]}"
    if not (folder / "installed").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(NODE / name, folder)
        done = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            pytest.skip(f"npm cannot install the client: {done.stderr[-300:]}")
        (folder / "installed").touch()
    shutil.copy(NODE / "client.mjs", folder)
    return folder


def test_the_official_node_client(guarded: ServerProcess, node_client: Path) -> None:
    done = subprocess.run(
        ["node", "client.mjs", f"{guarded.url}/v1", data_url(APPLE)],
        cwd=node_client, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) == 8
