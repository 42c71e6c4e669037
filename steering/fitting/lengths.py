"""Which rows pass the model's context: told, and left out, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from models.backbone import Backbone
from models.errors import PromptError
from steering.data.formats import Part
from steering.fitting.collect import Tick
from steering.fitting.items import Item
from steering.fitting.offline import prompt_of
from steering.fitting.stages import load_json, save_json

Parts = Mapping[Part, Sequence[Item]]

FILE = "left-out.json"
NAMED = 3  # rows that a warning names


def find_long(backbone: Backbone, parts: Parts, room: int, folder: Path, tick: Tick) -> None:
    """Write the places of all rows of which a prompt, and `room` tokens after it, pass the context."""
    found: dict[str, list[int]] = {}
    for part, items in parts.items():
        found[part] = []
        for place, item in enumerate(items):
            if not _fits(backbone, item, room):
                found[part].append(place)
            tick(1)
    save_json(folder / FILE, found)


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
    names = ", ".join(item.where or item.id for item in left_out[:NAMED])
    more = ", ..." if len(left_out) > NAMED else ""
    return [f"{len(left_out)} rows pass the model's context of {context} tokens and are left out: {names}{more}"]
