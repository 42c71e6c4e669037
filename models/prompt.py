"""What a model is given of one request. Imports no library of models: requests of every engine hold one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from models.images import Picture


@dataclass(frozen=True)
class Prompt:
    """One request's model inputs, on the CPU, before batching."""

    ids: list[int]  # image placeholders already expanded
    features: Mapping[str, Tensor]  # processor tensors of this request's images ({} for text only)
    image_tokens: int  # how many of `ids` are image tokens
    pictures: Sequence[Picture] = ()  # what of the features is encoded by itself
    unused: Sequence[str] = ()  # of the request, what the chat template has no use for and could be done without
