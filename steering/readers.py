"""Readers: what a guard reads of each token of a prompt, and how the prompt's one score is made of it.

A reader keeps a few numbers of every token, each of which depends on that token's states alone; the score is a function
of the whole prompt's numbers and its layout. So a prompt scores the same whether its tokens were computed at once, in
chunks, or for an earlier request.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.layout import Layout
from steering.prober import Prober
from steering.scale import GRID, Scale, logistic, most_unusual, unusual_together
from steering.token_scores import TokenScores

WINDOW = 8  # tokens
HIGHEST = 3  # windows whose mean is the score of all
MANY = 128  # windows, from which on a prompt's level is known
AT_ONCE = 128  # tokens

Notes = NDArray[np.float64]  # `[T, width]`
Run = tuple[int, int]  # of tokens: begin and end
Window = tuple[float, int, int]  # mean, begin and end


class LastToken(nn.Module):
    """The paper's reader: the prober at the last prompt token, which alone counts."""

    width = 1

    def __init__(self, prober: Prober) -> None:
        super().__init__()
        self.prober = prober

    def read(self, states: Tensor) -> Tensor:
        """The prober's logit of each token, `[N, 1]`, of states `[N, layers, d]`."""
        logits: Tensor = self.prober(states.flatten(1)) / self.prober.temperature
        return logits[:, None]

    def ends(self, layout: Layout) -> Sequence[int]:
        """The tokens that stand for a prompt: its last."""
        return [layout.tokens - 1]

    def score(self, notes: Notes, layout: Layout) -> float:  # noqa: ARG002
        """The score in [0, 1] of a prompt with these notes `[T, 1]`."""
        return logistic(float(notes[-1, 0]), 1.0, 0.0)

    def token_scores(self, notes: Notes, layout: Layout) -> TokenScores:
        """What a prompt would score if it ended at each of its tokens; of this one the last counts."""
        last = len(notes) - 1
        return TokenScores(_logistic_of(notes[:, 0], 1.0, 0.0), layout.ends, [(last, last + 1)])


class Cell(NamedTuple):
    """Prompts that are calibrated together: with or without an image, and of at most so many tokens.

    `told`: those in which a tool or a system message tells something; `answered`: those in which an answer stands, past
    or begun.
    """

    has_image: bool
    most_tokens: int | None  # None: any number
    samples: int
    told: bool = False
    answered: bool | None = None  # None: with and without


