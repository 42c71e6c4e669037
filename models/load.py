"""Loading a model once: a folder or hub id -> `Backbone`. What is wrong with it is one clear line, a `LoadError`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from models.attention import PAGED
from models.backbone import Backbone, BackboneInfo
from models.cache import BLOCK, CacheShape, PagedCache, cache_room
from models.cpu import CpuCapabilities, cpu_capabilities
from models.errors import LoadError, told_in_one_line
from models.families import FAMILIES, Family
from models.fused import fuse
from models.inputs import InputBuilder
from models.prepacked import prepack
from models.processors import load_processor
from models.progress import Tell, progress_bars
from models.quantize import quantize_decoder
from models.where import where_problem

IMAGE_MEMORY_BYTES = 128 * 2**20


def load_backbone(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    max_rows: int = 16,
    revision: str | None = None,
    cache_bytes: int | None = None,
    keep_prefixes: bool = True,
    image_memory_bytes: int = IMAGE_MEMORY_BYTES,
    int8: bool = False,
    cpu: CpuCapabilities | None = None,
    tell: Tell | None = None,
) -> Backbone:
    """Load a model, frozen and in eval mode, with its processor.

    `dtype` "auto" is bf16 where the device computes in it and fp32 elsewhere. `cache_bytes`: of the KV cache; by
    default what `max_rows` whole contexts take, within a share of the memory. `keep_prefixes`: whether what prompts
    begin with stays in it. `image_memory_bytes`: of images that were seen. `int8`: the decoder's weights in 8 bits.
    `cpu`: what it computes with on a CPU; by default what this machine's can. `tell` is
    called with how far it is, many times a second; without it progress bars are drawn. Raises `LoadError`.
    """
    name = str(name_or_path)
    config, family, inputs, tokenizer = _without_weights(name, revision)
    chosen_device = _device(device)
    cpu = cpu or cpu_capabilities()
    chosen_dtype = _dtype(dtype, chosen_device, cpu)
    model = _model(name, family, chosen_dtype, revision, tell).to(chosen_device)
    text = config.get_text_config()
    shape = cache_shape(text, chosen_dtype, chosen_device)
    cache = PagedCache(shape, _blocks(shape, text, max_rows, cache_bytes), keep=keep_prefixes)
    info = _info(name, revision, config, model, inputs, tokenizer, cache)
    _rearrange(model, info, cpu, int8=int8)
    return Backbone(
        model, family, inputs, tokenizer, info, family.image_token_id(config), max_rows, cache, image_memory_bytes
    )


def _info(
    name: str,
    revision: str | None,
    config: Any,  # noqa: ANN401
    model: Any,  # noqa: ANN401
    inputs: InputBuilder,
    tokenizer: PreTrainedTokenizerBase,
    cache: PagedCache,
) -> BackboneInfo:
    """What is told of a loaded model."""
    text = config.get_text_config()
    return BackboneInfo(
        name=name,
        revision=revision or getattr(config, "_commit_hash", None),
        architecture=type(model).__name__,
        family=config.model_type,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        vocab_size=text.vocab_size,
        context_length=min(text.max_position_embeddings, cache.pool.count * cache.block_size),
        dtype=cache.shape.dtype,
        device=cache.shape.device,
        eos_ids=_eos_ids(model, config, tokenizer),
        template_hash=inputs.template_hash,
        parameters=sum(each.numel() for each in model.get_decoder().parameters()),
        weights_hash=weights_hash(model),
    )


def _rearrange(model: Any, info: BackboneInfo, cpu: CpuCapabilities, *, int8: bool) -> None:  # noqa: ANN401
    """Join, quantise and lay out the weights for the device that they are on."""
    decoder: Any = model.get_decoder()
    fuse(decoder)
    if int8:
        if info.device.type != "cpu" or info.dtype not in (torch.bfloat16, torch.float32):
            wanted = "a CPU and bfloat16 or float32"
            raise LoadError(f"int8 weights need {wanted}, not {info.device.type} and {_name_of(info.dtype)}")
        quantize_decoder(decoder, cpu)
    if info.device.type == "cpu":
        prepack(model, cpu)


def load_inputs(
    name: str, revision: str | None = None, *, image_memory_bytes: int = 0
) -> tuple[InputBuilder, PreTrainedTokenizerBase]:
    """What makes prompts for a model and texts of its tokens, without its weights.

    `image_memory_bytes`: of processor tensors of images that are known by their files. Raises `LoadError`.
    """
    _, _, inputs, tokenizer = _without_weights(name, revision, image_memory_bytes, refuse_early=True)
    return inputs, tokenizer


def _without_weights(
    name: str, revision: str | None, image_memory_bytes: int = 0, *, refuse_early: bool = False
) -> tuple[Any, Family, InputBuilder, PreTrainedTokenizerBase]:
    """Config, family, and what makes prompts and texts."""
    _check_exists(name)
    config = _config(name, revision)
    family = _family(name, config)
    _check_computed(name, config.get_text_config())
    processor, template = load_processor(name, family, revision)
    most = config.get_text_config().max_position_embeddings if refuse_early else None
    inputs = InputBuilder(processor, family, template, family.image_token_id(config), image_memory_bytes, most)
    return config, family, inputs, processor.tokenizer


def cache_shape(text: Any, dtype: torch.dtype, device: torch.device) -> CacheShape:  # noqa: ANN401
    """The cache of a decoder with this config."""
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    return CacheShape(
        layers=text.num_hidden_layers,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        device=device,
        group=heads // kv_heads,
    )


def _blocks(shape: CacheShape, text: Any, max_rows: int, cache_bytes: int | None) -> int:  # noqa: ANN401
    """Blocks of the cache; as few as hold `max_rows` whole contexts, or what the memory has room for."""
    wanted = max_rows * -(-text.max_position_embeddings // BLOCK)
    if cache_bytes is None:
        return max(1, min(int(wanted), cache_room(shape.device) // shape.block_bytes))
    if cache_bytes < shape.block_bytes:
        raise LoadError(f"a cache of {cache_bytes} bytes has no room for one block of {shape.block_bytes} bytes")
    return cache_bytes // shape.block_bytes


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over a few values of every parameter, rounded to bf16 so that the loaded dtype does not matter."""
    samples = [parameter.detach().flatten()[:16] for _, parameter in sorted(model.named_parameters())]
    values = torch.cat([sample.to(torch.bfloat16).cpu() for sample in samples])
    return hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()


