"""The steps of a fit: each one's work, written into the folder of its stage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor

from models.backbone import Backbone
from steering.errors import FitError
from steering.fitting.choices import OWN_WORDS, HeadKind, Reader, Select
from steering.fitting.collect import NOT_FINITE, Bar, StateError, collect_forced, collect_states
from steering.fitting.dataset import Dataset
from steering.fitting.layers import layer_figures
from steering.fitting.nullspace import harmless_states, nullspace_head
from steering.fitting.stages import Chunks, load_state, save_json, save_state
from steering.fitting.sweep import EPS_SWEEP, refusal_ids, sweep_point
from steering.fitting.training import Forced, Optimisation, Spared, fit_head, fit_prober, head_loss
from steering.head import RefusalHead
from steering.prober import HIDDEN


@dataclass(frozen=True)
class Settings:
    """The choices of a fit."""

    refusals: tuple[str, ...]  # the first is the bundle's
    select: Select = "sas"
    reader: Reader = "conversation"
    layers: tuple[int, ...] = ()  # these instead of selecting; several are read side by side
    target_fpr: float | None = None  # of the default threshold; None: 1 %, or what the data can carry
    prober_hidden: int = HIDDEN  # 0: linear
    head_kind: HeadKind = "trained"
    rank: int | None = None  # of a trained head
    head_prompts: int = 400
    sweep_prompts: int = 120
    own_words: int = OWN_WORDS  # texts that the model says in a user's place, for padding
    seed: int = 0
    categories: bool = True  # tell apart those that enough rows name
    require_tpr: float = 0.0  # recall at the default threshold below which no bundle is written
    prober: Optimisation = field(default_factory=Optimisation)
    head: Optimisation = field(default_factory=lambda: Optimisation(epochs=30))

    @property
    def harmless_prompts(self) -> int:
        """How many prompts give states that a head leaves alone; a trained one learns a few thousand by heart."""
        return self.head_prompts * (4 if self.head_kind == "sparing" else 1)


class Steps:
    """The work of the stages. One backbone per device, all of the same model, share the collecting."""

    def __init__(self, backbones: Sequence[Backbone], dataset: Dataset, settings: Settings, bar: Bar) -> None:
        self.backbones, self._dataset, self._settings = backbones, dataset, settings
        self.bar = bar

    def begin(self, folder: Path) -> None:
        """Keep the day on which the fit began, so that going on later does not change the bundle."""
        save_json(folder / "begun.json", {"date": datetime.now(UTC).date().isoformat()})

    def states(self, layers: Sequence[int], folder: Path) -> None:
        """Collect the state of every prompt at these layers."""
        questions = self._dataset.questions
        with self._named(range(len(questions))):
            collect_states(self.backbones, questions, layers, folder, self.bar("states", len(questions)))

    def layers(self, layers: Sequence[int], states: Path, folder: Path) -> None:
        """Measure each layer: SAS, and a prober's figures on the validation part."""
        tick = self.bar("layers", len(layers))
        toxic, safe = self._dataset.twins("train")
        rows = []
        for place, layer in enumerate(layers):
            x = Chunks(states).column(place)
            figures = layer_figures(
                layer,
                (x[toxic], x[safe]),
                self._dataset.states(x, "train"),
                self._dataset.states(x, "validation"),
                hidden=self._settings.prober_hidden,
                optimisation=self._settings.prober,
            )
            rows.append(figures.model_dump())
            tick(1)
        save_json(folder / "layers.json", rows)

    def prober(self, states: Path, places: Sequence[int], folder: Path) -> None:
        """Fit the prober on the columns `places` of the states, and score every prompt with it."""
        x = torch.cat([Chunks(states).column(place) for place in places], dim=1)
        prober, losses = fit_prober(
            self._dataset.states(x, "train"),
            self._dataset.states(x, "validation"),
            hidden=self._settings.prober_hidden,
            optimisation=self._settings.prober,
            tick=self.bar("prober", self._settings.prober.epochs),
        )
        scores = prober.score(x)
        if len(wrong := (~scores.isfinite()).nonzero()):
            raise FitError(f"{self._dataset.name(int(wrong[0]))}: the prober's score is no number: it did not converge")
        save_state(folder / "prober.safetensors", prober.state_dict())
        save_state(folder / "scores.safetensors", {"scores": scores})
        save_json(folder / "losses.json", losses)

    def refusals(self, folder: Path) -> None:
        """Collect the hidden states along each refusal, teacher-forced after toxic prompts."""
        for number, ids in enumerate(self._refusals()):
            for part in ("train", "validation"):
                places = self._dataset.spread(part, self._settings.head_prompts)
                questions = [self._dataset.questions[place] for place in places]
                to = folder / f"{part}-{number}"
                to.mkdir(exist_ok=True)
                tick = self.bar(f"refusals, {part}", len(questions))
                with self._named(places):
                    chunks = collect_forced(self.backbones, questions, ids, to, tick)
                save_state(folder / f"{part}-{number}.safetensors", {"x": torch.cat(list(chunks))})
                for path in to.iterdir():
                    path.unlink()
                to.rmdir()

    def head(self, forced: Path, folder: Path, harmless: Path | None = None) -> None:
        """Fit the Refusal Head on the states along the refusals, and along the harmless answers that it spares."""
        spared = None
        if harmless is not None:
            states = load_state(harmless / "harmless.safetensors")["x"]
            spared = Spared.of(states.to(self.backbones[0].info.device))
        head, losses = fit_head(
            self._forced(forced, "train"),
            self._forced(forced, "validation"),
            self._logits,
            rank=self._settings.rank,
            spared=spared,
            optimisation=self._settings.head,
            tick=self.bar("head", self._settings.head.epochs),
        )
        save_state(folder / "head.safetensors", head.state_dict())
        save_json(folder / "losses.json", losses)

    def harmless(self, folder: Path) -> None:
        """Collect the states along the model's own answers to harmless prompts."""
        places = self._dataset.spread("train", self._settings.harmless_prompts, 0)
        questions = [self._dataset.questions[place] for place in places]
        states = harmless_states(self.backbones[0], questions, self.bar("harmless answers", len(questions)))
        save_state(folder / "harmless.safetensors", {"x": states})

    def nullspace(self, forced: Path, harmless: Path, folder: Path) -> None:
        """Solve for the Refusal Head, of the states along the refusals and along harmless answers."""
        held_out = self._forced(forced, "validation")
        states = load_state(harmless / "harmless.safetensors")["x"]
        head = nullspace_head(self._forced(forced, "train"), states, self._logits)
        save_state(folder / "head.safetensors", head.state_dict())
        save_json(folder / "losses.json", [head_loss(head, held_out, self._logits)])

    def _logits(self, hidden: Tensor) -> Tensor:
        backbone = self.backbones[0]
        return backbone.logits(hidden.to(backbone.info.dtype))

    def _forced(self, folder: Path, part: str) -> Forced:
        device = self.backbones[0].info.device
        return Forced.join(
            [
                Forced.of(load_state(folder / f"{part}-{number}.safetensors")["x"].to(device), ids)
                for number, ids in enumerate(self._refusals())
            ]
        )

    def sweep(self, headed: Path, folder: Path) -> None:
        """Answer toxic validation prompts at each eps of the sweep."""
        backbone = self.backbones[0]
        head = load_head(headed, backbone, self._settings.rank)
        places = self._dataset.spread("validation", self._settings.sweep_prompts)
        questions = [self._dataset.questions[place] for place in places]
        tick = self.bar("eps", len(EPS_SWEEP) * len(questions))
        points = [sweep_point(backbone, head, questions, eps, self._settings.refusals, tick) for eps in EPS_SWEEP]
        save_json(folder / "sweep.json", [asdict(point) for point in points])

    @contextmanager
    def _named(self, places: Sequence[int]) -> Iterator[None]:
        """Raise FitError naming the prompt and the layer where the states of these prompts are unusable."""
        try:
            yield
        except StateError as error:
            name = self._dataset.name(places[error.place])
            raise FitError(f"{name}: its state at layer {error.layer} {NOT_FINITE}; try another --dtype") from error

    def _refusals(self) -> list[list[int]]:
        return [refusal_ids(self.backbones[0], refusal) for refusal in self._settings.refusals]


def load_head(folder: Path, backbone: Backbone, rank: int | None) -> RefusalHead:
    """The head of a finished stage, on the backbone's device."""
    head = RefusalHead(backbone.info.hidden_size, rank)
    head.load_state_dict(load_state(folder / "head.safetensors"))
    return head.to(backbone.info.device).requires_grad_(requires_grad=False)
