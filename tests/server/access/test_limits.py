"""Token buckets under a clock that the test moves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.keys import Client
from server.access.limits import MINUTE, RateLimiter, duration
from server.errors import RateLimited
from server.settings.groups import PolicySettings


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def client(name: str = "a", *, requests: int | None = None, tokens: int | None = None) -> Client:
    return Client(name, "default", PolicySettings(requests_per_minute=requests, tokens_per_minute=tokens))


def refused(limiter: RateLimiter, who: Client, tokens: int | None = None) -> dict[str, str]:
    with pytest.raises(RateLimited) as caught:
        limiter.admit(who) if tokens is None else limiter.reserve(who, tokens)
    assert caught.value.body["error"]["code"] == "rate_limit_exceeded"
    return caught.value.headers or {}


def test_requests_come_back_one_by_one() -> None:
    clock = Clock()
    limiter, who = RateLimiter(clock), client(requests=6)
    for _ in range(6):
        limiter.admit(who)
    assert refused(limiter, who) == {"retry-after": "10"}
    clock.now += 9.5
    assert refused(limiter, who) == {"retry-after": "1"}
    clock.now += 0.5
    limiter.admit(who)
    refused(limiter, who)
    clock.now += 600
    for _ in range(6):
        limiter.admit(who)
    refused(limiter, who)


def test_what_is_refused_costs_nothing() -> None:
    clock = Clock()
    limiter, who = RateLimiter(clock), client(requests=1)
    limiter.admit(who)
    for _ in range(100):
        refused(limiter, who)
    clock.now += 60
    limiter.admit(who)


def test_tokens_are_held_and_given_back() -> None:
    clock = Clock()
    limiter, who = RateLimiter(clock), client(tokens=600)
    held = limiter.reserve(who, 500)
    assert held is not None
    assert refused(limiter, who, 200) == {"retry-after": "10"}
    held.settle(100)
    held.settle(100)
    assert limiter.headers(who)["x-ratelimit-remaining-tokens"] == "500"
    limiter.reserve(who, 500)
    refused(limiter, who, 1)
    clock.now += 0.1
    limiter.reserve(who, 1)


def test_a_client_out_of_tokens_is_refused_before_its_body_is_read() -> None:
    limiter, who = RateLimiter(Clock()), client(tokens=60)
    limiter.reserve(who, 60)
    assert refused(limiter, who) == {"retry-after": "1"}


def test_more_than_a_whole_minute_has_is_not_worth_a_second_try() -> None:
    limiter, who = RateLimiter(Clock()), client(tokens=60)
    assert refused(limiter, who, 61) == {"x-should-retry": "false"}
    limiter.reserve(who, 60)


def test_clients_do_not_share_and_unlimited_ones_have_no_headers() -> None:
    limiter = RateLimiter(Clock())
    one, other = client("a", requests=1), client("b", requests=1)
    limiter.admit(one)
    limiter.admit(other)
    refused(limiter, one)
    free = client("c")
    for _ in range(1000):
        limiter.admit(free)
    assert limiter.reserve(free, 10**9) is None
    assert limiter.headers(free) == {}


def test_headers_are_openais() -> None:
    clock = Clock()
    limiter, who = RateLimiter(clock), client(requests=120, tokens=60_000)
    limiter.admit(who)
    limiter.reserve(who, 45_000)
    assert limiter.headers(who) == {
        "x-ratelimit-limit-requests": "120",
        "x-ratelimit-remaining-requests": "119",
        "x-ratelimit-reset-requests": "500ms",
        "x-ratelimit-limit-tokens": "60000",
        "x-ratelimit-remaining-tokens": "15000",
        "x-ratelimit-reset-tokens": "45s",
    }


@pytest.mark.parametrize(("seconds", "text"), [(0, "0ms"), (0.25, "250ms"), (1, "1s"), (59.2, "1m0s"), (90, "1m30s")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_changed_limit_holds_at_once_and_what_was_used_stays_used() -> None:
    limiter = RateLimiter(Clock())
    for _ in range(5):
        limiter.admit(client(requests=10))
    refused(limiter, client(requests=5))
    limiter.admit(client(requests=6))
    limiter.forget_all_but({"b"})
    limiter.admit(client(requests=1))


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 50)), max_size=60), st.integers(10, 60))
def test_no_window_of_a_minute_has_more_than_two_limits(steps: list[tuple[float, int]], limit: int) -> None:
    """A full bucket, and what flows in meanwhile."""
    clock = Clock()
    limiter, who = RateLimiter(clock), client(tokens=limit)
    taken: list[tuple[float, int]] = []
    begin = clock.now
    for pause, amount in steps:
        clock.now += pause
        try:
            limiter.reserve(who, amount)
        except RateLimited:
            continue
        taken.append((clock.now, amount))
    for at, _ in taken:
        assert sum(amount for time, amount in taken if at <= time < at + MINUTE) <= 2 * limit
    total = sum(amount for _, amount in taken)
    assert total <= limit + math.ceil((clock.now - begin) * limit / MINUTE)


def test_a_request_for_several_generations_counts_as_many() -> None:
    """And whoever waits as long as it was told gets all of them."""
    clock = Clock()
    limiter, who = RateLimiter(clock), client(requests=20)
    limiter.admit(who)
    limiter.widen(who, 16)
    assert limiter.headers(who)["x-ratelimit-remaining-requests"] == "4"
    limiter.admit(who)
    with pytest.raises(RateLimited) as caught:
        limiter.widen(who, 16)
    assert limiter.headers(who)["x-ratelimit-remaining-requests"] == "3"
    clock.now += int((caught.value.headers or {})["retry-after"])
    limiter.admit(who)
    limiter.widen(who, 16)
    with pytest.raises(RateLimited) as caught:
        limiter.widen(who, 21)
    assert caught.value.headers == {"x-should-retry": "false"}
    limiter.widen(client("free"), 10**6)