def _check_exists(name: str) -> None:
    if (problem := where_problem(name)) is not None:
        raise LoadError(problem)


def _config(name: str, revision: str | None) -> Any:  # noqa: ANN401
    with told_in_one_line(f"cannot read the config of {name}"):
        return AutoConfig.from_pretrained(name, revision=revision)


def _family(name: str, config: Any) -> Family:  # noqa: ANN401
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise LoadError(f"{name} is a {config.model_type} model; supported are {', '.join(sorted(FAMILIES))}")
    return family


# What some checkpoints of a family have their decoder do, and ours does not.
_NOT_COMPUTED = ("attn_logit_softcapping", "final_logit_softcapping", "use_bidirectional_attention")


def _check_computed(name: str, text: Any) -> None:  # noqa: ANN401
    asked = [option for option in _NOT_COMPUTED if getattr(text, option, None)]
    if asked:
        raise LoadError(f"the config of {name} asks for {asked[0]}, which is not supported")


def _model(name: str, family: Family, dtype: torch.dtype, revision: str | None, tell: Tell | None) -> Any:  # noqa: ANN401
    with told_in_one_line(f"cannot load the weights of {name}"), progress_bars(tell) as bars:
        model, report = getattr(transformers, family.model).from_pretrained(
            name,
            revision=revision,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            tqdm_class=bars,
        )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise LoadError(f"the checkpoint of {name} lacks {len(missing)} tensors, the first is {missing[0]}")
    # Only the decoder: vision towers keep the attention that they were loaded with.
    model.get_decoder().config._attn_implementation = PAGED
    return model.eval().requires_grad_(False)


def _device(device: str | torch.device) -> torch.device:
    if device != "auto":
        with told_in_one_line(f"no device {device}"):
            return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(dtype: str | torch.dtype, device: torch.device, cpu: CpuCapabilities) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        named = getattr(torch, {"bf16": "bfloat16", "fp32": "float32", "fp16": "float16"}.get(dtype, dtype), None)
        if not isinstance(named, torch.dtype):
            raise LoadError(f"no dtype {dtype}")
        return named
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and cpu.bf16_products else torch.float32


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _eos_ids(model: Any, config: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:  # noqa: ANN401
    """Every token that the checkpoint calls an end."""
    found: set[int] = set()
    for source in (model.generation_config, config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update([] if ids is None else [ids] if isinstance(ids, int) else ids)
    if not found:
        raise LoadError("the checkpoint names no end-of-sequence token")
    return frozenset(found)
