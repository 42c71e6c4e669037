"""Samples as rows of token ids and pixels, and their packing into batches of tensors."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from models.demo.dialogue import any_sign
from models.demo.processor import IMAGE, DemoProcessor
from models.demo.samples import PLACES, Conversation, Quiz, conversation, quiz
from models.demo.world import (
    COLOURS,
    OBJECTS,
    SIZE,
    Picture,
    Scene,
    draw_picture,
    first_column,
    make_scene,
    make_sign,
    stream,
)


@dataclass(frozen=True)
class Row:
    """A conversation as token ids, with the loss only on what the assistant learns to say."""

    ids: np.ndarray[Any, np.dtype[np.int64]]
    learn: np.ndarray[Any, np.dtype[np.bool_]]  # learn[i]: token i is to be predicted
    pixels: list[Tensor]  # per picture [views, 3, 96, 96]
    sizes: list[tuple[int, int]]  # per picture (height, width)


class Encoder:
    """Turns conversations into rows exactly as the processor does, but faster for pictures of the tower's own size."""

    def __init__(self, processor: DemoProcessor) -> None:
        self.processor = processor
        tokenizer = processor.tokenizer
        self.tokenizer = tokenizer
        self.image_id = int(tokenizer.convert_tokens_to_ids(IMAGE))
        self.end_id = int(tokenizer.eos_token_id)
        self.pad_id = int(tokenizer.pad_token_id)
        self.head = [int(i) for i in tokenizer("<|im_start|>assistant\n")["input_ids"]]
        self._pieces: dict[str, list[int]] = {}

    def row(self, sample: Conversation) -> Row:
        """Token ids with image tokens expanded, loss mask, pixels."""
        images = sample.images
        text = render(sample)
        ids: list[int] = []
        rest = iter(images)
        for token in self.tokenizer(text)["input_ids"]:
            ids.extend([self.image_id] * self._tokens(next(rest), len(images)) if token == self.image_id else [token])
        learn = np.zeros(len(ids), dtype=np.bool_)
        answers = iter(sample.turns)
        head, position, speaking, learnt = self.head, 0, False, False
        while position < len(ids):
            if speaking:
                learn[position] = learnt
                speaking = ids[position] != self.end_id
                position += 1
            elif ids[position : position + len(head)] == head:
                position += len(head)
                speaking, learnt = True, next(answers).learnt
            else:
                position += 1
        pixels = [self._pixels(image, len(images)) for image in images]
        return Row(np.asarray(ids), learn, pixels, [(image.height, image.width) for image in images])

    def quiz_row(self, sample: Quiz, rng: random.Random) -> Row:
        """Token ids of picture, cues and answers; only the answers are learnt."""
        image = draw_picture(sample.picture, rng)
        shown = [*self._piece("<|im_start|>user\n"), *[self.image_id] * self._tokens(image, 1)]
        ids = [*shown, *self._piece("quiz<|im_end|>\n<|im_start|>assistant\n")]
        learn = [False] * len(ids)
        for pieces in sample.asked:
            for is_answer, piece in enumerate(map(self._piece, pieces)):
                ids += piece
                learn += [bool(is_answer)] * len(piece)
        size = (image.height, image.width)
        return Row(np.asarray(ids), np.asarray(learn), [self._pixels(image, 1)], [size])

    def _piece(self, text: str) -> list[int]:
        if text not in self._pieces:
            self._pieces[text] = self.tokenizer(text)["input_ids"]
        return self._pieces[text]

    def _tokens(self, image: Image.Image, count: int) -> int:
        if count > 1:
            return int(self.processor.num_image_tokens) + 1
        return int(self.processor._get_number_of_features(image.height, image.width, SIZE, SIZE))

    def _pixels(self, image: Image.Image, count: int) -> Tensor:
        if image.size == (SIZE, SIZE):
            view = native_pixels(image)
            return view.expand(1 if count > 1 else 2, -1, -1, -1)
        nested = [[image] * count] if count > 1 else [image]
        return torch.as_tensor(
            np.asarray(self.processor.image_processor(nested, return_tensors="pt")["pixel_values"][0])
        )


def render(sample: Conversation) -> str:
    """What the chat template makes of the sample's messages (a test compares them)."""
    parts = [f"<|im_start|>system\n{sample.system}<|im_end|>\n"] if sample.system else []
    for turn in sample.turns:
        pictures = IMAGE * len(turn.images)
        words = turn.said.question
        shown = words + pictures if turn.image_last else pictures + words
        parts.append(f"<|im_start|>user\n{shown}<|im_end|>\n<|im_start|>assistant\n{turn.said.answer}<|im_end|>\n")
    return "".join(parts)


def native_pixels(image: Image.Image) -> Tensor:
    """[1, 3, 96, 96]: the values of the image processor for a picture that it need not resize."""
    unit = (np.asarray(image, dtype=np.float64) * (1 / 255)).astype(np.float32)  # rounded where the processor rounds
    return torch.from_numpy((unit - np.float32(0.5)) / np.float32(0.5)).permute(2, 0, 1)[None]


