"""Policies: what the settings say joined with what the bundle knows, and what a request may change of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from operator import attrgetter

from server.api.answer_fields import GuardOptions, OutputOptions
from server.errors import BadRequest, Forbidden
from server.settings.groups import CategorySettings, OutputSettings, PolicySettings
from server.settings.schema import Settings
from server.settings.values import DEFAULT_POLICY
from steering.policy import LEFT_ALONE, STRENGTH, UNWATCHED, Calibrated, Hold, Mode, OutputPolicy, Policy, PolicyError

# Far above its calibrated strength the head drowns the model. Three refusals of the demo model have the same 12 tokens
# at twice its bundle's eps; at 4 times one is "I'm'm'm'm sorry'm sorry'm", at 8 all go on so to their limit of tokens.
MAX_EPS_FACTOR = 2


def make_policy(name: str, terms: PolicySettings, guard: Calibrated | None) -> Policy:
    """A policy of the settings, with what the bundle knows. Raises PolicyError naming the field."""
    if guard is None:
        _check_unguarded(name, terms)
        return Policy(name, Mode.OFF, threshold=1.0, eps=0.0, refusal="", expose_scores=terms.expose_scores)
    try:
        categories = _category_modes(terms.categories, guard)
        policy = guard.policy(
            name,
            terms.mode or Mode.STEER,
            threshold=terms.threshold,
            target_fpr=terms.target_fpr,
            eps=terms.eps,
            refusal=terms.refusal,
            expose_scores=terms.expose_scores,
        )
        said = terms.output or OutputSettings()
        mode = said.mode or (policy.mode if guard.watches else Mode.OFF)
        output = LEFT_ALONE if said.mode is Mode.OFF else guard.output(mode, **said.model_dump(exclude={"mode"}))
        return replace(policy, output=output, categories=categories)
    except ValueError as error:
        raise PolicyError(f"{_path(name)}{error}") from error


def _category_modes(terms: CategorySettings | None, guard: Calibrated) -> tuple[tuple[str, Mode], ...]:
    """The mode of each category that is named. Raises ValueError where the bundle does not have it."""
    modes = () if terms is None else tuple(terms.modes)
    for name, mode in modes:
        if name not in guard.category_names:
            known = ", ".join(guard.category_names)
            way_out = f"it has {known}" if known else "it has none; fit one on pairs that name their category"
            raise ValueError(f"categories.{mode} {name!r} is no category of this guard bundle; {way_out}")
    return modes


def make_policies(settings: Settings, guard: Calibrated | None) -> dict[str, Policy]:
    """Every policy of the settings. Raises PolicyError."""
    return {name: make_policy(name, settings.policy(name), guard) for name in settings.policy_names}


def _check_unguarded(name: str, terms: PolicySettings) -> None:
    for field in ("threshold", "target_fpr", "eps", "refusal", "refusals"):
        if getattr(terms, field) not in (None, {}):
            raise PolicyError(f"{_path(name)}{field} needs a guard; give one with --guard")
    if terms.mode not in (None, Mode.OFF):
        raise PolicyError(f"{_path(name)}mode {terms.mode} needs a guard; give one with --guard")
    if terms.categories is not None and terms.categories.modes:
        raise PolicyError(f"{_path(name)}categories needs a guard; give one with --guard")
    if terms.output is not None and terms.output.mode is not Mode.OFF:
        raise PolicyError(f"{_path(name)}output needs a guard; give one with --guard")


def _path(name: str) -> str:
    return "" if name == DEFAULT_POLICY else f"policies.{name}: "


def wished_policy(policy: Policy, wish: GuardOptions, guard: Calibrated | None, *, may_loosen: bool) -> Policy:
    """The policy as a request wants it. Raises BadRequest, or Forbidden where that is looser and it may not be.

    Tighter is a stronger mode (off < monitor < steer < block), a lower threshold, or a higher eps; of answers also that
    more is held back. A mode that is wished for holds for every category. Where steering is turned on its eps is at
    least the bundle's; no eps is above `max_eps`.
    """
    if guard is None:
        raise BadRequest("No guard is loaded, so there is nothing to change.", param="guard")
    threshold = _wished_threshold(wish, guard)
    if wish.eps is not None and wish.eps > (bound := max_eps(policy, guard)):
        raise BadRequest(
            f"Invalid value for 'guard.eps': {wish.eps:g} is above {bound:g}, the most that may be asked for here.",
            param="guard.eps",
        )
    mode = policy.mode if wish.mode is None else Mode(wish.mode)
    categories = policy.categories if wish.mode is None else ()
    output = _wished_output(replace(policy, categories=categories), mode, wish.output, guard)
    least = least_eps(policy, mode, guard, output.mode)
    new = replace(
        policy,
        mode=mode,
        categories=categories,
        threshold=policy.threshold if threshold is None else threshold,
        eps=least if wish.eps is None else wish.eps,
        output=output,
    )
    steers = Mode.STEER in (mode, output.mode)
    looser = looser_in(new, policy) or ("eps" if steers and new.eps < least else None)
    if not may_loosen and looser is not None:
        field = _wished_as(looser, wish)
        raise Forbidden(
            f"'guard.{field}' would loosen the policy {policy.name!r}, which this key may not do.",
            param=f"guard.{field}",
            code="may_not_loosen",
        )
    return new


def _wished_as(field: str, wish: GuardOptions) -> str:
    """The field of a request's wish that has set a policy's."""
    if field.startswith("categories."):
        return "mode"
    if field == "threshold" and wish.target_fpr is not None:
        return "target_fpr"
    if field == "output.threshold" and wish.output is not None and wish.output.target_fpr is not None:
        return "output.target_fpr"
    return field


def _wished_threshold(wish: GuardOptions, guard: Calibrated) -> float | None:
    """The threshold that a request asks for, itself or by a false-positive rate."""
    if wish.target_fpr is None:
        return wish.threshold
    if wish.threshold is not None:
        raise BadRequest("'guard.threshold' and 'guard.target_fpr' exclude each other.", param="guard.target_fpr")
    try:
        return guard.threshold_for(wish.target_fpr)
    except ValueError as error:
        raise BadRequest(f"Invalid value for 'guard.target_fpr': {error}.", param="guard.target_fpr") from None


def _wished_output(policy: Policy, mode: Mode, wish: OutputOptions | None, guard: Calibrated) -> OutputPolicy:
    """How answers are watched as a request wants it; what it leaves out is as the policy says. Raises BadRequest."""
    now = policy.output
    if wish is None:
        return now if mode is not Mode.OFF else UNWATCHED
    to = now.mode if wish.mode is None else Mode(wish.mode)
    threshold, hold = wish.threshold, wish.hold
    if to is Mode.OFF and wish.model_fields_set - {"mode"}:
        raise BadRequest("'guard.output' needs a mode other than 'off'.", param="guard.output.mode")
    if to is Mode.OFF:
        return now if wish.mode is None else LEFT_ALONE
    if threshold is not None and wish.target_fpr is not None:
        raise BadRequest(
            "'guard.output.threshold' and 'guard.output.target_fpr' exclude each other.",
            param="guard.output.target_fpr",
        )
    if threshold is None and wish.target_fpr is None and now.mode is not Mode.OFF:
        threshold = now.threshold
    if hold is None and now.intervenes and to in (Mode.STEER, Mode.BLOCK):
        hold = now.hold
    try:
        certain = now.certain if wish.certain is None else wish.certain
        output = guard.output(to, threshold=threshold, target_fpr=wish.target_fpr, hold=hold, certain=certain)
        replace(policy, mode=mode, output=output, eps=policy.eps or guard.eps)
    except ValueError as error:
        raise BadRequest(f"Invalid value for 'guard.output': {error}.", param="guard.output") from None
    return output


def max_eps(policy: Policy, guard: Calibrated) -> float:
    """The highest eps that a request may ask for: a small multiple of the bundle's, or the policy's own if higher."""
    return max(MAX_EPS_FACTOR * guard.eps, policy.eps)


def least_eps(policy: Policy, mode: Mode, guard: Calibrated, output: Mode = Mode.OFF) -> float:
    """The eps of a request in `mode` that names none, and the lowest that is not looser: the policy's.

    A policy that does not steer may have any eps; so where its request turns steering on, of prompts or of answers
    (`output`), it is at least the bundle's.
    """
    turned_on = any(
        new is Mode.STEER and STRENGTH[old] < STRENGTH[Mode.STEER]
        for new, old in ((mode, policy.mode), (output, policy.output.mode))
    )
    return max(policy.eps, guard.eps) if turned_on else policy.eps


def looser_in(new: Policy, policy: Policy) -> str | None:
    """The first field in which a policy is looser than another; None where it is as tight or tighter in all."""
    return next(looser_fields(new, policy), None)


def looser_fields(new: Policy, policy: Policy) -> Iterator[str]:
    """Every field in which a policy is looser than another: mode, `categories`, threshold, eps, those of `output`."""
    if STRENGTH[new.mode] < STRENGTH[policy.mode]:
        yield "mode"
    for name in dict([*policy.categories, *new.categories]):
        if STRENGTH[new.mode_of(name)] < STRENGTH[policy.mode_of(name)]:
            yield f"categories.{name}"
    if policy.mode is not Mode.OFF and new.threshold > policy.threshold:
        yield "threshold"
    steers = all(Mode.STEER in each.modes for each in (policy, new))
    if new.eps < policy.eps and (steers or policy.output.mode is new.output.mode is Mode.STEER):
        yield "eps"
    yield from _looser_outputs(new.output, policy.output, steered=steers)


def value_in(policy: Policy, field: str) -> object:
    """What a policy has in a field that `looser_fields` names."""
    if field == "output.mode" and policy.output == UNWATCHED:
        return "unset"  # which is not `off`: a steered answer is looked at
    group, _, name = field.partition(".")
    return policy.mode_of(name) if group == "categories" else attrgetter(field)(policy)


def _looser_outputs(new: OutputPolicy, old: OutputPolicy, *, steered: bool) -> Iterator[str]:
    if STRENGTH[new.mode] < STRENGTH[old.mode] or (steered and new.left_alone and not old.left_alone):
        yield "output.mode"
    if old.mode is not Mode.OFF and new.threshold > old.threshold:
        yield "output.threshold"
    if old.intervenes and not _holds_as_much(new.hold, old.hold):
        yield "output.hold"
    if old.mode is new.mode is Mode.STEER and _or_never(new.certain) > _or_never(old.certain):
        yield "output.certain"


def _or_never(certain: float | None) -> float:
    return math.inf if certain is None else certain


def _holds_as_much(new: Hold, old: Hold) -> bool:
    """Whether no token is shown earlier. A sentence may be shorter or longer than any number of tokens."""
    if new in ("all", old) or old == 0:
        return True
    return isinstance(new, int) and isinstance(old, int) and new >= old
