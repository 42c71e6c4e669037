"""Image tokens of a prompt: which picture each stands for, and the picture's features in its place in a pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.attention import Span
from models.images import ImageMismatch
from models.prompt import Prompt
from models.rows import PlacedPicture, Row
from models.vision import VisionEncoder


class _Run(NamedTuple):
    """Neighbouring image tokens: their places in the pass, and which of the picture's features they get."""

    start: int
    stop: int
    placed: PlacedPicture
    first: int


def place_pictures(prompt: Prompt, image_token_id: int) -> list[PlacedPicture]:
    """The prompt's pictures with the places of their tokens."""
    if not prompt.pictures:
        return []
    places = [place for place, token in enumerate(prompt.ids) if token == image_token_id]
    placed = []
    for picture in prompt.pictures:
        placed.append(PlacedPicture(picture, places[: picture.tokens]))
        places = places[picture.tokens :]
    return placed


def image_numbers(ids: Sequence[int], image_token_id: int) -> Tensor:
    """The number of the run of image tokens that each token is in, -1 where in none."""
    numbers, number = [], -1
    for is_image, run in groupby(ids, lambda token: token == image_token_id):
        number += is_image
        numbers += [number if is_image else -1] * sum(1 for _ in run)
    return torch.tensor(numbers)


def embed_pictures(
    embedded: Tensor, rows: Sequence[Row], spans: Sequence[Span], encoder: VisionEncoder, image_token_id: int
) -> dict[str, Any]:
    """Put the features of pictures in the place of their tokens in `embedded` `[1, N, d]`.

    Pictures that are not encoded yet are encoded, all in one pass. Returns what the decoder takes beside embeddings,
    for families that add features to later layers. Raises ImageMismatch where tokens and pictures do not fit.
    """
    runs: list[_Run] = []
    new: list[tuple[PlacedPicture, Mapping[str, Tensor]]] = []
    offset = 0
    for row, span in zip(rows, spans, strict=True):
        if row.prompt is not None:
            found = [*_runs(row, span, offset)]
            expected = row.prompt.ids[span.start : span.end].count(image_token_id)
            if sum(run.stop - run.start for run in found) != expected:
                raise ImageMismatch(f"{expected} image tokens, but not as many of the prompt's images")
            runs += found
            new += [
                (each, row.prompt.features)
                for each in row.pictures
                if each.features is None and each.within(span.start, span.end)
            ]
        offset += span.count
    encoded = encoder.encode([(each.picture, features) for each, features in new])
    for (each, _), features in zip(new, encoded, strict=True):
        each.features = features
    return _put(embedded, runs)


def unseen(row: Row, count: int, encoder: VisionEncoder) -> int:
    """Image tokens of the pictures that a pass over a row's next `count` tokens has to encode."""
    new = {
        each.picture.digest: each.picture.tokens
        for each in row.pictures
        if each.features is None and each.within(row.length, row.length + count) and not encoder.knows(each.picture)
    }
    return sum(new.values())


def _runs(row: Row, span: Span, offset: int) -> Iterator[_Run]:
    """The runs of image tokens in a row's span, which begins at `offset` in the pass."""
    for placed in row.pictures:
        inside = [(at, place) for at, place in enumerate(placed.places) if span.start <= place < span.end]
        for _, group in groupby(inside, lambda pair: pair[1] - pair[0]):
            run = [*group]
            start = offset + run[0][1] - span.start
            yield _Run(start, start + len(run), placed, run[0][0])


def _put(embedded: Tensor, runs: Sequence[_Run]) -> dict[str, Any]:
    """Write features over embeddings; the decoder's further arguments, `{}` for most families."""
    deep: list[Tensor] = []
    for start, stop, placed, first in runs:
        assert placed.features is not None, "a picture that was not encoded"
        embedded[0, start:stop] = placed.features.features[first : first + stop - start]
        if placed.features.deep is not None:
            deep.append(placed.features.deep[:, first : first + stop - start])
    if not deep:
        return {}
    visible = torch.zeros(embedded.shape[:2], dtype=torch.bool)
    for start, stop, _, _ in runs:
        visible[0, start:stop] = True
    return {
        "visual_pos_masks": visible.to(embedded.device),
        "deepstack_visual_embeds": [*torch.cat(deep, dim=1)],
    }
