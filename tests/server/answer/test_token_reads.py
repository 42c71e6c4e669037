"""Scores of an answer's tokens are told once, and never of what is not shown."""

from __future__ import annotations

from server.answer.token_reads import TokenReads


def reads(tokens: int, scores: int) -> TokenReads:
    made = TokenReads()
    for token in range(tokens):
        made.push(token)
    made.read([token / 10 for token in range(scores)])
    return made


def test_a_token_is_told_once_when_it_is_shown_and_read() -> None:
    made = reads(5, 3)
    assert made.take(2) == [(0, 0.0), (1, 0.1)]
    assert made.take(2) == []
    assert made.take(5) == [(2, 0.2)]
    made.read([0.5])
    assert made.take(5) == [(3, 0.5)]


def test_tokens_that_are_dropped_are_not_told_and_others_come_in_their_place() -> None:
    made = reads(5, 5)
    made.keep(2)
    made.push(70)
    made.read([0.7])
    assert made.take(3) == [(0, 0.0), (1, 0.1), (70, 0.7)]
