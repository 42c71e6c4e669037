"""What is new of an answer: a piece of its text or of a refusal."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple

from server.answer.logprobs import Entry


class Kind(Enum):
    """What a delta is a piece of."""

    TEXT = auto()  # what the client asked for
    REFUSAL = auto()  # what the guard made of it
    CALL = auto()  # the name of a tool's function, which begins a call of it
    ARGUMENTS = auto()  # JSON, of the call that was begun last


class Delta(NamedTuple):
    """One piece, and the tokens that ended within it where log-probabilities are asked for."""

    kind: Kind
    text: str
    entries: Sequence[Entry] = ()


def merged(deltas: Sequence[Delta]) -> list[Delta]:
    """The same deltas, neighbours of one kind joined into one."""
    runs: list[list[Delta]] = []
    for delta in deltas:
        if runs and runs[-1][0].kind is delta.kind:
            runs[-1].append(delta)
        else:
            runs.append([delta])
    return [joined(run, run[0].kind) for run in runs]


def joined(deltas: Sequence[Delta], kind: Kind) -> Delta:
    """All deltas of one kind as one; the others are left out."""
    chosen = [delta for delta in deltas if delta.kind is kind]
    return Delta(kind, "".join(delta.text for delta in chosen), [entry for delta in chosen for entry in delta.entries])
