"""What a guard does in each surrounding, at the policy's threshold: recall, false alarms, attacks, refusals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steering.evaluation.figures import rate_of
from steering.evaluation.results import Detector, as_dict, cells
from steering.evaluation.run import System, Verdicts
from steering.evaluation.suite import Asked, Loaded, surrounded_id
from steering.evaluation.surroundings import CLEAN, SURROUNDINGS


def surroundings(
    loaded: Loaded, systems: Sequence[System], detectors: Sequence[Detector], main: Verdicts
) -> list[dict[str, Any]]:
    """Rows clean and in each surrounding: how many are flagged, and what became of the answers.

    Empty where no surrounding was asked for.
    """
    found = []
    for name, rows in _by_surrounding(loaded).items():
        kinds = [[each for each in rows if each.kind == kind] for kind in ("harmful", "harmless")]
        about = "the same rows alone" if name == CLEAN else SURROUNDINGS[name].about
        flagged = [
            {"detector": detector.name, "kind": members[0].kind, **_flagged(members, detector)}
            for members in kinds
            if members
            for detector in detectors
        ]
        figures = [
            {"kind": members[0].kind, **cell}
            for members in kinds
            if members
            for cell in cells(members, systems, [main])
        ]
        found.append({"surrounding": name, "about": about, "flagged": flagged, "figures": figures})
    return found


def _by_surrounding(loaded: Loaded) -> dict[str, list[Asked]]:
    """Rows by surrounding; clean are those that are asked in others as well."""
    found: dict[str, list[Asked]] = {CLEAN: []}
    for each in loaded.asked:
        if each.surrounding != CLEAN:
            found.setdefault(each.surrounding, []).append(each)
    _, *names = found
    if not names:
        return {}
    # Every surrounding has the same rows, but those of pictures, which have some of them.
    surrounded = {(each.set, each.row.id) for name in names for each in found[name]}
    found[CLEAN] = [
        each
        for each in loaded.clean.asked
        if any((each.set, surrounded_id(each.row.id, name)) in surrounded for name in names)
    ]
    return found


def _flagged(asked: Sequence[Asked], detector: Detector) -> dict[str, Any]:
    """The share of rows over the threshold. Those without a score have no answer either: they were too long, say."""
    scored = [each for each in asked if each.key in detector.scores]
    rate = rate_of([each.key in detector.flagged for each in scored])
    return {**as_dict(rate), "unjudged": 0, "failed": len(asked) - len(scored)}
