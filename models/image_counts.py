"""How many tokens images take, from their sizes alone: before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Size = tuple[int, int]  # width and height, upright


def least_tokens(processor: Any, sizes: Sequence[Size], *, tiles_one: bool) -> int | None:  # noqa: ANN401
    """Prompt tokens that images of these sizes take at least; None where the processor does not tell.

    It is a private method of the processors of `transformers`: where it is missing, or wants another call, nothing is
    known before the images are decoded. `tiles_one`: the processor tiles an image only where it is alone.
    """
    if tiles_one and len(sizes) > 1:
        each = getattr(processor, "num_image_tokens", None)
        return None if each is None else len(sizes) * int(each)
    try:
        found = processor._get_num_multimodal_tokens(image_sizes=[[height, width] for width, height in sizes])
        return sum(map(int, found.num_image_tokens))
    except Exception:  # noqa: BLE001  private: any version may do anything
        return None
