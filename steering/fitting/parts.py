"""The parts of a fit's data: train, validation and calibration, split so that what hangs together stays together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

from steering.data.own_rows import Part
from steering.fitting.items import Item
from steering.fitting.problems import image_keys, word_keys

HELD_OUT = 0.2  # the share of the validation part, and that of the calibration part


def split(items: Sequence[Item], *, seed: int = 0, held_out: float = HELD_OUT) -> dict[Part, list[Item]]:
    """Divide items into parts by group; rows that name their split keep it.

    Of the rest, `held_out` go to validation and as many to calibration. A group is what the rows say, or what hangs
    together by an image, or by the same words where no image is shown. Where rows name `validation` but none
    `calibration`, half of the validation groups become the calibration part.
    """
    groups = _groups(items)
    shares: dict[Part, float] = {"validation": held_out, "calibration": held_out, "train": 1 - 2 * held_out}
    named = {item.split for item in items if item.split is not None}
    parts: dict[Part, list[Item]] = {"train": [], "validation": [], "calibration": []}
    for item, group in zip(items, groups, strict=True):
        at = _unit(seed, group)
        if item.split is None:
            part: Part = next((part for part, edge in _edges(shares) if at < edge), "train")
        elif item.split == "validation" and "calibration" not in named:
            part = "validation" if at < 0.5 else "calibration"
        else:
            part = item.split
        parts[part].append(item)
    return parts


def _edges(shares: Mapping[Part, float]) -> Iterator[tuple[Part, float]]:
    edge = 0.0
    for part, share in shares.items():
        edge += share
        yield part, edge


def _unit(seed: int, group: str) -> float:
    """A number in [0, 1) of a group, the same on every machine and whatever else is in the file."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{group}".encode()).digest()[:7]) / 2**56


def _groups(items: Sequence[Item]) -> list[str]:
    """The group of each item: its own name for it, else the first item that it hangs together with."""
    parent = list(range(len(items)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[str, int] = {}
    for place, item in enumerate(items):
        together = [*image_keys(item), *word_keys(item)]
        for key in together if item.group is None else [f"group {item.group}"]:
            other = root(first.setdefault(key, place))
            parent[max(other, root(place))] = min(other, root(place))
    return [item.group or items[root(place)].id for place, item in enumerate(items)]
