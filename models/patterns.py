"""How far the repetitions of a regular expression multiply, read from its text alone. Nothing is compiled for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_REPEAT = re.compile(r"\{(\d*)(?:,(\d*))?\}")
MANY = 10**6  # longer numbers are not even multiplied


@dataclass
class Extent:
    """A part of a pattern once its repetitions are written out.

    `size`: how many characters, about. `nested`: the most that repetitions within repetitions multiply to.
    """

    size: int = 1
    nested: int = 1
    repeats: int = 1  # the most of a single path, those that are not within others included

    def repeated(self, count: int) -> Extent:
        """The part, so many times."""
        nested = self.repeats * count if self.repeats > 1 and count > 1 else self.nested
        return Extent(min(self.size * count, MANY**2), max(nested, self.nested), self.repeats * count)


def extent_of(pattern: str) -> Extent:
    """The extent of a pattern, which need not be a valid one."""
    groups = [_Sequence()]
    for part in _parts(pattern):
        match part:
            case "(":
                groups.append(_Sequence())
            case ")" if len(groups) > 1:
                within = groups.pop().extent
                groups[-1].add(within)
            case int(count):
                groups[-1].repeat_last(count)
            case "^" | "$" | "|" | "*" | "+" | "?":
                continue  # no characters
            case _:
                groups[-1].add(Extent())
    while len(groups) > 1:
        within = groups.pop().extent
        groups[-1].add(within)
    return groups[0].extent


class _Sequence:
    """What stands within one pair of brackets."""

    def __init__(self) -> None:
        self._parts: list[Extent] = []

    def add(self, part: Extent) -> None:
        self._parts.append(part)

    def repeat_last(self, count: int) -> None:
        if self._parts:
            self._parts.append(self._parts.pop().repeated(count))

    @property
    def extent(self) -> Extent:
        return Extent(
            sum(part.size for part in self._parts),
            max((part.nested for part in self._parts), default=1),
            max((part.repeats for part in self._parts), default=1),
        )


def _parts(pattern: str) -> Iterator[str | int]:
    """Brackets, single characters or classes of them, and how often the part before is repeated."""
    place = 0
    while place < len(pattern):
        if pattern[place] == "\\":
            yield pattern[place : place + 2]
            place += 2
        elif pattern[place] == "[":
            end = _end_of_class(pattern, place)
            yield pattern[place:end]
            place = end
        elif found := _REPEAT.match(pattern, place):
            bounds = [bound for bound in found.groups() if bound]
            yield max([int(bound) if len(bound) <= 6 else MANY for bound in bounds] or [1]) or 1
            place = found.end()
        else:
            yield pattern[place]
            place += 1


def _end_of_class(pattern: str, begin: int) -> int:
    """The place after a class of characters; nothing in it repeats anything."""
    place = begin + 1
    while place < len(pattern) and pattern[place] != "]":
        place += 2 if pattern[place] == "\\" else 1
    return place + 1
