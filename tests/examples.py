"""How many examples a property is tried with: what the profile says (`tests/conftest.py`), or a multiple of it."""

from __future__ import annotations

import hypothesis


def examples(times: float) -> hypothesis.settings:
    """So many times as many as the profile's: for examples that are cheap."""
    return hypothesis.settings(max_examples=round(times * hypothesis.settings().max_examples))
