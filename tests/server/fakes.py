"""A backbone and a guard small enough to reason about: the next token is a function of the row's own history."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from models.backbone import OutOfRows
from models.inputs import Prompt
from models.sampling import RowSampler, SamplingParams
from server.request import Request
from steering.policy import Mode, Policy

VOCAB = 50
EOS = 0
REFUSAL_TOKEN = 7


@dataclass(eq=False)
class FakeRow:
    prompt: Prompt
    history: list[int] = field(default_factory=list)
    open: bool = True


def next_token(history: Sequence[int]) -> int:
    """What the fake model says after a history: never EOS, and different for different histories."""
    return 1 + sum((i + 1) * token for i, token in enumerate(history)) % (VOCAB - 1)


class FakeBackbone:
    """Rows hold their token history; `hidden` [B, 2] is (next token, score read by the guard)."""

    def __init__(self, max_rows: int = 8) -> None:
        self.info = SimpleNamespace(eos_ids=frozenset({EOS}), vocab_size=VOCAB)
        self.max_rows = max_rows
        self.rows: list[FakeRow] = []
        self.poison: int | None = None  # a prompt or history holding this token makes its forward raise
        self.broken = False
        self.prefills: list[int] = []
        self.decodes: list[int] = []
        self._states: Tensor | None = None

    def open_row(self, prompt: Prompt, max_tokens: int) -> FakeRow:
        if len(self.rows) >= self.max_rows:
            raise OutOfRows(f"{self.max_rows} rows are open")
        self.rows.append(row := FakeRow(prompt))
        return row

    def close_row(self, row: FakeRow) -> None:
        if row.open:
            row.open = False
            self.rows.remove(row)

    def _forward(self, rows: Sequence[FakeRow]) -> Tensor:
        assert all(row.open for row in rows)
        if self.broken or any(self.poison in row.history for row in rows):
            raise RuntimeError("poisoned")
        return torch.tensor([[float(next_token(row.history)), row.history[0] / VOCAB] for row in rows])

    def prefill(self, rows: Sequence[FakeRow]) -> Tensor:
        self.prefills.append(len(rows))
        for row in rows:
            row.history = list(row.prompt.ids)
        self._states = self._forward(rows)
        return self._states

    def decode(self, rows: Sequence[FakeRow], ids: Tensor) -> Tensor:
        self.decodes.append(len(rows))
        before = [list(row.history) for row in rows]
        try:
            for row, token in zip(rows, ids.tolist(), strict=True):
                row.history.append(token)
            return self._forward(rows)
        except RuntimeError:
            for row, history in zip(rows, before, strict=True):
                row.history = history
            raise

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(hidden[:, 0].long(), VOCAB).float()

    @contextlib.contextmanager
    def tap(self, layer: int) -> Iterator[Any]:
        yield _LazyTap(self)


class _LazyTap:
    def __init__(self, backbone: FakeBackbone) -> None:
        self._backbone = backbone

    @property
    def states(self) -> Tensor:
        assert self._backbone._states is not None
        return self._backbone._states


class FakeGuard:
    """Reads the score from the state; steering makes the row say REFUSAL_TOKEN."""

    layer = tapped = 1

    def score(self, states: Tensor) -> Tensor:
        return states[:, 1]

    def steer(self, hidden: Tensor, eps: Tensor) -> Tensor:
        steered = hidden.clone()
        steered[eps != 0, 0] = REFUSAL_TOKEN
        return steered


def policy(mode: Mode = Mode.STEER, threshold: float = 0.5) -> Policy:
    return Policy(name="default", mode=mode, threshold=threshold, eps=1.0, refusal="I can't help with that.")


def request(name: str, ids: Sequence[int], *, max_tokens: int = 5, mode: Mode = Mode.STEER, **sampling: Any) -> Request:
    prompt = Prompt(ids=list(ids), features={}, image_tokens=0)
    params = SamplingParams(**{"temperature": 0.0, **sampling})
    return Request(name, prompt, RowSampler(params, prompt.ids), max_tokens, policy(mode))


def as_any(value: object) -> Any:
    return cast(Any, value)
