"""Drift as it is watched: windows of live traffic, request by request, and what `/metrics` says of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from models import demo
from server.access.policies import make_policies
from server.settings.groups import PolicySettings
from server.settings.schema import Settings
from server.watch.drift import DriftWatch, ScoreWindow
from server.watch.metrics import Metrics
from steering.answers import AnswerReader
from steering.drift import LOOK_EVERY, MIN_SAMPLES, WINDOW, Reference, Scores
from steering.policy import AnswerDecision, Mode, OutputPolicy, Verdict
from steering.scale import Scale
from tests.exposition import metric_of
from tests.server.fakes import policy
from tests.server.scripted import Script, ScriptedGuard, ScriptedRunner, application, chat, client_of

SEEDS = 20
BEFORE = 1000  # requests before the shift: a full window of scores that have not drifted
REQUESTS = 10_000
HARMFUL = 0.1  # share of the traffic
SAFE: Scores = load_file(Path(demo.GUARD) / "guard.safetensors")["calibration.safe_scores"].astype(np.float64)
LOGITS = np.log(SAFE) - np.log1p(-SAFE)


def guard_drift() -> DriftWatch:
    return DriftWatch("guard", "autosteer_policy_threshold")


def traffic(seed: int, requests: int, shift: float = 0.0, harmful: float = 0.0) -> Scores:
    """Scores drawn from the calibration's, shifted by so many standard deviations of their logit."""
    rng = np.random.default_rng(seed)
    scores = 1 / (1 + np.exp(-rng.choice(LOGITS, requests) - shift * LOGITS.std()))
    return np.where(rng.random(requests) < harmful, rng.uniform(0.9, 1.0, requests), scores)


def first_alarm(window: ScoreWindow, scores: Scores) -> int | None:
    """The number of the request after which an alarm is up."""
    for number, score in enumerate(scores.tolist(), 1):
        window.add(score)
        if window.latest is not None and window.latest.alarm:
            return number
    return None


