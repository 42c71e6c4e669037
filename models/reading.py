"""What a guard reads of prompts: some numbers of each token, kept with the token's place in the cache.

A cached block keeps what was read of it, so a prompt that begins alike, a row that was cut into chunks or computed
again, and a copy of a row all have the same numbers, and no token is read twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Protocol

from torch import Tensor, nn

from models.cache import PagedCache
from models.tap import Tap


class PromptReader(Protocol):
    """What is to be read of every token of a prompt."""

    @property
    def layers(self) -> Sequence[int]:
        """The layers whose states are read."""

    @property
    def width(self) -> int:
        """How many numbers are kept of a token."""

    def read(self, states: Tensor) -> Tensor:
        """The numbers `[N, width]` of N tokens, of their states `[N, layers, d]`."""


class Reading:
    """Reads passes with one reader. `seconds`: what that took so far; on a GPU, to launch it."""

    def __init__(self, reader: PromptReader, decoder: nn.Module, cache: PagedCache) -> None:
        self.reader = reader
        self.seconds = 0.0
        self._tap = Tap(decoder, reader.layers)
        self._cache = cache

    @contextmanager
    def during(self, slots: Sequence[int]) -> Iterator[None]:
        """Read the pass that runs inside; `slots`: where in the cache its tokens are stored, one by one."""
        with self._tap.at_all(len(slots)):
            yield
        began = perf_counter()
        self._cache.note(slots, self.reader.read(self._tap.states))
        self.seconds += perf_counter() - began
