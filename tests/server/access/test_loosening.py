"""What a reload may take away: nothing that it does not spell out, however the file was cut or damaged."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from typer.testing import CliRunner, Result

from server.access.keys import Client, hash_key
from server.access.loosening import LooseningError, change_id, losses_between
from server.access.policies import make_policy
from server.access.rules import Rules
from server.cli.main import app
from server.errors import Unauthorized
from server.reload import reload
from server.settings.groups import KeySettings
from server.settings.schema import Settings
from server.settings.sources import ConfigError, load_settings
from steering.policy import Mode, PolicyError, Verdict, decide
from tests.server.scripted import ScriptedGuard, ScriptedRunner, application, chat, client_of, error_of, metric

GUARD = ScriptedGuard()
KEYS = ("sk-shop", "sk-desk", "sk-team", "sk-old")
CONFIG = f"""\
mode: steer
threshold: 0.25
eps: 1.5
requests_per_minute: 600
metrics_key: true
policies:
  strict:
    mode: block
    target_fpr: 0.05
    refusal: Please ask the desk.
    tokens_per_minute: 9000
    assistant_last: false
  research:
    mode: monitor
    threshold: 0.5
    expose_scores: true
    may_loosen: true
    requests_per_minute: null
keys:
  - name: shop
    hash: {hash_key(KEYS[0])}
    policy: strict
  - name: desk
    hash: {hash_key(KEYS[1])}
  - name: team
    hash: {hash_key(KEYS[2])}
    policy: research
  - name: old
    hash: {hash_key(KEYS[3])}
    policy: research
revoked_keys:
  - old
