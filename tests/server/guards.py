"""A guard with random weights for any backbone."""

import torch

from models.backbone import BackboneInfo
from steering.guard import Guard
from steering.head import RefusalHead
from steering.manifest import Manifest, ModelBinding, Threshold
from steering.prober import Prober
from steering.readers import LastToken


def manifest(info: BackboneInfo, layer: int = 2) -> Manifest:
    return Manifest(
        model=ModelBinding.of(info),
        layer=layer,
        prober_hidden=64,
        layers=[],
        thresholds=[Threshold(target_fpr=0.01, threshold=0.5, samples=99)],
        threshold=0.5,
        eps=1.0,
        refusal="I can't help with that.",
        validation={},
        data_hash="",
        data_size=0,
        versions={},
        date="2026-01-01",
        tensors_hash="",
    )


def random_guard(info: BackboneInfo, seed: int = 0, layer: int = 2) -> Guard:
    torch.manual_seed(seed)
    head = RefusalHead(info.hidden_size)
    torch.nn.init.normal_(head.weight, std=info.hidden_size**-0.5)
    reader = LastToken(Prober(info.hidden_size))
    return Guard(manifest(info, layer), reader, head, {}).requires_grad_(requires_grad=False)
