"""Keys, reloads and the audit log of real processes: signals under load, kills, full disks, the command line."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from server.access.keys import hash_key
from tests import plain_http
from tests.end_to_end.commands import run
from tests.end_to_end.forked import ForkedServer
from tests.end_to_end.processes import ServerProcess, user
from tests.waiting import wait_until

SHOP, TEAM = "sk-autosteer-shop", "sk-autosteer-team"
KEYS = [
    {"name": "shop", "hash": hash_key(SHOP), "policy": "strict"},
    {"name": "team", "hash": hash_key(TEAM), "policy": "free"},
]
STRICT: dict[str, Any] = {"mode": "block", "refusal": "Please ask the service desk."}
FREE: dict[str, Any] = {"may_loosen": True, "expose_scores": True}


def until_reloads(server: ServerProcess, outcome: str, count: float) -> None:
    wait_until(lambda: server.metric("autosteer_config_reloads_total", outcome=outcome) == count, "the reload")


def until_answers(running: Load, count: int) -> None:
    wait_until(lambda: len(running.answers) >= count, f"{count} answers", 600)


def until_recorded(site: Site, ids: Set[str]) -> None:
    wait_until(lambda: ids <= {record["request_id"] for record in readable(site)}, "the records")


def whole(answer: httpx.Response) -> bool:
    """Whether an answer came to its proper end."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return answer.status_code == 200
    return answer.text.endswith("data: [DONE]\n\n") and 'data: {"error"' not in answer.text


