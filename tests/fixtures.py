"""The fixtures of all tests. Only processes that run tests import this, which takes seconds (`tests/conftest.py`)."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from tests.real import real_model
from tests.reference import stock
from tests.tiny import TinyModels, backbone, family, remembering, tiny_models

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

__all__ = ["backbone", "family", "real_model", "remembering", "tiny_models"]


@pytest.fixture(scope="session")
def stock_models(tiny_models: TinyModels) -> Any:
    found: dict[str, Any] = {}

    def get(family: str) -> Any:
        if family not in found:
            found[family] = stock.load_model(family, tiny_models.folder(family))
        return found[family]

    return get
