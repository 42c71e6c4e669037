"""From logits to the next token of each row. Per-row parameters and state; one batched pass.

The order is that of `transformers`: repetition penalty, then OpenAI's frequency and presence penalties and logit bias,
temperature, top-k, top-p, min-p. One uniform number per token is drawn from the row's own generator on the CPU, so a
row's tokens depend on its seed and its logits, and neither on its neighbours nor on the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingParams:
    """How one request's tokens are chosen. Temperature 0 is greedy. Raises ValueError where a value has no meaning."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0  # over prompt and output
    frequency_penalty: float = 0.0  # over the output only
    presence_penalty: float = 0.0  # over the output only
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    GREEDY: ClassVar[SamplingParams]

    def __post_init__(self) -> None:
        checks = {
            "temperature": 0.0 <= self.temperature < float("inf"),
            "top_p": 0.0 < self.top_p <= 1.0,
            "top_k": self.top_k >= 0,
            "min_p": 0.0 <= self.min_p <= 1.0,
            "repetition_penalty": 0.0 < self.repetition_penalty < float("inf"),
        }
        for name, passed in checks.items():
            if not passed:
                raise ValueError(f"{name} must not be {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        """The most likely token is taken."""
        return self.temperature == 0.0

    @property
    def plain(self) -> bool:
        """The logits are used as they are."""
        return (
            self.repetition_penalty == 1.0
            and self.frequency_penalty == 0.0
            and self.presence_penalty == 0.0
            and not self.logit_bias
        )

    @property
    def filters(self) -> bool:
        """Some tokens are cut off by rank or by mass, which needs the vocabulary sorted."""
        return self.top_k > 0 or self.top_p < 1.0

    def of_choice(self, number: int) -> SamplingParams:
        """Those of one of several answers to a prompt: the first has the seed itself, each other one its own."""
        if number == 0 or self.seed is None:
            return self
        digest = hashlib.blake2b(f"{self.seed}:{number}".encode(), digest_size=8).digest()
        return replace(self, seed=int.from_bytes(digest, signed=True))


SamplingParams.GREEDY = SamplingParams(temperature=0.0)


class RowSampler:
    """One row's sampling state (generator, counts of its output tokens); lives on the Request."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self.params = params
        self.counts: dict[int, int] = {}
        self.seen: set[int] = set(prompt_ids) if params.repetition_penalty != 1.0 else set()
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def observe(self, token: int) -> None:
        """Count a token that was put out."""
        if self.params.plain:
            return
        self.counts[token] = self.counts.get(token, 0) + 1
        if self.params.repetition_penalty != 1.0:
            self.seen.add(token)

    def draw(self) -> float:
        """The row's next uniform number, in [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


def sample(logits: Tensor, samplers: Sequence[RowSampler]) -> list[int]:
    """The next token of each row: `[B, V]` -> B ids. `logits` is left as it is."""
    assert len(logits) == len(samplers), f"{len(logits)} rows of logits, {len(samplers)} samplers"
    if not samplers:
        return []
    logits = _penalised(logits, samplers)
    drawn = [row for row, sampler in enumerate(samplers) if not sampler.params.greedy]
    if not drawn:
        return [int(token) for token in logits.argmax(-1).tolist()]
    tokens = logits.argmax(-1)
    chosen = _draw(logits if len(drawn) == len(samplers) else logits[drawn], [samplers[row] for row in drawn])
    tokens[torch.tensor(drawn, device=logits.device)] = chosen
    return [int(token) for token in tokens.tolist()]


def _penalised(logits: Tensor, samplers: Sequence[RowSampler]) -> Tensor:
    """Penalties and biases, for all rows in one scatter each. Returns `logits` itself where no row has any."""
    repeated, shifted = _Entries(), _Entries()
    for row, sampler in enumerate(samplers):
        params = sampler.params
        if params.plain:
            continue
        repeated.add(row, sampler.seen, [params.repetition_penalty] * len(sampler.seen))
        if params.frequency_penalty or params.presence_penalty:
            losses = [-(n * params.frequency_penalty + params.presence_penalty) for n in sampler.counts.values()]
            shifted.add(row, sampler.counts, losses)
        shifted.add(row, params.logit_bias, list(params.logit_bias.values()))
    if not repeated.rows and not shifted.rows:
        return logits
    logits = logits.float().clone()
    if repeated.rows:
        place, factors = repeated.tensors(logits)
        scores = logits[place]
        logits[place] = torch.where(scores < 0, scores * factors, scores / factors)
    if shifted.rows:
        place, amounts = shifted.tensors(logits)
        logits.index_put_(place, amounts, accumulate=True)
    return logits


class _Entries:
    """Amounts at (row, token) places of the logits, collected over the rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.tokens: list[int] = []
        self.amounts: list[float] = []

    def add(self, row: int, tokens: Collection[int], amounts: Sequence[float]) -> None:
        self.rows += [row] * len(tokens)
        self.tokens += tokens
        self.amounts += amounts

    def tensors(self, logits: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Places and amounts on the device of the logits. A token that the vocabulary lacks gets nothing."""
        tokens = torch.tensor(self.tokens)
        known = (tokens >= 0) & (tokens < logits.shape[-1])
        rows = torch.tensor(self.rows)[known].to(logits.device)
        amounts = torch.tensor(self.amounts, dtype=logits.dtype)[known].to(logits.device)
        return (rows, tokens[known].to(logits.device)), amounts


def _draw(logits: Tensor, samplers: Sequence[RowSampler]) -> Tensor:
    """One token per row by inverse transform: the first whose cumulated probability passes the row's number."""
    params = [sampler.params for sampler in samplers]
    device = logits.device
    logits = logits.float() / _column([each.temperature for each in params], device)
    if any(each.filters for each in params):
        logits = _filtered(logits, params)
    probabilities = logits.softmax(-1)
    if any(each.min_p > 0.0 for each in params):
        floor = probabilities.amax(-1, keepdim=True) * _column([each.min_p for each in params], device)
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    # float64, where the device has it: over a large vocabulary float32 loses the small probabilities in the sum.
    wide = torch.float32 if device.type == "mps" else torch.float64
    cumulated = probabilities.cumsum(-1, dtype=wide)
    numbers = torch.tensor([[min(sampler.draw(), 1.0 - 1e-6)] for sampler in samplers], dtype=wide, device=device)
    chosen = torch.searchsorted(cumulated, numbers * cumulated[:, -1:], right=True)
    return chosen[:, 0].clamp(max=logits.shape[-1] - 1)


def _filtered(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Top-k, then top-p of what is left, with one sort for all rows."""
    device, vocabulary = logits.device, logits.shape[-1]
    ordered, places = logits.sort(dim=-1, descending=True)
    ranks = torch.tensor([[min(each.top_k or vocabulary, vocabulary) - 1] for each in params], device=device)
    # By score, not by rank: tokens that tie with the last one stay, as in transformers.
    ordered = ordered.masked_fill(ordered < ordered.gather(-1, ranks), float("-inf"))
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    tail = before >= _column([each.top_p for each in params], device)
    tail &= _column([each.top_p for each in params], device) < 1.0
    tail[:, 0] = False
    ordered = ordered.masked_fill(tail, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, places, ordered)


def _column(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device, dtype=torch.float32)[:, None]
