"""What differs between the supported model families, and nothing else.

Everything here is a fact about a family that its config does not state. A new family is a new entry in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Chameleon separates turns with its separator token; its processor writes the last one, which starts the answer.
_CHAMELEON_TEMPLATE = (
    "{% for message in messages %}"
    "{% if not loop.first and messages[loop.index0 - 1]['role'] != 'system' %}{{ sep_token }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% if message['role'] == 'system' %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
)


def _image_token_id(config: Any) -> int:  # noqa: ANN401 - a transformers config
    return int(config.image_token_id)


def _chameleon_image_token_id(config: Any) -> int:  # noqa: ANN401
    return int(config.vocabulary_map["<image>"])


def _no_image_token(_config: Any) -> int:  # noqa: ANN401
    """An id that no token has."""
    return -1


def _chameleon_banned(model: Any) -> Sequence[int]:  # noqa: ANN401
    return list(model.model.vocabulary_mapping.image_tokens)


# Of each processor tensor, the part that a picture has, along the image dimension.
Parts = list[dict[str, tuple[int, int]]]


def _each(features: Mapping[str, Any], dim: int) -> Parts:
    """Every entry by itself."""
    return [dict.fromkeys(features, (at, at + 1)) for at in range(next(iter(features.values())).shape[dim])]


def _only(_features: Mapping[str, Any], _dim: int) -> Parts:
    """How an image is cut into tiles depends on the images beside it: all together."""
    return []


def _by_grid(features: Mapping[str, Any], _dim: int) -> Parts:
    """Each image has as many patches as its grid."""
    parts, at = [], 0
    for place, grid in enumerate(features["image_grid_thw"].tolist()):
        count = grid[0] * grid[1] * grid[2]
        parts.append({"pixel_values": (at, at + count), "image_grid_thw": (place, place + 1)})
        at += count
    return parts


@dataclass(frozen=True)
class Detail:
    """How an image is read at one level of detail: made smaller before, or with other options of the processor."""

    longest: int | None = None  # pixels of the longer side; 0: those of one tile
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """One model family. Class names are those of `transformers`, looked up when the family is loaded.

    A family of decoders without a vision tower has a model, and no processor.
    """

    model: str
    processor: str = ""
    image_processor: str = ""  # when the checkpoint does not name one
    features: tuple[str, ...] = ()  # the processor's image tensors that the model's forward takes
    image_dim: int = 0  # the images of several rows are joined along this dimension
    parts: Callable[[Mapping[str, Any], int], Parts] = _each  # what of a prompt's images is encoded by itself
    image_token_id: Callable[[Any], int] = _image_token_id
    token_types: str | None = None  # the forward's argument that marks image tokens with 1
    mrope: bool = False  # three-dimensional rotary positions, from the model's `get_rope_index`
    banned: Callable[[Any], Sequence[int]] | None = None  # ids the model never answers with
    chat_template: str | None = None  # where checkpoints come without one
    tiles_one: bool = False  # an image is cut into tiles only where it is alone
    # The processor's number of tokens that show a whole image, a square row by row, before any that show parts of it.
    whole_view: str | None = None
    details: Mapping[str, Detail] = field(default_factory=dict)  # levels to choose from, where there are any

    @property
    def sees(self) -> bool:
        """Whether the family reads images."""
        return bool(self.processor)


def _text(model: str) -> Family:
    """A decoder without a vision tower."""
    return Family(model=model, image_token_id=_no_image_token)


_QWEN_FEATURES = ("pixel_values", "image_grid_thw")

_FULL = Detail()  # what the processor does by itself
_TILES = {"low": Detail(longest=0), "high": _FULL}
_ANY_SIZE = {"low": Detail(longest=512), "high": _FULL}
_SPLITTING = {"low": Detail(options={"do_image_splitting": False}), "high": _FULL}
_PAN_AND_SCAN = {"low": _FULL, "high": Detail(options={"do_pan_and_scan": True})}
_PATCHES = {name: Detail(options={"crop_to_patches": name == "high"}) for name in ("low", "high")}

FAMILIES: dict[str, Family] = {
    "llava_onevision": Family(
        model="LlavaOnevisionForConditionalGeneration",
        processor="LlavaOnevisionProcessor",
        image_processor="LlavaOnevisionImageProcessorPil",
        features=("pixel_values", "image_sizes", "batch_num_images"),
        parts=_only,
        tiles_one=True,
        whole_view="num_image_tokens",
        details=_TILES,
    ),
    "chameleon": Family(
        model="ChameleonForConditionalGeneration",
        processor="ChameleonProcessor",
        image_processor="ChameleonImageProcessorPil",
        features=("pixel_values",),
        image_token_id=_chameleon_image_token_id,
        banned=_chameleon_banned,
        chat_template=_CHAMELEON_TEMPLATE,
    ),
    "llava": Family(
        model="LlavaForConditionalGeneration",
        processor="LlavaProcessor",
        image_processor="CLIPImageProcessorPil",
        features=("pixel_values",),
    ),
    "llava_next": Family(
        model="LlavaNextForConditionalGeneration",
        processor="LlavaNextProcessor",
        image_processor="LlavaNextImageProcessorPil",
        features=("pixel_values", "image_sizes"),
        details=_TILES,
    ),
    "qwen2_vl": Family(
        model="Qwen2VLForConditionalGeneration",
        processor="Qwen2VLProcessor",
        image_processor="Qwen2VLImageProcessorPil",
        features=_QWEN_FEATURES,
        parts=_by_grid,
        mrope=True,
        details=_ANY_SIZE,
    ),
    "qwen2_5_vl": Family(
        model="Qwen2_5_VLForConditionalGeneration",
        processor="Qwen2_5_VLProcessor",
        image_processor="Qwen2VLImageProcessorPil",
        features=_QWEN_FEATURES,
        parts=_by_grid,
        mrope=True,
        details=_ANY_SIZE,
    ),
    "qwen3_vl": Family(
        model="Qwen3VLForConditionalGeneration",
        processor="Qwen3VLProcessor",
        image_processor="Qwen2VLImageProcessorPil",
        features=_QWEN_FEATURES,
        parts=_by_grid,
        mrope=True,
        details=_ANY_SIZE,
    ),
    "idefics3": Family(
        model="Idefics3ForConditionalGeneration",
        processor="Idefics3Processor",
        image_processor="Idefics3ImageProcessorPil",
        features=("pixel_values", "pixel_attention_mask"),
        image_dim=1,
        details=_SPLITTING,
    ),
    "smolvlm": Family(
        model="SmolVLMForConditionalGeneration",
        processor="SmolVLMProcessor",
        image_processor="SmolVLMImageProcessorPil",
        features=("pixel_values", "pixel_attention_mask"),
        image_dim=1,
        details=_SPLITTING,
    ),
    "gemma3": Family(
        model="Gemma3ForConditionalGeneration",
        processor="Gemma3Processor",
        image_processor="Gemma3ImageProcessorPil",
        features=("pixel_values",),
        token_types="token_type_ids",  # noqa: S106 - the name of an argument
        whole_view="image_seq_length",
        details=_PAN_AND_SCAN,
    ),
    "internvl": Family(
        model="InternVLForConditionalGeneration",
        processor="InternVLProcessor",
        image_processor="GotOcr2ImageProcessorPil",
        features=("pixel_values",),
        details=_PATCHES,
    ),
    "llama": _text("LlamaForCausalLM"),
    "mistral": _text("MistralForCausalLM"),
    "qwen2": _text("Qwen2ForCausalLM"),
    "qwen3": _text("Qwen3ForCausalLM"),
    "gemma3_text": _text("Gemma3ForCausalLM"),
}
