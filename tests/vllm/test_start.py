"""Where the guard on vLLM is not what it should be, nothing is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import LoadError
from server.engine.vllm import start
from server.engine.vllm.start import load_vllm
from server.engine.vllm.worker import Worker
from tests.tiny import TinyModels, make_tiny
from tests.vllm.models import OPTIONS, tiny_model

pytestmark = pytest.mark.vllm


def test_an_unknown_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "VERSIONS", ("0.99.0",))
    with pytest.raises(LoadError, match=r"vLLM 0\.32\.0.* is not a version .*0\.99\.0"):
        load_vllm("nowhere", None, OPTIONS)


@pytest.mark.parametrize(
    ("family", "reason"), [("chameleon", "since 0.28"), ("gemma3", "the tokens of an image look at each other")]
)
def test_a_family_that_vllm_does_not_have_right_is_refused_by_name(
    tiny_models: TinyModels, family: str, reason: str
) -> None:
    with pytest.raises(LoadError, match=f"does not serve {family} models: .*{reason}"):
        load_vllm(str(tiny_models.folder(family)), None, OPTIONS, dtype="float32")


def test_a_model_whose_every_layer_looks_at_a_window_is_refused(tmp_path: Path) -> None:
    model = make_tiny("mistral", tmp_path, text={"hidden_size": 128, "head_dim": 32})
    with pytest.raises(LoadError, match="whose every layer looks at a window"):
        load_vllm(str(model), None, OPTIONS, dtype="float32")


def test_an_adapter_that_is_not_live_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of its own would say so: vLLM would serve the model without a guard."""
    model, guard, _ = tiny_model("llama", tmp_path)
    monkeypatch.setattr(Worker, "read", lambda *_: None)
    with pytest.raises(LoadError, match="the guard has told nothing of its prompt"):
        load_vllm(str(model), guard, OPTIONS, dtype="float32")


def test_an_adapter_for_another_runner_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither runner fails where it is not asked which request is in which row."""
    from server.engine.vllm.model import RowMap
    from server.engine.vllm.runner_v2 import GuardedState

    model, guard, _ = tiny_model("llama", tmp_path)
    monkeypatch.setattr(RowMap, "update_state", lambda *_: None)
    monkeypatch.setattr(GuardedState, "preprocess_state", lambda *_: None)
    with pytest.raises(LoadError, match="the guard has told nothing of its prompt"):
        load_vllm(str(model), guard, OPTIONS, dtype="float32")
