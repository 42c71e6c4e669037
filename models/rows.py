"""Rows: sequences that are being generated, and what a step of the same rows needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from models.attention import Span
from models.cache import PagedCache, Table
from models.decode import make_decode
from models.images import Picture
from models.prompt import Prompt
from models.vision import ImageFeatures


class Row:
    """A sequence that is being generated: its tokens, and how many of them are in the cache.

    The engine reads `length`, `pending` and `tokens`; everything else is the backbone's.
    """

    __slots__ = ("_table", "deltas", "image_numbers", "length", "pictures", "positions", "prompt", "tokens")

    def __init__(self, prompt: Prompt, tokens: list[int], table: Table) -> None:
        self.tokens = tokens
        self.length = 0
        self.prompt: Prompt | None = prompt  # dropped with its images once computed
        self._table: Table | None = table  # None once closed
        self.pictures: list[PlacedPicture] = []
        self.image_numbers: Tensor | None = None  # see Span.images
        self.positions: Tensor | None = None  # of the prompt, `[3, T]`, where they are not just numbers
        self.deltas = 0  # what M-RoPE adds to a later token's place

    @property
    def table(self) -> Table:
        """The row's blocks."""
        assert self._table is not None, "the row is closed"
        return self._table

    @property
    def pending(self) -> int:
        """Tokens that are not in the cache yet."""
        return len(self.tokens) - self.length

    def append(self, token: int) -> None:
        """Add a token to compute."""
        self.tokens.append(token)

    def forget_prompt(self) -> None:
        """Let go of the prompt and its pictures, which only the tokens before its end need."""
        self.prompt = None
        self.pictures = []

    def like(self, prompt: Prompt, tokens: list[int], table: Table, length: int, pictures: list[PlacedPicture]) -> Row:
        """A row of the same prompt, whose first `length` tokens are in the blocks of `table`."""
        row = Row(prompt, tokens, table)
        row.length, row.pictures = length, pictures
        row.image_numbers, row.positions, row.deltas = self.image_numbers, self.positions, self.deltas
        return row

    def close(self) -> Table | None:
        """Give up the blocks; `None` if the row was closed before."""
        table, self._table = self._table, None
        self.forget_prompt()
        self.length = 0
        return table


@dataclass
class PlacedPicture:
    """A picture, and the places in the row of the tokens that stand for it."""

    picture: Picture
    places: Sequence[int]
    features: ImageFeatures | None = None  # None until it is encoded

    def within(self, start: int, end: int) -> bool:
        """Whether some of its tokens may be among those from `start` to `end`."""
        return bool(self.places) and self.places[0] < end and self.places[-1] >= start


class Steps:
    """Steps of the same rows, one token each: what a step needs is mostly that of the one before, plus 1."""

    def __init__(self, cache: PagedCache, rows: Sequence[Row], positions: Tensor) -> None:
        tables = [row.table for row in rows]
        self.rows = list(rows)
        self._tables = tables
        self._lengths = [row.length for row in rows]
        self._inside = any(row.prompt is not None for row in rows)  # of a prompt, where places may not go on by 1
        self._size = cache.block_size
        self.positions = positions
        self.slots = cache.targets(
            [cache.slots(table, row.length, row.length + 1)[0] for table, row in zip(tables, rows, strict=True)]
        )
        self.decode = make_decode(cache, tables, [row.length + 1 for row in rows])

    def go_on(self, rows: Sequence[Row]) -> bool:
        """Whether the next step is one of the same rows, in blocks that they have."""
        return (
            not self._inside
            and len(rows) == len(self.rows)
            and all(
                row is mine and row._table is table and row.length == length + 1 and row.length % self._size
                for row, mine, table, length in zip(rows, self.rows, self._tables, self._lengths, strict=True)
            )
        )

    def advance(self) -> None:
        """Go on to the next step."""
        self._lengths = [length + 1 for length in self._lengths]
        self.positions = self.positions + 1
        self.slots += 1
        self.decode.advance()


def spans_of(rows: Sequence[Row], counts: Sequence[int]) -> list[Span]:
    """The parts that rows have in a pass over their next `counts` tokens."""
    return [Span(row.table, row.length, count, row.image_numbers) for row, count in zip(rows, counts, strict=True)]
