"""What is served: the loaded model's face towards HTTP, and the policy it is served under."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from server.config import Settings
from server.detokenizer import TextDecoder
from steering.policy import Mode, Policy

if TYPE_CHECKING:
    from models.backbone import BackboneInfo
    from models.inputs import InputBuilder
    from server.engine import Engine
    from steering.guard import Guard


def server_version() -> str:
    """The installed version of this distribution."""
    try:
        return version("autosteer-server")
    except PackageNotFoundError:
        return "0+unknown"


class PolicyError(ValueError):
    """The policy's settings do not fit each other or the guard."""


def make_policy(guard: Guard | None, settings: Settings) -> Policy:
    """The server's own policy. Raises PolicyError where the settings need a guard and there is none."""
    if guard is None:
        for name in ("threshold", "target_fpr", "eps", "refusal"):
            if getattr(settings, name) is not None:
                raise PolicyError(f"--{name.replace('_', '-')} needs a guard; give one with --guard")
        if settings.mode not in (None, "off"):
            raise PolicyError(f"--mode {settings.mode} needs a guard; give one with --guard")
        return Policy(
            name="default", mode=Mode.OFF, threshold=1.0, eps=0.0, refusal="", expose_scores=settings.expose_scores
        )
    try:
        return guard.policy(
            mode=Mode(settings.mode or "steer"),
            threshold=settings.threshold,
            target_fpr=settings.target_fpr,
            eps=settings.eps,
            refusal=settings.refusal,
            expose_scores=settings.expose_scores,
        )
    except ValueError as error:
        raise PolicyError(str(error)) from error


@dataclass(frozen=True)
class Served:
    """A loaded model, as the routes see it."""

    name: str
    info: BackboneInfo
    inputs: InputBuilder
    decoder: TextDecoder
    policy: Policy
    layer: int | None  # the guarded one
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, engine: Engine, settings: Settings, name: str) -> Served:
        """Describe an engine that has loaded. Raises PolicyError."""
        return cls(
            name=name,
            info=engine.backbone.info,
            inputs=engine.backbone.inputs,
            decoder=TextDecoder(engine.backbone.tokenizer),
            policy=make_policy(engine.guard, settings),
            layer=None if engine.guard is None else engine.guard.layer,
        )

    @property
    def fingerprint(self) -> str:
        """OpenAI's `system_fingerprint`: changes with whatever could change an answer."""
        parts = (server_version(), self.info.name, self.info.revision, self.info.dtype, self.layer, self.policy)
        return "fp_" + hashlib.sha256(repr(parts).encode()).hexdigest()[:10]
