"""Sentinels in place of the texts of a chat and its tools, to tell the template's own words from a client's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import PromptError
from models.pieces import SENTINEL, SENTINELS

# Words of JSON schemas and of tools, which templates compare with: not a client's own.
WORDS = frozenset(
    {
        "additionalProperties", "anyOf", "array", "arguments", "boolean", "const", "default", "description", "enum",
        "format", "function", "id", "integer", "items", "maximum", "minimum", "name", "null", "number", "object",
        "parameters", "properties", "required", "strict", "string", "title", "type",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """What stands in the place of a sentinel in a rendering.

    `field`: its name in a request, where a prompt can do without it. `in_json`: templates write it as JSON.
    """

    where: str
    core: str
    field: str | None = None
    in_json: bool = False

    def written(self, *, escaped: bool) -> str:
        """The words as a template writes them; `escaped`: as within quotation marks of JSON, where they are there."""
        return json.dumps(self.core, ensure_ascii=False)[1:-1] if escaped and self.in_json else self.core


class StandIns:
    """The texts that sentinels stand for, in the order in which they were taken."""

    def __init__(self) -> None:
        self.texts: list[Text] = []

    def chat(self, chat: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A chat with a sentinel for each text. White space around stays: templates trim it."""
        return [self._message(message, f"messages[{place}]") for place, message in enumerate(chat)]

    def tools(self, tools: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Tools with a sentinel for each of their words."""
        out: list[Any] = []
        for tool in tools:
            function: Mapping[str, Any] = tool["function"]
            fields = {
                key: self._words(value, "tools" if key == "name" else f"tools.function.{key}")
                for key, value in function.items()
            }
            out.append({"type": "function", "function": fields})
        return out

    def unused(self, skeleton: str) -> Sequence[str]:
        """The fields that the template leaves out. Raises PromptError where it leaves out a text of a message."""
        shown = {int(number) for number in SENTINELS.findall(skeleton)}
        unused: set[str] = set()
        for number, text in enumerate(self.texts):
            if number in shown:
                continue
            if text.field is None:
                raise PromptError(f"the model's chat template leaves out the text of {text.where}")
            unused.add(text.field)
        return sorted(unused)

    def written(self, skeleton: str, rendered: str) -> list[str]:
        """The words in the place of each sentinel, so that the skeleton with them is what was rendered.

        Raises PromptError where a template changes the words of tools in another way than JSON does.
        """
        if not any(text.in_json for text in self.texts):
            return [text.core for text in self.texts]
        for escaped in (True, False):
            words = [text.written(escaped=escaped) for text in self.texts]
            if SENTINELS.sub(_word_of(words), skeleton) == rendered:
                return words
        raise PromptError("the tools spell special tokens, and the model's chat template changes their words")

    def _take(self, text: Text) -> str:
        self.texts.append(text)
        return SENTINEL.format(len(self.texts) - 1)

    def _message(self, message: Mapping[str, Any], where: str) -> dict[str, Any]:
        content = []
        for part in message["content"]:
            if part["type"] == "image" or not (core := part["text"].strip()):
                content.append(part)
                continue
            before, after = part["text"].split(core, 1)
            content.append({"type": "text", "text": f"{before}{self._take(Text(where, core))}{after}"})
        out = {**message, "content": content}
        if (name := message.get("name")) is not None:
            out["name"] = self._take(Text(f"{where}.name", name, field="messages.name"))
        if calls := message.get("tool_calls"):
            out["tool_calls"] = [self._call(call, f"{where}.tool_calls[{place}]") for place, call in enumerate(calls)]
        return out

    def _call(self, call: Mapping[str, Any], where: str) -> dict[str, Any]:
        function = call["function"]
        name = self._take(Text(where, function["name"], in_json=True))
        arguments = self._words(function["arguments"], None, where)
        return {**call, "function": {"name": name, "arguments": arguments}}

    def _words(self, value: Any, field: str | None, where: str = "tools") -> Any:  # noqa: ANN401  JSON of any shape
        """A JSON value with sentinels for its texts, the keys of objects among them."""
        if isinstance(value, str):
            return value if value in WORDS or not value.strip() else self._take(Text(where, value, field, in_json=True))
        if isinstance(value, list):
            return [self._words(each, field, where) for each in value]
        if isinstance(value, dict):
            return {self._words(key, field, where): self._words(each, field, where) for key, each in value.items()}
        return value


def _word_of(words: Sequence[str]) -> Callable[[Any], str]:
    return lambda match: words[int(match[1])]
