"""The choice of the steering strength: what is answered at each eps, and which eps does best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from models.backbone import Backbone
from steering.data.questions import Question
from steering.fitting.offline import batches, generate, open_rows
from steering.head import RefusalHead

EPS_SWEEP = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
NEAR_MOST = 0.01  # share of refusals that counts as the best's
NEAR_CLEAREST = 1.05  # factor of perplexity that counts as the best's


@dataclass(frozen=True)
class EpsPoint:
    """One eps of the sweep: shares of toxic validation prompts whose answer is exactly a refusal, or begins like one.

    `perplexity` of the answers under the unguarded model: what is no language is not likely either.
    """

    eps: float
    exact: float
    begins: float
    perplexity: float


def refusal_ids(backbone: Backbone, refusal: str) -> list[int]:
    """Tokens of the refusal as an answer: its text, then the end."""
    text: list[int] = backbone.tokenizer.encode(refusal, add_special_tokens=False)
    eos = backbone.tokenizer.eos_token_id
    return [*text, eos if eos in backbone.info.eos_ids else min(backbone.info.eos_ids)]


def sweep_point(
    backbone: Backbone,
    head: RefusalHead,
    questions: Sequence[Question],
    eps: float,
    refusals: Sequence[str],
    tick: Callable[[int], None],
) -> EpsPoint:
    """Answer every prompt, steered at one eps, and count the refusals."""
    openings = tuple(" ".join(refusal.split()[:4]) for refusal in refusals)
    budget = max(len(refusal_ids(backbone, refusal)) for refusal in refusals) + 4
    texts: list[str] = []
    surprise: list[float] = []
    for group in batches(questions, backbone.max_rows):
        with open_rows(backbone, group, budget) as rows:
            hidden = backbone.prefill(rows)
            strength = torch.full((len(rows),), eps, device=hidden.device)
            outputs = generate(backbone, rows, hidden, head, strength, budget)
        texts += [backbone.tokenizer.decode(output.ids, skip_special_tokens=True).strip() for output in outputs]
        surprise += [-output.log_probability for output in outputs]
        tick(len(group))
    return EpsPoint(
        eps=eps,
        exact=sum(text in refusals for text in texts) / len(texts),
        begins=sum(text.startswith(openings) for text in texts) / len(texts),
        perplexity=math.exp(min(700.0, sum(surprise) / len(surprise))),
    )


def choose_eps(sweep: Sequence[EpsPoint], *, lowest: bool = False) -> float:
    """The middle one of those that refuse, and speak, as well as the best do: the farthest from where either fails.

    `lowest`: the lowest of them instead, for a head whose worth is what it does not do.
    """
    most = max(point.exact for point in sweep)
    refusing = [point for point in sweep if point.exact >= most - NEAR_MOST]
    clearest = min(point.perplexity for point in refusing)
    good = sorted(point.eps for point in refusing if point.perplexity <= clearest * NEAR_CLEAREST)
    return good[0 if lowest else (len(good) - 1) // 2]
