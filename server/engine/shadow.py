"""The shadow that the settings stand for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from server.settings.groups import ShadowSettings
from steering.errors import BundleError
from steering.policy import Calibrated, Mode, PolicyError

if TYPE_CHECKING:
    from models.info import BackboneInfo
    from steering.guard import Guard
    from steering.shadow import Shadow


def load_shadow(settings: ShadowSettings, acting: Guard | None, info: BackboneInfo) -> Shadow:
    """The shadow for a loaded model. Raises BundleError where its bundle does not fit, PolicyError."""
    from steering.bundle import load_guard
    from steering.shadow import Shadow

    if acting is None:
        raise PolicyError("shadow: needs a guard to stand beside; give one with --guard")
    try:
        guard = acting if settings.guard is None else load_guard(Path(settings.guard), info)
    except BundleError as error:
        raise BundleError(f"shadow: {error}") from error
    of_answers = answer_threshold(settings, guard.manifest)
    return Shadow(settings.name, guard, shadow_threshold(settings, guard.manifest), of_answers)


def shadow_threshold(settings: ShadowSettings, bundle: Calibrated) -> float:
    """The score from which it would flag. Raises PolicyError."""
    try:
        return bundle.policy(threshold=settings.threshold, target_fpr=settings.target_fpr).threshold
    except ValueError as error:
        raise PolicyError(f"shadow: {error}") from error


def answer_threshold(settings: ShadowSettings, bundle: Calibrated) -> float | None:
    """The score from which it would flag an answer; None where it judges none. Raises PolicyError.

    Beside the acting guard's own reader one with the same threshold would tell nothing new.
    """
    given = settings.answer_threshold
    if given is None and (settings.guard is None or not bundle.watches):
        return None
    try:
        return bundle.output(Mode.MONITOR, threshold=given).threshold
    except ValueError as error:
        raise PolicyError(f"shadow: answer_threshold: {error}") from error
