"""The application over the real engine and its loop, with a fake model: what only both together can show."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson
import pytest
import torch
from fastapi import FastAPI
from torch import Tensor
from torch.nn.functional import one_hot

from models.grammar import JsonGrammar
from models.row_sampler import GrammarError
from server.engine.own import OwnEngine
from server.engine.scheduler import Scheduler
from server.request import Schema
from steering.refusals import REFUSAL_TOKENS
from tests.server.fakes import EOS, REFUSAL_TOKEN, VOCAB, FakeBackbone, FakeGuard, FakeRow, as_any, next_token
from tests.server.guards import token_reader
from tests.server.in_thread import engine_client
from tests.server.scripted import (
    CONTEXT,
    REFUSAL,
    Connection,
    ScriptedGuard,
    ScriptedInputs,
    application,
    backbone_info,
    body,
    byte_tokenizer,
    chat,
    client_of,
    content_of,
    error_of,
    events_of,
    metric,
)
from tests.server.scripted import EOS as TEXT_END
from tests.waiting import WAIT_SECONDS, until

# The fake guard reads its score from the prompt's first byte, in parts of 50.
HARMFUL = chr(40) + "x"
HARMLESS = chr(10) + "x"


def answer_to(text: str, tokens: int) -> str:
    """What the fake model says: its tokens are read as bytes."""
    history = list(text.encode())
    for _ in range(tokens):
        history.append(next_token(history))
    return bytes(history[-tokens:]).decode()


class Backbone(FakeBackbone):
    """The fake model with what the HTTP half reads of one. `before` is called with what it is about to do."""

    def __init__(self) -> None:
        super().__init__()
        self.info = backbone_info(eos_ids=frozenset({EOS}), vocab_size=VOCAB)
        self.inputs = ScriptedInputs()
        self.tokenizer = byte_tokenizer()
        self.before: Callable[[str], object] = lambda what: None

    def forward(self, rows: Sequence[FakeRow], counts: Sequence[int], **options: Any) -> Tensor:
        self.before("decode" if any(row.length for row in rows) else "prefill")
        return super().forward(rows, counts, **options)

    def logits(self, hidden: Tensor) -> Tensor:
        self.before("logits")
        return super().logits(hidden)


class Refusing(Backbone):
    """Says what is a refusal by its words where it is steered."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = byte_tokenizer({REFUSAL_TOKEN: "No."})


class Guard(FakeGuard, ScriptedGuard):
    layer = 1


class Reading(Guard):
    """Reads answers as well: one is flagged from the second token of at least 30 on that stands beside another."""

    answers = token_reader(30.0)
    watches = True


def application_on(
    backbone: Backbone, load: Callable[[], object] = lambda: None, guard: type[Guard] = Guard, **options: Any
) -> FastAPI:
    def make() -> OwnEngine:
        load()
        return OwnEngine(as_any(backbone), as_any(guard()), Scheduler(4, 1000))

    return application(engine_client(make), **options)