def test_no_alarm_while_traffic_is_as_it_was_and_one_within_500_requests_of_a_shift(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The shift begins with the window full of scores that have not drifted, which is when it is hardest to see."""
    delays = []
    for seed in range(SEEDS):
        assert first_alarm(ScoreWindow(Reference(SAFE, 0.5)), traffic(seed, REQUESTS)) is None
        assert first_alarm(ScoreWindow(Reference(SAFE, 0.5)), traffic(seed, REQUESTS, harmful=HARMFUL)) is None
        window = ScoreWindow(Reference(SAFE, 0.5))
        assert first_alarm(window, traffic(seed, BEFORE)) is None
        delays.append(first_alarm(window, traffic(SEEDS + seed, 500, shift=0.5)))
    with capsys.disabled():
        print(f"\n0 alarms in {2 * SEEDS} x {REQUESTS} requests; requests from the shift to the alarm: {delays}")
    assert None not in delays


def test_a_shift_from_the_start_is_seen_too() -> None:
    for seed in range(SEEDS):
        delay = first_alarm(ScoreWindow(Reference(SAFE, 0.5)), traffic(seed, 500, shift=0.5))
        assert delay is not None
        assert delay >= MIN_SAMPLES


def test_a_window_is_bounded_and_takes_nothing_that_is_flagged() -> None:
    window = ScoreWindow(Reference(SAFE, 0.5))
    for score in (0.5, 0.9, float("nan")):
        window.add(score)
    assert len(window) == 0
    for _ in range(2 * WINDOW):
        window.add(0.1)
    assert len(window) == WINDOW
    assert window.latest is not None
    assert window.latest.window == WINDOW


def test_a_look_is_taken_every_so_many_scores() -> None:
    window = ScoreWindow(Reference(SAFE, 0.5))
    for _ in range(LOOK_EVERY - 1):
        window.add(0.1)
    assert window.latest is None
    assert first_alarm(window, np.array([0.1])) is None
    assert vars(window.latest)["window"] == LOOK_EVERY


def test_a_reload_keeps_the_window_of_a_policy_whose_threshold_stays() -> None:
    watch = guard_drift()
    guard = ScriptedGuard()
    safe = SAFE.tolist()

    def configure(default: float, strict: float) -> None:
        settings = Settings(threshold=default, policies={"strict": PolicySettings(threshold=strict)})
        policies = make_policies(settings, guard)
        watch.configure({name: policy.threshold for name, policy in policies.items()}, safe)

    def sizes() -> dict[str, float]:
        family = next(f for f in watch.collect() if f.name == "autosteer_guard_drift_window")
        return {sample.labels["policy"]: sample.value for sample in family.samples}

    configure(0.5, 0.3)
    for name in ("default", "strict", "unknown"):
        watch.add(name, 0.1)
    assert sizes() == {"default": 1, "strict": 1}
    configure(0.5, 0.2)
    assert sizes() == {"default": 1, "strict": 0}


def test_a_bundle_without_calibration_scores_exports_no_drift_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = guard_drift()
    for _ in range(2):
        watch.configure({"default": 0.5}, ())
    watch.add("default", 0.1)
    samples = {sample.name for family in watch.collect() for sample in family.samples}
    assert samples == {"autosteer_policy_threshold"}
    assert caplog.text.count("no calibration scores") == 1


def test_a_threshold_below_nearly_all_calibration_scores_is_said(caplog: pytest.LogCaptureFixture) -> None:
    guard_drift().configure({"default": SAFE.min() / 2}, SAFE.tolist())
    assert "policy default: 0 calibration scores of its guard lie below its threshold" in caplog.text


def answer_reader(values: Scores) -> AnswerReader:
    """One that is calibrated on harmless answers that come to these values."""
    reader = AnswerReader(1, (1,))
    reader.calibrate(Scale.of(values), 1.0, -4.0)
    return reader


@pytest.mark.parametrize(("shift", "alarm"), [(0.0, 0.0), (0.6, 1.0)])
def test_the_scores_of_answers_are_compared_with_those_of_harmless_ones(shift: float, alarm: float) -> None:
    rng = np.random.default_rng(4)
    reader, metrics = answer_reader(rng.normal(size=1000)), Metrics()
    output = OutputPolicy(Mode.STEER, 0.9)
    policies = {"default": replace(policy(), output=output), "unwatched": replace(policy(), name="unwatched")}
    metrics.watch_policies(policies, (), reader.harmless_scores(1000))
    for value in rng.normal(shift, size=WINDOW).tolist():
        decision = AnswerDecision(Verdict.PASS, reader.score_of(value), 9)
        metrics.answers.ended(policies["default"], decision, None)
        metrics.answers.ended(policies["default"], AnswerDecision(Verdict.PASS, 0.0, 1), None)  # too short to tell
    told = metrics.render().decode()
    assert metric_of(told, "autosteer_answer_drift_alarm", policy="default") == alarm
    assert metric_of(told, "autosteer_answer_threshold", policy="default") == 0.9
    assert 'drift_window{policy="unwatched"}' not in told


async def test_over_http_the_drift_of_every_policy_is_told() -> None:
    runner = ScriptedRunner(answer=lambda text: Script.saying("ok", score=float(text)), calibration=SAFE.tolist())
    async with client_of(application(runner, policies={"strict": {"threshold": 0.2}})) as client:
        for score in traffic(1, 300, shift=1.0).tolist():
            await chat(client, f"{score:.17f}")
        await chat(client, "0.45")
        text = (await client.get("/metrics")).text
    below = metric_of(text, "autosteer_guard_drift_window", policy="default")
    assert 250 <= below <= 301
    assert metric_of(text, "autosteer_guard_drift_window", policy="strict") == 0
    assert metric_of(text, "autosteer_guard_drift_alarm", policy="default") == 1
    assert metric_of(text, "autosteer_guard_drift_alarm", policy="strict") == 0
    assert metric_of(text, "autosteer_guard_drift_psi", policy="default") > 0.5
    assert 0.2 < metric_of(text, "autosteer_guard_drift_ks", policy="default") < 1
    assert 0 <= metric_of(text, "autosteer_guard_drift_p_value", policy="default") < 1e-5
    assert metric_of(text, "autosteer_policy_threshold", policy="default") == 0.5
    assert metric_of(text, "autosteer_policy_threshold", policy="strict") == 0.2
    assert metric_of(text, "autosteer_guard_near_threshold_total", policy="default") >= 1
    assert metric_of(text, "autosteer_guard_near_threshold_total", policy="strict") == 0
