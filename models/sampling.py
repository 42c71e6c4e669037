"""From logits to the next token of each row, in one batched pass.

The order is that of `transformers`: repetition penalty, then OpenAI's frequency and presence penalties and logit bias,
grammar, temperature, top-k, top-p, min-p. One uniform number per token is drawn from the row's own generator on the
CPU, so a row's tokens depend on its seed and its logits, and neither on its neighbours nor on the device.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.row_sampler import RowSampler, SamplingParams


class Logprobs(NamedTuple):
    """Natural logarithms of probabilities under the distribution that a token was drawn from.

    A greedy row's is the one before the likeliest is taken. Tokens of probability 0 are not among the likeliest.
    """

    token: float
    top: Sequence[tuple[int, float]]  # the likeliest tokens, likeliest first


class Sample(NamedTuple):
    """What one step chose."""

    tokens: list[int]
    logprobs: Mapping[int, Logprobs]  # of the rows that ask, by row


def sample(logits: Tensor, samplers: Sequence[RowSampler]) -> Sample:
    """The next token of each row: `[B, V]` -> B ids. `logits` is left as it is."""
    assert len(logits) == len(samplers), f"{len(logits)} rows of logits, {len(samplers)} samplers"
    if not samplers:
        return Sample([], {})
    masks = [None if sampler.grammar is None else sampler.grammar.allowed() for sampler in samplers]
    logits = constrained(_penalised(logits, samplers), masks)
    drawn = [row for row, sampler in enumerate(samplers) if not sampler.params.greedy]
    tokens = logits.max(-1).indices  # the first of equals, like argmax, which takes a CPU twice as long
    probabilities: Tensor | None = None
    if drawn:
        drawing = [samplers[row] for row in drawn]
        rows = logits if len(drawn) == len(samplers) else logits[drawn]
        probabilities = _distribution(rows, [each.params for each in drawing])
        tokens[torch.tensor(drawn, device=logits.device)] = _draw(probabilities, drawing)
    ids = [int(token) for token in tokens.tolist()]
    asking = [row for row, sampler in enumerate(samplers) if sampler.params.logprobs is not None]
    if not asking:
        return Sample(ids, {})
    places = {row: place for place, row in enumerate(drawn)}
    distributions = [
        probabilities[places[row]] if probabilities is not None and row in places else logits[row].float().softmax(-1)
        for row in asking
    ]
    counts = [samplers[row].params.logprobs or 0 for row in asking]
    found = _logprobs(torch.stack(distributions), [ids[row] for row in asking], counts)
    return Sample(ids, dict(zip(asking, found, strict=True)))


def logprobs_of(logits: Tensor, tokens: Sequence[int], count: int) -> list[Logprobs]:
    """Of each row `[V]` of logits the log-probability of its token, and its `count` likeliest tokens."""
    return _told(logits.float().log_softmax(-1), tokens, [count] * len(tokens))


def _logprobs(probabilities: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[Logprobs]:
    """Of each row `[V]` of probabilities, up to a factor: its token's, and its `count` likeliest tokens."""
    return _told(probabilities.log() - probabilities.sum(-1, keepdim=True).log(), tokens, counts)


def _told(logs: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[Logprobs]:
    own = logs.gather(-1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
    values, places = logs.topk(min(max(counts), logs.shape[-1]), dim=-1)
    tops = [
        [(token, log) for token, log in zip(ids[:count], row[:count], strict=True) if log > float("-inf")]
        for ids, row, count in zip(places.tolist(), values.tolist(), counts, strict=True)
    ]
    return [Logprobs(log, top) for log, top in zip(own, tops, strict=True)]


def constrained(logits: Tensor, masks: Sequence[bytes | None]) -> Tensor:
    """Leave only tokens that the rows' masks allow. Returns `logits` itself where no row has one.

    A mask has a bit for each token of the vocabulary, the lowest first; None allows all.
    """
    rows = [row for row, mask in enumerate(masks) if mask is not None]
    if not rows:
        return logits
    packed = b"".join(mask for mask in masks if mask is not None)
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little").reshape(len(rows), -1)
    allowed = torch.from_numpy(bits[:, : logits.shape[-1]]).bool().to(logits.device)
    places = torch.tensor(rows, device=logits.device)
    return logits.index_copy(0, places, logits[places].masked_fill(~allowed, float("-inf")))


def _penalised(logits: Tensor, samplers: Sequence[RowSampler]) -> Tensor:
    """Penalties and biases, for all rows in one scatter each. Returns `logits` itself where no row has any."""
    repeated, shifted = _Entries(), _Entries()
    for row, sampler in enumerate(samplers):
        params = sampler.params
        if sampler.lacking:
            shifted.add(row, sampler.ends, [float("-inf")] * len(sampler.ends))
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


def _distribution(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities `[B, V]` to draw from, each row up to a factor: min-p leaves less than 1."""
    device = logits.device
    logits = logits.float() / _column([each.temperature for each in params], device)
    if any(each.filters for each in params):
        logits = _filtered(logits, params)
    probabilities = logits.softmax(-1)
    if any(each.min_p > 0.0 for each in params):
        floor = probabilities.amax(-1, keepdim=True) * _column([each.min_p for each in params], device)
        probabilities = probabilities.masked_fill(probabilities < floor, 0.0)
    return probabilities


def _draw(probabilities: Tensor, samplers: Sequence[RowSampler]) -> Tensor:
    """One token per row by inverse transform: the first whose cumulated probability passes the row's number."""
    device = probabilities.device
    # float64, where the device has it: over a large vocabulary float32 loses the small probabilities in the sum.
    wide = torch.float32 if device.type == "mps" else torch.float64
    cumulated = probabilities.cumsum(-1, dtype=wide)
    numbers = torch.tensor([[min(sampler.draw(), 1.0 - 1e-6)] for sampler in samplers], dtype=wide, device=device)
    chosen = torch.searchsorted(cumulated, numbers * cumulated[:, -1:], right=True)
    return chosen[:, 0].clamp(max=probabilities.shape[-1] - 1)


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
