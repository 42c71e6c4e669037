"""A prompt's pictures in vLLM's terms: the tensors that our own processor has made, one item for each image or tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch
from vllm.inputs.engine import MultiModalInput, mm_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalFlatField,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    MultiModalSharedField,
    PlaceholderRange,
)

from models.families import FAMILIES
from models.images import Picture, cut

if TYPE_CHECKING:
    from torch import Tensor

    from models.prompt import Prompt

IMAGE = "image"  # vLLM's name of the modality


class Fields(NamedTuple):
    """What vLLM's models of a family take of an image.

    `batched`: tensors that have one entry for each image. `flat`: tensors in which the entries of all images are
    joined. `counted`: the field that tells how many entries an image has there. `token`: the field of the token that
    stands for images.
    """

    batched: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()
    counted: str | None = None
    token: str | None = None


_QWEN = Fields(batched=("image_grid_thw",), flat=("pixel_values",))
_IDEFICS = Fields(flat=("pixel_values", "pixel_attention_mask"), counted="num_patches")
FIELDS = {
    "llava": Fields(batched=("pixel_values",)),
    "llava_next": Fields(batched=("pixel_values", "image_sizes")),
    "llava_onevision": Fields(batched=("pixel_values", "image_sizes")),
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "idefics3": _IDEFICS,
    "smolvlm": _IDEFICS,
    "gemma3": Fields(flat=("pixel_values",), counted="num_patches"),
    "internvl": Fields(flat=("pixel_values",), counted="image_num_patches", token="image_token_id"),  # noqa: S106
}


class _Image(NamedTuple):
    digest: str
    tokens: int
    item: MultiModalKwargsItem


class Pictures:
    """Makes vLLM's input of a prompt with images, for which `image_token` stands."""

    def __init__(self, family: str, image_token: int) -> None:
        self._image_token = image_token
        self._dim = FAMILIES[family].image_dim
        self._fields = FIELDS[family]

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
        cut_out = cut(prompt.features, picture.slices, self._dim)
        tensors = {name: tensor.flatten(0, self._dim) for name, tensor in cut_out.items()}
        fields = self._fields
        count = len(tensors[fields.batched[0]]) if fields.batched else 1
        # Several images of one prompt are not cut into tiles: each takes as many tokens.
        tokens, rest = divmod(picture.tokens, count)
        if rest or (count > 1 and fields.flat):
            raise ValueError(f"{picture.tokens} tokens of {count} images cannot be told apart")
        for number in range(count):
            yield _Image(f"{picture.digest.hex()}.{number}", tokens, self._item(tensors, number))

    def _item(self, tensors: dict[str, Tensor], number: int) -> MultiModalKwargsItem:
        fields = self._fields
        elements = {name: _batched(tensors[name][number]) for name in fields.batched}
        for name in fields.flat:
            elements[name] = MultiModalFieldElem(tensors[name], MultiModalFlatField(slices=[slice(len(tensors[name]))]))
        if fields.counted is not None:
            elements[fields.counted] = _batched(torch.tensor(len(tensors[fields.flat[0]])))
        if fields.token is not None:
            shared = MultiModalSharedField(batch_size=1)
            elements[fields.token] = MultiModalFieldElem(torch.tensor(self._image_token), shared)
        return MultiModalKwargsItem(elements)

    def _places(self, ids: Sequence[int], tokens: Sequence[int]) -> Iterator[PlaceholderRange]:
        """Where images of so many tokens stand. Raises ValueError where they do not fill their places."""
        left = iter(tokens)
        at = 0
        for is_image, run in groupby(ids, lambda token: token == self._image_token):
            end = at + sum(1 for _ in run)
            while is_image and at < end:
                yield PlaceholderRange(offset=at, length=(length := next(left)))
                at += length
            if at > end:
                raise ValueError("an image's tokens do not stand together")
            at = end


def _batched(entry: Tensor) -> MultiModalFieldElem:
    return MultiModalFieldElem(data=entry, field=MultiModalBatchedField())
