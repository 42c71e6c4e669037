"""Where a chat's turns end and which tokens are its content, found in the token ids alone.

What marks the end of a turn is learnt once from a chat template, so that no template needs rules of its own. As a
place is a function of the ids before it, whatever is known of a cached token stays right in another prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = Callable[[Sequence[Mapping[str, Any]]], Sequence[int]]  # of a chat of words

_SHORT = [{"role": "user", "content": "What is rain?"}]
_OTHER = [{"role": "user", "content": "Name two rivers"}]
_TURNS = [*_SHORT, {"role": "assistant", "content": "Water."}, *_OTHER]

_CONTROL, _TEXT, _IMAGE = range(3)
MOST_CONTROLS = 3  # that an opening begins with


@dataclass(frozen=True)
class Layout:
    """The layout of one prompt: its length, the last token of each turn's end, the runs of text or image tokens.

    `ends` rise, and the last of them is the prompt's last token. A run `(begin, end)` holds no control token. `told`:
    those of the runs that are the words of a tool or a system message; `own`: those that the template puts into every
    chat by itself. `begun`: whether it ends within an answer that was begun for the model; `header`: how many tokens at
    its end are an answer's header.
    """

    tokens: int
    ends: Sequence[int]
    runs: Sequence[tuple[int, int]]
    has_image: bool
    begun: bool = False
    header: int = 0
    told: Sequence[tuple[int, int]] = ()
    own: Sequence[tuple[int, int]] = ()

    @property
    def spoken(self) -> Sequence[tuple[int, int]]:
        """The runs that somebody says or tells, and those of images."""
        own = frozenset(self.own)
        return [run for run in self.runs if run not in own]

    @property
    def answered(self) -> bool:
        """Whether the prompt holds an answer, of an earlier turn or begun."""
        return len(self.ends) > 1


@dataclass(frozen=True)
class Opening:
    """What stands before the words of a turn: a control token, and what follows it up to the words."""

    ids: tuple[int, ...]
    outside: int  # how many of them stand before the run that holds the words

    def opens(self, ids: Sequence[int], begin: int) -> bool:
        """Whether a run that begins there is of such a turn."""
        start = begin - self.outside
        return start >= 0 and tuple(ids[start : start + len(self.ids)]) == self.ids


@dataclass(frozen=True)
class LayoutFinder:
    """Finds the layout of prompts of one model. Without a `header` a prompt has one end, its last token.

    Turns of tools and system messages that have no `openings` are taken for what a user says.
    """

    header: tuple[int, ...]  # what stands between a user's words and an answer, but for white space at its end
    blanks: int  # tokens of white space that follow it
    kinds: NDArray[np.int8]  # of each token up to the last that is no text, and text
    openings: tuple[Opening, ...] = ()  # of what tools and system messages tell
    own: Sequence[tuple[int, ...]] = ()  # runs that the template puts into every chat by itself

    @classmethod
    def learn(cls, ids: Ids, blank: Callable[[int], bool], control: Set[int], image: int) -> LayoutFinder:
        """Learn it from a template. `ids`: those of a chat, none where the template refuses it; `blank`: whether a
        token is white space alone.

        White space is left out of the header: an answer that begins with a line break may share a token with it.
        """
        kinds = np.full(max((*control, image)) + 2, _TEXT, dtype=np.int8)
        kinds[[*control]] = _CONTROL
        if image >= 0:
            kinds[image] = _IMAGE
        short, other, turns = ids(_SHORT), ids(_OTHER), ids(_TURNS)
        header, blanks = _header(common_prefix(reversed(short), reversed(other))[::-1], turns, blank)
        finder = cls(header, blanks, kinds, _openings(ids, control))
        runs = ({tuple(chat[begin:end]) for begin, end in finder.of(chat).runs} for chat in (short, other) if chat)
        return replace(finder, own=sorted(set.intersection(*runs)) if short and other else ())

    def of(self, ids: Sequence[int]) -> Layout:
        """The layout of a prompt of at least one token."""
        last = len(ids) - 1
        found = np.asarray(ids)
        headers = _places(ids, self.header, found)
        behind = [place + len(self.header) - 1 + self.blanks for place in headers]
        kinds = self.kinds.take(found, mode="clip")
        borders = [0, *(np.flatnonzero(kinds[1:] != kinds[:-1]) + 1).tolist(), len(ids)]
        runs = [(begin, end) for begin, end in pairwise(borders) if kinds[begin] != _CONTROL]
        awaits = bool(behind) and behind[-1] >= last
        own = {run: None for run in runs if self._is_own(ids, *run)}
        begun = bool(behind) and not awaits and bool(runs) and runs[-1][1] > last and runs[-1][0] <= behind[-1] + 1
        return Layout(
            len(ids),
            sorted({last, *(min(place, last) for place in behind)}),
            runs,
            any(kinds[begin] == _IMAGE for begin, _ in runs),
            begun,
            len(ids) - headers[-1] if awaits else 0,
            [run for run in runs if run not in own and any(opening.opens(ids, run[0]) for opening in self.openings)],
            [*own],
        )

    def _is_own(self, ids: Sequence[int], begin: int, end: int) -> bool:
        return any(end - begin == len(run) and tuple(ids[begin:end]) == run for run in self.own)


def _header(suffix: Sequence[int], turns: Sequence[int], blank: Callable[[int], bool]) -> tuple[tuple[int, ...], int]:
    """What of the end of all chats is the header of an answer, and how many blank tokens follow it."""
    for length in range(len(suffix), 0, -1):
        header = suffix[:length]
        while header and blank(header[-1]):
            header = header[:-1]
        # Before the answer in the chat and at its end; after the answer as well, where all turns end alike.
        if header and len(_places(turns, header)) in (2, 3):
            return tuple(header), length - len(header)
    return (), 0


def _places(ids: Sequence[int], wanted: Sequence[int], array: NDArray[np.int64] | None = None) -> list[int]:
    """Where a sequence begins in another; `array`: the latter, where it is one already."""
    if not wanted:
        return []
    firsts = np.flatnonzero((np.asarray(ids) if array is None else array) == wanted[0]).tolist()
    return [place for place in firsts if tuple(ids[place : place + len(wanted)]) == tuple(wanted)]


def common_prefix(first: Iterable[int], *others: Iterable[int]) -> list[int]:
    """The tokens that all sequences begin with."""
    return [tokens[0] for tokens in takewhile(lambda tokens: len({*tokens}) == 1, zip(first, *others, strict=False))]


# what tools and system messages tell ---------------------------------------------------------------------------------

# Words of one turn of a chat: what they all have before them belongs to the template, however a text begins.
_WORDS = ("What is rain?", "two rivers", "\n\nWater")
_NAMES = ("weather", "find_note")  # of tools
_Chat = Callable[[str], Sequence[Mapping[str, Any]]]


def _called(name: str) -> _Chat:
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": {}}}
    calls: Mapping[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call]}
    return lambda words: [*_SHORT, calls, {"role": "tool", "tool_call_id": "call_1", "content": words}]


_TOLD: Sequence[Sequence[_Chat]] = (
    [_called(name) for name in _NAMES],
    [lambda words: [{"role": "system", "content": words}, *_SHORT]],
)
_SAID: Sequence[_Chat] = (
    lambda words: [{"role": "user", "content": words}],
    lambda words: [*_SHORT, {"role": "assistant", "content": words}, *_OTHER],
    lambda words: [*_TURNS[:-1], {"role": "user", "content": words}],
)


@dataclass(frozen=True)
class _Turn:
    """A turn of a chat: the chat's tokens, which of them are control tokens, and where the turn's words begin."""

    ids: Sequence[int]
    controls: Sequence[int]
    words: int

    @classmethod
    def of(cls, ids: Ids, chat: _Chat, control: Set[int]) -> _Turn | None:
        """None where the template refuses the chat."""
        chats = [ids(chat(words)) for words in _WORDS]
        if not all(chats):
            return None
        words = len(common_prefix(*chats))
        return cls(chats[0], [at for at in range(words) if chats[0][at] in control], words)

    @property
    def run(self) -> int:
        """Where the run that holds the words begins."""
        return self.controls[-1] + 1 if self.controls else 0

    def before(self, depth: int) -> Sequence[int]:
        """What stands before the words, from so many control tokens on; nothing where there are fewer."""
        return self.ids[self.controls[-depth] : self.words] if depth <= len(self.controls) else ()


def _openings(ids: Ids, control: Set[int]) -> tuple[Opening, ...]:
    """Those of the turns of tools and of system messages, where ids tell them from what users and models say."""
    said = [turn for chat in _SAID if (turn := _Turn.of(ids, chat, control)) is not None]
    told = [[_Turn.of(ids, chat, control) for chat in chats] for chats in _TOLD]
    found = (_opening([turn for turn in turns if turn is not None], said, control) for turns in told)
    return tuple(opening for opening in found if opening is not None)


def _opening(told: Sequence[_Turn], said: Sequence[_Turn], control: Set[int]) -> Opening | None:
    """What all turns of a kind begin with, from as few control tokens on as tell it from those that are said."""
    for depth in range(1, MOST_CONTROLS + 1) if told else ():
        if not (alike := common_prefix(*(turn.before(depth) for turn in told))):
            return None
        found = Opening(tuple(alike), 1 + max(at for at, token in enumerate(alike) if token in control))
        if not any(found.opens(turn.ids, turn.run) for turn in said):
            return found
    return None
