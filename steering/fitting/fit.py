"""From contrast pairs to a guard: collect states once, choose a layer, fit prober and head, calibrate, sweep eps.

Every step is a stage on disk (`steering/fitting/stages.py`). The result is a function of data, settings and model:
a run that was killed and started again ends with the same bundle, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.progress import Progress
from torch import Tensor

from models.backbone import Backbone
from steering.bundle import save_bundle
from steering.calibration import conformal_threshold, samples_needed
from steering.fitting.collect import Tick, collect_forced, collect_states
from steering.fitting.confound import words_auroc
from steering.fitting.layers import (
    SELECTS,
    Select,
    auroc,
    balanced_accuracy,
    calibration_error,
    choose_layer,
    layer_figures,
    no_signal,
)
from steering.fitting.offline import Question, batches, generate, open_rows
from steering.fitting.pairs import FitError, Item, Part
from steering.fitting.stages import Chunks, Stages, load_json, load_state, save_json, save_state
from steering.fitting.training import Forced, Optimisation, States, fit_head, fit_prober
from steering.guard import Guard
from steering.head import RefusalHead
from steering.manifest import LayerFigures, Manifest, ModelBinding, Threshold
from steering.prober import HIDDEN, Prober

TARGET_FPRS = (0.001, 0.01, 0.05)
EPS_SWEEP = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
EVEN_ODDS = 0.5  # below it a prompt is likelier safe: where the promise allows less, that is not used up
NEAR_MOST = 0.01  # share of refusals that counts as the best's
NEAR_CLEAREST = 1.05  # factor of perplexity that counts as the best's
MIN_PROMPTS = 4  # of each label in each part
WORDS_GIVE_AWAY = 0.95  # AUROC of the words alone, from which the report warns


@dataclass(frozen=True)
class Settings:
    """The choices of a fit."""

    refusals: tuple[str, ...]  # the first is the bundle's
    select: Select = "sas"
    layers: tuple[int, ...] = ()  # these instead of selecting one; several are read side by side
    target_fpr: float | None = None  # of the default threshold; None: 1 %, or what the data can carry
    prober_hidden: int = HIDDEN  # 0: linear
    rank: int | None = None
    head_prompts: int = 400
    sweep_prompts: int = 120
    seed: int = 0
    prober: Optimisation = field(default_factory=Optimisation)
    head: Optimisation = field(default_factory=lambda: Optimisation(epochs=30))


@dataclass(frozen=True)
class Fitted:
    """A guard, and what its report is made of."""

    guard: Guard
    report: Mapping[str, Any]
    folders: Mapping[str, Path]  # of the stages
    prompts: Prompts


@dataclass(frozen=True)
class Prompts:
    """All sides of all items in one order: labels `[N]` (1 toxic), the part and the item of each."""

    items: Sequence[Item]
    questions: Sequence[Question]
    labels: Tensor
    parts: Sequence[Part]
    owners: Sequence[int]

    @classmethod
    def of(cls, parts: Mapping[Part, Sequence[Item]]) -> Prompts:
        """List the sides, part by part."""
        items = [item for members in parts.values() for item in members]
        named = [part for part, members in parts.items() for _ in members]
        sides = [
            (side, label, owner)
            for owner, item in enumerate(items)
            for side, label in ((item.toxic, 1), (item.safe, 0))
            if side is not None
        ]
        return cls(
            items=items,
            questions=[side for side, _, _ in sides],
            labels=torch.tensor([label for _, label, _ in sides]),
            parts=[named[owner] for _, _, owner in sides],
            owners=[owner for _, _, owner in sides],
        )

    def places(self, part: Part, label: int | None = None) -> list[int]:
        """Where the sides of a part (and label) stand."""
        return [
            place
            for place, found in enumerate(self.parts)
            if found == part and label in (None, int(self.labels[place]))
        ]

    def twins(self, part: Part) -> tuple[list[int], list[int]]:
        """Where the two sides of each pair of a part stand."""
        safe_of = {self.owners[place]: place for place in self.places(part, 0)}
        toxic = [place for place in self.places(part, 1) if self.owners[place] in safe_of]
        return toxic, [safe_of[self.owners[place]] for place in toxic]

    def check(self) -> None:
        """Raise FitError where a part is too small to be of any use."""
        parts: tuple[Part, ...] = ("train", "validation", "calibration")
        for part in parts:
            for label, name in ((1, "toxic"), (0, "safe")):
                found = len(self.places(part, label))
                if found < MIN_PROMPTS:
                    raise FitError(f"the {part} part has {found} {name} prompts, at least {MIN_PROMPTS} are needed")
        if len(self.twins("train")[0]) < 2:
            raise FitError("the train part has no contrast pairs: the Safety Awareness Score needs twins")


def fit(
    backbones: Sequence[Backbone],
    parts: Mapping[Part, Sequence[Item]],
    settings: Settings,
    out: Path,
    work: Path,
    progress: Progress,
) -> Fitted:
    """Fit a guard and write its bundle to `out`; stages are kept under `work`. One backbone per device, all the same.

    Raises FitError where the data is too small.
    """
    backbone, stages = backbones[0], Stages(work)
    prompts = Prompts.of(parts)
    prompts.check()
    layers = list(range(backbone.info.num_layers + 1))
    for given in settings.layers:
        if given not in layers:
            raise FitError(f"layer {given} is not one of 0..{layers[-1]}")
    layers = list(settings.layers) or layers
    threshold_rate(settings.target_fpr, len(prompts.places("calibration", 0)))
    # What the weights of a stage depend on but that no model's description holds.
    base = {
        "model": ModelBinding.of(backbone.info).model_dump(exclude={"name", "revision"}),
        "data": data_hash(prompts),
    }
    machine = {"torch": torch.__version__, "device": backbone.info.device.type}
    step = _Steps(backbones, prompts, settings, stages, progress)

    begun = stages.run("data", base, step.begin)
    states = stages.run("states", {**base, **machine, "layers": layers}, lambda to: step.states(layers, to))
    fitting = {"hidden": settings.prober_hidden, "optimisation": asdict(settings.prober), "seed": settings.seed}
    table = stages.run("layers", {"states": states.name, **fitting}, lambda to: step.layers(layers, states, to))
    figures = [LayerFigures(**row) for row in load_json(table / "layers.json")]
    chosen = settings.layers or (choose_layer(figures, settings.select),)
    places = [layers.index(layer) for layer in chosen]
    probed = stages.run(
        "prober", {"states": states.name, "layers": chosen, **fitting}, lambda to: step.prober(states, places, to)
    )
    forcing = {**base, **machine, "refusals": settings.refusals, "count": settings.head_prompts}
    forced = stages.run("refusals", forcing, step.refusals)
    heading = {"refusals": forced.name, "rank": settings.rank, "optimisation": asdict(settings.head)}
    headed = stages.run("head", heading, lambda to: step.head(forced, to))
    sweeping = {"head": headed.name, "count": settings.sweep_prompts, "eps": EPS_SWEEP}
    swept = stages.run("eps", sweeping, lambda to: step.sweep(headed, to))

    folders = {
        "data": begun, "states": states, "layers": table, "prober": probed, "refusals": forced, "head": headed,
        "eps": swept,
    }  # fmt: skip
    guard, report = _assemble(backbone, prompts, settings, chosen, figures, folders)
    save_bundle(out, guard.manifest, guard.prober, guard.head, guard.calibration)
    return Fitted(guard, {**report, "stages": {"reused": stages.reused, "computed": stages.computed}}, folders, prompts)


class _Steps:
    """The work of the stages; each writes its result into the folder that it is given."""

    def __init__(
        self,
        backbones: Sequence[Backbone],
        prompts: Prompts,
        settings: Settings,
        stages: Stages,
        progress: Progress,
    ) -> None:
        self._backbones, self._prompts, self._settings = backbones, prompts, settings
        self._stages, self._progress = stages, progress

    def begin(self, folder: Path) -> None:
        """When the fit began: kept, so that going on later does not change the bundle."""
        save_json(folder / "begun.json", {"date": datetime.now(UTC).date().isoformat()})

    def states(self, layers: Sequence[int], folder: Path) -> None:
        questions = self._prompts.questions
        collect_states(self._backbones, questions, layers, folder, self._bar("states", len(questions)))

    def layers(self, layers: Sequence[int], states: Path, folder: Path) -> None:
        tick = self._bar("layers", len(layers))
        toxic, safe = self._prompts.twins("train")
        rows = []
        for place, layer in enumerate(layers):
            x = Chunks(states).column(place)
            figures = layer_figures(
                layer,
                (x[toxic], x[safe]),
                labelled(self._prompts, x, "train"),
                labelled(self._prompts, x, "validation"),
                hidden=self._settings.prober_hidden,
                optimisation=self._settings.prober,
            )
            rows.append(figures.model_dump())
            tick(1)
        save_json(folder / "layers.json", rows)

    def prober(self, states: Path, places: Sequence[int], folder: Path) -> None:
        x = torch.cat([Chunks(states).column(place) for place in places], dim=1)
        train, held_out = (labelled(self._prompts, x, part) for part in ("train", "validation"))
        prober, losses = fit_prober(
            train,
            held_out,
            hidden=self._settings.prober_hidden,
            optimisation=self._settings.prober,
            tick=self._bar("prober", self._settings.prober.epochs),
        )
        save_state(folder / "prober.safetensors", prober.state_dict())
        save_state(folder / "scores.safetensors", {"scores": prober.score(x)})
        save_json(folder / "losses.json", losses)

    def refusals(self, folder: Path) -> None:
        for number, ids in enumerate(map(self._refusal_ids, self._settings.refusals)):
            for part in ("train", "validation"):
                questions = self._spread(part, self._settings.head_prompts)
                to = folder / f"{part}-{number}"
                to.mkdir(exist_ok=True)
                tick = self._bar(f"refusals, {part}", len(questions))
                chunks = collect_forced(self._backbones, questions, ids, to, tick)
                save_state(folder / f"{part}-{number}.safetensors", {"x": torch.cat(list(chunks))})
                for path in to.iterdir():
                    path.unlink()
                to.rmdir()

    def head(self, forced: Path, folder: Path) -> None:
        def places(part: str) -> Forced:
            refusals = enumerate(map(self._refusal_ids, self._settings.refusals))
            states = [(load_state(forced / f"{part}-{number}.safetensors")["x"], ids) for number, ids in refusals]
            return Forced.join([Forced.of(x.to(backbone.info.device), ids) for x, ids in states])

        backbone = self._backbones[0]
        head, losses = fit_head(
            places("train"),
            places("validation"),
            lambda hidden: backbone.logits(hidden.to(backbone.info.dtype)),
            rank=self._settings.rank,
            optimisation=self._settings.head,
            tick=self._bar("head", self._settings.head.epochs),
        )
        save_state(folder / "head.safetensors", head.state_dict())
        save_json(folder / "losses.json", losses)

    def sweep(self, headed: Path, folder: Path) -> None:
        backbone = self._backbones[0]
        head = load_head(headed, backbone, self._settings.rank)
        questions = self._spread("validation", self._settings.sweep_prompts)
        tick = self._bar("eps", len(EPS_SWEEP) * len(questions))
        points = [sweep_point(backbone, head, questions, eps, self._settings.refusals, tick) for eps in EPS_SWEEP]
        save_json(folder / "sweep.json", [asdict(point) for point in points])

    def _refusal_ids(self, refusal: str) -> list[int]:
        return refusal_ids(self._backbones[0], refusal)

    def _spread(self, part: Part, count: int) -> list[Question]:
        """At most `count` toxic prompts of a part, evenly over it, so that every category is among them."""
        places = self._prompts.places(part, 1)
        step = max(1.0, len(places) / count)
        return [self._prompts.questions[places[int(at * step)]] for at in range(min(count, len(places)))]

    def _bar(self, name: str, total: int) -> Tick:
        task = self._progress.add_task(name, total=total)
        return lambda count: self._progress.advance(task, count)


def labelled(prompts: Prompts, x: Tensor, part: Part) -> States:
    """The states of a part, out of those of all prompts `[N, d]`."""
    places = prompts.places(part)
    return States(x[places], prompts.labels[places])


# refusals ----------------------------------------------------------------------------------------------------------


def refusal_ids(backbone: Backbone, refusal: str) -> list[int]:
    """Tokens of the refusal as an answer: its text, then the end."""
    text: list[int] = backbone.tokenizer.encode(refusal, add_special_tokens=False)
    eos = backbone.tokenizer.eos_token_id
    return [*text, eos if eos in backbone.info.eos_ids else min(backbone.info.eos_ids)]


def load_head(folder: Path, backbone: Backbone, rank: int | None) -> RefusalHead:
    """The head of a finished stage, on the backbone's device."""
    head = RefusalHead(backbone.info.hidden_size, rank)
    head.load_state_dict(load_state(folder / "head.safetensors"))
    return head.to(backbone.info.device).requires_grad_(requires_grad=False)


