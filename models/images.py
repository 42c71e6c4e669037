"""The images of prompts: the pictures that they are made of, and the digest of each one's content.

A `Picture` is the least that a family encodes by itself: an image, or one tile of it. Its digest names its content, so
that the same image in another prompt is not encoded again, and a prompt's prefix is known by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn

from models.families import Family

Slices = Mapping[str, tuple[int, int]]  # of each processor tensor, along the dimension in which images are joined


class ImageMismatch(ValueError):
    """The image tokens of a prompt are not those of its images."""


@dataclass(frozen=True)
class Picture:
    """What is encoded by itself, as a part of its prompt's `features`."""

    digest: bytes
    tokens: int  # image tokens that stand for it
    slices: Slices


@dataclass(frozen=True)
class Part:
    """What of a prompt's `features` may be encoded by itself."""

    digest: bytes
    slices: Slices

    @property
    def sizes(self) -> list[int]:
        """How many entries the part takes of each tensor."""
        return [stop - start for start, stop in self.slices.values()]


def parts_of(family: Family, features: Mapping[str, Tensor]) -> list[Part]:
    """The parts of one prompt's features, in their order; there is one where they cannot be told apart."""
    if not features:
        return []
    each: Sequence[Slices] = family.parts(features, family.image_dim) or [_whole(family, features)]
    return [Part(_digest(features, slices, family.image_dim), slices) for slices in each]


def pictures_of(
    family: Family, features: Mapping[str, Tensor], parts: Sequence[Part], ids: Sequence[int], image_token_id: int
) -> tuple[Picture, ...]:
    """The pictures of one prompt, in the order of their tokens; one for all where its tokens cannot be told apart."""
    if not parts:
        return ()
    runs = [sum(1 for _ in run) for found, run in groupby(ids, lambda token: token == image_token_id) if found]
    if len(parts) == 1:
        counts = [sum(runs)]
    elif len(runs) == len(parts):
        counts = runs
    elif sum(runs) % len(parts) == 0 and all(part.sizes == parts[0].sizes for part in parts):
        counts = [sum(runs) // len(parts)] * len(parts)
    else:
        whole = _whole(family, features)
        parts, counts = [Part(_digest(features, whole, family.image_dim), whole)], [sum(runs)]
    return tuple(Picture(part.digest, count, part.slices) for part, count in zip(parts, counts, strict=True))


def _whole(family: Family, features: Mapping[str, Tensor]) -> Slices:
    return {name: (0, tensor.shape[family.image_dim]) for name, tensor in features.items()}


def _digest(features: Mapping[str, Tensor], part: Slices, dim: int) -> bytes:
    digest = hashlib.sha256()
    for name, tensor in cut(features, part, dim).items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)};".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def cut(features: Mapping[str, Tensor], part: Slices, dim: int) -> dict[str, Tensor]:
    """A picture's share of its prompt's processor tensors."""
    return {name: tensor.narrow(dim, part[name][0], part[name][1] - part[name][0]) for name, tensor in features.items()}


def joined(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate along `dim`; the other dimensions are padded with zeros to the largest."""
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        target = [size if place != dim else tensor.shape[dim] for place, size in enumerate(shape)]
        amounts = [amount for size, goal in zip(tensor.shape, target, strict=True) for amount in (goal - size, 0)]
        padded.append(nn.functional.pad(tensor, amounts[::-1]) if any(amounts) else tensor)
    return torch.cat(padded, dim=dim)
