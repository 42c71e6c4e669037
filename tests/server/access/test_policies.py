"""What a request may change of its policy: tighter always, looser only with the permission."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from server.access.policies import (
    MAX_EPS_FACTOR,
    looser_fields,
    looser_in,
    make_policies,
    make_policy,
    value_in,
    wished_policy,
)
from server.api.answer_fields import GuardOptions, OutputOptions
from server.errors import BadRequest, Forbidden
from server.settings.groups import OutputSettings, PolicySettings
from server.settings.schema import Settings
from steering.policy import LEFT_ALONE, Decision, Mode, OutputPolicy, Policy, PolicyError, Verdict, decide
from tests.server.scripted import THRESHOLDS, ScriptedGuard

GUARD = ScriptedGuard()
UNIT = st.floats(0, 1)
STRENGTH = st.floats(0.01, MAX_EPS_FACTOR * GUARD.eps)
POLICIES = st.builds(
    lambda mode, threshold, eps: Policy("p", mode, threshold, eps, "No."), st.sampled_from(Mode), UNIT, STRENGTH
)
WISHES = st.builds(
    lambda mode, limit, eps: GuardOptions(mode=mode, eps=eps, **limit),
    st.none() | st.sampled_from([mode.value for mode in Mode]),
    st.just({}) | st.builds(lambda t: {"threshold": t}, UNIT)
    | st.builds(lambda t: {"target_fpr": t}, st.sampled_from(sorted(THRESHOLDS))),
    st.none() | STRENGTH,
)  # fmt: skip


def consequence(decision: Decision) -> tuple[int, float]:
    """How hard a decision is on the answer: nothing, counted, changed; and how strongly."""
    order = {Verdict.PASS: 0, Verdict.MONITORED: 1, Verdict.STEERED: 2, Verdict.BLOCKED: 2}
    return order[decision.verdict], decision.eps if decision.verdict is Verdict.STEERED else float("inf")


@given(POLICIES, WISHES, st.lists(UNIT, min_size=1, max_size=20))
def test_without_the_permission_no_wish_ends_in_a_looser_policy(
    policy: Policy, wish: GuardOptions, scores: list[float]
) -> None:
    try:
        new = wished_policy(policy, wish, GUARD, may_loosen=False)
    except Forbidden:
        return
    assert looser_in(new, policy) is None
    assert (new.name, new.refusal, new.expose_scores) == (policy.name, policy.refusal, policy.expose_scores)
    for score in scores:  # and what it does to any request is as hard, or harder
        before, after = (consequence(decide([score], [each])[0]) for each in (policy, new))
        assert after[0] >= before[0]
        if before[0] == after[0] == 2:
            assert new.mode is Mode.BLOCK or new.eps >= policy.eps
        if new.mode is Mode.STEER is not policy.mode:  # what is told as steered is steered
            assert new.eps >= GUARD.eps


@given(POLICIES, WISHES)
def test_with_the_permission_every_wish_is_granted(policy: Policy, wish: GuardOptions) -> None:
    new = wished_policy(policy, wish, GUARD, may_loosen=True)
    threshold = THRESHOLDS[wish.target_fpr] if wish.target_fpr is not None else wish.threshold
    assert new.mode == (wish.mode or policy.mode)
    assert new.threshold == (policy.threshold if threshold is None else threshold)
    turned_on = new.mode is Mode.STEER and policy.mode in (Mode.OFF, Mode.MONITOR)
    assert new.eps == (wish.eps or (max(policy.eps, GUARD.eps) if turned_on else policy.eps))


@given(POLICIES, POLICIES, POLICIES)
def test_the_order_is_one(a: Policy, b: Policy, c: Policy) -> None:
    assert looser_in(a, a) is None
    if a.mode is not Mode.OFF and looser_in(b, a) is None and looser_in(c, b) is None:
        assert looser_in(c, a) is None


STEER = Policy("p", Mode.STEER, 0.5, 1.0, "No.")


def test_steering_is_looser_than_blocking() -> None:
    """What steering fails on gets through, and what is blocked never does."""
    block = Policy("p", Mode.BLOCK, 0.5, 1.0, "No.")
    with pytest.raises(Forbidden, match=r"guard\.mode"):
        wished_policy(block, GuardOptions(mode="steer", eps=2.0), GUARD, may_loosen=False)
    assert wished_policy(STEER, GuardOptions(mode="block"), GUARD, may_loosen=False).mode is Mode.BLOCK


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.MONITOR])
@pytest.mark.parametrize("own", [0.25, 1.0, 2.0])
def test_steering_that_a_request_turns_on_is_not_a_pretence(mode: Mode, own: float) -> None:
    """With an eps of next to nothing the harmful answer would come unchanged, told and counted as steered."""
    policy = Policy("p", mode, 0.5, own, "No.")
    with pytest.raises(Forbidden, match=r"guard\.eps"):
        wished_policy(policy, GuardOptions(mode="steer", eps=0.001), GUARD, may_loosen=False)
    assert wished_policy(policy, GuardOptions(mode="steer"), GUARD, may_loosen=False).eps == max(GUARD.eps, own)
    assert wished_policy(policy, GuardOptions(mode="steer", eps=2.0), GUARD, may_loosen=False).eps == 2.0


@pytest.mark.parametrize("may_loosen", [True, False])
def test_an_eps_of_many_times_the_bundles_is_refused_with_the_bound(may_loosen: bool) -> None:
    """It is no tighter: noise up to the limit of tokens, and many times the work."""
    with pytest.raises(BadRequest, match=r"guard\.eps.* 2\.1 is above 2,") as caught:
        wished_policy(STEER, GuardOptions(eps=2.1), GUARD, may_loosen=may_loosen)
    assert caught.value.param == "guard.eps"
    assert wished_policy(STEER, GuardOptions(eps=2.0), GUARD, may_loosen=may_loosen).eps == 2.0
    stronger = Policy("p", Mode.STEER, 0.5, 9.0, "No.")  # of one who knows why
    assert wished_policy(stronger, GuardOptions(eps=9.0), GUARD, may_loosen=may_loosen).eps == 9.0


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"mode": "off"}, "guard.mode"),
        ({"mode": "monitor"}, "guard.mode"),
        ({"threshold": 0.51}, "guard.threshold"),
        ({"target_fpr": 0.01}, "guard.target_fpr"),
        ({"eps": 0.9}, "guard.eps"),
        ({"mode": "block", "threshold": 0.9}, "guard.threshold"),
    ],
)
def test_looser_is_403_with_the_field(wish: dict[str, Any], param: str) -> None:
    with pytest.raises(Forbidden) as caught:
        wished_policy(STEER, GuardOptions(**wish), GUARD, may_loosen=False)
    assert caught.value.body["error"] | {"message": ""} == {
        "message": "", "type": "permission_error", "param": param, "code": "may_not_loosen",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wish", "guard", "words"),
    [
        ({"threshold": 0.1, "target_fpr": 0.05}, GUARD, "exclude"),
        ({"target_fpr": 0.02}, GUARD, "it has 0.01, 0.05"),
        ({"mode": "block"}, None, "No guard"),
    ],
)
def test_what_cannot_be_is_400(wish: dict[str, Any], guard: ScriptedGuard | None, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        wished_policy(STEER, GuardOptions(**wish), guard, may_loosen=True)


def test_every_policy_of_the_settings_is_checked_against_the_guard() -> None:
    settings = Settings(threshold=0.3, policies={"strict": PolicySettings(mode=Mode.BLOCK, target_fpr=0.05)})
    made = make_policies(settings, GUARD)
    assert (made["default"].threshold, made["strict"].threshold, made["strict"].mode) == (0.3, 0.4, Mode.BLOCK)
    wrong = Settings(policies={"strict": PolicySettings(target_fpr=0.2)})
    with pytest.raises(PolicyError, match=r"policies\.strict: target_fpr 0.2 is not calibrated"):
        make_policies(wrong, GUARD)


def test_without_a_guard_only_off_is_possible() -> None:
    assert make_policy("default", PolicySettings(), None).mode is Mode.OFF
    for terms in (PolicySettings(mode=Mode.STEER), PolicySettings(eps=1.0), PolicySettings(refusal="No.")):
        with pytest.raises(PolicyError, match=r"policies\.p: .* needs a guard"):
            make_policy("p", terms, None)


# categories --------------------------------------------------------------------------------------------------------


class Telling(ScriptedGuard):
    category_names = ("fraud", "weapons")


def acting(**terms: Any) -> Policy:
    return make_policy("default", PolicySettings.model_validate(terms), Telling())


def test_a_policy_acts_by_the_categories_that_its_bundle_has() -> None:
    policy = acting(mode="steer", categories={"block": ["weapons"], "monitor": ["fraud"]})
    assert dict(policy.categories) == {"weapons": Mode.BLOCK, "fraud": Mode.MONITOR}
    strict = Settings.model_validate(
        {"categories": {"block": ["weapons"]}, "policies": {"own": {"categories": {"monitor": ["fraud"]}}, "as": {}}}
    )
    made = make_policies(strict, Telling())
    assert dict(made["own"].categories) == {"fraud": Mode.MONITOR}
    assert made["as"].categories == made["default"].categories


@pytest.mark.parametrize(
    ("guard", "told"),
    [
        (
            Telling(),
            r"policies\.p: categories\.block 'arson' is no category of this guard bundle; it has fraud, weapons",
        ),
        (GUARD, r"policies\.p: categories\.block 'arson' is no .*; it has none; fit one on pairs that name their"),
        (None, r"policies\.p: categories needs a guard"),
    ],
)
def test_a_category_that_the_bundle_does_not_have_is_refused_by_name(guard: ScriptedGuard | None, told: str) -> None:
    terms = PolicySettings.model_validate({"categories": {"block": ["arson"]}})
    with pytest.raises(PolicyError, match=told) as refused:
        make_policy("p", terms, guard)
    assert "\n" not in str(refused.value)


def test_a_category_has_one_mode() -> None:
    with pytest.raises(ValidationError, match="fraud: in more than one list"):
        PolicySettings.model_validate({"categories": {"block": ["fraud"], "monitor": ["fraud", "weapons"]}})
    with pytest.raises(PolicyError, match="categories needs a mode other than off"):
        acting(mode="off", categories={"block": ["fraud"]})


@pytest.mark.parametrize(
    ("new", "field"),
    [
        ({}, "categories.weapons"),
        ({"categories": {"block": ["weapons"], "monitor": ["fraud"]}}, "categories.fraud"),
        ({"categories": {"steer": ["weapons"]}}, "categories.weapons"),
        ({"categories": {"block": ["weapons", "fraud"]}}, None),
        ({"mode": "block"}, None),
        ({"mode": "monitor", "categories": {"block": ["weapons"]}}, "mode"),
    ],
)
def test_a_weaker_mode_of_a_category_is_looser(new: dict[str, Any], field: str | None) -> None:
    before = acting(mode="steer", categories={"block": ["weapons"]})
    assert looser_in(acting(**{"mode": "steer", **new}), before) == field


def test_a_mode_that_a_request_asks_for_holds_for_every_category() -> None:
    policy = acting(mode="steer", categories={"block": ["weapons"], "monitor": ["fraud"]})
    wished = wished_policy(policy, GuardOptions(mode="block"), Telling(), may_loosen=False)
    assert (wished.mode, wished.categories) == (Mode.BLOCK, ())
    kept = wished_policy(policy, GuardOptions(threshold=0.1), Telling(), may_loosen=False)
    assert kept.categories == policy.categories
    with pytest.raises(Forbidden) as refused:
        wished_policy(policy, GuardOptions(mode="steer"), Telling(), may_loosen=False)
    assert refused.value.param == "guard.mode"
    assert wished_policy(policy, GuardOptions(mode="off"), Telling(), may_loosen=True).mode is Mode.OFF


# answers -----------------------------------------------------------------------------------------------------------


class Reading(ScriptedGuard):
    watches = True


def said(**output: Any) -> OutputPolicy:
    """What a policy in mode steer makes of these settings of answers."""
    terms = PolicySettings(mode=Mode.STEER, output=OutputSettings(**output) if output else None)
    return make_policy("default", terms, Reading()).output


def test_answers_are_watched_as_prompts_are_where_the_bundle_reads_them_and_nothing_is_said() -> None:
    assert said() == OutputPolicy(Mode.STEER, 0.5, 16)
    assert said(mode="monitor") == OutputPolicy(Mode.MONITOR, 0.5, 0)
    assert said(mode="off") == LEFT_ALONE
    assert said(mode="block", target_fpr=0.01, hold="all") == OutputPolicy(Mode.BLOCK, THRESHOLDS[0.01], "all")
    assert said(certain=0.99) == OutputPolicy(Mode.STEER, 0.5, 16, 0.99)
    assert make_policy("default", PolicySettings(mode=Mode.OFF), Reading()).output == OutputPolicy()
    assert make_policy("default", PolicySettings(mode=Mode.STEER), GUARD).output == OutputPolicy()


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        (PolicySettings(output=OutputSettings(mode=Mode.BLOCK)), "no reader of answers"),
        (PolicySettings(output=OutputSettings(hold=4, mode=Mode.STEER)), "no reader of answers"),
    ],
)
def test_a_policy_that_watches_answers_needs_a_bundle_that_reads_them(terms: PolicySettings, told: str) -> None:
    with pytest.raises(PolicyError, match=told):
        make_policy("default", terms, GUARD)
    with pytest.raises(PolicyError, match="needs a guard"):
        make_policy("default", terms, None)


@pytest.mark.parametrize(
    ("terms", "told"),
    [
        ({"mode": "off", "output": {"mode": "block"}}, "needs a mode other than off"),
        ({"output": {"mode": "monitor", "hold": 4}}, "output.hold must be 0"),
        ({"output": {"target_fpr": 0.3}}, "not calibrated"),
    ],
)
def test_settings_of_answers_that_do_not_fit_are_refused(terms: dict[str, Any], told: str) -> None:
    with pytest.raises(PolicyError, match=told):
        make_policy("default", PolicySettings(**terms), Reading())


WATCHING = replace(STEER, output=OutputPolicy(Mode.STEER, 0.5, 8, certain=0.9))


def test_that_steered_answers_are_left_alone_is_looser_where_nothing_reads_answers_too() -> None:
    off, empty = GuardOptions(output=OutputOptions(mode="off")), GuardOptions(output=OutputOptions())
    with pytest.raises(Forbidden) as refused:
        wished_policy(STEER, off, GUARD, may_loosen=False)
    assert refused.value.param == "guard.output.mode"
    alone = wished_policy(STEER, off, GUARD, may_loosen=True)
    assert alone.output == LEFT_ALONE
    assert wished_policy(alone, off, GUARD, may_loosen=False) == alone
    assert wished_policy(STEER, empty, GUARD, may_loosen=False).output == STEER.output == OutputPolicy()
    assert [value_in(each, "output.mode") for each in (STEER, alone)] == ["unset", Mode.OFF]
    assert list(looser_fields(alone, STEER)) == ["output.mode"]
    assert list(looser_fields(STEER, alone)) == []
    assert list(looser_fields(replace(WATCHING, output=LEFT_ALONE), WATCHING)).count("output.mode") == 1


@pytest.mark.parametrize(
    ("wish", "field"),
    [
        ({"mode": "monitor"}, "output.mode"),
        ({"mode": "off"}, "output.mode"),
        ({"threshold": 0.6}, "output.threshold"),
        ({"target_fpr": 0.01}, "output.target_fpr"),
        ({"hold": 7}, "output.hold"),
        ({"hold": "sentence"}, "output.hold"),
        ({"certain": 0.95}, "output.certain"),
    ],
)
def test_a_request_may_not_loosen_what_is_said_of_answers(wish: dict[str, Any], field: str) -> None:
    with pytest.raises(Forbidden) as refused:
        wished_policy(WATCHING, GuardOptions(output=OutputOptions(**wish)), Reading(), may_loosen=False)
    assert refused.value.param == f"guard.{field}"
    assert wished_policy(WATCHING, GuardOptions(output=OutputOptions(**wish)), Reading(), may_loosen=True)


@pytest.mark.parametrize(
    ("wish", "made"),
    [
        ({"mode": "block"}, OutputPolicy(Mode.BLOCK, 0.5, 8, 0.9)),
        ({"threshold": 0.2, "hold": 9}, OutputPolicy(Mode.STEER, 0.2, 9, 0.9)),
        ({"hold": "all"}, OutputPolicy(Mode.STEER, 0.5, "all", 0.9)),
        ({"target_fpr": 0.05}, OutputPolicy(Mode.STEER, THRESHOLDS[0.05], 8, 0.9)),
        ({"certain": 0}, OutputPolicy(Mode.STEER, 0.5, 8, 0.0)),
    ],
)
def test_a_request_may_tighten_what_is_said_of_answers(wish: dict[str, Any], made: OutputPolicy) -> None:
    asked = GuardOptions(output=OutputOptions(**wish))
    assert wished_policy(WATCHING, asked, Reading(), may_loosen=False).output == made
    with pytest.raises(BadRequest):
        wished_policy(STEER, GuardOptions(output=OutputOptions(hold=3)), Reading(), may_loosen=False)
    with pytest.raises(BadRequest):
        wished_policy(STEER, GuardOptions(output=OutputOptions(mode="block")), GUARD, may_loosen=False)
