"""The tokens of an answer and the guard's score at each, given out once their text is shown."""

from __future__ import annotations

from collections.abc import Sequence


class TokenReads:
    """Tokens as they are chosen, and scores as they are read, which is a step later."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._scores: list[float] = []
        self._told = 0

    def push(self, token: int) -> None:
        """The answer's next token."""
        self._tokens.append(token)

    def read(self, scores: Sequence[float]) -> None:
        """The scores of the next tokens that had none."""
        self._scores += scores

    def keep(self, shown: int) -> None:
        """Forget all tokens after the first `shown`: what comes next is in their place."""
        del self._tokens[shown:]
        del self._scores[shown:]

    def take(self, shown: int) -> list[tuple[int, float]]:
        """Those of the first `shown` tokens, each with its score, that have one and were not taken yet."""
        found = list(zip(self._tokens[:shown], self._scores[:shown], strict=False))[self._told :]
        self._told += len(found)
        return found
