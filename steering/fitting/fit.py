"""From contrast pairs to a guard: collect states once, choose a layer, fit prober and head, calibrate, sweep eps.

Every step is a stage on disk (`steering/fitting/stages.py`). The result is a function of data, settings and model:
a run that was killed and started again ends with the same bundle, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from models.backbone import Backbone
from steering.bundle import save_bundle
from steering.errors import FitError
from steering.fitting.answer_figures import AnswerFigures
from steering.fitting.answered import AnswersWanted
from steering.fitting.answers import AnswersFit, AnswersRead
from steering.fitting.bars import Bars
from steering.fitting.categories import CategoriesRead, Kinds, at_last_tokens
from steering.fitting.collect import Bar
from steering.fitting.conversation import ConversationSteps, spread_around
from steering.fitting.dataset import Dataset
from steering.fitting.enough import Parts, check_enough
from steering.fitting.finished import Finished, guard_of, report_of
from steering.fitting.items import Item
from steering.fitting.layers import choose_layer
from steering.fitting.lengths import find_long, length_warnings, without_long
from steering.fitting.nullspace import HARMLESS_TOKENS, LEAD, RIDGE, SHARE
from steering.fitting.probes import HARD_SHARE
from steering.fitting.reading import Reading, read_conversations, read_last
from steering.fitting.stages import Chunks, Stages, load_json, load_state
from steering.fitting.steps import Settings, Steps
from steering.fitting.sweep import EPS_SWEEP, refusal_ids
from steering.fitting.training import CERTAIN
from steering.guard import Guard
from steering.manifest import ModelBinding
from steering.prober import Prober
from steering.specs import LayerFigures


@dataclass(frozen=True)
class Fitted:
    """A guard, and what its report is made of."""

    guard: Guard
    report: Mapping[str, Any]
    folders: Mapping[str, Path]  # of the stages
    dataset: Dataset
    scores: Tensor  # of all prompts `[N]`; NaN where they were fitted on and not scored
    answers: AnswerFigures | None = None  # of fresh answers, where they are read


def fit(
    backbones: Sequence[Backbone],
    parts: Parts,
    settings: Settings,
    out: Path,
    work: Path,
    progress: Progress,
    answers: AnswersWanted | None = None,
) -> Fitted:
    """Fit a guard and write its bundle to `out`; stages are kept under `work`. One backbone per device, all the same.

    `answers`: that it reads answers as well, and what that is fitted on.

    Rows that pass the context are left out, which the report says. Raises FitError where the data is too small, or
    the guard worth less than `settings.require_tpr`.
    """
    stages = Stages(work)
    bar = Bars(progress, stages, stages_of(settings, answers, categories=bool(_kinds(Dataset.of(parts), settings))))
    parts, left_out = _within_context(stages, backbones[0], parts, settings, bar)
    dataset = Dataset.of(parts)
    layers = _layers(settings, backbones[0].info.num_layers)
    rate = check_enough(parts, settings.target_fpr)
    steps = Steps(backbones, dataset, settings, bar)
    finished = _run(stages, steps, backbones, dataset, settings, layers)
    guard = guard_of(finished, rate)
    base = _base(backbones[0], finished.data_hash)
    fitting = AnswersFit(stages, base, backbones, dataset, settings.seed, bar)
    read = None if answers is None else fitting.add(guard, parts, answers)
    guard = guard if read is None else read.guard
    report = {**report_of(finished, guard.manifest, rate), **_answers_report(read), "stages": stages.summary}
    report["warnings"] += length_warnings(left_out, backbones[0].info.context_length)
    report["warnings"] += [] if read is None else read.warnings
    if guard.manifest.recall < settings.require_tpr:
        raise FitError(
            f"the guard catches {guard.manifest.recall:.1%} of harm at its default threshold, and --require-tpr asks "
            f"for {settings.require_tpr:.1%}: no bundle is written to {out}"
        )
    save_bundle(out, guard.manifest, guard.reader, guard.head, guard.calibration, guard.answers, guard.categories)
    figures = None if read is None else read.figures
    return Fitted(guard, report, finished.folders, dataset, finished.reading.scores, figures)


def _within_context(
    stages: Stages, backbone: Backbone, parts: Parts, settings: Settings, bar: Bar
) -> tuple[Parts, list[Item]]:
    """The rows that have room for a refusal, and those that have not."""
    room = max(len(refusal_ids(backbone, refusal)) for refusal in settings.refusals)
    binding = ModelBinding.of(backbone.info).model_dump(exclude={"name", "revision"})
    inputs = {"model": binding, "data": Dataset.of(parts).digest(), "context": backbone.info.context_length - room}
    tick = bar("lengths", sum(map(len, parts.values())))
    folder = stages.run("lengths", inputs, lambda to: find_long(backbone, parts, room, to, tick))
    return without_long(parts, folder)


def _kinds(dataset: Dataset, settings: Settings) -> Kinds:
    """The categories that are to be told apart."""
    return Kinds.found_in(dataset) if settings.categories else Kinds.none()


def stages_of(settings: Settings, answers: AnswersWanted | None, *, categories: bool) -> int:
    """How many stages a fit has."""
    found = 8 + (settings.head_kind != "trained") + (4 + categories if settings.reader == "conversation" else 0)
    if answers is not None:
        found += 3 + (0 if answers.label is None else 2) + (1 if answers.responses else 0)
    return found


def _layers(settings: Settings, num_layers: int) -> list[int]:
    """The layers whose states are collected. Raises FitError where the model lacks one that was asked for."""
    for given in settings.layers:
        if not 0 <= given <= num_layers:
            raise FitError(f"layer {given} is not one of 0..{num_layers}")
    return list(settings.layers) or list(range(num_layers + 1))


def _run(
    stages: Stages,
    steps: Steps,
    backbones: Sequence[Backbone],
    dataset: Dataset,
    settings: Settings,
    layers: Sequence[int],
) -> Finished:
    """Run the stages that are not there yet; a stage depends on what its inputs name, and on nothing else."""
    backbone = backbones[0]
    data_hash = dataset.digest()
    base = _base(backbone, data_hash)

    begun = stages.run("data", {name: base[name] for name in ("model", "data")}, steps.begin)
    states = stages.run("states", {**base, "layers": layers}, lambda to: steps.states(layers, to))
    fitting = _fitting(dataset, settings)
    table = stages.run("layers", {"states": states.name, **fitting}, lambda to: steps.layers(layers, states, to))
    figures = [LayerFigures(**row) for row in load_json(table / "layers.json")]
    whole = settings.reader == "conversation"
    one = (choose_layer(figures, settings.select),)
    chosen = one if whole else settings.layers or one
    places = [layers.index(layer) for layer in chosen]
    probed = stages.run(
        "prober", {"states": states.name, "layers": chosen, **fitting}, lambda to: steps.prober(states, places, to)
    )
    kinds = _kinds(dataset, settings)
    last = None  # of the categories, where they are read at the last token
    if kinds and not whole:
        last = at_last_tokens(dataset, kinds, torch.cat([Chunks(states).column(place) for place in places], dim=1))
    reading = _reading(stages, base, steps, dataset, settings, probed, chosen, kinds, last)
    forcing = {**base, "refusals": settings.refusals, "count": settings.head_prompts}
    forced = stages.run("refusals", forcing, steps.refusals)
    headed = _head(stages, base, steps, settings, forced)
    sweeping = {"head": headed.name, "count": settings.sweep_prompts, "eps": EPS_SWEEP}
    swept = stages.run("eps", sweeping, lambda to: steps.sweep(headed, to))
    folders = {
        "data": begun, "states": states, "layers": table, "prober": probed, "refusals": forced, "head": headed,
        "eps": swept,
    }  # fmt: skip
    return Finished(backbone, dataset, data_hash, settings, figures, folders, reading, kinds)


def _fitting(dataset: Dataset, settings: Settings) -> dict[str, Any]:
    """What probers depend on, beside the states that they are fitted on."""
    hard = dataset.hard(range(len(dataset.questions))).nonzero().flatten().tolist()
    named = {"hidden": settings.prober_hidden, "optimisation": asdict(settings.prober), "seed": settings.seed}
    return {**named, "hard": [HARD_SHARE, *hard]} if hard else named


def _head(stages: Stages, base: Mapping[str, Any], steps: Steps, settings: Settings, forced: Path) -> Path:
    """The stage of the head that is asked for; `forced`: that of the states along refusals."""
    optimisation = {**asdict(settings.head), "certain": CERTAIN}
    training = {"refusals": forced.name, "rank": settings.rank, "optimisation": optimisation}
    if settings.head_kind == "trained":
        return stages.run("head", training, lambda to: steps.head(forced, to))
    answered = {**base, "count": settings.harmless_prompts, "tokens": HARMLESS_TOKENS}
    harmless = stages.run("harmless", answered, steps.harmless)
    if settings.head_kind == "sparing":
        return stages.run("head", {**training, "harmless": harmless.name}, lambda to: steps.head(forced, to, harmless))
    solved: dict[str, Any] = {"share": SHARE, "lead": LEAD, "ridge": RIDGE}
    inputs = {"refusals": forced.name, "harmless": harmless.name, **solved}
    return stages.run("nullspace", inputs, lambda to: steps.nullspace(forced, harmless, to))


def _base(backbone: Backbone, data_hash: str) -> dict[str, Any]:
    """What the numbers of every stage depend on; torch and the device are in no model's description."""
    model = ModelBinding.of(backbone.info).model_dump(exclude={"name", "revision"})
    return {"model": model, "data": data_hash, "torch": torch.__version__, "device": backbone.info.device.type}


def _reading(
    stages: Stages,
    base: Mapping[str, Any],
    steps: Steps,
    dataset: Dataset,
    settings: Settings,
    probed: Path,  # the folder of the prober's stage
    chosen: Sequence[int],  # its layers
    kinds: Kinds,
    last: CategoriesRead | None,  # where categories are read at the last token
) -> Reading:
    """The reader that is asked for; that of conversations has the prober as its baseline."""
    info = steps.backbones[0].info
    prober = Prober(info.hidden_size * len(chosen), settings.prober_hidden)
    prober.load_state_dict(load_state(probed / "prober.safetensors"))
    if settings.reader == "last":
        scores = load_state(probed / "scores.safetensors")["scores"]
        return read_last(dataset, prober, scores, chosen, last)
    layers = settings.layers or spread_around(chosen[0], info.num_layers)
    conversations = ConversationSteps(steps.backbones, dataset, layers, steps.bar)
    prober_at = chosen[0], probed
    return read_conversations(stages, base, dataset, conversations, layers, settings, prober, prober_at, kinds)


def _answers_report(read: AnswersRead | None) -> dict[str, Any]:
    """What the report says of the reader of answers, where there is one."""
    return {} if read is None else {"answers": read.figures.tables()}
