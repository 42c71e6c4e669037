"""A request as vLLM computes it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from models.row_sampler import SamplingParams
from server.engine.judged import JudgedRequest
from server.engine.vllm.worker import PromptRead, Read

if TYPE_CHECKING:
    from torch import Tensor

    from models.row_sampler import Grammar


@dataclass(eq=False)
class VllmRequest(JudgedRequest):
    """A request with the run of vLLM's that computes it now."""

    params: SamplingParams = field(kw_only=True)
    grammar: Grammar | None = field(kw_only=True)
    run: str | None = field(default=None, init=False)  # None: it waits for its leader
    runs: int = field(default=0, init=False)  # that it has had
    notes: Tensor | None = field(default=None, init=False)  # what was read of its prompt `[T, width]`
    values: dict[int, float] = field(default_factory=dict, init=False)  # read of its run's answer, by place

    def be_refused(self) -> None:
        """Make the answer a refusal."""
        self.grammar = None
        self.params = replace(SamplingParams.GREEDY, logprobs=self.params.logprobs)

    def hear(self, read: Read) -> None:
        """Keep what was read of its prompt, or of its answer."""
        if isinstance(read, PromptRead):
            self.notes = read.notes
        else:
            self.values[read.place] = read.value

    def take(self, token: int, *, ends: bool) -> None:
        """Go on by a token, or end with it. Raises GrammarError."""
        if self.grammar is not None:
            if ends:
                self.grammar.finish()
            else:
                self.grammar.accept(token)
        if not ends:
            self.output_ids.append(token)
