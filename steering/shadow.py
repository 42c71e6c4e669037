"""A shadow: a second guard, or a second threshold, that judges beside the acting guard and changes nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from models.reading import PromptReader
from steering.answers import AnswerReader
from steering.guard import Guard
from steering.policy import AnswerDecision, ShadowDecision, Verdict, is_flagged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shadow:
    """What judges in the acting guard's shadow; `guard` may be the acting one.

    `answer_threshold`: from which score it would flag an answer; None: it reads prompts alone.
    """

    name: str
    guard: Guard
    threshold: float
    answer_threshold: float | None = None

    @property
    def answers(self) -> AnswerReader | None:
        """The reader of answers; None where the shadow reads prompts alone."""
        return None if self.answer_threshold is None else self.guard.answers

    def judge(self, score: float) -> ShadowDecision:
        """What this would do about a score. One that is no number is flagged."""
        verdict = Verdict.MONITORED if is_flagged(score, self.threshold) else Verdict.PASS
        return ShadowDecision(verdict, score, 0.0, shadow=self.name)

    def judge_answer(self, score: float, tokens: int) -> AnswerDecision:
        """What this would do about an answer with this score, of which it has read so many tokens."""
        assert self.answer_threshold is not None, "it reads no answers"
        verdict = Verdict.MONITORED if is_flagged(score, self.answer_threshold) else Verdict.PASS
        return AnswerDecision(verdict, score, tokens)


class Beside:
    """Reads tokens for an acting guard, and for a shadow beside it; a `PromptReader` itself, of prompts or of answers.

    What the acting guard reads is bit for bit what it reads alone, and a shadow that fails leaves no numbers.
    """

    def __init__(self, acting: PromptReader, shadow: PromptReader) -> None:
        self._acting, self._shadow = acting, shadow
        self.layers = [*acting.layers, *shadow.layers]
        self.width = acting.width + shadow.width

    def read(self, states: Tensor) -> Tensor:
        """The numbers `[N, width]` of N tokens, of their states `[N, layers, d]`: the acting guard's first."""
        at = len(self._acting.layers)
        own = self._acting.read(states[:, :at])
        try:
            shadowed = self._shadow.read(states[:, at:])
        except torch.AcceleratorError:
            raise
        except Exception:
            logger.exception("the shadow failed to read %d tokens", len(states))
            shadowed = own.new_full((len(states), self._shadow.width), torch.nan)
        return torch.cat([own, shadowed], dim=1)

    def apart(self, notes: Tensor) -> tuple[Tensor, Tensor]:
        """The acting guard's numbers and the shadow's."""
        return notes[:, : self._acting.width], notes[:, self._acting.width :]
