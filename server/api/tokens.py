"""Tokenization: messages or a text -> the tokens of the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from server.api.fields import Strict, Text
from server.api.messages import MAX_MESSAGES, Message
from server.api.objects import Tokens
from server.api.prompts import Conversation, text_prompt
from server.api.served import Served
from server.api.validation import parse
from server.errors import BadRequest
from server.media.images import RequestImages
from server.settings.schema import Settings


class TokenizeRequest(Strict):
    """The body of `POST /tokenize`: messages as of a chat, or the prompt of a completion."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    prompt: Text | None = None
    return_token_strs: bool | None = None

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URL of each image by the path of its field. Raises BadRequest if they are too many, or not read."""
        return Conversation(self.messages or ()).image_urls(served, settings)


def parse_tokenize_request(data: object) -> TokenizeRequest:
    """A decoded JSON body as a request; raises BadRequest naming the first field that is wrong."""
    wanted = parse(TokenizeRequest, data)
    if (wanted.messages is None) == (wanted.prompt is None):
        raise BadRequest("Give either 'messages' or 'prompt'.", param="messages")
    return wanted


def tokenized(wanted: TokenizeRequest, served: Served, settings: Settings, images: RequestImages) -> Tokens:
    """The tokens of what is asked. Blocks: for worker threads. Raises BadRequest."""
    if wanted.prompt is not None:
        prompt = text_prompt(wanted.prompt, served, settings)
    else:
        prompt = Conversation(wanted.messages or ()).prompt(served, settings, images)
    tokens: Tokens = {
        "count": len(prompt.ids),
        "max_model_len": served.info.context_length,
        "image_tokens": prompt.image_tokens,
        "tokens": prompt.ids,
    }
    if wanted.return_token_strs:
        vocabulary = served.decoder.vocabulary
        tokens["token_strs"] = [vocabulary.bytes_of(token).decode(errors="replace") for token in prompt.ids]
    return tokens
