"""False alarms by the length of what is asked, with pictures and without: one threshold is to keep its rate in all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from steering.evaluation.figures import rate_of
from steering.evaluation.results import Detector, as_dict
from steering.evaluation.suite import Asked

BUCKETS = 4


def false_alarms_by_length(asked: Sequence[Asked], detectors: Sequence[Detector]) -> list[dict[str, Any]]:
    """The share of harmless rows, in every surrounding, that each detector flags in each of four lengths.

    The lengths, in characters, hold about equally many of the rows with pictures, and of those without.
    """
    found = []
    for detector in detectors:
        scored = [each for each in asked if each.kind == "harmless" and each.key in detector.scores]
        for pictures in (False, True):
            rows = [each for each in scored if bool(each.row.question.images) == pictures]
            kind = "with pictures" if pictures else "words alone"
            for lengths, members in _buckets(rows):
                flagged = rate_of([each.key in detector.flagged for each in members])
                found.append({"detector": detector.name, "rows": kind, "characters": lengths, **as_dict(flagged)})
    return found


def _buckets(rows: Sequence[Asked]) -> list[tuple[list[int], list[Asked]]]:
    """Rows by length: the shortest and the longest of each bucket, and its rows. A length is in one bucket alone."""
    lengths = np.array([len(each.row.question.transcript) for each in rows], dtype=int)
    if not rows:
        return []
    edges = np.quantile(lengths, np.arange(1, BUCKETS) / BUCKETS, method="inverted_cdf")
    places = np.searchsorted(edges, lengths)
    return [
        ([int(lengths[places == at].min()), int(lengths[places == at].max())], [rows[n] for n in inside.tolist()])
        for at in range(BUCKETS)
        if len(inside := np.flatnonzero(places == at))
    ]
