"""Messages and their images -> a prompt. Blocks: for worker threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from models.errors import PromptError, PromptTooLong
from models.pixels import ImageFile
from models.prompt import Prompt
from server.api.job import Intake
from server.api.messages import (
    ImagePart,
    Part,
    RefusalPart,
    TextPart,
    ToolCall,
    ToolMessage,
    Turn,
    UserMessage,
    calls_of,
    parts_of,
)
from server.api.served import Served
from server.errors import BadRequest, ContextLengthExceeded, Forbidden
from server.media.images import RequestImages
from server.settings.schema import Settings


@dataclass(frozen=True)
class Conversation:
    """Messages, and where in the request they stand: `messages`, or one message's parts as `input`.

    `locate`: the path of a part, by its message's number and its own, where it is another; `image`: the field of a part
    that has its image.
    """

    messages: Sequence[Turn]
    field: str = "messages"
    locate: Callable[[int, int], str] | None = None
    image: str = "image_url.url"

    @classmethod
    def of_input(cls, parts: Sequence[TextPart | ImagePart]) -> Conversation:
        """What a user might have said, as moderations get it."""
        return cls([UserMessage(role="user", content=list(parts))], "input")

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every part, by its path in the request."""
        for i, message in enumerate(self.messages):
            for j, part in enumerate(parts_of(message)):
                yield self.path(i, j), part

    def path(self, message: int, part: int) -> str:
        """Where a part stands in the request."""
        if self.locate is not None:
            return self.locate(message, part)
        return f"messages.{message}.content.{part}" if self.field == "messages" else f"{self.field}.{part}"

    def check_last(self, intake: Intake) -> None:
        """Raise Forbidden where the last message is the assistant's, and the client's policy takes no such chats."""
        if self.messages[-1].role == "assistant" and not intake.terms.assistant_last:
            raise Forbidden(
                f"The last of '{self.field}' must not be the assistant's: the setting 'assistant_last' of the policy "
                f"{intake.policy.name!r} is off.",
                param=self.field,
                code="assistant_last_off",
            )

    def image_urls(self, served: Served, settings: Settings) -> dict[str, str]:
        """The URL of each image by the path of its field, in order. Raises BadRequest for one that is too many."""
        shown = {path: part.image_url.url for path, part in self.parts() if isinstance(part, ImagePart)}
        if shown and not served.inputs.sees:
            param = f"{next(iter(shown))}.type"
            raise BadRequest(f"Invalid value for '{param}': 'image_url'; this model reads text only.", param=param)
        urls = {f"{path}.{self.image}": url for path, url in shown.items()}
        if len(urls) > settings.max_images:
            raise BadRequest(
                f"The request has {len(urls)} images, the limit is {settings.max_images}.",
                param=self.field,
                code="too_many_images",
            )
        return urls

    def prompt(
        self, served: Served, settings: Settings, images: RequestImages, tools: Sequence[Mapping[str, Any]] = ()
    ) -> Prompt:
        """Render the template, with tools as it expects them, and look at the images. Raises BadRequest."""
        described = sum(len(orjson.dumps(tool)) for tool in tools)
        check_characters(self._characters() + described, served, settings, self.field)
        details = self._details(served)
        messages, pictures = self._for_template(images)
        try:
            return served.inputs.build(messages, pictures, details, tools)
        except PromptError as error:
            raise _refused(error, served, "these messages", self.field) from error

    def _characters(self) -> int:
        texts = [_words(part) for _, part in self.parts() if not isinstance(part, ImagePart)]
        calls = [call.function.arguments for message in self.messages for call in calls_of(message)]
        return sum(map(len, texts)) + sum(map(len, calls))

    def _details(self, served: Served) -> list[str]:
        """Each image's level of detail. Raises BadRequest for one that the model does not have."""
        details: list[str] = []
        for path, part in self.parts():
            if isinstance(part, ImagePart):
                details.append(part.image_url.detail or "auto")
                if details[-1] not in served.inputs.details:
                    param = f"{path}.image_url.detail"
                    raise BadRequest(
                        f"Invalid value for '{param}': {details[-1]!r}; this model reads images at one resolution, "
                        "so only 'auto' is supported.",
                        param=param,
                    )
        return details

    def _for_template(self, images: RequestImages) -> tuple[list[dict[str, Any]], list[ImageFile]]:
        """Messages as the chat template wants them, and the images in order of appearance. Raises BadRequest."""
        messages: list[dict[str, Any]] = []
        pictures: list[ImageFile] = []
        for i, message in enumerate(self.messages):
            content: list[dict[str, Any]] = []
            for j, part in enumerate(parts_of(message)):
                if isinstance(part, ImagePart):
                    pictures.append(images.file(f"{self.path(i, j)}.{self.image}"))
                    content.append({"type": "image"})
                else:
                    content.append({"type": "text", "text": _words(part)})
            more: dict[str, Any] = {} if message.name is None else {"name": message.name}
            if isinstance(message, ToolMessage):
                more["tool_call_id"] = message.tool_call_id
            if calls := calls_of(message):
                more["tool_calls"] = [_for_template(call) for call in calls]
            messages.append(
                {"role": "system" if message.role == "developer" else message.role, **more, "content": content}
            )
        return messages, pictures


def _for_template(call: ToolCall) -> dict[str, Any]:
    """A call as templates expect it: its arguments decoded, where they are JSON as they should be."""
    arguments: object = call.function.arguments
    with suppress(orjson.JSONDecodeError):
        arguments = orjson.loads(call.function.arguments or "{}")
    return {"id": call.id, "function": {"name": call.function.name, "arguments": arguments}}


def text_prompt(text: str | Sequence[int], served: Served, settings: Settings) -> Prompt:
    """The prompt of a bare text or of token ids, without chat template. Raises BadRequest."""
    if not isinstance(text, str) and (unknown := [token for token in text if token >= served.info.vocab_size]):
        raise BadRequest(
            f"Invalid value for 'prompt': token id {unknown[0]} is not below the vocabulary size "
            f"{served.info.vocab_size}.",
            param="prompt",
        )
    check_characters(len(text), served, settings, "prompt")
    try:
        return served.inputs.build_text(text) if isinstance(text, str) else served.inputs.build_ids(text)
    except PromptError as error:
        raise _refused(error, served, "this prompt", "prompt") from error


def _refused(error: PromptError, served: Served, what: str, param: str) -> BadRequest:
    if isinstance(error, PromptTooLong):
        return ContextLengthExceeded(served.info.context_length, f"the prompt has {error}", param=param)
    return BadRequest(f"The model cannot take {what}: {error}.", param=param)


def check_characters(characters: int, served: Served, settings: Settings, field: str) -> None:
    """Refuse too much text before any work is done. Raises ContextLengthExceeded."""
    if characters > settings.max_prompt_characters:
        raise ContextLengthExceeded(
            served.info.context_length,
            f"there are {characters} characters in your {field}, and the limit is {settings.max_prompt_characters}",
            param=field,
        )


def _words(part: TextPart | RefusalPart) -> str:
    return part.text if isinstance(part, TextPart) else part.refusal
