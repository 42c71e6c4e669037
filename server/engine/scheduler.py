"""Who runs in the next step, and how many tokens of each. Knows requests and counts, no torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from server.engine.budget import Budget
from server.request import Request


class NoRoom(Exception):
    """There is no memory for this now; there may be when other rows have ended."""


class Memory(Protocol):
    """What the scheduler needs of the cache."""

    def open(self, request: Request) -> None:
        """Give a request its row. Raises NoRoom, and anything else where it can never have one."""

    def chunk(self, request: Request, count: int) -> int:
        """How many tokens, of about `count`, may be computed in one step."""

    def reserve(self, request: Request, count: int) -> bool:
        """Make sure of room for a request's next tokens; False if there is none."""

    def release(self, request: Request) -> None:
        """Take a request's row back; what was in it is computed again when it is opened anew."""


class Work(NamedTuple):
    """A request's part in a step: so many of its tokens that are not computed yet."""

    request: Request
    tokens: int


@dataclass
class Plan:
    """One step's work, the rows that ran before first, and the requests that can never run."""

    work: list[Work] = field(default_factory=list)
    refused: list[tuple[Request, Exception]] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Tokens beyond the one of each row that streams."""
        return sum(count for _, count in self.work if count > 1)


class Scheduler:
    """First come, first served continuous batching: a waiting request joins as soon as there is room.

    Every running row that streams gets its token in each step. The budget goes to prompts, in chunks, oldest first.
    Where memory runs out, the youngest row gives up its own and is computed again later.
    """

    def __init__(self, max_running: int, prefill_tokens: int, slowdown: float | None = None) -> None:
        assert max_running > 0, f"max_running must be positive, not {max_running}"
        self.max_running = max_running
        self.budget = Budget(prefill_tokens, slowdown)
        self.waiting: deque[Request] = deque()
        self.running: dict[str, Request] = {}
        self.preemptions = 0

    @property
    def idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self.waiting and not self.running

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue."""
        self.waiting.append(request)

    def schedule(self, memory: Memory) -> Plan:
        """The next step: a token of each row that streams, and of prompts what the budget allows."""
        plan = Plan()
        before = self.preemptions
        left = self.budget.tokens(sum(request.pending == 1 for request in self.running.values()))
        for request in [*self.running.values()]:
            if request.id in self.running:  # or it has made room for one before it
                left -= self._run(request, left, plan, memory)
        while self.waiting and len(self.running) < self.max_running and left > 0 and self.preemptions == before:
            request = self.waiting[0]
            try:
                memory.open(request)
            except NoRoom as error:
                if self.running:
                    break
                self._refuse(request, error, plan)
                continue
            except Exception as error:  # noqa: BLE001  whatever it is, it is this request's own
                self._refuse(request, error, plan)
                continue
            self.running[self.waiting.popleft().id] = request
            left -= self._run(request, left, plan, memory)
        return plan

    def _run(self, request: Request, left: int, plan: Plan, memory: Memory) -> int:
        """Plan a request's next tokens; how many of the budget that takes."""
        streams = request.pending == 1
        count = 1 if streams else memory.chunk(request, left) if left > 0 else 0
        if count == 0:
            return 0
        while not memory.reserve(request, count):
            youngest = next(reversed(self.running.values()))
            self._preempt(youngest, memory)
            if youngest is request:
                return 0
        plan.work.append(Work(request, count))
        return 0 if streams else count

    def _preempt(self, request: Request, memory: Memory) -> None:
        memory.release(request)
        del self.running[request.id]
        self.waiting.appendleft(request)
        self.preemptions += 1

    def _refuse(self, request: Request, error: Exception, plan: Plan) -> None:
        self.waiting.popleft()
        plan.refused.append((request, error))

    def find(self, request_id: str) -> Request | None:
        """The live request of that id, or `None` if it has ended."""
        return self.running.get(request_id) or next((r for r in self.waiting if r.id == request_id), None)

    def finish(self, request: Request) -> None:
        """Forget a request that reached its end, wherever it is."""
        if self.running.pop(request.id, None) is None and request in self.waiting:
            self.waiting.remove(request)

    def live(self) -> Sequence[Request]:
        """Every request that has not ended, running ones first."""
        return [*self.running.values(), *self.waiting]
