"""The guard: one bundle's readers and Refusal Head on the backbone's device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.layout import Layout
from steering.answers import AnswerReader
from steering.categories import CategoryReader
from steering.head import RefusalHead
from steering.policy import CategoryScore
from steering.readers import Conversation, LastToken, Notes, project
from steering.token_scores import TokenScores

if TYPE_CHECKING:
    from steering.manifest import Manifest


class Guard(nn.Module):
    """Reads tokens, scores prompts and steers hidden states. It keeps nothing of a request.

    `answers`: reads answers, where the bundle has such a reader; `categories` tells which kind of harm a prompt is.
    """

    def __init__(
        self,
        manifest: Manifest,
        reader: LastToken | Conversation,
        head: RefusalHead,
        calibration: Mapping[str, Tensor],
        answers: AnswerReader | None = None,
        categories: CategoryReader | None = None,
    ) -> None:
        super().__init__()
        self.manifest = manifest
        self.reader = reader
        self.head = head
        self.calibration = dict(calibration)
        self.answers = answers
        self.categories = categories

    @property
    def layer(self) -> int:
        """The layer that is read; of several, the one with the highest SAS."""
        return self.manifest.layer

    @property
    def layers(self) -> Sequence[int]:
        """All layers that are read."""
        return self.manifest.probe_layers or [self.manifest.layer]

    @property
    def width(self) -> int:
        """How many numbers it keeps of a token."""
        return self.reader.width + (0 if self.categories is None else self.categories.width)

    @property
    def calibration_scores(self) -> list[float]:
        """Held-out scores of harmless prompts; none where the bundle keeps none."""
        scores = self.calibration.get("safe_scores")
        return [] if scores is None else scores.tolist()

    @property
    def answer_calibration_scores(self) -> list[float]:
        """Final scores of held-out harmless answers, by their quantiles; none where it reads no answers."""
        spec = self.manifest.answers
        if self.answers is None or spec is None:
            return []
        return self.answers.harmless_scores(max((each.samples for each in spec.thresholds), default=0))

    @property
    def fitted_rows(self) -> frozenset[int] | None:
        """Fingerprints of the prompts it was fitted on (`steering/data/questions.py`); None of older bundles."""
        rows = self.calibration.get("fitted_rows")
        return None if rows is None else frozenset(rows.tolist())

    @torch.inference_mode()
    def read(self, states: Tensor) -> Tensor:
        """What is kept of tokens, `[N, width]`, of their states at `layers`, `[N, layers, d]`."""
        if self.categories is None:
            return self.reader.read(states)
        if isinstance(self.reader, Conversation):
            weight, bias = self._linear
            return project(states, weight) + bias
        return torch.cat([self.reader.read(states), self.categories.read(states)], dim=1)

    @cached_property
    def _linear(self) -> tuple[Tensor, Tensor]:
        """The weights and biases of both readers: to read the states takes long, whatever they are multiplied with."""
        assert isinstance(self.reader, Conversation), "the reader is not linear"
        assert self.categories is not None, "there is one reader"
        both = self.reader, self.categories
        return torch.cat([each.weight for each in both]), torch.cat([each.bias for each in both])

    def score(self, notes: Tensor, layout: Layout) -> float:
        """The score in [0, 1] of a prompt, 1 is toxic, of what was read of all its tokens `[T, width]`."""
        return self.reader.score(self._of_reader(notes), layout)

    def categorise(self, notes: Tensor, layout: Layout) -> Sequence[CategoryScore]:
        """How much a prompt is of each category, of what was read of all its tokens `[T, width]`; else nothing."""
        if self.categories is None:
            return ()
        at_ends = notes[list(self.reader.ends(layout)), self.reader.width :]
        return self.categories.scores(at_ends.double().cpu().numpy())

    def token_scores(self, notes: Tensor, layout: Layout) -> TokenScores:
        """The score at each token of a prompt, of what was read of them `[T, width]`."""
        return self.reader.token_scores(self._of_reader(notes), layout)

    def _of_reader(self, notes: Tensor) -> Notes:
        """The reader's own numbers, without those of categories."""
        return notes[:, : self.reader.width].double().cpu().numpy()

    @torch.inference_mode()
    def steer(self, hidden: Tensor, eps: Tensor) -> Tensor:
        """Hidden states `[B, d]` bent by eps `[B]`; rows with eps 0 come back bit for bit."""
        return self.head.steer(hidden, eps)
