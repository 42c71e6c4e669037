"""Every field of the published chat completion request: honoured, with the test that shows it, or refused by name.

The fields are read from the types of the official client, so that a new one fails here until it is in the table.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from typing_extensions import get_type_hints, is_typeddict

from tests.server.scripted import MODEL, Script, ScriptedRunner, data_url, error_of, png, serving

TESTS = Path(__file__).parents[2]


def _is_literal(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is Literal


def _tag(kind: Any) -> str:
    """What tells one alternative from the others: its role or its type."""
    hints = get_type_hints(kind)
    tags = [get_args(hints[key])[0] for key in ("role", "type") if key in hints and _is_literal(hints[key])]
    return f"[{tags[0]}]" if tags else ""


def fields_of(kind: Any, path: str = "") -> Iterator[str]:
    """The path of every field of a type, at any depth."""
    if is_typeddict(kind):
        for name, hint in get_type_hints(kind).items():
            yield f"{path}.{name}".removeprefix(".")
            yield from fields_of(hint, f"{path}.{name}")
    elif not _is_literal(kind):
        parts = get_args(kind)
        several = sum(is_typeddict(part) for part in parts) > 1
        for part in parts:
            yield from fields_of(part, path + (_tag(part) if several and is_typeddict(part) else ""))


PUBLISHED = {
    *fields_of(CompletionCreateParamsNonStreaming),
    *fields_of(CompletionCreateParamsStreaming),
}  # fmt: skip

WHOLE = "server/test_app.py::test_every_honoured_field_reaches_the_engine"
SAMPLED = "models/test_sampling.py::test_each_row_of_a_batch_gets_the_slow_sampler_s_token"
TEMPLATE = "server/test_app.py::test_messages_and_images_reach_the_template_in_order"
NAMES = "models/test_inputs.py::test_a_name_is_said_where_the_template_has_a_use_for_it"
DETAIL = "models/test_inputs.py::test_low_takes_fewer_tokens_than_high_and_the_model_reads_both"
SCHEMA = "server/test_app_on_engine.py::test_constrained_answers_beside_others_in_the_batch"
WISH = "server/routes/test_moderations.py::test_a_chat_may_ask_for_a_score_or_a_block_and_never_for_less"
FORCED = "server/api/test_tools.py::test_a_forced_call_whole_and_streamed"
TOLD = "server/api/test_tools.py::test_the_template_is_told_of_the_tools_that_will_be_called"
ALLOWED = "server/api/test_tools.py::test_of_allowed_tools_alone_one_is_called"
TURNS = "server/api/test_tools.py::test_turns_of_tools_reach_the_template"
LABELS = "server/api/test_openai_schema.py::test_labels_are_taken_and_change_nothing"

HONOURED: dict[str, str] = {
    "model": "server/test_app.py::test_an_unknown_model_is_not_found",
    "messages": TEMPLATE,
    **{f"messages[{role}].{name}": TEMPLATE for role in ("system", "developer", "user", "assistant")
       for name in ("role", "content")},
    **{f"messages[{role}].name": NAMES for role in ("system", "developer", "user", "assistant")},
    **{f"messages[{role}].content.{name}": TEMPLATE for role in ("system", "developer") for name in ("type", "text")},
    **{f"messages[{role}].content[text].{name}": TEMPLATE for role in ("user", "assistant")
       for name in ("type", "text")},
    "messages[user].content[image_url].type": TEMPLATE,
    "messages[user].content[image_url].image_url": TEMPLATE,
    "messages[user].content[image_url].image_url.url": TEMPLATE,
    "messages[user].content[image_url].image_url.detail": DETAIL,
    "messages[assistant].refusal": TEMPLATE,
    "messages[assistant].content[refusal].type": TEMPLATE,
    "messages[assistant].content[refusal].refusal": TEMPLATE,
    "frequency_penalty": SAMPLED,
    "logit_bias": SAMPLED,
    "presence_penalty": SAMPLED,
    "temperature": SAMPLED,
    "top_p": SAMPLED,
    "seed": "server/answer/test_choices.py::test_the_choices_of_a_seed_differ_and_come_again",
    "n": "server/answer/test_choices.py::test_a_whole_answer_has_every_choice_by_its_index_and_counts_the_prompt_once",
    "max_tokens": WHOLE,
    "max_completion_tokens": WHOLE,
    "stop": "server/http/test_streaming.py::test_no_part_of_a_stop_string_is_shown",
    "logprobs": "server/answer/test_logprobs.py::test_log_probabilities_whole_and_streamed",
    "top_logprobs": "server/answer/test_logprobs.py::test_log_probabilities_whole_and_streamed",
    "metadata": "server/test_app.py::test_a_whole_answer",
    "stream": "server/http/test_streaming.py::test_the_order_of_chunks_with_usage",
    "stream_options": "server/http/test_streaming.py::test_the_order_of_chunks_with_usage",
    "stream_options.include_usage": "server/http/test_streaming.py::test_the_order_of_chunks_with_usage",
    "response_format": SCHEMA,
    "response_format[text].type": LABELS,
    "response_format[json_object].type": "models/test_grammar.py::test_over_the_bundled_model_s_tokenizer",
    "response_format[json_schema].type": SCHEMA,
    "response_format[json_schema].json_schema": SCHEMA,
    "response_format[json_schema].json_schema.name": SCHEMA,
    "response_format[json_schema].json_schema.schema": "models/test_grammar.py::"
                                                       "test_whatever_is_sampled_satisfies_the_schema",
    "response_format[json_schema].json_schema.strict": SCHEMA,
    "moderation": "server/test_app.py::test_verdict_and_score_are_shown_where_asked_for_or_exposed",
    "moderation.model": "server/test_app.py::test_an_unknown_model_is_not_found",
    "moderation.policy": WISH,
    "moderation.policy.input": WISH,
    "moderation.policy.input.mode": WISH,
    "parallel_tool_calls": FORCED,
    "tools": FORCED,
    **{f"tools[function].{name}": FORCED
       for name in ("type", "function", "function.name", "function.parameters", "function.strict")},
    "tools[function].function.description": TOLD,
    "tool_choice": FORCED,
    **{f"tool_choice[function].{name}": FORCED for name in ("type", "function", "function.name")},
    **{f"tool_choice[allowed_tools].{name}": ALLOWED
       for name in ("type", "allowed_tools", "allowed_tools.mode", "allowed_tools.tools")},
    **{f"messages[tool].{name}": TURNS for name in ("role", "content", "content.type", "content.text", "tool_call_id")},
    "messages[assistant].tool_calls": TURNS,
    **{f"messages[assistant].tool_calls[function].{name}": TURNS
       for name in ("id", "type", "function", "function.name", "function.arguments")},
}  # fmt: skip

BREAKPOINT = {"mode": "explicit"}
TEXT = {"type": "text", "text": "x"}
IMAGE = {"type": "image_url", "image_url": {"url": data_url(png())}}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content, **more}]}


def with_parts(role: str, *parts: Any) -> dict[str, Any]:
    return said(role, [{**part, "prompt_cache_breakpoint": BREAKPOINT} for part in parts])


# Path of the field -> a request that has it. What lies within a hint is ignored with it.
HINTS: dict[str, dict[str, Any]] = {
    "prediction": {"prediction": {"type": "content", "content": "x"}},
    "prompt_cache_key": {"prompt_cache_key": "k"},
    "prompt_cache_options": {"prompt_cache_options": {"mode": "implicit"}},
    "prompt_cache_retention": {"prompt_cache_retention": "24h"},
    "reasoning_effort": {"reasoning_effort": "low"},
    "safety_identifier": {"safety_identifier": "s"},
    "service_tier": {"service_tier": "auto"},
    "store": {"store": True},
    "user": {"user": "u"},
    "verbosity": {"verbosity": "low"},
    "response_format[json_schema].json_schema.description": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "description": "d"}}
    },
    "messages[assistant].content[text].prompt_cache_breakpoint": with_parts("assistant", TEXT),
    "messages[tool].content.prompt_cache_breakpoint": {
        "messages": [
            {"role": "tool", "tool_call_id": "1", "content": [{**TEXT, "prompt_cache_breakpoint": BREAKPOINT}]}
        ]
    },
    "messages[system].content.prompt_cache_breakpoint": with_parts("system", TEXT),
    "messages[developer].content.prompt_cache_breakpoint": with_parts("developer", TEXT),
    "messages[user].content[text].prompt_cache_breakpoint": with_parts("user", TEXT),
    "messages[user].content[image_url].prompt_cache_breakpoint": with_parts("user", IMAGE),
}
# Path of the field -> a request that has it, and the `param` of the error. What lies within a refused field is refused.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "audio": ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    "function_call": ({"function_call": {"name": "f"}}, "function_call"),
    "functions": ({"functions": [{"name": "f"}]}, "functions"),
    **{
        f"tools[custom].{name}": ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type")
        for name in ("type", "custom")
    },
    **{
        f"tool_choice[custom].{name}": ({"tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice")
        for name in ("type", "custom")
    },
    "web_search_options": ({"web_search_options": {}}, "web_search_options"),
    # These have one value that asks for nothing more; it is accepted, any other is refused.
    "modalities": ({"modalities": ["text", "audio"]}, "modalities"),
    "stream_options.include_obfuscation": (
        {"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"
    ),
    "moderation.policy.output": (
        {"moderation": {"model": MODEL, "policy": {"output": {"mode": "score"}}}}, "moderation.policy.output"
    ),
    "messages[function].role": (said("function", "x", name="f"), "messages.0.role"),
    "messages[function].content": (said("function", "x", name="f"), "messages.0.role"),
    "messages[function].name": (said("function", "x", name="f"), "messages.0.role"),
    "messages[assistant].audio": (said("assistant", "x", audio={"id": "a"}), "messages.0.audio"),
    "messages[assistant].function_call": (
        said("assistant", "x", function_call={"name": "f", "arguments": ""}), "messages.0.function_call"
    ),
    **{
        f"messages[assistant].tool_calls[custom].{name}": (
            said("assistant", "x", tool_calls=[{"id": "1", "type": "custom"}]), "messages.0.tool_calls.0.type"
        )
        for name in ("id", "type", "custom")
    },
    **{
        f"messages[user].content[{kind}].{name}": (
            said("user", [{"type": kind, kind: {}}]), "messages.0.content.0.type"
        )
        for kind in ("file", "input_audio")
        for name in ("type", kind, "prompt_cache_breakpoint")
    },
}  # fmt: skip


def test_every_published_field_is_in_one_table() -> None:
    assert len(PUBLISHED) > 150
    closed = [*REFUSED, *HINTS]
    within = {path for path in PUBLISHED if any(path.startswith((f"{top}.", f"{top}[")) for top in closed)}
    assert PUBLISHED - within == HONOURED.keys() | HINTS.keys() | REFUSED.keys()
    assert not HONOURED.keys() & REFUSED.keys()
    assert not HINTS.keys() & (HONOURED.keys() | REFUSED.keys())


@pytest.mark.parametrize("test", sorted(set(HONOURED.values())))
def test_the_test_of_an_honoured_field_is_there(test: str) -> None:
    path, name = test.split("::")
    tree = ast.parse((TESTS / path).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert name in {function.name for function in functions}


@pytest.mark.parametrize("field", REFUSED)
async def test_a_field_that_is_not_honoured_is_refused_by_name(field: str) -> None:
    options, param = REFUSED[field]
    async with serving(ScriptedRunner()) as client:
        body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], **options}
        response = await client.post("/v1/chat/completions", json=body)
    assert error_of(response, 400)["param"] == param


@pytest.mark.parametrize("field", HINTS)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_hint_is_named_in_a_header(field: str, stream: bool) -> None:
    # A scripted template refuses a conversation that an assistant begins.
    messages = HINTS[field].get("messages", [])
    options = {**HINTS[field], "messages": [{"role": "user", "content": "x"}, *messages], "stream": stream}
    async with serving(ScriptedRunner(answer=lambda _: Script.saying("{}"))) as client:
        response = await client.post("/v1/chat/completions", json={"model": MODEL, **options})
    assert response.status_code == 200, response.text
    assert response.headers["x-autosteer-ignored"] == re.sub(r"\[\w+\]", "", field)


async def test_tools_that_are_none_are_none() -> None:
    none: dict[str, Any] = {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "functions": [],
                            "function_call": "none"}  # fmt: skip
    async with serving(ScriptedRunner()) as client:
        response = await client.post("/v1/chat/completions", json={"model": MODEL, **said("user", "x"), **none})
    assert response.status_code == 200
    assert "x-autosteer-ignored" not in response.headers


async def test_labels_are_taken_and_change_nothing() -> None:
    """They say who asks, to whoever reads the request; and `text` is what an answer is anyway."""
    labels = {"user": "u", "safety_identifier": "s", "response_format": {"type": "text"}, "store": False,
              "modalities": ["text"]}  # fmt: skip
    async with serving(ScriptedRunner()) as client:
        answers = [
            (await client.post("/v1/chat/completions", json={"model": MODEL, **said("user", "x"), **more})).json()
            for more in ({}, labels)
        ]
    for answer in answers:
        del answer["id"], answer["created"]
    assert answers[0] == answers[1]
