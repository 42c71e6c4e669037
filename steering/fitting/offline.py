"""Prompts through a backbone without a server: states for fitting, answers for evaluation. Batched, bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from models.backbone import Backbone, Row
from models.errors import PromptError
from models.layout import common_prefix
from models.prompt import Prompt
from steering.data.questions import Question
from steering.guard import Guard
from steering.head import RefusalHead
from steering.policy import CategoryScore

T = TypeVar("T")
Steer = Callable[[Sequence[float]], Sequence[float]]  # scores of a batch (none without a guard) -> eps of its rows
Choose = Callable[[Tensor, Sequence[int]], Tensor]  # logits `[b, V]` of these rows -> their next tokens `[b]`


@dataclass(frozen=True)
class PromptRead:
    """What a guard makes of a prompt: its score, and how much it is of each category that the guard knows."""

    score: float
    categories: Sequence[CategoryScore]


@dataclass(frozen=True)
class Reply:
    """A greedy answer: its text, what is read of its prompt (None without a guard), and how strongly it was steered."""

    text: str
    tokens: int  # generated, without the one that ends the answer
    ended: bool  # by the model; else by the limit
    read: PromptRead | None
    eps: float


def prompt_of(backbone: Backbone, question: Question) -> Prompt:
    """The prompt of a chat with this question. Raises PromptError."""
    images = [{"type": "image"} for _ in question.images]
    prompt = backbone.inputs.build(question.messages(images), question.pictures())
    if len(prompt.ids) > backbone.info.context_length:
        passes = f"{len(prompt.ids)} tokens pass the context of {backbone.info.context_length}"
        raise PromptError(f"{passes}: {question.text[:60]!r}")
    return prompt


def batches(things: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive groups of `size`."""
    for start in range(0, len(things), size):
        yield things[start : start + size]


def _compute_shared(backbone: Backbone, prompts: Sequence[Prompt]) -> None:
    """Compute what all prompts of a batch begin with once: rows that are opened for them find it in the cache."""
    if len(prompts) < 2 or any(prompt.pictures for prompt in prompts):
        return
    alike = common_prefix(*(prompt.ids for prompt in prompts))
    if len(alike) < backbone.cache.block_size:
        return
    row = backbone.open_row(Prompt(alike, {}, 0), 0)
    try:
        backbone.prefill([row])
    finally:
        backbone.close_row(row)


@contextmanager
def open_rows(backbone: Backbone, questions: Sequence[Question], max_tokens: int) -> Iterator[list[Row]]:
    """Rows for a batch, closed in any case; after a long prompt there is room for fewer than `max_tokens`."""
    prompts = [prompt_of(backbone, question) for question in questions]
    _compute_shared(backbone, prompts)
    rows: list[Row] = []
    try:
        # One by one: what was opened before a failure is still closed.
        for prompt in prompts:
            room = backbone.info.context_length - len(prompt.ids)
            rows.append(backbone.open_row(prompt, min(max_tokens, room)))
        yield rows
    finally:
        for row in rows:
            backbone.close_row(row)


def read_states(backbone: Backbone, groups: Sequence[Sequence[Question]], layers: Sequence[int]) -> Tensor:
    """States `[B, layers, d]` at the last prompt token, on the CPU, of groups of questions about the same images.

    What the prompts of a group begin with runs once.
    """
    prompts = [[prompt_of(backbone, question) for question in group] for group in groups]
    with backbone.tap(layers) as tap:
        backbone.prefill_uncached(prompts)
        return tap.states.cpu()


@torch.no_grad()
def forced_states(backbone: Backbone, questions: Sequence[Question], ids: Sequence[int]) -> Tensor:
    """Hidden states `[B, T, d]` in the places that predict `ids` `[T]`, with `ids` teacher-forced after each prompt."""
    prompts = [prompt_of(backbone, question) for question in questions]
    forced = [replace(prompt, ids=[*prompt.ids, *ids[:-1]]) for prompt in prompts]
    with backbone.tap(backbone.info.num_layers) as tap:
        backbone.prefill_uncached([[prompt] for prompt in forced], last=len(ids))
        return tap.states.view(len(forced), len(ids), -1).float().cpu()


@torch.no_grad()
def read_batch(backbone: Backbone, guard: Guard, questions: Sequence[Question]) -> list[PromptRead]:
    """What the guard makes of a batch."""
    backbone.read_prompts(guard)
    with open_rows(backbone, questions, 1) as rows:
        backbone.prefill(rows)
        return _read(backbone, rows, guard)


def score_batch(backbone: Backbone, guard: Guard, questions: Sequence[Question]) -> list[float]:
    """The guard's scores of a batch."""
    return [read.score for read in read_batch(backbone, guard, questions)]


