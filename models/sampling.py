"""From logits to the next token of each row. Per-row parameters and state; one batched pass.

The order is that of `transformers`: repetition penalty, then OpenAI's frequency and presence penalties and logit bias,
grammar, temperature, top-k, top-p, min-p. One uniform number per token is drawn from the row's own generator on the
CPU, so a row's tokens depend on its seed and its logits, and neither on its neighbours nor on the device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

LEAST_TEMPERATURE = 1e-5


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
    logprobs: int | None = None  # report each token's log-probability, and those of so many of the likeliest tokens
    min_tokens: int = 0  # so many come before one that ends the answer

    GREEDY: ClassVar[SamplingParams]

    def __post_init__(self) -> None:
        checks = {
            "temperature": 0.0 <= self.temperature < float("inf"),
            "top_p": 0.0 <= self.top_p <= 1.0,  # 0: the likeliest
            "top_k": self.top_k >= 0,
            "min_p": 0.0 <= self.min_p <= 1.0,
            "repetition_penalty": 0.0 < self.repetition_penalty < float("inf"),
        }
        for name, passed in checks.items():
            if not passed:
                raise ValueError(f"{name} must not be {getattr(self, name)}")

    @property
    def greedy(self) -> bool:
        """The most likely token is taken. Logits over a temperature far below this are not finite."""
        return self.temperature < LEAST_TEMPERATURE

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


class Grammar(Protocol):
    """What a row's text has to follow, and how far it has come."""

    def allowed(self) -> bytes:
        """The tokens that may come next, a bit for each of the vocabulary, the lowest first. Never none."""

    def accept(self, token: int) -> None:
        """Go on by a token. Raises GrammarError."""

    def finish(self) -> None:
        """End here. Raises GrammarError if the text is not complete."""


class GrammarError(RuntimeError):
    """A grammar cannot be followed any further."""


class RowSampler:
    """One row's sampling state (generator, counts of its output tokens, grammar); lives on the Request.

    `ends`: the tokens that end an answer.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        grammar: Grammar | None = None,
        ends: Collection[int] = (),
    ) -> None:
        self.params = params
        self.ends = ends
        self.lacking = params.min_tokens  # tokens until one of `ends` may come
        self.grammar = grammar
        self.counts: dict[int, int] = {}
        self.seen: set[int] = set(prompt_ids) if params.repetition_penalty != 1.0 else set()
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    def steered(self) -> RowSampler:
        """The sampler of the same row once it is bent towards a refusal: greedy, and free to leave the grammar.

        Sampling parameters are the client's: a bias against the refusal's words would undo the guard.
        """
        return RowSampler(replace(SamplingParams.GREEDY, logprobs=self.params.logprobs), ())

    def observe(self, token: int) -> None:
        """Count a token that was put out. Raises GrammarError."""
        if self.grammar is not None:
            self.grammar.accept(token)
        if self.lacking:
            self.lacking -= 1
        if self.params.plain:
            return
        self.counts[token] = self.counts.get(token, 0) + 1
        if self.params.repetition_penalty != 1.0:
            self.seen.add(token)

    def finish(self) -> None:
        """The row ends with what it has put out. Raises GrammarError."""
        if self.grammar is not None:
            self.grammar.finish()

    def draw(self) -> float:
        """The row's next uniform number, in [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


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
    logits = _constrained(_penalised(logits, samplers), samplers)
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


def _logprobs(probabilities: Tensor, tokens: Sequence[int], counts: Sequence[int]) -> list[Logprobs]:
    """Of each row `[V]` of probabilities, up to a factor: its token's, and its `count` likeliest tokens."""
    logs = probabilities.log() - probabilities.sum(-1, keepdim=True).log()
    own = logs.gather(-1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
    values, places = logs.topk(min(max(counts), logs.shape[-1]), dim=-1)
    tops = [
        [(token, log) for token, log in zip(ids[:count], row[:count], strict=True) if log > float("-inf")]
        for ids, row, count in zip(places.tolist(), values.tolist(), counts, strict=True)
    ]
    return [Logprobs(log, top) for log, top in zip(own, tops, strict=True)]


def _constrained(logits: Tensor, samplers: Sequence[RowSampler]) -> Tensor:
    """Nothing but what the grammars of the rows that have one allow. Returns `logits` itself where no row has any."""
    rows = [row for row, sampler in enumerate(samplers) if sampler.grammar is not None]
    if not rows:
        return logits
    masks = b"".join(sampler.grammar.allowed() for sampler in samplers if sampler.grammar is not None)
    bits = np.unpackbits(np.frombuffer(masks, dtype=np.uint8), bitorder="little").reshape(len(rows), -1)
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
