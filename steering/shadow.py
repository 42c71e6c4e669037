"""A shadow: a second guard, or a second threshold, that judges beside the acting guard and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from steering.guard import Guard
from steering.policy import Mode, ShadowDecision, Verdict, is_flagged


@dataclass(frozen=True)
class Shadow:
    """What judges in the acting guard's shadow; `guard` may be the acting one."""

    name: str
    guard: Guard
    threshold: float

    def tapped_with(self, acting: Guard) -> int | Sequence[int]:
        """What to tap for both, the acting guard's layers first."""
        return acting.tapped if self.guard is acting else [*_layers(acting), *_layers(self.guard)]

    def apart(self, states: Tensor, acting: Guard) -> tuple[Tensor, Tensor]:
        """The tapped states apart: the acting guard's, bit for bit as they are without a shadow, and the shadow's."""
        if self.guard is acting:
            return states, states
        at = len(_layers(acting))
        return states[:, :at].flatten(1).contiguous(), states[:, at:].flatten(1).contiguous()

    def judge(self, scores: Sequence[float], modes: Sequence[Mode]) -> list[ShadowDecision | None]:
        """What this would flag; None for a row whose policy has it not scored. A score that is no number is flagged."""
        return [
            None if mode is Mode.OFF else ShadowDecision(self._verdict(score), score, 0.0, self.name)
            for score, mode in zip(scores, modes, strict=True)
        ]

    def _verdict(self, score: float) -> Verdict:
        return Verdict.MONITORED if is_flagged(score, self.threshold) else Verdict.PASS


def _layers(guard: Guard) -> list[int]:
    return [guard.tapped] if isinstance(guard.tapped, int) else list(guard.tapped)
