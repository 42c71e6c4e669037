"""Fixtures for all tests."""

from __future__ import annotations

from typing import Any

import pytest

from tests.reference import stock
from tests.tiny import TinyModels, backbone, family, tiny_models

__all__ = ["backbone", "family", "tiny_models"]


@pytest.fixture(scope="session")
def stock_models(tiny_models: TinyModels) -> Any:
    found: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in found:
            found[family] = stock.load_model(family, tiny_models.folder(family))
        return found[family]

    return get
