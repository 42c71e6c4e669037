"""Whose prompts are computed next, where several clients wait: by what each has had of the engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set

from server.engine.own_request import OwnRequest

DECODED = 2  # what a token of an answer counts, where one of a prompt counts 1


class Shares:
    """What each tenant has had, in tokens: whoever waits all the time gets as much as anybody else who does.

    A tenant's prompts, in their own order, are due at what it has had and what they lack, summed up; what is due first
    is computed first. A tenant for whom nothing waited begins at what the least served of the waiting has had: nobody
    saves up for later by asking nothing. (The counters of Sheng et al., Fairness in Serving Large Language Models,
    arXiv 2401.00588.)
    """

    def __init__(self) -> None:
        self._had: dict[int, int] = {}  # by tenant, of those who have had more than `_now`, or wait
        self._waiting: Set[int] = frozenset()  # tenants, in the step before
        self._now = 0  # the least that any of those who wait has had

    def __len__(self) -> int:
        """How many tenants are remembered."""
        return len(self._had)

    def charge(self, request: OwnRequest, tokens: int, *, decoding: bool) -> None:
        """A request gets so many tokens computed."""
        tenant = request.ask.tenant
        self._had[tenant] = self._had.get(tenant, self._now) + (DECODED * tokens if decoding else tokens)

    def ordered(self, prompts: Iterable[OwnRequest], waiting: Set[int]) -> Sequence[OwnRequest]:
        """Prompts in the order in which they are due; given each tenant's in its own, and all tenants who wait."""
        if still := self._waiting & waiting:
            self._now = max(self._now, min(self._had[tenant] for tenant in still))
        elif self._waiting:  # all of them have what they asked for, and nobody is behind
            self._now = max(self._now, *(self._had[tenant] for tenant in self._waiting))
        for tenant in waiting - still:
            self._had[tenant] = max(self._had.get(tenant, 0), self._now)
        self._waiting = waiting
        self._had = {tenant: had for tenant, had in self._had.items() if tenant in waiting or had > self._now}
        sums, due = dict(self._had), {}
        for prompt in prompts:
            sums[prompt.ask.tenant] += prompt.lacking
            due[prompt] = sums[prompt.ask.tenant]
        return sorted(due, key=due.__getitem__)
