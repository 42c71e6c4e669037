"""Memory that decoding images takes: figures that limits, and what holds to them, agree on."""

from __future__ import annotations

KEPT_BYTES = 3  # of a pixel, once its image is decoded
# Of a pixel while its image is decoded, at most: WebP with transparency takes 25, 16 bits of grey 21, JPEG 12.
DECODING_BYTES = 28


def decode_bytes(total: int, largest: int) -> int:
    """Bytes for images of `total` pixels, `largest` of them in one, decoded one after another and all kept."""
    # One is there twice for a moment: as it comes from its decoder, and as an image.
    return KEPT_BYTES * total + (DECODING_BYTES + KEPT_BYTES) * largest
