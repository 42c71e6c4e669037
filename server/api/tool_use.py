"""What an answer's tools come to: the parser of its text, what the prompt tells of them, and what is ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from server.answer.calls import CallOfOne, CallOfSeveral
from server.answer.delta import Kind
from server.answer.parser import Parser, PlainText
from server.api.served import Served
from server.api.tools import Tools, forces_call
from server.errors import BadRequest
from server.settings.schema import Settings


def parser_of(tools: Tools | None) -> Parser:
    """What takes an answer for a call, or for itself."""
    if tools is None or not tools.forced:
        return PlainText(Kind.TEXT)
    return CallOfSeveral() if tools.only is None else CallOfOne(tools.only.name)


def check_tools(tools: Tools | None, settings: Settings) -> None:
    """Raise BadRequest for tools that the model may call or not, where the settings say so."""
    if tools is not None and not tools.forced and settings.optional_tools == "refuse":
        raise BadRequest(
            "'tools' is only supported where one must be called: 'tool_choice' is 'required', or names a function.",
            param="tools",
        )


def told_tools(tools: Tools | None, served: Served) -> Sequence[Mapping[str, Any]]:
    """The tools that the prompt describes: those that will be called, where the chat template knows them."""
    if tools is None or not tools.forced or not served.inputs.reads.tools:
        return ()
    return [*tools.for_template()]


def ignored_tools(tools: Tools | None, served: Served) -> Sequence[str]:
    """What of the tools nothing is made of, by its path in a request."""
    if tools is None:
        return ()
    if not forces_call(tools):
        return ["tools"]
    return () if served.inputs.reads.tools else ["tools.function.description"]
