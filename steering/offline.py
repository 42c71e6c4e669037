"""Prompts through a backbone without a server: states for fitting, answers for evaluation. Batched, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from models.backbone import Backbone, Row
from models.inputs import Prompt, PromptError
from steering.guard import Guard
from steering.head import RefusalHead
from steering.policy import Decision, Mode, Policy, Verdict, decide

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """One user turn: its words, and the images before them; files are opened when they are needed."""

    text: str
    images: Sequence[Image.Image | Path] = ()

    def pictures(self) -> list[Image.Image]:
        """The images, decoded."""
        return [_opened(image) if isinstance(image, Path) else image for image in self.images]


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


@dataclass(frozen=True)
class Answered:
    """An answer, and what the guard decided about its prompt."""

    text: str
    decision: Decision


def prompt_of(backbone: Backbone, question: Question) -> Prompt:
    """The prompt of a chat with this one turn. Raises PromptError."""
    content: list[dict[str, Any]] = [{"type": "image"} for _ in question.images]
    content.append({"type": "text", "text": question.text})
    prompt = backbone.inputs.build([{"role": "user", "content": content}], question.pictures())
    if len(prompt.ids) > backbone.info.context_length:
        passes = f"{len(prompt.ids)} tokens pass the context of {backbone.info.context_length}"
        raise PromptError(f"{passes}: {question.text[:60]!r}")
    return prompt


def batches(things: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Consecutive groups of `size`."""
    for start in range(0, len(things), size):
        yield things[start : start + size]


@contextmanager
def open_rows(backbone: Backbone, questions: Sequence[Question], max_tokens: int) -> Iterator[list[Row]]:
    """Rows for a batch, closed in any case."""
    rows: list[Row] = []
    try:
        # One by one: what was opened before a failure is still closed.
        for question in questions:
            rows.append(backbone.open_row(prompt_of(backbone, question), max_tokens))  # noqa: PERF401
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
        backbone.read(prompts)
        return tap.states.cpu()


@torch.no_grad()
def forced_states(backbone: Backbone, questions: Sequence[Question], ids: Sequence[int]) -> Tensor:
    """Hidden states `[B, T, d]` in the places that predict `ids` `[T]`, with `ids` teacher-forced after each prompt."""
    prompts = [prompt_of(backbone, question) for question in questions]
    forced = [replace(prompt, ids=[*prompt.ids, *ids[:-1]]) for prompt in prompts]
    with backbone.tap(backbone.info.num_layers) as tap:
        backbone.read([[prompt] for prompt in forced], last=len(ids))
        return tap.states.view(len(forced), len(ids), -1).float().cpu()


@torch.no_grad()
def score_batch(backbone: Backbone, guard: Guard, questions: Sequence[Question]) -> list[float]:
    """The guard's scores of a batch."""
    with open_rows(backbone, questions, 1) as rows, backbone.tap(guard.tapped) as tap:
        backbone.prefill(rows)
        return guard.score(tap.states).tolist()


@dataclass(frozen=True)
class Generated:
    """A greedy answer: its tokens, and the unguarded model's mean log-probability of them and the end."""

    ids: list[int]
    log_probability: float


@torch.no_grad()
def generate(
    backbone: Backbone, rows: Sequence[Row], hidden: Tensor, head: RefusalHead | None, eps: Tensor, max_tokens: int
) -> list[Generated]:
    """Decode prefilled rows greedily, from `hidden` `[B, d]`, steered by eps `[B]`."""
    outputs: list[list[int]] = [[] for _ in rows]
    likely: list[list[float]] = [[] for _ in rows]
    live = list(range(len(rows)))
    while live:
        steered = hidden if head is None else head.steer(hidden, eps[live])
        chosen = backbone.logits(steered).argmax(-1)
        plain = backbone.logits(hidden).float().log_softmax(-1)
        tokens, gains = chosen.tolist(), plain.gather(1, chosen[:, None])[:, 0].tolist()
        going = []
        for place, (token, gain) in enumerate(zip(tokens, gains, strict=True)):
            likely[live[place]].append(gain)
            if token not in backbone.info.eos_ids:
                outputs[live[place]].append(token)
                if len(outputs[live[place]]) < max_tokens:
                    going.append(place)
        live = [live[place] for place in going]
        if live:
            hidden = backbone.decode([rows[i] for i in live], torch.tensor([outputs[i][-1] for i in live]))
    return [Generated(ids, sum(gains) / len(gains)) for ids, gains in zip(outputs, likely, strict=True)]


def answer(
    backbone: Backbone, questions: Sequence[Question], guard: Guard, policy: Policy, max_tokens: int
) -> list[Answered]:
    """Greedy answers of one batch under a policy, as the engine gives them."""
    with open_rows(backbone, questions, max_tokens) as rows:
        with backbone.tap(guard.tapped) as tap:
            hidden = backbone.prefill(rows)
        policies = [policy] * len(rows)
        scores = [0.0] * len(rows) if policy.mode is Mode.OFF else guard.score(tap.states).tolist()
        decisions = decide(scores, policies)
        eps = torch.tensor([decision.eps for decision in decisions], device=hidden.device)
        outputs = generate(backbone, rows, hidden, guard.head, eps, max_tokens)
    texts = [backbone.tokenizer.decode(output.ids, skip_special_tokens=True) for output in outputs]
    return [
        Answered(policy.refusal if decision.verdict is Verdict.BLOCKED else text, decision)
        for text, decision in zip(texts, decisions, strict=True)
    ]
