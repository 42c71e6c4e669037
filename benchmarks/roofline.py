"""The least time a step can take: the bytes it must read and the operations it must do, over what the machine can.

Bytes of a decode step: every weight of the decoder and the head once, and the keys and values of all rows. Operations:
two for each weight and token, and attention's. A step's time is the longer of the two. What the server does beside the
model (HTTP, pictures, sampling) is not counted.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter

import torch
import transformers

from benchmarks.checkpoints import Shape, serving_dtype

_BYTES = 2**28
_SIDE = 2048
_REPEATS = 20


@dataclass(frozen=True)
class Machine:
    """What the machine can, measured now; the best of several tries."""

    bandwidth: float  # bytes read per second
    rate: float  # operations per second of a matrix product in the served dtype

    @classmethod
    def measure(cls, device: str = "cpu") -> Machine:
        """Take a second or two to measure."""
        memory = torch.ones(_BYTES // 4, device=device)
        square = torch.randn(_SIDE, _SIDE, device=device).to(getattr(torch, serving_dtype()))
        return cls(
            bandwidth=_BYTES / _best(memory.sum, device),
            rate=2 * _SIDE**3 / _best(lambda: torch.nn.functional.linear(square, square), device),
        )

    def seconds(self, cost: Cost) -> float:
        """The least time that the cost can take."""
        return max(cost.bytes / self.bandwidth, cost.operations / self.rate)

    def __str__(self) -> str:
        return (
            f"{platform.machine()}, {torch.get_num_threads()} threads, read {self.bandwidth / 1e9:.1f} GB/s, "
            f"{serving_dtype()} product {self.rate / 1e9:.0f} GFLOP/s, torch {torch.__version__}, "
            f"transformers {transformers.__version__}, Python {platform.python_version()}"
        )


@cache
def machine() -> Machine:
    """The machine at hand, measured once per run."""
    return Machine.measure()


@dataclass(frozen=True)
class Cost:
    """What must be moved and computed."""

    bytes: float
    operations: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.bytes + other.bytes, self.operations + other.operations)


@dataclass(frozen=True)
class Costs:
    """Costs of one model's steps."""

    shape: Shape
    width: int = torch.finfo(getattr(torch, serving_dtype())).bits // 8  # bytes of a number

    @property
    def decoder_weights(self) -> int:
        """Numbers in the decoder's layers."""
        shape = self.shape
        attention = 2 * shape.hidden * (shape.hidden + shape.kv_heads * shape.head_size)
        return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)

    @property
    def head_weights(self) -> int:
        """Numbers in the head."""
        return self.shape.hidden * self.shape.vocabulary

    @property
    def cached(self) -> int:
        """Numbers kept for one token."""
        return 2 * self.shape.layers * self.shape.kv_heads * self.shape.head_size

    def decode(self, rows: int, length: float) -> Cost:
        """One token of each of `rows` rows of `length` tokens."""
        weights = self.decoder_weights + self.head_weights
        attention = 4 * self.shape.layers * self.shape.hidden * length
        return Cost(self.width * (weights + rows * length * self.cached), rows * (2 * weights + attention))

    def prefill(self, length: float, images: int = 0) -> Cost:
        """One prompt of `length` tokens, its `images` included."""
        shape = self.shape
        tower = images * (shape.image_tokens + 1) * 2 * shape.tower_layers * 8 * shape.tower**2
        attention = 2 * shape.layers * shape.hidden * length**2  # causal: half of all pairs
        operations = 2 * (self.decoder_weights * length + self.head_weights) + attention + tower
        return Cost(self.width * (self.decoder_weights + self.head_weights), operations)

    def answers(self, machine: Machine, rows: int, prompt: float, tokens: int, images: int = 0) -> float:
        """The least seconds for `rows` answers side by side: each prompt by itself, then the tokens together."""
        prefill = rows * machine.seconds(self.prefill(prompt, images))
        return prefill + (tokens - 1) * machine.seconds(self.decode(rows, prompt + tokens / 2))


def _best(work: Callable[[], object], device: str) -> float:
    def once() -> float:
        begun = perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        return perf_counter() - begun

    return min(once() for _ in range(_REPEATS))
