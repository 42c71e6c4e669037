"""Which rows the model cannot read: those that pass its context are told and left out, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.backbone import Backbone
from models.errors import PromptError
from steering.errors import FitError
from steering.fitting.collect import Tick
from steering.fitting.enough import Parts
from steering.fitting.items import Item
from steering.fitting.offline import prompt_of
from steering.fitting.stages import load_json, save_json

FILE = "left-out.json"
NAMED = 3  # rows that a warning names


def find_long(backbone: Backbone, parts: Parts, room: int, folder: Path, tick: Tick) -> None:
    """Write the places of all rows of which a prompt, and `room` tokens after it, pass the context.

    Raises FitError where rows show images to a model that reads none.
    """
    if not backbone.inputs.sees:
        _check_no_images(parts)
    found: dict[str, list[int]] = {}
    for part, items in parts.items():
        found[part] = []
        for place, item in enumerate(items):
            if not _fits(backbone, item, room):
                found[part].append(place)
            tick(1)
    save_json(folder / FILE, found)


def _check_no_images(parts: Parts) -> None:
    shown = [item for items in parts.values() for item in items if any(asked.images for asked in item.questions)]
    if shown:
        raise FitError(f"{len(shown)} rows show images, and the model reads text only: {_names(shown)}")


def _fits(backbone: Backbone, item: Item, room: int) -> bool:
    try:
        lengths = [len(prompt_of(backbone, question).ids) for question in item.questions]
    except PromptError:
        return False
    return max(lengths) + room <= backbone.info.context_length


def without_long(parts: Parts, folder: Path) -> tuple[Parts, list[Item]]:
    """The rows that are kept, and those that `find_long` has found."""
    found = {part: frozenset(places) for part, places in load_json(folder / FILE).items()}
    kept = {part: [item for at, item in enumerate(items) if at not in found[part]] for part, items in parts.items()}
    return kept, [items[at] for part, items in parts.items() for at in sorted(found[part])]


def length_warnings(left_out: Sequence[Item], context: int) -> list[str]:
    """One warning that counts the rows left out and names the first, or none."""
    if not left_out:
        return []
    return [f"{len(left_out)} rows pass the model's context of {context} tokens and are left out: {_names(left_out)}"]


def _names(items: Sequence[Item]) -> str:
    """Where the first of them stand."""
    return ", ".join(item.where or item.id for item in items[:NAMED]) + (", ..." if len(items) > NAMED else "")