max_images: 4
"""


def loaded(folder: Path, text: str | bytes) -> Settings:
    path = folder / "autosteer.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings({}, path).settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config")


@pytest.fixture
def old(folder: Path) -> Settings:
    return loaded(folder, CONFIG)


# any damage --------------------------------------------------------------------------------------------------------


def client_of_key(rules: Rules, key: str) -> Client | None:
    try:
        return rules.clients.authenticate([f"Bearer {key}"])
    except Unauthorized:
        return None


def at_least_as_strict(new: Client, old: Client) -> bool:
    """By what each would do to requests of any score, and by what it grants; not by the code under test."""
    order = {Verdict.PASS: 0, Verdict.MONITORED: 1, Verdict.STEERED: 2, Verdict.BLOCKED: 3}
    judged = []
    for client in (new, old):
        policy = make_policy(client.policy, client.terms, GUARD)
        decisions = decide([step / 100 for step in range(101)], [policy] * 101)
        judged.append([(order[each.verdict], each.eps) for each in decisions])
    for (now, eps), (before, least) in zip(*judged, strict=True):
        if now < before or (now == before and eps < least):
            return False
    limits = ("requests_per_minute", "tokens_per_minute")
    inf = float("inf")
    return (
        all((getattr(new.terms, each) or inf) <= (getattr(old.terms, each) or inf) for each in limits)
        and new.terms.may_loosen <= old.terms.may_loosen
        and new.terms.expose_scores <= old.terms.expose_scores
        and new.terms.token_scores <= old.terms.token_scores
        and new.terms.assistant_last <= old.terms.assistant_last
    )


LINES = CONFIG.splitlines(keepends=True)
RAW = CONFIG.encode()


def without(lines: set[int]) -> bytes:
    return "".join(line for number, line in enumerate(LINES) if number not in lines).encode()


def flipped(flips: Mapping[int, int]) -> bytes:
    data = bytearray(RAW)
    for place, mask in flips.items():
        data[place] ^= mask
    return bytes(data)


places = st.integers(0, len(RAW) - 1)
DAMAGED = st.one_of(
    st.builds(lambda end: RAW[:end], places),
    st.builds(lambda begin: RAW[begin:], places),
    st.builds(lambda a, b: RAW[: min(a, b)] + RAW[max(a, b) :], places, places),
    st.builds(without, st.sets(st.integers(0, len(LINES) - 1), min_size=1, max_size=6)),
    st.builds(flipped, st.dictionaries(places, st.integers(1, 255), min_size=1, max_size=3)),
    st.builds(flipped, st.dictionaries(places, st.sampled_from([1, 2, 4, 8, 32]), min_size=1, max_size=1)),
)


@given(damaged=DAMAGED)
def test_no_damage_to_the_file_lets_anybody_do_more(damaged: bytes, folder: Path) -> None:
    before = Rules.of(loaded(folder, CONFIG))
    try:
        after, _ = before.changed(loaded(folder, damaged), GUARD)
    except (ConfigError, PolicyError, LooseningError):
        return  # refused: what was in effect stays
    assert client_of_key(after, "sk-unknown") is None
    for key in KEYS:
        had, has = client_of_key(before, key), client_of_key(after, key)
        assert (had is None) == (has is None)
        if had is not None and has is not None:
            assert at_least_as_strict(has, had)
    assert after.settings.metrics_key


def test_the_damage_of_that_test_is_also_taken_for_what_it_is(folder: Path) -> None:
    """Otherwise it would show nothing: some damage leaves valid settings, which are put in effect or refused."""
    outcomes: set[type] = set()
    before = Rules.of(loaded(folder, CONFIG))
    for number in range(len(LINES)):
        try:
            before.changed(loaded(folder, without({number})), GUARD)
        except (ConfigError, LooseningError) as error:
            outcomes.add(type(error))
        else:
            outcomes.add(Rules)
    assert outcomes == {ConfigError, LooseningError, Rules}


# each kind ---------------------------------------------------------------------------------------------------------


LOST = "keys: desk is gone; to take a key away, write its name into `revoked_keys`"


def changed(change: Callable[[dict[str, Any]], object]) -> Settings:
    values = deepcopy(yaml.safe_load(CONFIG))
    change(values)
    return Settings(**values)


def drop(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: Any) -> None:
        for step in path[:-1]:
            values = values[step]
        del values[path[-1]]

    return change


def put(value: object, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: Any) -> None:
        for step in path[:-1]:
            values = values[step]
        values[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "loss"),
    [
        (put([], "keys"), "keys: all 4 are gone, and everybody would be served; write `keys: none` if that is meant"),
        (drop("keys"), "keys: all 4 are gone, and everybody would be served; write `keys: none` if that is meant"),
        (drop("keys", 1), LOST),
        (put(hash_key("sk-x"), "keys", 1, "hash"), LOST),
        (drop("revoked_keys"), "keys: old is no longer revoked"),
        (put("monitor", "mode"), "mode steer -> monitor"),
        (put(0.4, "threshold"), "threshold 0.25 -> 0.4"),
        (drop("threshold"), "threshold 0.25 -> 0.5"),
        (drop("eps"), "eps 1.5 -> 1"),
        (drop("requests_per_minute"), "requests_per_minute 600 -> unlimited"),
        (put(601, "requests_per_minute"), "requests_per_minute 600 -> 601"),
        (drop("policies", "strict", "tokens_per_minute"), "policies.strict: tokens_per_minute 9000 -> unlimited"),
        (put(True, "policies", "strict", "may_loosen"), "policies.strict: may_loosen false -> true"),
        (put(True, "policies", "strict", "expose_scores"), "policies.strict: expose_scores false -> true"),
        (put(True, "policies", "strict", "token_scores"), "policies.strict: token_scores false -> true"),
        (put(True, "policies", "strict", "assistant_last"), "policies.strict: assistant_last false -> true"),
        (put("on", "completions"), "completions text -> on"),
        (put("off", "policies", "research", "mode"), "policies.research: mode monitor -> off"),
        (drop("metrics_key"), "metrics_key: true -> false"),
    ],
)  # fmt: skip
def test_what_is_lost_is_named(old: Settings, change: Callable[[dict[str, Any]], object], loss: str) -> None:
    losses = losses_between(old, changed(change), GUARD)
    assert loss in losses
    assert "sha256" not in "".join(losses)


def test_a_key_that_moves_to_a_looser_policy(old: Settings) -> None:
    new = changed(put("research", "keys", 0, "policy"))
    assert losses_between(old, new, GUARD) == [
        "keys: shop moves from the policy strict to research: mode block -> monitor",
        "keys: shop moves from the policy strict to research: threshold 0.4 -> 0.5",
        "keys: shop moves from the policy strict to research: may_loosen false -> true",
        "keys: shop moves from the policy strict to research: expose_scores false -> true",
        "keys: shop moves from the policy strict to research: assistant_last false -> true",
        "keys: shop moves from the policy strict to research: requests_per_minute 600 -> unlimited",
        "keys: shop moves from the policy strict to research: tokens_per_minute 9000 -> unlimited",
    ]


def rename(values: dict[str, Any]) -> None:
    values["policies"]["tight"] = values["policies"].pop("strict")
    values["keys"][0]["policy"] = "tight"


def tighten(values: dict[str, Any]) -> None:
    values |= {"mode": "block", "threshold": 0.1, "requests_per_minute": 5}
    values["policies"]["research"]["may_loosen"] = False
    values["keys"].append({"name": "new", "hash": hash_key("sk-new"), "policy": "strict"})
    del values["keys"][0]
    values["revoked_keys"] = ["old", "shop"]
    values["keys"][0]["name"] = "desk-2"


@pytest.mark.parametrize("change", [rename, tighten, drop("keys", 3), drop("max_images"), put("No.", "refusal")])
def test_what_is_as_strict_or_stricter_needs_no_word(old: Settings, change: Callable[[dict[str, Any]], object]) -> None:
    assert losses_between(old, changed(change), GUARD) == []


def test_a_policy_that_is_gone_is_a_loss_unless_its_keys_have_one_as_strict(old: Settings) -> None:
    def unused(values: dict[str, Any]) -> None:
        values["policies"].pop("strict")
        values["keys"][0]["policy"] = "default"
        values["revoked_keys"] = ["old", "shop"]

    assert "policies.strict is gone" in losses_between(old, changed(unused), GUARD)


def test_a_server_without_keys_stays_one_and_may_get_some() -> None:
    assert losses_between(Settings(), Settings(), GUARD) == []
    assert losses_between(Settings(), changed(put("block", "mode")), GUARD) == []


def test_without_a_guard_keys_and_limits_are_still_compared() -> None:
    entry = KeySettings(name="a", hash=SecretStr(hash_key("sk-a")))
    old, new = Settings(keys=(entry,), requests_per_minute=5), Settings(requests_per_minute=6)
    assert len(losses_between(old, new, None)) == 2


# what is spelled out -----------------------------------------------------------------------------------------------


def test_no_keys_can_be_meant(folder: Path, old: Settings) -> None:
    text = "".join(LINES[: LINES.index("keys:\n")]).replace("metrics_key", "keys: none\nmetrics_key")
    new = loaded(folder, text)
    assert new.keys == ()
    assert losses_between(old, new, GUARD) == []


@pytest.mark.parametrize("text", ["keys:\n", "keys: null\n", "keys: all\n", "keys: {}\n"])
def test_what_says_nothing_of_keys_is_a_mistake(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="keys: must be a list, or `none` where everybody is to be served"):
        loaded(folder, text)


@pytest.mark.parametrize("text", ["", "\n\n", "# mode: block\n", "{}", "---\n"])
def test_an_empty_file_is_a_mistake(folder: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="is empty"):
        loaded(folder, text)


def test_one_change_can_be_meant_and_no_other(old: Settings) -> None:
    rules = Rules.of(old)
    with pytest.raises(LooseningError) as caught:
        rules.changed(changed(put("monitor", "mode")), GUARD)
    word = change_id(caught.value.losses)

    def looser(values: dict[str, Any]) -> None:
        values |= {"mode": "monitor", "loosens": word}

    def still_looser(values: dict[str, Any]) -> None:
        values |= {"mode": "off", "loosens": word}

    with pytest.raises(LooseningError):
        rules.changed(changed(still_looser), GUARD)
    after, _ = rules.changed(changed(looser), GUARD)
    assert after.settings.mode is Mode.MONITOR
    with pytest.raises(LooseningError):
        after.changed(changed(still_looser), GUARD)


# over the server ---------------------------------------------------------------------------------------------------


def open_application() -> FastAPI:
    return application(ScriptedRunner(), **yaml.safe_load(CONFIG) | {"metrics_key": False})


@pytest.mark.parametrize("text", ["", "mode: steer\nthreshold: 0.25\n", "mode: 'ste"])
async def test_a_hangup_over_a_damaged_file_changes_nothing_and_says_so(
    text: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_application()
    path = folder / "damaged.yaml"
    path.write_text(text)
    async with client_of(opened) as client:
        await client.get("/ready")
        await reload(opened.state.service, partial(load_settings, {}, path))
        error_of(await chat(client), 401)
        assert (await chat(as_key(client, KEYS[1]))).status_code == 200
        assert await metric(client, "autosteer_config_reloads_total", outcome="error") == 1
        assert await metric(client, "autosteer_config_reloads_total", outcome="ok") == 0
        assert await metric(client, "autosteer_config_last_reload_successful") == 0
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told
    assert all(line.startswith("the new settings are not used: ") for line in told)


def as_key(client: Any, key: str) -> Any:
    client.headers["authorization"] = f"Bearer {key}"
    return client


async def test_a_refused_hangup_names_the_losses_and_the_way_out(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = open_application()
    caplog.set_level(logging.INFO, "server.life")
    path = folder / "looser.yaml"
    text = CONFIG.replace("mode: block", "mode: monitor").replace("metrics_key: true\n", "")
    path.write_text(text)
    async with client_of(opened) as client:
        await client.get("/ready")
        await reload(opened.state.service, partial(load_settings, {}, path))
        said = [record.getMessage() for record in caplog.records]
        assert any(
            "they would loosen what is in effect: policies.strict: mode block -> monitor" in line for line in said
        )
        word = (
            next(line for line in said if "if all of it is meant" in line).partition("`loosens: ")[2].partition("`")[0]
        )
        path.write_text(f"{text}loosens: {word}\n")
        await reload(opened.state.service, partial(load_settings, {}, path))
        assert await metric(client, "autosteer_config_reloads_total", outcome="ok") == 1
        assert await metric(client, "autosteer_config_last_reload_successful") == 1
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (told,) = [record.getMessage() for record in caplog.records if "read again" in record.getMessage()]
    assert f"read again from {path} (sha256 {digest[:12]}); " in told
    assert "policies.strict.mode: block -> monitor" in told
    assert opened.state.service.settings.policy("strict").mode is Mode.MONITOR


def test_the_command_tells_beforehand_what_a_reload_would_refuse(folder: Path) -> None:
    """Also to a machine: by its exit code."""
    before, after = folder / "before.yaml", folder / "after.yaml"
    before.write_text("mode: block\n")
    after.write_text("mode: monitor\n")

    def check() -> Result:
        return CliRunner().invoke(app, ["config", "check", str(after), "--against", str(before)])

    refused = check()
    assert refused.exit_code == 2
    losses = [line.split(": ", 1)[1] for line in refused.output.splitlines() if line.startswith("a reload would")]
    assert losses == ["mode block -> monitor", "output.mode block -> monitor", "output.hold 16 -> 0"]
    after.write_text(f"mode: monitor\nloosens: {change_id(losses)}\n")
    assert check().exit_code == 0
    after.write_text("mode: block\nthreshold: 0.1\n")
    assert "a reload would loosen nothing" in check().output
