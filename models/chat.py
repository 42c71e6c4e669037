"""The messages of a chat, as chat templates expect them, and whether its images are those that were given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import PromptError
from models.tool_turns import tool_fields

ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


def message_of(message: Mapping[str, Any], place: int) -> dict[str, Any]:
    """A message as templates expect it: a role, and a list of parts. Raises PromptError."""
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise PromptError(f"messages[{place}].role is {role!r}, not one of {', '.join(sorted(ROLES))}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise PromptError(f"messages[{place}].content is neither a text nor a list of parts")
    more = {"name": message["name"]} if message.get("name") is not None else {}
    return {"role": role, **more, **tool_fields(message), "content": [_part(part, place) for part in content]}


def _part(part: Mapping[str, Any], place: int) -> dict[str, str]:
    if part.get("type") == "image":
        return {"type": "image"}
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    raise PromptError(f"messages[{place}].content holds a part of type {part.get('type')!r}, not text or image")


def check_no_images(chat: Sequence[Mapping[str, Any]]) -> None:
    """Raise PromptError for messages that hold an image."""
    for place, message in enumerate(chat):
        if any(part["type"] == "image" for part in message["content"]):
            raise PromptError(f"messages[{place}].content holds an image, and the model reads text only")


def with_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates of text models expect it: its content is a string, of a line for each part."""
    return {**message, "content": "\n".join(part["text"] for part in message["content"])}


def check_image_count(chat: Sequence[Mapping[str, Any]], count: int) -> None:
    """Raise PromptError for messages that hold more or fewer images than were given."""
    parts = sum(part["type"] == "image" for message in chat for part in message["content"])
    if parts != count:
        raise PromptError(f"the messages hold {parts} images, {count} were given")
