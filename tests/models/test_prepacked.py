"""Weights in the layout of a CPU's products: the same results."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from models import prepacked
from models.backbone import Backbone
from models.cpu import CpuCapabilities, cpu_capabilities, pack, pairs_of
from models.load import load_backbone
from models.operations import FEW_ROWS, few_rows
from models.prepacked import PrepackedLinear
from models.quantize import Int8Linear
from tests.models.test_backbone import forced, greedy, ordinary_tokens, prompt_of
from tests.tiny import CHATS, TinyModels

STEPS = 12
HERE = cpu_capabilities()
PLAIN = CpuCapabilities()


def _needs(capability: bool) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not capability, reason="this CPU has no such product")


PREPACKED_DTYPES = [
    pytest.param(dtype, marks=_needs(dtype in HERE.prepacked)) for dtype in (torch.bfloat16, torch.float32)
]


@pytest.mark.parametrize("dtype", PREPACKED_DTYPES)
@pytest.mark.parametrize("biased", [True, False])
def test_a_product_is_that_of_the_plain_weight(dtype: torch.dtype, biased: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(96, 160, bias=biased).to(dtype)
    packed = PrepackedLinear(plain.weight, plain.bias)
    for shape in ((96,), (1, 96), (2, 7, 96), (1, 300, 96)):
        inputs = torch.randn(shape, dtype=dtype)
        with torch.inference_mode():
            found, expected = packed(inputs), plain(inputs)
        assert (found.shape, found.dtype) == (expected.shape, dtype)
        torch.testing.assert_close(found, expected, atol=1e-2 if dtype == torch.bfloat16 else 1e-5, rtol=0)


@pytest.mark.skipif(few_rows(torch.bfloat16) is None, reason="this CPU has no matrix unit")
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 32), (160, 96), (3072, 576), (96, 48), (70, 64), (49152, 64)])
def test_a_product_of_few_rows_is_rounded_once(outputs: int, inputs: int, biased: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs, bias=biased).bfloat16()
    packed = PrepackedLinear(plain.weight, plain.bias)
    assert (packed._few_rows is None) == bool(outputs % 32 or inputs % 32)
    for rows in range(1, FEW_ROWS + 2):
        states = torch.randn(1, rows, inputs + 8).bfloat16()[..., 8:]  # which do not lie side by side
        with torch.inference_mode():
            exact = linear(states.double(), plain.weight.double(), plain.bias.double() if biased else None)
            found = packed(states)
        assert found.shape == exact.shape
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()
    with torch.inference_mode():
        assert packed(torch.empty(0, inputs, dtype=torch.bfloat16)).shape == (0, outputs)
        assert packed(torch.full((1, inputs), torch.nan, dtype=torch.bfloat16)).isnan().all()


@_needs(torch.bfloat16 in HERE.prepacked)
def test_a_weight_in_a_layout_that_we_do_not_know_is_left_to_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(64, 64).bfloat16()
    packed = pack(weight)
    assert pairs_of(packed, weight.flip(0)) is None  # as if it lay in another order
    assert pairs_of(packed, weight[:32]) is None
    monkeypatch.setattr(torch.ops.mkldnn, "data_ptr", _refuse)
    assert pairs_of(packed, weight) is None


@pytest.mark.parametrize("dtype", PREPACKED_DTYPES)
@pytest.mark.parametrize("biased", [True, False])
def test_gradients_reach_what_is_before_the_product(dtype: torch.dtype, biased: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 80, bias=biased).to(dtype).requires_grad_(requires_grad=False)
    packed = PrepackedLinear(plain.weight, plain.bias)
    start, towards = torch.randn(2, 5, 48, dtype=dtype), torch.randn(2, 5, 80, dtype=dtype)
    gradients = []
    for module in (plain, packed):
        inputs = start.clone().requires_grad_()
        (module(inputs) * towards).sum().backward()
        gradients.append(inputs.grad)
    assert gradients[0] is not None
    assert gradients[0].abs().max() > 1
    torch.testing.assert_close(gradients[1], gradients[0], atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)


@pytest.mark.parametrize("fused", [pytest.param(True, marks=_needs(HERE.int8_products)), False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 8, 9])
def test_int8_weights_are_within_half_a_step_of_the_plain_ones(dtype: torch.dtype, fused: bool, rows: int) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(96, 160).to(dtype)
    int8 = Int8Linear(plain.weight, plain.bias, fused=fused)
    inputs = torch.randn(rows, 96, dtype=dtype)
    with torch.inference_mode():
        found, expected = int8(inputs), plain(inputs)
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    steps = plain.weight.float().abs().amax(dim=1) / 127
    bound = inputs.float().abs().sum(dim=1, keepdim=True) * steps / 2 + (0.02 if dtype == torch.bfloat16 else 1e-4)
    assert ((found - expected).float().abs() <= bound).all()


@_needs(HERE.prepacked >= {torch.bfloat16, torch.float32})
def test_only_products_that_are_faster_so_are_changed(tiny_models: TinyModels) -> None:
    folder = tiny_models.folder("llava")
    assert not _count(load_backbone(folder, device="cpu", dtype="float32"), PrepackedLinear)
    packed = load_backbone(folder, device="cpu", dtype="bfloat16")
    assert _count(packed, PrepackedLinear) == 4 * packed.info.num_layers + 1
    int8 = load_backbone(folder, device="cpu", dtype="bfloat16", int8=True)
    assert (_count(int8, PrepackedLinear), _count(int8, Int8Linear)) == (1, 4 * packed.info.num_layers)
    assert packed.info == int8.info
    assert packed.info.parameters > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("int8", [True, False])
def test_a_cpu_that_has_only_plain_products_answers_the_same(
    tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, int8: bool
) -> None:
    monkeypatch.setattr(prepacked, "SMALL_FP32", 0)
    folder = tiny_models.folder("llava")
    here = load_backbone(folder, device="cpu", dtype=dtype, int8=int8)
    plain = load_backbone(folder, device="cpu", dtype=dtype, int8=int8, cpu=PLAIN)
    assert not _count(plain, PrepackedLinear)
    assert _count(plain, Int8Linear) == (4 * plain.info.num_layers if int8 else 0)
    tokens = ordinary_tokens(here, STEPS, seed=1)
    for name in CHATS:
        expected = forced(here, prompt_of(here, name), tokens).float()
        difference = forced(plain, prompt_of(plain, name), tokens).float() - expected
        assert difference.norm() <= (5e-2 if dtype == torch.bfloat16 else 1e-5) * expected.norm()


@_needs(torch.float32 in HERE.prepacked)
def test_every_family_answers_as_with_plain_weights(
    backbone: Backbone, family: str, tiny_models: TinyModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepacked, "SMALL_FP32", 0)
    packed = load_backbone(tiny_models.folder(family), device="cpu", dtype="float32", keep_prefixes=False)
    assert _count(packed, PrepackedLinear) > 4 * packed.info.num_layers / 2
    tokens = ordinary_tokens(backbone, STEPS, seed=1)
    for name in CHATS:
        assert greedy(packed, prompt_of(packed, name), STEPS) == greedy(backbone, prompt_of(backbone, name), STEPS)
        torch.testing.assert_close(
            forced(packed, prompt_of(packed, name), tokens),
            forced(backbone, prompt_of(backbone, name), tokens),
            atol=1e-4,
            rtol=0,
        )


def test_a_family_in_bf16_answers(family: str, tiny_models: TinyModels) -> None:
    backbone = load_backbone(tiny_models.folder(family), device="cpu", dtype="bfloat16")
    assert (_count(backbone, PrepackedLinear) > backbone.info.num_layers) == (torch.bfloat16 in HERE.prepacked)
    for name in CHATS:
        assert torch.isfinite(forced(backbone, prompt_of(backbone, name), [5, 6])).all()


def _refuse(_: torch.Tensor) -> int:
    raise RuntimeError("no such operator")


def _count(backbone: Backbone, kind: type[nn.Module]) -> int:
    modules = [*backbone._decoder.modules(), backbone._head]
    return sum(isinstance(module, kind) for module in modules)
