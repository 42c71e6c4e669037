"""Which settings are of our own engine alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from steering.policy import Mode

if TYPE_CHECKING:
    from server.settings.groups import PolicySettings


def given_of_own(others: Mapping[str, bool], policies: Mapping[str, PolicySettings]) -> Iterator[str]:
    """Those that were given: of `others`, and of policies, whose keys are the paths of their fields."""
    yield from (name for name, is_given in others.items() if is_given)
    for path, policy in policies.items():
        if policy.output is not None and policy.output.mode is not Mode.OFF:
            yield path + "output"
        if policy.token_scores:
            yield path + "token_scores"
