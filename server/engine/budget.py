"""How many prompt tokens a step may compute beside the decoding rows, so that none of these stalls."""

from __future__ import annotations

FLOOR = 32  # tokens: smaller chunks cost more passes than they save time
WEIGHT = 0.2  # of the newest measurement


class Budget:
    """At most `limit` tokens. Beside decoding rows fewer, if need be: a step takes about `slowdown` times as long.

    `slowdown` None: always the limit, whatever the time.
    """

    def __init__(self, limit: int, slowdown: float | None = None) -> None:
        assert limit > 0, f"a budget of {limit} tokens"
        assert slowdown is None or slowdown > 1, f"steps cannot be slowed down {slowdown} times"
        self.limit = limit
        self._slowdown = slowdown
        self._step: float | None = None  # seconds of a step without prompts
        self._token: float | None = None  # seconds that a prompt's token adds

    def tokens(self, decoding: int) -> int:
        """Of prompts, in the next step, beside so many decoding rows."""
        if self._slowdown is None or not decoding or self._step is None or self._token is None:
            return self.limit
        return max(FLOOR, min(self.limit, int((self._slowdown - 1) * self._step / self._token)))

    def observe(self, seconds: float, decoding: int, prompt_tokens: int) -> None:
        """Learn from a step."""
        if not prompt_tokens:
            self._step = _mixed(self._step, seconds)
        elif self._step is not None or not decoding:
            alone = self._step if decoding and self._step is not None else 0.0
            self._token = _mixed(self._token, max(seconds - alone, 1e-9) / prompt_tokens)


def _mixed(old: float | None, new: float) -> float:
    return new if old is None else (1 - WEIGHT) * old + WEIGHT * new
