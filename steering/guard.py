"""The guard: one bundle's prober and Refusal Head on the backbone's device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from steering.head import RefusalHead
from steering.prober import Prober

if TYPE_CHECKING:
    from steering.manifest import Manifest


class Guard(nn.Module):
    """Scores states of one layer and steers hidden states. Per-row in, per-row out; it keeps nothing of a request."""

    def __init__(
        self, manifest: Manifest, prober: Prober, head: RefusalHead, calibration: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.manifest = manifest
        self.prober = prober
        self.head = head
        self.calibration = dict(calibration)

    @property
    def layer(self) -> int:
        """The layer that the prober reads; of several, the one with the highest SAS."""
        return self.manifest.layer

    @property
    def tapped(self) -> int | Sequence[int]:
        """What to tap for `score`."""
        return self.manifest.probe_layers or self.manifest.layer

    @property
    def calibration_scores(self) -> list[float]:
        """Held-out scores of harmless prompts; none where the bundle keeps none."""
        scores = self.calibration.get("safe_scores")
        return [] if scores is None else scores.tolist()

    @property
    def fitted_rows(self) -> frozenset[int] | None:
        """Fingerprints of the prompts it was fitted on (`steering/data/questions.py`); None of older bundles."""
        rows = self.calibration.get("fitted_rows")
        return None if rows is None else frozenset(rows.tolist())

    @torch.inference_mode()
    def score(self, states: Tensor) -> Tensor:
        """Scores `[B]` in [0, 1] of the tapped states, `[B, d]` or of several layers `[B, layers, d]`; 1 is toxic."""
        return self.prober.score(states.flatten(1))

    @torch.inference_mode()
    def steer(self, hidden: Tensor, eps: Tensor) -> Tensor:
        """Hidden states `[B, d]` bent by eps `[B]`; rows with eps 0 come back bit for bit."""
        return self.head.steer(hidden, eps)
