"""Tokenization: messages or a text -> the tokens of the prompt."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Protocol

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


class Count(Protocol):
    """What is asked for the tokens of a prompt, validated."""

    @property
    def model(self) -> str | None:
        """The model whose tokens they are, where it is named."""

    def ignored_here(self, served: Served) -> Collection[str]:
        """The path of each hint that is given."""

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URL of each image by the path of its field. Raises BadRequest if they are too many, or not read."""

    def counted(self, served: Served, settings: Settings, images: RequestImages) -> Mapping[str, Any]:
        """The tokens of what is asked. Blocks: for worker threads. Raises BadRequest."""


class TokenizeRequest(Strict):
    """The body of `POST /tokenize`: messages as of a chat, or the prompt of a completion."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)] | None = None
    prompt: Text | None = None
    return_token_strs: bool | None = None

    def ignored_here(self, served: Served) -> Collection[str]:  # noqa: ARG002  as every count
        """The path of each hint that is given."""
        return {*self.ignored()}

    def images(self, served: Served, settings: Settings) -> Mapping[str, str]:
        """The URL of each image by the path of its field. Raises BadRequest if they are too many, or not read."""
        return Conversation(self.messages or ()).image_urls(served, settings)

    def counted(self, served: Served, settings: Settings, images: RequestImages) -> Tokens:
        """The tokens of what is asked. Blocks: for worker threads. Raises BadRequest."""
        if self.prompt is not None:
            prompt = text_prompt(self.prompt, served, settings)
        else:
            prompt = Conversation(self.messages or ()).prompt(served, settings, images)
        tokens: Tokens = {
            "count": len(prompt.ids),
            "max_model_len": served.info.context_length,
            "image_tokens": prompt.image_tokens,
            "tokens": prompt.ids,
        }
        if self.return_token_strs:
            vocabulary = served.decoder.vocabulary
            tokens["token_strs"] = [vocabulary.bytes_of(token).decode(errors="replace") for token in prompt.ids]
        return tokens


def parse_tokenize_request(data: object) -> TokenizeRequest:
    """A decoded JSON body as a request; raises BadRequest naming the first field that is wrong."""
    wanted = parse(TokenizeRequest, data)
    if (wanted.messages is None) == (wanted.prompt is None):
        raise BadRequest("Give either 'messages' or 'prompt'.", param="messages")
    return wanted
