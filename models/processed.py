"""What the image processor makes of a prompt's images, remembered: known files are not decoded and scaled again."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any

from cachetools import LRUCache
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from models.families import Family
from models.images import Part, parts_of
from models.pixels import ImageFile


@dataclass(frozen=True)
class Processed:
    """The processor's output for all images of a prompt, and what of it is encoded by itself. Never changed."""

    data: Mapping[str, Any]
    features: Mapping[str, Tensor]
    parts: Sequence[Part]

    @classmethod
    def of(cls, data: Mapping[str, Any], family: Family) -> Processed:
        """Keep what a family's image processor gives."""
        features = {name: data[name] for name in family.features if name in data}
        return cls(dict(data), features, parts_of(family, features))

    @property
    def bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.nbytes for tensor in self.features.values())


NOTHING = Processed({}, {}, ())  # of a prompt without images


class ProcessedMemory:
    """The latest `Processed`, up to so many bytes of them. Thread-safe."""

    def __init__(self, memory_bytes: int) -> None:
        self._lock = Lock()
        self._kept: LRUCache[Hashable, Processed] = LRUCache(memory_bytes, getsizeof=lambda processed: processed.bytes)

    def get(self, key: Hashable) -> Processed | None:
        """What is remembered under a key."""
        with self._lock:
            return self._kept.get(key)

    def put(self, key: Hashable, processed: Processed) -> None:
        """Remember it, if it is not larger than all that may be."""
        with self._lock, suppress(ValueError):
            self._kept[key] = processed


@dataclass(frozen=True)
class PromptImages:
    """The images of a prompt and how they are read.

    `longest`: of each image, the pixels that its longer side is brought down to, if it is longer; `options`: what the
    processor is called with.
    """

    images: Sequence[Image.Image | ImageFile]
    longest: Sequence[int | None]
    options: Mapping[str, Any]

    @property
    def key(self) -> Hashable:
        """A key under which the same is made of the images; None where an image is not known by its file."""
        digests = tuple(image.digest for image in self.images if isinstance(image, ImageFile))
        if not digests or len(digests) < len(self.images):
            return None
        return digests, tuple(self.longest), repr(sorted(self.options.items()))

    def sizes(self) -> list[tuple[int, int]] | None:
        """Width and height of each image once it is brought down; None where one's is only known by decoding it."""
        found = [image.measure() if isinstance(image, ImageFile) and image.measure else None for image in self.images]
        if None in found:
            return None
        return [_within(size, longest) for size, longest in zip(found, self.longest, strict=True) if size is not None]

    def decoded(self) -> list[Image.Image]:
        """The images in RGB, brought down to their size; a file that comes again is decoded once."""
        found: list[Image.Image] = []
        known: dict[Hashable, Image.Image] = {}
        for image, longest in zip(self.images, self.longest, strict=True):
            key = (image.digest if isinstance(image, ImageFile) else id(image), longest)
            if key not in known:
                known[key] = _shrunk(_rgb(image), longest)
            found.append(known[key])
        return found


class ImageProcessor:
    """Stands in for a processor's image processor in one call, with what is `known` of the images, if anything is."""

    def __init__(self, stock: Any, family: Family, known: Processed | None) -> None:  # noqa: ANN401
        self._stock = stock
        self._family = family
        self.processed = known

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        return getattr(self._stock, name)

    def __call__(self, images: Any, **options: Any) -> BatchFeature:  # noqa: ANN401
        if self.processed is None:
            self.processed = Processed.of(self._stock(images, **options), self._family)
        return BatchFeature(dict(self.processed.data))  # processors take out of it what the model does not


def _rgb(image: Image.Image | ImageFile) -> Image.Image:
    image = image.decode() if isinstance(image, ImageFile) else image
    return image if image.mode == "RGB" else image.convert("RGB")


def _within(size: tuple[int, int], longest: int | None) -> tuple[int, int]:
    if longest is None or max(size) <= longest:
        return size
    width, height = (max(1, side * longest // max(size)) for side in size)
    return width, height


def _shrunk(image: Image.Image, longest: int | None) -> Image.Image:
    if longest is None or max(image.size) <= longest:
        return image
    image = image.copy()
    image.thumbnail((longest, longest))
    return image
