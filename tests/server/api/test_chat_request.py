"""A body is a request or a BadRequest that names the field: never another exception, never a field ignored."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.answer_fields import MAX_BIASES, MAX_CHOICES, MAX_STOP_CHARACTERS, MAX_STOPS
from server.api.chat import ChatJob
from server.api.chat_request import ChatCompletionRequest, parse_chat_request
from server.api.fields import MAX_FIELDS
from server.api.messages import MAX_MESSAGES, MAX_PARTS
from server.api.metadata import MAX_METADATA
from server.errors import BadRequest
from tests.server.scripted import body

HONOURED: dict[str, Any] = {
    "model": "scripted",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "temperature": 0,
    "top_p": 0.5,
    "top_k": -1,
    "min_p": 0.1,
    "seed": -(2**63),
    "repetition_penalty": 1.1,
    "frequency_penalty": -2,
    "presence_penalty": 2.0,
    "logit_bias": {"1": -100, "2": 0.5},
    "stop": ["a", "b"],
    "n": 2,
    "logprobs": True,
    "top_logprobs": 20,
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "moderation": {"model": "scripted", "policy": {"input": {"mode": "score"}}},
    "guard": {"mode": "block", "threshold": 0.25, "eps": 2},
    "response_format": {"type": "text"},
    "min_tokens": 2,
    "ignore_eos": False,
    "metadata": {"key": "value"},
    "parallel_tool_calls": False,
    "tools": [{"type": "function", "function": {"name": "f"}}],
    "tool_choice": "auto",
}
HINTS: dict[str, Any] = {
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "implicit"},
    "prompt_cache_retention": "24h",
    "reasoning": {"effort": "low"},
    "reasoning_effort": "low",
    "safety_identifier": "s",
    "service_tier": "auto",
    "store": True,
    "user": "u",
    "verbosity": "low",
}
# Values that ask for nothing are accepted; the others would change the answer, and are refused.
ONLY: dict[str, tuple[list[Any], list[Any]]] = {
    "modalities": ([["text"]], [["text", "audio"], [], "text"]),
    "functions": ([[]], [[{"name": "f"}], "f"]),
    "function_call": (["none", "auto"], [{"name": "f"}]),
}
NOT_SUPPORTED: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "web_search_options": {},
}


def refused(**options: Any) -> BadRequest:
    """What parsing a good body with these fields put in raises."""
    with pytest.raises(BadRequest) as caught:
        ChatJob.of({**body(), **options})
    assert len(caught.value.message) < 600
    return caught.value


def refused_message(message: Any) -> BadRequest:
    return refused(messages=[message])


def test_every_field_is_honoured_a_hint_or_refused_here() -> None:
    """A new field has to be put into one of the tables, and so be tested."""
    assert (
        set(ChatCompletionRequest.model_fields) == HONOURED.keys() | HINTS.keys() | ONLY.keys() | NOT_SUPPORTED.keys()
    )


def test_all_honoured_fields_together() -> None:
    chat = parse_chat_request(HONOURED)
    assert (chat.limit, chat.include_usage, chat.logit_bias) == (("max_completion_tokens", 5), True, {1: -100, 2: 0.5})


@pytest.mark.parametrize("name", sorted(set(ChatCompletionRequest.model_fields) - {"model", "messages"}))
def test_null_counts_as_absent(name: str) -> None:
    assert parse_chat_request({**body(), name: None}) == parse_chat_request(body())


@pytest.mark.parametrize("name", HINTS)
def test_a_hint_is_taken_and_told_to_be_ignored(name: str) -> None:
    assert [*parse_chat_request({**body(), name: HINTS[name]}).ignored()] == [name]
    assert [*parse_chat_request({**body(), name: None}).ignored()] == []


def test_what_is_honoured_is_no_hint() -> None:
    assert [*parse_chat_request(HONOURED).ignored()] == []
    assert [*parse_chat_request({**body(), "store": False, "tools": [], "tool_choice": "none"}).ignored()] == []


def test_options_of_a_stream_that_is_none_are_a_hint() -> None:
    chat = parse_chat_request({**body(), "stream_options": {"include_usage": True}})
    assert [*chat.ignored()] == ["stream_options"]


def test_hints_within_are_told_by_their_path_once() -> None:
    turn = {"role": "assistant", "content": "x", "reasoning_content": "y", "annotations": [], "id": "1"}
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "description": "d"}}
    messages = [{"role": "user", "content": [part, part]}, turn, turn]
    assert {*parse_chat_request({**body(), "messages": messages, "response_format": wanted}).ignored()} == {
        "messages.annotations",
        "messages.content.cache_control",
        "messages.id",
        "messages.reasoning_content",
        "response_format.json_schema.description",
    }


def test_the_answer_s_own_message_can_be_sent_back() -> None:
    """As the official client's `message.model_dump()` has it."""
    turn = {"role": "assistant", "content": "x", "refusal": None, "annotations": None, "audio": None,
            "function_call": None, "tool_calls": None}  # fmt: skip
    assert [*parse_chat_request({**body(), "messages": [turn, {**turn, "tool_calls": []}]}).ignored()] == []


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "top_k", "seed", "n"])
def test_a_number_without_a_fraction_is_an_integer_however_it_is_written(name: str) -> None:
    assert getattr(parse_chat_request({**body(), name: 64.0}), name) == 64
    assert "must be an integer" in refused(**{name: 64.5}).message


