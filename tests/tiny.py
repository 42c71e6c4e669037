"""Tiny random models of every family, made from the real config classes and saved like real checkpoints.

A folder holds config, weights, tokenizer, processor config and chat template, so that tests load it with the code that
loads a real model. Weights are drawn wide enough that outputs vary: parity over a constant output proves little.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from models.backbone import Backbone
from models.families import FAMILIES
from models.load import load_backbone

HIDDEN = 32
LAYERS = 4
# Between them: a fused decoder; M-RoPE and deepstack; sliding windows and token types; text alone.
REPRESENTATIVES = frozenset({"llava_onevision", "qwen3_vl", "gemma3", "llama"})

_CORPUS = [
    "A red square lies left of a blue circle.",
    "What is in the picture? How many circles are there, and which colour are they?",
    "The sign says STOP. You are a helpful assistant who answers briefly.",
    "user assistant system model USER ASSISTANT User Assistant: image images",
    "Hello! Please describe this image, then compare it with the other one: 0123456789.",
]
_ASCII = [chr(code) for code in range(33, 127)]

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_VICUNA = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] | upper }}: {% endif %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] }} {% endif %}{% endfor %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
_IDEFICS = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
    "{% if m['content'][0]['type'] == 'image' %}:{% else %}: {% endif %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'][0]['text'] + '\n\n' %}{% set turns = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ first if loop.first else '' }}"
    "{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<start_of_image>{% else %}{{ p['text'] | trim }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
# Those of text models put strings together.
_CHATML_TEXT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA_TEXT = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_MISTRAL_TEXT = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}{{ bos_token }}"
    "{% for m in turns %}{% if m.role == 'user' %}{{ '[INST] ' + (first if loop.first else '') + m.content }}"
    "{{ ' [/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
_GEMMA_TEXT = _GEMMA.replace(
    "{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<start_of_image>{% else %}{{ p['text'] | trim }}{% endif %}{% endfor %}",
    "{{ m['content'] | trim }}",
).replace("messages[0]['content'][0]['text']", "messages[0]['content']")


@dataclass(frozen=True)
class Tiny:
    """How a family's tiny model is made."""

    config: Callable[[PreTrainedTokenizerFast], Any]
    tokens: tuple[str, ...]  # special tokens
    image_processor: dict[str, Any] = field(default_factory=dict)
    processor: dict[str, Any] = field(default_factory=dict)
    template: str | None = None
    named: dict[str, str] = field(default_factory=dict)  # tokens that the tokenizer knows by name
    spaced: bool = False  # SentencePiece-like: a space before the first word, a BOS token from the tokenizer


def _id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def _text(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        **more,
    }


def _tower(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **more,
    }


