"""Legacy completions: the body, prompts for the engine, and OpenAI's object, whole or as chunks."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Discriminator, Field, Tag

from models.prompt import Prompt
from server.answer.choices import Choices
from server.answer.delta import Delta, Kind
from server.answer.generation import Generation
from server.answer.logprobs import Entry
from server.answer.parser import Parser, PlainText
from server.api.answer import finish_reason, ignored_headers, usage_of, verdict_headers
from server.api.answer_fields import AnswerFields, GuardOptions, check_least_tokens
from server.api.events import DONE, HOLE, Template, event
from server.api.fields import INT64, Integer, NotSupported, Positive, Text
from server.api.job import Intake
from server.api.objects import Completion, CompletionChoice, CompletionLogprobs
from server.api.prepare import answer_limit, asks_of, sampling_params
from server.api.prompts import text_prompt
from server.api.served import Served
from server.api.validation import parse
from server.errors import ApiError, BadRequest, Forbidden
from server.media.images import RequestImages
from server.request import Ask
from server.settings.schema import Settings

MAX_PROMPTS = 128
MAX_LOGPROBS = 5
DEFAULT_TOKENS = 16  # OpenAI's

_Token = Annotated[int, Field(ge=0, lt=INT64)]
_Ids = Annotated[list[_Token], Field(min_length=1)]


def _kind_of_prompt(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    return "texts" if isinstance(first, str) or not value else "ids" if isinstance(first, int) else "lists of ids"


class CompletionRequest(AnswerFields):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS), Tag("texts")]
        | Annotated[_Ids, Tag("ids")]
        | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_PROMPTS), Tag("lists of ids")],
        Discriminator(
            _kind_of_prompt,
            custom_error_type="prompt",
            custom_error_message="must be a string, a list of strings, a list of token ids or a list of such lists",
        ),
    ]
    echo: bool | None = None
    logprobs: Annotated[Integer, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Positive | None = None
    suffix: NotSupported = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt, as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [token for token in self.prompt if isinstance(token, int)]
        return [ids] if ids else [each for each in self.prompt if not isinstance(each, int)]

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are reported beside each one's log-probability; None: not even that."""
        return self.logprobs


def parse_completion_request(data: object) -> CompletionRequest:
    """A decoded JSON body as a request; raises BadRequest naming the first field that is wrong."""
    completion = parse(CompletionRequest, data)
    check_least_tokens(completion)
    if completion.best_of not in (None, completion.choices):
        raise BadRequest(
            f"'best_of' is {completion.best_of}, but only as many as 'n' ({completion.choices}) are generated.",
            param="best_of",
        )
    if completion.echo and completion.logprobs is not None:
        raise BadRequest("'echo' is not supported with 'logprobs': the prompt's own are not computed.", param="echo")
    return completion


@dataclass(frozen=True)
class CompletionJob:
    """A legacy completion of one prompt or several."""

    prefix: ClassVar[str] = "cmpl-"
    schema: ClassVar[None] = None
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

    def parser(self) -> Parser:
        """All text is the answer."""
        return PlainText(Kind.TEXT)

    def check(self, intake: Intake) -> None:
        """Raise Forbidden where the client's policy has no completions, or none of token ids.

        Ids can spell what no text can: the special tokens that begin an assistant's turn. A prompt that forges one is
        none that the guard was fitted on, so under a guard ids have to be allowed by the settings.
        """
        allowed = intake.terms.completions or ("on" if intake.served.layer is None else "text")
        where = f"the setting 'completions' of the policy {intake.policy.name!r} is {allowed!r}"
        if allowed == "off":
            raise Forbidden(f"This server offers no completions here: {where}.", code="completions_off")
        if allowed == "text" and not all(isinstance(prompt, str) for prompt in self.completion.prompts):
            raise Forbidden(
                f"A prompt of token ids is not accepted here, only text: {where}.", param="prompt", code="token_ids_off"
            )

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:  # noqa: ARG002  as every job
        """A completion has none."""
        return {}

    def prepare(self, intake: Intake, images: RequestImages) -> list[Ask]:  # noqa: ARG002
        """The choices of the first prompt, then those of the next. Raises BadRequest naming the field and the limit."""
        completion, served = self.completion, intake.served
        sampling = sampling_params(completion, served)
        prompts: list[tuple[Prompt, int]] = []
        for each in completion.prompts:
            prompt = text_prompt(each, served, intake.settings)
            prompts.append((prompt, answer_limit(completion, prompt, served, DEFAULT_TOKENS, "prompt")))
        return asks_of(intake, prompts, completion.choices, sampling)

    def answer(self, intake: Intake, choices: Choices) -> CompletionAnswer:
        """As a `text_completion`, or several of them."""
        return CompletionAnswer(intake.answer_id, choices, self.completion, intake.served, self.ignored)


