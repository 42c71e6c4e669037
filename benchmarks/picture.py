"""Where the time of a picture goes that nobody sent before: each part of its way, in CPU time of one thread.

`python -m benchmarks.picture`; what other processes do on the way (decoding, the engine) is done in this one.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Annotated, TypeVar
from unittest.mock import patch

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.checkpoints import SMALL, checkpoint, load_ours
from benchmarks.inprocess import OFF
from benchmarks.workloads import data_url, words
from models.backbone import Backbone
from models.row_sampler import SamplingParams
from server.engine import wire
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.media.files import decode_image, image_size
from server.request import Ask

KINDS = ((224, 224, "PNG"), (1024, 768, "JPEG"), (3000, 2000, "JPEG"))
MAX_PIXELS = 10**8
WARM = 2  # pictures that are not counted

T = TypeVar("T")


class Parts:
    """Seconds of each part, of each picture."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def timed(self, name: str, do: Callable[[], T]) -> T:
        """Do it, and keep how long it took."""
        began = process_time()
        found = do()
        self.add(name, process_time() - began)
        return found

    def add(self, name: str, seconds: float) -> None:
        """Keep how long a part took."""
        self.seconds.setdefault(name, []).append(seconds)

    def median(self, name: str) -> float:
        """Of the pictures that count."""
        return median(self.seconds[name][WARM:])


def follow(backbone: Backbone, engine: OwnEngine, parts: Parts, number: int, kind: tuple[int, int, str]) -> None:
    """One picture from its URL to its second token."""
    width, height, form = kind
    url = data_url(number, (width, height), form)
    data = parts.timed("base64", lambda: base64.b64decode(url.partition(",")[2]))
    parts.timed("digest of the file", lambda: hashlib.sha256(data).digest())
    parts.timed("size", lambda: image_size(data, MAX_PIXELS))
    decoded = parts.timed("decode", lambda: decode_image(data, MAX_PIXELS))
    image = parts.timed("between processes", lambda: Image.frombytes("RGB", decoded.size, decoded.tobytes()))
    text = {"type": "text", "text": words(random.Random(number), 12)}
    parts.timed("template, tokens", lambda: backbone.inputs.build([{"role": "user", "content": [text]}], []))
    messages = [{"role": "user", "content": [{"type": "image"}, text]}]
    prompt = parts.timed("the same, resize, normalise", lambda: backbone.inputs.build(messages, [image]))
    ask = Ask(str(number), prompt, SamplingParams.GREEDY, 2, OFF)
    parts.timed("to the engine", lambda: wire.pack([ask]))
    (request,) = engine.prepare([ask])
    engine.add(request)
    encoded, began = backbone.encoded, process_time()
    engine.step()
    seconds, tower = process_time() - began, backbone.encoded.since(encoded).seconds
    parts.add("tower", tower)
    parts.add("the prompt's pass, without it", seconds - tower)
    parts.timed("a token", engine.step)


def main(count: Annotated[int, typer.Option(help="Pictures of each kind that count.")] = 10) -> None:
    """Print the medians in milliseconds."""
    torch.set_num_threads(1)
    backbone = load_ours(checkpoint(SMALL), 16)
    engine = OwnEngine(backbone, None, Scheduler(16, 4096))
    found = {kind: Parts() for kind in KINDS}
    with patch("models.vision.monotonic", process_time):
        for number in range(WARM + count):
            for place, kind in enumerate(KINDS):
                follow(backbone, engine, found[kind], len(KINDS) * number + place, kind)
    table = Table("CPU ms", *(f"{width} x {height} {form}" for width, height, form in KINDS))
    for name in found[KINDS[0]].seconds:
        table.add_row(name, *(f"{1e3 * parts.median(name):.1f}" for parts in found.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    typer.run(main)
