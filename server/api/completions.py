"""Legacy completions as jobs: what is asked of the engine, and how it is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from models.prompt import Prompt
from server.answer.choices import Choices
from server.answer.delta import Kind
from server.answer.parser import Parser, PlainText
from server.api.answer_fields import GuardOptions
from server.api.completion_answer import CompletionAnswer
from server.api.completion_request import DEFAULT_TOKENS, CompletionRequest, parse_completion_request
from server.api.job import Intake
from server.api.prepare import answer_limit, asks_of, sampling_params
from server.api.prompts import text_prompt
from server.api.served import Served
from server.errors import BadRequest, Forbidden
from server.media.images import RequestImages
from server.request import Ask
from server.settings.schema import Settings


@dataclass(frozen=True)
class CompletionJob:
    """A legacy completion of one prompt or several."""

    prefix: ClassVar[str] = "cmpl-"
    completion: CompletionRequest
    ignored: frozenset[str]

    @classmethod
    def of(cls, body: object) -> CompletionJob:
        """A decoded JSON body as a job. Raises BadRequest naming the first field that is wrong."""
        completion = parse_completion_request(body)
        return cls(completion, frozenset(completion.ignored()))

    @property
    def models(self) -> Mapping[str, str]:
        """The model that answers."""
        return {"model": self.completion.model}

    @property
    def guard(self) -> GuardOptions | None:
        """What the request wishes its guard to be."""
        return self.completion.guard

    @property
    def places(self) -> tuple[int, str]:
        """One generation for each choice of each prompt."""
        prompts = len(self.completion.prompts)
        return prompts * self.completion.choices, "prompt" if prompts > 1 else "n"

    @property
    def stops(self) -> Sequence[str]:
        """Strings that end an answer."""
        return self.completion.stop or ()

    def schema(self, served: Served) -> None:
        """Any text may be the answer."""

    def parser(self, served: Served) -> Parser:  # noqa: ARG002  as every job
        """All text is the answer."""
        return PlainText(Kind.TEXT)

    def check(self, intake: Intake) -> None:
        """Raise Forbidden where the client's policy has no completions, BadRequest for what the engine lacks."""
        if _allowed(intake) == "off":
            raise Forbidden(f"This server offers no completions here: {_where(intake)}.", code="completions_off")
        if self.completion.prompt_logprobs is not None and intake.settings.engine != "own":
            raise BadRequest("'echo' is not supported with 'logprobs' by the vllm engine.", param="echo")

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:  # noqa: ARG002  as every job
        """A completion has none."""
        return {}

    def prepare(self, intake: Intake, images: RequestImages) -> list[Ask]:  # noqa: ARG002
        """The choices of the first prompt, then those of the next. Raises BadRequest naming the field and the limit.

        Raises Forbidden for token ids, where only texts are taken, that are not the tokens of a text: ids can be the
        special tokens that begin an assistant's turn, or cut words as no tokenizer does, and a guard was fitted on
        neither.
        """
        completion, served = self.completion, intake.served
        sampling = sampling_params(completion, served)
        prompts: list[tuple[Prompt, int]] = []
        for each in completion.prompts:
            prompt = text_prompt(each, served, intake.settings)
            if not isinstance(each, str) and _allowed(intake) == "text" and not _is_text(prompt.ids, intake):
                raise Forbidden(
                    f"A prompt of token ids that are not those of a text is not accepted here: {_where(intake)}.",
                    param="prompt",
                    code="token_ids_off",
                )
            prompts.append((prompt, answer_limit(completion, prompt, served, DEFAULT_TOKENS, "prompt")))
        return asks_of(intake, prompts, completion.choices, sampling, prompt_logprobs=completion.prompt_logprobs)

    def answer(self, intake: Intake, choices: Choices) -> CompletionAnswer:
        """The answer as a `text_completion`, or several of them."""
        return CompletionAnswer(intake.answer_id, choices, self.completion, intake.served, self.ignored)


def _allowed(intake: Intake) -> str:
    return intake.terms.completions or ("on" if intake.served.layer is None else "text")


def _where(intake: Intake) -> str:
    return f"the setting 'completions' of the policy {intake.policy.name!r} is {_allowed(intake)!r}"


def _is_text(ids: Sequence[int], intake: Intake) -> bool:
    """Whether a text's tokens are these, with those that the tokenizer puts before every text or without."""
    text = text_prompt(intake.served.decoder.decode(ids), intake.served, intake.settings).ids
    return ids in (text, text[len(text) - len(ids) :])
