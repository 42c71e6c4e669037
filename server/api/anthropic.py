"""`/v1/messages` and its `count_tokens`: a validated request -> a prompt for the engine, and the answer."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from models.prompt import Prompt
from server.answer.choices import Choices
from server.answer.parser import Parser
from server.api.answer_fields import GuardOptions
from server.api.anthropic_answer import AnthropicAnswer
from server.api.anthropic_objects import TokensCount
from server.api.anthropic_request import CountRequest, MessagesRequest
from server.api.anthropic_turns import turns_of
from server.api.job import Intake
from server.api.prepare import answer_limit, asks_of, sampling_params
from server.api.prompts import Conversation
from server.api.schemas import WantedSchema
from server.api.served import Served
from server.api.tool_use import ToolUse
from server.api.tools import tools_of
from server.api.validation import parse
from server.errors import BadRequest, shown
from server.media.images import RequestImages
from server.request import Ask
from server.settings.schema import Settings

FIRST_VERSION = "2023-06-01"  # the one before it had other events
KNOWN_VERSIONS = frozenset({FIRST_VERSION, "2026-10-21"})
VERSION = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class AnthropicPrompt:
    """All that a prompt is made of, and the hints beside it."""

    conversation: Conversation
    tool_use: ToolUse
    given: Collection[str]  # hints, whatever is served

    @classmethod
    def of(cls, asked: CountRequest, headers: Mapping[str, str]) -> Self:
        """A validated body, and the request's headers. Raises BadRequest."""
        ignored = {*asked.ignored(), *_ignored_headers(headers)}
        turns = turns_of(asked)
        tools = tools_of(asked.chat_tools, asked.chat_choice, within="", schema="input_schema", parallel=asked.parallel)
        tool_use = ToolUse(tools, asked.answer_schema, "output_config.format.schema")
        return cls(Conversation(turns.messages, "messages", turns.path, "source"), tool_use, ignored)

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URLs of the images in all turns. Raises BadRequest if they are too many, or not read."""
        return self.conversation.image_urls(served, settings)

    def prompt(self, served: Served, settings: Settings, images: RequestImages) -> Prompt:
        """The prompt. Blocks: for worker threads. Raises BadRequest."""
        return self.conversation.prompt(served, settings, images, self.tool_use.told(served))

    def ignored_here(self, served: Served) -> Collection[str]:
        """The hints, and what of the tools nothing is made of."""
        return {*self.given, *self.tool_use.ignored(served)}


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
    said: AnthropicPrompt

    @classmethod
    def of(cls, body: object, headers: Mapping[str, str]) -> Self:
        """A decoded JSON body as a count. Raises BadRequest naming the first field that is wrong."""
        asked = parse(CountRequest, body)
        return cls(asked.model, AnthropicPrompt.of(asked, headers))

    def ignored_here(self, served: Served) -> Collection[str]:
        """The hints, and what of the tools nothing is made of."""
        return self.said.ignored_here(served)

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URLs of the images in all turns. Raises BadRequest if they are too many, or not read."""
        return self.said.images(served, settings)

    def counted(self, served: Served, settings: Settings, images: RequestImages) -> TokensCount:
        """How many tokens the prompt has. Blocks: for worker threads. Raises BadRequest."""
        return {"input_tokens": len(self.said.prompt(served, settings, images).ids)}


@dataclass(frozen=True)
class MessagesJob:
    """A message."""

    prefix: ClassVar[str] = "msg_"
    asked: MessagesRequest
    said: AnthropicPrompt

    @classmethod
    def of(cls, body: object, headers: Mapping[str, str]) -> Self:
        """A decoded JSON body as a job. Raises BadRequest naming the first field that is wrong."""
        asked = parse(MessagesRequest, body)
        # What is long is in the prompt, and would stay in memory twice until the answer's end.
        bare = asked.model_copy(update={"messages": [], "system": None, "tools": None})
        return cls(bare, AnthropicPrompt.of(asked, headers))

    @property
    def models(self) -> Mapping[str, str]:
        """The model that answers."""
        return {"model": self.asked.model}

    @property
    def guard(self) -> GuardOptions | None:
        """What the request wishes its guard to be."""
        return self.asked.guard

    @property
    def places(self) -> tuple[int, str]:
        """One generation."""
        return 1, "messages"

    @property
    def stops(self) -> Sequence[str]:
        """Strings that end an answer."""
        return self.asked.stop_sequences or ()

    def schema(self, served: Served) -> WantedSchema | None:
        """What tools and `output_config.format` bind the answer to."""
        return self.said.tool_use.schema(served)

    def parser(self, served: Served) -> Parser:
        """What tells calls from text."""
        return self.said.tool_use.parser(served)

    def check(self, intake: Intake) -> None:
        """Raise BadRequest for tools that are ignored, where the settings say so."""
        self.said.tool_use.check(self.asked.sampling, intake.served, intake.settings)

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URLs of the images in all turns. Raises BadRequest if they are too many, or not read."""
        return self.said.images(served, settings)

    def prepare(self, intake: Intake, images: RequestImages) -> list[Ask]:
        """The one request. Raises BadRequest naming the field and the limit."""
        sampling, served = self.asked.sampling, intake.served
        prompt = self.said.prompt(served, intake.settings, images)
        limit = answer_limit(sampling, prompt, served, intake.settings.default_max_tokens, "messages")
        return asks_of(intake, [(prompt, limit)], 1, sampling_params(sampling, served))

    def answer(self, intake: Intake, choices: Choices) -> AnthropicAnswer:
        """As a `message`, or its events."""
        return AnthropicAnswer(
            intake.answer_id,
            choices,
            intake.served,
            self.said.ignored_here(intake.served),
            streams=bool(self.asked.stream),
            max_tokens=self.asked.max_tokens,
        )
