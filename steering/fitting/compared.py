"""A bundle and its successor on labels that were held out of both."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path

from models.backbone import Backbone
from steering.bundle import load_guard
from steering.data.questions import Question
from steering.fitting.items import Item
from steering.fitting.offline import batches, score_batch
from steering.guard import Guard
from steering.held_out import HeldOut, HeldOutRow, Judged


def compare(backbone: Backbone, items: Sequence[Item], old: Path, new: Path) -> HeldOut:
    """Score labelled prompts with the bundles of two folders. Raises BundleError.

    What asks the same as a row of either fit is left out: it was not held out of that one.
    """
    guards = load_guard(old, backbone.info), load_guard(new, backbone.info)
    known = frozenset[int]().union(*(guard.fitted_rows or () for guard in guards))
    fresh = [item for item in items if item.questions[0].fingerprint not in known]
    scores = [_scores(backbone, guard, [item.questions[0] for item in fresh]) for guard in guards]
    rows = [
        HeldOutRow(id=item.id, harmful=item.toxic is not None, old=before, new=after)
        for item, before, after in zip(fresh, *scores, strict=True)
    ]
    judged = [Judged(guard=guard.manifest.id, threshold=guard.manifest.threshold) for guard in guards]
    return HeldOut(old=judged[0], new=judged[1], rows=rows, fitted=len(items) - len(fresh))


def _scores(backbone: Backbone, guard: Guard, questions: Sequence[Question]) -> list[float | None]:
    scores = [score for group in batches(questions, backbone.max_rows) for score in score_batch(backbone, guard, group)]
    backbone.read_prompts(None)
    return [score if isfinite(score) else None for score in scores]
