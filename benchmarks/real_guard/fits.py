"""Readers fitted on the same states without some rows, and what all of them read of the same prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.real_guard.rows import Asked
from models.backbone import Backbone
from models.layout import Layout
from steering.fitting.collect import Tick
from steering.fitting.conversation import collected_states, fit_both, notes_of
from steering.fitting.dataset import Dataset
from steering.fitting.offline import batches, prompt_of
from steering.fitting.reading import LEVEL
from steering.fitting.surround import ALONE, Row
from steering.fitting.training import States, fit_prober
from steering.prober import Prober
from steering.readers import Conversation, project, said_and_told

LAYER = 16  # the one that `make real-guard` chooses

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """Both readers, fitted on some of the rows."""

    name: str
    probes: Mapping[str, Tensor]
    prober: Prober


class Several:
    """Reads tokens with the readers of several fits, a `PromptReader`: two numbers of each, then the probers'."""

    def __init__(self, fits: Sequence[Fit], layers: Sequence[int]) -> None:
        self.layers, self.width, self._fits = layers, 3 * len(fits), fits
        self._weight = torch.cat([fit.probes["weight"] for fit in fits])
        self._bias = torch.cat([fit.probes["bias"] for fit in fits])

    @torch.inference_mode()
    def read(self, states: Tensor) -> Tensor:
        """The numbers `[N, width]` of N tokens, of their states `[N, layers, d]`."""
        own = states[:, self.layers.index(LAYER)]
        last = [(fit.prober(own) / fit.prober.temperature)[:, None] for fit in self._fits]
        return torch.cat([project(states, self._weight) + self._bias, *last], dim=1)


def fit_all(
    dataset: Dataset, without: Mapping[str, frozenset[int]], rows: Sequence[Row], collected: Path, tick: Tick
) -> list[Fit]:
    """The readers of each fit, of the states of the rows that it has; the last token's has those alone."""
    ends, windows, known = collected_states(collected)
    width = ends[0].shape[1] // 3
    found = []
    for name, left_out in without.items():
        kept = [at for at, row in enumerate(rows) if row.place not in left_out]
        places = [rows[at].place for at in kept]
        labels, hard = dataset.labels[places], dataset.hard(places)
        own_ends, own_windows, own_known = ([of[at] for at in kept] for of in (ends, windows, known))
        probes = fit_both(own_ends, own_windows, own_known, labels, hard)
        alone = [at for at in kept if rows[at].surrounding == ALONE]
        x = torch.cat([ends[at][:, width : 2 * width] for at in alone]).float()
        y = dataset.labels[[rows[at].place for at in alone]]
        held_out = torch.arange(len(y)) % 5 == 0
        prober, _ = fit_prober(States(x[~held_out], y[~held_out]), States(x[held_out], y[held_out]))
        found.append(Fit(name, probes, prober))
        tick(1)
    return found


@torch.inference_mode()
def read_all(
    backbone: Backbone, asked: Sequence[Asked], fits: Sequence[Fit], layers: Sequence[int], tick: Tick
) -> tuple[Array, list[Layout]]:
    """What each fit's readers read of prompts `[N, fits, 5]`, and their layouts.

    The highest end, the highest windows of all, of what is said and of what is told, and the prober's logit.
    """
    found, layouts = np.empty((len(asked), len(fits), 5)), [Layout(1, (0,), (), has_image=False)] * len(asked)
    prompts = [prompt_of(backbone, each.question) for each in asked]
    reader = Conversation(1, [], spoken=True, level=LEVEL)
    backbone.read_prompts(Several(fits, layers))
    for places in batches(sorted(range(len(asked)), key=lambda at: len(prompts[at].ids)), backbone.max_rows):
        for at, notes in zip(places, notes_of(backbone, [prompts[at] for at in places]), strict=True):
            layouts[at] = backbone.inputs.layout(prompts[at].ids)
            for number in range(len(fits)):
                own = notes[:, 2 * number : 2 * number + 2]
                runs = said_and_told(layouts[at].spoken, layouts[at].told)
                parts = [reader.highest(own[:, 1], part, layouts[at]) for part in runs]
                found[at, number, :4] = *reader.raw(own, layouts[at]), *parts
            found[at, :, 4] = notes[-1, 2 * len(fits) :]
        tick(len(places))
    backbone.read_prompts(None)
    return found, layouts
