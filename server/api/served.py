"""What is served: the loaded model's face towards HTTP."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from server.answer.text_decoder import TextDecoder
from server.version import server_version
from server.workers.schemas import VocabularySource
from steering.policy import Calibrated, Policy

if TYPE_CHECKING:
    from models.backbone import BackboneInfo
    from models.inputs import InputBuilder
    from server.engine.host import Model


class Judge(NamedTuple):
    """Who has judged: a guard bundle's id, and the layer that it reads."""

    guard: str
    layer: int


@dataclass(frozen=True)
class Served:
    """A loaded model, as the routes see it."""

    name: str
    info: BackboneInfo
    inputs: InputBuilder
    decoder: TextDecoder
    vocabulary: VocabularySource  # of the grammars that JSON schemas become
    guard: Calibrated | None
    layer: int | None  # the guarded one
    calibration: Sequence[float]  # scores of harmless prompts that the guard was calibrated on; none if it keeps none
    answer_calibration: Sequence[float] = ()  # final scores of harmless answers; none if it reads no answers
    created: int = field(default_factory=lambda: int(time.time()))
    version: str = field(default_factory=server_version)  # of this server; to look it up takes half a millisecond

    @classmethod
    def of(cls, model: Model, name: str) -> Served:
        """Describe a model that has loaded."""
        facts, inputs = model
        return cls(
            name=name,
            info=facts.info,
            inputs=inputs.builder,
            decoder=TextDecoder(inputs.tokenizer),
            vocabulary=VocabularySource(inputs.tokenizer_json, facts.info.vocab_size, facts.info.eos_ids),
            guard=facts.guard,
            layer=facts.layer,
            calibration=facts.calibration,
            answer_calibration=facts.answer_calibration,
        )

    @property
    def judge(self) -> Judge | None:
        """Who judges its prompts."""
        return None if self.guard is None or self.layer is None else Judge(self.guard.id, self.layer)

    def facts(self, policy: Policy) -> dict[str, str]:
        """The model, and the policy that holds where nothing says otherwise, as labels of a metric."""
        return {
            "model": self.name,
            "architecture": self.info.architecture,
            "dtype": str(self.info.dtype).removeprefix("torch."),
            "device": str(self.info.device),
            "guarded_layer": str(self.layer),
            "guard": "none" if self.guard is None else self.guard.id,
            "guard_date": "none" if self.guard is None else self.guard.date,
            "policy": policy.name,
            "mode": policy.mode.value,
        }

    def fingerprint(self, policy: Policy) -> str:
        """OpenAI's `system_fingerprint`: changes with whatever could change an answer."""
        guard = None if self.guard is None else self.guard.id
        parts = (self.version, self.info.name, self.info.revision, self.info.dtype, self.layer, guard, policy)
        return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:10]
