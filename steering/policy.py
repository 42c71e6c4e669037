"""Policies and decisions: what is done about a score. One decision per row, never one for the batch. Holds no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, NamedTuple, Protocol


class Mode(StrEnum):
    """What a policy does with a flagged request."""

    OFF = "off"  # nothing is scored
    MONITOR = "monitor"  # scored and counted, answered unchanged
    STEER = "steer"  # bent towards a refusal by the Refusal Head
    BLOCK = "block"  # answered with the policy's refusal text, without decoding


class Verdict(StrEnum):
    """What became of one request."""

    PASS = "pass"  # noqa: S105  not a password
    MONITORED = "monitored"
    STEERED = "steered"
    BLOCKED = "blocked"


# What lets less through is stronger: a steered answer is decoded, and what steering fails on gets through.
STRENGTH = {Mode.OFF: 0, Mode.MONITOR: 1, Mode.STEER: 2, Mode.BLOCK: 3}
_FLAGGED = {Mode.MONITOR: Verdict.MONITORED, Mode.STEER: Verdict.STEERED, Mode.BLOCK: Verdict.BLOCKED}


Hold = int | Literal["sentence", "all"]  # tokens; until a sentence ends; until the answer ends


@dataclass(frozen=True)
class OutputPolicy:
    """How answers are judged while they are generated: in mode `off` not at all.

    `threshold` in [0, 1]: an answer whose score reaches it is flagged. `hold`: how much of it is held back until the
    reader has seen it. `certain`: a score that reaches it when it is flagged ends it, where it would be steered; None:
    no score does. `left_alone`: whoever said `off` wants steered answers as they come, refusals or not. Raises
    ValueError.
    """

    mode: Mode = Mode.OFF
    threshold: float = 1.0
    hold: Hold = 0
    certain: float | None = None
    left_alone: bool = False

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("certain", self.certain)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(f"output.{name} must be between 0 and 1, not {value}")
        if isinstance(self.hold, int) and self.hold < 0:
            raise ValueError(f"output.hold must be 0 or more tokens, not {self.hold}")
        if self.mode in (Mode.OFF, Mode.MONITOR) and self.hold != 0:
            raise ValueError(f"output.hold must be 0 in output.mode {self.mode}, which holds nothing back")

    @property
    def intervenes(self) -> bool:
        """Whether a flagged answer does not go on as it is."""
        return self.mode in (Mode.STEER, Mode.BLOCK)


UNWATCHED = OutputPolicy()
LEFT_ALONE = OutputPolicy(left_alone=True)
DEFAULT_HOLD = 16  # tokens: a whole window of those that the reader compares


@dataclass(frozen=True)
class Policy:
    """How requests are judged, and their answers.

    `threshold` in [0, 1]: a score at or above it is flagged. `eps` > 0: strength of steering. `categories`: of a
    flagged request that counts as one of these, the mode in place of `mode`; see `mode_for`. `refusal`: what is said
    in place of an answer; `translated`: the same in a client's language. Raises ValueError.
    """

    name: str
    mode: Mode
    threshold: float
    eps: float
    refusal: str
    expose_scores: bool = False
    output: OutputPolicy = UNWATCHED
    categories: Sequence[tuple[str, Mode]] = ()
    translated: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be between 0 and 1, not {self.threshold}")
        if not 0.0 <= self.eps < float("inf"):
            raise ValueError(f"eps must be a finite number, 0 or more, not {self.eps}")
        if Mode.STEER in self.modes and self.eps == 0.0:
            raise ValueError("eps must be more than 0 in mode steer: 0 steers nothing")
        if Mode.BLOCK in self.modes and not self.refusal:
            raise ValueError("refusal must not be empty in mode block")
        if self.categories and self.mode is Mode.OFF:
            raise ValueError("categories needs a mode other than off, in which nothing is scored")
        if self.output.mode is Mode.OFF:
            return
        if self.mode is Mode.OFF:
            raise ValueError(
                f"output.mode {self.output.mode} needs a mode other than off: it counts the prompt's score"
            )
        if self.output.mode is Mode.STEER and self.eps == 0.0:
            raise ValueError("eps must be more than 0 in output.mode steer: 0 steers nothing")
        if self.output.intervenes and not self.refusal:
            raise ValueError(f"refusal must not be empty in output.mode {self.output.mode}")

    @property
    def modes(self) -> set[Mode]:
        """The policy's mode, and those of its categories."""
        return {self.mode, *(mode for _, mode in self.categories)}

    @property
    def possible_verdicts(self) -> list[Verdict]:
        """What can become of a request."""
        return [Verdict.PASS, *(_FLAGGED[mode] for mode in Mode if mode in self.modes and mode is not Mode.OFF)]

    def mode_of(self, category: str) -> Mode:
        """What is done with a flagged request that counts as this category alone."""
        return dict(self.categories).get(category, self.mode)

    def mode_for(self, found: Sequence[CategoryScore]) -> Mode:
        """What is done with a flagged request: the strictest of what is said of the categories that it counts as.

        A category of which nothing is said has the policy's mode, as has a request that counts as none.
        """
        if not self.categories:
            return self.mode
        modes = [self.mode_of(each.name) for each in found if each.reached]
        return max(modes, key=STRENGTH.__getitem__, default=self.mode)

    def in_mode(self, mode: Mode) -> Policy:
        """The policy with this mode, whatever the category."""
        return replace(self, mode=mode, categories=())

    @property
    def told(self) -> str:
        """The refusal text as this client is told it."""
        return self.translated or self.refusal


