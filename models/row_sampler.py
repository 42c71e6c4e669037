"""One row's sampling: its parameters, and the state that goes with its answer."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Protocol

import torch

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
        """Parameters of one of several answers to a prompt: the first has the seed itself, each other one its own."""
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
