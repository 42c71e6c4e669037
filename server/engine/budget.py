"""How many prompt tokens a step may compute beside the decoding rows, so that none of these stalls."""

from __future__ import annotations

FLOOR = 32  # tokens: smaller chunks cost more passes than they save time
WEIGHT = 0.2  # of the newest measurement
CAUTION = 2  # mean deviations above the mean: passes differ by more than their tokens


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
        self._prompts = _Cost()
        self._pictures = _Cost()

    def tokens(self, decoding: int) -> int:
        """How many tokens of prompts the next step may compute beside so many decoding rows."""
        token = self._prompts.token
        if self._max_gap is None or not decoding or token is None:
            return self.limit
        step = self._step or 0.0
        return max(FLOOR, min(self.limit, int(max(self._max_gap - step, step) / token)))

    def pictures(self, tokens: int) -> float:
        """Prompt tokens that take as long as encoding pictures of so many tokens."""
        token, encoded = self._prompts.token, self._pictures.token
        return 0.0 if token is None or encoded is None else tokens * encoded / token

    def observe(
        self, seconds: float, decoding: int, prompt_tokens: int, encoded_tokens: int = 0, encoding: float = 0.0
    ) -> None:
        """Learn from a step, of which `encoding` seconds went into pictures of so many tokens."""
        if encoded_tokens:
            self._pictures.observe(max(encoding, 1e-9), encoded_tokens)
        if prompt_tokens:
            alone = self._step if decoding and self._step is not None else 0.0
            self._prompts.observe(max(seconds - alone - encoding, 1e-9), prompt_tokens)
        elif decoding:
            self._step = seconds if self._step is None else (1 - WEIGHT) * self._step + WEIGHT * seconds


class _Cost:
    """What a token of a prompt or of a picture costs: the mean of the last passes, by their tokens, and how far these
    lie from it.

    By their tokens: a pass over a few of them costs as much as one over many, and says little about these.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._apart = 0.0  # seconds between what passes took and what the mean said

    @property
    def token(self) -> float | None:
        """Seconds of a token, cautiously: the mean and twice the mean deviation; None where nothing was measured."""
        return (self._seconds + CAUTION * self._apart) / self._tokens if self._tokens else None

    def observe(self, seconds: float, tokens: int) -> None:
        """A pass over so many tokens took so long."""
        expected = tokens * self._seconds / self._tokens if self._tokens else seconds
        keep = 1 - WEIGHT
        self._tokens = keep * self._tokens + tokens
        self._seconds = keep * self._seconds + seconds
        self._apart = keep * self._apart + abs(seconds - expected)
