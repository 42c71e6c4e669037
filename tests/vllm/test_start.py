"""Where the guard on vLLM is not what it should be, nothing is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import LoadError
from server.engine.vllm import start
from server.engine.vllm.start import load_vllm
from server.engine.vllm.worker import Worker
from tests.tiny import TinyModels
from tests.vllm.models import OPTIONS, tiny_model

pytestmark = pytest.mark.vllm


def test_an_unknown_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "VERSIONS", ("0.99.0",))
    with pytest.raises(LoadError, match=r"vLLM 0\.32\.0.* is not a version .*0\.99\.0"):
        load_vllm("nowhere", None, OPTIONS)


def test_a_family_without_an_adapter_is_refused_by_name(tiny_models: TinyModels) -> None:
    with pytest.raises(LoadError, match="no adapter for chameleon models"):
        load_vllm(str(tiny_models.folder("chameleon")), None, OPTIONS, dtype="float32")


def test_an_adapter_that_is_not_live_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of its own would say so: vLLM would serve the model without a guard."""
    model, guard, _ = tiny_model("llama", tmp_path)
    monkeypatch.setattr(Worker, "read", lambda *_: None)
    with pytest.raises(LoadError, match="the guard has told nothing of its prompt"):
        load_vllm(str(model), guard, OPTIONS, dtype="float32")
