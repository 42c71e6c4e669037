"""The parts of a new picture's way through the server."""

from __future__ import annotations

from benchmarks.picture import WARM, Parts


def test_the_first_pictures_do_not_count() -> None:
    parts = Parts()
    for seconds in [9.0] * WARM + [1.0, 2.0, 3.0]:
        parts.add("tower", seconds)
    assert parts.median("tower") == 2.0
    assert parts.timed("decode", lambda: 7) == 7
    assert len(parts.seconds["decode"]) == 1
