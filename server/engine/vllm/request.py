"""A request as vLLM computes it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from models.row_sampler import SamplingParams
from server.engine.judged import JudgedRequest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(eq=False)
class VllmRequest(JudgedRequest):
    """A request with the run of vLLM's that computes it now.

    `followers` are other choices of its prompt's answer: they wait for its decision, which holds for them too.
    """

    params: SamplingParams = field(kw_only=True)
    source: VllmRequest | None = field(default=None, kw_only=True)
    followers: list[VllmRequest] = field(default_factory=list, init=False)
    run: str | None = field(default=None, init=False)  # None: it waits for its leader
    read: Tensor | None = field(default=None, init=False)  # what was read of its prompt `[1, width]`

    def be_refused(self) -> None:
        """Its answer is to be a refusal."""
        self.params = replace(SamplingParams.GREEDY, logprobs=self.params.logprobs)

    @property
    def eps(self) -> float:
        """Steering strength, 0 where it is not steered."""
        return self.decision.eps if self.decision else 0.0

    @property
    def room(self) -> int:
        """How many tokens it may still have."""
        return self.max_tokens - len(self.output_ids)
