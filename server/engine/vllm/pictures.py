"""A prompt's pictures in vLLM's terms: the tensors that our own processor has made, one item for each image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from vllm.inputs.engine import MultiModalInput, mm_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)

from models.images import Picture, cut

if TYPE_CHECKING:
    from torch import Tensor

    from models.prompt import Prompt

IMAGE = "image"  # vLLM's name of the modality
FIELDS = ("pixel_values", "image_sizes")  # of the processor's tensors, those that vLLM's models take


class _Image(NamedTuple):
    digest: str
    tokens: int
    item: MultiModalKwargsItem


class Pictures:
    """Makes vLLM's input of a prompt with images, for which `image_token` stands."""

    def __init__(self, image_token: int) -> None:
        self._image_token = image_token

    def input(self, prompt: Prompt) -> MultiModalInput:
        """The prompt with its images. Raises ValueError where they cannot be told apart."""
        images = [image for picture in prompt.pictures for image in self._images(prompt, picture)]
        return mm_input(
            prompt.ids,
            MultiModalKwargsItems({IMAGE: [image.item for image in images]}),
            {IMAGE: [image.digest for image in images]},
            {IMAGE: list(self._places(prompt.ids, [image.tokens for image in images]))},
        )

    def _images(self, prompt: Prompt, picture: Picture) -> Iterator[_Image]:
        tensors = {name: tensor for name, tensor in cut(prompt.features, picture.slices, 0).items() if name in FIELDS}
        count = len(tensors[FIELDS[0]])
        # Several images of one prompt are not cut into tiles: each takes as many tokens.
        tokens, rest = divmod(picture.tokens, count)
        if rest:
            raise ValueError(f"{picture.tokens} tokens of {count} images cannot be told apart")
        for number in range(count):
            yield _Image(f"{picture.digest.hex()}.{number}", tokens, _item(tensors, number))

    def _places(self, ids: Sequence[int], tokens: Sequence[int]) -> Iterator[PlaceholderRange]:
        """Where images of so many tokens stand."""
        left = iter(tokens)
        at = 0
        for is_image, run in groupby(ids, lambda token: token == self._image_token):
            end = at + sum(1 for _ in run)
            while is_image and at < end:
                yield PlaceholderRange(offset=at, length=(length := next(left)))
                at += length
            at = end


def _item(tensors: dict[str, Tensor], number: int) -> MultiModalKwargsItem:
    field = MultiModalBatchedField()
    elements = {name: MultiModalFieldElem(data=tensor[number], field=field) for name, tensor in tensors.items()}
    return MultiModalKwargsItem(elements)
