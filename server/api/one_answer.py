"""What the jobs of `/v1/responses` and `/v1/messages` have in common: turns and tools, and one answer to them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from models.prompt import Prompt
from server.answer.parser import Parser
from server.api.answer_fields import AnswerFields, GuardOptions
from server.api.job import Intake
from server.api.prepare import answer_limit, asks_of, sampling_params
from server.api.prompts import Conversation
from server.api.schemas import WantedSchema
from server.api.served import Served
from server.api.tool_use import ToolUse
from server.media.images import RequestImages
from server.request import Ask
from server.settings.schema import Settings


@dataclass(frozen=True)
class PromptParts:
    """All that a prompt is made of, and the hints beside it."""

    conversation: Conversation
    tool_use: ToolUse
    hints: Collection[str]  # whatever is served

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URL of each image by the path of its field. Raises BadRequest if they are too many, or not read."""
        return self.conversation.image_urls(served, settings)

    def prompt(self, served: Served, settings: Settings, images: RequestImages) -> Prompt:
        """The prompt. Blocks: for worker threads. Raises BadRequest."""
        return self.conversation.prompt(served, settings, images, self.tool_use.told(served))

    def ignored_here(self, served: Served) -> Collection[str]:
        """The hints, and what of the tools nothing is made of."""
        return {*self.hints, *self.tool_use.ignored(served)}


class Body(Protocol):
    """A validated body that asks for one answer."""

    @property
    def model(self) -> str:
        """The model that answers."""

    @property
    def guard(self) -> GuardOptions | None:
        """What the request wishes its guard to be."""

    @property
    def sampling(self) -> AnswerFields:
        """How the answer is sampled, by OpenAI's names."""


B = TypeVar("B", bound=Body)


@dataclass(frozen=True)
class OneAnswer(Generic[B]):
    """A job of one generation. `asked` is the body without what is long of it: that is in `parts`, and only there."""

    asked: B
    parts: PromptParts

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
        return 1, self.parts.conversation.field

    def schema(self, served: Served) -> WantedSchema | None:
        """What tools and a JSON format bind the answer to."""
        return self.parts.tool_use.schema(served)

    def parser(self, served: Served) -> Parser:
        """What tells calls from text."""
        return self.parts.tool_use.parser(served)

    def check(self, intake: Intake) -> None:
        """Raise BadRequest for tools that are ignored, Forbidden for the last turn, where the settings say so."""
        self.parts.conversation.check_last(intake)
        self.parts.tool_use.check(self.asked.sampling, intake.served, intake.settings)

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URL of each image by the path of its field. Raises BadRequest if they are too many, or not read."""
        return self.parts.images(served, settings)

    def prepare(self, intake: Intake, images: RequestImages) -> list[Ask]:
        """The one request. Raises BadRequest naming the field and the limit."""
        sampling, served, settings = self.asked.sampling, intake.served, intake.settings
        prompt = self.parts.prompt(served, settings, images)
        limit = answer_limit(sampling, prompt, served, settings.default_max_tokens, self.parts.conversation.field)
        return asks_of(intake, [(prompt, limit)], 1, sampling_params(sampling, served))
