"""The vision tower: pictures in batches, each encoded once, and a memory of what it made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any, NamedTuple

import torch
from cachetools import LRUCache
from torch import Tensor

from models.families import Family
from models.images import ImageMismatch, Picture, cut, joined


@dataclass(frozen=True)
class ImageFeatures:
    """A picture's features `[tokens, d]`, and those that some families add to later layers, `[n, tokens, d]`."""

    features: Tensor
    deep: Tensor | None = None

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return self.features.nbytes + (0 if self.deep is None else self.deep.nbytes)


class Encoded(NamedTuple):
    """What a tower has done: image tokens of pictures, and seconds; on a GPU, which goes on by itself, neither."""

    tokens: int = 0
    seconds: float = 0.0

    def since(self, before: Encoded) -> Encoded:
        """What has been encoded since an earlier count."""
        return Encoded(self.tokens - before.tokens, self.seconds - before.seconds)


class VisionEncoder:
    """The model's vision tower, batched, with a memory of the pictures that it has encoded.

    `memory_bytes` bounds the features that are remembered; rows hold the ones that they still need themselves.
    """

    def __init__(
        self,
        tower: Callable[..., Any] | None,  # of a family that reads no images, none
        family: Family,
        device: torch.device,
        dtype: torch.dtype,
        memory_bytes: int,
    ) -> None:
        self._tower = tower
        self._family = family
        self._device, self._dtype = device, dtype
        self._known: LRUCache[bytes, ImageFeatures] = LRUCache(memory_bytes, getsizeof=lambda known: known.bytes)
        self.done = Encoded()

    def knows(self, picture: Picture) -> bool:
        """Whether a picture is encoded and remembered."""
        return picture.digest in self._known

    def encode(self, pictures: Sequence[tuple[Picture, Mapping[str, Tensor]]]) -> list[ImageFeatures]:
        """The features of pictures, each given with its prompt's processor tensors; new ones are encoded in one pass.

        Raises ImageMismatch where the prompt has more or fewer tokens for them.
        """
        known = {
            picture.digest: self._known[picture.digest] for picture, _ in pictures if picture.digest in self._known
        }
        new = {picture.digest: (picture, features) for picture, features in pictures if picture.digest not in known}
        if new:
            known |= zip(new, self._encode_new([*new.values()]), strict=True)
        for digest in new:
            with suppress(ValueError):  # it is larger than all that may be remembered
                self._known[digest] = known[digest]
        return [known[picture.digest] for picture, _ in pictures]

    def forget(self) -> None:
        """Remember no picture."""
        self._known.clear()

    def tensors(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Processor tensors of several prompts or pictures, joined as the family's forward wants them."""
        found: dict[str, Tensor] = {}
        for name in self._family.features:
            tensors = [part[name] for part in parts if name in part]
            if tensors:
                tensor = joined(tensors, self._family.image_dim)
                found[name] = tensor.to(self._device, self._dtype if tensor.is_floating_point() else tensor.dtype)
        return found

    def _encode_new(self, pictures: Sequence[tuple[Picture, Mapping[str, Tensor]]]) -> list[ImageFeatures]:
        began = monotonic()
        parts = [cut(features, picture.slices, self._family.image_dim) for picture, features in pictures]
        assert self._tower is not None, "pictures for a model that reads none"
        output = self._tower(**self.tensors(parts))
        features = _flat(output.pooler_output)
        deep = getattr(output, "deepstack_features", None)
        deeper = None if deep is None else torch.stack([_flat(level) for level in deep])
        counts = [picture.tokens for picture, _ in pictures]
        if sum(counts) != len(features):
            raise ImageMismatch(f"{sum(counts)} image tokens stand for images of {len(features)}")
        ends = [sum(counts[: place + 1]) for place in range(len(counts))]
        found = [
            ImageFeatures(
                features[end - count : end].to(self._dtype).clone(),
                None if deeper is None else deeper[:, end - count : end].to(self._dtype).clone(),
            )
            for end, count in zip(ends, counts, strict=True)
        ]
        if self._device.type == "cpu":
            self.done = Encoded(self.done.tokens + sum(counts), self.done.seconds + monotonic() - began)
        return found


def _flat(features: Tensor | Sequence[Tensor]) -> Tensor:
    """Features of all pictures `[tokens, d]`."""
    parts = [features] if isinstance(features, Tensor) else features
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])
