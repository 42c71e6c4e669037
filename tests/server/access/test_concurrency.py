"""What one client may have at once."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from server.access.concurrency import Seats
from server.access.keys import Client
from server.errors import BodiesFull, ConcurrencyLimited
from server.http.body_budget import BodyBudget, HeldBody, default_budget
from server.settings.groups import KeySettings, PolicySettings
from server.settings.schema import Settings

ONE = Client("one", "default", PolicySettings())
OTHER = Client("other", "default", PolicySettings(concurrent_requests=1))


def test_a_client_has_as_many_generations_as_it_may_and_others_have_theirs() -> None:
    seats = Seats(shared=3)
    seat = seats.take(ONE)
    seat.widen(3)
    with pytest.raises(ConcurrencyLimited, match="limit of 3"):
        seats.take(ONE)
    other = seats.take(OTHER)
    with pytest.raises(ConcurrencyLimited, match="limit of 1"):
        other.widen(2)
    seat.release()
    seat.release()
    seats.take(ONE).widen(3)


def test_what_can_never_be_had_is_not_to_be_tried_again() -> None:
    seats = Seats(shared=3)
    with pytest.raises(ConcurrencyLimited) as refused:
        seats.check(ONE, 4)
    assert refused.value.headers == {"x-should-retry": "false"}
    seats.take(ONE)
    with pytest.raises(ConcurrencyLimited) as full:
        seats.check(ONE, 3)
    assert full.value.headers == {"retry-after": "1"}


def test_of_several_keys_none_takes_all_places() -> None:
    keys = tuple(KeySettings(name=name, hash=SecretStr("sha256:" + name * 64)) for name in "ab")
    assert Settings(max_rows=4, max_queue=4).shared_live == 8
    assert Settings(max_rows=4, max_queue=4, keys=keys[:1]).shared_live == 8
    assert Settings(max_rows=4, max_queue=4, keys=keys).shared_live == 4


def test_bodies_count_as_they_come_and_one_client_has_half_of_the_budget() -> None:
    budget = BodyBudget(100)
    first, second = HeldBody(budget, "one"), HeldBody(budget, "other")
    first.expect(50)
    first.grow(50)
    with pytest.raises(BodiesFull):
        HeldBody(budget, "one").expect(1)
    second.expect(50)  # what was only announced takes nothing
    second.grow(50)
    with pytest.raises(BodiesFull) as refused:
        HeldBody(budget, "third").grow(1)
    assert refused.value.headers == {"retry-after": "1", "connection": "close"}
    first.release()
    first.release()
    assert budget.held == 50


def test_the_budget_follows_the_memory_and_has_room_for_the_largest_body() -> None:
    assert default_budget(24 * 2**30, 32 * 2**20) == 768 * 2**20
    assert default_budget(2**30, 32 * 2**20) == 64 * 2**20
    assert default_budget(2**30, 200 * 2**20) == 400 * 2**20
    assert default_budget(2**40, 32 * 2**20) == 2**30