def test_an_image_s_url_may_stand_without_the_object_around_it() -> None:
    alone = {"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}
    whole = {"role": "user", "content": [image_part()]}
    assert parse_chat_request({**body(), "messages": [alone]}) == parse_chat_request({**body(), "messages": [whole]})


def test_stop_strings_have_a_limit_together() -> None:
    assert len(parse_chat_request({**body(), "stop": ["x"] * MAX_STOPS}).stop or ()) == MAX_STOPS
    assert "together have at most 4096" in refused(stop=["x" * 65] * MAX_STOPS).message


@pytest.mark.parametrize("name", NOT_SUPPORTED)
def test_a_field_that_is_not_supported_is_refused_by_name(name: str) -> None:
    error = refused(**{name: NOT_SUPPORTED[name]})
    assert (error.status, error.param) == (400, name)
    assert "does not support it" in error.message


@pytest.mark.parametrize("name", ONLY)
def test_a_field_with_one_value_accepts_that_value_alone(name: str) -> None:
    good, bad = ONLY[name]
    for value in good:
        parse_chat_request({**body(), name: value})
    for value in bad:
        error = refused(**{name: value})
        assert error.param == name
        assert f"'{name}'" in error.message


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", -0.1, "greater than or equal to 0"),
        ("temperature", 2.1, "less than or equal to 2"),
        ("temperature", "1", "must be a number"),
        ("temperature", True, "must be a number"),
        ("temperature", 10**400, "temperature"),
        ("top_p", -0.1, "greater than or equal to 0"),
        ("top_p", 1.01, "less than or equal to 1"),
        ("top_k", -2, "greater than or equal to -1"),
        ("top_k", 1.5, "must be an integer"),
        ("min_p", 1.5, "less than or equal to 1"),
        ("seed", 2**63, "less than"),
        ("seed", "7", "must be an integer"),
        ("repetition_penalty", 1e-300, "greater than or equal to 0.01"),
        ("min_tokens", -1, "greater than or equal to 0"),
        ("frequency_penalty", 2.5, "less than or equal to 2"),
        ("presence_penalty", -2.5, "greater than or equal to -2"),
        ("max_tokens", 0, "greater than or equal to 1"),
        ("max_tokens", True, "must be an integer"),
        ("max_completion_tokens", 2**63, "less than"),
        ("logit_bias", [], "token id"),
        ("logit_bias", {"a": 1}, "'a' is not a token id"),
        ("logit_bias", {"-1": 1}, "'-1' is not a token id"),
        ("logit_bias", {"1": 101}, "-100 to 100, not 101"),
        ("logit_bias", {"1": True}, "-100 to 100, not True"),
        ("logit_bias", {str(i): 1 for i in range(MAX_BIASES + 1)}, f"at most {MAX_BIASES}"),
        ("stop", 5, "a string or a list of strings"),
        ("stop", ["a", 5], "a string or a list of strings"),
        ("stop", [""], f"1 to {MAX_STOP_CHARACTERS}"),
        ("stop", "x" * (MAX_STOP_CHARACTERS + 1), f"1 to {MAX_STOP_CHARACTERS}"),
        ("stop", ["x"] * (MAX_STOPS + 1), f"at most {MAX_STOPS} stop strings are allowed, not {MAX_STOPS + 1}"),
        ("n", 0, "greater than or equal to 1"),
        ("n", MAX_CHOICES + 1, f"less than or equal to {MAX_CHOICES}"),
        ("n", True, "must be an integer"),
        ("logprobs", 0, "must be true or false"),
        ("top_logprobs", 21, "less than or equal to 20"),
        ("top_logprobs", True, "must be an integer"),
        ("stream", 1, "must be true or false"),
        ("stream_options", 5, "must be an object"),
        ("user", "x" * 513, "at most 512 characters"),
        ("safety_identifier", "x" * 513, "at most 512 characters"),
        ("metadata", [], "must be an object"),
        ("metadata", {"k": 5}, "values are strings"),
        ("metadata", {"k" * 65: "v"}, "at most 64 characters"),
        ("metadata", {"k": "v" * 513}, "at most 512"),
        ("metadata", {str(i): "v" for i in range(MAX_METADATA + 1)}, f"at most {MAX_METADATA} pairs"),
        ("model", 5, "must be a string"),
        ("messages", [], "at least 1"),
        ("messages", "hello", "must be a list"),
        ("messages", [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1), f"at most {MAX_MESSAGES}"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field_and_its_limit(name: str, value: Any, words: str) -> None:
    error = refused(**{name: value})
    assert error.param == name
    assert words in error.message
    assert f"'{name}'" in error.message


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream": True, "stream_options": {"usage": True}}, "stream_options.usage"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"top_logprobs": 5, "logprobs": False}, "top_logprobs"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x y", "schema": {}}}},
            "response_format.json_schema.name",
        ),
        ({"response_format": {"type": "text", "json_schema": {}}}, "response_format.json_schema"),
        ({"moderation": {}}, "moderation.model"),
        ({"moderation": {"model": "m", "policy": {"input": {"mode": "steer"}}}}, "moderation.policy.input.mode"),
        ({"moderation": {"model": "m", "policy": {"output": {"mode": "score"}}}}, "moderation.policy.output"),
        ({"stop": ["a", "\0"]}, "stop.1"),
        ({"metadata": {"k": "\0"}}, "metadata.k"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens"),
        ({"max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"temprature": 1}, "temprature"),
        ({"x" * 100_000: 1}, "x" * 200),
    ],
)
def test_a_nested_or_unknown_field_is_named_by_its_path(options: dict[str, Any], param: str) -> None:
    assert refused(**options).param == param


CALL: dict[str, Any] = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f"}}


def text_part(**more: Any) -> dict[str, Any]:
    return {"type": "text", "text": "x", **more}


def image_part(**more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": "data:", **more}}


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (5, ""),
        ({}, ".role"),
        ({"role": "function", "content": "x"}, ".role"),
        ({"role": "tool", "content": "x"}, ".tool_call_id"),
        ({"role": "tool", "tool_call_id": "1", "content": [image_part()]}, ".content.0.type"),
        ({"role": ["user"], "content": "x"}, ".role"),
        ({"role": "user"}, ".content"),
        ({"role": "user", "content": None}, ".content"),
        ({"role": "user", "content": 5}, ".content"),
        ({"role": "user", "content": "\0"}, ".content"),
        ({"role": "user", "content": []}, ".content"),
        ({"role": "user", "content": [text_part()] * (MAX_PARTS + 1)}, ".content"),
        ({"role": "user", "content": "x", "name": ""}, ".name"),
        ({"role": "user", "content": "x", "name": "a b"}, ".name"),
        ({"role": "user", "content": "x", "name": "<|im_start|>"}, ".name"),
        ({"role": "system", "content": "x", "name": "n" * 65}, ".name"),
        ({"role": "user", "content": "x", "tool_calls": []}, ".tool_calls"),
        # A field called as the union's tag must not lead the path astray.
        ({"role": "user", "content": 5, "user": {"content": 1}}, ".content"),
        ({"role": "user", "content": ["x"]}, ".content.0"),
        ({"role": "user", "content": [{}]}, ".content.0.type"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, ".content.0.type"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}, ".content.0.type"),
        ({"role": "user", "content": [{"type": "text"}]}, ".content.0.text"),
        ({"role": "user", "content": [text_part(), text_part(text=5)]}, ".content.1.text"),
        ({"role": "user", "content": [text_part(colour="red")]}, ".content.0.colour"),
        ({"role": "user", "content": [{"type": "image_url"}]}, ".content.0.image_url"),
        ({"role": "user", "content": [image_part(url=5)]}, ".content.0.image_url.url"),
        ({"role": "user", "content": [image_part(detail="medium")]}, ".content.0.image_url.detail"),
        ({"role": "user", "content": [{**image_part(), "alt": "x"}]}, ".content.0.alt"),
        ({"role": "system", "content": [image_part()]}, ".content.0.type"),
        ({"role": "system", "content": [text_part(text=5)]}, ".content.0.text"),
        ({"role": "developer", "content": [text_part(colour="red")]}, ".content.0.colour"),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "x", "why": 1}]}, ".content.0.why"),
        ({"role": "assistant", "content": [image_part()]}, ".content.0.type"),
        ({"role": "assistant"}, ""),
        ({"role": "assistant", "content": "x", "tool_calls": {}}, ".tool_calls"),
        ({"role": "assistant", "tool_calls": []}, ""),
        ({"role": "assistant", "tool_calls": [{"id": "1", "type": "custom"}]}, ".tool_calls.0.type"),
        (
            {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f"}}]},
            ".tool_calls.0.function.arguments",
        ),
        ({"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "a b"}}]}, ".tool_calls.0.function.name"),
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, ".audio"),
        ({"role": "assistant", "content": "x", "function_call": {}}, ".function_call"),
    ],
)
def test_a_wrong_message_is_named_by_its_path(message: Any, path: str) -> None:
    error = refused_message(message)
    assert error.param == f"messages.0{path}"
    assert f"'messages.0{path}'" in error.message


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools.0.function.name"),
        ({"tools": [TOOL, TOOL]}, "tools.1.function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]},
            "tools.0.function.parameters.type",
        ),
        ({"tools": [TOOL] * 129}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [], "tool_choice": TOOL}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "custom"}}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
        ),
        (
            {
                "tools": [TOOL],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]},
                },
            },
            "tool_choice.allowed_tools.tools",
        ),
    ],
)
def test_tools_that_are_wrong_are_named_by_their_path(options: dict[str, Any], param: str) -> None:
    assert refused(**options).param == param


