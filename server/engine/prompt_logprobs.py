"""The log-probabilities of a prompt's own tokens, for requests that ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.sampling import Logprobs, logprobs_of
from server.engine.judge import Judge
from server.engine.own_request import OwnRequest
from server.engine.rows import row_of
from steering.policy import Verdict

if TYPE_CHECKING:
    from models.backbone import Backbone
    from models.passes import Keep

AT_ONCE = 256  # tokens whose logits are in memory: of a vocabulary of 150,000 they take 150 MB


class PromptLogprobs:
    """Keeps states of prompts whose log-probabilities are wanted, and works on them once there is a decision.

    A steered prompt's are those of the steered model, which its answer has too; of a blocked one there are none.
    """

    def __init__(self, backbone: Backbone, judge: Judge[OwnRequest]) -> None:
        self._backbone = backbone
        self._judge = judge

    def keep(self, requests: Sequence[OwnRequest]) -> Keep:
        """The rows of these requests whose states a pass has to keep, and where it puts them."""
        return {row_of(request): request.states for request in requests if request.states is not None}

    def tell(self, requests: Sequence[OwnRequest]) -> None:
        """Give requests, whose prompts are decided on now, the log-probabilities that they ask for."""
        for request in requests:
            if request.states is None:
                continue
            if request.decision is None or request.decision.verdict is not Verdict.BLOCKED:
                request.prompt_logprobs = self._of(request.prompt.ids, torch.cat(request.states), request)
            request.states = None

    def _of(self, ids: Sequence[int], states: Tensor, request: OwnRequest) -> list[Logprobs]:
        """Of each token of the prompt but the first, which nothing comes before."""
        assert len(states) == len(ids), f"{len(states)} states were kept of {len(ids)} prompt tokens"
        found: list[Logprobs] = []
        for begin in range(0, len(ids) - 1, AT_ONCE):
            tokens = ids[begin + 1 : begin + 1 + AT_ONCE]
            bent = self._judge.steer([request.eps] * len(tokens), states[begin : begin + len(tokens)])
            found += logprobs_of(self._backbone.logits(bent), tokens, request.ask.prompt_logprobs or 0)
        return found
