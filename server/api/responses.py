"""`/v1/responses`, stateless: a validated request -> a prompt for the engine, and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from server.answer.choices import Choices
from server.api.job import Intake
from server.api.one_answer import OneAnswer, PromptParts
from server.api.prompts import Conversation
from server.api.response_items import turns_of
from server.api.responses_answer import ResponsesAnswer
from server.api.responses_request import MOOT, ResponsesRequest
from server.api.tool_use import ToolUse
from server.api.tools import tools_of
from server.api.validation import parse
from server.errors import BadRequest


class ResponsesJob(OneAnswer[ResponsesRequest]):
    """A job that answers with a response."""

    prefix: ClassVar[str] = "resp_"

    @classmethod
    def of(cls, body: object) -> Self:
        """A decoded JSON body as a job. Raises BadRequest naming the first field that is wrong."""
        asked = parse(ResponsesRequest, body)
        for number, each in enumerate(asked.include or ()):
            if each not in MOOT:
                param = f"include.{number}"
                raise BadRequest(f"Invalid value for '{param}': this server does not support it.", param=param)
        turns = turns_of(asked.instructions, asked.input)
        tools = tools_of(asked.chat_tools, asked.chat_choice, within="", parallel=asked.parallel_tool_calls)
        tool_use = ToolUse(tools, asked.answer_schema, "text.format.schema")
        conversation = Conversation(turns.messages, "input", turns.path, "image_url")
        bare = asked.model_copy(update={"input": ""})
        return cls(bare, PromptParts(conversation, tool_use, {*asked.ignored()}))

    @property
    def stops(self) -> Sequence[str]:
        """Strings that end an answer."""
        return self.asked.stop or ()

    def answer(self, intake: Intake, choices: Choices) -> ResponsesAnswer:
        """The answer as a `response`, or its events."""
        ignored = self.parts.ignored_here(intake.served)
        return ResponsesAnswer(intake.answer_id, choices, self.asked, intake.served, ignored)