def collate(rows: list[Row], pad_id: int) -> dict[str, Tensor]:
    """Right-padded tensors as the model's forward takes them, and `labels` with -100 where nothing is learnt."""
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), -100)
    for i, row in enumerate(rows):
        n = len(row.ids)
        ids[i, :n] = torch.from_numpy(row.ids)
        mask[i, :n] = 1
        labels[i, :n][torch.from_numpy(row.learn)] = ids[i, :n][torch.from_numpy(row.learn)]
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    views = [pixels for row in rows for pixels in row.pixels]
    if views:
        most = max(len(v) for v in views)
        batch["pixel_values"] = torch.stack(
            [torch.nn.functional.pad(v, (0, 0, 0, 0, 0, 0, 0, most - len(v))) for v in views]
        )
        batch["image_sizes"] = torch.tensor([size for row in rows for size in row.sizes])
        batch["batch_num_images"] = torch.tensor([len(row.pixels) for row in rows])
    return batch


def batches(
    encoder: Encoder,
    name: str,
    chunk: int,
    size: int,
    count: int,
    sample: Callable[[random.Random], Conversation] = conversation,
) -> list[dict[str, Tensor]]:
    """Chunk number `chunk` of the stream `name`: `count` batches of `size`, each of samples of like length."""
    rng = stream(name, chunk)
    rows = [encoder.row(sample(rng)) for _ in range(size * count)]
    rows.sort(key=lambda row: len(row.ids))
    groups = [rows[i : i + size] for i in range(0, len(rows), size)]
    rng.shuffle(groups)
    return [collate(group, encoder.pad_id) for group in groups]


def quiz_batch(encoder: Encoder, name: str, step: int, size: int) -> dict[str, Tensor]:
    """Batch number `step` of the stream `name` of quizzes."""
    rng = stream(name, step)
    return collate([encoder.quiz_row(quiz(rng), rng) for _ in range(size)], encoder.pad_id)


def dense_labels(picture: Picture) -> Tensor:
    """[4, 6, 6] per patch: object, colour, letter (each 0 where none) and place: what the tower learns first.

    The place is there because a tower that needs it for nothing forgets it, and nobody could then say where a thing is.
    """
    labels = torch.zeros((4, 6, 6), dtype=torch.long)
    labels[3] = torch.arange(1, 37).view(6, 6)
    names, colours = list(OBJECTS), list(COLOURS)
    if isinstance(picture, Scene):
        for group in picture.groups:
            for cell in group.cells:
                top, left = cell // 3 * 2, cell % 3 * 2
                labels[0, top : top + 2, left : left + 2] = names.index(group.name) + 1
                labels[1, top : top + 2, left : left + 2] = colours.index(group.colour) + 1
        return labels
    for line, word in enumerate(picture.lines):
        for column, letter in enumerate(word, start=first_column(word)):
            labels[2, line * 2 : line * 2 + 2, column] = ord(letter) - ord("A") + 1
    return labels


def dense_batch(name: str, step: int, size: int) -> tuple[Tensor, Tensor]:
    """Batch number `step` of the stream `name`: pixels [size, 3, 96, 96] and labels [size, 4, 6, 6]."""
    rng = stream(name, step)
    pictures = [dense_picture(rng) for _ in range(size)]
    pixels = torch.cat([native_pixels(_shown_square(picture, rng)) for picture in pictures])
    return pixels, torch.stack([dense_labels(picture) for picture in pictures])


class PatchWords:
    """The words that say what a patch shows and where it is, as distributions over the vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        places = [PLACES[row // 2 * 3 + column // 2] for row in range(6) for column in range(6)]
        words = (["nothing", *OBJECTS], ["", *COLOURS], ["", *ascii_uppercase], ["", *places])
        self.tables = [torch.zeros(len(kind), len(tokenizer)) for kind in words]
        for table, kind in zip(self.tables, words, strict=True):
            for row, word in enumerate(kind):
                table[row, tokenizer(f" {word}")["input_ids"] if word else []] = 1.0

    def __call__(self, labels: Tensor) -> Tensor:
        """Labels [B, 4, 6, 6] -> [B, 36, V], each patch summing to 1."""
        kinds = labels.flatten(2).unbind(1)
        words = sum((table[kind] for table, kind in zip(self.tables, kinds, strict=True)), torch.zeros(()))
        return words / words.sum(-1, keepdim=True)


def dense_picture(rng: random.Random) -> Picture:
    """Crowded scenes and signs, of any words, so that each picture teaches much."""
    if rng.random() < 0.4:
        words = ["".join(rng.choices(ascii_uppercase, k=rng.randint(1, 6))) for _ in range(rng.randint(1, 3))]
        return any_sign(rng) if rng.random() < 0.3 else make_sign(rng, " ".join(words))
    names = rng.sample(list(OBJECTS), rng.randint(1, 7))
    return make_scene(rng, [(name, rng.choice(list(COLOURS)), 1) for name in names])


def _shown_square(picture: Picture, rng: random.Random) -> Image.Image:
    """One in ten pictures resized and back, a little squashed or not, as the processor does to users' files."""
    image = draw_picture(picture, rng)
    if rng.random() < 0.9:
        return image
    side = rng.randint(72, 288)
    return image.resize((side, side), Image.Resampling.BICUBIC).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
