"""Which model, guard and name the settings stand for."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.config import Settings

if TYPE_CHECKING:
    from server.engine import Engine

DEMO_NAME = "autosteer-demo"


@dataclass(frozen=True)
class Plan:
    """What is to be loaded. `guard` None: none."""

    model: str
    guard: Path | None
    name: str

    @classmethod
    def of(cls, settings: Settings) -> Plan:
        """The bundled demo model and its guard where the settings name no model."""
        from models import demo

        is_demo = settings.model is None or Path(settings.model).absolute() == demo.CHECKPOINT
        model = settings.model or str(demo.CHECKPOINT)
        guard = settings.guard or (str(demo.GUARD) if is_demo else "none")
        return cls(
            model=model,
            guard=None if guard.lower() == "none" else Path(guard),
            name=settings.served_model_name or (DEMO_NAME if is_demo else _short_name(model)),
        )

    def load(self, settings: Settings) -> Engine:
        """Load model and guard; for the engine's thread. Raises LoadError, BundleError, PolicyError."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        # On a CPU every length of a batch of prompts makes kernels of its own. The default keeps 1,024 of them, which
        # fills up slowly and looks like a leak (150 MB with the demo model); these do for all sizes of a decode step.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
        from models.load import load_backbone
        from server.engine import Engine
        from server.policies import make_policies
        from server.scheduler import Scheduler
        from server.shadow import load_shadow
        from steering.bundle import load_guard

        backbone = load_backbone(
            self.model,
            device=settings.device,
            dtype=settings.dtype,
            max_rows=settings.max_rows,
            revision=settings.revision,
        )
        guard = None if self.guard is None else load_guard(self.guard, backbone.info)
        make_policies(settings, None if guard is None else guard.manifest)
        shadow = None if settings.shadow is None else load_shadow(settings.shadow, guard, backbone.info)
        return Engine(backbone, guard, Scheduler(settings.max_rows, settings.prefill_tokens), shadow)


def _short_name(model: str) -> str:
    return Path(model).absolute().name if Path(model).is_dir() else model
