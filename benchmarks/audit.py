"""What an audit record costs: time on the event loop, and records per second into each embedded sink."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from time import perf_counter

from rich.console import Console
from rich.table import Table

from models.prompt import Prompt
from models.row_sampler import SamplingParams
from server.access.keys import Clients
from server.answer.choices import Choices
from server.answer.pipeline import Pipeline
from server.answer.text_decoder import TextDecoder
from server.engine.wire import Parcel
from server.record.audit.log import AuditLog
from server.record.audit.sinks import make_sink
from server.record.call import Call
from server.record.describe import record_of
from server.request import Ask, Finish, Request
from server.settings.groups import AuditSettings
from server.settings.schema import Settings
from server.watch.metrics import Metrics
from steering.policy import Decision, Mode, Policy, Verdict
from tests.server.scripted import byte_tokenizer

RECORDS = 20_000


def ended_call() -> Call:
    """A call as it is when its answer has been sent."""
    prompt = Prompt(list(range(200)), {}, 50)
    policy = Policy("default", Mode.STEER, 0.5, 1.0, "No.")
    request = Request(Ask("chatcmpl-0.0", prompt, SamplingParams.GREEDY, 64, policy))
    request.decision = Decision(Verdict.PASS, 0.25, 0.0)
    decoder = TextDecoder(byte_tokenizer())
    choices = Choices(Parcel([request]), None, lambda _: Pipeline(decoder), Metrics())  # type: ignore[arg-type]
    choices.generations[0].close(Finish.STOP)
    call = Call("req-" + "0" * 32, route="POST /v1/chat/completions", status=200, choices=choices, policy=policy)
    call.client = Clients(Settings()).authenticate([])
    call.content_hash = "0" * 64
    return call


async def measure(url: str) -> tuple[float, float]:
    """Microseconds of the event loop per record, and records per second until the last is on the disk."""
    settings = AuditSettings.model_validate({"url": url, "queue": RECORDS, "flush_seconds": 120})
    log = AuditLog(make_sink(settings), settings, Metrics())
    call = ended_call()
    log.start()
    begun = perf_counter()
    for _ in range(RECORDS):
        log.begin()
        log.end(record_of(call, judge=None, content=False))
    queued = perf_counter() - begun
    await log.stop()
    return queued / RECORDS * 1e6, RECORDS / (perf_counter() - begun)


def main() -> None:
    """Print a table."""
    table = Table("sink", "on the event loop, µs per record", "records per second, written")
    with tempfile.TemporaryDirectory() as folder:
        for name, url in (
            ("JSON lines", f"file://{Path(folder) / 'audit.jsonl'}"),
            ("SQLite", f"sqlite:///{Path(folder) / 'audit.db'}"),
        ):
            microseconds, rate = asyncio.run(measure(url))
            table.add_row(name, f"{microseconds:.0f}", f"{rate:,.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
