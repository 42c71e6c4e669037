"""The guard: one bundle's prober and Refusal Head on the backbone's device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from steering.bundle import Manifest
from steering.head import RefusalHead
from steering.policy import Mode, Policy
from steering.prober import Prober


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

    @torch.inference_mode()
    def score(self, states: Tensor) -> Tensor:
        """Scores `[B]` in [0, 1] of the tapped states, `[B, d]` or of several layers `[B, layers, d]`; 1 is toxic."""
        return self.prober.score(states.flatten(1))

    @torch.inference_mode()
    def steer(self, hidden: Tensor, eps: Tensor) -> Tensor:
        """Hidden states `[B, d]` bent by eps `[B]`; rows with eps 0 come back bit for bit."""
        return self.head.steer(hidden, eps)

    def policy(
        self,
        name: str = "default",
        mode: Mode = Mode.STEER,
        *,
        threshold: float | None = None,
        target_fpr: float | None = None,
        eps: float | None = None,
        refusal: str | None = None,
        expose_scores: bool = False,
    ) -> Policy:
        """A policy with the bundle's threshold, eps and refusal text where none is given. Raises ValueError."""
        if threshold is not None and target_fpr is not None:
            raise ValueError(f"threshold {threshold} and target_fpr {target_fpr}: give one of them")
        if target_fpr is not None:
            threshold = self.threshold_for(target_fpr)
        return Policy(
            name=name,
            mode=mode,
            threshold=self.manifest.threshold if threshold is None else threshold,
            eps=self.manifest.eps if eps is None else eps,
            refusal=refusal or self.manifest.refusal,
            expose_scores=expose_scores,
        )

    def threshold_for(self, target_fpr: float) -> float:
        """The bundle's threshold for a target false-positive rate. Raises ValueError naming those it has."""
        for known in self.manifest.thresholds:
            if abs(known.target_fpr - target_fpr) < 1e-9:
                return known.threshold
        rates = ", ".join(f"{known.target_fpr:g}" for known in self.manifest.thresholds) or "none"
        raise ValueError(f"target_fpr {target_fpr:g} is not calibrated in this bundle; it has {rates}")
