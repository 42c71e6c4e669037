"""The console over HTTP, without a browser: who gets in, what pages say, and what they never let in."""

from __future__ import annotations

import asyncio
import http.cookies
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from starlette.requests import Request as HttpRequest
from starlette.types import Message

from models.demo import GUARD
from server.access.keys import hash_key
from server.console import bodies
from server.console.pages import static_files
from server.console.sessions import SESSION_SECONDS, Sessions
from server.engine.protocol import Facts
from server.errors import BadRequest
from server.settings.schema import Settings
from steering.manifest import load_manifest
from steering.policy import Verdict
from tests.server.api.test_openapi import answer_schema
from tests.server.scripted import Script, ScriptedRunner, application, body, error_of, events_of

HERE = "http://127.0.0.1:8000"
API_KEY, CONSOLE_KEY, LIMITED_KEY = "sk-autosteer-api", "sk-autosteer-console", "sk-autosteer-limited"
KEYS: dict[str, Any] = {
    "policies": {"free": {"may_loosen": True}},
    "keys": [
        {"name": "shop", "hash": hash_key(API_KEY)},
        {"name": "safety", "hash": hash_key(CONSOLE_KEY), "scope": "console", "policy": "free"},
        {"name": "guest", "hash": hash_key(LIMITED_KEY), "scope": "console"},
    ],
}
ASKED = {**body("ab"), "guard": {"scores": True}}


@asynccontextmanager
async def visiting(
    at: str = HERE, runner: ScriptedRunner | None = None, **settings: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """A browser's side: it keeps cookies."""
    app = application(runner or ScriptedRunner(), **settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=at) as client,
    ):
        yield client


def token_of(page: httpx.Response) -> Mapping[str, str]:
    """The header that scripts of a page send."""
    assert page.status_code == 200, page.text
    found = re.search(r'<meta name="csrf" content="([0-9a-f]+)">', page.text)
    assert found is not None
    return {"x-csrf-token": found[1]}


async def signed_in(client: httpx.AsyncClient, key: str = CONSOLE_KEY) -> Mapping[str, str]:
    answer = await client.post("/console/session", data={"key": key})
    assert (answer.status_code, answer.headers["location"]) == (303, "/console")
    return token_of(await client.get("/console"))


