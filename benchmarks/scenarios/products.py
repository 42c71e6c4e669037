"""A CPU's single operations, in the small model's sizes: why weights, blocks and int8 are as they are."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from benchmarks.bench import Bench
from benchmarks.checkpoints import SMALL, serving_dtype
from benchmarks.estimate import Estimate
from benchmarks.report import Goal, Report
from models.cache import BLOCK, CacheShape, PagedCache, Table
from models.cpu import cpu_capabilities
from models.decode import Decode, DenseDecode, make_decode
from models.prepacked import PrepackedLinear
from models.quantize import Int8Linear

ROWS = (1, 16, 256)
WEIGHTS = 24  # taken in turn: together they are larger than the processor's caches, as a model's are
LENGTH = 300  # tokens of a row
WARM_UP = 8

Operation = Callable[[], object]


@torch.inference_mode()
def run(bench: Bench) -> Report:
    """Each operation beside torch's own, by turns."""
    report = Report("products", "single operations of a CPU", ("operation", "torch's", "time", "ours", "time"))
    torch.manual_seed(0)
    cases = [*_linears(), *_attentions()]
    for what, (name, theirs), (own, ours) in bench.each(cases, "products"):
        times = _times([theirs, ours], 20 * bench.effort.rounds)
        report.rows.append((what, name, _us(times[0]), own, _us(times[1])))
        report.goals.append(Goal(f"{what}: {own} / {name}", Estimate.of_ratios(times[1], times[0])))
    return report


Case = tuple[str, tuple[str, Operation], tuple[str, Operation]]


def _linears() -> list[Case]:
    """Gate and up of a layer."""
    dtype: torch.dtype = getattr(torch, serving_dtype())
    wide, deep = 2 * SMALL.intermediate, SMALL.hidden
    weights = [torch.randn(wide, deep, dtype=dtype) for _ in range(WEIGHTS)]
    cpu = cpu_capabilities()
    packed = [PrepackedLinear(weight, None) for weight in weights] if dtype in cpu.prepacked else []
    int8 = [Int8Linear(weight, None, fused=cpu.int8_products) for weight in weights]
    cases: list[Case] = []
    for rows in ROWS:
        states = torch.randn(rows, deep, dtype=dtype)
        what = f"{rows} x {deep} by {deep} x {wide}"
        ours = "plain weight", _in_turn([_plain(weight) for weight in weights], states)
        if packed:
            plain, ours = ours, ("prepacked", _in_turn(packed, states))
            cases.append((what, plain, ours))
        cases.append((what, ours, ("int8", _in_turn(int8, states))))
    return cases


def _plain(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda states: linear(states, weight)


def _in_turn(modules: Sequence[nn.Module | Callable[[Tensor], Tensor]], states: Tensor) -> Operation:
    each = itertools.cycle(modules)
    return lambda: next(each)(states)


def _attentions() -> list[Case]:
    """One layer's attention of decoding rows."""
    heads, kv_heads, width = SMALL.heads, SMALL.kv_heads, SMALL.head_size
    shape = CacheShape(SMALL.layers, kv_heads, width, getattr(torch, serving_dtype()), torch.device("cpu"))
    cases: list[Case] = []
    for rows in ROWS[:2]:
        cache = PagedCache(shape, rows * -(-LENGTH // BLOCK) + 8, keep=False)
        tables = []
        for _ in range(rows):
            tables.append(cache.open([], 0))
            cache.reserve(tables[-1], LENGTH)
        query = torch.randn(1, heads, rows, width, dtype=shape.dtype)
        mask = torch.zeros(rows, 1, 1, LENGTH, dtype=shape.dtype)
        what = f"attention of {rows} rows of {LENGTH} tokens"
        theirs = "gathered, with a mask", _gathered(cache, tables, query, mask)
        served = "as served", _decode(cache, make_decode(cache, tables, [LENGTH] * rows), query)
        cases.append((what, theirs, served))
        if rows == 1:
            dense = _decode(cache, DenseDecode(cache, tables, [LENGTH]), query)
            cases.append((what, ("two products over all blocks", dense), served))
    return cases


def _decode(cache: PagedCache, decode: Decode, query: Tensor) -> Operation:
    layers = itertools.cycle(cache.layers)
    return lambda: decode.attend(query, *next(layers), 0.125, None)


def _gathered(cache: PagedCache, tables: Sequence[Table], query: Tensor, mask: Tensor) -> Operation:
    """What torch offers for rows of a paged cache: bring them together, and one call with a mask."""
    layers = itertools.cycle(range(cache.shape.layers))
    asking = query[0].transpose(0, 1)[:, :, None]

    def attend() -> Tensor:
        layer = next(layers)
        rows = [cache.row(layer, table, LENGTH) for table in tables]
        keys, values = (torch.stack(each) for each in zip(*rows, strict=True))
        return scaled_dot_product_attention(asking, keys, values, attn_mask=mask, scale=0.125, enable_gqa=True)

    return attend


def _times(operations: Sequence[Operation], count: int) -> list[list[float]]:
    """Seconds of each operation, by turns."""
    times: list[list[float]] = [[] for _ in operations]
    for number in range(count + WARM_UP):
        for found, operation in zip(times, operations, strict=True):
            begun = perf_counter()
            operation()
            if number >= WARM_UP:
                found.append(perf_counter() - begun)
    return times


def _us(times: Sequence[float]) -> str:
    return f"{median(times) * 1e6:.0f} µs"