@asynccontextmanager
async def loaded(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server whose model has loaded."""
    async with client_of(app) as client:
        await app.state.service.engine.loaded()
        yield client


async def greedy(client: httpx.AsyncClient, text: str, **options: Any) -> httpx.Response:
    return await chat(client, text, temperature=0, **options)


async def test_answers_of_the_engine_arrive_whole_and_streamed() -> None:
    async with loaded(application_on(Backbone())) as client:
        texts = [HARMLESS + "a" * i for i in range(8)]
        answers = await asyncio.gather(
            *(greedy(client, t, max_tokens=9, stream=i % 2 == 1) for i, t in enumerate(texts))
        )
    for i, (text, answer) in enumerate(zip(texts, answers, strict=True)):
        said = content_of(events_of(answer.text)) if i % 2 else answer.json()["choices"][0]["message"]["content"]
        assert said == answer_to(text, 9)


async def test_a_flagged_answer_is_cut_and_refused_and_its_neighbours_are_not() -> None:
    whole = answer_to(HARMLESS, 40)
    flagged = next(n for n in range(2, 40) if min(map(ord, whole[n - 2 : n])) >= 30)
    app = application_on(Backbone(), guard=Reading, output={"mode": "block", "hold": 2}, may_loosen=True)
    async with loaded(app) as client:
        cut, streamed, neighbour = await asyncio.gather(
            greedy(client, HARMLESS, max_tokens=40),
            greedy(client, HARMLESS, max_tokens=40, stream=True),
            greedy(client, HARMLESS, max_tokens=40, guard={"output": {"mode": "off"}}),
        )
    (choice,) = cut.json()["choices"]
    assert choice["finish_reason"] == "content_filter"
    assert choice["message"]["content"] == whole[: flagged - 2] + "\n\n" + REFUSAL
    assert content_of(events_of(streamed.text)) == choice["message"]["content"]
    assert cut.json()["usage"]["completion_tokens"] == flagged - 2
    assert neighbour.json()["choices"][0]["message"]["content"] == whole


async def test_flagged_requests_are_steered_or_blocked_by_the_policys_mode() -> None:
    steered = "No."

    def answer(text: str) -> str:
        return answer_to(text, 5).replace(chr(REFUSAL_TOKEN), steered)

    for mode, said, reason, label in [
        ("steer", steered * 5, "content_filter", "steered"),
        ("block", REFUSAL, "content_filter", "blocked"),
        ("monitor", answer(HARMFUL), "length", "monitored"),
        ("off", answer(HARMFUL), "length", "pass"),
    ]:
        async with loaded(application_on(Refusing(), mode=mode)) as client:
            flagged, neighbour = await asyncio.gather(
                greedy(client, HARMFUL, max_tokens=5), greedy(client, HARMLESS, max_tokens=5)
            )
            choice = flagged.json()["choices"][0]
            assert (choice["message"]["content"], choice["finish_reason"]) == (said, reason)
            assert choice["message"]["refusal"] is None
            assert neighbour.json()["choices"][0]["message"]["content"] == answer(HARMLESS)
            assert await metric(client, "autosteer_guard_decisions_total", decision=label, mode=mode) >= 1


@pytest.mark.parametrize(("tokens", "computed"), [(40, REFUSAL_TOKENS), (5, 5)])
@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_steered_and_does_not_refuse_is_never_shown_though_nothing_reads_answers(
    tokens: int, computed: int, stream: bool
) -> None:
    async with loaded(application_on(Backbone())) as client:
        answer = await greedy(client, HARMFUL, max_tokens=tokens, stream=stream)
        if stream:
            assert content_of(events_of(answer.text)) == REFUSAL
        else:
            (choice,) = answer.json()["choices"]
            assert (choice["message"]["content"], choice["finish_reason"]) == (REFUSAL, "content_filter")
        assert await metric(client, "autosteer_answer_fallbacks_total", reason="not_begun") == 1
        assert await metric(client, "autosteer_answer_dropped_tokens_total") == computed
        assert await metric(client, "autosteer_answer_decisions_total") == 0


async def test_where_answers_are_left_alone_a_steered_one_is_shown_as_it_comes() -> None:
    async with loaded(application_on(Backbone(), output={"mode": "off"})) as client:
        (choice,) = (await greedy(client, HARMFUL, max_tokens=40)).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == (chr(REFUSAL_TOKEN) * 40, "content_filter")
        assert await metric(client, "autosteer_answer_fallbacks_total") == 0


async def test_alive_while_loading_and_ready_after() -> None:
    go = threading.Event()
    app = application_on(Backbone(), load=go.wait)
    async with client_of(app) as client:
        assert (await client.get("/health")).status_code == 200
        assert "loading the model" in error_of(await client.get("/ready"), 503)["message"]
        error_of(await greedy(client, HARMLESS), 503)
        go.set()
        await app.state.service.engine.loaded()
        assert (await client.get("/ready")).status_code == 200
        assert (await greedy(client, HARMLESS, max_tokens=1)).status_code == 200


async def test_a_model_that_does_not_load_is_never_ready_and_says_why() -> None:
    def load() -> None:
        raise OSError("no checkpoint")

    app = application_on(Backbone(), load=load)
    async with client_of(app) as client:
        await asyncio.gather(app.state.service.engine.loaded(), return_exceptions=True)
        assert "failed: no checkpoint" in error_of(await client.get("/ready"), 503)["message"]
        error_of(await greedy(client, HARMLESS), 503)
        assert (await client.get("/health")).status_code == 200


async def test_a_request_whose_forward_raises_fails_alone() -> None:
    backbone = Backbone()
    backbone.poison = ord("z")
    async with loaded(application_on(backbone)) as client:
        good, bad = await asyncio.gather(
            greedy(client, HARMLESS, max_tokens=5), greedy(client, HARMLESS + "z", max_tokens=5)
        )
        assert error_of(bad, 500)["code"] == "generation_failed"
        assert good.json()["choices"][0]["message"]["content"] == answer_to(HARMLESS, 5)
        assert (await client.get("/ready")).status_code == 200
        assert (await greedy(client, HARMLESS, max_tokens=5)).status_code == 200


@pytest.mark.chance
async def test_an_engine_failure_ends_streams_with_an_error_event_and_readiness() -> None:
    backbone = Backbone()
    steps = iter(range(4))

    def fail_at_the_fifth_step(what: str) -> None:
        if what == "logits" and next(steps, None) is None:
            raise RuntimeError("inner state")

    backbone.before = fail_at_the_fifth_step
    async with loaded(application_on(backbone)) as client:
        response = await greedy(client, HARMLESS, stream=True, max_tokens=100)
        *chunks, last = events_of(response.text)
        assert content_of(chunks) == answer_to(HARMLESS, 4)
        assert last["error"]["code"] == "engine_failed"
        assert "inner" not in response.text
        error_of(await client.get("/ready"), 503)
        assert error_of(await greedy(client, HARMLESS), 503)["code"] == "not_ready"
        assert (await client.get("/health")).status_code == 200
        await until(lambda: backbone.rows == [], "the end of the row")  # of the engine's thread


@pytest.mark.chance
async def test_a_reader_who_leaves_frees_the_row_of_the_model() -> None:
    backbone = Backbone()
    left = threading.Event()
    backbone.before = lambda what: what == "decode" and left.wait()  # the engine stands still until it is too late
    app = application_on(backbone)
    async with loaded(app) as client:
        connection = Connection(app, orjson.dumps(body(HARMLESS, stream=True, temperature=0, max_tokens=CONTEXT - 10)))
        await connection.has_said(lambda text: text.count("data: ") == 2)  # its role and a token
        await connection.leave()
        left.set()
        assert await app.state.service.engine.drain(WAIT_SECONDS)
        assert backbone.rows == []
        assert await metric(client, "autosteer_request_success_total", finished_reason="abort") == 1
        assert await metric(client, "autosteer_generation_tokens_total") == 1


# answers that follow a grammar -------------------------------------------------------------------------------------


class Wordy(Refusing):
    """Says what it likes of 256 bytes, by a fixed noise of its history; the scripted tokenizer's ids."""

    def __init__(self) -> None:
        super().__init__()
        self.info = backbone_info(eos_ids=frozenset({TEXT_END}))

    def logits(self, hidden: Tensor) -> Tensor:
        self.before("logits")
        rows = [torch.rand(258, generator=torch.Generator().manual_seed(int(number))) for number in hidden[:, 0]]
        steered = hidden[:, 0] == REFUSAL_TOKEN
        return torch.where(steered[:, None], one_hot(torch.tensor(REFUSAL_TOKEN), 258) * 9.0, torch.stack(rows))


YES_OR_NO = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object",
            "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "y"]}},
            "required": ["a", "b"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}


@pytest.mark.parametrize("stream", [False, True])
async def test_constrained_answers_beside_others_in_the_batch(stream: bool) -> None:
    async with loaded(application_on(Wordy())) as client:
        alone = await greedy(client, HARMLESS, max_tokens=40)
        answers = await asyncio.gather(
            *(
                chat(client, HARMLESS, max_tokens=200, response_format=YES_OR_NO, seed=i, stream=stream)
                for i in range(3)
            ),
            greedy(client, HARMLESS, max_tokens=40),
        )
    *constrained, other = answers
    assert other.json()["choices"] == alone.json()["choices"]
    for answer in constrained:
        text = content_of(events_of(answer.text)) if stream else answer.json()["choices"][0]["message"]["content"]
        found = orjson.loads(text)
        assert isinstance(found["a"], bool)
        assert found["b"] in ("x", "y")


async def test_schemas_are_counted_only_while_their_requests_live() -> None:
    app = application_on(Wordy(), schemas_mib="1")
    async with loaded(app) as client:
        await chat(client, HARMLESS, max_tokens=1)
        schemas = app.state.service._schemas
        schemas.hold(Schema("another's", memory_bytes=2**20), 1)
        error = error_of(await greedy(client, HARMLESS, response_format=YES_OR_NO), 429)
        assert "schemas_mib" in error["message"]
        schemas.release(Schema("another's", memory_bytes=2**20))
        for more in ({}, {"stream": True}, {"max_tokens": CONTEXT + 1}):
            await chat(client, HARMLESS, response_format=YES_OR_NO, **{"max_tokens": 3, **more})
        assert schemas._held == 0


async def test_a_constrained_request_that_is_flagged_gets_its_refusal_apart_from_the_content() -> None:
    async with loaded(application_on(Wordy())) as client:
        choice = (await greedy(client, HARMFUL, max_tokens=5, response_format=YES_OR_NO)).json()["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": "No.No.No.No.No."}
    assert choice["finish_reason"] == "stop"


async def test_log_probabilities_of_a_constrained_answer_are_of_what_the_grammar_allows() -> None:
    async with loaded(application_on(Wordy())) as client:
        answer = await greedy(client, HARMLESS, max_tokens=3, response_format=YES_OR_NO, logprobs=True, top_logprobs=20)
    first = answer.json()["choices"][0]["logprobs"]["content"][0]
    assert first["token"] == "{"
    assert first["top_logprobs"] == [{"token": "{", "logprob": 0.0, "bytes": [ord("{")]}]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"enum": []}, "Unsatisfiable"),
        ({"type": "string", "pattern": "(a{1000}){1000}"}, "repetitions"),
        ({"$ref": "file:///etc/passwd"}, "passwd"),
    ],
)
async def test_a_schema_that_cannot_be_used_is_400(schema: dict[str, Any], words: str) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with loaded(application_on(Wordy())) as client:
        error = error_of(await greedy(client, HARMLESS, response_format=wanted), 400)
    assert error["param"] == "response_format.json_schema"
    assert words in error["message"]


