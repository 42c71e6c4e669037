"""Images that are small to send and large to decode."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import httpx
from PIL import Image

PIXELS = (6000, 4000)  # 24 megapixels, the default limit of one image


def one_colour(size: tuple[int, int] = PIXELS, colour: str = "red") -> str:
    """A data URL of a lossless WebP of one colour: under 100 characters, whatever its size."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "WEBP", lossless=True, method=0)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def chat_of(model: str, urls: list[str], text: str = "What is in these pictures?") -> dict[str, Any]:
    """A chat of one message with so many images."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content = [*parts, {"type": "text", "text": text}]
    return {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": content}]}


async def large_images(
    url: str,
    model: str,
    key: str = "none",
    *,
    requests: int = 2,
    images: int = 16,
    size: tuple[int, int] = PIXELS,
) -> list[int]:
    """So many requests at once, each of so many one-colour images; returns their statuses."""
    headers = {"authorization": f"Bearer {key}"}

    def body(number: int) -> dict[str, Any]:
        # Colours differ between the requests: what is known by its file would not be decoded again.
        return chat_of(model, [one_colour(size, f"#{number:02x}{place:02x}ff") for place in range(images)])

    # To write them takes seconds, in which the clients beside this one go on.
    bodies = await asyncio.to_thread(lambda: [*map(body, range(requests))])
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=600) as client:
        answers = await asyncio.gather(*(client.post("/v1/chat/completions", json=each) for each in bodies))
    return [each.status_code for each in answers]
