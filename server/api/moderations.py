"""Moderations: texts and images -> the guard's score of each, without generating."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Discriminator, Field, Tag

from models.prompt import Prompt
from models.row_sampler import SamplingParams
from server.answer.choices import Choices
from server.answer.delta import Kind
from server.answer.parser import Parser, PlainText
from server.api.answer import ignored_headers, moderation_result
from server.api.fields import Strict, Text
from server.api.job import Intake
from server.api.messages import MAX_PARTS, ImagePart, TextPart
from server.api.objects import ModerationResult, ModerationsObject
from server.api.prepare import asks_of, check_room
from server.api.prompts import Conversation
from server.api.served import Served
from server.api.validation import parse
from server.errors import BadRequest
from server.media.images import RequestImages
from server.request import Ask
from server.settings.schema import Settings
from steering.policy import Mode

MAX_INPUTS = 128
# OpenAI's categories are there, and apply to no type of input, but for those that the guard's bundle has by that name.
OPENAI_CATEGORIES = (
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
)


def is_openai_moderator(model: str) -> bool:
    """Whether a name is that of a moderation model of OpenAI's, which clients send unless told otherwise."""
    return model.startswith(("omni-moderation-", "text-moderation-"))


_Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


def _kind_of_input(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    return "parts" if value and isinstance(value[0], dict) else "texts"


class ModerationRequest(Strict):
    """The body of `POST /v1/moderations`."""

    input: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS), Tag("texts")]
        | Annotated[list[_Part], Field(min_length=1, max_length=MAX_PARTS, fail_fast=True), Tag("parts")],
        Discriminator(
            _kind_of_input,
            custom_error_type="input",
            custom_error_message="must be a string, a list of strings or a list of content parts",
        ),
    ]
    model: str | None = None

    def ignored(self) -> Iterator[str]:
        """The path of each hint that is given; a model of OpenAI's is one, since the served one answers."""
        yield from super().ignored()
        if self.model is not None and is_openai_moderator(self.model):
            yield "model"

    @property
    def inputs(self) -> list[list[TextPart | ImagePart]]:
        """What gets a result each: every text, or all parts together."""
        if isinstance(self.input, str):
            return [[TextPart(type="text", text=self.input)]]
        texts = [each for each in self.input if isinstance(each, str)]
        if texts:
            return [[TextPart(type="text", text=text)] for text in texts]
        return [[each for each in self.input if not isinstance(each, str)]]


@dataclass(frozen=True)
class ModerationJob:
    """Inputs to be scored and nothing more."""

    prefix: ClassVar[str] = "modr-"
    guard: ClassVar[None] = None  # what judges is not the request's to choose
    stops: ClassVar[Sequence[str]] = ()
    moderation: ModerationRequest
    ignored: frozenset[str]

    @classmethod
    def of(cls, body: object) -> ModerationJob:
        """A decoded JSON body as a job. Raises BadRequest naming the first field that is wrong."""
        moderation = parse(ModerationRequest, body)
        return cls(moderation, frozenset(moderation.ignored()))

    @property
    def models(self) -> Mapping[str, str]:
        """The model that scores, where it is named."""
        model = self.moderation.model
        return {} if model is None or is_openai_moderator(model) else {"model": model}

    @property
    def places(self) -> tuple[int, str]:
        """One generation for each input."""
        return len(self.moderation.inputs), "input"

    def schema(self, served: Served) -> None:
        """Any text may be the answer."""

    def parser(self, served: Served) -> Parser:  # noqa: ARG002  as every job
        """All text is the answer."""
        return PlainText(Kind.TEXT)

    def check(self, intake: Intake) -> None:
        """Raise BadRequest where nothing can be scored."""
        if intake.served.layer is None:
            raise BadRequest("This server has no guard, so nothing can be scored.", code="no_guard")

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URLs of all inputs' images. Raises BadRequest if they are too many, or not read."""
        return {
            param: url
            for parts in self.moderation.inputs
            for param, url in Conversation.of_input(parts).image_urls(served, settings).items()
        }

    def prepare(self, intake: Intake, images: RequestImages) -> list[Ask]:
        """A request without a token for each input. Raises BadRequest."""
        prompts: list[tuple[Prompt, int]] = []
        for parts in self.moderation.inputs:
            prompt = Conversation.of_input(parts).prompt(intake.served, intake.settings, images)
            check_room(prompt, intake.served, "input")
            prompts.append((prompt, 0))
        scored = replace(intake, policy=intake.policy.in_mode(Mode.MONITOR))
        return asks_of(scored, prompts, 1, SamplingParams.GREEDY)

    def answer(self, intake: Intake, choices: Choices) -> ModerationAnswer:
        """The answer as OpenAI's moderations object."""
        return ModerationAnswer(intake.answer_id, choices, intake.served, self.ignored)


class ModerationAnswer:
    """The answer to a moderation request: a result for each input."""

    stream: ClassVar[None] = None

    def __init__(self, answer_id: str, choices: Choices, served: Served, ignored: Collection[str]) -> None:
        self.choices = choices
        self.headers = ignored_headers(ignored)
        self._id = answer_id
        self._served = served

    def whole(self) -> ModerationsObject:
        """The moderations object."""
        results = [moderation_result(generation.request) for generation in self.choices.generations]
        return {
            "id": self._id,
            "model": self._served.name,
            "results": [_with_openai_s(each) for each in results if each],
        }


def _with_openai_s(result: ModerationResult) -> ModerationResult:
    return {
        "flagged": result["flagged"],
        "categories": {**dict.fromkeys(OPENAI_CATEGORIES, False), **result["categories"]},
        "category_scores": {**dict.fromkeys(OPENAI_CATEGORIES, 0.0), **result["category_scores"]},
        "category_applied_input_types": {
            **{category: [] for category in OPENAI_CATEGORIES},
            **result["category_applied_input_types"],
        },
    }
