"""The model's own answers to a fit's prompts, drawn as a server's clients would have them, in pieces on disk."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from models.backbone import Backbone
from models.row_sampler import RowSampler, SamplingParams
from models.sampling import sample
from steering.data.questions import Question
from steering.fitting.collect import Tick, share_chunks
from steering.fitting.offline import batches, decoded, open_rows, prompt_scores
from steering.fitting.stages import Chunks
from steering.guard import Guard

TEMPERATURE = 1.0  # the one that clients have who ask for none


@dataclass(frozen=True)
class Drawn:
    """An answer of the model: its tokens without the end, and the score of its prompt."""

    ids: tuple[int, ...]
    score: float


def draw_answers(
    backbones: Sequence[Backbone],
    guard: Guard,
    asked: Sequence[tuple[Question, int]],  # with the seed of each one's answer
    max_tokens: int,
    folder: Path,
    tick: Tick,
) -> None:
    """Keep the unguarded model's answers to questions. One backbone per device shares the work."""
    readers = {backbone.info.device: copy.deepcopy(guard).to(backbone.info.device) for backbone in backbones}

    def piece(backbone: Backbone, number: int, chunk: Sequence[tuple[Question, int]]) -> Mapping[str, Tensor]:  # noqa: ARG001
        found: dict[int, Drawn] = {}
        order = sorted(range(len(chunk)), key=lambda at: (len(chunk[at][0].images), len(chunk[at][0].transcript)))
        for places in batches(order, backbone.max_rows):
            drawn = _draw(backbone, readers[backbone.info.device], [chunk[at] for at in places], max_tokens)
            found.update(zip(places, drawn, strict=True))
            tick(len(places))
        inside = [found[at] for at in range(len(chunk))]
        return {
            "x": torch.tensor([token for each in inside for token in each.ids], dtype=torch.int32),
            "counts": torch.tensor([len(each.ids) for each in inside]),
            "scores": torch.tensor([each.score for each in inside], dtype=torch.float64),
        }

    share_chunks(backbones, Chunks(folder), asked, piece, tick)


def read_drawn(folder: Path) -> list[Drawn]:
    """The answers that a finished stage holds."""
    return [
        Drawn(tuple(ids.tolist()), score)
        for each in Chunks(folder).tensors()
        for ids, score in zip(torch.split(each["x"], each["counts"].tolist()), each["scores"].tolist(), strict=True)
    ]


@torch.no_grad()
def _draw(backbone: Backbone, guard: Guard, asked: Sequence[tuple[Question, int]], max_tokens: int) -> list[Drawn]:
    samplers = [RowSampler(SamplingParams(temperature=TEMPERATURE, seed=seed), ()) for _, seed in asked]

    def choose(logits: Tensor, live: Sequence[int]) -> Tensor:
        return torch.tensor(sample(logits, [samplers[row] for row in live]).tokens)

    backbone.forget_prompts()  # what earlier batches left would round otherwise where a fit is started again
    backbone.read_prompts(guard)
    outputs: list[list[int]] = [[] for _ in asked]
    try:
        with open_rows(backbone, [question for question, _ in asked], max_tokens) as rows:
            hidden = backbone.prefill(rows)
            scores = prompt_scores(backbone, rows, guard)
            for step in decoded(backbone, rows, hidden, None, torch.zeros(len(rows)), max_tokens, choose):
                for row, token in zip(step.live, step.tokens, strict=True):
                    if token not in backbone.info.eos_ids:
                        outputs[row].append(token)
    finally:
        backbone.read_prompts(None)
    return [Drawn(tuple(ids), score) for ids, score in zip(outputs, scores, strict=True)]
