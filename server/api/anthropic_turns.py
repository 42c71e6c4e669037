"""Anthropic's turns as messages of a chat: what a tool returned is one of its own, neighbours of a role are one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import orjson

from server.api.anthropic_request import (
    Base64Source,
    CountRequest,
    ImageBlock,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from server.api.fields import Strict
from server.api.messages import (
    AssistantMessage,
    CalledFunction,
    ImagePart,
    ImageURL,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    Turn,
    UserMessage,
)
from server.errors import BadRequest
from server.media.files import data_url


@dataclass
class Turns:
    """Messages, and the path of each of their parts in the request."""

    messages: list[Turn] = field(default_factory=list)
    paths: list[Sequence[str]] = field(default_factory=list)

    def path(self, message: int, part: int) -> str:
        """Where a part stands in the request."""
        return self.paths[message][part]

    def add(self, message: Turn, paths: Sequence[str]) -> None:
        """Add one more message."""
        self.messages.append(message)
        self.paths.append(paths)


class _Placed(NamedTuple):
    role: str
    path: str
    block: Strict


def turns_of(asked: CountRequest) -> Turns:
    """The messages of a conversation. Raises BadRequest where nobody but the assistant has the last word."""
    turns = Turns()
    placed = [*_blocks("system", asked.system, "system")]
    for number, turn in enumerate(asked.messages):
        placed += _blocks(turn.role, turn.content, f"messages.{number}.content")
    for role, run in groupby(placed, key=lambda each: each.role):
        _add(turns, role, [*run])
    if not turns.messages or turns.messages[-1].role == "system":
        raise BadRequest("'messages' say nothing.", param="messages")
    if turns.messages[-1].role == "assistant":
        raise BadRequest("The last of 'messages' must not be the assistant's: an answer begins anew.", param="messages")
    return turns


def _blocks(role: str, content: str | Sequence[Strict] | None, path: str) -> Iterator[_Placed]:
    if isinstance(content, str):
        yield _Placed(role, path, TextBlock(type="text", text=content))
    elif content is not None:
        for number, block in enumerate(content):
            if not isinstance(block, (ThinkingBlock, RedactedThinkingBlock)):
                yield _Placed("tool" if isinstance(block, ToolResultBlock) else role, f"{path}.{number}", block)


def _add(turns: Turns, role: str, run: Sequence[_Placed]) -> None:
    """Validated fields alone are put together here: to validate them again would count the parts of several turns."""
    if role == "tool":
        for each in run:
            assert isinstance(each.block, ToolResultBlock)
            result = _result(each.block)
            turns.add(result, [f"{each.path}.content.{number}" for number in range(len(result.content))])
        return
    parts = [(part, each.path) for each in run if (part := _part(each.block)) is not None]
    content, paths = [part for part, _ in parts], [path for _, path in parts]
    match role:
        case "system":
            turns.add(SystemMessage.model_construct(role="system", content=content), paths)
        case "user":
            turns.add(UserMessage.model_construct(role="user", content=content), paths)
        case _:
            calls = [_call(each.block, each.path) for each in run if isinstance(each.block, ToolUseBlock)]
            message = AssistantMessage.model_construct(
                role="assistant", content=content or None, tool_calls=calls or None
            )
            turns.add(message, paths)


def _part(block: Strict) -> TextPart | ImagePart | None:
    match block:
        case TextBlock(text=text):
            return TextPart(type="text", text=text)
        case ImageBlock(source=source):
            url = data_url(source.media_type, source.data) if isinstance(source, Base64Source) else source.url
            return ImagePart(type="image_url", image_url=ImageURL(url=url))
    return None


def _result(block: ToolResultBlock) -> ToolMessage:
    texts = [block.content or ""] if not isinstance(block.content, list) else [each.text for each in block.content]
    content = [TextPart(type="text", text=text) for text in texts]
    return ToolMessage.model_construct(role="tool", tool_call_id=block.tool_use_id, content=content)


def _call(block: ToolUseBlock, path: str) -> ToolCall:
    try:
        arguments = orjson.dumps(block.input).decode()
    except orjson.JSONEncodeError as error:
        raise BadRequest(f"Invalid value for '{path}.input': {error}.", param=f"{path}.input") from None
    return ToolCall(id=block.id, type="function", function=CalledFunction(name=block.name, arguments=arguments))
