"""Reports without their figures: to draw them takes longer than many a fit or evaluation of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def undrawn() -> Iterator[None]:
    """Figures are made, and empty files are written in their place."""
    with patch("steering.fitting.report.png", _nothing), patch("steering.evaluation.report.png", _nothing):
        yield


def _nothing(_: object) -> bytes:
    return b""
