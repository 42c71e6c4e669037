"""How many prompt tokens a step may compute beside the decoding rows, so that none of these stalls."""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from server.engine.costs import WEIGHT, Cost

FLOOR = 32  # tokens: smaller chunks cost more passes than they save time


class Spent(NamedTuple):
    """What a step computed, and the seconds that it took, of which `encoding` went into pictures of so many tokens."""

    seconds: float
    decoding: int  # rows
    prompt_tokens: int
    prompt_pairs: float
    encoded_tokens: int = 0
    encoding: float = 0.0


class Budget:
    """At most `limit` tokens. Beside decoding rows fewer, if need be: a step takes at most about `max_gap` seconds.

    Where decoding alone takes more than half of that, prompts get as long as decoding. `max_gap` None: always the
    limit, whatever the time.
    """

    def __init__(self, limit: int, max_gap: float | None = None) -> None:
        assert limit > 0, f"a budget of {limit} tokens"
        assert max_gap is None or max_gap > 0, f"a gap of {max_gap} seconds"
        self.limit = limit
        self._max_gap = max_gap
        self._step: float | None = None  # seconds of a step without prompts
        self._prompts = Cost()
        self._pictures = Cost()

    def allow(self, decoding: int) -> Allowance:
        """What prompts may take of the next step, beside so many decoding rows."""
        seconds = inf
        if self._max_gap is not None and decoding:
            step = self._step or 0.0
            seconds = max(self._max_gap - step, step)
        return Allowance(self.limit, seconds, self._prompts, self._pictures)

    def observe(self, spent: Spent) -> None:
        """Learn from a step."""
        if spent.encoded_tokens:
            self._pictures.observe(max(spent.encoding, 1e-9), spent.encoded_tokens)
        if spent.prompt_tokens:
            alone = self._step if spent.decoding and self._step is not None else 0.0
            seconds = max(spent.seconds - alone - spent.encoding, 1e-9)
            self._prompts.observe(seconds, spent.prompt_tokens, spent.prompt_pairs)
        elif spent.decoding:
            before, now = self._step, spent.seconds
            self._step = now if before is None else (1 - WEIGHT) * before + WEIGHT * now


class Allowance:
    """What prompts may still take of a step: its first `FLOOR` tokens always, the others while there is time."""

    def __init__(self, tokens: int, seconds: float, prompts: Cost, pictures: Cost) -> None:
        self._left = tokens
        self._floor = min(tokens, FLOOR)
        self._seconds = seconds
        self._prompts = prompts
        self._pictures = pictures

    def fits(self, position: int, unseen: int = 0) -> int:
        """How many tokens from a position of their row on, with pictures of `unseen` tokens to encode for them."""
        seconds = self._seconds - self._pictures.seconds(unseen)
        return max(self._floor, int(min(self._left, self._prompts.tokens(seconds, position))))

    def take(self, tokens: int, position: int, unseen: int = 0) -> None:
        """Count tokens from a position of their row on, and pictures of `unseen` tokens encoded for them."""
        self._left = max(0, self._left - tokens)
        self._floor = max(0, self._floor - tokens)
        self._seconds -= self._pictures.seconds(unseen) + self._prompts.seconds(tokens, position)