@dataclass(frozen=True)
class EpsPoint:
    """One eps of the sweep: shares of toxic validation prompts whose answer is exactly a refusal, or begins like one.

    `perplexity` of the answers under the unguarded model: what is no language is not likely either.
    """

    eps: float
    exact: float
    begins: float
    perplexity: float


def sweep_point(
    backbone: Backbone,
    head: RefusalHead,
    questions: Sequence[Question],
    eps: float,
    refusals: Sequence[str],
    tick: Callable[[int], None],
) -> EpsPoint:
    """Steer every prompt at one eps and see what is said."""
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


def choose_eps(sweep: Sequence[EpsPoint]) -> float:
    """The middle one of those that refuse, and speak, as well as the best do: the farthest from where either fails."""
    most = max(point.exact for point in sweep)
    refusing = [point for point in sweep if point.exact >= most - NEAR_MOST]
    clearest = min(point.perplexity for point in refusing)
    good = sorted(point.eps for point in refusing if point.perplexity <= clearest * NEAR_CLEAREST)
    return good[(len(good) - 1) // 2]


# the bundle --------------------------------------------------------------------------------------------------------


def threshold_rate(wanted: float | None, samples: int) -> float:
    """The false-positive rate of the default threshold. Raises FitError where `samples` cannot promise it."""
    if wanted is not None:
        if wanted not in TARGET_FPRS:
            raise FitError(f"target FPR {wanted:g} is not one of {', '.join(f'{rate:g}' for rate in TARGET_FPRS)}")
        if samples < samples_needed(wanted):
            needed = samples_needed(wanted)
            raise FitError(f"{samples} safe calibration prompts cannot promise an FPR of {wanted:g}; {needed} can")
        return wanted
    for rate in (0.01, 0.05):
        if samples >= samples_needed(rate):
            return rate
    raise FitError(f"{samples} safe calibration prompts cannot promise an FPR of 0.05; {samples_needed(0.05)} can")


def _assemble(
    backbone: Backbone,
    prompts: Prompts,
    settings: Settings,
    layers: Sequence[int],
    figures: Sequence[LayerFigures],
    folders: Mapping[str, Path],
) -> tuple[Guard, dict[str, Any]]:
    """The guard from its finished stages, and the report's figures."""
    prober = Prober(backbone.info.hidden_size * len(layers), settings.prober_hidden)
    prober.load_state_dict(load_state(folders["prober"] / "prober.safetensors"))
    scores = load_state(folders["prober"] / "scores.safetensors")["scores"]
    safe_scores = scores[prompts.places("calibration", 0)]
    thresholds = [
        Threshold(target_fpr=rate, threshold=threshold, samples=len(safe_scores))
        for rate in TARGET_FPRS
        if (threshold := conformal_threshold(safe_scores, rate)) is not None
    ]
    rate = threshold_rate(settings.target_fpr, len(safe_scores))
    promised = next((known.threshold for known in thresholds if known.target_fpr == rate), None)
    if promised is None:
        raise FitError(f"safe calibration prompts score as high as scores go: no threshold promises an FPR of {rate:g}")
    default = max(promised, EVEN_ODDS)
    sweep = [EpsPoint(**row) for row in load_json(folders["eps"] / "sweep.json")]
    validation = judge(prompts, scores, default)
    manifest = Manifest(
        model=ModelBinding.of(backbone.info),
        layer=max((row for row in figures if row.layer in layers), key=lambda row: row.sas).layer,
        probe_layers=list(layers) if len(layers) > 1 else [],
        prober_hidden=settings.prober_hidden,
        head_rank=settings.rank,
        layers=list(figures),
        thresholds=thresholds,
        threshold=default,
        eps=choose_eps(sweep),
        refusal=settings.refusals[0],
        validation=validation,
        data_hash=data_hash(prompts),
        data_size=len(prompts.questions),
        versions=versions(),
        date=load_json(folders["data"] / "begun.json")["date"],
        tensors_hash="",
    )
    head = load_head(folders["head"], backbone, settings.rank)
    guard = Guard(manifest, prober, head, {"safe_scores": safe_scores}).to(backbone.info.device)
    report = {
        "manifest": manifest.model_dump(),
        "default_fpr": rate,
        "sizes": {
            part: {name: len(prompts.places(part, label)) for label, name in ((1, "toxic"), (0, "safe"))}
            for part in dict.fromkeys(prompts.parts)
        },
        "pairs": len(prompts.twins("train")[0]),
        "choices": {select: choose_layer(figures, select) for select in SELECTS.values()},
        "chosen_by": "given" if settings.layers else settings.select,
        "categories": by_category(prompts, scores, default),
        "sweep": [asdict(point) for point in sweep],
        "losses": {name: load_json(folders[name] / "losses.json") for name in ("prober", "head")},
        "words_auroc": words_auroc(prompts),
        "warnings": warnings(prompts, scores, figures, layers, rate),
    }
    return guard, report


def judge(prompts: Prompts, scores: Tensor, threshold: float) -> dict[str, float]:
    """Figures on the calibration part, which neither prober nor layer has seen; its safe half set the threshold."""
    places = prompts.places("calibration")
    found, labels = scores[places], prompts.labels[places]
    flagged = found >= threshold
    return {
        "auroc": auroc(found, labels),
        "balanced_accuracy": balanced_accuracy(found > 0.5, labels),
        "calibration_error": calibration_error(found, labels),
        "tpr": float(flagged[labels == 1].double().mean()),
        "fpr": float(flagged[labels == 0].double().mean()),
    }


def by_category(prompts: Prompts, scores: Tensor, threshold: float) -> dict[str, dict[str, float]]:
    """Per category of the calibration part: how many toxic and safe prompts, and the shares of them flagged."""
    table: dict[str, dict[str, float]] = {}
    names = {owner: item.category or "(none)" for owner, item in enumerate(prompts.items)}
    for category in sorted(set(names.values())):
        row: dict[str, float] = {}
        for label, name in ((1, "toxic"), (0, "safe")):
            at = [p for p in prompts.places("calibration", label) if names[prompts.owners[p]] == category]
            if at:
                row[name] = len(at)
                row[f"{name}_flagged"] = float((scores[at] >= threshold).double().mean())
        if row:
            table[category] = row
    return table


def warnings(
    prompts: Prompts, scores: Tensor, figures: Sequence[LayerFigures], layers: Sequence[int], rate: float
) -> list[str]:
    """What a reader of the report must know first."""
    found = []
    places = prompts.places("calibration")
    by_prober, by_words = auroc(scores[places], prompts.labels[places]), words_auroc(prompts)
    if no_signal(by_prober, prompts.labels[places]):
        found.append(f"There is no signal: on fresh prompts the AUROC is {by_prober:.3f}, no better than chance.")
    if by_words >= WORDS_GIVE_AWAY:
        found.append(
            f"The words alone give the label away: a bag of words reaches AUROC {by_words:.3f} on fresh prompts. "
            "What the prober learnt may be words too."
        )
    best = max(figures, key=lambda each: each.auroc)
    chosen = max((each for each in figures if each.layer in layers), key=lambda each: each.auroc)
    if best.auroc - chosen.auroc > 0.01:
        better = f"layer {best.layer} ({best.auroc:.3f})"
        found.append(
            f"Layer {chosen.layer} separates worse (AUROC {chosen.auroc:.3f}) than {better}; "
            "consider --select sas-among-best."
        )
    samples = len(prompts.places("calibration", 0))
    found += [
        f"{samples} safe calibration prompts cannot promise an FPR of {target:g}: {samples_needed(target)} are needed."
        for target in TARGET_FPRS
        if samples < samples_needed(target)
    ]
    if rate == 0.05:
        found.append("The default threshold aims at an FPR of 5 %: there are too few safe prompts for 1 %.")
    return found


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def data_hash(prompts: Prompts) -> str:
    """SHA-256 over every text, image, label and part, in order; where files lie does not matter."""
    digest = hashlib.sha256()
    for question, label, part, owner in zip(
        prompts.questions, prompts.labels.tolist(), prompts.parts, prompts.owners, strict=True
    ):
        digest.update(json.dumps([question.text, label, part, owner, len(question.images)]).encode())
        for image in question.digests():
            digest.update(bytes.fromhex(image))
    return digest.hexdigest()
