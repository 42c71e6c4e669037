"""The other request bodies: legacy completions, moderations, tokenization."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from server.api.schemas import (
    INT64,
    MAX_MESSAGES,
    MAX_PARTS,
    AnswerFields,
    ImagePart,
    Message,
    NotSupported,
    Strict,
    Text,
    TextPart,
    check_stream_options,
    parse,
)
from server.errors import BadRequest

MAX_INPUTS = 128
MAX_COMPLETION_LOGPROBS = 5

_Token = Annotated[int, Field(ge=0, lt=INT64)]
_Ids = Annotated[list[_Token], Field(min_length=1)]


def _kind_of_prompt(value: object) -> str | None:
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else None
    return "texts" if isinstance(first, str) or not value else "ids" if isinstance(first, int) else "lists of ids"


# completions -------------------------------------------------------------------------------------------------------


class CompletionRequest(AnswerFields):
    """The body of `POST /v1/completions`."""

    prompt: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS), Tag("texts")]
        | Annotated[_Ids, Tag("ids")]
        | Annotated[list[_Ids], Field(min_length=1, max_length=MAX_INPUTS), Tag("lists of ids")],
        Discriminator(
            _kind_of_prompt,
            custom_error_type="prompt",
            custom_error_message="must be a string, a list of strings, a list of token ids or a list of such lists",
        ),
    ]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_COMPLETION_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1)] | None = None
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
    check_stream_options(completion)
    if completion.best_of not in (None, completion.choices):
        raise BadRequest(
            f"'best_of' is {completion.best_of}, but only as many as 'n' ({completion.choices}) are generated.",
            param="best_of",
        )
    if completion.echo and completion.logprobs is not None:
        raise BadRequest("'echo' is not supported with 'logprobs': the prompt's own are not computed.", param="echo")
    return completion


# moderations -------------------------------------------------------------------------------------------------------

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

    @property
    def inputs(self) -> list[list[TextPart | ImagePart]]:
        """What gets a result each: every text, or all parts together."""
        if isinstance(self.input, str):
            return [[TextPart(type="text", text=self.input)]]
        texts = [each for each in self.input if isinstance(each, str)]
        if texts:
            return [[TextPart(type="text", text=text)] for text in texts]
        return [[each for each in self.input if not isinstance(each, str)]]


# tokenization ------------------------------------------------------------------------------------------------------


class TokenizeRequest(Strict):
    """The body of `POST /tokenize`: messages as of a chat, or the prompt of a completion."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    prompt: Text | None = None
    return_token_strs: bool | None = None


def parse_tokenize_request(data: object) -> TokenizeRequest:
    """A decoded JSON body as a request; raises BadRequest naming the first field that is wrong."""
    wanted = parse(TokenizeRequest, data)
    if (wanted.messages is None) == (wanted.prompt is None):
        raise BadRequest("Give either 'messages' or 'prompt'.", param="messages")
    return wanted
