"""The fields that every request for an answer has: sampling, limits, stop strings, stream options, the guard's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from server.api.fields import INT64, NO_NUL, HintText, Integer, Number, Positive, Strict, Text, only, unless_null
from server.errors import BadRequest, shown

MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
MAX_STOPS_CHARACTERS = 4096  # of all: each token is compared with each of them
MAX_BIASES = 1024
MAX_CHOICES = 128
MAX_EPS = 100.0
MAX_HOLD = 4096  # tokens


class StreamOptions(Strict):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Annotated[Literal[False] | None, only(False, why="obfuscation is not supported")] = None


class OutputOptions(Strict):
    """How one request wants its answer to be watched; what is left out is as the policy says."""

    mode: Literal["off", "monitor", "steer", "block"] | None = None
    threshold: Annotated[Number, Field(ge=0, le=1)] | None = None
    target_fpr: Annotated[Number, Field(gt=0, lt=1)] | None = None
    hold: Annotated[Integer, Field(ge=0, le=MAX_HOLD)] | Literal["sentence", "all"] | None = None
    certain: Annotated[Number, Field(ge=0, le=1)] | None = None


class GuardOptions(Strict):
    """What one request wants its guard to be; an extension. What is left out is as the policy says."""

    mode: Literal["off", "monitor", "steer", "block"] | None = None
    threshold: Annotated[Number, Field(ge=0, le=1)] | None = None
    target_fpr: Annotated[Number, Field(gt=0, lt=1)] | None = None
    eps: Annotated[Number, Field(gt=0, le=MAX_EPS)] | None = None
    output: OutputOptions | None = None


class ChatGuardOptions(GuardOptions):
    """What one chat wants its guard to be, and whether the answer tells what the guard saw."""

    scores: bool | None = None


def _stops(value: object) -> object:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(stop, str) for stop in value):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    if len(value) > MAX_STOPS:
        raise PydanticCustomError("stop", f"at most {MAX_STOPS} stop strings are allowed, not {len(value)}")
    if not all(0 < len(stop) <= MAX_STOP_CHARACTERS for stop in value):
        raise PydanticCustomError("stop", f"a stop string has 1 to {MAX_STOP_CHARACTERS} characters")
    if sum(map(len, value)) > MAX_STOPS_CHARACTERS:
        raise PydanticCustomError("stop", f"all stop strings together have at most {MAX_STOPS_CHARACTERS} characters")
    return value


def _biases(value: object) -> object:
    if not isinstance(value, dict):
        raise PydanticCustomError("logit_bias", "must be an object of token id -> bias")
    if len(value) > MAX_BIASES:
        raise PydanticCustomError("logit_bias", f"at most {MAX_BIASES} biases are allowed, not {len(value)}")
    for token, bias in value.items():
        if not re.fullmatch(r"[0-9]{1,9}", token):
            raise PydanticCustomError("logit_bias", "the key {key} is not a token id", {"key": shown(token)})
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise PydanticCustomError(
                "logit_bias",
                "the bias of token {key} must be a number from -100 to 100, not {bias}",
                {"key": token, "bias": shown(bias)},
            )
    return {int(token): float(bias) for token, bias in value.items()}


# What these check, for `/openapi.json`.
_STOP_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS, **NO_NUL}
_STOPS_SCHEMA = WithJsonSchema(
    {"anyOf": [_STOP_SCHEMA, {"type": "array", "items": _STOP_SCHEMA, "maxItems": MAX_STOPS}, {"type": "null"}]}
)
Stops = Annotated[list[Text] | None, unless_null(_stops), _STOPS_SCHEMA]
_BIASES_SCHEMA = WithJsonSchema(
    {
        "type": ["object", "null"],
        "propertyNames": {"pattern": "^[0-9]{1,9}$"},
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "maxProperties": MAX_BIASES,
    }
)


class AnswerFields(Strict):
    """What every request for an answer has: how its tokens are chosen, where it ends, how it is sent."""

    model: str

    max_tokens: Positive | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    top_k: Annotated[Integer, Field(ge=-1, lt=INT64)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    seed: Annotated[Integer, Field(ge=-INT64, lt=INT64)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=10)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, float] | None, unless_null(_biases), _BIASES_SCHEMA] = None
    stop: Stops = None
    n: Annotated[Integer, Field(ge=1, le=MAX_CHOICES)] | None = None
    min_tokens: Annotated[Integer, Field(ge=0, lt=INT64)] | None = None
    ignore_eos: bool | None = None

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    guard: GuardOptions | None = None
    user: HintText = None

    @property
    def limit(self) -> tuple[str, int] | None:
        """Name and value of the field that limits the answer."""
        return None if self.max_tokens is None else ("max_tokens", self.max_tokens)

    @property
    def likeliest(self) -> int | None:
        """How many of the likeliest tokens are reported beside each one's log-probability; None: not even that."""
        raise NotImplementedError

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def usage_in_chunks(self) -> bool:
        """Whether every chunk of a stream tells the usage so far."""
        return self.stream_options is not None and bool(self.stream_options.continuous_usage_stats)

    @property
    def least_tokens(self) -> int:
        """How many tokens come before the answer may end by itself."""
        return INT64 if self.ignore_eos else self.min_tokens or 0

    def ignored(self) -> Iterator[str]:
        """The path of each hint that is given, and the options of a stream that is none."""
        yield from super().ignored()
        if self.stream_options is not None and not self.stream:
            yield "stream_options"


class Sampling(AnswerFields):
    """How the tokens of an answer are chosen, where the API that asks has no log-probabilities."""

    @property
    def likeliest(self) -> None:
        """None: log-probabilities are not reported."""
        return


def check_least_tokens(answer: AnswerFields) -> None:
    """Raise BadRequest where more tokens must come than may."""
    if answer.limit is not None and (answer.min_tokens or 0) > answer.limit[1]:
        raise BadRequest(
            f"'min_tokens' is {answer.min_tokens}, more than '{answer.limit[0]}' ({answer.limit[1]}) allows.",
            param="min_tokens",
        )
