"""The models that are measured: random Llavas of fixed seeds, saved like real checkpoints, and guards for them.

Every token is a printable string, so that each is one event of a stream; the special tokens' rows of the head are zero,
which is never the largest of thousands of random logits, so that no greedy answer ends before its `max_tokens`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import string
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from models.backbone import Backbone
from models.cpu import cpu_capabilities
from models.load import load_backbone
from models.weight_names import use_published_names
from steering.bundle import save_bundle
from tests.server.guards import random_guard

FOLDER = Path("runs/bench-models")
_FORMAT = 2  # of what `make` writes; a folder of another one is made anew
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>")
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>\n{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A Llava's size. `image` and `patch` in pixels."""

    name: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    tower: int  # the tower's width; twice that in its feed-forward layers
    tower_layers: int
    image: int
    patch: int = 14
    seed: int = 0

    @property
    def head_size(self) -> int:
        """Of one attention head."""
        return self.hidden // self.heads

    @property
    def image_tokens(self) -> int:
        """Tokens of one image."""
        return (self.image // self.patch) ** 2


TINY = Shape("tiny", 512, 96, 256, 4, 4, 2, 4096, tower=64, tower_layers=2, image=84)
SMALL = Shape("small", 4096, 512, 1408, 9, 8, 4, 8192, tower=192, tower_layers=4, image=224)
SMOLLM2 = Shape("smollm2", 49152, 576, 1536, 30, 9, 3, 8192, tower=0, tower_layers=0, image=0)  # reads no images
SHAPES = {shape.name: shape for shape in (TINY, SMALL)}


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder, and the folder of a guard for it."""

    shape: Shape
    model: Path
    guard: Path


@cache
def serving_dtype() -> str:
    """What a server computes in on this machine, said to every server so that all do the same."""
    if torch.cuda.is_available():
        return "bfloat16"
    return "bfloat16" if cpu_capabilities().bf16_products else "float32"


def checkpoint(shape: Shape, root: Path = FOLDER) -> Checkpoint:
    """The model's folder under `root`, made where it is not there yet, and a guard fresh from this code."""
    said = json.dumps([_FORMAT, serving_dtype(), transformers.__version__, asdict(shape)])
    folder = root / f"{shape.name}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"
    if not folder.is_dir():
        half = folder.with_suffix(".half")
        shutil.rmtree(half, ignore_errors=True)
        _make(shape, half)
        half.rename(folder)
    guard = folder.with_name(f"{folder.name}-guard")
    _make_guard(folder, guard)
    return Checkpoint(shape, folder.absolute(), guard.absolute())


def load_stock(checkpoint: Checkpoint) -> Any:  # noqa: ANN401 - a transformers model
    """The model as transformers has it."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(
        checkpoint.model, dtype=serving_dtype(), attn_implementation="sdpa"
    )
    return model.eval().requires_grad_(False)


def load_ours(checkpoint: Checkpoint, rows: int) -> Backbone:
    """The model as ours serves it."""
    return load_backbone(checkpoint.model, device="cpu", dtype=serving_dtype(), max_rows=rows)


def config(shape: Shape, tokenizer: PreTrainedTokenizerFast) -> Any:  # noqa: ANN401 - a transformers config
    """The Llava's config."""
    return transformers.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": shape.tower,
            "intermediate_size": 2 * shape.tower,
            "num_hidden_layers": shape.tower_layers,
            "num_attention_heads": shape.tower // 32,
            "image_size": shape.image,
            "patch_size": shape.patch,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.hidden,
            "intermediate_size": shape.intermediate,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads,
            "max_position_embeddings": shape.context,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": False,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over printable ASCII: single characters and pairs for prompts, longer words for answers."""
    letters = string.ascii_lowercase
    pairs = [(first, second) for first in ("Ġ", *letters) for second in letters]
    longer = ("".join(word) for word in itertools.product(letters, repeat=3))
    characters = [chr(code) for code in range(33, 127)]
    tokens = [*_SPECIAL, *characters, "Ġ", "Ċ"]
    merges = pairs[: max(0, size - len(tokens))]
    tokens += ["".join(pair) for pair in merges]
    tokens += itertools.islice(longer, size - len(tokens))
    backend = Tokenizer(models.BPE({token: place for place, token in enumerate(tokens)}, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>", "<image>"],
    )


def _make(shape: Shape, folder: Path) -> None:
    tokenizer = make_tokenizer(shape.vocabulary)
    torch.manual_seed(shape.seed)
    model = transformers.LlavaForConditionalGeneration(config(shape, tokenizer))
    model.get_output_embeddings().weight.data[: len(_SPECIAL)] = 0
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.to(getattr(torch, serving_dtype())).save_pretrained(folder)
    use_published_names(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": shape.image}, crop_size={"height": shape.image, "width": shape.image}
    ).save_pretrained(folder)
    options = {
        "processor_class": "LlavaProcessor",
        "patch_size": shape.patch,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    (folder / "processor_config.json").write_text(json.dumps(options))
    (folder / "chat_template.jinja").write_text(_TEMPLATE)


def _make_guard(model: Path, folder: Path) -> None:
    """A random guard of the middle layer. Scores lie between 0 and 1: a threshold of 0 flags all, one of 1 none."""
    info = load_backbone(model, device="cpu", dtype=serving_dtype(), max_rows=1).info
    guard = random_guard(info, seed=1, layer=info.num_layers // 2)
    manifest = guard.manifest.model_copy(update={"threshold": 1.0})
    save_bundle(folder, manifest, guard.reader, guard.head, {})
