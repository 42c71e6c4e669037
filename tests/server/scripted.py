"""An engine that says what a test wants, behind the real application: HTTP without a model."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI
from PIL import Image
from starlette.types import Message
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from models.errors import PromptError
from models.grammar import plain_json
from models.inputs import ImageSpan
from models.layout import Layout
from models.pixels import ImageFile
from models.processed import PromptImages
from models.progress import Stage
from models.prompt import Prompt
from models.sampling import Logprobs
from models.tool_turns import Reads
from server.app import create_app
from server.engine.host import Inputs
from server.engine.live import Deliver, NotReady, QueueFull
from server.engine.protocol import Facts, Load
from server.engine.wire import Parcel
from server.request import Ask, EngineError, Event, Finish, Request
from server.settings.schema import Settings
from steering.policy import UNWATCHED, AnswerDecision, CategoryScore, Decision, Mode, OutputPolicy, Policy, Verdict
from steering.token_scores import TokenScores
from tests.exposition import metric_of
from tests.layouts import layout_of
from tests.server.fakes import as_any

MODEL = "scripted"
REFUSAL = "I can't help with that."
CONTEXT = 4096
IMAGE_TOKENS = 7
EOS = 256
THRESHOLDS = {0.01: 0.6, 0.05: 0.4}
SECRET_SPECIAL = 257


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    rest = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + number) for number, byte in enumerate(rest)}


def byte_tokenizer(other: Mapping[int, str] | None = None) -> Any:
    """One token per byte, id = byte value, as byte-level BPE without merges; then two special tokens.

    `other`: bytes whose token has another text, in the printable characters.
    """
    vocabulary = {character: byte for byte, character in (byte_characters() | dict(other or {})).items()}
    tokenizer = Tokenizer(tokenizer_models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("<image>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def tokenizer_json() -> str:
    return plain_json(byte_tokenizer())


@dataclass
class Script:
    """What the engine does with a request."""

    tokens: Sequence[int] = ()
    finish: Finish | None = Finish.STOP  # None: it never ends by itself
    verdict: Verdict = Verdict.PASS
    score: float | None = 0.25
    categories: Sequence[CategoryScore] = ()
    error: EngineError | None = None
    pause: float = 0.0
    answer: AnswerDecision | None = None  # what is decided on the answer after its tokens
    after: Sequence[int] = ()  # tokens that follow on that

    @classmethod
    def saying(cls, text: str, **options: Any) -> Script:
        return cls(tokens=list(text.encode()), **options)


def logprobs_of(request: Request, token: int) -> Logprobs | None:
    """What the engine reports of a token where its request asks for it."""
    count = request.ask.params.logprobs
    if count is None:
        return None
    return logprobs_of_token(token, count)


def logprobs_of_token(token: int, count: int) -> Logprobs:
    return Logprobs(-token / 256, [(other % 256, -(other % 256) / 256) for other in range(token, token + count)])


class ScriptedInputs:
    """Prompt ids are the bytes of all texts. A cleared `gate` holds the worker thread, which sets `entered` before."""

    fault: Exception | None = None
    messages: Sequence[Mapping[str, Any]] = ()
    images: Sequence[Image.Image] = ()

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    sees = True

    def layout(self, ids: Sequence[int]) -> Layout:
        """One turn."""
        return layout_of(len(ids))

    def image_spans(self, ids: Sequence[int]) -> list[ImageSpan]:
        """One image at the end, if any."""
        images = list(ids).count(SECRET_SPECIAL)
        return [ImageSpan(len(ids) - images, len(ids), 2)] if images else []

    details = frozenset({"auto", "low", "high"})
    reads = Reads(tools=True, turns=True)
    tools: Sequence[Mapping[str, Any]] = ()
    asked: Sequence[str] = ()  # the details of the last request's images

    def build(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[ImageFile],
        details: Sequence[str] = (),
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Prompt:
        given = PromptImages(images, [None] * len(images), {})
        given.sizes()
        self.messages, self.images, self.asked, self.tools = messages, given.decoded(), details, tools
        self.entered.set()
        self.gate.wait()
        if self.fault is not None:
            raise self.fault
        if messages[0]["role"] == "assistant":
            raise PromptError("the first message must not be the assistant's")
        text = "".join(part.get("text", "") for message in messages for part in message["content"])
        return Prompt(list(text.encode()) + [257] * IMAGE_TOKENS * len(images), {}, IMAGE_TOKENS * len(images))

    def build_text(self, text: str) -> Prompt:
        return self.build_ids(list(text.encode()))

    def build_ids(self, ids: Sequence[int]) -> Prompt:
        if not ids:
            raise PromptError("the prompt has no tokens")
        return Prompt(list(ids), {}, 0)


class ScriptedGuard:
    id = "5c7197ed9a2d"
    date = "2026-01-02"
    recall = 1.0
    layer = 3
    eps = 1.0
    answer_calibration_scores: Sequence[float] = ()
    calibration_scores: Sequence[float] = ()  # where an engine has this guard

    @property
    def manifest(self) -> ScriptedGuard:
        return self

    def policy(self, name: str = "default", mode: Mode = Mode.STEER, **options: Any) -> Policy:
        threshold = 0.5 if options["threshold"] is None else options["threshold"]
        if options["target_fpr"] is not None:
            threshold = self.threshold_for(options["target_fpr"])
        return Policy(
            name, mode, threshold, options["eps"] or self.eps, options["refusal"] or REFUSAL, options["expose_scores"]
        )

    watches = False
    category_names: Sequence[str] = ()

    def output(self, mode: Mode, **options: Any) -> OutputPolicy:
        if mode is Mode.OFF:
            return UNWATCHED
        if not self.watches:
            raise ValueError("this bundle has no reader of answers")
        threshold, hold = options.get("threshold"), options.get("hold")
        if options.get("target_fpr") is not None:
            threshold = self.threshold_for(options["target_fpr"])
        if hold is None:
            hold = 0 if mode is Mode.MONITOR else 16
        return OutputPolicy(mode, 0.5 if threshold is None else threshold, hold, options.get("certain"))

    def threshold_for(self, target_fpr: float) -> float:
        if target_fpr not in THRESHOLDS:
            raise ValueError(f"target_fpr {target_fpr} is not calibrated in this bundle; it has 0.01, 0.05")
        return THRESHOLDS[target_fpr]


def backbone_info(**more: Any) -> SimpleNamespace:
    """What the HTTP half reads of a `BackboneInfo`."""
    facts = {
        "name": "test/scripted", "revision": None, "architecture": "Scripted", "vocab_size": 258,
        "context_length": CONTEXT, "dtype": "torch.float32", "device": "cpu", "num_layers": 4,
        "eos_ids": frozenset({EOS}),
    }  # fmt: skip
    return SimpleNamespace(**{**facts, **more})


@dataclass(eq=False)
class ScriptedRunner:
    """Stands in for `EngineClient`: answers every request by a script chosen from the prompt's text."""

    answer: Callable[[str], Script] = lambda text: Script.saying(text)
    guarded: bool = True
    watches: bool = False  # answers as well
    calibration: Sequence[float] = ()
    max_live: int = 1000
    ready: bool = True
    state: str = "ready"
    aborted: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    stopped: bool = False
    retry_after: int = 7
    restarts: int = 0
    load_shares: Mapping[Stage, float] = field(default_factory=lambda: {"download": 1.0, "weights": 1.0})
    gate: asyncio.Event | None = None  # until it is set, nothing is scheduled

    def __post_init__(self) -> None:
        self.inputs = ScriptedInputs()
        self.tokenizer = byte_tokenizer()
        guard = ScriptedGuard() if self.guarded else None
        if guard is not None:
            guard.watches = self.watches
        facts = Facts(as_any(backbone_info()), guard, None if guard is None else guard.layer, self.calibration)
        inputs = Inputs(as_any(self.inputs), self.tokenizer, tokenizer_json())
        self.model: tuple[Facts, Inputs] | None = facts, inputs
        self.load = Load()
        self._tasks: dict[str, tuple[asyncio.Task[None], Deliver]] = {}
        self._arrival = asyncio.Event()

    async def accepted(self, count: int) -> None:
        """Wait until so many requests have come."""
        while len(self.requests) < count:
            self._arrival.clear()
            await self._arrival.wait()

    def start(self) -> None:
        pass

    async def series(self) -> bytes:
        return b""

    async def over(self) -> BaseException:
        await asyncio.Event().wait()
        raise AssertionError

    async def loaded(self) -> Any:
        return self.model

    async def drain(self, seconds: float) -> bool:
        self.ready, self.state = False, "stopping"
        tasks = [task for task, _ in self._tasks.values()]
        return not tasks or not (await asyncio.wait(tasks, timeout=seconds))[1]

    async def stop(self) -> None:
        self.stopped, self.ready = True, False
        for request in list(self.requests):
            self._end(request)
        await asyncio.sleep(0)

    @property
    def live(self) -> int:
        return len(self._tasks)

    def pack(self, asks: Sequence[Ask]) -> Parcel:
        return Parcel([Request(each) for each in asks])

    def submit(self, parcel: Parcel, deliver: Deliver) -> None:
        requests = parcel.requests
        if not self.ready:
            raise NotReady(self.state)
        if self.live + len(requests) > self.max_live:
            raise QueueFull(self.live, self.max_live, 3)
        for request in requests:
            self.requests.append(request)
            self._tasks[request.id] = asyncio.ensure_future(self._play(request, deliver)), deliver
        self._arrival.set()

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        for request in self.requests:
            if request.id == request_id:
                asyncio.get_running_loop().call_soon(self._end, request)

    def _end(self, request: Request) -> None:
        if (running := self._tasks.pop(request.id, None)) is not None:
            running[0].cancel()
            running[1]([Event(request, finish=Finish.ABORT)])

    async def _play(self, request: Request, deliver: Deliver) -> None:
        text = bytes(i for i in request.prompt.ids if i < 256).decode(errors="replace")
        script = self.answer(text)
        await (self.gate.wait() if self.gate else asyncio.sleep(0))
        request.timings.scheduled = request.timings.arrived
        eps = 1.0 if script.verdict is Verdict.STEERED else 0.0
        request.decision = Decision(script.verdict, script.score, eps, script.categories)
        if request.ask.scores and request.policy.mode is not Mode.OFF:
            last = len(request.prompt.ids) - 1
            request.token_scores = TokenScores([0.125] * last + [script.score or 0.0], [last], [(last, last + 1)])
        if (count := request.ask.prompt_logprobs) is not None and script.verdict is not Verdict.BLOCKED:
            request.prompt_logprobs = [logprobs_of_token(token, count) for token in request.prompt.ids[1:]]
        if request.max_tokens == 0:
            script = replace(script, tokens=())
        for token in list(script.tokens)[: request.max_tokens]:
            deliver([Event(request, token=token, logprobs=logprobs_of(request, token))])
            await asyncio.sleep(script.pause)
        request.answer = script.answer
        if script.answer is not None and script.answer.verdict is Verdict.STEERED:
            deliver([Event(request)])
        for token in script.after:
            deliver([Event(request, token=token, logprobs=logprobs_of(request, token))])
            await asyncio.sleep(script.pause)
        if script.finish is None:
            await asyncio.Event().wait()
        finish = Finish.LENGTH if len(script.tokens) > request.max_tokens else script.finish
        del self._tasks[request.id]
        deliver([Event(request, finish=finish, error=script.error)])