class Conversation(nn.Module):
    """Reads the end of every turn, and windows of tokens wherever they stand, against those of harmless prompts.

    Both are linear in the states of several layers. At the ends it is the difference of the distances to the means of
    harmless and harmful prompts under one covariance (class-conditional Gaussians); over windows of `window` tokens it
    is their mean, and the mean of the highest windows counts, less a share of the `level` of all of them in long
    prompts in which nothing is told; where some cells are of told prompts, that of the words of tools and system
    messages by itself. Where what is `spoken` counts, windows of what the template says by itself,
    which are alike in every prompt, do not. Each is put on the scale of harmless prompts of the same cell. Their sum
    counts (of windows, where what is `spoken` counts, the more unusual ones), or where they are not `together` the most
    unusual one, and is put on such a scale again: the rate of false alarms is spent once.
    """

    width = 2

    def __init__(
        self,
        inputs: int,
        cells: Sequence[Cell],
        window: int = WINDOW,
        *,
        together: bool = False,
        spoken: bool = False,
        level: float = 0.0,
    ) -> None:
        super().__init__()
        self.cells = tuple(cells)
        self.together = together
        self.spoken = spoken
        self.level = level
        self.window = window
        self.apart = any(cell.told for cell in self.cells)  # without such cells, what is told is read as what is said
        scales = len(self.cells), self.width + self.apart + 1
        self.register_buffer("weight", torch.zeros(self.width, inputs))
        self.register_buffer("bias", torch.zeros(self.width))
        self.register_buffer("knots", torch.zeros((*scales, GRID), dtype=torch.float64))
        self.register_buffer("heights", torch.zeros((*scales, GRID), dtype=torch.float64))
        self.register_buffer("slopes", torch.ones(scales, dtype=torch.float64))
        self.register_buffer("logistic", torch.tensor([1.0, 0.0], dtype=torch.float64))

    weight: Tensor
    bias: Tensor
    knots: Tensor
    heights: Tensor
    slopes: Tensor
    logistic: Tensor

    def read(self, states: Tensor) -> Tensor:
        """Two numbers of each token, `[N, 2]`, of states `[N, layers, d]`: as an end, and as part of a window."""
        return project(states, self.weight) + self.bias

    def ends(self, layout: Layout) -> Sequence[int]:
        """The tokens that stand for the turns of a prompt."""
        return layout.ends

    def raw(self, notes: Notes, layout: Layout) -> tuple[float, ...]:
        """The highest end, and the mean of the highest windows: of what is said, and if something is told, of that."""
        ends = notes[list(layout.ends), 0]
        return float(ends.max()), *(self.highest(notes[:, 1], runs, layout) for runs in self._parts(layout))

    def highest(self, values: NDArray[np.float64], runs: Sequence[Run], layout: Layout) -> float:
        """Mean of the highest windows of these runs, on the level of a prompt; of the highest values without runs."""
        windows = window_means(values, runs, self.window) if runs else values
        return highest_mean(windows) - self._level(windows, layout)

    def _level(self, windows: NDArray[np.float64], layout: Layout) -> float:
        """What to take off the highest windows of a prompt: where there are many, texts differ by more than harm does.

        What tools tell is short, and is measured as it is.
        """
        if not self.level or layout.told or len(windows) <= MANY:
            return 0.0
        return self.level * (1 - MANY / len(windows)) * float(windows.mean())

    def _parts(self, layout: Layout) -> list[Sequence[Run]]:
        """The runs whose windows are measured together."""
        runs = layout.spoken if self.spoken else layout.runs
        return said_and_told(runs, layout.told) if self.apart and layout.told else [runs]

    def score(self, notes: Notes, layout: Layout) -> float:
        """The score in [0, 1] of a prompt with these notes `[T, 2]`; NaN where one of them is no number."""
        return self.score_of(self.raw(notes, layout), layout)

    def score_of(self, raw: Sequence[float], layout: Layout) -> float:
        """The score of a prompt of which this is read, see `raw`."""
        own, both = self._scales_of(layout)
        slope, shift = self.logistic.tolist()
        return logistic(both(self.joint(own, raw)), slope, shift)

    def joint(self, scales: Sequence[Scale], raw: Sequence[float]) -> float:
        """How unusual the numbers of a prompt are, each on its own scale; NaN where one is no number."""
        if not self.together:
            return most_unusual(scales, raw)
        if not self.spoken:
            return unusual_together(scales, raw)
        # Harm stands in what is said or in what is told: the other has nothing to add.
        return scales[0](raw[0]) + most_unusual(scales[1:], raw[1:])

    def token_scores(self, notes: Notes, layout: Layout) -> TokenScores:
        """What a prompt would score by each of its tokens alone: as a turn's end, or in its highest window.

        What counted most is the highest end or the highest windows, whichever is most unusual.
        """
        own, both = self._scales_of(layout)
        parts = [self._levelled(_windows(notes[:, 1], runs, self.window), layout) for runs in self._parts(layout)]
        each = [scale.each(_highest_around(of, len(notes))) for scale, of in zip(own[1:], parts, strict=True)]
        unusual = np.max(each, axis=0)
        ends = np.asarray(layout.ends)
        of_ends = own[0].each(notes[ends, 0])
        unusual[ends] = np.maximum(unusual[ends], of_ends)
        scores = _logistic_of(both.each(unusual), *self.logistic.tolist())
        raw = self.raw(notes, layout)
        most = int(np.argmax([scale(value) for scale, value in zip(own, raw, strict=True)]))
        if most == 0:
            at = layout.ends[int(of_ends.argmax())]
            return TokenScores(scores, layout.ends, [(at, at + 1)])
        counted = sorted((begin, end) for _, begin, end in sorted(parts[most - 1])[-HIGHEST:])
        return TokenScores(scores, layout.ends, counted)

    def _levelled(self, windows: Sequence[Window], layout: Layout) -> list[Window]:
        level = self._level(np.array([mean for mean, _, _ in windows]), layout)
        return [(mean - level, begin, end) for mean, begin, end in windows]

    def cell(self, layout: Layout) -> int:
        """The number of a prompt's cell; where there is none of its kind, that of its length."""
        told = self.apart and bool(layout.told)
        same = [number for number, cell in enumerate(self.cells) if cell.told == told]
        pictured = [n for n in same if self.cells[n].has_image == layout.has_image] or same
        for number in [n for n in pictured if self.cells[n].answered in (None, layout.answered)] or pictured:
            most = self.cells[number].most_tokens
            if most is None or layout.tokens <= most:
                return number
        raise AssertionError("the last cell takes any length")

    def _scales_of(self, layout: Layout) -> tuple[list[Scale], Scale]:
        """Those of a prompt's cell: one for each number that is read of it, and one for all of them."""
        number = self.cell(layout)
        *own, both = self._scales[number]
        return own[: self.width + self.cells[number].told], both

    @cached_property
    def _scales(self) -> list[list[Scale]]:
        """Of each cell: one for each number of a prompt, and one for all of them."""
        knots, heights, slopes = (each.cpu().numpy() for each in (self.knots, self.heights, self.slopes))
        return [[Scale(*of) for of in zip(*cell, strict=True)] for cell in zip(knots, heights, slopes, strict=True)]

    def calibrate(self, scales: Sequence[Sequence[Scale]], slope: float, shift: float) -> None:
        """Set the scales, as many for each cell as `_scales` names, and what makes a score of the last one's value."""
        self.__dict__.pop("_scales", None)
        self.knots.copy_(torch.tensor(np.array([[each.knots for each in cell] for cell in scales])))
        self.heights.copy_(torch.tensor(np.array([[each.heights for each in cell] for cell in scales])))
        self.slopes.copy_(torch.tensor([[each.slope for each in cell] for cell in scales]))
        self.logistic.copy_(torch.tensor([slope, shift]))


