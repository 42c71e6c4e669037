"""What a loaded model is."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class BackboneInfo:
    """What a loaded model is."""

    name: str
    revision: str | None
    architecture: str
    family: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    context_length: int
    dtype: torch.dtype
    device: torch.device
    eos_ids: frozenset[int]
    template_hash: str
    parameters: int  # numbers in the decoder, which every step reads
    weights_hash: str  # fingerprint of the weights, the same in every dtype
