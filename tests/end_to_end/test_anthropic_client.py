"""Anthropic's official client over a live server, with strict validation of every answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic, BadRequestError, NotFoundError
from PIL import Image

from models.demo.dialogue import pairs
from models.demo.judge import refused
from tests.end_to_end.processes import ServerProcess, data_url

MODEL = "autosteer-demo"
WEATHER: Any = {
    "name": "weather",
    "description": "Tell the weather of a place",
    "input_schema": {
        "type": "object",
        "properties": {"place": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["place", "days"],
        "additionalProperties": False,
    },
}
CLOCK: Any = {"name": "clock", "input_schema": {"type": "object", "additionalProperties": False}}


def client_of(server: ServerProcess) -> Anthropic:
    return Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60, _strict_response_validation=True)


@pytest.fixture(scope="module")
def client(guarded: ServerProcess) -> Iterator[Anthropic]:
    with client_of(guarded) as client:
        yield client


@pytest.fixture(scope="module")
def unwatched(unguarded: ServerProcess) -> Iterator[Anthropic]:
    """The bundled model knows no tools, and its guard takes some of the calls that it is forced to make for harm."""
    with client_of(unguarded) as client:
        yield client


def picture(image: Image.Image) -> Any:
    data = data_url(image).partition("base64,")[2]
    return {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}


def user(*blocks: Any) -> Any:
    return {"role": "user", "content": [{"type": "text", "text": b} if isinstance(b, str) else b for b in blocks]}


def text_of(answer: Any) -> str:
    """The text that is all of an answer."""
    [block] = answer.content
    assert block.type == "text"
    said: str = block.text
    return said


def harmful() -> Any:
    example = next(pair for pair in pairs(1, seed=921, split="test") if pair.kind == "cross").toxic
    return user(example.question, *([picture(example.image)] if example.image else []))


def test_texts_and_images_whole_and_streamed(client: Anthropic) -> None:
    red = picture(Image.new("RGB", (96, 96), "red"))
    for turn in (user("hello"), user("what is in the picture?", red)):
        options: Any = {"model": MODEL, "max_tokens": 24, "messages": [turn], "extra_body": {"top_k": 1}}
        whole = client.messages.create(**options)
        with client.messages.stream(**options) as stream:
            text = stream.get_final_text()
            last = stream.get_final_message()
        assert [block.to_dict() for block in last.content] == [block.to_dict() for block in whole.content]
        assert text_of(whole) == text != ""
        assert last.stop_reason == whole.stop_reason
        counted = client.messages.count_tokens(model=MODEL, messages=[turn]).input_tokens
        for usage in (whole.usage, last.usage):
            assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_loop_of_a_tool_in_three_turns(unwatched: Anthropic, choice: Any) -> None:
    messages: list[Any] = [user("hello")]
    for _ in range(3):
        options: Any = {"model": MODEL, "max_tokens": 64, "messages": messages, "tools": [WEATHER, CLOCK]}
        whole = unwatched.messages.create(**options, tool_choice=choice)
        with unwatched.messages.stream(**options, tool_choice=choice) as stream:
            streamed = stream.get_final_message()
        for answer in (whole, streamed):
            content: Any = answer.content
            [call] = content
            assert (answer.stop_reason, call.type) == ("tool_use", "tool_use")
            assert call.input == {} if call.name == "clock" else call.input.keys() == {"place", "days"}
            result = {"type": "tool_result", "tool_use_id": call.id, "content": "It is sunny."}
            messages += [answer.to_param(), user(result)]
    last = unwatched.messages.create(model=MODEL, max_tokens=8, messages=messages)
    assert text_of(last)


def test_a_refusal_whole_and_streamed(client: Anthropic) -> None:
    options: Any = {"model": MODEL, "max_tokens": 64, "messages": [harmful()]}
    whole = client.messages.create(**options)
    with client.messages.stream(**options) as stream:
        streamed = stream.get_final_message()
    forced = client.messages.create(**options, tools=[WEATHER], tool_choice={"type": "any"})
    for answer in (whole, streamed, forced):
        assert answer.stop_reason == "refusal"
        assert refused(text_of(answer))


def test_an_answer_that_is_json_and_what_is_refused(client: Anthropic) -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"],
              "additionalProperties": False}  # fmt: skip
    options: Any = {"model": MODEL, "max_tokens": 64, "messages": [user("hello")]}
    answer = client.messages.create(**options, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert text_of(answer) in ('{"sure":true}', '{"sure":false}')
    with pytest.raises(NotFoundError) as missing:
        client.messages.create(**{**options, "model": "gpt"})
    assert missing.value.type == "not_found_error"
    assert missing.value.request_id
    with pytest.raises(BadRequestError, match="'container'") as wrong:
        client.messages.create(**options, container="x")
    assert wrong.value.type == "invalid_request_error"