@dataclass(frozen=True)
class Generated:
    """A greedy answer: its tokens, and the unguarded model's mean log-probability of them and the end."""

    ids: list[int]
    log_probability: float


@dataclass(frozen=True)
class Step:
    """One decoding step: the rows that took part, their unsteered hidden states `[b, d]`, and their tokens."""

    live: list[int]
    hidden: Tensor
    chosen: Tensor
    tokens: list[int]


def likeliest(logits: Tensor, live: Sequence[int]) -> Tensor:  # noqa: ARG001
    """The choice of a greedy answer."""
    return logits.argmax(-1)


@torch.no_grad()
def decoded(
    backbone: Backbone,
    rows: Sequence[Row],
    hidden: Tensor,
    head: RefusalHead | None,
    eps: Tensor,
    max_tokens: int,
    choose: Choose = likeliest,
) -> Iterator[Step]:
    """Decode prefilled rows from `hidden` `[B, d]`, steered by eps `[B]`; the last token may be the end.

    A row ends where its context is full. Its last token needs no place there, as it is never read.
    """
    limits = [min(max_tokens, backbone.info.context_length - row.length + 1) for row in rows]
    live = list(range(len(rows)))
    counts = [0] * len(rows)
    while live:
        strength = eps[live]
        steered = hidden if head is None or not bool(strength.any()) else head.steer(hidden, strength)
        chosen = choose(backbone.logits(steered), live)
        tokens = chosen.tolist()
        yield Step(live, hidden, chosen, tokens)
        going = []
        for place, token in enumerate(tokens):
            counts[live[place]] += 1
            if token not in backbone.info.eos_ids and counts[live[place]] < limits[live[place]]:
                going.append(place)
        live = [live[place] for place in going]
        if live:
            hidden = backbone.decode([rows[i] for i in live], torch.tensor([tokens[place] for place in going]))


@torch.no_grad()
def generate(
    backbone: Backbone, rows: Sequence[Row], hidden: Tensor, head: RefusalHead | None, eps: Tensor, max_tokens: int
) -> list[Generated]:
    """Greedy answers, and how likely the unguarded model finds them."""
    outputs: list[list[int]] = [[] for _ in rows]
    likely: list[list[float]] = [[] for _ in rows]
    for step in decoded(backbone, rows, hidden, head, eps, max_tokens):
        plain = backbone.logits(step.hidden).float().log_softmax(-1)
        gains = plain.gather(1, step.chosen[:, None])[:, 0].tolist()
        for row, token, gain in zip(step.live, step.tokens, gains, strict=True):
            likely[row].append(gain)
            if token not in backbone.info.eos_ids:
                outputs[row].append(token)
    return [Generated(ids, sum(gains) / len(gains)) for ids, gains in zip(outputs, likely, strict=True)]


def reply(
    backbone: Backbone,
    questions: Sequence[Question],
    guard: Guard | None,
    steer: Steer,
    max_tokens: int,
    tick: Callable[[Sequence[int]], None] = lambda _: None,
) -> list[Reply]:
    """Greedy answers of one batch, as the engine gives them.

    `steer` chooses each row's eps from the scores (with a guard); `tick` is called with the rows of each step.
    """
    backbone.read_prompts(guard)
    with open_rows(backbone, questions, max_tokens) as rows:
        hidden = backbone.prefill(rows)
        found = [] if guard is None else _read(backbone, rows, guard)
        strengths = [0.0] * len(rows) if guard is None else list(steer([each.score for each in found]))
        known: Sequence[PromptRead | None] = found or [None] * len(rows)
        outputs: list[list[int]] = [[] for _ in rows]
        ended = [False] * len(rows)
        eps = torch.tensor(strengths, device=hidden.device, dtype=hidden.dtype)
        for step in decoded(backbone, rows, hidden, None if guard is None else guard.head, eps, max_tokens):
            tick(step.live)
            for row, token in zip(step.live, step.tokens, strict=True):
                if token in backbone.info.eos_ids:
                    ended[row] = True
                else:
                    outputs[row].append(token)
    texts = [backbone.tokenizer.decode(ids, skip_special_tokens=True) for ids in outputs]
    return [
        Reply(text, len(ids), end, read, strength)
        for text, ids, end, read, strength in zip(texts, outputs, ended, known, strengths, strict=True)
    ]


def prompt_scores(backbone: Backbone, rows: Sequence[Row], guard: Guard) -> list[float]:
    """The guard's scores of prefilled rows of which nothing is generated yet; the backbone reads prompts with it."""
    return [read.score for read in _read(backbone, rows, guard)]


def _read(backbone: Backbone, rows: Sequence[Row], guard: Guard) -> list[PromptRead]:
    noted = ((backbone.notes(row, len(row.tokens)), backbone.inputs.layout(row.tokens)) for row in rows)
    return [PromptRead(guard.score(*of), guard.categorise(*of)) for of in noted]
