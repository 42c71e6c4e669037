"""vLLM's own engine as a `Core`: our prompts and sampling parameters in its terms, and what it tells in ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import REGISTRY, Metric, generate_latest
from vllm import SamplingParams as VllmParams
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.sampling_params import RequestOutputKind
from vllm.v1.request import RequestStatus

from models.sampling import Logprobs
from server.engine.protocol import Load
from server.engine.vllm.pictures import Pictures
from server.engine.vllm.runs import Progress, Run
from server.engine.vllm.worker import EPS, RUN, WATCHED

if TYPE_CHECKING:
    from queue import SimpleQueue

    from vllm.outputs import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

    from models.row_sampler import Grammar, SamplingParams
    from server.engine.vllm.worker import Read


LEAST_TOP_P = 1e-9  # vLLM takes no 0; this too leaves the likeliest token alone


class _Own:
    """vLLM's series alone, of the registry that a process has for everybody."""

    def collect(self) -> list[Metric]:
        return [each for each in REGISTRY.collect() if each.name.startswith("vllm:")]


class _Known(NamedTuple):
    name: str  # vLLM adds to ours
    logprobs: int | None  # how many of the likeliest tokens it asks for


class VllmCore:
    """A `Core`: vLLM's step-driven engine in this process, its ranks here or in processes of their own.

    `pictures`: makes its input of prompts with images; None: the model sees none. `channel`: what the ranks read is put
    there, with the step that they read it in.
    """

    def __init__(
        self, engine: LLMEngine, pictures: Pictures | None, eos_ids: Sequence[int], channel: SimpleQueue[Read]
    ) -> None:
        self._engine = engine
        self._scheduler: Any = engine.engine_core.engine_core.scheduler
        self._pictures = pictures
        self._eos_ids = list(eos_ids)
        self._channel = channel
        self._grammars: dict[str, Grammar] = {}
        self._runs: dict[str, _Known] = {}

    @property
    def load(self) -> Load:
        """How much there is to do."""
        running, waiting = self._scheduler.get_request_counts()
        return Load(running, waiting, self._scheduler.get_kv_cache_usage())

    def add(self, run: Run) -> None:
        """Begin a run. Raises ValueError where vLLM does not take it."""
        told = {RUN: run.name, EPS: run.eps, WATCHED: run.watched}
        if self._pictures is None or not run.prompt.pictures:
            given = tokens_input(run.prompt.ids)
        else:
            given = self._pictures.input(run.prompt)
        try:
            made = sampling(run.params, run.max_tokens, self._eos_ids, told)
            name = self._engine.add_request(run.name, given, made)
        except VLLMClientError as error:
            raise ValueError(str(error)) from error
        self._runs[run.name] = _Known(name, run.params.logprobs)
        if run.grammar is not None:
            self._grammars[run.name] = run.grammar

    def abort(self, run: str) -> None:
        """Forget a run; nothing happens if it has ended."""
        self._grammars.pop(run, None)
        if self._runs.pop(run, None) is not None:
            self._engine.abort_request([run])

    def step(self) -> list[Progress]:
        """Compute what is scheduled."""
        if self._grammars:
            masks = {run: grammar.allowed() for run, grammar in self._grammars.items()}
            self._engine.collective_rpc("allow", args=(masks,))
        outputs = self._engine.step()
        for reads in self._engine.collective_rpc("take_reads"):
            for read in reads:
                self._channel.put(read)
        return [self._progress(output) for output in outputs if output.request_id in self._runs]

    def scheduled(self, run: str) -> bool:
        """Whether a run has begun to be computed."""
        request = self._scheduler.requests.get(self._runs[run].name) if run in self._runs else None
        return request is None or request.status is not RequestStatus.WAITING

    def series(self) -> bytes:
        """What vLLM tells of itself, in Prometheus' text format."""
        return generate_latest(_Own())

    def _progress(self, output: RequestOutput) -> Progress:
        (answer,) = output.outputs
        run = output.request_id
        count, logprobs = self._runs[run].logprobs, None
        if count is not None:
            found = zip(answer.token_ids, answer.logprobs or (), strict=True)
            logprobs = [of_token(token, each, count) for token, each in found]
        if answer.finish_reason is not None:
            del self._runs[run]
            self._grammars.pop(run, None)
        return Progress(run, answer.token_ids, logprobs, answer.finish_reason, output.num_cached_tokens)


def sampling(params: SamplingParams, max_tokens: int, eos_ids: Sequence[int], extra: Mapping[str, Any]) -> VllmParams:
    """Our sampling parameters in vLLM's terms. Raises VLLMClientError where it has none for them."""
    return VllmParams(
        temperature=params.temperature,
        top_p=max(params.top_p, LEAST_TOP_P),
        top_k=params.top_k,
        min_p=params.min_p,
        seed=None if params.seed is None else params.seed & (2**63 - 1),  # -1 would be none
        repetition_penalty=params.repetition_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        logit_bias=dict(params.logit_bias) or None,
        logprobs=params.logprobs,
        min_tokens=min(params.min_tokens, max_tokens),
        max_tokens=max_tokens,
        ignore_eos=True,  # the checkpoint's word on that; ours follows
        stop_token_ids=list(eos_ids),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        extra_args=dict(extra),
    )


def of_token(token: int, found: Mapping[int, Any], count: int) -> Logprobs:
    """What vLLM tells of a token's probability, and of the `count` likeliest, in our terms."""
    by_rank = sorted((each.rank, other, each.logprob) for other, each in found.items())
    top = [(other, logprob) for rank, other, logprob in by_rank if rank <= count and not math.isinf(logprob)]
    return Logprobs(found[token].logprob, top)