def application(runner: object, **options: Any) -> FastAPI:
    """The real application over a runner; `options` are its settings."""
    return create_app(Settings(**options), as_any(runner), name=MODEL)


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that has started, in this process; it ends with the client."""
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test", timeout=None) as client,
    ):
        yield client


@asynccontextmanager
async def serving(runner: object, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application over `runner`."""
    async with client_of(application(runner, **options)) as client:
        yield client


async def chat(client: httpx.AsyncClient, text: str = "hello", *urls: str, **options: Any) -> httpx.Response:
    """Post one user message."""
    return await client.post("/v1/chat/completions", json=body(text, *urls, **options))


class Connection:
    """One request by hand, for what httpx's transport cannot do: leave early, or stop reading.

    It sends `data` (`None`: nothing ever comes) and takes `reads` messages (`None`: all).
    """

    def __init__(
        self, app: FastAPI, data: bytes | None, *, reads: int | None = None, path: str = "/v1/chat/completions"
    ) -> None:
        self.sent: list[Message] = []
        self._requests = [] if data is None else [{"type": "http.request", "body": data, "more_body": False}]
        self._reads = reads
        self.reading = asyncio.Event()  # the application waits for more of it
        self._gone = asyncio.Event()
        self._news = asyncio.Event()
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "scheme": "http", "root_path": "",
            "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"content-type", b"application/json")], "client": ("127.0.0.1", 1), "server": ("test", 80),
        }  # fmt: skip
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._requests:
            return self._requests.pop()
        self.reading.set()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._reads is not None and len(self.sent) >= self._reads:
            await asyncio.Event().wait()
        self.sent.append(message)
        self._news.set()

    @property
    def text(self) -> str:
        """The answer's body so far."""
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    async def has_sent(self, count: int) -> None:
        """Wait until so many messages have come."""
        while len(self.sent) < count:
            self._news.clear()
            await self._news.wait()

    async def has_said(self, condition: Callable[[str], object]) -> None:
        """Wait until this is true of its body so far; messages may hold several events, or a comment."""
        while not condition(self.text):
            assert not self.task.done(), f"it has ended with {self.sent[:1]}, {self.text!r}"
            self._news.clear()
            news = asyncio.ensure_future(self._news.wait())
            await asyncio.wait({news, self.task}, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()

    async def leave(self) -> None:
        """Disconnect, and wait for the application to be done with it."""
        self._gone.set()
        await self.task


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of an answer that must be one, of OpenAI's shape and of bounded length."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert 0 < len(error["message"]) < 600
    return error


def events_of(text: str) -> list[dict[str, Any]]:
    """The objects of a stream that ends with `[DONE]`."""
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


def content_of(events: Sequence[Mapping[str, Any]], field: str = "content") -> str:
    """What the deltas of a stream add up to."""
    return "".join(choice["delta"].get(field) or "" for event in events for choice in event["choices"])


async def metric(client: httpx.AsyncClient, name: str, **labels: str) -> float:
    """The sum of a metric's samples whose labels include `labels`."""
    return metric_of((await client.get("/metrics")).text, name, **labels)


def png(width: int = 8, height: int = 8, colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def body(text: str = "hello", *urls: str, **options: Any) -> dict[str, Any]:
    """A chat request of one user message."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}],
        **options,
    }
