"""JSON schemas are compiled where it can be ended, before anything else of their request is done.

Nobody but schemas waits for schemas: they have threads and a process of their own. Most take a few milliseconds; what
takes longer is begun again in a second lane, where it holds up only its like.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Collection, Hashable
from dataclasses import dataclass
from functools import partial

from cachetools import LRUCache

from models.schema import SchemaError
from server.errors import TooManyRequests, Unavailable
from server.request import QUICK_SECONDS, Schema
from server.settings.units import MEBI
from server.workers import compiler
from server.workers.compiler import Kind, Verdict, Wanted, described, question, read_verdict
from server.workers.lanes import Lane
from server.workers.process import SharedWorker, Worker, WorkerLost

logger = logging.getLogger(__name__)

REMEMBERED_BYTES = 16 * MEBI  # of verdicts, each with what its schema is compiled from
LEAST_BYTES = 512  # that one counts for
MAX_DEAR = 8  # schemas of one client that wait for the second lane
GRACE_SECONDS = 40.0  # on a busy machine, beside the CPU time
START_SECONDS = 60.0  # to read a vocabulary


@dataclass(frozen=True)
class VocabularySource:
    """What a vocabulary is read from: the tokenizer's JSON, its size with what pads it, the ids that end a text."""

    tokenizer: str
    size: int
    eos_ids: Collection[int]


class SchemaCompiler:
    """Tells whether schemas can be compiled within limits. For the event loop's thread.

    `seconds` of CPU and `memory_bytes` for one schema. Verdicts are remembered; what many ask for is compiled once.
    `longest`: characters of strings that nothing bounds, in schemas that are made narrower; None: they are not.
    """

    def __init__(
        self, source: VocabularySource, *, seconds: float, memory_bytes: int, longest: int | None = None
    ) -> None:
        self._seconds = seconds
        self._longest = longest
        self._memory_bytes = memory_bytes
        self._verdicts: LRUCache[bytes, Verdict] = LRUCache(
            REMEMBERED_BYTES, getsizeof=lambda verdict: LEAST_BYTES + len(verdict.text)
        )
        self._asked: dict[bytes, asyncio.Task[Verdict]] = {}
        self._process = SharedWorker(partial(_started, source, memory_bytes))
        self.lanes = [Lane(1, "schemas"), Lane(1, "dear-schemas")]

    def start(self) -> None:
        """Start the process beside all else, so that nobody waits for that later."""
        self.lanes[0].submit(self._process.start)

    async def check(self, wanted: Wanted, client: Hashable = None) -> Schema:
        """A JSON schema or the grammar of calls, which was compiled within the limits, now or before.

        Clients take turns. Raises SchemaError; TooManyRequests where too many dear ones of this client wait;
        Unavailable where the process ends.
        """
        text = described(wanted, self._longest)
        key = hashlib.sha256(text.encode()).digest()
        verdict = self._verdicts.get(key) or await self._asked_once(key, text, client)
        match verdict.kind:
            case Kind.REFUSED:
                raise SchemaError(verdict.text)
            case Kind.TOO_SLOW:
                raise SchemaError(
                    f"to compile it takes more than {self._seconds:g} s of computing (schema_seconds); make it simpler"
                )
            case Kind.TOO_LARGE:
                raise SchemaError(
                    f"to compile it takes more than {self._memory_bytes >> 20} MiB (schema_mib); make it simpler"
                )
        return Schema(verdict.text, verdict.seconds, verdict.memory_bytes)

    async def _asked_once(self, key: bytes, text: str, client: Hashable) -> Verdict:
        if (task := self._asked.get(key)) is None:
            task = self._asked[key] = asyncio.create_task(self._judge(key, text.encode(), client))
            task.add_done_callback(partial(self._answered, key))
        return await asyncio.shield(task)  # others may wait for the same, and it will be asked again

    def _answered(self, key: bytes, task: asyncio.Task[Verdict]) -> None:
        self._asked.pop(key, None)
        if not task.cancelled():
            task.exception()  # those who have waited have it; they may all have gone

    async def _judge(self, key: bytes, schema: bytes, client: Hashable) -> Verdict:
        verdict = await self._compile(0, min(QUICK_SECONDS, self._seconds), schema, client)
        if verdict.kind is Kind.TOO_SLOW and self._seconds > QUICK_SECONDS:
            if self.lanes[1].waiting(client) >= MAX_DEAR:
                raise TooManyRequests(
                    f"{MAX_DEAR} schemas of this key that take long to compile are waiting, and this is another.",
                    retry_after=max(1, round(MAX_DEAR * self._seconds)),
                )
            verdict = await self._compile(1, self._seconds, schema, client)
        self._verdicts[key] = verdict
        return verdict

    async def _compile(self, lane: int, seconds: float, schema: bytes, client: Hashable) -> Verdict:
        ask = partial(self._process.ask, [question(schema, seconds)], seconds + GRACE_SECONDS)
        try:
            return read_verdict(bytes(await self.lanes[lane].run(ask, client)))
        except WorkerLost as lost:
            logger.warning("the process that compiles schemas gave no answer and is ended: %s", lost)
            raise Unavailable("The schema could not be compiled in time; try again.", code="schema_compiler") from lost

    def close(self) -> None:
        """End the process, and the threads with what they do."""
        for task in self._asked.values():
            task.cancel()
        self._process.kill()
        for lane in self.lanes:
            lane.close()


def _started(source: VocabularySource, memory_bytes: int) -> Worker:
    worker = Worker(compiler.__name__, memory_bytes)
    vocabulary = json.dumps([source.tokenizer, source.size, sorted(source.eos_ids)]).encode()
    if refusal := bytes(worker.ask([vocabulary], START_SECONDS)):
        worker.end()
        raise SchemaError(refusal.decode())
    return worker
