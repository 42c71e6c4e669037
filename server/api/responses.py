"""`/v1/responses`, stateless: a validated request -> a prompt for the engine, and the answer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from server.answer.choices import Choices
from server.answer.parser import Parser
from server.api.answer_fields import GuardOptions
from server.api.job import Intake
from server.api.prepare import answer_limit, asks_of, sampling_params
from server.api.prompts import Conversation
from server.api.response_items import Turns, turns_of
from server.api.responses_answer import ResponsesAnswer
from server.api.responses_request import MOOT, ResponsesRequest
from server.api.schemas import WantedSchema
from server.api.served import Served
from server.api.tool_use import ToolUse
from server.api.tools import Tools, tools_of
from server.api.validation import parse
from server.errors import BadRequest
from server.media.images import RequestImages
from server.request import Ask
from server.settings.schema import Settings


@dataclass(frozen=True)
class ResponsesJob:
    """A response."""

    prefix: ClassVar[str] = "resp_"
    stops: ClassVar[Sequence[str]] = ()
    asked: ResponsesRequest
    turns: Turns
    tools: Tools | None
    ignored: Collection[str]

    @classmethod
    def of(cls, body: object) -> ResponsesJob:
        """A decoded JSON body as a job. Raises BadRequest naming the first field that is wrong."""
        asked = parse(ResponsesRequest, body)
        for number, each in enumerate(asked.include or ()):
            if each not in MOOT:
                param = f"include.{number}"
                raise BadRequest(f"Invalid value for '{param}': this server does not support it.", param=param)
        turns = turns_of(asked.instructions, asked.input)
        tools = tools_of(asked.chat_tools, asked.chat_choice, within="", parallel=asked.parallel_tool_calls)
        return cls(asked, turns, tools, {*asked.ignored()})

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
        return 1, "input"

    @property
    def tool_use(self) -> ToolUse:
        """The tools, beside `text.format`."""
        return ToolUse(self.tools, self.asked.answer_schema, "text.format.schema")

    def schema(self, served: Served) -> WantedSchema | None:
        """What tools and `text.format` bind the answer to."""
        return self.tool_use.schema(served)

    def parser(self, served: Served) -> Parser:
        """What tells calls from text."""
        return self.tool_use.parser(served)

    def check(self, intake: Intake) -> None:
        """Raise BadRequest for tools that are ignored, where the settings say so."""
        self.tool_use.check(self.asked.sampling, intake.served, intake.settings)

    @property
    def _conversation(self) -> Conversation:
        return Conversation(self.turns.messages, "input", self.turns.path, "image_url")

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URLs of the images in all items. Raises BadRequest if they are too many, or not read."""
        return self._conversation.image_urls(served, settings)

    def prepare(self, intake: Intake, images: RequestImages) -> list[Ask]:
        """The one request. Raises BadRequest naming the field and the limit."""
        sampling = self.asked.sampling
        told = self.tool_use.told(intake.served)
        prompt = self._conversation.prompt(intake.served, intake.settings, images, told)
        limit = answer_limit(sampling, prompt, intake.served, intake.settings.default_max_tokens, "input")
        return asks_of(intake, [(prompt, limit)], 1, sampling_params(sampling, intake.served))

    def answer(self, intake: Intake, choices: Choices) -> ResponsesAnswer:
        """As a `response`, or its events."""
        bare = self.asked.model_copy(update={"input": ""})  # what is long would stay in memory until the answer's end
        ignored = {*self.ignored, *self.tool_use.ignored(intake.served)}
        return ResponsesAnswer(intake.answer_id, choices, bare, intake.served, ignored)
