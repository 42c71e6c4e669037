"""What one HTTP request asks for, whichever API it is of: a `Job`, from its validated body to its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from server.answer.choices import Choices
from server.answer.parser import Parser
from server.api.answer import Answer
from server.api.answer_fields import GuardOptions
from server.api.schemas import WantedSchema
from server.api.served import Served
from server.media.images import RequestImages
from server.request import Ask, Schema
from server.settings.groups import PolicySettings
from server.settings.schema import Settings
from steering.policy import Policy


@dataclass(frozen=True)
class Intake:
    """What a job is done under."""

    served: Served
    terms: PolicySettings  # what the client's policy says
    policy: Policy  # the same with what the guard knows, and what the request made of it
    settings: Settings
    answer_id: str
    arrived: float
    tenant: int  # who asks, as the engine tells them apart
    schema: Schema | None = None  # the job's own, once it is compiled
    languages: Sequence[str] = ()  # that the client accepts, the most wanted first


class Job(Protocol):
    """One request for an answer, validated. The properties cost nothing; `prepare` blocks."""

    prefix: ClassVar[str]  # of the answer's id

    @property
    def models(self) -> Mapping[str, str]:
        """Every model that the request names, by the path of the field."""

    @property
    def guard(self) -> GuardOptions | None:
        """What the request wishes its guard to be."""

    @property
    def places(self) -> tuple[int, str]:
        """How many generations the request asks for, and the field that says so."""

    @property
    def stops(self) -> Sequence[str]:
        """Strings that end an answer."""

    def parser(self, served: Served) -> Parser:
        """What tells the meaning of one answer's text."""

    def schema(self, served: Served) -> WantedSchema | None:
        """The schema that the request's answers satisfy, if any."""

    def check(self, intake: Intake) -> None:
        """Raise ApiError for what this server does not do, or not for this client."""

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URL of each image by the path of its field. Raises BadRequest if they are too many, or not read."""

    def prepare(self, intake: Intake, images: RequestImages) -> list[Ask]:
        """A request for each generation. Blocks: for worker threads. Raises BadRequest naming field and limit."""

    def answer(self, intake: Intake, choices: Choices) -> Answer:
        """The answer in the shape of its API."""
