"""Every family on a CUDA device: the kernel over the paged cache, and captured steps, against the stock model.

Run: pytest -m gpu tests/models/test_gpu.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from models.backbone import Backbone
from models.cache import CacheShape, PagedCache
from models.decode import KernelDecode
from models.load import load_backbone
from tests.models.test_backbone import STEPS, greedy, prompt_of
from tests.reference import stock
from tests.tiny import CHATS, TinyModels, chats_of, pictures

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Products in full fp32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture(params=["float32", "bfloat16"])
def on_gpu(request: pytest.FixtureRequest, tiny_models: TinyModels, family: str) -> Backbone:
    return load_backbone(tiny_models.folder(family), device="cuda", dtype=request.param, max_rows=8)


def together(backbone: Backbone, steps: int) -> list[list[int]]:
    """Greedy answers to all chats in one batch, the last of which join later."""
    prompts = [prompt_of(backbone, name) for name in CHATS]
    rows = [backbone.open_row(prompt, steps) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in rows]
    first = len(rows) // 2
    states = dict(enumerate(backbone.prefill(rows[:first])))
    for step in range(steps):
        if step == 2:
            states |= {first + place: hidden for place, hidden in enumerate(backbone.prefill(rows[first:]))}
        going = [place for place in states if len(answers[place]) < steps]
        tokens = backbone.logits(torch.stack([states[place] for place in going])).argmax(-1)
        for place, token in zip(going, tokens.tolist(), strict=True):
            answers[place].append(token)
        found = backbone.decode([rows[place] for place in going], tokens.cpu())
        states |= dict(zip(going, found.clone(), strict=True))
    for row in rows:
        backbone.close_row(row)
    return answers


def test_greedy_answers_are_those_of_generate(on_gpu: Backbone, family: str, stock_models: Any) -> None:
    if on_gpu.info.dtype != torch.float32:
        pytest.skip("in bf16 two ways of rounding may disagree about the likeliest token")
    model = stock_models(family).to("cuda")
    try:
        for name, messages in chats_of(family).items():
            images = pictures(messages)
            data = stock.inputs(on_gpu.inputs._processor, messages, images)
            expected = stock.generate(model, {key: value.to("cuda") for key, value in data.items()}, STEPS)
            assert greedy(on_gpu, on_gpu.inputs.build(messages, images), STEPS) == expected, name
    finally:
        model.to("cpu")


def test_captured_steps_give_the_same_tokens(on_gpu: Backbone) -> None:
    plain = together(on_gpu, STEPS)
    on_gpu.forget()
    on_gpu.capture()
    assert together(on_gpu, STEPS) == plain
    assert on_gpu.cache_usage == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(28, 4, 128), (8, 8, 64), (4, 2, 8), (3, 1, 80)])
def test_the_kernel_against_a_plain_softmax(dtype: torch.dtype, heads: int, kv_heads: int, width: int) -> None:
    torch.manual_seed(0)
    device = torch.device("cuda")
    cache = PagedCache(CacheShape(1, kv_heads, width, dtype, device), 200, keep=False)
    keys, values = (stored.normal_() for stored in cache.layers[0])
    ends = [1, 64, 65, 500, 1000, 63, 700]
    tables = [cache.open([], 0) for _ in ends]
    for table, end in zip(tables, ends, strict=True):
        cache.reserve(table, end)
    query = torch.randn(1, heads, len(ends), width, device=device, dtype=dtype)
    for window in (None, 1, 70):
        decode = KernelDecode(cache, tables, ends)
        found = decode.attend(query, keys, values, width**-0.5, window)
        for row, (table, end) in enumerate(zip(tables, ends, strict=True)):
            key, value = (states.repeat_interleave(heads // kv_heads, 0) for states in cache.row(0, table, end))
            first = 0 if window is None else max(0, end - window)
            scores = torch.einsum("hd,htd->ht", query[0, :, row].double(), key[:, first:].double()) * width**-0.5
            expected = torch.einsum("ht,htd->hd", scores.softmax(-1), value[:, first:].double())
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(found[row].double(), expected, atol=tolerance, rtol=0)