class PolicyError(ValueError):
    """A policy's settings do not fit each other or the guard."""


WEAK = 0.5  # recall below which a guard is said not to be worth serving


class Calibrated(Protocol):
    """What is needed of a guard bundle's manifest."""

    @property
    def id(self) -> str:
        """Tells this bundle from every other."""

    @property
    def date(self) -> str:
        """The day on which the bundle was fitted."""

    @property
    def recall(self) -> float:
        """Share of toxic prompts like those of its fit that its default threshold catches."""

    @property
    def watches(self) -> bool:
        """Whether the bundle has a reader of answers."""

    @property
    def category_names(self) -> Sequence[str]:
        """The categories of harm that it tells apart."""

    @property
    def eps(self) -> float:
        """The strength at which steered answers were measured to refuse, and fluently."""

    def policy(
        self,
        name: str = ...,
        mode: Mode = ...,
        *,
        threshold: float | None = ...,
        target_fpr: float | None = ...,
        eps: float | None = ...,
        refusal: str | None = ...,
        expose_scores: bool = ...,
    ) -> Policy:
        """A policy with the bundle's values where none is given. Raises ValueError."""

    def output(
        self,
        mode: Mode,
        *,
        threshold: float | None = ...,
        target_fpr: float | None = ...,
        hold: Hold | None = ...,
        certain: float | None = ...,
    ) -> OutputPolicy:
        """How answers are judged, with the bundle's threshold where none is given. Raises ValueError."""

    def threshold_for(self, target_fpr: float) -> float:
        """The threshold for a target false-positive rate. Raises ValueError naming the rates that there are."""


class Fallback(StrEnum):
    """Why an answer ends with the policy's refusal text, and not in the model's words."""

    MODE = "mode"  # the policy blocks
    CERTAIN = "certain"  # its score leaves no doubt
    GRAMMAR = "grammar"  # the answer is JSON or a call, which has no place for a refusal
    PREFILL = "prefill"  # the answer was begun for the model, and no refusal goes on from there
    SHORT = "short"  # too few tokens are left for one
    UNREADABLE = "unreadable"  # the reader failed, or its score is no number
    AGAIN = "again"  # a steered answer was flagged
    NOT_BEGUN = "not_begun"  # a steered answer did not begin with a refusal


class CategoryScore(NamedTuple):
    """How much a prompt is of one category of harm, in [0, 1]; `reached`: as much as the category's threshold asks."""

    name: str
    score: float
    reached: bool


@dataclass(frozen=True)
class Decision:
    """What the policy made of one row: `score` is None where nothing was scored, `eps` 0 where nothing is steered.

    `categories`: how much the prompt is of each category that the bundle has; none where nothing was scored.
    """

    verdict: Verdict
    score: float | None
    eps: float
    categories: Sequence[CategoryScore] = ()

    @property
    def flagged(self) -> bool:
        """Whether the score reached the threshold, also where that was only counted."""
        return self.verdict is not Verdict.PASS

    @property
    def kinds(self) -> list[str]:
        """The categories that a flagged prompt counts as; none of one that is not flagged."""
        return [each.name for each in self.categories if each.reached] if self.flagged else []


@dataclass(frozen=True)
class AnswerDecision:
    """What became of one answer: its score so far, and how many of its tokens had been read.

    `verdict` blocked: it ended with the policy's refusal text, for `reason`.
    """

    verdict: Verdict
    score: float
    tokens: int
    reason: Fallback | None = None

    @property
    def flagged(self) -> bool:
        """Whether the score reached the threshold, also where that was only counted."""
        return self.verdict is not Verdict.PASS


@dataclass(frozen=True)
class ShadowDecision(Decision):
    """What a shadow would have made of one row: `pass` or `monitored`."""

    shadow: str = field(kw_only=True)


def is_flagged(score: float, threshold: float) -> bool:
    """Whether a score reaches the threshold.

    A score that is no number is flagged: a guard that cannot read a state must not wave it through.
    """
    return not score < threshold


def decide(
    scores: Sequence[float],
    policies: Sequence[Policy],
    categories: Sequence[Sequence[CategoryScore]] | None = None,
) -> list[Decision]:
    """One decision per row, from its own score and policy, and from how much it is of each category, if told."""
    told = [()] * len(scores) if categories is None else categories
    return [_decide(*row) for row in zip(scores, policies, told, strict=True)]


def _decide(score: float, policy: Policy, categories: Sequence[CategoryScore]) -> Decision:
    if policy.mode is Mode.OFF:
        return Decision(Verdict.PASS, None, 0.0)
    if not is_flagged(score, policy.threshold):
        return Decision(Verdict.PASS, score, 0.0, categories)
    mode = policy.mode_for(categories)
    return Decision(_FLAGGED[mode], score, policy.eps if mode is Mode.STEER else 0.0, categories)
