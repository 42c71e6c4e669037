"""What an engine is to the process that runs it, whether it is our own or another's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from server.request import Ask, EngineFailed, Event, Request

if TYPE_CHECKING:
    from models.info import BackboneInfo
    from steering.guard import Guard
    from steering.policy import Calibrated

R = TypeVar("R", bound=Request)


@dataclass(frozen=True)
class Facts:
    """What an engine tells of the model and the guard that it has loaded."""

    info: BackboneInfo
    guard: Calibrated | None = None
    layer: int | None = None  # the guarded one
    calibration: Sequence[float] = ()  # scores of harmless prompts that the guard was calibrated on, if it keeps them
    answer_calibration: Sequence[float] = ()  # final scores of harmless answers, if it reads answers
    has_series: bool = False  # whether its library has metrics of its own

    @staticmethod
    def loaded(info: BackboneInfo, guard: Guard | None, *, has_series: bool = False) -> Facts:
        """What to tell of a model and its guard."""
        if guard is None:
            return Facts(info, has_series=has_series)
        scores = guard.calibration_scores, guard.answer_calibration_scores
        return Facts(info, guard.manifest, guard.layer, *scores, has_series=has_series)


class Effort(IntEnum):
    """How long it takes to prepare requests."""

    NONE = 0
    LITTLE = 1  # some tens of milliseconds
    MUCH = 2


class Load(NamedTuple):
    """How much an engine has to do."""

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0  # 0 to 1


class Engine(Protocol[R]):
    """Computes requests step by step. One thread owns it; `effort` and `prepare` may be called from others.

    Every request that was added ends in exactly one event with `finish`, which `step`, `abort` or `fail_all` returns.
    """

    @property
    def facts(self) -> Facts:
        """What is loaded."""

    @property
    def load(self) -> Load:
        """How much there is to do."""

    @property
    def idle(self) -> bool:
        """Whether a step would have nothing to do."""

    @property
    def failure(self) -> EngineFailed | None:
        """Why nothing can be computed any more; None while it can."""

    def effort(self, asks: Sequence[Ask]) -> Effort:
        """How long `prepare` would take; told at once, in any thread."""

    def prepare(self, asks: Sequence[Ask]) -> Sequence[R]:
        """Requests, as `add` takes them, of all that is asked together; may take long. Raises RequestFailed."""

    def add(self, request: R) -> None:
        """Put a request at the end of the queue; no step is made between those that were prepared together."""

    def abort(self, request_id: str) -> Event | None:
        """End a request now; None if it has ended."""

    def step(self) -> list[Event]:
        """Compute the next tokens of some requests: what became of them."""

    def series(self) -> bytes:
        """What its library tells of itself, in Prometheus' text format; empty where the facts say that it has none."""

    def fail_all(self, error: EngineFailed) -> list[Event]:
        """End every request with the engine's failure."""
