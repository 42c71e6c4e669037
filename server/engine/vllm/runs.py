"""What the engine on vLLM asks of whatever computes: runs, each of which is one request of vLLM's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from server.engine.protocol import Load

if TYPE_CHECKING:
    from models.prompt import Prompt
    from models.row_sampler import Grammar, SamplingParams
    from models.sampling import Logprobs


class Run(NamedTuple):
    """What is to be computed. `eps`: strength of steering, 0 for none. `watched`: whether its answer is read.

    `grammar`: goes on as its tokens are taken, before the next step.
    """

    name: str
    prompt: Prompt
    params: SamplingParams
    max_tokens: int
    eps: float
    watched: bool
    grammar: Grammar | None


class Progress(NamedTuple):
    """What a step did to a run: its next tokens, and why it ended, in vLLM's word."""

    run: str
    tokens: Sequence[int]
    logprobs: Sequence[Logprobs] | None
    ended: str | None
    cached_tokens: int | None


class Core(Protocol):
    """What computes: vLLM's engine, as `VllmEngine` uses it."""

    @property
    def load(self) -> Load:
        """How much there is to do."""

    def add(self, run: Run) -> None:
        """Begin a run. Raises ValueError where vLLM does not take it."""

    def abort(self, run: str) -> None:
        """Forget a run; nothing happens if it has ended."""

    def step(self) -> Sequence[Progress]:
        """Compute what is scheduled."""

    def series(self) -> bytes:
        """What vLLM tells of itself, in Prometheus' text format."""

    def scheduled(self, run: str) -> bool:
        """Whether a run has begun to be computed."""
