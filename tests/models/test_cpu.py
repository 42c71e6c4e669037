"""What the CPU can compute: found by trying, and true under the limits that torch obeys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from models import cpu
from models.cpu import CpuCapabilities, cpu_capabilities

AS_WITHOUT_AVX512 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}

PROBE = """
import json
from models.cpu import cpu_capabilities
found = cpu_capabilities()
print(json.dumps([found.bf16_products, sorted(map(str, found.prepacked)), found.int8_products]))
"""


def _found(**environment: str) -> Any:
    """Capabilities in a process with this environment."""
    kept = {name: value for name, value in os.environ.items() if name not in AS_WITHOUT_AVX512}
    command = [sys.executable, "-c", PROBE]
    return json.loads(subprocess.check_output(command, env={**kept, **environment}))


def _refuses(*_: Any) -> Tensor:
    raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw, avx512vl and avx512dq")


def _is_wrong(inputs: Tensor, *_: Any) -> Tensor:
    return torch.zeros(len(inputs), 48, dtype=inputs.dtype)


@pytest.fixture
def _asked_anew() -> Any:
    cpu_capabilities.cache_clear()
    yield
    cpu_capabilities.cache_clear()


def test_torch_s_own_limits_are_seen() -> None:
    bf16_products, prepacked, _ = _found(**AS_WITHOUT_AVX512)
    assert not bf16_products
    assert "torch.bfloat16" not in prepacked


@pytest.mark.parametrize("limit", ["AVX512_CORE", "avx512_core_vnni"])
def test_bf16_that_is_emulated_is_not_the_cpu_s_own(limit: str) -> None:
    assert not _found(ONEDNN_MAX_CPU_ISA=limit)[0]


@pytest.mark.usefixtures("_asked_anew")
@pytest.mark.parametrize("product", [_refuses, _is_wrong])
def test_a_product_that_fails_or_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch, product: Any) -> None:
    monkeypatch.setattr(cpu, "product_of_packed", product)
    monkeypatch.setattr(cpu, "int8_product", product)
    assert cpu_capabilities() == CpuCapabilities()


@pytest.mark.usefixtures("_asked_anew")
def test_a_torch_without_these_operators_is_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    monkeypatch.delattr(torch, "_weight_int8pack_mm")
    assert cpu_capabilities() == CpuCapabilities()
