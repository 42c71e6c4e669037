"""The nouns of a generation: `Request`, its `Timings`, and the `Event`s that leave the engine. Holds no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.backbone import Row
    from models.inputs import Prompt
    from models.sampling import Logprobs, RowSampler
    from server.engine.wire import Parcel
    from steering.policy import Decision, Policy, ShadowDecision


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


@dataclass(eq=False)
class Request:
    """One generation, from admission to its one terminal event. All per-request state is here.

    An HTTP request that asks for several choices is several of these, with one prompt between them.
    """

    id: str
    prompt: Prompt
    sampler: RowSampler
    max_tokens: int
    policy: Policy
    schema: str | None = None  # JSON schema that the answer follows: what the sampler's grammar is made of
    leader: Request | None = None  # the first request of the same prompt and answer, whose decision holds for this one
    parcel: Parcel | None = None  # with the first of those submitted together: all of them, packed and not yet sent
    row: Row | None = None
    output_ids: list[int] = field(default_factory=list)
    decision: Decision | None = None
    shadow: ShadowDecision | None = None  # never acted upon
    cached_tokens: int | None = None  # of the prompt, which the cache knew when the request first ran
    timings: Timings = field(default_factory=Timings)

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be chosen."""
        return len(self.prompt.ids) + len(self.output_ids) if self.row is None else self.row.pending

    @property
    def eps(self) -> float:
        """Steering strength of this row, 0 where it is not steered."""
        return self.decision.eps if self.decision else 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """What one step did to one request: a token, its end, or both."""

    request: Request
    token: int | None = None
    logprobs: Logprobs | None = None  # of the token, where its request asks for them
    finish: Finish | None = None
    error: EngineError | None = None