@dataclass
class Site:
    """A folder with a config file and an audit log."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.write()

    @property
    def config(self) -> Path:
        return self.folder / "autosteer.yaml"

    @property
    def audit(self) -> Path:
        return self.folder / "audit.jsonl"

    def write(self, **changes: Any) -> None:
        self.settings = {
            "keys": KEYS,
            "policies": {"strict": STRICT, "free": FREE},
            "audit": {"url": f"file://{self.audit}"},
            **self.settings,
            **changes,
        }
        self.config.write_text(yaml.safe_dump(self.settings))

    def server(self, *arguments: str) -> ServerProcess:
        return ForkedServer(["--config", str(self.config), *arguments])

    def records(self) -> list[dict[str, Any]]:
        """Every line of the log; none may be broken."""
        return [json.loads(line) for line in self.audit.read_bytes().splitlines()]


def client_of(server: ServerProcess, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60)


def ask(server: ServerProcess, key: str, text: str = "hello", **options: Any) -> httpx.Response:
    body = {"model": "autosteer-demo", "messages": [user(text)], "max_tokens": 8, **options}
    return plain_http.post(
        f"{server.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}, timeout=60
    )


@dataclass
class Load:
    """Clients that ask one question after another until they are told to stop, or the server is gone."""

    server: ServerProcess
    answers: list[httpx.Response] = field(default_factory=list)
    cut: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        while not self.stopped.is_set():
            try:
                self.answers.append(ask(self.server, SHOP if number % 2 else TEAM, stream=number % 4 < 2))
            except httpx.TransportError:
                self.cut += 1
                return

    @property
    def ids(self) -> set[str]:
        return {answer.headers["x-request-id"] for answer in self.answers}


@contextmanager
def load(server: ServerProcess, clients: int = 8) -> Iterator[Load]:
    made = Load(server)
    with ThreadPoolExecutor(clients) as pool:
        running: list[Future[None]] = [pool.submit(made.run, number) for number in range(clients)]
        try:
            yield made
        finally:
            made.stopped.set()
    for each in running:
        each.result()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[ServerProcess]:
    with site.server() as started:
        yield started


# keys --------------------------------------------------------------------------------------------------------------


def test_the_official_client_meets_its_own_errors(server: ServerProcess, site: Site) -> None:
    with pytest.raises(openai.AuthenticationError) as unknown:
        client_of(server, "sk-autosteer-wrong").models.list()
    assert unknown.value.code == "invalid_api_key"
    shop = client_of(server, SHOP)
    with pytest.raises(openai.PermissionDeniedError) as forbidden:
        shop.chat.completions.create(
            model="autosteer-demo", messages=[user("hello")], extra_body={"guard": {"mode": "off"}}
        )
    assert (forbidden.value.param, forbidden.value.code) == ("guard.mode", "may_not_loosen")
    answer = client_of(server, TEAM).chat.completions.create(
        model="autosteer-demo", messages=[user("hello")], max_tokens=4, extra_body={"guard": {"mode": "monitor"}}
    )
    assert answer.choices[0].finish_reason in {"stop", "length"}
    blocked = shop.chat.completions.create(
        model="autosteer-demo", messages=[user("hello")], extra_body={"guard": {"threshold": 0}}
    )
    assert (blocked.choices[0].message.content, blocked.choices[0].finish_reason) == (
        STRICT["refusal"],
        "content_filter",
    )
    for secret in (SHOP, TEAM, "sk-autosteer-wrong"):
        assert secret not in server.log
        assert secret not in site.audit.read_text()


# signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reloads", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_settings_are_read_again_under_load_and_no_request_is_dropped(
    site: Site, server: ServerProcess, reloads: int
) -> None:
    done = server.metric("autosteer_config_reloads_total", outcome="ok")
    with load(server) as running:
        for number in range(reloads):
            refusal = f"Please ask the service desk, room {number}."
            site.write(policies={"strict": {**STRICT, "refusal": refusal}, "free": FREE})
            server.process.send_signal(signal.SIGHUP)
            until_reloads(server, "ok", done + number + 1)
            answer = ask(server, SHOP, guard={"threshold": 0}).json()
            assert answer["choices"][0]["message"]["content"] == refusal
        until_answers(running, 16)
    assert running.cut == 0
    assert all(whole(answer) for answer in running.answers)


def test_wrong_settings_are_told_and_the_old_stay(site: Site, server: ServerProcess) -> None:
    failed = server.metric("autosteer_config_reloads_total", outcome="error")
    for number, (changes, words) in enumerate(
        [
            ({"policies": {"strict": STRICT, "free": {"treshold": 0.5}}}, "policies.free.treshold is no setting"),
            ({"policies": {"strict": STRICT, "free": {"target_fpr": 0.123}}}, "policies.free: target_fpr 0.123"),
        ]
    ):
        right = site.settings
        site.write(**changes)
        server.process.send_signal(signal.SIGHUP)
        until_reloads(server, "error", failed + number + 1)
        assert words in server.log
        assert ask(server, TEAM).status_code == ask(server, SHOP).status_code == 200
        site.settings = right
    site.write(max_rows=3, policies={"strict": STRICT, "free": FREE})
    done = server.metric("autosteer_config_reloads_total", outcome="ok")
    server.process.send_signal(signal.SIGHUP)
    until_reloads(server, "ok", done + 1)
    assert ask(server, TEAM).status_code == 200
    assert "max_rows has changed, which has no effect until the server is started anew" in server.log


@pytest.mark.parametrize("answers", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_sigterm_under_load_loses_no_record(tmp_path: Path, answers: int) -> None:
    site = Site(tmp_path)
    with site.server("--drain-seconds", "5") as server, load(server, 16) as running:
        until_answers(running, answers)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
    recorded = Counter(record["request_id"] for record in site.records())
    assert set(recorded.values()) == {1}
    assert running.ids - recorded.keys() == set()
    assert "lost" not in server.log
    outcomes = Counter(record["outcome"] for record in site.records())
    assert outcomes["completed"] >= sum(whole(answer) for answer in running.answers) >= answers


@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_sigkill_under_load_leaves_a_readable_log_and_a_restart_goes_on_with_it(tmp_path: Path, kills: int) -> None:
    site = Site(tmp_path)
    known: set[str] = set()
    for _ in range(kills):
        with site.server() as server:
            with load(server, 16) as running:
                until_answers(running, 40)
                before = running.ids
                until_recorded(site, before)
                server.process.kill()
                server.process.wait(20)
            known |= before
            assert known <= {record["request_id"] for record in readable(site)}
        with site.audit.open("ab") as file:  # what a kill in the middle of a write would leave
            file.write(b'{"time":"2026-')
        assert run("audit", "--config", str(site.config), "--last", "1").returncode == 0
    with site.server() as server:
        last = ask(server, SHOP).headers["x-request-id"]
        until_recorded(site, {last})
        assert "ended within a record; its last 14 bytes are cut off" in server.log
    ids = [record["request_id"] for record in site.records()]
    assert known < set(ids)
    assert ids[-1] == last


def readable(site: Site) -> list[dict[str, Any]]:
    """Records as `autosteer audit` reads them: without a line that has no end yet."""
    whole = site.audit.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


# full disks --------------------------------------------------------------------------------------------------------


def test_a_full_disk_closes_a_server_that_is_to_refuse(tmp_path: Path) -> None:
    site = Site(tmp_path, {"audit": {"url": "file:///dev/full", "on_failure": "refuse", "flush_seconds": 0.5}})
    with site.server() as server:
        assert ask(server, SHOP).status_code == 200  # the first that shows it
        wait_until(lambda: server.metric("autosteer_audit_sink_up") == 0, "the sink's failure")
        assert ask(server, SHOP).json()["error"]["code"] == "audit_failed"
        ready = plain_http.get(f"{server.url}/ready")
        assert ready.status_code == 503
        assert "No space left on device" in ready.json()["error"]["message"]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert "audit records are lost" in server.log


def test_a_log_that_cannot_be_opened_is_a_mistake(tmp_path: Path) -> None:
    site = Site(tmp_path, {"audit": {"url": f"file://{tmp_path}/none/audit.jsonl"}})
    result = run("serve", "--port", "0", "--config", str(site.config))
    assert result.returncode == 2
    assert f"{tmp_path}/none/audit.jsonl: No such file or directory" in result.stderr


# the command line --------------------------------------------------------------------------------------------------


def test_audit_prints_what_is_asked_for(site: Site, server: ServerProcess) -> None:
    wanted = ask(server, SHOP, guard={"threshold": 0}).headers["x-request-id"]
    until_recorded(site, {wanted})
    result = run("audit", "--config", str(site.config), "--last", "1", "--key", "shop", "--decision", "blocked")
    [line] = result.stdout.splitlines()
    record = json.loads(line)
    assert (record["request_id"], record["mode"], record["layer"] is not None) == (wanted, "block", True)
    missing = run("audit", "--url", "file:///nowhere/audit.jsonl")
    assert (missing.returncode, "there is no audit log" in missing.stderr) == (2, True)
    none = run("audit")
    assert (none.returncode, "audit.url is not set" in none.stderr) == (2, True)


def test_a_new_key_and_its_entry_work_together(tmp_path: Path) -> None:
    result = run("keys", "new", "--name", "fresh", "--policy", "strict")
    key, *entry = result.stdout.splitlines()
    assert key not in result.stderr
    loaded = yaml.safe_load("\n".join(entry))
    assert loaded == {"keys": [{"name": "fresh", "hash": hash_key(key), "policy": "strict"}]}
    site = Site(tmp_path, loaded)
    assert run("config", "check", str(site.config)).returncode == 0
    wrong = run("keys", "new", "--name", "no name")
    assert (wrong.returncode, wrong.stdout, "--name" in wrong.stderr) == (2, "", True)


def test_config_check_tells_everything_that_is_wrong(tmp_path: Path) -> None:
    site = Site(tmp_path)
    right = run("config", "check", str(site.config))
    assert right.returncode == 0
    assert "strict (block, threshold" in right.stdout
    assert "keys: 2" in right.stdout
    site.write(policies={"strict": STRICT, "free": {"target_fpr": 0.123}})
    uncalibrated = run("config", "check", str(site.config))
    assert uncalibrated.returncode == 2
    assert "policies.free: target_fpr 0.123 is not calibrated in this bundle; it has 0.001" in uncalibrated.stderr
    site.write(policies={"strict": {"mode": "shout"}, "free": {}}, max_images=0)
    wrong = run("config", "check", str(site.config))
    assert wrong.returncode == 2
    assert [line.split(":")[1].strip() for line in wrong.stderr.splitlines()] == ["policies.strict.mode", "max_images"]


def test_config_show_tells_where_everything_comes_from_and_no_secret(tmp_path: Path) -> None:
    site = Site(tmp_path, {"audit": {"url": "postgresql://u:SECRET@db/audit?sslpassword=SECRET"}})
    environment = {"AUTOSTEER_MAX_QUEUE": "7", "AUTOSTEER_CONFIG": str(site.config)}
    shown = run("config", "show", "--port", "9", environment=environment).stdout
    assert "port: 9  # --port" in shown
    assert "max_queue: 7  # environment AUTOSTEER_MAX_QUEUE" in shown
    assert f"keys:  # {site.config}" in shown
    assert "max_rows: 64  # default" in shown
    assert "postgresql://u:***@db/audit" in shown
    assert "SECRET" not in shown
    for entry in KEYS:
        assert str(entry["hash"]) not in shown
    values = yaml.safe_load(shown)
    assert values["policies"]["strict"] == STRICT
    assert os.environ.get("AUTOSTEER_CONFIG") is None
