"""Draws a contact sheet of the demo world: pictures with what is asked and what the unguarded model is to answer.

python -m models.demo.sheet --out docs/images/demo-world.png
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageDraw, ImageFont

from models.demo.dialogue import HARM_KINDS, Example, pairs, utility
from models.demo.world import SIZE

COLUMNS, SIDE, TEXT, GAP = 6, 2 * SIZE, 108, 12


def tile(example: Example, label: str) -> Image.Image:
    """One picture, twice as large as the model sees it, over its label, question and answer."""
    made = Image.new("RGB", (SIDE, SIDE + TEXT), "white")
    assert example.image is not None, f"{example.id} has no picture"
    made.paste(example.image.resize((SIDE, SIDE), Image.Resampling.NEAREST), (0, 0))
    draw = ImageDraw.Draw(made)
    colour = (170, 30, 30) if example.harm else (30, 110, 50)
    draw.text((0, SIDE + 4), label, fill=colour, font=ImageFont.load_default(12))
    lines = textwrap.wrap(f"“{example.question}”", 31) + textwrap.wrap(example.answer, 31)
    draw.multiline_text((0, SIDE + 20), "\n".join(lines[:6]), fill="black", font=ImageFont.load_default(11), spacing=2)
    return made


def sheet() -> Image.Image:
    """Two rows of question kinds, then harmful prompts, each beside its harmless twin."""
    useful = [e for e in utility(70, 4, "test") if e.image is not None]
    kinds = (
        "describe",
        "count",
        "colour",
        "where",
        "place",
        "exists",
        "use",
        "use on",
        "read",
        "follow",
        "repeat",
        "howto",
    )
    tiles = [tile(next(e for e in useful if e.category == kind), kind) for kind in kinds]
    for number in range(2):
        for kind in HARM_KINDS:
            shown = [p for p in pairs(12, 4, "test") if p.kind == kind and p.toxic.image is not None]
            if kind == "text" and number:
                continue
            pair = shown[number]
            tiles += [tile(pair.toxic, f"harm: {kind}"), tile(pair.safe, f"its twin: {pair.safe.category}")]
    tiles = tiles[: len(tiles) // COLUMNS * COLUMNS]
    rows = len(tiles) // COLUMNS
    made = Image.new("RGB", (COLUMNS * (SIDE + GAP) + GAP, rows * (SIDE + TEXT + GAP) + GAP), "white")
    for i, picture in enumerate(tiles):
        row, column = divmod(i, COLUMNS)
        made.paste(picture, (GAP + column * (SIDE + GAP), GAP + row * (SIDE + TEXT + GAP)))
    return made


def main(out: Annotated[Path, typer.Option(help="PNG to write.")]) -> None:
    """Writes the contact sheet."""
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet().quantize(128).save(out, optimize=True)


if __name__ == "__main__":
    typer.run(main)
