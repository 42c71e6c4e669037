"""What a chat template makes of tools, and how a chat is told to one that has no turns for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.calls import CallSyntax, syntax_in
from models.errors import PromptError

_NAME, _KEY, _RESULT = "probe_function", "probe_argument", "probe result"
_ARGUMENTS = {_KEY: "y"}
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "x",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string"}}, "required": [_KEY]},
    },
}


def _says(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]


_ASKED = {"role": "user", "content": _says("x")}
_CALLED = {
    "role": "assistant",
    "content": [],
    "tool_calls": [{"id": "probe0000", "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}],
}
_TOLD = {"role": "tool", "tool_call_id": "probe0000", "name": _NAME, "content": _says(_RESULT)}

Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]], str]


@dataclass(frozen=True)
class Reads:
    """What of tools a chat template shows: their descriptions, and the turns of calls and their results.

    `calls`: how it writes calls; None where it shows no tools, or writes calls in a way that is not known.
    """

    tools: bool
    turns: bool
    calls: CallSyntax | None = None


def reads_of(render: Render) -> Reads:
    """Try a template with a tool, a call and its result. Raises nothing."""

    def tried(chat: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        try:
            return render(chat, tools)
        except PromptError:
            return ""

    told = tried([_ASKED], [_TOOL])
    turns, bare = (tried([_ASKED, _CALLED, _TOLD], tools) for tools in ([_TOOL], []))
    shows_tools = all(word in told for word in (_NAME, _KEY))
    return Reads(
        tools=shows_tools,
        turns=all(word in rendered for word in (_NAME, _KEY, _RESULT) for rendered in (turns, bare)),
        calls=syntax_in(turns.removeprefix(told), _NAME, _ARGUMENTS) if shows_tools else None,
    )


def tool_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message's calls, or the id of the one that it answers, as templates expect them."""
    if (answered := message.get("tool_call_id")) is not None:
        return {"tool_call_id": _short(answered)}
    calls = message.get("tool_calls") or ()
    found = [{"id": _short(call["id"]), "type": "function", "function": {**call["function"]}} for call in calls]
    return {"tool_calls": found} if found else {}


def _short(identity: str) -> str:
    """An id of nine letters and digits, as some templates insist on; nothing of the client's is in it."""
    return hashlib.blake2b(identity.encode()).hexdigest()[:9]


def in_plain_turns(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same chat without turns of tools: calls are words of the assistant, their results words of the user."""
    plain: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for message in chat:
        content = [*message["content"]]
        if message["role"] == "tool":
            name = names.get(message.get("tool_call_id", ""))
            # Begins alike whatever the tool is called: a guard knows a tool's words by it (`models/layout.py`).
            content = [*_says(f"Result of the tool{'' if name is None else f' {name}'}:\n"), *content]
            if plain and plain[-1].get("told"):  # results of several calls are one turn
                plain[-1]["content"] += content
                continue
            plain.append({"role": "user", "content": content, "told": True})
            continue
        for call in message.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
            content += _says(json.dumps(call["function"], ensure_ascii=False))
        rest = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
        plain.append({**rest, "content": content})
    return [{key: value for key, value in message.items() if key != "told"} for message in plain]
