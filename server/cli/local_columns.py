"""The columns of `eval` that a model in process fills: checked before torch is imported, loaded when rows are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from server.cli.console import load, mistake
from server.cli.folders import check_model

if TYPE_CHECKING:
    from steering.evaluation.columns import LocalMode
    from steering.evaluation.run import Guarded
    from steering.manifest import Manifest
    from steering.policy import Policy


@dataclass(frozen=True)
class Strength:
    """What takes the place of a bundle's threshold and eps, if anything."""

    threshold: float | None = None
    target_fpr: float | None = None
    eps: float | None = None

    def policy(self, manifest: Manifest) -> Policy:
        """The policy of a bundle with these in place; a mistake where they do not fit it."""
        try:
            return manifest.policy(threshold=self.threshold, target_fpr=self.target_fpr, eps=self.eps)
        except ValueError as error:
            mistake(error)


@dataclass(frozen=True)
class LocalColumns:
    """A model, its guard, and the columns that they fill."""

    name: str  # as it was asked for
    model: str
    guard: Path | None
    modes: Sequence[LocalMode]
    strength: Strength

    @classmethod
    def of(cls, model: str, guard: Path | None, modes: str, strength: Strength) -> Self:
        """Check everything that can be without torch; a mistake where it cannot be evaluated. Raises BundleError."""
        from models import demo
        from steering.evaluation.columns import LOCAL_MODES
        from steering.manifest import load_manifest

        given = modes.split(",")
        unknown = [mode for mode in given if mode not in LOCAL_MODES]
        if unknown:
            mistake(f"--modes {unknown[0]} is not one of {', '.join(LOCAL_MODES)}")
        name = model
        if model == "demo":
            model, guard = str(demo.CHECKPOINT), guard or demo.GUARD
        if guard is not None:
            strength.policy(load_manifest(guard))
        elif modes != "original" or strength != Strength():
            mistake("without --guard only --modes original can be evaluated, and no threshold or eps")
        check_model(model)
        return cls(name, model, guard, [mode for mode in LOCAL_MODES if mode in given], strength)

    def load(self, batch: int, device: str, dtype: str, revision: str | None, eps_sweep: Sequence[float]) -> Guarded:
        """Load the model, and the guard that is bound to it. Raises LoadError, BundleError."""
        from steering.bundle import load_guard
        from steering.evaluation.run import Guarded

        backbone = load(self.model, device, dtype, batch, revision)[0]
        if self.guard is None:
            return Guarded(self.name, backbone, None, None, self.modes)
        loaded = load_guard(self.guard, backbone.info)
        return Guarded(self.name, backbone, loaded, self.strength.policy(loaded.manifest), self.modes, eps_sweep)