# what strangers send -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/admin/now"])
async def test_a_cookie_of_ours_is_found_and_others_are_not_read(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes 11 s to read 64 KB of escapes in quotes, and every route has all cookies read."""
    read: list[str] = []

    def unquote(text: str) -> str:
        read.append(text)
        return text

    monkeypatch.setattr(http.cookies, "_unquote", unquote)
    escapes, many = 'a="' + "\\" * 1000 + '"', "a=b;" * 5000
    async with visiting(**KEYS) as client:
        await signed_in(client)
        (own,) = client.cookies.jar
        for cookies in (f"{escapes}; {own.name}={own.value}", f"{own.name}={own.value};{escapes}", escapes, many):
            answer = await client.get(path, headers={"cookie": cookies})
            assert (answer.status_code == 200) == (
                path == "/health" or (path, own.name in cookies) == ("/admin/now", True)
            )
    assert set(read) == {own.value}


@pytest.mark.parametrize(
    ("site", "wanted", "status"),
    [
        ("cross-site", "image", 403),
        ("same-site", "iframe", 403),
        ("cross-site", "document", 200),
        ("same-origin", "empty", 200),
    ],
)
async def test_a_page_of_another_site_makes_the_console_do_nothing(site: str, wanted: str, status: int) -> None:
    """It reads no answer, but each of its pictures could be a question that takes long."""
    async with visiting() as client:
        answer = await client.get("/admin/now", headers={"sec-fetch-site": site, "sec-fetch-dest": wanted})
    assert answer.status_code == status


async def test_a_form_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "SECONDS", 0)

    async def never() -> Message:
        message: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await message

    with pytest.raises(BadRequest, match="did not arrive"):
        await bodies.small_body(HttpRequest({"type": "http", "headers": []}, never), 10)


# who gets in -------------------------------------------------------------------------------------------------------


async def test_without_keys_a_page_begins_a_session_that_may_ask_anything() -> None:
    async with visiting() as client:
        page = await client.get("/console")
        cookie = page.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        asked = {**ASKED, "guard": {"scores": True, "mode": "off"}}
        answer = await client.post("/console/chat", json=asked, headers=token_of(page))
        assert answer.json()["token_scores"]["prompt"]["tokens"] == ["a", "b"]
        assert (await client.post("/v1/chat/completions", json=asked)).status_code == 403


@pytest.mark.parametrize(
    ("at", "headers"),
    [
        ("http://evil.example:8000", {}),  # a name that was made to lead here
        ("http://192.0.2.7:8000", {}),
        (HERE, {"x-forwarded-for": "203.0.113.9"}),  # through a proxy
        (HERE, {"forwarded": "for=203.0.113.9"}),
    ],
)
async def test_without_keys_nobody_enters_from_elsewhere(at: str, headers: dict[str, str]) -> None:
    async with visiting(at) as client:
        page = await client.get("/console", headers=headers)
        assert page.status_code == 403
        assert "own machine" in page.text
        error_of(await client.get("/admin/guard", headers=headers), 403)


@pytest.mark.parametrize("path", ["/console", "/console/static/console.css", "/admin/guard"])
@pytest.mark.parametrize("settings", [{"console": False}, {"host": "0.0.0.0"}, {"keys": KEYS["keys"][:1]}])
async def test_where_there_is_no_console_there_is_nothing(path: str, settings: dict[str, Any]) -> None:
    async with visiting(**settings) as client:
        assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"keys": KEYS["keys"][:1]}])
def test_a_console_that_nobody_may_enter_is_a_mistake(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="nobody may enter it"):
        Settings(console=True, **settings)


@pytest.mark.parametrize("path", ["/console", "/console/guard", "/admin/guard", "/admin/now"])
async def test_with_keys_it_takes_one_of_its_scope(path: str) -> None:
    async with visiting("http://console.example", **KEYS) as client:
        for headers, status in (
            ({}, 401),
            ({"authorization": "Bearer nobody"}, 401),
            ({"authorization": f"Bearer {API_KEY}"}, 403),
            ({"authorization": f"Bearer {CONSOLE_KEY}", "origin": "https://evil.example"}, 403),
            ({"authorization": f"Bearer {CONSOLE_KEY}", "origin": "null"}, 403),
            ({"authorization": f"Bearer {CONSOLE_KEY}"}, 200),
            ({"authorization": f"Bearer {CONSOLE_KEY}", "origin": "http://console.example"}, 200),
        ):
            assert (await client.get(path, headers=headers)).status_code == status, headers


async def test_a_session_stands_for_the_key_and_a_stale_token_for_nothing() -> None:
    async with visiting("http://console.example", **KEYS) as client:
        token = await signed_in(client)
        assert (await client.get("/admin/guard")).json()["yours"] == "free"
        assert (await client.post("/console/chat", json=ASKED, headers=token)).status_code == 200
        for stale in ({}, {"x-csrf-token": "0" * 64}):
            error = error_of(await client.post("/console/chat", json=ASKED, headers=stale), 403)
            assert error["code"] == "stale_token"
        foreign = {**token, "origin": "https://evil.example"}
        assert (
            error_of(await client.post("/console/chat", json=ASKED, headers=foreign), 403)["code"] == "foreign_origin"
        )
        assert (await client.post("/console/session/end", data={"token": "0"})).status_code == 403
        assert (await client.post("/console/session/end", data={"token": token["x-csrf-token"]})).status_code == 303
        assert (await client.get("/console")).status_code == 401


@pytest.mark.parametrize(("key", "status"), [("nobody", 401), (API_KEY, 403), ("", 401), ("x" * 5000, 413)])
async def test_another_key_does_not_sign_in(key: str, status: int) -> None:
    async with visiting("http://console.example", **KEYS) as client:
        answer = await client.post("/console/session", data={"key": key})
        assert answer.status_code == status
        assert "set-cookie" not in answer.headers
        assert key not in answer.text or not key


async def test_a_key_of_the_console_opens_nothing_of_the_api() -> None:
    async with visiting(**KEYS) as client:
        key = {"authorization": f"Bearer {CONSOLE_KEY}"}
        answer = await client.post("/v1/chat/completions", json=body("ab"), headers=key)
    assert error_of(answer, 403)["code"] == "wrong_scope"


async def test_with_keys_the_policy_says_what_may_be_loosened() -> None:
    async with visiting("http://console.example", **KEYS) as client:
        asked = {**ASKED, "guard": {"scores": True, "mode": "off"}}
        token = await signed_in(client, LIMITED_KEY)
        assert error_of(await client.post("/console/chat", json=asked, headers=token), 403)["code"] == "may_not_loosen"
        assert (await client.post("/console/chat", json=ASKED, headers=token)).status_code == 200


def test_a_session_ends_with_its_time_its_key_and_its_server() -> None:
    now = [1000.0]
    sessions: Sessions[str] = Sessions(lambda: now[0])
    cookie = sessions.begin("hash", "safety").cookie
    found = sessions.find(cookie, {"other": "shop", "hash": "safety"})
    assert found is not None
    assert found.holder == "safety"
    assert sessions.find(cookie, {"other": "shop"}) is None
    other_server: Sessions[str] = Sessions(lambda: now[0])
    assert other_server.find(cookie, {"hash": "safety"}) is None
    end, nonce, signature = cookie.split(".")
    for forged in ("", "..", f"{int(end) + 9}.{nonce}.{signature}", f"²{cookie}", cookie + "é", "9" * 5000 + "..x"):
        assert sessions.find(forged, {"hash": "safety"}) is None
    now[0] += SESSION_SECONDS + 1
    assert sessions.find(cookie, {"hash": "safety"}) is None


# what pages say ----------------------------------------------------------------------------------------------------


async def test_no_page_lets_a_script_in() -> None:
    async with visiting("http://console.example", **KEYS) as client:
        pages = [await client.get("/console")]
        await signed_in(client)
        pages += [await client.get("/console"), await client.get("/console", headers={"origin": "null"})]
    for page in pages:
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert page.headers["cache-control"] == "no-store"
        assert not re.search(r"<script(?! [^>]*src=)|<style| style=| on\w+=", page.text)


async def test_while_the_model_loads_the_page_says_so() -> None:
    async with visiting(runner=ScriptedRunner(ready=False, state="loading the model")) as client:
        page = await client.get("/console")
        assert "loading the model" in page.text
        assert 'id="waiting"' in page.text
        error_of(await client.get("/admin/guard"), 503)


async def test_examples_are_the_bundled_models() -> None:
    async with visiting() as client:
        page = await client.get("/console")
        assert page.text.count('class="example"') == 6
        for address in re.findall(r'data-picture="([^"]+)"', page.text):
            picture = await client.get(address)
            assert picture.content.startswith(b"\x89PNG")
    async with visiting(model="org/other") as client:
        assert 'class="example"' not in (await client.get("/console")).text


async def test_the_card_is_as_documented() -> None:
    async with visiting() as client:
        card = (await client.get("/admin/guard")).json()
    answer_schema("/admin/guard", 200, "application/json", "get").validate(card)
    assert (card["model"]["name"], card["yours"], card["may_loosen"]) == ("scripted", "default", True)
    assert [policy["mode"] for policy in card["policies"]] == ["steer"]


def with_a_bundle() -> ScriptedRunner:
    """An engine that tells of the bundled guard."""
    runner, guard = ScriptedRunner(), load_manifest(GUARD)
    assert runner.model is not None
    scores = [0.001] * 990 + [0.9] * 10
    facts, inputs = runner.model
    runner.model = Facts(facts.info, guard, guard.layer, scores), inputs
    return runner


async def test_the_card_tells_of_the_bundle_and_where_each_value_comes_from() -> None:
    settings: dict[str, Any] = {"threshold": 0.25, "policies": {"strict": {"mode": "block", "target_fpr": 0.01}}}
    async with visiting(runner=with_a_bundle(), **settings) as client:
        card = (await client.get("/admin/guard")).json()
        page = await client.get("/console/guard")
    answer_schema("/admin/guard", 200, "application/json", "get").validate(card)
    guard = load_manifest(GUARD)
    assert card["guard"]["id"] == guard.id
    assert [each["sas"] for each in card["guard"]["layers"]] == [each.sas for each in guard.layers]
    curve = {round(each["threshold"], 3): each["flagged"] for each in card["guard"]["calibration"]}
    assert (curve[0.0], curve[0.5], curve[1.0]) == (1.0, 0.01, 0.0)
    default, strict = card["policies"]
    assert default["from"] == {
        "mode": "default",
        "threshold": "threshold, the settings",
        "eps": "the guard bundle",
        "refusal": "the guard bundle",
    }
    assert strict["threshold"] == guard.threshold_for(0.01)
    assert strict["from"]["threshold"] == "policies.strict.target_fpr, the settings"
    for told in (guard.id, guard.data_hash, "policies.strict.target_fpr", guard.refusal.partition(",")[0][-5:]):
        assert told in page.text


async def test_what_the_guard_does_now_is_told_minute_by_minute() -> None:
    def answer(text: str) -> Script:
        return Script.saying(text, verdict=Verdict.STEERED if text == "bad" else Verdict.PASS)

    async with visiting(runner=ScriptedRunner(answer=answer), policies={"other": {}}) as client:
        for text in ("bad", "fine", "fine"):
            await client.post("/v1/chat/completions", json=body(text))
        now = (await client.get("/admin/now")).json()
    answer_schema("/admin/now", 200, "application/json", "get").validate(now)
    default, other = now["policies"]
    assert len(default["minutes"]) == 60
    assert Counter(sum((Counter(each) for each in default["minutes"]), Counter())) == {"steered": 1, "pass": 2}
    assert not any(other["minutes"])


async def test_a_chat_of_the_console_streams() -> None:
    async with visiting() as client:
        token = token_of(await client.get("/console"))
        answer = await client.post("/console/chat", json={**ASKED, "stream": True}, headers=token)
        assert "token_scores" in events_of(answer.text)[0]


async def test_files_are_known_again_and_small() -> None:
    async with visiting() as client:
        first = await client.get("/console/static/try.js")
        assert first.headers["content-type"].startswith("text/javascript")
        known = {"if-none-match": first.headers["etag"]}
        assert (await client.get("/console/static/try.js", headers=known)).status_code == 304
        for path in ("nothing.js", "vendor/README", "../pages.py", "%2e%2e/pages.py"):
            assert (await client.get(f"/console/static/{path}")).status_code == 404
    assert sum(len(file.content) for file in static_files().values()) <= 200_000
