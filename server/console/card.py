"""The guard's card, as `/admin/guard` tells it: what is read where, from which scores on, and how well that went."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from server.access.keys import Client
from server.access.policies import make_policies
from server.api.served import Served
from server.settings.schema import Settings
from steering.manifest import Manifest
from steering.policy import Policy

ModeName = Literal["off", "monitor", "steer", "block"]


class ModelCard(TypedDict):
    name: str
    architecture: str
    layers: int
    context: int
    reads_images: bool


class LayerCard(TypedDict):
    layer: int
    sas: float
    auroc: float


class ThresholdCard(TypedDict):
    target_fpr: float
    threshold: float
    samples: int


class GuardCard(TypedDict):
    id: str
    date: str
    layer: int
    layers_read: list[int]
    readers: str
    reads_answers: bool
    threshold: float
    eps: float
    refusal: str
    thresholds: list[ThresholdCard]
    layers: list[LayerCard]


class PolicyCard(TypedDict):
    name: str
    mode: ModeName
    threshold: float
    eps: float
    refusal: str


class Admin(TypedDict):
    """The body of `/admin/guard`; `yours` is the name of the caller's policy, `may_loosen` whether that may be so."""

    model: ModelCard
    guard: GuardCard | None
    policies: list[PolicyCard]
    yours: str
    may_loosen: bool


def card_of(served: Served, settings: Settings, client: Client) -> Admin:
    """Everything that there is to tell."""
    info = served.info
    return {
        "model": {
            "name": served.name,
            "architecture": info.architecture,
            "layers": info.num_layers,
            "context": info.context_length,
            "reads_images": served.inputs.sees,
        },
        "guard": guard_card(served.guard) if isinstance(served.guard, Manifest) else None,
        "policies": [policy_card(policy) for policy in make_policies(settings, served.guard).values()],
        "yours": client.policy,
        "may_loosen": client.terms.may_loosen,
    }


def guard_card(guard: Manifest) -> GuardCard:
    """What the bundle says of itself."""
    return {
        "id": guard.id,
        "date": guard.date,
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
        "layers": [{"layer": each.layer, "sas": each.sas, "auroc": each.auroc} for each in guard.layers],
    }


def policy_card(policy: Policy) -> PolicyCard:
    """What a policy comes to with this bundle."""
    return {
        "name": policy.name,
        "mode": policy.mode.value,
        "threshold": policy.threshold,
        "eps": policy.eps,
        "refusal": policy.refusal,
    }
