"""The nouns of a generation: an `Ask`, the `Request` that it becomes, an engine's `Event`s. Holds no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.prompt import Prompt
    from models.row_sampler import SamplingParams
    from models.sampling import Logprobs
    from steering.policy import AnswerDecision, Decision, Policy, ShadowDecision
    from steering.token_scores import TokenScores


class Finish(StrEnum):
    """Why a request ended; `abort`, `timeout` and `error` never reach a client as a `finish_reason`."""

    STOP = "stop"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    ABORT = "abort"
    TIMEOUT = "timeout"
    ERROR = "error"


class EngineError(Exception):
    """The engine could not finish a request.

    EngineError
    ├── RequestFailed    this request alone; its neighbours go on
    │   └── GrammarFailed    the grammar that the client asked for led nowhere
    └── EngineFailed     the engine is gone; nothing more is accepted
    """


class RequestFailed(EngineError):
    """One request failed; the batch goes on."""


class GrammarFailed(RequestFailed):
    """The grammar of one request could not be followed to its end."""


class EngineFailed(EngineError):
    """The engine cannot go on; every live request ends with this."""


@dataclass
class Timings:
    """When things happened to a request, in seconds of the monotonic clock; `None` until they do."""

    arrived: float = field(default_factory=monotonic)
    scheduled: float | None = None
    prefilled: float | None = None
    first_token: float | None = None
    finished: float | None = None
    guard_seconds: float = 0.0


QUICK_SECONDS = 0.02  # of CPU, for a schema: most take a quarter of it


@dataclass(frozen=True)
class Schema:
    """A JSON schema that was compiled within limits, and what that took: CPU seconds, bytes of memory.

    `source`: as `models.schema.source_of` makes it; `param`: the path of the field that it came from.
    """

    source: str
    seconds: float = 0.0
    memory_bytes: int = 0
    param: str = "response_format"

    @property
    def quick(self) -> bool:
        """Whether compiling it again holds up nobody for long."""
        return self.seconds <= QUICK_SECONDS


@dataclass(frozen=True, eq=False)
class Ask:
    """What is wanted of an engine: one generation. Several choices of an answer are several of these, with one prompt.

    `leader`: the id of the first ask for the same prompt and answer, whose decision holds for this one too. `tenant`: a
    number for who asks, so that those who wait take turns; it tells nothing else about them.
    """

    id: str
    prompt: Prompt
    params: SamplingParams
    max_tokens: int
    policy: Policy
    schema: Schema | None = None  # that the answer follows
    leader: str | None = None
    tenant: int = 0
    scores: bool = False  # whether the score at each token is wanted
    prompt_logprobs: int | None = None  # those of the prompt's tokens are wanted, and of so many of the likeliest
    arrived: float = field(default_factory=monotonic)  # seconds of the monotonic clock


@dataclass(eq=False)
class Request:
    """What has become of an ask, from admission to its one terminal event. All of a request's state is here.

    An engine has its own of these, the HTTP process another: it holds what the engine has told.
    """

    ask: Ask
    output_ids: list[int] = field(default_factory=list)
    decision: Decision | None = None
    shadow: ShadowDecision | None = None  # never acted upon
    shadow_answer: AnswerDecision | None = None  # from when it has ended, or the guard has acted on it
    answer: AnswerDecision | None = None  # from when its answer is flagged, or has ended; None where nobody watches it
    token_scores: TokenScores | None = None  # of the prompt, where its ask wants them and it was scored
    prompt_logprobs: Sequence[Logprobs] | None = None  # of all tokens but the first, where wanted and not blocked
    answer_scores: list[float] = field(default_factory=list)  # of tokens read since its last event, where wanted
    cached_tokens: int | None = None  # of the prompt, which the engine knew when the request first ran
    timings: Timings = field(init=False)

    def __post_init__(self) -> None:
        self.timings = Timings(arrived=self.ask.arrived)

    @property
    def id(self) -> str:
        """The ask's id."""
        return self.ask.id

    @property
    def prompt(self) -> Prompt:
        """The ask's prompt; without its images' tensors in the HTTP process, once they have left it."""
        return self.ask.prompt

    @property
    def max_tokens(self) -> int:
        """The most tokens of the answer; 0 where only a score is wanted."""
        return self.ask.max_tokens

    @property
    def policy(self) -> Policy:
        """The policy that it is served under."""
        return self.ask.policy

    @property
    def leader(self) -> str | None:
        """The id of the first request of the same prompt and answer; None where this is it."""
        return self.ask.leader


@dataclass(frozen=True, slots=True)
class Event:
    """What one step did to one request: a token, its end, or both; neither where its `answer` has been decided on.

    Where the answer is watched, a token says that all before it were read and not flagged, and its end by `stop` or
    `length` that all were. From an `answer` that is steered on, tokens are of a refusal and begin anew.
    """

    request: Request
    token: int | None = None
    logprobs: Logprobs | None = None  # of the token, where its request asks for them
    finish: Finish | None = None
    error: EngineError | None = None
