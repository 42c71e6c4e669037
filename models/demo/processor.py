"""The demo model's tokenizer, chat template and processor: from text and pictures to the model's input tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlavaOnevisionImageProcessorPil, LlavaOnevisionProcessor, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

from models.demo.world import SIZE

PAD, START, END, IMAGE, VIDEO = "<|pad|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"
PATCH = 16
VIEW_TOKENS = (SIZE // PATCH) ** 2

# A string or a list of parts as content; images stand where the user put them.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}{{ message['content'] }}"
    "{%- elif message['content'] -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] in ('image', 'image_url') -%}{{ '<image>' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


class DemoProcessor(LlavaOnevisionProcessor):  # type: ignore[misc]
    """LLaVA-OneVision's processor without its video processor, which needs torchvision."""

    def __init__(
        self,
        image_processor: LlavaOnevisionImageProcessorPil,
        tokenizer: PreTrainedTokenizerFast,
        num_image_tokens: int = VIEW_TOKENS,
        vision_feature_select_strategy: str = "full",
        chat_template: str | None = None,
        vision_aspect_ratio: str = "anyres_max_9",
        **_: object,
    ) -> None:
        self.num_image_tokens = num_image_tokens
        self.vision_feature_select_strategy = vision_feature_select_strategy
        self.image_token, self.video_token = IMAGE, VIDEO
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO)
        self.vision_aspect_ratio = vision_aspect_ratio
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over `texts`: any input can be represented."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[PAD, START, END, IMAGE, VIDEO],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE, "video_token": VIDEO},
        additional_special_tokens=[START],
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> DemoProcessor:
    """The processor for a tokenizer: one 96 x 96 view of the whole picture and one of its (only) tile."""
    image_processor = LlavaOnevisionImageProcessorPil(
        size={"height": SIZE, "width": SIZE},
        image_grid_pinpoints=[[SIZE, SIZE]],
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return DemoProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)


def load_processor(folder: Path) -> DemoProcessor:
    """The processor saved in a checkpoint folder."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    image_processor = LlavaOnevisionImageProcessorPil.from_pretrained(folder)
    return DemoProcessor(image_processor, tokenizer, chat_template=tokenizer.chat_template)
