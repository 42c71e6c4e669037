"""Who is next where work waits."""

from __future__ import annotations

import pytest

from server.workers.turns import Turns


def taken(turns: Turns[str]) -> list[str]:
    return [turns.take() for _ in range(len(turns))]


def filled(*pieces: str) -> Turns[str]:
    """Pieces such as "a1": the first piece of key "a"."""
    turns: Turns[str] = Turns()
    for piece in pieces:
        turns.put(piece[0], piece)
    return turns


def test_one_keys_work_is_done_in_its_order() -> None:
    assert taken(filled("a1", "a2", "a3")) == ["a1", "a2", "a3"]


def test_keys_take_turns_however_much_one_has() -> None:
    assert taken(filled("a1", "a2", "a3", "a4", "b1", "b2", "c1")) == ["a1", "b1", "c1", "a2", "b2", "a3", "a4"]


def test_who_comes_later_does_not_wait_for_a_second_turn_of_another() -> None:
    turns = filled("a1", "a2", "a3")
    assert turns.take() == "a1"
    turns.put("b", "b1")
    assert taken(turns) == ["b1", "a2", "a3"]


def test_who_comes_again_and_again_does_not_overtake() -> None:
    turns = filled("a1", "a2", "b1")
    order = []
    for number in range(2, 5):
        order.append(turns.take())
        if order[-1].startswith("b"):
            turns.put("b", f"b{number}")
    assert order == ["a1", "b1", "a2"]


def test_nothing_is_next_where_nothing_waits() -> None:
    with pytest.raises(ValueError, match="empty"):
        filled().take()