def project(states: Tensor, weight: Tensor) -> Tensor:
    """`[N, K]`: K products of each token's states `[N, layers, d]`, side by side, with a weight `[K, layers * d]`.

    In fp32. On a CPU few tokens at a time, whose states in fp32 stay in the core's own cache.
    """
    count, layers, _ = states.shape
    parts = weight.view(len(weight), layers, -1).permute(1, 2, 0)
    found = torch.zeros((count, len(weight)), dtype=torch.float32, device=states.device)
    size = AT_ONCE if states.device.type == "cpu" else max(1, count)
    for begin in range(0, count, size):
        some = found[begin : begin + size]
        for layer in range(layers):
            some.addmm_(states[begin : begin + size, layer].float(), parts[layer])
    return found


def said_and_told(runs: Sequence[Run], told: Sequence[Run]) -> list[Sequence[Run]]:
    """Those of the runs that tools and system messages did not tell, and what they told."""
    of_told = frozenset(told)  # a chat may have thousands of turns
    return [[run for run in runs if run not in of_told], told]


def window_means(values: NDArray[np.float64], runs: Sequence[Run], window: int) -> NDArray[np.float64]:
    """Means of all windows of `window` neighbours within a run; a shorter run is one window."""
    found = []
    for begin, end in runs:
        size = min(window, end - begin)
        sums = np.cumsum(np.concatenate(([0.0], values[begin:end])))
        found.append((sums[size:] - sums[:-size]) / size)
    return np.concatenate(found) if found else np.empty(0)


def _windows(values: NDArray[np.float64], runs: Sequence[Run], window: int) -> list[Window]:
    """Each window of `window_means` with where it begins and ends."""
    places = [
        (at, at + min(window, end - begin)) for begin, end in runs for at in range(begin, max(begin, end - window) + 1)
    ]
    means = window_means(values, runs, window).tolist()
    return [(mean, begin, end) for mean, (begin, end) in zip(means, places, strict=True)]


def _highest_around(windows: Sequence[Window], tokens: int) -> NDArray[np.float64]:
    """For each of so many tokens the highest mean of a window that it is in; -inf where it is in none."""
    found = np.full(tokens, -np.inf)
    for mean, begin, end in windows:
        np.maximum(found[begin:end], mean, out=found[begin:end])
    return found


def _logistic_of(values: NDArray[np.float64], slope: float, shift: float) -> list[float]:
    return [logistic(value, slope, shift) for value in values.tolist()]


def highest_mean(values: NDArray[np.float64], count: int = HIGHEST) -> float:
    """Mean of the highest `count` values; NaN where one is no number."""
    count = min(count, len(values))
    return float(np.partition(values, -count)[-count:].mean())  # NaN counts as the highest
