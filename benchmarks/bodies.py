"""What hostile JSON bodies cost others: the longest stop of the event loop while one is counted, parsed and validated.

`python -m benchmarks.bodies`; no server and no model: the parsing that every route does, with the default limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from benchmarks.siege.heart import beat
from benchmarks.siege.observer import Stops
from server.api.anthropic import MessagesJob
from server.api.chat import ChatJob
from server.api.completions import CompletionJob
from server.api.responses import ResponsesJob
from server.errors import BadRequest
from server.http.body import JsonLimits, validated
from server.http.garbage import FullCollections
from server.settings.schema import Settings
from server.workers.threads import share_the_lock

SETTLE_SECONDS = 0.02
EMPTY_PART = {"type": "text", "text": ""}

Validate = Callable[[object], Any]


def chat(content: object) -> bytes:
    """A chat of one message."""
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": content}]})


def completion(prompt: object) -> bytes:
    """A legacy completion."""
    return orjson.dumps({"model": "m", "prompt": prompt})


def message(blocks: Sequence[object], turns: int = 1, **fields: object) -> bytes:
    """A message of Anthropic's API, its blocks in so many turns."""
    each = -(-len(blocks) // turns)
    said = [{"role": "user", "content": blocks[at : at + each]} for at in range(0, len(blocks), each)]
    return orjson.dumps({"model": "m", "max_tokens": 1, "messages": said, **fields})


def response(items: Sequence[object]) -> bytes:
    """A response to so many items."""
    return orjson.dumps({"model": "m", "input": [*items, {"role": "user", "content": "a"}]})


def cases() -> dict[str, tuple[bytes, Validate]]:
    """Bodies by what is much of them, each with what a route makes of it."""
    image = "data:image/png;base64," + "A" * 30 * 2**20
    escapes = b"\\u0041" * (5 * 2**20)
    anthropic = partial(MessagesJob.of, headers={})
    hello = {"role": "user", "content": "a"}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [EMPTY_PART]}
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {"a": [[]] * 17}}
    turns = [hello, {"role": "assistant", "content": [use] * 1_000}, {"role": "user", "content": [result]}]
    fields = {f"p{number}": {"type": "string"} for number in range(148)}
    tools = [{"name": f"f{number}", "input_schema": {"properties": fields}} for number in range(128)]
    source = {"type": "base64", "media_type": "image/png", "data": "A" * 30 * 2**20}
    picture = {"type": "image", "source": source}
    call = {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"}
    parts = [{"type": "input_text", "text": ""}] * 1_000
    return {
        "900,000 empty parts": (chat([EMPTY_PART] * 900_000), ChatJob.of),
        "60,000 empty parts": (chat([EMPTY_PART] * 60_000), ChatJob.of),
        "19,000 empty parts": (chat([EMPTY_PART] * 19_000), ChatJob.of),
        "10 million empty lists": (b'{"model":"m","messages":[' + b"[]," * (10 * 2**20) + b"[]]}", ChatJob.of),
        "190,000 token ids": (completion([*range(190_000)]), CompletionJob.of),
        "190,000 texts": (completion([f"text {number}" for number in range(190_000)]), CompletionJob.of),
        "/v1/messages: 19,000 blocks": (message([EMPTY_PART] * 19_000, 20), anthropic),
        "/v1/messages: 9,000 results of tools": (message([result] * 9_000, 10), anthropic),
        "/v1/messages: 1,000 calls of 19,000 lists": (message([EMPTY_PART], messages=[*turns, hello]), anthropic),
        "/v1/messages: 128 tools of 19,000 fields": (message([EMPTY_PART], tools=tools), anthropic),
        "/v1/messages: an image of 30 MiB": (message([picture]), anthropic),
        "/v1/responses: 2,047 calls": (response([call] * 2_047), ResponsesJob.of),
        "/v1/responses: 19,000 parts": (response([{"role": "user", "content": parts}] * 19), ResponsesJob.of),
        "a text of 30 MiB of escapes": (
            b'{"model":"m","messages":[{"role":"user","content":"%b"}]}' % escapes,
            ChatJob.of,
        ),
        "a text of 11 MiB, one emoji": (chat("x" * 11 * 2**20 + "\N{GRINNING FACE}"), ChatJob.of),
        "a text of 30 MiB, one emoji": (chat("x" * 30 * 2**20 + "\N{GRINNING FACE}"), ChatJob.of),
        "30 MiB of spaces": (b" " * 30 * 2**20 + b"{}", ChatJob.of),
        "a text of 30 MiB": (chat("x" * 30 * 2**20), ChatJob.of),
        "an image of 30 MiB": (chat([{"type": "image_url", "image_url": {"url": image}}]), ChatJob.of),
    }


async def stop_while(work: Callable[[], Awaitable[str]]) -> tuple[float, float, float, str]:
    """Seconds that `work` takes, the loop's longest stop meanwhile, what of it this process caused; and the outcome."""
    stops = Stops()
    watching = asyncio.create_task(beat(stops.add))
    await asyncio.sleep(SETTLE_SECONDS)
    begun = perf_counter()
    outcome = await work()
    took = perf_counter() - begun
    await asyncio.sleep(SETTLE_SECONDS)  # a stop is seen when it is over
    watching.cancel()
    return took, max(stops.late), max(stops.own), outcome


async def outcome_of(body: bytes, validate: Validate, threads: ThreadPoolExecutor) -> str:
    """What becomes of a body."""
    settings = Settings()
    try:
        await validated(body, validate, JsonLimits.of(settings), threads)
    except BadRequest as error:
        return f"400: {str(error)[:60]}"
    return "taken"


async def main() -> None:
    """Print a line for each body."""
    table = Table("body", "MB", "seconds in all", "longest stop, ms", "its own, ms", "outcome")
    share_the_lock()
    FullCollections().begin()
    with ThreadPoolExecutor(1) as threads:
        for name, (body, validate) in cases().items():
            took, *stop, outcome = await stop_while(partial(outcome_of, body, validate, threads))
            table.add_row(
                name, f"{len(body) / 1e6:.1f}", f"{took:.3f}", *(f"{each * 1e3:.1f}" for each in stop), outcome
            )
    Console(width=140).print(table)


if __name__ == "__main__":
    asyncio.run(main())
