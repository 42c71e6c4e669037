"""The steps that fit and calibrate a reader of answers, each one's work in the folder of its stage.

Its probe is fitted on windows of the train answers, labelled as wholes. Its scale and its thresholds are made of the
final scores of fresh answers: what is promised is a rate per answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from models.backbone import Backbone
from steering.answers import AnswerReader, clipped_logit
from steering.errors import FitError
from steering.fitting.answered import Answered
from steering.fitting.collect import NOT_FINITE, Bar, share_chunks, stopping_after
from steering.fitting.offline import batches, prompt_of
from steering.fitting.probes import STEPS, fit_windows, weights_of
from steering.fitting.stages import Chunks, save_state

SHORT = (2, 4, 8, 12)  # windows at an answer's beginning, where there is no whole one yet
STRIDE = 4  # tokens between the windows that are fitted on


class AnswerSteps:
    """The work of the stages, of this reader: its layers and its window first, its probe in the end."""

    def __init__(self, backbones: Sequence[Backbone], reader: AnswerReader, bar: Bar) -> None:
        self._backbones, self._reader, self._bar = backbones, reader, bar

    def collect(self, answers: Sequence[Answered], folder: Path) -> None:
        """Keep the means of the answers' states over windows."""

        def means(states: Tensor) -> Tensor:
            return window_means(states, self._reader.window).to(states.dtype)

        self._collect("answers' windows", answers, folder, means)

    def read(self, answers: Sequence[Answered], folder: Path) -> None:
        """Keep what the reader, fitted by now, reads of each token."""
        self._collect("answers read", answers, folder, lambda states: self._reader.read(states)[:, 0].double())

    def fit(self, answers: Sequence[Answered], collected: Path, folder: Path) -> None:
        """Fit the probe on the collected windows, with the prompt's score beside each."""
        windows = [
            torch.cat([x.flatten(1).float(), torch.full((len(x), 1), clipped_logit(answer.score))], dim=1)
            for answer, x in zip(answers, pieces(collected), strict=True)
        ]
        labels = torch.tensor([int(answer.harmful) for answer in answers])
        weights = weights_of(labels, torch.zeros(len(labels), dtype=torch.bool))
        probe = fit_windows(windows, labels, weights, self._bar("answers' probe", STEPS))
        if not (probe.weight.isfinite().all() and probe.bias.isfinite().all()):
            raise FitError("the reader of answers is no number: it did not converge")
        *_, prompt = probe.weight
        state = {"weight": probe.weight[None, :-1], "prompt_weight": prompt, "bias": probe.bias.reshape(())}
        save_state(folder / "probe.safetensors", state)

    def _collect(self, name: str, answers: Sequence[Answered], folder: Path, keep: Callable[[Tensor], Tensor]) -> None:
        tick = self._bar(name, len(answers))

        def work(backbone: Backbone, number: int, chunk: Sequence[Answered]) -> dict[str, Tensor]:  # noqa: ARG001
            kept = [keep(states) for states in answer_states(backbone, self._reader.layers, chunk)]
            tick(len(chunk))
            return {"x": torch.cat(kept), "counts": torch.tensor([len(each) for each in kept])}

        share_chunks(self._backbones, Chunks(folder), answers, work, tick)


def answer_states(backbone: Backbone, layers: Sequence[int], answers: Sequence[Answered]) -> list[Tensor]:
    """States `[T, layers, d]` of each answer's tokens, on the CPU, as the steps that generate them compute them."""
    found: dict[int, Tensor] = {}
    order = sorted(range(len(answers)), key=lambda at: len(answers[at].ids))
    with stopping_after(backbone, max(layers)):
        for places in batches(order, backbone.max_rows):
            prompts = [prompt_of(backbone, answers[at].question) for at in places]
            whole = [replace(p, ids=[*p.ids, *answers[at].ids]) for p, at in zip(prompts, places, strict=True)]
            with backbone.tap(layers) as tap:
                backbone.prefill_uncached([[prompt] for prompt in whole], last=None)
                states = torch.split(tap.states, [len(prompt.ids) for prompt in whole])
            for at, prompt, of in zip(places, prompts, states, strict=True):
                found[at] = of[len(prompt.ids) :].cpu()
                if not found[at].isfinite().all():
                    raise FitError(f"the state of an answer {NOT_FINITE}; try another --dtype")
    return [found[at] for at in range(len(answers))]


def pieces(folder: Path) -> Iterator[Tensor]:
    """What a finished stage keeps of each answer, in order."""
    for each in Chunks(folder).tensors():
        yield from torch.split(each["x"], each["counts"].tolist())


def window_means(states: Tensor, window: int) -> Tensor:
    """Means of states `[T, layers, d]` over windows: short ones at the beginning, then whole ones, and the last."""
    tokens = len(states)
    ends = {*(end for end in SHORT if end < min(window, tokens)), *range(window, tokens + 1, STRIDE), tokens}
    return torch.stack([states[max(0, end - window) : end].float().mean(0) for end in sorted(ends)])
