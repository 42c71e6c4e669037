"""The guard's reader of answers: fitted on labelled answers, calibrated on the final scores of fresh harmless ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors

from models.backbone import Backbone
from steering.answers import WINDOW, AnswerReader
from steering.files import digest
from steering.fitting.answer_figures import AnswerFigures
from steering.fitting.answer_steps import SHORT, STRIDE, AnswerSteps, pieces
from steering.fitting.answered import Answered, AnswersWanted, check_answers
from steering.fitting.calibrate import rising
from steering.fitting.collect import Bar
from steering.fitting.conversation import spread_around
from steering.fitting.dataset import Dataset
from steering.fitting.enough import TARGET_FPRS, Parts
from steering.fitting.figures import calibrated_thresholds, default_threshold
from steering.fitting.labelled import Sources
from steering.fitting.probes import STEPS
from steering.fitting.stages import Stages, load_state
from steering.guard import Guard
from steering.manifest import format_of
from steering.scale import Scale
from steering.specs import AnswersSpec


@dataclass(frozen=True)
class AnswersRead:
    """The guard with its reader of answers, what that makes of fresh answers, and what must be known first."""

    guard: Guard
    figures: AnswerFigures
    warnings: Sequence[str]


@dataclass(frozen=True)
class AnswersFit:
    """What a reader of answers is fitted with. `base`: what all stages depend on."""

    stages: Stages
    base: Mapping[str, Any]
    backbones: Sequence[Backbone]
    dataset: Dataset
    seed: int
    bar: Bar

    def add(self, guard: Guard, parts: Parts, wanted: AnswersWanted) -> AnswersRead:
        """The guard with a reader of answers. Raises FitError where there are too few answers of a label."""
        info = self.backbones[0].info
        answers, unjudged = self._answers(guard, parts, wanted)
        check_answers([(answer.harmful, answer.part) for answer in answers])
        layers = wanted.layers or spread_around(guard.layer, info.num_layers)
        reader = AnswerReader(info.hidden_size, layers)
        fresh = [answer for answer in answers if answer.fresh]
        values = self._read(reader, [answer for answer in answers if not answer.fresh], fresh)
        figures = calibrated(reader, values, fresh)
        spec = AnswersSpec(
            layers=list(layers),
            window=reader.window,
            thresholds=list(figures.thresholds),
            threshold=figures.threshold,
            figures=figures.summary(),
        )
        version = format_of(guard.manifest.conversation, spec, guard.manifest.categories)
        manifest = guard.manifest.model_copy(update={"answers": spec, "format_version": version})
        whole = Guard(manifest, guard.reader, guard.head, guard.calibration, reader, guard.categories).to(info.device)
        left_out = f"{unjudged} of the model's answers could not be labelled and are left out."
        return AnswersRead(whole, figures, [left_out] if unjudged else [])

    def _answers(self, guard: Guard, parts: Parts, wanted: AnswersWanted) -> tuple[list[Answered], int]:
        """Labelled answers that say anything, and how many nobody could label."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in guard.reader.state_dict().items()}
        about = {**self.base, "reader": digest(save_tensors(state)), "tokens": wanted.max_tokens}
        sources = Sources(self.stages, about, self.backbones, guard, self.seed, wanted.max_tokens)
        own, unjudged = (
            ([], 0) if wanted.label is None else sources.own(self.dataset, wanted.label, wanted.judge, self.bar)
        )
        found = [*own, *sources.given(wanted.responses, parts)]
        return [answer for answer in found if answer.ids], unjudged

    def _read(
        self, reader: AnswerReader, train: Sequence[Answered], fresh: Sequence[Answered]
    ) -> list[Sequence[float]]:
        """Fit the reader's probe; what it then reads of each token of the fresh answers."""
        steps = AnswerSteps(self.backbones, reader, self.bar)
        shape = {"layers": list(reader.layers), "window": WINDOW, "short": SHORT, "stride": STRIDE}
        collecting = {**self.base, **shape, "rows": _digest(train)}
        collected = self.stages.run("answers-windows", collecting, lambda to: steps.collect(train, to))
        fitting = {"windows": collected.name, "about": _digest(train), "steps": STEPS}
        fitted = self.stages.run("answers-probe", fitting, lambda to: steps.fit(train, collected, to))
        probe = load_state(fitted / "probe.safetensors")
        for name in ("weight", "prompt_weight", "bias"):
            getattr(reader, name).copy_(probe[name])
        reading = {"probe": fitted.name, "rows": _digest(fresh)}
        read = self.stages.run("answers-read", reading, lambda to: steps.read(fresh, to))
        return [values.tolist() for values in pieces(read)]


def calibrated(reader: AnswerReader, values: Sequence[Sequence[float]], fresh: Sequence[Answered]) -> AnswerFigures:
    """Set a reader's scale by harmless answers; thresholds for rates per answer, and figures, of fresh ones.

    `values`: what it reads of each token, by answer.
    """
    raw = np.array([reader.raw(each, answer.score) for each, answer in zip(values, fresh, strict=True)])
    harmful = np.array([answer.harmful for answer in fresh])
    known = np.isfinite(raw)  # an answer of one token comes to nothing
    scale = Scale.of(raw[known & ~harmful])
    reader.calibrate(scale, *rising([scale(value) for value in raw[known]], harmful[known].astype(np.int64)))
    runs = [_run(reader, each, answer.score) for each, answer in zip(values, fresh, strict=True)]
    finals = torch.tensor([run[-1] for run in runs])
    thresholds = calibrated_thresholds(finals[torch.from_numpy(~harmful)])
    # Every answer is read, flagged prompt or not: by default the lowest rate that can be promised.
    rate = min((known.target_fpr for known in thresholds), default=max(TARGET_FPRS))
    return AnswerFigures(runs, harmful.tolist(), thresholds, default_threshold(thresholds, rate))


def _run(reader: AnswerReader, values: Sequence[float], score: float) -> list[float]:
    """The score after each token."""
    watch = reader.watch(score)
    return [watch.push(value) for value in values]


def _digest(answers: Sequence[Answered]) -> str:
    about = [
        (each.question.transcript, each.question.digests, each.ids, each.score, each.harmful, each.part)
        for each in answers
    ]
    return digest(repr(about).encode())
