"""API keys: made at random, kept as hashes, found whatever stands around them."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.access.keys import Clients, hash_key, new_key
from server.errors import Unauthorized
from server.settings.schema import Settings

KEYS = [new_key() for _ in range(5)]


def settings(count: int = 5) -> Settings:
    entries = [{"name": f"k{i}", "hash": hash_key(key), "policy": "p"} for i, key in enumerate(KEYS[:count])]
    return Settings.model_validate({"keys": entries, "policies": {"p": {"threshold": 0.25, "requests_per_minute": 7}}})


def test_a_key_has_256_random_bits_and_its_hash_says_nothing_of_it() -> None:
    made = {new_key() for _ in range(1000)}
    assert len(made) == 1000
    for key in made:
        assert len(key.removeprefix("sk-autosteer-")) == 43  # 32 bytes in base64
    key = made.pop()
    assert hash_key(key) == "sha256:" + hashlib.sha256(key.encode()).hexdigest()


@pytest.mark.parametrize("number", range(5))
def test_each_key_is_its_own_client(number: int) -> None:
    client = Clients(settings()).authenticate([f"Bearer {KEYS[number]}"])
    assert (client.name, client.policy) == (f"k{number}", "p")
    assert (client.terms.threshold, client.terms.requests_per_minute) == (0.25, 7)


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
def test_the_scheme_is_read_in_any_case(scheme: str) -> None:
    assert Clients(settings()).authenticate([f"{scheme} {KEYS[0]}"]).name == "k0"


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Basic {KEYS[0]}", KEYS[0], f"Bearer {KEYS[0]}x", f"Bearer {KEYS[0][:-1]}",
     f"Bearer {KEYS[0]} {KEYS[1]}", f"Bearer {hash_key(KEYS[0])}", "Bearer \xe9\udc80"],
    ids=[f"form-{number}" for number in range(11)],  # keys are new in each run, names of tests are not
)  # fmt: skip
def test_anything_else_is_unauthorized_and_not_repeated(header: str | None) -> None:
    with pytest.raises(Unauthorized) as caught:
        Clients(settings()).authenticate([] if header is None else [header])
    assert caught.value.status == 401
    assert caught.value.body["error"]["code"] == "invalid_api_key"
    assert "sk-" not in str(caught.value.body)


@given(st.text(max_size=200))
def test_no_text_is_a_key(text: str) -> None:
    with pytest.raises(Unauthorized):
        Clients(settings()).authenticate([text])


def test_every_key_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    original = hmac.compare_digest

    def counting(a: str, b: str) -> bool:
        compared.append((a, b))
        return original(a, b)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    clients = Clients(settings())
    for key in KEYS:
        clients.authenticate([f"Bearer {key}"])
    with pytest.raises(Unauthorized):
        clients.authenticate(["Bearer wrong"])
    assert len(compared) == 6 * 5


def test_without_keys_everybody_is_anonymous() -> None:
    clients = Clients(Settings(may_loosen=True))
    for header in (None, "Bearer anything", "Basic x"):
        client = clients.authenticate([] if header is None else [header])
        assert (client.name, client.policy, client.terms.may_loosen) == ("anonymous", "default", True)
    assert clients.names == {"anonymous"}
