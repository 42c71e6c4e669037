"""What is served: the loaded model's face towards HTTP."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from models.grammar import GrammarCompiler
from server.detokenizer import TextDecoder
from server.policies import Calibrated
from steering.policy import Policy

if TYPE_CHECKING:
    from models.backbone import BackboneInfo
    from models.inputs import InputBuilder
    from server.engine import Engine


def server_version() -> str:
    """The installed version of this distribution."""
    try:
        return version("autosteer-server")
    except PackageNotFoundError:
        return "0+unknown"


@dataclass(frozen=True)
class Served:
    """A loaded model, as the routes see it."""

    name: str
    info: BackboneInfo
    inputs: InputBuilder
    decoder: TextDecoder
    grammars: GrammarCompiler
    guard: Calibrated | None
    layer: int | None  # the guarded one
    calibration: Sequence[float]  # scores of harmless prompts that the guard was calibrated on; none if it keeps none
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, engine: Engine, name: str) -> Served:
        """Describe an engine that has loaded."""
        info = engine.backbone.info
        return cls(
            name=name,
            info=info,
            inputs=engine.backbone.inputs,
            decoder=TextDecoder(engine.backbone.tokenizer),
            grammars=GrammarCompiler(engine.backbone.tokenizer, info.vocab_size, info.eos_ids),
            guard=None if engine.guard is None else engine.guard.manifest,
            layer=None if engine.guard is None else engine.guard.layer,
            calibration=() if engine.guard is None else engine.guard.calibration_scores,
        )

    def fingerprint(self, policy: Policy) -> str:
        """OpenAI's `system_fingerprint`: changes with whatever could change an answer."""
        parts = (server_version(), self.info.name, self.info.revision, self.info.dtype, self.layer, policy)
        return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:10]