@pytest.mark.parametrize("data", [None, True, 5, "x", [], [body()]])
def test_a_body_that_is_no_object_is_refused(data: object) -> None:
    with pytest.raises(BadRequest, match="must be a JSON object"):
        parse_chat_request(data)


@pytest.mark.parametrize("name", ["model", "messages"])
def test_a_missing_field_is_named(name: str) -> None:
    data = body()
    del data[name]
    with pytest.raises(BadRequest, match=f"Missing required field '{name}'") as caught:
        parse_chat_request(data)
    assert caught.value.param == name


def test_an_object_of_very_many_fields_is_one_short_error() -> None:
    error = refused(**{f"field{i}": 1 for i in range(100_000)})
    assert f"at most {MAX_FIELDS} fields" in error.message


# any JSON ----------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(
    [*ChatCompletionRequest.model_fields, "role", "content", "type", "text", "image_url", "url", "user", "assistant"]
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | WORDS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def check_any(data: Any) -> None:
    """Parse what a client could send as JSON; whatever the outcome, it is one of two."""
    decoded = orjson.loads(orjson.dumps(data))
    try:
        parse_chat_request(decoded)
    except BadRequest as refusal:
        error = refusal
    else:
        return
    assert 0 < len(error.message) < 600
    assert len(error.param or "") <= 200
    assert orjson.loads(orjson.dumps(error.body)) == error.body


@given(JSON)
def test_any_json_is_a_request_or_refused(data: Any) -> None:
    check_any(data)


@given(st.data())
def test_a_good_request_with_one_value_changed_is_a_request_or_refused(data: st.DataObject) -> None:
    """Closer to the schema than random JSON: one place of a full request becomes something else."""
    changed = orjson.loads(
        orjson.dumps({**HONOURED, "messages": [{"role": "user", "content": [text_part(), image_part()]}]})
    )
    place = changed
    while True:
        key = data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
        if not place[key] or not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            break
        place = place[key]
    if isinstance(place, dict) and data.draw(st.booleans()):
        key = data.draw(WORDS | st.text(max_size=5))
    place[key] = data.draw(JSON)
    check_any(changed)
