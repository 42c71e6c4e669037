"""A validated chat request -> the engine's `Request`: images, prompt, limits, sampling. Blocks: for worker threads."""

from __future__ import annotations

from typing import Any

from PIL import Image

from models.grammar import JsonGrammar, SchemaError
from models.inputs import Prompt, PromptError
from models.sampling import RowSampler, SamplingParams
from server.config import Settings
from server.errors import BadRequest, ContextLengthExceeded
from server.images import RequestImages
from server.request import Request, Timings
from server.schemas import ChatCompletionRequest, ImagePart, RefusalPart, TextPart, parts_of
from server.serving import Served
from steering.policy import Policy


def prepare_chat(
    chat: ChatCompletionRequest,
    served: Served,
    policy: Policy,
    settings: Settings,
    answer_id: str,
    arrived: float,
    images: RequestImages,
) -> list[Request]:
    """Everything the engine needs, one request for each choice. Raises BadRequest naming the field and the limit."""
    sampling = sampling_params(chat, served)
    grammar = answer_grammar(chat, served)
    prompt = build_prompt(chat, served, settings, images)
    limit = answer_limit(chat, len(prompt.ids), served.info.context_length, settings.default_max_tokens)
    requests: list[Request] = []
    for choice in range(chat.choices):
        request = Request(
            id=f"{answer_id}.{choice}",
            prompt=prompt,
            sampler=RowSampler(sampling.of_choice(choice), prompt.ids, grammar.fresh() if grammar else None),
            max_tokens=limit,
            policy=policy,
            leader=requests[0] if requests else None,
            timings=Timings(arrived=arrived),
        )
        requests.append(request)
    return requests


def image_urls(chat: ChatCompletionRequest, settings: Settings) -> dict[str, str]:
    """The URL of each image by the path of its field, in order. Raises BadRequest if they are too many."""
    urls = {
        _image_path(i, j): part.image_url.url
        for i, message in enumerate(chat.messages)
        for j, part in enumerate(parts_of(message))
        if isinstance(part, ImagePart)
    }
    if len(urls) > settings.max_images:
        raise BadRequest(
            f"The request has {len(urls)} images, the limit is {settings.max_images}.",
            param="messages",
            code="too_many_images",
        )
    return urls


def _image_path(message: int, part: int) -> str:
    return f"messages.{message}.content.{part}.image_url.url"


def answer_grammar(chat: ChatCompletionRequest, served: Served) -> JsonGrammar | None:
    """What `response_format` binds the answer to. Raises BadRequest."""
    if (schema := chat.answer_schema) is None:
        return None
    try:
        return served.grammars.compile(schema)
    except SchemaError as error:
        param = "response_format" if chat.response_format is None else f"response_format.{chat.response_format.type}"
        raise BadRequest(f"Invalid value for '{param}': the schema cannot be used: {error}.", param=param) from error


def build_prompt(chat: ChatCompletionRequest, served: Served, settings: Settings, images: RequestImages) -> Prompt:
    """Decode the images, render the template. Raises BadRequest."""
    _check_characters(chat, settings)
    messages, pictures = template_messages(chat, images)
    try:
        return served.inputs.build(messages, pictures)
    except PromptError as error:
        raise BadRequest(f"The model cannot take these messages: {error}.", param="messages") from error


def template_messages(
    chat: ChatCompletionRequest, images: RequestImages
) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Messages as the chat template wants them, and the images in order of appearance. Raises BadRequest."""
    messages: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []
    for i, message in enumerate(chat.messages):
        content: list[dict[str, Any]] = []
        for j, part in enumerate(parts_of(message)):
            if isinstance(part, ImagePart):
                pictures.append(images.load(_image_path(i, j)))
                content.append({"type": "image"})
            else:
                content.append({"type": "text", "text": _words(part)})
        role = "system" if message.role == "developer" else message.role
        messages.append({"role": role, "content": content})
    return messages, pictures


def _words(part: TextPart | RefusalPart) -> str:
    return part.text if isinstance(part, TextPart) else part.refusal


def _check_characters(chat: ChatCompletionRequest, settings: Settings) -> None:
    """Refuse too much text before any work is done."""
    parts = [part for message in chat.messages for part in parts_of(message)]
    characters = sum(len(_words(part)) for part in parts if not isinstance(part, ImagePart))
    if characters > settings.max_prompt_characters:
        raise ContextLengthExceeded(
            f"The messages have {characters} characters, the limit is {settings.max_prompt_characters}.",
            param="messages",
        )


def answer_limit(chat: ChatCompletionRequest, prompt_tokens: int, context: int, default: int) -> int:
    """How many tokens may be generated. Raises ContextLengthExceeded if the prompt or the wish does not fit."""
    room = context - prompt_tokens
    if room < 1:
        raise ContextLengthExceeded(
            f"The prompt has {prompt_tokens} tokens; the model's context of {context} tokens holds prompt and answer.",
            param="messages",
        )
    if chat.limit is None:
        return min(room, default)
    name, wanted = chat.limit
    if wanted > room:
        raise ContextLengthExceeded(
            f"'{name}' is {wanted}, but the prompt's {prompt_tokens} tokens leave room for {room} "
            f"in the model's context of {context} tokens.",
            param=name,
        )
    return wanted


def sampling_params(chat: ChatCompletionRequest, served: Served) -> SamplingParams:
    """The request's sampling. Raises BadRequest for biases of tokens that the model does not have."""
    if chat.logprobs and served.decoder.cleans_up:
        raise BadRequest(
            "'logprobs' is not supported with this model: its tokenizer changes text that tokens were given for.",
            param="logprobs",
        )
    for token in chat.logit_bias or ():
        if token >= (vocab_size := served.info.vocab_size):
            raise BadRequest(
                f"Invalid value for 'logit_bias': token id {token} is not below the vocabulary size {vocab_size}.",
                param="logit_bias",
            )
    given: dict[str, Any] = {
        "temperature": chat.temperature,
        "top_p": chat.top_p,
        "top_k": None if chat.top_k is None else max(chat.top_k, 0),
        "min_p": chat.min_p,
        "seed": chat.seed,
        "repetition_penalty": chat.repetition_penalty,
        "frequency_penalty": chat.frequency_penalty,
        "presence_penalty": chat.presence_penalty,
        "logit_bias": chat.logit_bias,
        "logprobs": chat.likeliest,
    }
    return SamplingParams(**{name: value for name, value in given.items() if value is not None})
