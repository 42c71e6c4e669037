"""Answers of any OpenAI-compatible server, streamed and timed, a bounded number at once."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openai import APIStatusError, AsyncOpenAI, OpenAIError
from rich.progress import Progress

from steering.errors import RunError
from steering.evaluation.clients import open_client
from steering.evaluation.judge_model import image_parts
from steering.evaluation.store import Output, Store
from steering.evaluation.suite import Asked

# A server that is gone answers nothing more; its rows are not worth hours of waiting.
FAILURES_IN_A_ROW = 20
OURS = "autosteer"  # what this project's server gives as a model's owner

# What a server of this project is asked for, request by request (docs/api.md, "guard").
MODES: Mapping[str, Mapping[str, Any]] = {
    "original": {"mode": "off"},
    "steer-always": {"mode": "steer", "threshold": 0.0, "output": {"mode": "off"}},
    "autosteer": {"mode": "steer"},
    "block": {"mode": "block"},
}


@dataclass(frozen=True)
class Remote:
    """A server under a name of its own in the table. `mode` changes the guard by request, on this project's servers."""

    name: str
    url: str  # up to and with /v1
    model: str | None = None  # None: the first that it lists
    mode: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 16
    seconds: float = 300.0
    retries: int = 3

    @property
    def variant(self) -> str:
        """Name of its answers in a store."""
        return f"url:{self.name}"

    def client(self) -> AsyncOpenAI:
        """A client of the server. Raises RunError."""
        return open_client(self.url, self.api_key_env, self.seconds, self.retries)


@dataclass(frozen=True)
class Found:
    """What a server says of itself."""

    model: str
    ours: bool  # it understands `moderation` and `guard`


def look(remote: Remote) -> Found:
    """Ask a server which model it has. Raises RunError where it cannot be used."""
    return asyncio.run(_look(remote))


async def _look(remote: Remote) -> Found:
    async with remote.client() as client:
        try:
            models = (await client.with_options(max_retries=1).models.list()).data
        except OpenAIError as error:
            raise RunError(f"--url {remote.name}={remote.url}: {' '.join(str(error).split())}") from error
    chosen = next((each for each in models if remote.model in (None, each.id)), None)
    if chosen is None:
        names = ", ".join(each.id for each in models) or "none"
        raise RunError(f"--url {remote.name}={remote.url}: no model {remote.model!r}; it has {names}")
    found = Found(chosen.id, chosen.owned_by == OURS)
    if remote.mode is not None and not found.ours:
        raise RunError(f"--url {remote.name}: mode {remote.mode} is only for servers of this project")
    return found


def answer_all(remote: Remote, asked: Sequence[Asked], store: Store, progress: Progress) -> dict[str, Output]:
    """The answers of all rows; those that the store lacks, or that failed, are asked for. Raises RunError."""
    found = look(remote)
    known = {key: output for key, output in store.outputs(remote.variant).items() if output.error is None}
    missing = [each for each in asked if each.key not in known]
    task = progress.add_task(f"answers, {remote.name}", total=len(asked), completed=len(asked) - len(missing))

    def keep(key: str, output: Output) -> None:
        store.put(remote.variant, {key: output})
        known[key] = output
        progress.advance(task)

    if missing:
        asyncio.run(_Asking(remote, found, keep).all(missing))
    return {each.key: known[each.key] for each in asked}


class _Asking:
    """One round of requests."""

    def __init__(self, remote: Remote, found: Found, keep: Any) -> None:  # noqa: ANN401  a callable
        self._remote = remote
        self._keep = keep
        self._places = asyncio.Semaphore(remote.concurrency)
        self._failures = 0
        self._options: dict[str, Any] = {"model": found.model, "temperature": 0, "stream": True}
        self._options["stream_options"] = {"include_usage": True}
        extra: dict[str, Any] = {"moderation": {"model": found.model}} if found.ours else {}
        if remote.mode is not None:
            extra["guard"] = MODES[remote.mode]
        self._options["extra_body"] = extra or None

    async def all(self, asked: Sequence[Asked]) -> None:
        """Ask them all. Raises RunError when the server seems gone."""
        try:
            async with self._remote.client() as client, asyncio.TaskGroup() as tasks:
                for each in asked:
                    tasks.create_task(self._one(client, each))
        except* RunError as group:
            raise group.exceptions[0] from None

    async def _one(self, client: AsyncOpenAI, each: Asked) -> None:
        async with self._places:
            started = time.time()
            try:
                output = await self._ask(client, each, started)
                self._failures = 0
            except APIStatusError as error:
                self._failures = 0
                output = Output("", started=started, error=f"{error.status_code}: {error.message}"[:300])
            except Exception as error:  # noqa: BLE001  a server may answer anything, also what the client cannot read
                self._failures += 1
                output = Output("", started=started, error=f"{type(error).__name__}: {error}"[:300])
            self._keep(each.key, output)
            if self._failures >= FAILURES_IN_A_ROW:
                where = f"{self._remote.name}={self._remote.url}"
                raise RunError(f"--url {where}: {self._failures} requests in a row failed, the last: {output.error}")

    async def _ask(self, client: AsyncOpenAI, each: Asked, started: float) -> Output:
        begun = time.perf_counter()
        messages: Any = _encoded(each.row.question.messages(image_parts(each.row.question)))
        stream: Any = await client.chat.completions.create(
            messages=messages, max_tokens=each.max_tokens, **self._options
        )
        texts: list[str] = []
        finish, refused, tokens, score, detected, first = "", False, 0, None, None, None
        async for chunk in stream:
            if (result := _moderation(chunk)) is not None:
                score, detected = result
            for choice in chunk.choices:
                if choice.delta.content:
                    first = first or time.perf_counter() - begun
                    texts.append(choice.delta.content)
                refused = refused or bool(choice.delta.refusal)
                finish = choice.finish_reason or finish
            tokens = chunk.usage.completion_tokens if chunk.usage else tokens
        if not finish:
            return Output("", started=started, error="the stream ended without a finish_reason")
        flagged = refused or finish == "content_filter"
        took = time.perf_counter() - begun
        return Output("".join(texts), tokens, finish, score, flagged, detected, started, first, took)


def _encoded(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A chat as the API has it: the arguments of calls are JSON in a string."""
    sent = copy.deepcopy([*messages])
    for call in (call for message in sent for call in message.get("tool_calls", ())):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return sent


def _moderation(chunk: Any) -> tuple[float, bool] | None:  # noqa: ANN401  a chunk with a field of our own
    """Score and verdict, where a chunk carries the moderation of the input."""
    told = getattr(chunk, "moderation", None)
    if told is None:
        return None
    told = told if isinstance(told, dict) else told.model_dump()
    results = (told.get("input") or {}).get("results")
    if not results:
        return None
    return max(results[0]["category_scores"].values()), bool(results[0]["flagged"])
