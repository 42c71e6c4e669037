"""Chat messages and images -> token ids and processor tensors, without a model and without torchvision.

A prompt is what the stock processor makes of the chat template, token for token. The one difference is deliberate: text
that spells a special token ("<image>", "<|im_end|>") is text. It becomes neither an image placeholder nor a control
token, whoever wrote it, so that no message can forge a turn. Such prompts are rendered with sentinels in place of all
texts, the processor expands its own placeholders, and each text is tokenised by itself, without special tokens.
(Where a template marks turns with ordinary words, such as "USER:", there is no token to take their power from.)
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from math import isqrt
from typing import Any, NamedTuple

import jinja2
from PIL import Image
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from models.chat import check_image_count, check_no_images, message_of, with_text
from models.errors import PromptError, PromptTooLong
from models.families import Detail, Family
from models.image_counts import least_tokens
from models.images import pictures_of
from models.layout import Layout, LayoutFinder
from models.pieces import SENTINELS, PieceTokenizer, SentinelTokenizer, SpecialTokens
from models.pixels import ImageFile
from models.processed import NOTHING, ImageProcessor, ProcessedMemory, PromptImages
from models.prompt import Prompt
from models.stand_ins import StandIns
from models.tool_turns import Reads, in_plain_turns, reads_of

_STAND_IN = Image.new("RGB", (1, 1))  # for an image of which all is known


class ImageSpan(NamedTuple):
    """The image tokens `[begin, end)`; the first `side` squared show the whole image, row by row; None: unknown."""

    begin: int
    end: int
    side: int | None


class InputBuilder:
    """Chat messages + PIL images -> `Prompt`. Thread-safe: only its memory of images changes after construction."""

    def __init__(
        self,
        processor: Any,  # noqa: ANN401 - a transformers processor
        family: Family,
        chat_template: str,
        image_token_id: int,
        memory_bytes: int = 0,  # of what was made of images that are known by their files
        max_tokens: int | None = None,  # of the model's context: what has far more is refused early
    ) -> None:
        self._processor = processor
        self._memory = ProcessedMemory(memory_bytes)
        self._tokenizer: PreTrainedTokenizerBase = processor.tokenizer
        self._family = family
        self._template = chat_template
        self.image_token_id = image_token_id
        self._special = SpecialTokens(self._tokenizer)
        self._max_tokens = max_tokens
        self._pieces = PieceTokenizer(self._tokenizer)
        self.reads: Reads = self._found_out()

    @property
    def template_hash(self) -> str:
        """SHA-256 of the chat template."""
        return hashlib.sha256(self._template.encode()).hexdigest()

    @property
    def sees(self) -> bool:
        """Whether prompts may hold images."""
        return self._family.sees

    @property
    def details(self) -> frozenset[str]:
        """The levels of detail that images may be read at."""
        return frozenset({"auto", *self._family.details})

    def image_spans(self, ids: Sequence[int]) -> list[ImageSpan]:
        """Where the images of a prompt stand; images without a token between them are one span."""
        found, begin = [], 0
        for is_image, run in groupby(ids, lambda token: token == self.image_token_id):
            end = begin + sum(1 for _ in run)
            if is_image:
                side = self._view_side
                found.append(ImageSpan(begin, end, None if side is None or side**2 > end - begin else side))
            begin = end
        return found

    @property
    def _view_side(self) -> int | None:
        name = self._family.whole_view
        return None if name is None else isqrt(getattr(self._processor, name))

    def _found_out(self) -> Reads:
        """What the template reads of tools; calls are written in the tokenizer's own tokens."""
        reads = reads_of(self._render)
        if reads.calls is None:
            return reads
        added = {token: str(content) for token, content in self._tokenizer.added_tokens_decoder.items()}
        special = {token for token, content in self._tokenizer.added_tokens_decoder.items() if content.special}
        return replace(reads, calls=reads.calls.over(added, special))

    def layout(self, ids: Sequence[int]) -> Layout:
        """Where the turns of a prompt end, and what of it is content."""
        return self._layouts.of(ids)

    @cached_property
    def _layouts(self) -> LayoutFinder:
        return LayoutFinder.learn(
            self._ids_of,
            lambda token: self._tokenizer.decode([token]).isspace(),
            self._pieces.control_ids,
            self.image_token_id,
        )

    def _ids_of(self, chat: Sequence[Mapping[str, Any]]) -> Sequence[int]:
        """Those of a chat of words; none where the template refuses it."""
        try:
            return self.build(chat, []).ids
        except PromptError:
            return ()

    def build(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Image.Image | ImageFile],
        details: Sequence[str] = (),
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        """The prompt of a chat.

        `messages`: `{"role", "content": [{"type": "text", "text": ...} | {"type": "image"}, ...]}`, and a `name`;
        a string as content is one text; `tool_calls` and `tool_call_id` as of OpenAI, `arguments` decoded. `images`
        in order of appearance, each at its level of `details`, which is "auto" where none are given. Names and `tools`
        that the template leaves out are told in the prompt's `unused`; where it has no turns for calls, they are words.
        Raises `PromptError`, and what decoding raises.
        """
        chat = [message_of(message, place) for place, message in enumerate(messages)]
        if not chat:
            raise PromptError("messages is empty")
        if not self.reads.turns:
            chat = in_plain_turns(chat)
        if not self._family.sees:
            check_no_images(chat)
        check_image_count(chat, len(images))
        pictures = self._detailed(images, details)
        texts = StandIns()
        skeleton = self._render(texts.chat(chat), texts.tools(tools))
        unused = texts.unused(skeleton)
        if self._family.sees:
            self._check_placeholders(skeleton, len(images))
        rendered = self._render(chat, tools)
        self._check_length([rendered], special=True)
        # The texts add a special token, alone, together or with the template's words around them?
        hostile = self._special.spelled(rendered) != self._special.spelled(SENTINELS.sub("", skeleton))
        if hostile:
            words = texts.written(skeleton, rendered)
            self._check_length(words, special=False)
            prompt = self._process(self._with_pieces(words), skeleton, pictures)
        else:
            prompt = self._process(copy.copy(self._processor), rendered, pictures)
        return replace(prompt, unused=unused)

    def _detailed(self, images: Sequence[Image.Image | ImageFile], details: Sequence[str]) -> PromptImages:
        """The images, each at its level of detail. The processor's options for it hold for all of them."""
        if unknown := set(details) - self.details:
            raise PromptError(f"images cannot be read at detail {', '.join(sorted(unknown))}")
        levels = [self._family.details.get(name, Detail()) for name in details] or [Detail()] * len(images)
        assert len(levels) == len(images), f"{len(images)} images, {len(levels)} levels of detail"
        if any(level.options != levels[0].options for level in levels):
            raise PromptError("all images of one request must have the same detail with this model")
        return PromptImages(
            images,
            [self._tile if level.longest == 0 else level.longest for level in levels],
            levels[0].options if levels else {},
        )

    @property
    def _tile(self) -> int:
        """Pixels of a tile's longer side."""
        return int(max(dict(self._processor.image_processor.size).values()))

    def build_text(self, text: str) -> Prompt:
        """The prompt of a bare text, without the chat template; in it too, special tokens are text.

        Raises `PromptError`.
        """
        self._check_length([text], special=False)
        return self.build_ids([*self._pieces.prefix, *self._pieces.user(text, first=True)])

    def build_ids(self, ids: Sequence[int]) -> Prompt:
        """The prompt of given tokens. Raises `PromptError` if there are none, or if one stands for an image."""
        if not ids:
            raise PromptError("the prompt has no tokens")
        if self.image_token_id in ids:
            raise PromptError(f"token {self.image_token_id} stands for an image, and there is none")
        return Prompt(ids=list(ids), features={}, image_tokens=0)

    def _check_length(self, texts: Sequence[str], *, special: bool) -> None:
        if self._max_tokens is not None and self._pieces.exceed(texts, self._max_tokens, special=special):
            raise PromptTooLong(f"more than {self._max_tokens} tokens, the model's context")

    def _render(self, chat: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        if not self._family.sees:
            chat = [with_text(message) for message in chat]
        try:
            rendered, _ = render_jinja_template(
                conversations=[chat],
                tools=[*tools] or None,
                chat_template=self._template,
                add_generation_prompt=True,
                **self._tokenizer.special_tokens_map,
            )
        except (jinja2.TemplateError, TypeError, KeyError, IndexError) as error:
            raise PromptError(f"the model's chat template refuses these messages: {error}") from error
        return str(rendered[0])

    def _check_placeholders(self, skeleton: str, expected: int) -> None:
        found = skeleton.count(self._processor.image_token)
        if found != expected:
            raise PromptError(f"the model's chat template shows {found} of {expected} images; move them to user turns")

    def _with_pieces(self, words: Sequence[str]) -> Any:  # noqa: ANN401
        """A copy of the processor whose tokenizer knows what the sentinels stand for."""
        processor = copy.copy(self._processor)
        processor.tokenizer = SentinelTokenizer(self._tokenizer, self._pieces, words)
        return processor

    def _decoded(self, images: PromptImages) -> list[Image.Image]:
        """The images; those that pass the context by their sizes alone are not decoded."""
        sizes = images.sizes()
        if sizes and self._max_tokens is not None and not images.options:
            tokens = least_tokens(self._processor, sizes, tiles_one=self._family.tiles_one)
            if tokens is not None and tokens > self._max_tokens:
                raise PromptTooLong(f"images of {tokens} tokens or more; the model's context has {self._max_tokens}")
        return images.decoded()

    def _process(self, processor: Any, text: str, images: PromptImages) -> Prompt:  # noqa: ANN401
        """The prompt of a rendered text. The processor is changed."""
        bos = self._tokenizer.bos_token
        # Without a processor the template is all: that is how transformers' tokenizers render a chat.
        whole = not self._family.sees or (bos is not None and text.startswith(bos))
        options: dict[str, Any] = {"add_special_tokens": False} if whole else {}
        options |= images.options
        key = images.key
        known = self._memory.get(key) if images.images else NOTHING
        processor.image_processor = seeing = ImageProcessor(self._processor.image_processor, self._family, known)
        given = self._decoded(images) if known is None else [_STAND_IN] * len(images.images)
        data = processor(text=[text], images=[given] if given else None, return_tensors="pt", **options)
        found = seeing.processed
        assert found is not None, "the processor did not look at the images"
        if known is None and key is not None:
            self._memory.put(key, found)
        ids = data["input_ids"][0].tolist()
        return Prompt(
            ids=ids,
            features=found.features,
            image_tokens=ids.count(self.image_token_id),
            pictures=pictures_of(self._family, found.features, found.parts, ids, self.image_token_id),
        )
