"""What a model sees of an image file: the same pixels when it is fitted, evaluated and served. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True)
class ImageFile:
    """An image that is known by its file and decoded where its pixels are needed: what was made of it once serves."""

    digest: bytes  # of the file
    decode: Callable[[], Image.Image]  # RGB
    measure: Callable[[], tuple[int, int]] | None = None  # width and height once decoded, from the file's header


def upright_rgb(image: Image.Image) -> Image.Image:
    """A decoded image in RGB: EXIF orientation applied, first frame, 16 bits scaled, transparency on white."""
    return _to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; broken EXIF data says nothing about it."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  EXIF of hostile files raises nearly anything, and the pixels are fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits of grey: PIL's own conversion clips at 255 where it should scale.
        grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        return white.convert("RGB")
    return image.convert("RGB") if image.mode != "RGB" else image.copy()
