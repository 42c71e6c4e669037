"""The body of `POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from server.api.answer_fields import AnswerFields, check_least_tokens
from server.api.fields import INT64, Integer, NotSupported, Positive, Text
from server.api.validation import parse
from server.errors import BadRequest

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
    max_tokens: Annotated[Integer, Field(ge=0, lt=INT64)] | None = None
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

    @property
    def prompt_logprobs(self) -> int | None:
        """How many likeliest tokens are told beside each one of an echoed prompt; None: nor their log-probabilities."""
        return self.logprobs if self.echo else None


def parse_completion_request(data: object) -> CompletionRequest:
    """A decoded JSON body as a request; raises BadRequest naming the first field that is wrong."""
    completion = parse(CompletionRequest, data)
    check_least_tokens(completion)
    if completion.best_of not in (None, completion.choices):
        raise BadRequest(
            f"'best_of' is {completion.best_of}, but only as many as 'n' ({completion.choices}) are generated.",
            param="best_of",
        )
    return completion
