"""What `transformers` itself makes of a chat: its processor, its forward pass, its `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.processing_utils import ProcessorMixin

from models.families import FAMILIES

Messages = list[dict[str, Any]]


def load_model(family: str, folder: Path) -> Any:
    """The stock model, which never ends an answer by itself."""
    model = getattr(transformers, FAMILIES[family].model).from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def with_images(messages: Messages, images: Sequence[Image.Image]) -> Messages:
    """Messages with the images inside, as `apply_chat_template` takes them."""
    left = iter(images)
    return [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "image": next(left)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]


def _strings(messages: Messages) -> Messages:
    """Messages as text models' templates take them."""
    return [{**turn, "content": "\n".join(part["text"] for part in turn["content"])} for turn in messages]


def inputs(processor: Any, messages: Messages, images: Sequence[Image.Image]) -> dict[str, Any]:
    """The processor's tensors for one chat; the tokenizer's, of a model that reads no images."""
    if processor.image_processor is None:
        options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}
        return dict(processor.tokenizer.apply_chat_template(_strings(messages), **options))
    # Unbound: SmolVLM's own method asks for its video processor first.
    data = ProcessorMixin.apply_chat_template(
        processor,
        with_images(messages, images),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        processor_kwargs={"return_tensors": "pt"},
    )
    return dict(data)


def batch(processor: Any, chats: Sequence[tuple[Messages, Sequence[Image.Image]]], side: str) -> dict[str, Any]:
    """The processor's tensors for several chats with images, padded on the `side`."""
    processor.tokenizer.padding_side = side
    if processor.image_processor is None:
        options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt", "padding": True}
        return dict(processor.tokenizer.apply_chat_template([_strings(messages) for messages, _ in chats], **options))
    texts = [
        ProcessorMixin.apply_chat_template(processor, messages, add_generation_prompt=True) for messages, _ in chats
    ]
    nested = [list(images) for _, images in chats]
    return dict(processor(text=texts, images=nested, padding=True, padding_side=side, return_tensors="pt"))


def generate(model: Any, data: dict[str, Any], tokens: int) -> list[int]:
    """The stock greedy answer."""
    with torch.no_grad():
        output: Tensor = model.generate(**data, do_sample=False, max_new_tokens=tokens)
    return [int(token) for token in output[0, data["input_ids"].shape[1] :]]


def answer_states(model: Any, prompt: Sequence[int], answer: Sequence[int], layers: Sequence[int]) -> Tensor:
    """States `[T, layers, d]` of an answer's tokens after a prompt without images, all computed at once."""
    with torch.no_grad():
        states = model(input_ids=torch.tensor([[*prompt, *answer]]), output_hidden_states=True).hidden_states
    return torch.stack([states[layer][0, len(prompt) :] for layer in layers], dim=1)
