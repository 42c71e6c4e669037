"""Prompts through a backbone without a server: states for fitting, answers for evaluation. Batched, bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from models.backbone import Backbone, Row
from models.inputs import Prompt
from steering.guard import Guard
from steering.policy import Decision, Mode, Policy, Verdict, decide


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
    return backbone.inputs.build(
        [{"role": "user", "content": [*content, {"type": "text", "text": question.text}]}], question.pictures()
    )


def batches(questions: Sequence[Question], size: int) -> Iterator[Sequence[Question]]:
    """Consecutive groups of `size`."""
    for start in range(0, len(questions), size):
        yield questions[start : start + size]


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


@torch.no_grad()
def prompt_states(backbone: Backbone, questions: Sequence[Question], layers: Sequence[int]) -> Tensor:
    """States `[B, layers, d]` of a batch at the last prompt token, in fp32 on the CPU."""
    with open_rows(backbone, questions, 1) as rows, backbone.tap(layers) as tap:
        backbone.prefill(rows)
        return tap.states.float().cpu()


@torch.no_grad()
def forced_states(backbone: Backbone, questions: Sequence[Question], ids: Sequence[int]) -> Tensor:
    """Hidden states `[B, T, d]` in the places that predict `ids` `[T]`, with `ids` teacher-forced after each prompt."""
    with open_rows(backbone, questions, len(ids)) as rows:
        hidden = [backbone.prefill(rows)]
        hidden += [backbone.decode(rows, torch.full((len(rows),), token)) for token in ids[:-1]]
        return torch.stack(hidden, dim=1).float().cpu()


@torch.no_grad()
def answer(
    backbone: Backbone, questions: Sequence[Question], guard: Guard, policy: Policy, max_tokens: int
) -> list[Answered]:
    """Greedy answers of one batch under a policy, as the engine gives them."""
    with open_rows(backbone, questions, max_tokens) as rows:
        with backbone.tap(guard.layer) as tap:
            hidden = backbone.prefill(rows)
        policies = [policy] * len(rows)
        scores = [0.0] * len(rows) if policy.mode is Mode.OFF else guard.score(tap.states).tolist()
        decisions = decide(scores, policies)
        eps = torch.tensor([decision.eps for decision in decisions], device=hidden.device)
        outputs: list[list[int]] = [[] for _ in rows]
        live = list(range(len(rows)))
        while live:
            tokens = backbone.logits(guard.steer(hidden, eps[live])).argmax(-1).tolist()
            going = [
                place
                for place, token in enumerate(tokens)
                if token not in backbone.info.eos_ids and len(outputs[live[place]]) < max_tokens
            ]
            for place in going:
                outputs[live[place]].append(tokens[place])
            live = [live[place] for place in going]
            if live:
                hidden = backbone.decode([rows[i] for i in live], torch.tensor([outputs[i][-1] for i in live]))
    texts = [backbone.tokenizer.decode(ids, skip_special_tokens=True) for ids in outputs]
    return [
        Answered(policy.refusal if decision.verdict is Verdict.BLOCKED else text, decision)
        for text, decision in zip(texts, decisions, strict=True)
    ]
