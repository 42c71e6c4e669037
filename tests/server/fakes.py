"""A backbone and a guard small enough to reason about: the next token is a function of the row's own history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from models.errors import OutOfRows
from models.layout import Layout
from models.prompt import Prompt
from models.row_sampler import RowSampler, SamplingParams
from models.vision import Encoded
from server.engine.own_request import OwnRequest
from server.request import Ask, Schema
from steering.answers import AnswerReader
from steering.policy import CategoryScore, Mode, Policy
from steering.token_scores import TokenScores

VOCAB = 50
EOS = 0
REFUSAL_TOKEN = 7
BEGUN = 49  # begins an answer in a prompt


@dataclass(eq=False)
class FakeRow:
    tokens: list[int]
    length: int = 0
    open: bool = True

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.length

    def append(self, token: int) -> None:
        self.tokens.append(token)


def next_token(history: Sequence[int]) -> int:
    """What the fake model says after a history: never EOS, and different for different histories."""
    return 1 + sum((i + 1) * token for i, token in enumerate(history)) % (VOCAB - 1)


def _layout(ids: Sequence[int]) -> Layout:
    """A prompt of one turn, within an answer to which it ends where `BEGUN` is in it."""
    return Layout(len(ids), [len(ids) - 1], [(0, len(ids))], has_image=False, begun=BEGUN in ids)


class FakeBackbone:
    """Rows hold their token history; `hidden` [B, 2] is (next token, score read by the guard).

    `room`: tokens that all rows together may hold.
    """

    def __init__(self, max_rows: int = 8, room: int = 10**9) -> None:
        self.info = SimpleNamespace(eos_ids=frozenset({EOS}), vocab_size=VOCAB)
        self.tokenizer: Any = None
        self.inputs: Any = SimpleNamespace(layout=_layout)
        self.reading_seconds = 0.0
        self.max_rows = max_rows
        self.room = room
        self.rows: list[FakeRow] = []
        self.held: dict[FakeRow, int] = {}
        self.poison: int | None = None  # a prompt or history holding this token makes its forward raise
        self.broken = False
        self.prefills: list[int] = []  # rows that began or went on with a prompt, by pass
        self.decodes: list[int] = []  # rows that added one token, by pass
        self.computed = 0  # tokens, of prompts and answers
        self.watched: list[bool] = []  # each pass
        self.answer_layers: Sequence[int] | None = None
        self.answer_states = torch.zeros(0, 1, 1)

    @property
    def cache_usage(self) -> float:
        return sum(self.held.values()) / self.room

    def open_row(self, prompt: Prompt, max_tokens: int, generated: Sequence[int] = (), anew: bool = False) -> FakeRow:
        if len(prompt.ids) + max_tokens > self.room:
            raise OutOfRows(f"{len(prompt.ids)} and {max_tokens} tokens pass {self.room}")
        if len(self.rows) >= self.max_rows:
            raise OutOfRows(f"{self.max_rows} rows are open")
        self.rows.append(row := FakeRow([*prompt.ids, *generated]))
        return row

    def copy_row(self, source: FakeRow, prompt: Prompt, generated: Sequence[int] = ()) -> FakeRow:
        assert source.open
        assert source.tokens[: source.length][: len(prompt.ids)] == prompt.ids
        row = self.open_row(prompt, 0, generated)
        row.length = min(len(prompt.ids), len(row.tokens) - 1)
        return row

    def take_over(self, source: FakeRow, prompt: Prompt) -> FakeRow:
        known = min(source.length, len(prompt.ids) - 1)
        self.close_row(source)
        row = self.open_row(prompt, 0)
        row.length = self.held[row] = known
        return row

    def has_room(self, tokens: int) -> bool:
        return sum(self.held.values()) + tokens <= self.room

    def reserve(self, row: FakeRow, count: int) -> None:
        others = sum(held for each, held in self.held.items() if each is not row)
        if others + row.length + count > self.room:
            raise OutOfRows(f"{others} + {row.length} + {count} tokens pass {self.room}")
        self.held[row] = max(self.held.get(row, 0), row.length + count)

    def chunk(self, row: FakeRow, count: int) -> int:
        return min(count, row.pending)

    encoded = Encoded()

    def unseen(self, row: FakeRow, count: int) -> int:
        return 0

    def close_row(self, row: FakeRow) -> None:
        if row.open:
            row.open = False
            self.rows.remove(row)
            self.held.pop(row, None)

    def forward(
        self, rows: Sequence[FakeRow], counts: Sequence[int], *, watched: bool = False, keep: object = None
    ) -> Tensor:
        assert all(row.open and 0 < count <= row.pending for row, count in zip(rows, counts, strict=True))
        assert all(self.held[row] >= row.length + count for row, count in zip(rows, counts, strict=True))
        new = sum(row.length == 0 or count > 1 for row, count in zip(rows, counts, strict=True))
        if new:
            self.prefills.append(new)
        if new < len(rows):
            self.decodes.append(len(rows) - new)
        if self.broken or any(self.poison in row.tokens for row in rows):
            raise RuntimeError("poisoned")
        self.computed += sum(counts)
        for row, count in zip(rows, counts, strict=True):
            row.length += count
        self.watched.append(watched)
        last = torch.tensor([float(row.tokens[row.length - 1]) for row in rows])
        self.answer_states = last[:, None, None].expand(-1, len(self.answer_layers or ()), 1)
        return torch.tensor([[float(next_token(row.tokens[: row.length])), row.tokens[0] / VOCAB] for row in rows])

    def watch_answers(self, layers: Sequence[int] | None) -> None:
        self.answer_layers = layers

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(hidden[:, 0].long(), VOCAB).float()

    def read_prompts(self, reader: Any) -> None:
        self.reader = reader

    def notes(self, row: FakeRow, tokens: int) -> Tensor:
        assert row.length >= tokens
        return torch.full((tokens, self.reader.width), row.tokens[0] / VOCAB)


class FakeGuard:
    """Reads the score from the state; steering makes the row say REFUSAL_TOKEN."""

    layer = 1
    layers = (1,)
    width = 1
    answers: AnswerReader | None = None
    answer_calibration_scores: Sequence[float] = ()

    def score(self, notes: Tensor, layout: object) -> float:
        return float(notes[-1, 0])

    def categorise(self, notes: Tensor, layout: object) -> Sequence[CategoryScore]:
        return ()

    def token_scores(self, notes: Tensor, layout: Layout) -> TokenScores:
        return TokenScores(notes[:, 0].tolist(), layout.ends, [(len(notes) - 1, len(notes))])

    def steer(self, hidden: Tensor, eps: Tensor) -> Tensor:
        steered = hidden.clone()
        steered[eps != 0, 0] = REFUSAL_TOKEN
        return steered


def policy(mode: Mode = Mode.STEER, threshold: float = 0.5) -> Policy:
    return Policy(name="default", mode=mode, threshold=threshold, eps=1.0, refusal="I can't help with that.")


def ask(
    name: str,
    ids: Sequence[int],
    *,
    max_tokens: int = 5,
    mode: Mode = Mode.STEER,
    schema: Schema | None = None,
    leader: str | None = None,
    features: Mapping[str, Tensor] | None = None,
    **sampling: Any,
) -> Ask:
    """What is asked: greedy, where `sampling` says nothing else."""
    prompt = Prompt(ids=list(ids), features=features or {}, image_tokens=0)
    params = SamplingParams(**{"temperature": 0.0, **sampling})
    return Ask(name, prompt, params, max_tokens, policy(mode), schema, leader)


def request(name: str, ids: Sequence[int], **options: Any) -> OwnRequest:
    """A request of that, as the engine takes it."""
    return own(ask(name, ids, **options))


def own(asked: Ask) -> OwnRequest:
    return OwnRequest(asked, sampler=RowSampler(asked.params, asked.prompt.ids, ends={EOS}))


def as_any(value: object) -> Any:
    return cast(Any, value)
