"""A family's processor, without what only videos need; the tokenizer in its place where no images are read."""

from __future__ import annotations

import inspect
from typing import Any

import transformers
from transformers import AutoTokenizer, BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from models.errors import LoadError, told_in_one_line
from models.families import Family


def load_processor(name: str, family: Family, revision: str | None) -> tuple[Any, str]:
    """The family's processor, without torchvision and without video, and the chat template. Raises LoadError."""
    with told_in_one_line(f"cannot load the tokenizer of {name}"):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    if not family.sees:
        return TextProcessor(tokenizer), _template(name, tokenizer.chat_template)
    with told_in_one_line(f"cannot load the image processor of {name}"):
        image_processor = _image_processor(name, family, revision)
    with told_in_one_line(f"cannot load the processor of {name}"):
        stock = getattr(transformers, family.processor)
        options, _ = stock.get_processor_dict(name, revision=revision)
        template = options.get("chat_template") or family.chat_template or tokenizer.chat_template
        accepted = inspect.signature(stock.__init__).parameters
        given = {key: value for key, value in options.items() if key in accepted and not key.endswith("processor")}
        given.pop("tokenizer", None)
        processor = image_text_class(stock)(image_processor, tokenizer, **given)
    processor.chat_template = _template(name, template)
    return processor, processor.chat_template


def _template(name: str, found: str | dict[str, str] | None) -> str:
    """The chat template of those that a checkpoint has."""
    template = found.get("default") if isinstance(found, dict) else found
    if not template:
        raise LoadError(f"{name} has no chat template (chat_template.jinja)")
    return template


class TextProcessor:
    """Stands where a model that reads images has its processor, for one that does not: the tokenizer alone."""

    image_processor = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    def __call__(self, text: list[str], images: None, return_tensors: str, **options: Any) -> BatchFeature:  # noqa: ANN401
        """Ids of texts."""
        assert images is None, "images for a model that reads none"
        return BatchFeature(dict(self.tokenizer(text, **options)), tensor_type=return_tensors)


def _image_processor(name: str, family: Family, revision: str | None) -> Any:  # noqa: ANN401
    """The PIL variant of the image processor that the checkpoint names."""
    stock = getattr(transformers, family.image_processor)
    options, _ = stock.get_image_processor_dict(name, revision=revision)
    named = str(options.get("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    return getattr(transformers, f"{named}Pil", stock).from_pretrained(name, revision=revision)


def image_text_class(stock: type) -> type:
    """A processor class that takes an image processor and a tokenizer only: stock video processors need torchvision."""
    if "video_processor" not in inspect.signature(stock.__init__).parameters:  # type: ignore[misc]
        return stock

    def __init__(self: Any, image_processor: Any, tokenizer: Any, **options: Any) -> None:  # noqa: ANN401, N807
        stock.__init__(self, image_processor, tokenizer, video_processor=None, **options)  # type: ignore[misc]

    overrides: dict[str, Any] = {"__init__": _init_smolvlm if stock.__name__ == "SmolVLMProcessor" else __init__}
    return type(stock.__name__, (stock,), overrides)


def _init_smolvlm(
    self: Any,  # noqa: ANN401
    image_processor: Any,  # noqa: ANN401
    tokenizer: PreTrainedTokenizerBase,
    image_seq_len: int = 169,
    chat_template: str | None = None,
) -> None:
    """The stock constructor, without its demand for a package that only videos need."""
    self.fake_image_token = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
    self.image_token = getattr(tokenizer, "image_token", "<image>")
    self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
    self.end_of_utterance_token = getattr(tokenizer, "end_of_utterance_token", "<end_of_utterance>")
    self.global_image_token = getattr(tokenizer, "global_image_token", "<global-img>")
    self.image_seq_len = image_seq_len
    self.video_token = getattr(tokenizer, "video_token", "<video>")
    ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
