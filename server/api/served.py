"""What is served: the loaded model's face towards HTTP."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from server.answer.text_decoder import TextDecoder
from server.engine.protocol import Facts
from server.version import server_version
from server.workers.schemas import VocabularySource
from steering.policy import Policy

if TYPE_CHECKING:
    from models.inputs import InputBuilder
    from server.engine.host import Inputs


class Judge(NamedTuple):
    """Who has judged: a guard bundle's id, and the layer that it reads."""

    guard: str
    layer: int


@dataclass(frozen=True, kw_only=True)
class Served(Facts):
    """The loaded model as the routes know it: what the engine tells of it, its name, how prompts and texts are made."""

    name: str
    inputs: InputBuilder
    decoder: TextDecoder
    vocabulary: VocabularySource  # of the grammars that JSON schemas become
    created: int = field(default_factory=lambda: int(time.time()))
    version: str = field(default_factory=server_version)  # of this server; to look it up takes half a millisecond

    @classmethod
    def of(cls, facts: Facts, inputs: Inputs, name: str) -> Served:
        """Describe a model that has loaded."""
        return cls(
            **vars(facts),
            name=name,
            inputs=inputs.builder,
            decoder=TextDecoder(inputs.tokenizer),
            vocabulary=VocabularySource(inputs.tokenizer_json, facts.info.vocab_size, facts.info.eos_ids),
        )

    @property
    def judge(self) -> Judge | None:
        """The bundle that judges the model's prompts, and its layer."""
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