async def test_a_schema_that_leads_nowhere_is_the_requests_own_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are too complex only once a part of the text is there."""
    accepted: list[int] = []

    def accept(_: JsonGrammar, token: int) -> None:
        accepted.append(token)
        if len(accepted) > 3:
            raise GrammarError("too many expressions")

    monkeypatch.setattr(JsonGrammar, "accept", accept)
    async with loaded(application_on(Wordy())) as client:
        error = error_of(await greedy(client, HARMLESS, response_format=YES_OR_NO), 400)
        assert "too many expressions" in error["message"]
        assert error["param"] == "response_format.json_schema"
        assert (await greedy(client, HARMLESS, max_tokens=2)).status_code == 200


async def test_requests_that_end_in_every_way_leave_no_task_and_no_row() -> None:
    backbone = Backbone()
    app = application_on(backbone)
    async with loaded(app) as client:
        await greedy(client, HARMLESS, max_tokens=1)
        before = asyncio.all_tasks()
        for stream in (False, True):
            whole = [greedy(client, HARMLESS, max_tokens=5, stream=stream, n=n) for n in (1, 2)]
            wrong = [greedy(client, HARMLESS, max_tokens=-1), client.post("/v1/chat/completions", content=b"{")]
            late = client.post("/v1/chat/completions", json=body(HARMLESS, stream=stream), headers={"prefer": "wait=0"})
            await asyncio.gather(*whole, *wrong, late)
            data = orjson.dumps(body(HARMLESS, stream=stream, max_tokens=CONTEXT - 10))
            connections = [Connection(app, each) for each in (None, data, data, data)]
            await asyncio.gather(*(connection.leave() for connection in connections))
        assert await app.state.service.engine.drain(WAIT_SECONDS)
        assert asyncio.all_tasks() <= before
        assert backbone.rows == []


async def test_the_score_of_the_last_token_is_the_prompts_own() -> None:
    async with loaded(application_on(Backbone(), token_scores=True)) as client:
        answer = (await greedy(client, HARMFUL, guard={"scores": True}, moderation={"model": "scripted"})).json()
    scores = answer["token_scores"]["prompt"]["scores"]
    assert len(scores) == len(HARMFUL)
    assert scores[-1] == answer["moderation"]["input"]["results"][0]["category_scores"]["unsafe"]


async def test_each_shown_token_of_a_watched_answer_has_its_score() -> None:
    asked: dict[str, Any] = {"max_tokens": 40, "guard": {"scores": True}}
    for output in ({"mode": "monitor"}, {"mode": "block", "hold": 2}, {"mode": "block", "hold": "all"}):
        app = application_on(Backbone(), guard=Reading, output=output, token_scores=True)
        async with loaded(app) as client:
            whole, streamed = await asyncio.gather(
                greedy(client, HARMLESS, **asked), greedy(client, HARMLESS, stream=True, **asked)
            )
        (choice,) = whole.json()["choices"]
        assert whole.json()["token_scores"]["answer_threshold"] == 0.5
        told = choice["token_scores"]
        said = choice["message"]["content"].removesuffix(REFUSAL).removesuffix("\n\n")
        assert "".join(each["token"] for each in told) == said
        assert all((each["score"] >= 0.5) == (ord(each["token"]) >= 30) for each in told)
        chunks = [each["choices"][0].get("token_scores", []) for each in events_of(streamed.text)]
        assert [each for chunk in chunks for each in chunk] == told


async def test_answers_that_nobody_watches_have_no_scores() -> None:
    async with loaded(application_on(Backbone(), token_scores=True)) as client:
        answer = (await greedy(client, HARMLESS, guard={"scores": True})).json()
    assert answer["token_scores"]["answer_threshold"] is None
    assert "token_scores" not in answer["choices"][0]
