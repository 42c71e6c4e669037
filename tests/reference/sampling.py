"""Sampling one row at a time, the slow and obvious way, with the processors of `transformers` where it has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from models.row_sampler import SamplingParams


def distribution(logits: Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
    """Probabilities `[V]` of the next token, from logits `[V]`."""
    scores = logits.float().clone()[None]
    ids = torch.tensor([[*prompt, *output]])
    if params.repetition_penalty != 1.0:
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    for token in range(scores.shape[1]):
        count = list(output).count(token)
        scores[0, token] -= count * params.frequency_penalty + (count > 0) * params.presence_penalty
        scores[0, token] += params.logit_bias.get(token, 0.0)
    if params.temperature == 0.0:
        return torch.nn.functional.one_hot(scores[0].argmax(), scores.shape[1]).float()
    scores = TemperatureLogitsWarper(params.temperature)(ids, scores)
    if params.top_k > 0:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1.0:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p > 0.0:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    probabilities: Tensor = scores.softmax(-1)[0]
    return probabilities


def choose(probabilities: Tensor, number: float) -> int:
    """The first token at which the sum of the probabilities passes `number`."""
    passed = 0.0
    for token, probability in enumerate(probabilities.double().tolist()):
        passed += probability
        if passed > number:
            return token
    return int(probabilities.nonzero()[-1])