class CompletionAnswer:
    """One answer to a legacy completion request; whole answer and chunk are the same object."""

    def __init__(
        self,
        answer_id: str,
        choices: Choices,
        completion: CompletionRequest,
        served: Served,
        ignored: Collection[str],
    ) -> None:
        self.choices = choices
        self._ignored = ignored_headers(ignored)
        self._completion = completion
        self._served = served
        self._id = answer_id
        self._created = int(time.time())
        self._fingerprint = served.fingerprint(choices.generations[0].request.policy)
        self._offsets = [0] * len(choices.generations)  # characters of each choice that are told already
        self._templates: dict[Generation, Template] = {}
        self._echoes = self._echoed() if completion.echo else [""] * len(choices.generations)

    def _echoed(self) -> list[str]:
        texts = [
            prompt if isinstance(prompt, str) else self._served.decoder.decode(prompt)
            for prompt in self._completion.prompts
        ]
        return [text for text in texts for _ in range(self._completion.choices)]

    @property
    def headers(self) -> dict[str, str]:
        """Verdict and score of the worst prompt, where the policy shows them; the hints that were given."""
        requests = [leader.request for leader in self.choices.leaders]
        decided = [request.decision for request in requests if request.decision is not None]
        if not decided or not requests[0].policy.expose_scores:
            return self._ignored
        worst = max(decided, key=lambda decision: (decision.flagged, decision.score or 0.0))
        return verdict_headers(worst) | self._ignored

    @property
    def stream(self) -> CompletionAnswer | None:
        """Itself, where chunks are asked for."""
        return self if self._completion.stream else None

    def whole(self) -> Completion:
        """The `text_completion` object."""
        choices: list[CompletionChoice] = []
        for generation, echo in zip(self.choices.generations, self._echoes, strict=True):
            deltas = generation.take()
            text = echo + "".join(delta.text for delta in deltas)
            entries = [entry for delta in deltas for entry in delta.entries]
            choices.append(self._choice(generation, text, entries, finished=True))
        return {**self._object(choices), "usage": usage_of(self.choices)}

    def opening(self) -> bytes:
        """The prompts, if they are to be echoed."""
        each = zip(self.choices.generations, self._echoes, strict=True)
        return b"".join(event(self._chunk(generation, echo)) for generation, echo in each if echo)

    def delta(self, generation: Generation, delta: Delta) -> bytes:
        """A chunk with a piece of a choice; a refusal is text like any other."""
        if self._completion.logprobs is not None or self._completion.usage_in_chunks:
            return event(self._chunk(generation, delta.text, delta.entries))
        template = self._templates.get(generation)
        if template is None:
            template = self._templates[generation] = Template(self._chunk(generation, HOLE))
        return template.filled(delta.text)

    def choice_end(self, generation: Generation) -> bytes:
        """The chunk that says why a choice ended."""
        return event(self._chunk(generation, "", finished=True))

    def end(self) -> bytes:
        """Usage, if the request wants it, and `[DONE]`."""
        if not self._completion.include_usage:
            return DONE
        return event({**self._object([]), "usage": usage_of(self.choices)}) + DONE

    def failed(self, failure: ApiError) -> bytes:
        """The error object, and `[DONE]`."""
        return event(failure.body) + DONE

    def _chunk(
        self, generation: Generation, text: str, entries: Sequence[Entry] = (), *, finished: bool = False
    ) -> Completion:
        chunk = self._object([self._choice(generation, text, entries, finished=finished)])
        if self._completion.usage_in_chunks:
            chunk["usage"] = usage_of(self.choices)
        elif self._completion.include_usage:
            chunk["usage"] = None
        return chunk

    def _object(self, choices: list[CompletionChoice]) -> Completion:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._served.name,
            "system_fingerprint": self._fingerprint,
            "choices": choices,
        }

    def _choice(
        self, generation: Generation, text: str, entries: Sequence[Entry], *, finished: bool
    ) -> CompletionChoice:
        return {
            "index": generation.index,
            "text": text,
            "logprobs": self._logprobs(generation, entries),
            "finish_reason": finish_reason(generation) if finished else None,
        }

    def _logprobs(self, generation: Generation, entries: Sequence[Entry]) -> CompletionLogprobs | None:
        if self._completion.logprobs is None:
            return None
        tokens = [entry.data.decode(errors="replace") for entry in entries]
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets[generation.index])
            self._offsets[generation.index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [_likeliest(entry) for entry in entries],
            "text_offset": offsets,
        }


def _likeliest(entry: Entry) -> dict[str, float]:
    """The likeliest tokens by their text, and the token itself wherever it is in their order."""
    own = {entry.data.decode(errors="replace"): entry.logprob}
    return {token.decode(errors="replace"): logprob for token, logprob in entry.top} | own
