"""Kernels on a CPU against plain torch, and a backbone with them against one without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from models import operations
from models.attention import rotated
from models.backbone import Backbone
from models.cache import CacheShape, PagedCache
from models.chunks import Chunks
from tests.models.test_backbone import ordinary_tokens, prompt_of
from tests.tiny import TinyModels

native = pytest.importorskip("models.native", reason="the package was installed without a C compiler")

DTYPES = [torch.float32, torch.bfloat16]
SIZE = 64  # tokens of a block


def near(found: Tensor, exact: Tensor) -> None:
    """As near to what is exact as sums in fp32 and one rounding to the dtype leave it."""
    torch.testing.assert_close(found.double(), exact, atol=2e-6, rtol=torch.finfo(found.dtype).eps)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where there was no compiler."""
    monkeypatch.setattr(native, "DTYPES", frozenset())
    operations.kernels.cache_clear()
    yield
    operations.kernels.cache_clear()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "ends", "window"),
    [
        (8, 4, 64, [330, 1, 64, 65], 2**30),
        (4, 4, 64, [70], 2**30),
        (14, 2, 64, [5, 129], 2**30),
        (12, 4, 96, [100, 200], 50),
        (16, 4, 128, [200, 63], 64),
        (4, 1, 16, [77, 1], 1),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_attention_sees_each_row_s_own_tokens_alone(
    dtype: torch.dtype, heads: int, kv_heads: int, width: int, ends: list[int], window: int, threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(native, "_threads", lambda _: threads)
    torch.manual_seed(0)
    needed = [-(-end // SIZE) for end in ends]
    order = (torch.randperm(sum(needed)) + 1).tolist()
    tables = [[order.pop() for _ in range(count)] for count in needed]
    keys, values = torch.full((2, sum(needed) + 1, kv_heads, SIZE, width), torch.nan).to(dtype)
    query = torch.randn(len(ends), heads + 2, width).to(dtype)[:, :heads]  # as part of something wider
    expected = []
    for row, (table, end) in enumerate(zip(tables, ends, strict=True)):
        own = torch.randn(2, kv_heads, end, width).to(dtype)
        for stored, states in zip((keys, values), own, strict=True):
            for at in range(end):
                stored[table[at // SIZE], :, at % SIZE] = states[:, at]
        key, value = own[:, None, :, max(0, end - window) :].double().repeat_interleave(heads // kv_heads, 2)
        expected.append(scaled_dot_product_attention(query[row, :, None].double(), key, value, scale=0.3)[0, :, 0])
    padded = torch.tensor([[*each, *[0] * (max(needed) - len(each))] for each in tables], dtype=torch.int32)
    found = native.attend(query, keys, values, padded, torch.tensor(ends, dtype=torch.int32), 0.3, window)
    near(found, torch.stack(expected))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "spans", "window"),
    [
        (8, 4, 64, [(0, 317), (300, 1), (130, 70)], 2**30),
        (14, 2, 64, [(63, 1), (64, 65), (0, 1)], 2**30),
        (4, 4, 32, [(100, 90)], 2**30),
        (6, 2, 96, [(10, 300), (200, 1)], 50),
        (16, 4, 128, [(0, 130), (129, 1)], 64),
        (12, 1, 64, [(70, 30)], 1),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_attention_of_chunks_sees_what_stands_before_each_token(
    heads: int, kv_heads: int, width: int, spans: list[tuple[int, int]], window: int, threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if not native.in_tiles(torch.bfloat16, width, heads // kv_heads):
        pytest.skip("a CPU with a matrix unit is needed")
    monkeypatch.setattr(native, "_threads", lambda _: threads)
    torch.manual_seed(0)
    cache = PagedCache(
        CacheShape(1, kv_heads, width, torch.bfloat16, torch.device("cpu"), heads // kv_heads), 40, keep=False
    )
    keys, values = cache.layers[0]
    keys.fill_(torch.nan), values.fill_(torch.nan)
    starts, counts = zip(*spans, strict=True)
    ends = [start + count for start, count in spans]
    tables = [cache.open([], 0) for _ in spans]
    expected, asked = [], torch.randn(sum(counts) + 2, heads + 2, width).to(torch.bfloat16)[:, :heads]
    at = 2  # after two tokens of other rows
    for table, start, end in zip(tables, starts, ends, strict=True):
        cache.reserve(table, end)
        own = torch.randn(2, kv_heads, end, width).to(torch.bfloat16)
        for stored, states in zip((keys, values), own, strict=True):
            for place, slot in enumerate(cache.slots(table, 0, end)):
                stored[slot // SIZE, :, slot % SIZE] = states[:, place]
        key, value = own.double().repeat_interleave(heads // kv_heads, 1)
        places = torch.arange(end)
        seen = (places <= places[start:, None]) & (places > places[start:, None] - window)
        query = asked[at : at + end - start].transpose(0, 1).double()
        expected.append(scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=0.3).transpose(0, 1))
        at += end - start
    found = Chunks(native, cache, tables, ends, counts, 2).attend(
        asked.transpose(0, 1)[None], keys, values, 0.3, window
    )
    # Weights are rounded to bf16 before they are summed, as torch's own attention does.
    torch.testing.assert_close(found[2:].double(), torch.cat(expected), atol=1e-2, rtol=torch.finfo(torch.bfloat16).eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prompt_that_begins_alike_gets_blocks_as_they_are_and_a_row_that_ends_leaves_its_own(
    dtype: torch.dtype,
) -> None:
    cache = PagedCache(CacheShape(1, 2, 32, dtype, torch.device("cpu")), 9, keep=True)
    keys = [b"first", b"second", b"third"]
    row = cache.open(keys, 0)
    cache.reserve(row, 3 * SIZE)
    cache.pool.name(row, 3)
    blocks = [*row.blocks]
    cache.close(row)
    assert [cache.open(keys, 3).blocks for _ in range(2)] == [blocks, blocks]
    assert not cache.compact()


def test_what_is_no_number_stays_in_its_row() -> None:
    keys, values = torch.randn(2, 3, 1, SIZE, 16)
    keys[1, 0, 3] = torch.nan
    table, ends = torch.tensor([[1], [2]], dtype=torch.int32), torch.tensor([9, 9], dtype=torch.int32)
    found = native.attend(torch.randn(2, 2, 16), keys, values, table, ends, 1.0, 2**30)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotation_and_what_it_stores(dtype: torch.dtype) -> None:
    heads, kv_heads, width, count = 6, 2, 24, 5
    states = torch.randn(1, count, heads + 2 * kv_heads, width).to(dtype)
    cos, sin = torch.randn(2, 1, count, 1, width).to(dtype)
    query, key, value = rotated(states.double(), cos.double(), sin.double(), heads, kv_heads)
    keys, values = torch.zeros(2, 40, width).to(dtype)
    slots = torch.randperm(40)[: count * kv_heads]
    native.rotate(states[0], cos[0, :, 0], sin[0, :, 0], slots, keys, values)
    near(states[0, :, :heads].transpose(0, 1), query[0])
    near(keys[slots].view(count, kv_heads, width).transpose(0, 1), key[0])
    assert torch.equal(values[slots].view(count, kv_heads, width).transpose(0, 1).double(), value[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [16, 100, 576])
def test_norm(dtype: torch.dtype, width: int) -> None:
    hidden, weight = (3 * torch.randn(2, 3, width)).to(dtype), torch.randn(width).to(dtype)
    near(native.rms_norm(hidden, weight, 1e-5), rms_norm(hidden.double(), (width,), weight.double(), 1e-5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_states_times_weights(dtype: torch.dtype, rows: int) -> None:
    states, weight, bias = torch.randn(rows, 3, 100).to(dtype), torch.randn(1, 300), torch.randn(())
    found = operations.weigher("cpu", dtype)(states, weight, bias)
    assert operations.weigher("cpu", dtype) is native.weigh
    assert found.shape == (rows, 1)
    exact = states.double().flatten(1) @ weight.double().T + bias
    torch.testing.assert_close(found.double(), exact, atol=5e-5, rtol=0)
    torch.testing.assert_close(operations.weigh(states, weight, bias).double(), exact, atol=5e-5, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(dtype: torch.dtype) -> None:
    joined = torch.cat([torch.linspace(-100, 100, 999), torch.randn(999)]).view(1, -1).to(dtype)
    near(native.gated_silu(joined), silu(joined[:, :999].double()) * joined[:, 999:].double())


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_keeps_what_is_no_number(dtype: torch.dtype) -> None:
    joined = torch.tensor([[torch.nan, torch.inf, 1.0, 1.0, 1.0, torch.nan]], dtype=dtype)
    assert native.gated_silu(joined).tolist() == [pytest.approx([torch.nan, torch.inf, torch.nan], nan_ok=True)]


@pytest.mark.parametrize("family", ["llava_onevision", "gemma3", "llama"])
def test_a_backbone_computes_the_same_without_kernels(family: str, tiny_models: TinyModels, plain: None) -> None:
    backbone = tiny_models.backbone(family)
    names = ["text", "turns", "system"]
    tokens = [ordinary_tokens(backbone, 12, seed) for seed in range(3)]
    found = [step_by_step(backbone, names, tokens)]
    operations.kernels.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "DTYPES", frozenset(DTYPES))
        assert operations.kernels("cpu", torch.float32) is native
        found.append(step_by_step(backbone, names, tokens))
    operations.kernels.cache_clear()
    torch.testing.assert_close(*found, atol=1e-4, rtol=0)
    assert not torch.equal(*found), "both took the same way"


def step_by_step(backbone: Backbone, names: list[str], tokens: list[list[int]]) -> Tensor:
    """Logits of the last step of rows of different lengths that decode side by side, then of one that goes on alone."""
    backbone.forget_prompts()
    rows = [backbone.open_row(prompt_of(backbone, name, seed), 20) for seed, name in enumerate(names)]
    backbone.prefill(rows)
    for ids in zip(*tokens, strict=True):
        hidden = backbone.decode(rows, torch.tensor(ids))
    for row in rows[1:]:
        backbone.close_row(row)
    last = backbone.decode(rows[:1], torch.tensor([tokens[0][0]]))
    backbone.close_row(rows[0])
    return backbone.logits(torch.cat([hidden, last]))
