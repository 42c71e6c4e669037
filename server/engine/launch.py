"""Which model, guard and name the settings stand for, and how they are loaded: whole, or without the weights."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.request import EngineFailed
from server.settings.groups import ShadowSettings
from server.settings.schema import EngineName, LogFormat, Settings

if TYPE_CHECKING:
    from models.backbone import Backbone
    from models.progress import Tell
    from server.engine.host import Inputs
    from server.engine.protocol import Engine

DEMO_NAME = "autosteer-demo"


@dataclass(frozen=True)
class LaunchSpec:
    """What is to be loaded, and how it is run: all that the engine's process is told of the settings.

    `guard` None: none. `threads` None: as many as torch takes.
    """

    model: str
    guard: Path | None
    name: str
    revision: str | None
    device: str
    dtype: str
    max_rows: int
    prefill_tokens: int
    max_gap_ms: int
    cache_gib: float | None
    prefix_cache: bool
    image_cache_mib: int
    quantize: str
    cuda_graphs: bool
    shadow: ShadowSettings | None
    threads: int | None
    log_format: LogFormat
    engine: EngineName
    tensor_parallel: int

    @classmethod
    def of(cls, settings: Settings) -> LaunchSpec:
        """The bundled demo model and its guard where the settings name no model."""
        from models import demo

        is_demo = settings.model is None or Path(settings.model).absolute() == demo.CHECKPOINT
        model = settings.model or str(demo.CHECKPOINT)
        guard = settings.guard or (str(demo.GUARD) if is_demo else "none")
        return cls(
            model=model,
            guard=None if guard.lower() == "none" else Path(guard),
            name=settings.served_model_name or (DEMO_NAME if is_demo else _short_name(model)),
            revision=settings.revision,
            device=settings.device,
            dtype=settings.dtype,
            max_rows=settings.max_rows,
            prefill_tokens=settings.prefill_tokens,
            max_gap_ms=settings.max_gap_ms,
            cache_gib=settings.cache_gib,
            prefix_cache=settings.prefix_cache,
            image_cache_mib=settings.image_cache_mib,
            quantize=settings.quantize,
            cuda_graphs=settings.cuda_graphs,
            shadow=settings.shadow,
            threads=settings.threads,
            log_format=settings.log_format,
            engine=settings.engine,
            tensor_parallel=settings.tensor_parallel,
        )

    def load(self, tell: Tell | None = None) -> Engine[Any]:
        """Load model and guard; for the engine's process. `tell` is called with how far it is.

        Raises LoadError, BundleError, PolicyError.
        """
        # On a CPU every size of a pass makes kernels of its own, of up to 1 MB each. The default keeps 1,024 of them,
        # which fills up slowly and looks like a leak; these do for all sizes of passes with prompts and of decoding.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "512")
        _quiet_libraries(self.log_format)
        return self._load_vllm(tell) if self.engine == "vllm" else self._load_own(tell)

    def _load_vllm(self, tell: Tell | None) -> Engine[Any]:
        from server.engine.vllm.start import Options, load_vllm

        options = Options(
            self.max_rows, self.prefill_tokens, self.cache_gib, self.prefix_cache, self.threads, self.tensor_parallel
        )
        return load_vllm(
            self.model,
            self.guard,
            options,
            name=self.name,
            revision=self.revision,
            device=self.device,
            dtype=self.dtype,
            tell=tell,
            lost_rank=partial(os._exit, 1),
        )

    def _load_own(self, tell: Tell | None) -> Engine[Any]:
        from models.load import load_backbone
        from server.engine.answers import read_beside
        from server.engine.own import OwnEngine
        from server.engine.scheduler import Scheduler
        from server.engine.shadow import load_shadow
        from steering.bundle import load_guard

        backbone = load_backbone(
            self.model,
            device=self.device,
            dtype=self.dtype,
            max_rows=self.max_rows,
            revision=self.revision,
            cache_bytes=None if self.cache_gib is None else int(self.cache_gib * 2**30),
            keep_prefixes=self.prefix_cache,
            image_memory_bytes=self.image_cache_mib * 2**20,
            int8=self.quantize == "int8",
            tell=tell,
        )
        set_threads(self, backbone)
        guard = None if self.guard is None else load_guard(self.guard, backbone.info)
        shadow = None if self.shadow is None else load_shadow(self.shadow, guard, backbone.info)
        of_answers = read_beside(None if guard is None else guard.answers, shadow)
        if of_answers is not None:
            backbone.watch_answers(of_answers.layers)
        if self.cuda_graphs:
            backbone.capture()
        scheduler = Scheduler(self.max_rows, self.prefill_tokens, self.max_gap_ms / 1000)
        return OwnEngine(backbone, guard, scheduler, shadow)

    def load_inputs(self) -> Inputs:
        """Load what prompts and texts are made with; for the HTTP process. Raises LoadError."""
        _quiet_libraries(self.log_format)
        from models.grammar import plain_json
        from models.load import load_inputs
        from server.engine.host import Inputs

        memory_bytes = self.image_cache_mib * 2**20
        builder, tokenizer = load_inputs(self.model, self.revision, image_memory_bytes=memory_bytes)
        return Inputs(builder, tokenizer, plain_json(tokenizer))


def explains_itself(error: BaseException) -> bool:
    """Whether loading failed in a way that the error's own words tell in full."""
    from models.errors import LoadError
    from steering.errors import BundleError
    from steering.policy import PolicyError

    return isinstance(error, (LoadError, BundleError, PolicyError))


def load_failure(kind: str, words: str) -> Exception:
    """What loading raised in the engine's process: of the kinds that explain themselves, or EngineFailed."""
    from models.errors import LoadError
    from steering.errors import BundleError
    from steering.policy import PolicyError

    known: dict[str, type[Exception]] = {each.__name__: each for each in (LoadError, BundleError, PolicyError)}
    return known.get(kind, EngineFailed)(words or kind)


SMALL_MODEL = 8_000_000  # parameters: below, threads cost more to bring together than they save


def set_threads(spec: LaunchSpec, backbone: Backbone) -> None:
    """How many threads a step computes with. Where nothing says it one for a small model, else one for each core."""
    import torch

    from models.cores import machine_cores

    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    elif backbone.info.parameters < SMALL_MODEL:
        torch.set_num_threads(1)
    else:
        torch.set_num_threads(min(torch.get_num_threads(), machine_cores()))  # torch knows nothing of quotas


def _quiet_libraries(form: LogFormat) -> None:
    """Nothing is logged past the server's own log while a model loads."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers.utils.logging as of_transformers

    from server.watch.logs import adopt_libraries

    of_transformers.get_verbosity()  # makes its handler
    adopt_libraries()
    if form == "json":
        of_transformers.disable_progress_bar()


def _short_name(model: str) -> str:
    return Path(model).absolute().name if Path(model).is_dir() else model
