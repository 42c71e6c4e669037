"""Who runs in the next step. Knows requests and token counts, no torch, so it is tested without a model."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.request import Request


@dataclass
class Plan:
    """One step's work: rows whose prompt is computed now, and rows that decode one token."""

    prefill: list[Request] = field(default_factory=list)
    decode: list[Request] = field(default_factory=list)


class Scheduler:
    """First come, first served continuous batching: a waiting request joins as soon as a row is free.

    `max_running`: rows in the batch. `prefill_tokens`: prompt tokens computed in one step, so that a burst of long
    prompts does not stall the rows that are streaming; one prompt is always let in, however long.
    """

    def __init__(self, max_running: int, prefill_tokens: int) -> None:
        assert max_running > 0, f"max_running must be positive, not {max_running}"
        assert prefill_tokens > 0, f"prefill_tokens must be positive, not {prefill_tokens}"
        self.max_running = max_running
        self.prefill_tokens = prefill_tokens
        self.waiting: deque[Request] = deque()
        self.running: dict[str, Request] = {}

    @property
    def idle(self) -> bool:
        """Whether a step would have nothing to do."""
        return not self.waiting and not self.running

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue."""
        self.waiting.append(request)

    def schedule(self) -> Plan:
        """Admit what fits into free rows and the token budget; everything that already ran decodes."""
        plan = Plan(decode=list(self.running.values()))
        budget = self.prefill_tokens
        while self.waiting and len(self.running) < self.max_running:
            tokens = len(self.waiting[0].prompt.ids)
            if plan.prefill and tokens > budget:
                break
            budget -= tokens
            request = self.waiting.popleft()
            self.running[request.id] = request
            plan.prefill.append(request)
        return plan

    def defer(self, requests: Sequence[Request]) -> None:
        """Take back admissions that found no storage: first in line, in their order, for the next step."""
        for request in requests:
            del self.running[request.id]
        self.waiting.extendleft(reversed(requests))

    def find(self, request_id: str) -> Request | None:
        """The live request of that id, or `None` if it has ended."""
        return self.running.get(request_id) or next((r for r in self.waiting if r.id == request_id), None)

    def finish(self, request: Request) -> None:
        """Forget a request that reached its end, wherever it is."""
        if self.running.pop(request.id, None) is None and request in self.waiting:
            self.waiting.remove(request)

    def live(self) -> list[Request]:
        """Every request that has not ended, running ones first."""
        return [*self.running.values(), *self.waiting]
