"""API keys: made once, kept as hashes, found in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from server.errors import BadRequest, Forbidden, Unauthorized
from server.settings.groups import PolicySettings
from server.settings.schema import Settings
from server.settings.values import DEFAULT_POLICY, Scope

PREFIX = "sk-autosteer-"
ANONYMOUS = "anonymous"


def new_key() -> str:
    """A key of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """What is kept of a key.

    A fast hash: slow ones (bcrypt, argon2) make up for passwords that can be guessed. 256 random bits cannot, and a
    slow hash on every request would hand whoever sends wrong keys a lever against the server.
    """
    return "sha256:" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


@dataclass(frozen=True)
class Client:
    """Who asks: the key's name, and what its policy says. `anonymous` where the server has no keys."""

    name: str
    policy: str
    terms: PolicySettings
    scope: Scope = "api"

    @property
    def tenant(self) -> int:
        """A number for the client that tells nothing of its name, and is another one in each process."""
        return hash(self.name)


class Clients:
    """Everybody who may ask, as the settings say."""

    def __init__(self, settings: Settings) -> None:
        terms = {name: settings.policy(name) for name in settings.policy_names}
        self._by_hash: Mapping[str, Client] = {
            key.hash.get_secret_value(): Client(key.name, key.policy, terms[key.policy], key.scope)
            for key in settings.accepted_keys
        }
        self._anonymous = None if settings.keys else Client(ANONYMOUS, DEFAULT_POLICY, terms[DEFAULT_POLICY])

    @cached_property
    def names(self) -> frozenset[str]:
        """The names of all clients."""
        clients = [self._anonymous] if self._anonymous else self._by_hash.values()
        return frozenset(client.name for client in clients)

    @property
    def anonymous(self) -> Client | None:
        """The client that everybody is where there are no keys."""
        return self._anonymous

    def holders(self, scope: Scope) -> Mapping[str, Client]:
        """The clients whose keys have a scope, by the keys' hashes."""
        return {kept: client for kept, client in self._by_hash.items() if client.scope == scope}

    def authenticate(self, authorizations: Sequence[str], api_keys: Sequence[str] = (), scope: Scope = "api") -> Client:
        """The client whose key `Authorization` or `x-api-key` holds, for what is within a scope.

        Raises BadRequest where there are several, Unauthorized, Forbidden where the key has another scope. Which of
        several counts is not agreed on: a gateway may have checked the one, and this server the other. Both headers
        may hold the same key. No error says anything of what was sent.
        """
        if len(authorizations) > 1 or len(api_keys) > 1:
            name = "Authorization" if len(authorizations) > 1 else "x-api-key"
            raise BadRequest(f"There are several '{name}' headers; send one.", code="several_keys")
        scheme, _, key = "".join(authorizations).partition(" ")
        bearer, own = key.strip(), "".join(api_keys).strip()
        if authorizations and api_keys and (scheme.lower() != "bearer" or bearer != own):
            raise BadRequest("'Authorization' and 'x-api-key' name different keys; send one.", code="several_keys")
        if self._anonymous is not None:
            return self._anonymous
        if scheme.lower() == "bearer" and not api_keys:
            own = bearer
        if not own:
            raise Unauthorized("An API key is needed: send the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'.")
        found = self._find(hash_key(own))
        if found is None:
            raise Unauthorized("The API key is not known here.")
        if found.scope != scope:
            raise Forbidden(f"This key has the scope {found.scope!r}; {scope!r} is needed here.", code="wrong_scope")
        return found

    def _find(self, presented: str) -> Client | None:
        """Compares with every key, whichever matches, so that time tells nothing."""
        found = None
        for kept, client in self._by_hash.items():
            if hmac.compare_digest(kept, presented):
                found = client
        return found
