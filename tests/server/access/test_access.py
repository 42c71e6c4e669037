"""Keys, policies and limits as clients meet them over HTTP; the engine is scripted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.access.keys import hash_key
from server.service import Service
from server.settings.schema import Settings
from steering.policy import Mode, PolicyError
from tests.server.scripted import (
    IMAGE_TOKENS,
    MODEL,
    Script,
    ScriptedRunner,
    application,
    chat,
    client_of,
    data_url,
    error_of,
    metric,
    png,
    serving,
)

STRICT, FREE, LIMITED = "sk-strict", "sk-free", "sk-limited"
ACCESS: Mapping[str, Any] = {
    "keys": [
        {"name": "strict", "hash": hash_key(STRICT), "policy": "strict"},
        {"name": "free", "hash": hash_key(FREE), "policy": "free"},
        {"name": "limited", "hash": hash_key(LIMITED), "policy": "limited"},
    ],
    "policies": {
        "strict": {"mode": "block", "threshold": 0.1},
        "free": {"may_loosen": True, "expose_scores": True},
        "limited": {"requests_per_minute": 2, "tokens_per_minute": 1000},
    },
}


def as_client(client: httpx.AsyncClient, key: str | None) -> httpx.AsyncClient:
    client.headers = httpx.Headers({} if key is None else {"authorization": f"Bearer {key}"})
    return client


@pytest.fixture
def runner() -> ScriptedRunner:
    return ScriptedRunner()


@pytest.fixture
def app(runner: ScriptedRunner) -> FastAPI:
    return application(runner, **ACCESS)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as opened:
        yield opened


# authentication ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "sk-wrong", ""])
async def test_without_a_known_key_nothing_under_v1_is_served(client: httpx.AsyncClient, key: str | None) -> None:
    as_client(client, key)
    answers = [await chat(client), await client.get("/v1/models"), await client.get("/v1/models/scripted")]
    for answer in answers:
        error = error_of(answer, 401)
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "sk-" not in answer.text
    assert await metric(client, "autosteer_admission_rejections_total", reason="unauthorized") == 1
    for route in ("/health", "/ready", "/version", "/metrics"):
        assert (await client.get(route)).status_code == 200


@pytest.mark.parametrize("keys", [[FREE, "sk-wrong"], ["sk-wrong", FREE], [FREE, FREE], ["", FREE]])
async def test_several_keys_are_none(client: httpx.AsyncClient, keys: list[str]) -> None:
    """A gateway may have looked at the other one."""
    headers = [("authorization", f"Bearer {key}") for key in keys]
    answer = await client.get("/v1/models", headers=headers)
    assert error_of(answer, 400)["code"] == "several_keys"
    assert "sk-" not in answer.text


async def test_a_key_may_come_as_anthropic_s_clients_send_it(client: httpx.AsyncClient) -> None:
    for headers in ({"x-api-key": FREE}, {"x-api-key": FREE, "authorization": f"Bearer {FREE}"}):
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
    error_of(await client.get("/v1/models", headers={"x-api-key": "sk-wrong"}), 401)
    different = [("x-api-key", FREE), ("authorization", f"Bearer {STRICT}")]
    for several in (different, [("x-api-key", FREE)] * 2, [("x-api-key", FREE), ("authorization", f"Basic {FREE}")]):
        answer = await client.get("/v1/models", headers=several)
        assert error_of(answer, 400)["code"] == "several_keys"
        assert "sk-" not in answer.text


async def test_the_body_of_a_stranger_is_not_read(client: httpx.AsyncClient) -> None:
    read: list[bytes] = []

    async def body() -> AsyncIterator[bytes]:
        read.append(b"{}")
        yield b"{}"

    answer = await client.post("/v1/chat/completions", content=body(), headers={"content-type": "application/json"})
    error_of(answer, 401)
    assert read == []


async def test_metrics_can_be_made_to_need_a_key() -> None:
    async with serving(ScriptedRunner(), **ACCESS, metrics_key=True) as client:
        error_of(await client.get("/metrics"), 401)
        text = (await as_client(client, FREE).get("/metrics")).text
    assert "autosteer_" in text


async def test_a_server_without_keys_ignores_them() -> None:
    async with serving(ScriptedRunner()) as client:
        assert (await chat(as_client(client, "none"))).status_code == 200


async def test_the_document_says_that_a_key_is_needed(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/v1/chat/completions"]["post"]["security"] == [{"key": []}, {"x-api-key": []}]
    assert "security" not in document["paths"]["/ready"]["get"]


# policies ----------------------------------------------------------------------------------------------------------


async def test_each_key_is_served_under_its_policy(runner: ScriptedRunner, client: httpx.AsyncClient) -> None:
    assert "x-autosteer-score" not in (await chat(as_client(client, STRICT))).headers
    assert "x-autosteer-score" in (await chat(as_client(client, FREE))).headers
    strict, free = (request.policy for request in runner.requests)
    assert (strict.name, strict.mode, strict.threshold) == ("strict", Mode.BLOCK, 0.1)
    assert (free.name, free.mode, free.threshold) == ("free", Mode.STEER, 0.5)
    assert await metric(client, "autosteer_guard_decisions_total", policy="strict") == 1
    text = (await client.get("/metrics")).text
    assert "sk-" not in text
    assert hash_key(FREE)[7:] not in text


async def test_the_engine_is_told_whose_requests_are_whose(runner: ScriptedRunner, client: httpx.AsyncClient) -> None:
    for key in (STRICT, FREE, STRICT):
        await chat(as_client(client, key), n=2)
    asks = [request.ask for request in runner.requests]
    tenants = [ask.tenant for ask in asks]
    assert tenants[:2] == tenants[4:] == [tenants[0]] * 2
    assert tenants[2:4] == [tenants[2]] * 2
    assert tenants[0] != tenants[2]


async def test_a_request_may_tighten_and_with_permission_loosen(
    runner: ScriptedRunner, client: httpx.AsyncClient
) -> None:
    assert (await chat(as_client(client, STRICT), guard={"threshold": 0.05})).status_code == 200
    error = error_of(await chat(client, guard={"mode": "off"}), 403)
    assert (error["param"], error["code"], error["type"]) == ("guard.mode", "may_not_loosen", "permission_error")
    assert (await chat(as_client(client, FREE), guard={"mode": "off"})).status_code == 200
    assert [request.policy.threshold for request in runner.requests] == [0.05, 0.5]
    assert runner.requests[1].policy.mode is Mode.OFF
    assert await metric(client, "autosteer_admission_rejections_total", reason="forbidden") == 1


async def test_the_anonymous_client_has_the_rights_of_the_default_policy() -> None:
    async with serving(ScriptedRunner()) as client:
        error_of(await chat(client, guard={"mode": "monitor"}), 403)
    async with serving(ScriptedRunner(), may_loosen=True) as client:
        assert (await chat(client, guard={"mode": "monitor"})).status_code == 200


@pytest.mark.parametrize(
    ("guard", "param"),
    [
        ({"mode": "shout"}, "guard.mode"),
        ({"threshold": 1.5}, "guard.threshold"),
        ({"threshold": "0.5"}, "guard.threshold"),
        ({"target_fpr": 0}, "guard.target_fpr"),
        ({"target_fpr": 0.3}, "guard.target_fpr"),
        ({"eps": 0}, "guard.eps"),
        ({"eps": 1000}, "guard.eps"),
        ({"strength": 1}, "guard.strength"),
        ("off", "guard"),
        ({"threshold": 0.1, "target_fpr": 0.05}, "guard.target_fpr"),
    ],
)
async def test_a_wrong_wish_names_its_field(client: httpx.AsyncClient, guard: Any, param: str) -> None:
    assert error_of(await chat(as_client(client, FREE), guard=guard), 400)["param"] == param


async def test_without_a_guard_there_is_nothing_to_wish_for() -> None:
    async with serving(ScriptedRunner(guarded=False)) as client:
        assert error_of(await chat(client, guard={"mode": "block"}), 400)["param"] == "guard"
        assert (await chat(client, guard=None)).status_code == 200


async def test_the_fingerprint_changes_with_the_policy(client: httpx.AsyncClient) -> None:
    as_client(client, FREE)
    prints = [(await chat(client, guard=g)).json()["system_fingerprint"] for g in (None, {}, {"threshold": 0.2})]
    assert prints[0] == prints[1] != prints[2]


# rate limits -------------------------------------------------------------------------------------------------------


async def test_requests_beyond_the_limit_are_429(client: httpx.AsyncClient) -> None:
    as_client(client, LIMITED)
    first = await chat(client, max_tokens=5)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    error_of(await chat(client, max_tokens=-1), 400)  # counts too
    refused = await chat(client)
    assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert (await chat(as_client(client, FREE))).status_code == 200
    assert await metric(client, "autosteer_admission_rejections_total", reason="rate_limited") == 1


@pytest.mark.parametrize(
    ("route", "asked"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "n": 3}),
        ("/v1/completions", {"prompt": ["a", "b", "c"]}),
        ("/v1/completions", {"prompt": "a", "n": 3}),
        ("/v1/moderations", {"input": ["a", "b", "c"]}),
    ],
)
async def test_a_request_counts_as_many_times_as_it_has_generations(route: str, asked: dict[str, Any]) -> None:
    runner = ScriptedRunner()
    async with serving(runner, requests_per_minute=4) as client:
        first = await client.post(route, json={"model": MODEL, **asked})
        assert first.status_code == 200, first.text
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        error_of(await client.post(route, json={"model": MODEL, **asked}), 429)
    assert len(runner.requests) == 3


async def test_tokens_are_held_by_the_request_and_corrected_at_its_end(
    runner: ScriptedRunner, client: httpx.AsyncClient
) -> None:
    as_client(client, LIMITED)
    answer = await chat(client, "hello", data_url(png()), max_tokens=500, n=1)
    # At its head, all that it can take is held ...
    assert int(answer.headers["x-ratelimit-remaining-tokens"]) in range(1000 - 500 - 5 - IMAGE_TOKENS, 1000 - 500)
    # ... and then what it took: 5 + 7 in, 5 out.
    assert answer.json()["usage"]["total_tokens"] == 10 + IMAGE_TOKENS
    refused = await chat(client, max_tokens=984)
    assert refused.status_code == 429
    assert int(refused.headers["x-ratelimit-remaining-tokens"]) in range(983, 990)
    assert len(runner.requests) == 1


async def test_what_could_never_fit_says_so(client: httpx.AsyncClient) -> None:
    answer = await chat(as_client(client, LIMITED), max_tokens=1000)
    assert "more than the limit of 1000" in error_of(answer, 429)["message"]
    assert answer.headers["x-should-retry"] == "false"
    assert "retry-after" not in answer.headers


async def test_a_request_that_is_not_accepted_gives_its_tokens_back() -> None:
    runner = ScriptedRunner(answer=lambda _: Script(finish=None), max_live=0)
    app = application(runner, tokens_per_minute=1000)
    async with client_of(app) as client:
        error_of(await chat(client, max_tokens=900), 429)
        headers = (await client.get("/v1/models")).headers
    assert int(headers["x-ratelimit-remaining-tokens"]) == 1000


# changes while it runs ---------------------------------------------------------------------------------------------


def service_of(app: FastAPI) -> Service:
    service: Service = app.state.service
    return service


async def test_new_settings_hold_for_the_next_request_and_not_for_the_last(
    runner: ScriptedRunner, app: FastAPI, client: httpx.AsyncClient
) -> None:
    before = service_of(app).rules
    await chat(as_client(client, FREE))
    changed = {**ACCESS, "policies": {**ACCESS["policies"], "free": {"threshold": 0.3}}, "max_images": 0 + 1}
    assert service_of(app).change(Settings(**changed, port=1, max_rows=3)) == ["port", "max_rows"]
    assert before.settings.policy("free").may_loosen  # the object that was in effect is as it was
    assert service_of(app).settings.max_rows == 64
    assert error_of(await chat(client, guard={"mode": "off"}), 403)
    await chat(client)
    assert [request.policy.threshold for request in runner.requests] == [0.5, 0.3]
    error_of(await chat(client, "x", data_url(png()), data_url(png())), 400)


async def test_settings_that_do_not_fit_the_guard_change_nothing(app: FastAPI, client: httpx.AsyncClient) -> None:
    before = service_of(app).rules
    assert (await chat(as_client(client, FREE))).status_code == 200
    with pytest.raises(PolicyError, match=r"policies\.free: target_fpr 0\.2"):
        service_of(app).change(Settings(**{**ACCESS, "policies": {**ACCESS["policies"], "free": {"target_fpr": 0.2}}}))
    assert service_of(app).rules is before


async def test_a_key_that_is_taken_away_is_unknown_at_once(app: FastAPI, client: httpx.AsyncClient) -> None:
    assert (await chat(as_client(client, STRICT))).status_code == 200
    service_of(app).change(Settings(**ACCESS, revoked_keys=("strict",)))
    error_of(await chat(client), 401)
    service_of(app).change(Settings(**{**ACCESS, "keys": ACCESS["keys"][1:]}))
    error_of(await chat(client), 401)
    assert (await chat(as_client(client, FREE))).status_code == 200
