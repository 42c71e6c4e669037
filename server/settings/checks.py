"""Whether settings that name each other go together."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pydantic_core import PydanticCustomError

from server.settings.groups import KeySettings
from server.settings.values import DEFAULT_POLICY


def check_policies(policies: Collection[str]) -> None:
    """Raise PydanticCustomError where a named policy has the default one's name."""
    if DEFAULT_POLICY in policies:
        raise PydanticCustomError(
            "policies", "policies.default: the policy 'default' is what the top level says; put its fields there"
        )


def check_keys(keys: Sequence[KeySettings], policies: Collection[str]) -> None:
    """Raise PydanticCustomError for a key of a policy that there is not, or two of one name or hash."""
    for number, key in enumerate(keys):
        if key.policy != DEFAULT_POLICY and key.policy not in policies:
            known = ", ".join([DEFAULT_POLICY, *policies])
            raise PydanticCustomError(
                "keys",
                "keys.{number}.policy: there is no policy {policy}; there are {known}",
                {"number": number, "policy": repr(key.policy), "known": known},
            )
    for field in ("name", "hash"):
        values = [getattr(key, field) for key in keys]
        for number, value in enumerate(values):
            if value in values[:number]:
                raise PydanticCustomError(
                    "keys", f"keys.{number}.{field} is that of keys.{values.index(value)} too; each needs its own"
                )
