"""Who runs in the next step, and how many tokens of each. Knows requests and counts, no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from server.engine.budget import FLOOR, Allowance, Budget
from server.engine.costs import pairs
from server.engine.own_request import OwnRequest
from server.engine.shares import Shares


class NoRoom(Exception):
    """There is no memory for this now; there may be when other rows have ended."""


class RowAllocator(Protocol):
    """What the scheduler needs of the cache."""

    def open(self, request: OwnRequest, *, alone: bool) -> None:
        """Give a request its row. Raises NoRoom; anything else where it is `alone` and can still not have one."""

    def chunk(self, request: OwnRequest, count: int) -> int:
        """How many tokens, of about `count`, may be computed in one step."""

    def unseen(self, request: OwnRequest, count: int) -> int:
        """Image tokens of the pictures that are encoded with its next `count` tokens."""

    def reserve(self, request: OwnRequest, count: int) -> bool:
        """Make sure of room for a request's next tokens; False if there is none."""

    def release(self, request: OwnRequest) -> None:
        """Take a request's row back; what was in it is computed again when it is opened anew."""


class Work(NamedTuple):
    """A request's part in a step: so many of its tokens that are not computed yet."""

    request: OwnRequest
    tokens: int


@dataclass
class StepPlan:
    """One step's work, the rows that ran before first, and the requests that can never run."""

    work: list[Work] = field(default_factory=list)
    refused: list[tuple[OwnRequest, Exception]] = field(default_factory=list)
    decoding: int = 0  # rows that have their prompt, a token each
    prompt_tokens: int = 0  # all others
    prompt_pairs: float = 0.0  # of one of these and one before it in its row


class Scheduler:
    """Continuous batching that keeps the machine busy: a waiting request joins as soon as there is room.

    Every decoding row gets its token in each step, and prompts share the budget. Of one tenant's prompts, that which is
    soonest complete comes first, but each prompt token computed since a request came counts for it like one that it
    lacks no more: whoever comes later than that passes nobody. Tenants take turns, by the tokens that they have had.
    Where memory runs out, the youngest row gives up its own and is computed again later. Of requests with the same
    prompt one computes it, and the others join when it has.
    """

    def __init__(self, max_running: int, prefill_tokens: int, max_gap: float | None = None) -> None:
        assert max_running > 0, f"max_running must be positive, not {max_running}"
        self.max_running = max_running
        self.budget = Budget(prefill_tokens, max_gap)
        self.waiting: deque[OwnRequest] = deque()
        self.running: dict[str, OwnRequest] = {}
        self.preemptions = 0
        self._shares = Shares()
        self._computed = 0  # prompt tokens, ever

    @property
    def idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self.waiting and not self.running

    def add(self, request: OwnRequest) -> None:
        """Put a request at the end of the queue."""
        request.turn = self._computed
        self.waiting.append(request)
        if request.source is not None:
            request.source.followers.append(request)

    def schedule(self, rows: RowAllocator) -> StepPlan:
        """The next step: a token of each decoding row, and of prompts what the budget allows."""
        plan = StepPlan()
        before = self.preemptions
        for request in [each for each in self.running.values() if each.decodes]:
            if request.id in self.running:  # or it has made room for one before it
                self._run(request, 1, plan, rows)
        left = self.budget.allow(plan.decoding)
        admitting = True
        for request in self._prompts():
            if not left.fits(request.position):
                break
            if request.row is None:
                admitting = (
                    admitting
                    and self.preemptions == before
                    and len(self.running) < self.max_running
                    and self._admit(request, plan, rows)
                )
            if request.id in self.running and not self._chunk(request, left, plan, rows):
                break
        self._computed += plan.prompt_tokens
        return plan

    def _prompts(self) -> list[OwnRequest]:
        """Requests that lack some of their prompt, in the order in which they get it."""
        prompts = [each for each in self.running.values() if not each.decodes]
        tenants = {each.ask.tenant for each in (*prompts, *self.waiting)}
        if len(self.running) < self.max_running:
            prompts += [each for each in self.waiting if not each.waits]
        prompts.sort(key=lambda each: each.turn + each.lacking)
        # Who has begun to answer has a reader in the middle of it.
        return sorted(self._shares.ordered(prompts, tenants), key=lambda each: not each.output_ids)

    def _admit(self, request: OwnRequest, plan: StepPlan, rows: RowAllocator) -> bool:
        """Let a waiting request run, or refuse it; False if there is no room for it now."""
        alone = not self.running
        try:
            rows.open(request, alone=alone)
        except NoRoom as error:
            if not alone:
                return False
            self._refuse(request, error, plan)
            return True
        except Exception as error:  # noqa: BLE001  whatever it is, it is this request's own
            self._refuse(request, error, plan)
            return True
        # For all of its prompt, or those that pass it before that is complete take the room for the rest.
        if not rows.reserve(request, request.pending) and not alone:
            rows.release(request)
            return False
        self.waiting.remove(request)
        self.running[request.id] = request
        if request.source is not None and request in request.source.followers:
            request.source.followers.remove(request)
        return True

    def _chunk(self, request: OwnRequest, left: Allowance, plan: StepPlan, rows: RowAllocator) -> bool:
        """Plan some of a prompt and take that of what is left; False where that is too little to begin."""
        position = request.position
        fits = left.fits(position)
        if not fits:
            return False  # behind what it has of the prefix cache
        count = rows.chunk(request, fits)
        if unseen := rows.unseen(request, count):
            fits = left.fits(position, unseen)
            if plan.prompt_tokens and fits < FLOOR:
                return False
            count = rows.chunk(request, fits)
            unseen = rows.unseen(request, count)
        left.take(self._run(request, count, plan, rows), position, unseen)
        return True

    def _run(self, request: OwnRequest, count: int, plan: StepPlan, rows: RowAllocator) -> int:
        """Plan so many of a request's next tokens; how many of its prompt these are."""
        decodes = request.decodes
        while not rows.reserve(request, count):
            planned = {each.request for each in plan.work}
            youngest = next(each for each in reversed(self.running.values()) if each not in planned)
            self._preempt(youngest, rows)
            if youngest is request:
                return 0
        plan.work.append(Work(request, count))
        self._shares.charge(request, decoding=decodes, tokens=count)
        if decodes:
            plan.decoding += 1
            return 0
        plan.prompt_tokens += count
        plan.prompt_pairs += pairs(count, request.position)
        return count

    def _preempt(self, request: OwnRequest, rows: RowAllocator) -> None:
        rows.release(request)
        del self.running[request.id]
        self.waiting.appendleft(request)
        self.preemptions += 1

    def _refuse(self, request: OwnRequest, error: Exception, plan: StepPlan) -> None:
        self.waiting.remove(request)
        plan.refused.append((request, error))

    def find(self, request_id: str) -> OwnRequest | None:
        """The live request of that id, or `None` if it has ended."""
        return self.running.get(request_id) or next((r for r in self.waiting if r.id == request_id), None)

    def finish(self, request: OwnRequest, *, hand_over: bool = False) -> OwnRequest | None:
        """Forget a request that reached its end, wherever it is.

        Where it may `hand_over` its row and a follower waits for it, that runs in its place: the follower, else None.
        """
        ran = self.running.pop(request.id, None) is not None
        if not ran and request in self.waiting:
            self.waiting.remove(request)
        heir = request.leave()
        if heir is None or not ran or not hand_over:
            return None
        self.waiting.remove(heir)
        self.running[heir.id] = heir
        return heir

    def live(self) -> Sequence[OwnRequest]:
        """Every request that has not ended, running ones first."""
        return [*self.running.values(), *self.waiting]
