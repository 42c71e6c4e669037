"""What a change of the settings would take away: keys, policies, and how strictly requests are judged and counted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from server.access.policies import looser_fields, make_policy, value_in
from server.settings.groups import NoKeys, PolicySettings
from server.settings.schema import Settings
from server.settings.values import DEFAULT_POLICY
from steering.policy import Calibrated

PERMISSIONS = ("may_loosen", "expose_scores", "token_scores", "assistant_last")
COMPLETIONS = ("off", "text", "on")  # from the strictest on
LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")


class LooseningError(ValueError):
    """New settings are looser than those in effect and do not say that this is meant; a line for each of `losses`."""

    def __init__(self, losses: Sequence[str]) -> None:
        super().__init__("; ".join(losses))
        self.losses = tuple(losses)


def change_id(losses: Sequence[str]) -> str:
    """What `loosens` says where just these losses are meant: no file that was cut or damaged says it by chance."""
    return "change-" + hashlib.sha256("\n".join(sorted(losses)).encode()).hexdigest()[:16]


def check_loosening(old: Settings, new: Settings, guard: Calibrated | None) -> None:
    """Raise LooseningError where `new` is looser than `old` and its `loosens` does not name this change."""
    losses = losses_between(old, new, guard)
    if losses and new.loosens != change_id(losses):
        raise LooseningError(losses)


def losses_between(old: Settings, new: Settings, guard: Calibrated | None) -> list[str]:
    """Everything in which `new` is looser than `old`, a line for each, without secrets."""
    losses = [*_lost_keys(old, new), *_lost_policies(old, new, guard)]
    if old.metrics_key and not new.metrics_key:
        losses.append("metrics_key: true -> false")
    return losses


def _lost_keys(old: Settings, new: Settings) -> Iterator[str]:
    if not old.keys or isinstance(new.keys, NoKeys):
        return
    if not new.keys:
        yield f"keys: all {len(old.keys)} are gone, and everybody would be served; write `keys: none` if that is meant"
        return
    accepted = {key.hash: key for key in new.accepted_keys}
    for key in old.keys:
        if key in old.accepted_keys and key.hash not in accepted and key.name not in new.revoked_keys:
            yield f"keys: {key.name} is gone; to take a key away, write its name into `revoked_keys`"
        if key not in old.accepted_keys and key.hash in accepted:
            yield f"keys: {key.name} is no longer revoked"
        if key.scope == "api" and key.hash in accepted and accepted[key.hash].scope == "console":
            yield f"keys: {key.name}: scope api -> console"


def _lost_policies(old: Settings, new: Settings, guard: Calibrated | None) -> Iterator[str]:
    """A policy that is gone is no loss where each of its keys has moved to one that is as strict."""
    replaced = set()
    accepted = {key.hash: key for key in new.accepted_keys}
    for key in old.accepted_keys:
        found = accepted.get(key.hash)  # a key is its hash, whatever it is called
        if found is None or key.policy == found.policy:
            continue
        replaced.add(key.policy)
        for loss in _looser(old, key.policy, new, found.policy, guard):
            yield f"keys: {key.name} moves from the policy {key.policy} to {found.policy}: {loss}"
    for name in old.policy_names:
        if name in new.policy_names:
            for loss in _looser(old, name, new, name, guard):
                yield f"{'' if name == DEFAULT_POLICY else f'policies.{name}: '}{loss}"
        elif name not in replaced and not isinstance(new.keys, NoKeys):
            yield f"policies.{name} is gone"


def _looser(old: Settings, old_name: str, new: Settings, new_name: str, guard: Calibrated | None) -> Iterator[str]:
    """In what a policy of the new settings is looser than one of the old."""
    before, after = old.policy(old_name), new.policy(new_name)
    judged, judges = make_policy(old_name, before, guard), make_policy(new_name, after, guard)
    for field in looser_fields(judges, judged):
        yield f"{field} {_shown(value_in(judged, field))} -> {_shown(value_in(judges, field))}"
    for field in _freer_fields(after, before):
        yield f"{field} {_shown(getattr(before, field))} -> {_shown(getattr(after, field))}"
    had, has = (each.completions or ("on" if guard is None else "text") for each in (before, after))
    if COMPLETIONS.index(has) > COMPLETIONS.index(had):
        yield f"completions {had} -> {has}"


def _freer_fields(new: PolicySettings, old: PolicySettings) -> Iterator[str]:
    for field in PERMISSIONS:
        if getattr(new, field) and not getattr(old, field):
            yield field
    for field in LIMITS:
        before, after = getattr(old, field), getattr(new, field)
        if before is not None and (after is None or after > before):
            yield field


def _shown(value: object) -> str:
    match value:
        case None:
            return "unlimited"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:.6g}"
    return str(value)
