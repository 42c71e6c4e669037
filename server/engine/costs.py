"""What tokens cost, learnt from the passes that computed them."""

from __future__ import annotations

from math import inf, sqrt

WEIGHT = 0.2  # of the newest pass in what passes cost now
SLOW_WEIGHT = 0.02  # and in what contexts add, which the model and the machine decide once
CAUTION = 3  # mean deviations above the mean: one or two in a hundred passes take longer
SHRINK = 0.02  # of the mean context's square: contexts that differ by less than a seventh of it say little
LEAST = 0.1  # of a token's mean cost, what it costs without a context


def pairs(tokens: int, position: int) -> float:
    """How many pairs of a token and one before it there are, for so many tokens from a position of their row on."""
    return tokens * (position + tokens / 2)


class Cost:
    """Seconds of tokens that attend to all before them: `tokens` and a share of their `pairs`, times what passes tell.

    Level and scatter follow the last passes, weighed by their tokens: one over a few tokens costs as much as one over
    many, and says little about these.
    """

    def __init__(self) -> None:
        self._slope = _Slope()
        self._tokens = self._pairs = self._seconds = 0.0
        self._apart = 0.0  # seconds between what passes took and what was expected

    @property
    def known(self) -> bool:
        """Whether there was a pass."""
        return self._tokens > 0

    def seconds(self, tokens: int, position: int = 0) -> float:
        """What tokens from a position on take, cautiously: `CAUTION` mean deviations above the mean. 0 at first."""
        return self._token(CAUTION) * (tokens + self._slope.share * pairs(tokens, position)) if self.known else 0.0

    def tokens(self, seconds: float, position: int) -> float:
        """How many tokens from a position on take so long, as cautiously."""
        if not self.known or seconds == inf:
            return inf
        work = max(0.0, seconds) / self._token(CAUTION)
        first = 1 + self._slope.share * position
        return 2 * work / (first + sqrt(first * first + 2 * self._slope.share * work))

    def observe(self, seconds: float, tokens: int, pairs: float = 0.0) -> None:
        """A pass over tokens with so many pairs took so long."""
        if self.known:
            expected = (tokens + self._slope.share * pairs) * self._token(0)
            self._apart = (1 - WEIGHT) * self._apart + abs(seconds - expected)
        keep = 1 - WEIGHT
        self._tokens = keep * self._tokens + tokens
        self._pairs = keep * self._pairs + pairs
        self._seconds = keep * self._seconds + seconds
        self._slope.observe(seconds, tokens, pairs)

    def _token(self, caution: float) -> float:
        """Seconds of a token without a context."""
        return (self._seconds + caution * self._apart) / (self._tokens + self._slope.share * self._pairs)


class _Slope:
    """How much more a token costs for each that is before it, as a share of what it costs without any.

    By least squares of passes' seconds a token on their mean contexts, weighed by tokens. Contexts that are all alike
    tell nothing: the share is 0.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._tokens = self._pairs = self._seconds = 0.0
        self._squares = self._products = 0.0  # of contexts, and of these and seconds a token; each times the tokens

    def observe(self, seconds: float, tokens: int, pairs: float) -> None:
        """A pass over tokens with so many pairs took so long."""
        keep, context = 1 - SLOW_WEIGHT, pairs / tokens
        self._tokens = keep * self._tokens + tokens
        self._pairs = keep * self._pairs + pairs
        self._seconds = keep * self._seconds + seconds
        self._squares = keep * self._squares + context * pairs
        self._products = keep * self._products + context * seconds
        if not self._pairs:
            return
        mean = self._pairs / self._tokens
        spread = self._squares - mean * self._pairs + SHRINK * mean * self._pairs
        slope = (self._products - mean * self._seconds) / spread
        most = (1 - LEAST) * self._seconds / self._pairs
        slope = min(max(0.0, slope), most)
        self.share = slope * self._tokens / (self._seconds - slope * self._pairs)
