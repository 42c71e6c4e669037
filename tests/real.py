"""The real model, where `make real-model` has brought it."""

from __future__ import annotations

from pathlib import Path

import pytest

from models import smollm2

REAL_MODEL = Path(__file__).parents[1] / smollm2.FOLDER


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Its folder; without it the test is skipped. Tests that ask for it are marked `real_model`."""
    if not (REAL_MODEL / "config.json").is_file():
        pytest.skip(f"no model in {smollm2.FOLDER}: `make real-model` brings it")
    return REAL_MODEL
