"""What the guard does now, as `/admin/now` tells it: decisions minute by minute, and how far scores have drifted."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import TypedDict

from server.watch.drift import ScoreWindow
from server.watch.metrics import Metrics


class DriftNow(TypedDict):
    scores: int
    psi: float | None
    ks: float | None
    p_value: float | None
    alarm: bool


class PolicyNow(TypedDict):
    name: str
    minutes: list[dict[str, int]]
    drift: DriftNow | None


class Now(TypedDict):
    """The body of `/admin/now`; `minutes` are the last 60 and the decisions in each, the current one last."""

    policies: list[PolicyNow]
    running: int
    waiting: int


def now_of(metrics: Metrics, policies: Sequence[str], running: int, waiting: int) -> Now:
    """Everything that there is to tell."""
    windows = metrics.drift.windows
    told: list[PolicyNow] = [
        {"name": name, "minutes": metrics.recent.of(name), "drift": _drift(windows.get(name))} for name in policies
    ]
    return {"policies": told, "running": running, "waiting": waiting}


def _drift(window: ScoreWindow | None) -> DriftNow | None:
    """None where drift is not watched; no figures before the first look."""
    if window is None:
        return None
    found = window.latest
    return {
        "scores": len(window),
        "psi": None if found is None else found.psi,
        "ks": None if found is None else found.ks,
        "p_value": None if found is None else found.p_value,
        "alarm": found is not None and found.alarm,
    }
