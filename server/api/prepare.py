"""Prompts and the fields of an answer -> the engine's `Ask`s: limits, sampling. Blocks: for worker threads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from models.prompt import Prompt
from models.row_sampler import SamplingParams
from server.api.answer_fields import AnswerFields
from server.api.job import Intake
from server.api.languages import text_for
from server.api.served import Served
from server.errors import BadRequest, ContextLengthExceeded
from server.request import Ask
from steering.policy import Policy

LAST_TOKENS = 512  # of a prompt, by which its language is known


def asks_of(
    intake: Intake,
    prompts: Iterable[tuple[Prompt, int]],
    choices: int,
    sampling: SamplingParams,
    *,
    scores: bool = False,
    prompt_logprobs: int | None = None,
) -> list[Ask]:
    """The choices of every prompt, each with its limit of tokens; those of one share it, and the decision on it.

    `scores`: whether the score at each token is wanted; `prompt_logprobs`: as of an Ask, once for each prompt.
    """
    asks: list[Ask] = []
    for prompt, max_tokens in prompts:
        leader: str | None = None
        policy = _translated(intake, prompt)
        for _ in range(choices):
            ask = Ask(
                id=f"{intake.answer_id}.{len(asks)}",
                prompt=prompt,
                params=sampling.of_choice(len(asks)),
                max_tokens=max_tokens,
                policy=policy,
                schema=intake.schema,
                leader=leader,
                tenant=intake.tenant,
                scores=scores,
                prompt_logprobs=prompt_logprobs if leader is None else None,
                arrived=intake.arrived,
            )
            leader = leader or ask.id
            asks.append(ask)
    return asks


def _translated(intake: Intake, prompt: Prompt) -> Policy:
    """The policy with its refusal text in the language of a prompt, where there is one."""
    if not intake.terms.refusals:
        return intake.policy
    text = text_for(intake.terms.refusals, _last_words(intake.served, prompt.ids), intake.languages)
    return replace(intake.policy, translated=text)


def _last_words(served: Served, ids: Sequence[int]) -> str:
    """The end of what was said last; nothing where there are no words."""
    layout = served.inputs.layout(ids)
    for begin, end in reversed(layout.runs):
        last = min(end, layout.tokens - layout.header)
        text = served.decoder.decode(ids[max(begin, last - LAST_TOKENS) : max(begin, last)])
        if any(letter.isalpha() for letter in text):
            return text
    return ""


def check_room(prompt: Prompt, served: Served, field: str) -> int:
    """The tokens that the context has left. Raises ContextLengthExceeded if there are none."""
    tokens, context = len(prompt.ids), served.info.context_length
    if tokens >= context:
        raise ContextLengthExceeded(
            context, f"your {field} resulted in {tokens} tokens, which leaves no room for an answer", param=field
        )
    return context - tokens


def answer_limit(answer: AnswerFields, prompt: Prompt, served: Served, default: int, field: str) -> int:
    """How many tokens may be generated: no more than the context has room for. Raises ContextLengthExceeded."""
    room = check_room(prompt, served, field)
    return min(room, default if answer.limit is None else answer.limit[1])


def sampling_params(answer: AnswerFields, served: Served) -> SamplingParams:
    """The request's sampling. Raises BadRequest for what this model does not have."""
    if answer.likeliest is not None and served.decoder.cleans_up:
        raise BadRequest(
            "'logprobs' is not supported with this model: its tokenizer changes text that tokens were given for.",
            param="logprobs",
        )
    for token in answer.logit_bias or ():
        if token >= (vocab_size := served.info.vocab_size):
            raise BadRequest(
                f"Invalid value for 'logit_bias': token id {token} is not below the vocabulary size {vocab_size}.",
                param="logit_bias",
            )
    given: dict[str, Any] = {
        "temperature": answer.temperature,
        "top_p": answer.top_p,
        "top_k": None if answer.top_k is None else max(answer.top_k, 0),
        "min_p": answer.min_p,
        "seed": answer.seed,
        "repetition_penalty": answer.repetition_penalty,
        "frequency_penalty": answer.frequency_penalty,
        "presence_penalty": answer.presence_penalty,
        "logit_bias": answer.logit_bias,
        "logprobs": answer.likeliest,
        "min_tokens": answer.least_tokens,
    }
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})
