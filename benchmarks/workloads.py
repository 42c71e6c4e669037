"""What is asked: bodies of chat requests, from fixed seeds, harmless and of known sizes."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw

Body = dict[str, Any]

_WORDS = (
    "red green blue square circle triangle left right above below small large picture garden river mountain table "
    "window morning paper letter music colour shape number line corner middle light shadow water stone flower bridge"
)
SHORTEST, LONGEST = 16, 2000  # tokens, of the texts of a fresh load
_SIZES = (64, 96, 160, 224, 288, 336)  # pixels, of the pictures' sides


def words(chance: random.Random, count: int) -> str:
    """So many words."""
    return " ".join(chance.choices(_WORDS.split(), k=count))


@lru_cache(64)
def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Shapes on a gradient, of its own for each seed."""
    chance = random.Random(seed)

    def colour() -> tuple[int, int, int]:
        return chance.randrange(256), chance.randrange(256), chance.randrange(256)

    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image = Image.blend(image, Image.new("RGB", size, colour()), 0.5)
    draw = ImageDraw.Draw(image)
    for number in range(6):
        x, y = chance.randrange(size[0]), chance.randrange(size[1])
        box = (x, y, x + size[0] // 5, y + size[1] // 5)
        (draw.ellipse if number % 2 else draw.rectangle)(box, fill=colour())
    return image


@lru_cache(256)
def data_url(seed: int, size: tuple[int, int], kind: str = "PNG") -> str:
    """The picture as a data URL."""
    buffer = io.BytesIO()
    picture(seed, size).save(buffer, kind)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def chat(text: str, url: str | None = None, *, max_tokens: int) -> Body:
    """A greedy, streamed chat of one message, the image first."""
    parts: list[Body] = [] if url is None else [{"type": "image_url", "image_url": {"url": url}}]
    return {
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def text_only(count: int, *, max_tokens: int, seed: int = 0) -> list[Body]:
    """Questions of 40 to 60 words."""
    chance = random.Random(seed)
    return [chat(words(chance, chance.randint(40, 60)), max_tokens=max_tokens) for _ in range(count)]


def stories(count: int, *, max_tokens: int, seed: int = 0) -> list[Body]:
    """Wishes for stories, which a published model tells at length."""
    chance = random.Random(seed)
    wish = "Write a long story in which all of these things are important: "
    return [chat(f"{wish}{words(chance, chance.randint(12, 24))}.", max_tokens=max_tokens) for _ in range(count)]


def about_images(count: int, *, max_tokens: int, distinct: int = 8, seed: int = 0, pictures: int = 0) -> list[Body]:
    """Short questions about `distinct` pictures of 64 to 336 pixels; `seed` is that of the questions."""
    chance = random.Random(seed)
    urls = [
        data_url(1000 * pictures + place, (_SIZES[place % len(_SIZES)], _SIZES[place // 2 % len(_SIZES)]))
        for place in range(distinct)
    ]
    return [
        chat(words(chance, chance.randint(8, 16)), urls[place % distinct], max_tokens=max_tokens)
        for place in range(count)
    ]


def mixed(count: int, *, max_tokens: int, seed: int = 0) -> list[Body]:
    """Texts and images by turns."""
    texts = text_only(count, max_tokens=max_tokens, seed=seed)
    images = about_images(count, max_tokens=max_tokens, seed=seed)
    return [body for pair in zip(texts, images, strict=True) for body in pair][:count]


def fresh(count: int, tokens: Callable[[str], int], *, max_tokens: int, seed: int) -> list[Body]:
    """By turns short questions with a picture each, and texts of about 16 to 2,000 tokens; nothing is there twice.

    Of the texts' lengths, short ones are as frequent as long ones by the logarithm.
    """
    chance = random.Random(seed)
    sample = words(chance, 200)
    a_word = tokens(sample) / 200

    def text() -> str:
        length = SHORTEST * (LONGEST / SHORTEST) ** chance.random()
        return words(chance, max(1, round(length / a_word)))

    pictured = about_images(
        (count + 1) // 2, max_tokens=max_tokens, distinct=(count + 1) // 2, seed=seed, pictures=seed
    )
    return [pictured[place // 2] if place % 2 == 0 else chat(text(), max_tokens=max_tokens) for place in range(count)]


def long_prompts(count: int, tokens: Callable[[str], int], length: int, *, max_tokens: int, seed: int) -> list[Body]:
    """Texts of about `length` tokens, no two of which begin alike."""
    chance = random.Random(seed)
    bodies = []
    for _ in range(count):
        sample = words(chance, 200)
        bodies.append(chat(words(chance, round(200 * length / tokens(sample))), max_tokens=max_tokens))
    return bodies


def same_image_questions(url: str, questions: int, *, max_tokens: int, seed: int = 0) -> list[Body]:
    """One picture and so many questions about it, none of which begin alike."""
    chance = random.Random(seed)
    return [chat(words(chance, 12), url, max_tokens=max_tokens) for _ in range(questions)]


WORKLOADS: dict[str, Callable[..., list[Body]]] = {"text": text_only, "image": about_images, "mixed": mixed}
