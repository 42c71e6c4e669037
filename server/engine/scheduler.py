"""Who runs in the next step, and how many tokens of each. Knows requests and counts, no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from server.engine.budget import Budget
from server.engine.own_request import OwnRequest


class NoRoom(Exception):
    """There is no memory for this now; there may be when other rows have ended."""


class RowAllocator(Protocol):
    """What the scheduler needs of the cache."""

    def open(self, request: OwnRequest, *, alone: bool) -> None:
        """Give a request its row. Raises NoRoom; anything else where it is `alone` and can still not have one."""

    def chunk(self, request: OwnRequest, count: int) -> int:
        """How many tokens, of about `count`, may be computed in one step."""

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


class Scheduler:
    """First come, first served continuous batching: a waiting request joins as soon as there is room.

    Every decoding row gets its token in each step. The budget goes to prompts, in chunks, oldest first.
    Where memory runs out, the youngest row gives up its own and is computed again later. Of requests with the same
    prompt one computes it, and the others join when it has.
    """

    def __init__(self, max_running: int, prefill_tokens: int, slowdown: float | None = None) -> None:
        assert max_running > 0, f"max_running must be positive, not {max_running}"
        self.max_running = max_running
        self.budget = Budget(prefill_tokens, slowdown)
        self.waiting: deque[OwnRequest] = deque()
        self.running: dict[str, OwnRequest] = {}
        self.preemptions = 0

    @property
    def idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self.waiting and not self.running

    def add(self, request: OwnRequest) -> None:
        """Put a request at the end of the queue."""
        self.waiting.append(request)
        if request.source is not None:
            request.source.followers.append(request)

    def schedule(self, rows: RowAllocator) -> StepPlan:
        """The next step: a token of each decoding row, and of prompts what the budget allows."""
        plan = StepPlan()
        before = self.preemptions
        left = self.budget.tokens(sum(request.decodes for request in self.running.values()))
        for request in [*self.running.values()]:
            if request.id in self.running:  # or it has made room for one before it
                left -= self._run(request, left, plan, rows)
        for request in (each for each in [*self.waiting] if not each.waits):
            if len(self.running) >= self.max_running or left <= 0 or self.preemptions != before:
                break
            try:
                rows.open(request, alone=not self.running)
            except NoRoom as error:
                if self.running:
                    break
                self._refuse(request, error, plan)
                continue
            except Exception as error:  # noqa: BLE001  whatever it is, it is this request's own
                self._refuse(request, error, plan)
                continue
            self.waiting.remove(request)
            self.running[request.id] = request
            if request.source is not None and request in request.source.followers:
                request.source.followers.remove(request)
            left -= self._run(request, left, plan, rows)
        return plan

    def _run(self, request: OwnRequest, left: int, plan: StepPlan, rows: RowAllocator) -> int:
        """Plan a request's next tokens; how many of the budget that takes."""
        decodes = request.decodes
        count = 1 if decodes else rows.chunk(request, left) if left > 0 else 0
        if count == 0:
            return 0
        while not rows.reserve(request, count):
            youngest = next(reversed(self.running.values()))
            self._preempt(youngest, rows)
            if youngest is request:
                return 0
        plan.work.append(Work(request, count))
        if decodes:
            plan.decoding += 1
            return 0
        plan.prompt_tokens += count
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
