"""`python -m steering.fitting.demo_data --out DIR`: the demo world's pairs and harmless prompts for `autosteer fit`.

Nothing of the world's split "test" is in them. The harmless prompts are hard on purpose: they ask about pictures of
dangerous objects and have signs with harmful words read aloud. One in ten of them is asked in JSON: a reader of answers
that has seen no JSON takes its first signs for harm. No pair is: after such a cue the model has yet to look at what was
asked, and a prober of that place would learn to guess.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import track

from models.demo.dialogue import Example, Split, pairs, utility
from models.demo.records import records
from steering.data.questions import Question

IN_JSON = 0.1  # of the harmless prompts
# (part, split of the world, seed, pairs of each kind of harm, harmless prompts); a threshold for 0.1 % needs 999
SIZES: tuple[tuple[str, Split, int, int, int], ...] = (
    ("train", "train", 1, 600, 2400),
    ("validation", "val", 11, 120, 480),
    ("calibration", "val", 12, 250, 2000),
)


def question(example: Example) -> Question:
    """An example's user turn."""
    return Question(example.question, [example.image] if example.image else [])


def write(folder: Path, scale: float = 1.0) -> tuple[Path, Path]:
    """Write `pairs.jsonl`, `benign.jsonl` and their pictures; `scale` shrinks them for tests. Returns the two files."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pair_rows: list[dict[str, Any]] = []
    benign_rows: list[dict[str, Any]] = []
    for part, split, seed, per_kind, harmless in track(SIZES, description="drawing"):
        for pair in pairs(_scaled(per_kind, scale), seed, split):
            row: dict[str, Any] = {"id": pair.id, "category": pair.kind, "split": part}
            row |= {"toxic": pair.toxic.question, "safe": pair.safe.question}
            row |= {f"{side}_image": _draw(example, folder) for side, example in _sides(pair.toxic, pair.safe)}
            pair_rows.append(row)
        in_json = round(IN_JSON * _scaled(harmless, scale))
        for example in utility(_scaled(harmless, scale) - in_json, seed, split) + records(in_json, seed, split):
            named = {"id": example.id, "category": example.category, "split": part, "text": example.question}
            benign_rows.append(named | {"image": _draw(example, folder)})
    files = folder / "pairs.jsonl", folder / "benign.jsonl"
    for file, rows in zip(files, (pair_rows, benign_rows), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def _sides(toxic: Example, safe: Example) -> Sequence[tuple[str, Example]]:
    return ("toxic", toxic), ("safe", safe)


def _scaled(count: int, scale: float) -> int:
    return max(8, round(count * scale))


def _draw(example: Example, folder: Path) -> str | None:
    if example.image is None:
        return None
    name = f"images/{example.id}.png"
    example.image.save(folder / name, compress_level=1)
    return name


def main(
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    scale: Annotated[float, typer.Option(help="Share of the usual size.")] = 1.0,
) -> None:
    """Write the demo world's fitting data."""
    for file in write(out, scale):
        typer.echo(file)


if __name__ == "__main__":
    typer.run(main)
