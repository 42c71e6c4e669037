"""The guard's card, as `/admin/guard` tells it: what is read where, from which scores on, and how well that went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from typing_extensions import TypedDict

from server.access.keys import Client
from server.access.policies import make_policies
from server.api.served import Served
from server.settings.schema import Settings
from server.settings.values import DEFAULT_POLICY
from steering.manifest import Manifest
from steering.policy import Policy

ModeName = Literal["off", "monitor", "steer", "block"]
FIELDS = ("mode", "threshold", "eps", "refusal")  # of a policy, of which each comes from somewhere
OF_BUNDLE = ("threshold", "eps", "refusal")  # which the bundle has where no setting says otherwise
LOGITS = range(-12, 13)  # where the calibration's curve is told


class ModelCard(TypedDict):
    name: str
    architecture: str
    layers: int
    context: int
    reads_images: bool


class LayerCard(TypedDict):
    layer: int
    sas: float
    sas_low: float | None
    sas_high: float | None
    auroc: float


class ThresholdCard(TypedDict):
    target_fpr: float
    threshold: float
    samples: int


class DataCard(TypedDict):
    rows: int
    data_hash: str
    tensors_hash: str
    weights_hash: str
    template_hash: str


class CurvePoint(TypedDict):
    threshold: float
    flagged: float


class GuardCard(TypedDict):
    id: str
    date: str
    fitted_on: str
    layer: int
    layers_read: list[int]
    readers: str
    reads_answers: bool
    threshold: float
    eps: float
    refusal: str
    thresholds: list[ThresholdCard]
    layers: list[LayerCard]
    validation: dict[str, float]
    calibration: list[CurvePoint]
    calibration_samples: int
    data: DataCard
    versions: dict[str, str]


PolicyCard = TypedDict(
    "PolicyCard",
    {"name": str, "mode": ModeName, "threshold": float, "eps": float, "refusal": str, "from": dict[str, str]},
)


class Admin(TypedDict):
    """The body of `/admin/guard`; `yours` is the name of the caller's policy, `may_loosen` whether that may be so."""

    model: ModelCard
    guard: GuardCard | None
    policies: list[PolicyCard]
    yours: str
    may_loosen: bool


def card_of(served: Served, settings: Settings, client: Client, origin: Callable[[str], str]) -> Admin:
    """Everything that there is to tell. `origin`: where the value of a setting comes from."""
    info = served.info
    policies = make_policies(settings, served.guard)
    return {
        "model": {
            "name": served.name,
            "architecture": info.architecture,
            "layers": info.num_layers,
            "context": info.context_length,
            "reads_images": served.inputs.sees,
        },
        "guard": guard_card(served.guard, served.calibration) if isinstance(served.guard, Manifest) else None,
        "policies": [_policy_card(policy, settings, origin) for policy in policies.values()],
        "yours": client.policy,
        "may_loosen": client.terms.may_loosen,
    }


def guard_card(guard: Manifest, calibration: Sequence[float]) -> GuardCard:
    """What the bundle says of itself; `calibration`: scores of harmless prompts that it keeps."""
    return {
        "id": guard.id,
        "date": guard.date,
        "fitted_on": guard.model.name,
        "layer": guard.layer,
        "layers_read": [*guard.probe_layers] or [guard.layer],
        "readers": guard.readers,
        "reads_answers": guard.watches,
        "threshold": guard.threshold,
        "eps": guard.eps,
        "refusal": guard.refusal,
        "thresholds": [
            {"target_fpr": each.target_fpr, "threshold": each.threshold, "samples": each.samples}
            for each in guard.thresholds
        ],
        "layers": [
            {
                "layer": each.layer,
                "sas": each.sas,
                "sas_low": each.sas_low,
                "sas_high": each.sas_high,
                "auroc": each.auroc,
            }
            for each in guard.layers
        ],
        "validation": dict(guard.validation),
        "calibration": _curve(calibration),
        "calibration_samples": len(calibration),
        "data": {
            "rows": guard.data_size,
            "data_hash": guard.data_hash,
            "tensors_hash": guard.tensors_hash,
            "weights_hash": guard.model.weights_hash,
            "template_hash": guard.model.template_hash,
        },
        "versions": dict(guard.versions),
    }


def _curve(scores: Sequence[float]) -> list[CurvePoint]:
    """The share of harmless prompts that each of several thresholds would flag."""
    if not scores:
        return []
    found = np.asarray(scores)
    thresholds = [1.0 / (1.0 + float(np.exp(-logit))) for logit in LOGITS]
    return [{"threshold": each, "flagged": float((found >= each).mean())} for each in thresholds]


def _policy_card(policy: Policy, settings: Settings, origin: Callable[[str], str]) -> PolicyCard:
    return {
        "name": policy.name,
        "mode": policy.mode.value,
        "threshold": policy.threshold,
        "eps": policy.eps,
        "refusal": policy.refusal,
        "from": {field: _origin(policy.name, field, settings, origin) for field in FIELDS},
    }


def _origin(policy: str, field: str, settings: Settings, origin: Callable[[str], str]) -> str:
    """Where the value that a policy has in a field comes from, in words."""
    names = ("threshold", "target_fpr") if field == "threshold" else (field,)
    if policy != DEFAULT_POLICY:
        own = settings.policies[policy].model_fields_set
        if said := next((name for name in names if name in own), None):
            return f"policies.{policy}.{said}, {origin('policies')}"
    if said := next((name for name in names if getattr(settings, name) is not None), None):
        return f"{said}, {origin(said)}"
    return "the guard bundle" if field in OF_BUNDLE else "default"