_GRID = [[24, 24], [24, 48], [48, 24], [48, 48]]
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def _llava_onevision(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.LlavaOnevisionConfig(
        vision_config=_tower(model_type="siglip_vision_model", image_size=24, patch_size=8, vision_use_head=False),
        text_config=_text(tokenizer, model_type="qwen2"),
        image_token_index=_id(tokenizer, "<image>"),
        video_token_index=_id(tokenizer, "<video>"),
        image_grid_pinpoints=_GRID,
    )


def _llava(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.LlavaConfig(
        vision_config=_tower(model_type="clip_vision_model", image_size=24, patch_size=8),
        text_config=_text(tokenizer, model_type="llama"),
        image_token_index=_id(tokenizer, "<image>"),
    )


def _llava_next(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.LlavaNextConfig(
        vision_config=_tower(model_type="clip_vision_model", image_size=24, patch_size=8),
        text_config=_text(tokenizer, model_type="llama"),
        image_token_index=_id(tokenizer, "<image>"),
        image_grid_pinpoints=_GRID,
    )


_CHAMELEON_IMAGES = tuple(f"IMGIMG{'ABCDEFGHIJ'[n // 10]}{'ABCDEFGHIJ'[n % 10]}Z" for n in range(16))


def _chameleon(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.ChameleonConfig(
        **_text(tokenizer),
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16,
            "latent_channels": 8,
            "resolution": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1, 1],
            "num_res_blocks": 1,
        },
        vocabulary_map={**{token: _id(tokenizer, token) for token in (*_CHAMELEON_IMAGES, "<image>")}},
    )


def mrope(sections: list[int], **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections, **more}


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        "image_token_id": _id(tokenizer, "<|image_pad|>"),
        "video_token_id": _id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": _id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": _id(tokenizer, "<|vision_end|>"),
    }


def _qwen2_vl(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.Qwen2VLConfig(
        vision_config={"depth": 2, "embed_dim": 16, "hidden_size": HIDDEN, "num_heads": 2, "patch_size": 4},
        text_config=_text(tokenizer, rope_parameters=mrope([1, 1, 2])),
        tie_word_embeddings=False,
        **_qwen_ids(tokenizer),
    )


def _qwen2_5_vl(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "out_hidden_size": HIDDEN,
            "num_heads": 2,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        text_config=_text(tokenizer, rope_parameters=mrope([1, 1, 2])),
        tie_word_embeddings=False,
        **_qwen_ids(tokenizer),
    )


def _qwen3_vl(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.Qwen3VLConfig(
        vision_config={
            "depth": 3,
            "hidden_size": 16,
            "intermediate_size": 32,
            "out_hidden_size": HIDDEN,
            "num_heads": 2,
            "patch_size": 4,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        text_config=_text(tokenizer, head_dim=8, rope_parameters=mrope([2, 1, 1], mrope_interleaved=True)),
        tie_word_embeddings=False,
        **_qwen_ids(tokenizer),
    )


def _idefics3(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.Idefics3Config(
        vision_config=_tower(image_size=16, patch_size=4),
        text_config=_text(tokenizer, model_type="llama"),
        image_token_id=_id(tokenizer, "<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=False,
    )


def _smolvlm(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.SmolVLMConfig(
        vision_config=_tower(image_size=16, patch_size=4),
        text_config=_text(tokenizer, model_type="llama"),
        image_token_id=_id(tokenizer, "<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=2,
        tie_word_embeddings=False,
    )


def _gemma3(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.Gemma3Config(
        vision_config=_tower(model_type="siglip_vision_model", image_size=24, patch_size=4, vision_use_head=False),
        text_config=_text(
            tokenizer,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=16,  # shorter than the tests' prompts
            layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        ),
        mm_tokens_per_image=4,
        boi_token_index=_id(tokenizer, "<start_of_image>"),
        eoi_token_index=_id(tokenizer, "<end_of_image>"),
        image_token_index=_id(tokenizer, "<image_soft_token>"),
        tie_word_embeddings=False,
    )


def _internvl(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.InternVLConfig(
        vision_config=_tower(image_size=[16, 16], patch_size=[4, 4]),
        text_config=_text(tokenizer, model_type="qwen2"),
        image_token_id=_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )


def _llama(tokenizer: PreTrainedTokenizerFast) -> Any:
    # Grouped heads, tied embeddings and frequencies that are scaled: Llama 3.2.
    scaled = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    return transformers.LlamaConfig(**_text(tokenizer, rope_parameters=scaled, tie_word_embeddings=True))


def _mistral(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.MistralConfig(**_text(tokenizer, head_dim=12, sliding_window=16))


def _qwen2(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.Qwen2Config(**_text(tokenizer))


def _qwen3(tokenizer: PreTrainedTokenizerFast) -> Any:
    return transformers.Qwen3Config(**_text(tokenizer, head_dim=16))


def _gemma3_text(tokenizer: PreTrainedTokenizerFast) -> Any:
    kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    return transformers.Gemma3TextConfig(
        **_text(tokenizer, head_dim=16, query_pre_attn_scalar=16, sliding_window=16, layer_types=kinds)
    )


_QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
_QWEN_PIXELS = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 640}, **_HALF}
_QWEN_TEMPLATE = _CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
_IDEFICS_TOKENS = (
    "<image>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)
_IDEFICS_PIXELS = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}, **_HALF}

TINY: dict[str, Tiny] = {
    "llava_onevision": Tiny(
        config=_llava_onevision,
        tokens=("<image>", "<video>"),
        image_processor={"size": {"height": 24, "width": 24}, "image_grid_pinpoints": _GRID, **_HALF},
        processor={"num_image_tokens": 9, "vision_feature_select_strategy": "full"},
        template=_CHATML.replace("IMAGE", "<image>\n"),
    ),
    "chameleon": Tiny(
        config=_chameleon,
        tokens=("<image>", "<racm3:break>", "<eoss>", "<reserved08706>", *_CHAMELEON_IMAGES),
        image_processor={"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}},
        processor={"image_seq_length": 16},
        named={"sep_token": "<reserved08706>"},
        spaced=True,
    ),
    "llava": Tiny(
        config=_llava,
        tokens=("<image>",),
        image_processor={"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}},
        processor={"patch_size": 8, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
        template=_VICUNA,
        spaced=True,
    ),
    "llava_next": Tiny(
        config=_llava_next,
        tokens=("<image>",),
        image_processor={
            "size": {"shortest_edge": 24},
            "crop_size": {"height": 24, "width": 24},
            "image_grid_pinpoints": _GRID,
        },
        processor={"patch_size": 8, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"},
        template=_VICUNA,
        spaced=True,
    ),
    "qwen2_vl": Tiny(config=_qwen2_vl, tokens=_QWEN, image_processor=_QWEN_PIXELS, template=_QWEN_TEMPLATE),
    "qwen2_5_vl": Tiny(config=_qwen2_5_vl, tokens=_QWEN, image_processor=_QWEN_PIXELS, template=_QWEN_TEMPLATE),
    "qwen3_vl": Tiny(config=_qwen3_vl, tokens=_QWEN, image_processor=_QWEN_PIXELS, template=_QWEN_TEMPLATE),
    "idefics3": Tiny(
        config=_idefics3,
        tokens=_IDEFICS_TOKENS,
        image_processor=_IDEFICS_PIXELS,
        processor={"image_seq_len": 4},
        template=_IDEFICS,
    ),
    "smolvlm": Tiny(
        config=_smolvlm,
        tokens=_IDEFICS_TOKENS,
        image_processor=_IDEFICS_PIXELS,
        processor={"image_seq_len": 4},
        template=_IDEFICS,
    ),
    "gemma3": Tiny(
        config=_gemma3,
        tokens=("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        image_processor={"size": {"height": 24, "width": 24}, **_HALF},
        processor={"image_seq_length": 4},
        template=_GEMMA,
        named={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        spaced=True,
    ),
    "internvl": Tiny(
        config=_internvl,
        tokens=("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        image_processor={
            "size": {"height": 16, "width": 16},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 4,
            **_HALF,
        },
        processor={"image_seq_length": 4},
        template=_CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "llama": Tiny(
        config=_llama,
        tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        template=_LLAMA_TEXT,
    ),
    "mistral": Tiny(config=_mistral, tokens=("[INST]", "[/INST]"), template=_MISTRAL_TEXT, spaced=True),
    "qwen2": Tiny(config=_qwen2, tokens=("<|endoftext|>",), template=_CHATML_TEXT),
    "qwen3": Tiny(config=_qwen3, tokens=("<|endoftext|>", "<think>", "</think>"), template=_CHATML_TEXT),
    "gemma3_text": Tiny(
        config=_gemma3_text, tokens=("<start_of_turn>", "<end_of_turn>"), template=_GEMMA_TEXT, spaced=True
    ),
}


def make_tokenizer(tiny: Tiny) -> PreTrainedTokenizerFast:
    """A BPE tokenizer of a few hundred tokens with the family's special tokens and its habits."""
    special = ["<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", *tiny.tokens]
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    if tiny.spaced:
        backend.normalizer = normalizers.Sequence([normalizers.NFC()])
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = [*_ASCII, "\u2581", "\n"]
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420 + len(special), special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    if tiny.spaced:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
        )
    named = dict(tiny.named)
    more = {"sep_token": named.pop("sep_token")} if "sep_token" in named else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=named,
        **more,
    )


def _widen(model: torch.nn.Module, seed: int) -> None:
    """Redraw every matrix with unit gain or more, so that activations neither vanish nor settle."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        fan_in = parameter[0].numel()
        gain = 1.0 if "vq" in name or "embed" in name else 1.6
        scale = 1.0 if "embed_tokens" in name else gain / fan_in**0.5
        parameter.data.normal_(0.0, scale, generator=generator)


def make_tiny(
    family: str,
    folder: Path,
    seed: int = 0,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> Path:
    """Write a tiny random model of the family into `folder`, as a checkpoint; `text` and `vision` change its config."""
    tiny, facts = TINY[family], FAMILIES[family]
    tokenizer = make_tokenizer(tiny)
    config = tiny.config(tokenizer)
    if not facts.sees:
        config, text = type(config)(**{**config.to_dict(), **(text or {})}), None
    changes = {"text_config": text, "vision_config": vision}
    changed = {name: {**getattr(config, name).to_dict(), **more} for name, more in changes.items() if more is not None}
    if changed:
        config = type(config)(**{**config.to_dict(), **changed})
    torch.manual_seed(seed)
    model = getattr(transformers, facts.model)(config)
    _widen(model, seed)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if facts.sees:
        getattr(transformers, facts.image_processor)(**tiny.image_processor).save_pretrained(folder)
    if tiny.processor:
        (folder / "processor_config.json").write_text(json.dumps(tiny.processor))
    if tiny.template is not None:
        (folder / "chat_template.jinja").write_text(tiny.template)
    return folder


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A small drawing, different for each seed."""
    colours = ["red", "green", "blue", "yellow", "white", "purple"]
    image = Image.new("RGB", size, colours[seed % len(colours)])
    draw = ImageDraw.Draw(image)
    draw.ellipse((seed % 10, 2, 20 + seed % 7, 22), fill=colours[(seed // 2 + 1) % len(colours)])
    draw.rectangle((25, 5 + seed % 9, 35, 28), fill=colours[(seed // 3 + 2) % len(colours)])
    return image


def chat(*turns: tuple[str, str, int]) -> list[dict[str, Any]]:
    """Messages from (role, text, number of images) turns; the images come first."""
    return [
        {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}
        for role, text, images in turns
    ]


CHATS: dict[str, list[dict[str, Any]]] = {
    "text": chat(("user", "Hello! How many circles are there?", 0)),
    "system": chat(("system", "You are a helpful assistant.", 0), ("user", "What is in the picture?", 1)),
    "one image": chat(("user", "What is in the picture?", 1)),
    "two images": chat(("user", "Please compare this image with the other one.", 2)),
    "turns": chat(
        ("user", "What is in the picture?", 1),
        ("assistant", "A red square.", 0),
        ("user", "Which colour is the circle in the other one?", 1),
    ),
}
TEXT_CHATS = {
    name: [{**turn, "content": [part for part in turn["content"] if part["type"] == "text"]} for turn in messages]
    for name, messages in CHATS.items()
}


def chats_of(family: str) -> dict[str, list[dict[str, Any]]]:
    """The chats that a family can read."""
    return CHATS if FAMILIES[family].sees else TEXT_CHATS


SIZES = [(40, 30), (24, 24), (30, 44)]


def pictures(messages: list[dict[str, Any]], seed: int = 0) -> list[Image.Image]:
    """As many different pictures, of different sizes, as the messages have room for."""
    count = sum(part["type"] == "image" for message in messages for part in message["content"])
    return [picture(seed + 7 * place, SIZES[(seed + place) % len(SIZES)]) for place in range(count)]


class TinyModels:
    """Checkpoints and loaded backbones by family, each made once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders: dict[str, Path] = {}
        self._backbones: dict[tuple[str, bool], Backbone] = {}

    def folder(self, family: str) -> Path:
        """The family's checkpoint folder."""
        if family not in self._folders:
            self._folders[family] = make_tiny(family, self._root / family)
        return self._folders[family]

    def backbone(self, family: str, *, remembers: bool = False) -> Backbone:
        """The family's model, loaded in fp32 on the CPU. `remembers`: prefixes and images of earlier prompts."""
        key = family, remembers
        if key not in self._backbones:
            self._backbones[key] = load_backbone(
                self.folder(family),
                device="cpu",
                dtype=torch.float32,
                max_rows=8,
                keep_prefixes=remembers,
                image_memory_bytes=2**20 if remembers else 0,
            )
        return self._backbones[key]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """Tiny models of every family."""
    return TinyModels(tmp_path_factory.mktemp("tiny"))


every_family = pytest.mark.parametrize("family", sorted(TINY))
"""For tests that compare with the stock model: they run with all families, always."""


def representatives_first(names: Iterable[str] = TINY) -> list[Any]:
    """Families as parameters; those that are not representatives are slow."""
    return [pytest.param(name, marks=() if name in REPRESENTATIVES else pytest.mark.slow) for name in sorted(names)]


families_that_see = pytest.mark.parametrize(
    "family", representatives_first(name for name in TINY if FAMILIES[name].sees)
)
"""For tests about images: they run with the representatives that read any; in slow runs with all that do."""


@pytest.fixture(params=representatives_first())
def family(request: pytest.FixtureRequest) -> str:
    """The representatives in turn; in slow runs every family."""
    return str(request.param)


@pytest.fixture
def backbone(tiny_models: TinyModels, family: str) -> Iterator[Backbone]:
    """A tiny model of each family in turn, which remembers nothing of earlier tests."""
    yield from closed_after(tiny_models.backbone(family))


@pytest.fixture
def remembering(tiny_models: TinyModels, family: str) -> Iterator[Backbone]:
    """The same with a memory of prefixes and images, as it is served; empty at first."""
    backbone = tiny_models.backbone(family, remembers=True)
    backbone.forget()
    yield from closed_after(backbone)


def closed_after(backbone: Backbone) -> Iterator[Backbone]:
    """A test must leave no row open; if it does, the next ones do not suffer. Nothing reads prompts but in it."""
    backbone.read_prompts(None)
    yield backbone
    left = backbone.open_rows
    for table in [*backbone.cache.tables]:
        backbone.cache.close(table)
    backbone.read_prompts(None)
    assert left == 0, f"{left} rows were left open"
    assert backbone.cache.usage == 0
