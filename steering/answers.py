"""The reader of an answer: one number of each of its tokens, and a score of them that only rises as tokens come.

The number is linear in the token's states and in the prompt's own score. Means of windows of tokens count: the answer
trips where two windows in a row pass the threshold, or the mean of its highest windows does. Both are said by one
score that is compared with one threshold, so that a threshold is calibrated on the final scores of whole answers.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from models.operations import weigher
from steering.readers import HIGHEST
from steering.scale import GRID, Scale, logistic

WINDOW = 16  # tokens
CLIP = 8.0  # the prompt's score counts as a logit of at most so much: beyond, nothing is known


class AnswerReader(nn.Module):
    """`z_t = w . psi_t + v * logit(prompt's score) + b`, with psi_t the states of `layers` side by side.

    `weight` `[1, layers * d]`, `prompt_weight` v and `bias` b are fitted on raw states; computed in fp32.
    """

    width = 1  # numbers of a token

    weight: Tensor
    prompt_weight: Tensor
    bias: Tensor
    knots: Tensor
    heights: Tensor
    slope: Tensor
    logistic: Tensor

    def __init__(self, hidden_size: int, layers: Sequence[int], window: int = WINDOW) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.window = window
        self.register_buffer("weight", torch.zeros(1, hidden_size * len(self.layers)))
        self.register_buffer("prompt_weight", torch.zeros(()))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("knots", torch.zeros(GRID, dtype=torch.float64))
        self.register_buffer("heights", torch.zeros(GRID, dtype=torch.float64))
        self.register_buffer("slope", torch.ones((), dtype=torch.float64))
        self.register_buffer("logistic", torch.tensor([1.0, 0.0], dtype=torch.float64))

    def read(self, states: Tensor) -> Tensor:
        """`w . psi_t + b` of each token, `[N, 1]`, of states `[N, layers, d]`."""
        return weigher(states.device.type, states.dtype)(states, self.weight, self.bias)

    def watch(self, prompt_score: float) -> Watch:
        """What reads one answer to a prompt of this score."""
        return Watch(self, prompt_score)

    def raw(self, values: Iterable[float], prompt_score: float) -> float:
        """What a whole answer comes to before it is put on the scale of harmless ones, of what `read` gave `[T]`."""
        watch = self.watch(prompt_score)
        for value in values:
            watch.push(value)
        return watch.raw

    def score_of(self, raw: float) -> float:
        """The score in [0, 1] of what an answer comes to; NaN of what is no number."""
        return logistic(self._scale(raw), *self._logistic)

    def prompt_part(self, prompt_score: float) -> float:
        """What the prompt's score adds to every token; NaN where it is no number."""
        return self._prompt_weight * clipped_logit(prompt_score)

    def harmless_scores(self, count: int) -> list[float]:
        """The final scores of so many harmless answers, as the scale has them: evenly spread over their quantiles."""
        return [logistic(-math.log1p(-(place + 0.5) / count), *self._logistic) for place in range(count)]

    def calibrate(self, scale: Scale, slope: float, shift: float) -> None:
        """Set the scale of harmless answers, and what makes a score of a value on it."""
        for known in ("_scale", "_logistic"):
            self.__dict__.pop(known, None)
        self.knots.copy_(torch.from_numpy(scale.knots))
        self.heights.copy_(torch.from_numpy(scale.heights))
        self.slope.fill_(scale.slope)
        self.logistic.copy_(torch.tensor([slope, shift]))

    @property
    def _prompt_weight(self) -> float:
        return float(self.prompt_weight)

    @cached_property
    def _scale(self) -> Scale:
        return Scale(self.knots.cpu().numpy(), self.heights.cpu().numpy(), float(self.slope))

    @cached_property
    def _logistic(self) -> tuple[float, float]:
        slope, shift = self.logistic.tolist()
        return slope, shift


class Watch:
    """One answer as it is read, in O(1) for each token. `score` never falls; NaN from a value that is no number on.

    An answer of one token has been read by no two windows, and its score is 0.
    """

    def __init__(self, reader: AnswerReader, prompt_score: float) -> None:
        self.tokens = 0
        self.raw = -math.inf
        self.score = 0.0
        self._reader = reader
        self._prompt_part = reader.prompt_part(prompt_score)
        self._values: deque[float] = deque(maxlen=reader.window)
        self._last = -math.inf  # mean of the window before
        self._highest: list[float] = []  # means of the highest windows, rising

    def alone(self, value: float) -> float:
        """What the answer would score if all of its tokens were like one of which the reader has read `value`."""
        return self._reader.score_of(value + self._prompt_part)

    def push(self, value: float) -> float:
        """The score, after one more token of which the reader has read `value`."""
        self.tokens += 1
        value += self._prompt_part
        if not math.isfinite(value) or math.isnan(self.raw):
            self.raw = self.score = math.nan
            return self.score
        values = self._values
        values.append(value)
        mean = sum(values) / len(values)
        raw = max(self.raw, min(mean, self._last))
        self._last = mean
        if len(self._highest) < HIGHEST or mean > self._highest[0]:
            insort(self._highest, mean)
            del self._highest[:-HIGHEST]
            if len(self._highest) == HIGHEST:
                raw = max(raw, sum(self._highest) / HIGHEST)
        if raw > self.raw:
            self.raw = raw
            self.score = self._reader.score_of(raw)
        return self.score


def clipped_logit(score: float) -> float:
    """A score in [0, 1] as a logit, within `CLIP` of 0; NaN of what is no number."""
    if math.isnan(score):
        return math.nan
    if not 0.0 < score < 1.0:
        return CLIP if score > 0.0 else -CLIP
    return max(-CLIP, min(CLIP, math.log(score / (1.0 - score))))
