"""`/v1/messages` and its `count_tokens`: a validated request -> a prompt for the engine, and the answer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from server.answer.choices import Choices
from server.api.anthropic_answer import AnthropicAnswer
from server.api.anthropic_objects import TokensCount
from server.api.anthropic_request import CountRequest, MessagesRequest
from server.api.anthropic_turns import turns_of
from server.api.job import Intake
from server.api.one_answer import OneAnswer, PromptParts
from server.api.prompts import Conversation
from server.api.served import Served
from server.api.tool_use import ToolUse
from server.api.tools import tools_of
from server.api.validation import parse
from server.errors import BadRequest, shown
from server.media.images import RequestImages
from server.settings.schema import Settings

FIRST_VERSION = "2023-06-01"  # the one before it had other events
KNOWN_VERSIONS = frozenset({FIRST_VERSION, "2026-10-21"})
VERSION = re.compile(r"\d{4}-\d{2}-\d{2}")


def _parts(asked: CountRequest, headers: Mapping[str, str]) -> PromptParts:
    """What a validated body, and the request's headers, say of the prompt. Raises BadRequest."""
    ignored = {*asked.ignored(), *_ignored_headers(headers)}
    turns = turns_of(asked)
    tools = tools_of(asked.chat_tools, asked.chat_choice, within="", schema="input_schema", parallel=asked.parallel)
    tool_use = ToolUse(tools, asked.answer_schema, "output_config.format.schema")
    return PromptParts(Conversation(turns.messages, "messages", turns.path, "source"), tool_use, ignored)


def _ignored_headers(headers: Mapping[str, str]) -> Iterator[str]:
    """Those that ask for what is not known here. Raises BadRequest for a version before the first."""
    version = headers.get("anthropic-version", FIRST_VERSION)
    if VERSION.fullmatch(version) is None or version < FIRST_VERSION:
        raise BadRequest(
            f"Invalid value for the header 'anthropic-version': {shown(version)}; expected {FIRST_VERSION} or later.",
            param="anthropic-version",
        )
    if version not in KNOWN_VERSIONS:
        yield "anthropic-version"
    if "anthropic-beta" in headers:
        yield "anthropic-beta"


@dataclass(frozen=True)
class AnthropicCount:
    """What is asked for the tokens of a prompt."""

    model: str
    parts: PromptParts

    @classmethod
    def of(cls, body: object, headers: Mapping[str, str]) -> Self:
        """A decoded JSON body as a count. Raises BadRequest naming the first field that is wrong."""
        asked = parse(CountRequest, body)
        return cls(asked.model, _parts(asked, headers))

    def ignored_here(self, served: Served) -> Collection[str]:
        """The hints, and what of the tools nothing is made of."""
        return self.parts.ignored_here(served)

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URLs of the images in all turns. Raises BadRequest if they are too many, or not read."""
        return self.parts.images(served, settings)

    def counted(self, served: Served, settings: Settings, images: RequestImages) -> TokensCount:
        """How many tokens the prompt has. Blocks: for worker threads. Raises BadRequest."""
        return {"input_tokens": len(self.parts.prompt(served, settings, images).ids)}


class MessagesJob(OneAnswer[MessagesRequest]):
    """A job that answers with a message."""

    prefix: ClassVar[str] = "msg_"

    @classmethod
    def of(cls, body: object, headers: Mapping[str, str]) -> Self:
        """A decoded JSON body as a job. Raises BadRequest naming the first field that is wrong."""
        asked = parse(MessagesRequest, body)
        bare = asked.model_copy(update={"messages": [], "system": None, "tools": None})
        return cls(bare, _parts(asked, headers))

    @property
    def stops(self) -> Sequence[str]:
        """Strings that end an answer."""
        return self.asked.stop_sequences or ()

    def answer(self, intake: Intake, choices: Choices) -> AnthropicAnswer:
        """The answer as a `message`, or its events."""
        return AnthropicAnswer(
            intake.answer_id,
            choices,
            intake.served,
            self.parts.ignored_here(intake.served),
            streams=bool(self.asked.stream),
            max_tokens=self.asked.max_tokens,
        )
