"""Validated requests -> the engine's `Request`s: prompt, limits, sampling. Blocks: for worker threads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from models.grammar import SchemaError
from models.inputs import Prompt
from models.sampling import RowSampler, SamplingParams
from server.api.prompts import Conversation, text_prompt
from server.api.schemas import AnswerFields, ChatCompletionRequest, Moderation
from server.api.schemas_text import CompletionRequest, ModerationRequest
from server.api.served import Served
from server.errors import BadRequest, ContextLengthExceeded
from server.media.images import RequestImages
from server.request import Request, Timings
from server.settings.schema import Settings
from steering.policy import Mode, Policy

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, for the legacy route


@dataclass(frozen=True)
class Intake:
    """What every request is made under."""

    served: Served
    policy: Policy
    settings: Settings
    answer_id: str
    arrived: float


def prepare_chat(chat: ChatCompletionRequest, intake: Intake, images: RequestImages) -> list[Request]:
    """Everything the engine needs, one request for each choice. Raises BadRequest naming the field and the limit."""
    served, settings = intake.served, intake.settings
    sampling = sampling_params(chat, served)
    policy = moderated_policy(intake.policy, chat.moderation, guarded=served.layer is not None)
    schema = answer_schema(chat, served)
    prompt = Conversation(chat.messages).prompt(served, settings, images)
    limit = answer_limit(chat, prompt, served, settings.default_max_tokens, "messages")
    return requests_of(replace(intake, policy=policy), [(prompt, limit)], chat.choices, sampling, schema)


def prepare_completion(completion: CompletionRequest, intake: Intake, _: RequestImages) -> list[Request]:
    """As `prepare_chat`: the choices of the first prompt, then those of the next. Raises BadRequest."""
    served = intake.served
    sampling = sampling_params(completion, served)
    prompts = [text_prompt(each, served, intake.settings) for each in completion.prompts]
    limits = [answer_limit(completion, prompt, served, DEFAULT_COMPLETION_TOKENS, "prompt") for prompt in prompts]
    return requests_of(intake, zip(prompts, limits, strict=True), completion.choices, sampling)


def prepare_moderation(moderation: ModerationRequest, intake: Intake, images: RequestImages) -> list[Request]:
    """A request for each input, to be scored and nothing more. Raises BadRequest."""
    conversations = [Conversation.of_input(parts) for parts in moderation.inputs]
    prompts = [conversation.prompt(intake.served, intake.settings, images) for conversation in conversations]
    for prompt in prompts:
        check_room(prompt, intake.served, "input")
    scored = replace(intake, policy=replace(intake.policy, mode=Mode.MONITOR))
    return requests_of(scored, [(prompt, 0) for prompt in prompts], 1, SamplingParams.GREEDY)


def requests_of(
    intake: Intake,
    prompts: Iterable[tuple[Prompt, int]],
    choices: int,
    sampling: SamplingParams,
    schema: str | None = None,
) -> list[Request]:
    """The choices of every prompt, each with its limit of tokens; those of one share it, and the decision on it."""
    requests: list[Request] = []
    for prompt, max_tokens in prompts:
        leader: Request | None = None
        for choice in range(choices):
            request = Request(
                id=f"{intake.answer_id}.{len(requests)}",
                prompt=prompt,
                sampler=RowSampler(sampling.of_choice(len(requests)), prompt.ids),
                max_tokens=max_tokens,
                policy=intake.policy,
                schema=schema,
                leader=leader,
                timings=Timings(arrived=intake.arrived),
            )
            leader = request if choice == 0 else leader
            requests.append(request)
    return requests


def moderated_policy(policy: Policy, moderation: Moderation | None, *, guarded: bool) -> Policy:
    """The policy of a request that asks to be scored, or blocked where it is flagged. Raises BadRequest."""
    if moderation is None:
        return policy
    if not moderation.blocks:
        return replace(policy, mode=Mode.MONITOR) if guarded and policy.mode is Mode.OFF else policy
    if not guarded:
        raise BadRequest(
            "'moderation.policy.input.mode' is 'block', but this server has no guard.",
            param="moderation.policy.input.mode",
        )
    return replace(policy, mode=Mode.BLOCK)


def answer_schema(chat: ChatCompletionRequest, served: Served) -> str | None:
    """What `response_format` binds the answer to. Raises BadRequest where the engine could make no grammar of it."""
    if (schema := chat.answer_schema) is None:
        return None
    try:
        served.grammars.compile(schema)
    except SchemaError as error:
        param = "response_format" if chat.response_format is None else f"response_format.{chat.response_format.type}"
        raise BadRequest(f"Invalid value for '{param}': the schema cannot be used: {error}.", param=param) from error
    return json.dumps(schema)


def check_room(prompt: Prompt, served: Served, field: str) -> int:
    """The tokens that the context has left. Raises ContextLengthExceeded if there are none."""
    tokens, context = len(prompt.ids), served.info.context_length
    if tokens >= context:
        raise ContextLengthExceeded(
            f"The prompt has {tokens} tokens; the model's context of {context} tokens holds prompt and answer.",
            param=field,
        )
    return context - tokens


def answer_limit(answer: AnswerFields, prompt: Prompt, served: Served, default: int, field: str) -> int:
    """How many tokens may be generated. Raises ContextLengthExceeded if the prompt or the wish does not fit."""
    room = check_room(prompt, served, field)
    if answer.limit is None:
        return min(room, default)
    name, wanted = answer.limit
    if wanted > room:
        raise ContextLengthExceeded(
            f"'{name}' is {wanted}, but the prompt's {len(prompt.ids)} tokens leave room for {room} "
            f"in the model's context of {served.info.context_length} tokens.",
            param=name,
        )
    return wanted


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
    }
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})
