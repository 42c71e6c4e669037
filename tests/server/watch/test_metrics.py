"""What is counted, under which names and labels. Dashboards and alerts are built on these."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.errors import rejection_reasons
from server.request import Finish, Request
from server.watch.collectors import ITL_BUCKETS
from server.watch.metrics import Metrics
from steering.policy import CategoryScore, Decision, Mode, Policy, Verdict
from tests.server.fakes import ask, own, request

FAMILIES = {
    "autosteer_time_to_first_token_seconds": "histogram",
    "autosteer_inter_token_latency_seconds": "histogram",
    "autosteer_e2e_request_latency_seconds": "histogram",
    "autosteer_request_queue_time_seconds": "histogram",
    "autosteer_num_requests_running": "gauge",
    "autosteer_num_requests_waiting": "gauge",
    "autosteer_kv_cache_usage_ratio": "gauge",
    "autosteer_max_rows": "gauge",
    "autosteer_prompt_tokens": "counter",
    "autosteer_generation_tokens": "counter",
    "autosteer_request_success": "counter",
    "autosteer_admission_rejections": "counter",
    "autosteer_guard_decisions": "counter",
    "autosteer_guard_categories": "counter",
    "autosteer_guard_score": "histogram",
    "autosteer_guard_near_threshold": "counter",
    "autosteer_policy_threshold": "gauge",
    "autosteer_answer_decisions": "counter",
    "autosteer_answer_fallbacks": "counter",
    "autosteer_answer_dropped_tokens": "counter",
    "autosteer_answer_shown_tokens": "histogram",
    "autosteer_answer_score": "histogram",
    "autosteer_shadow_decisions": "counter",
    "autosteer_shadow_score": "histogram",
    "autosteer_shadow_answer_decisions": "counter",
    "autosteer_shadow_answer_score": "histogram",
    "autosteer_answer_threshold": "gauge",
    "autosteer_answer_drift_window": "gauge",
    "autosteer_answer_drift_psi": "gauge",
    "autosteer_answer_drift_ks": "gauge",
    "autosteer_answer_drift_p_value": "gauge",
    "autosteer_answer_drift_alarm": "gauge",
    "autosteer_guard_drift_window": "gauge",
    "autosteer_guard_drift_psi": "gauge",
    "autosteer_guard_drift_ks": "gauge",
    "autosteer_guard_drift_p_value": "gauge",
    "autosteer_guard_drift_alarm": "gauge",
    "autosteer_guard_overhead_seconds": "histogram",
    "autosteer_config_reloads": "counter",
    "autosteer_config_last_reload_successful": "gauge",
    "autosteer_config_last_reload_success_timestamp_seconds": "gauge",
    "autosteer_audit_records": "counter",
    "autosteer_model_info": "gauge",
    "autosteer_ready": "gauge",
    "autosteer_engine_restarts": "counter",
    "autosteer_load_progress_ratio": "gauge",
}


def watched() -> Metrics:
    metrics = Metrics()
    metrics.watch(lambda: 2, lambda: 3, lambda: 0.25, 4)
    metrics.watch_ready(lambda: True)
    metrics.watch_restarts(lambda: 0)
    metrics.watch_loading(lambda: {"download": 1.0, "weights": 0.5})
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"autosteer_{name}", labels)


def judged(decision: Decision, image_tokens: int = 0, mode: Mode = Mode.STEER) -> Request:
    asked = ask("r", [1, 2, 3], mode=mode)
    made = own(replace(asked, prompt=replace(asked.prompt, image_tokens=image_tokens)))
    made.decision = decision
    made.timings.arrived, made.timings.scheduled = 10.0, 10.5
    made.timings.guard_seconds = 0.002
    return made


def test_the_names_and_types() -> None:
    text = watched().render().decode()
    types = {family.name: family.type for family in text_string_to_metric_families(text)}
    assert {name: kind for name, kind in types.items() if not name.endswith("_created")} == FAMILIES


def test_the_load_is_read_at_every_scrape() -> None:
    metrics = Metrics()
    running = iter([1, 4])
    metrics.watch(lambda: next(running), lambda: 0, lambda: 0.0, 4)
    assert b"autosteer_num_requests_running 1.0" in metrics.render()
    assert b"autosteer_num_requests_running 4.0" in metrics.render()


@pytest.mark.parametrize("image_tokens", [0, 2])
@pytest.mark.parametrize("verdict", Verdict)
def test_a_decision_is_counted_by_policy_mode_verdict_and_modality(verdict: Verdict, image_tokens: int) -> None:
    metrics = Metrics()
    metrics.decided(judged(Decision(verdict, 0.93, 0.0), image_tokens, Mode.MONITOR))
    modality = "image" if image_tokens else "text"
    labels = {"policy": "default", "mode": "monitor", "decision": verdict.value, "modality": modality}
    assert value(metrics, "guard_decisions_total", **labels) == 1
    assert value(metrics, "guard_score_bucket", policy="default", le="0.9") == 0
    assert value(metrics, "guard_score_bucket", policy="default", le="0.95") == 1
    assert value(metrics, "guard_overhead_seconds_sum") == 0.002
    assert value(metrics, "request_queue_time_seconds_sum") == 0.5


def test_a_flagged_request_is_counted_by_its_categories() -> None:
    metrics = Metrics()
    policy = Policy("default", Mode.STEER, 0.5, 1.0, "No.", categories=(("weapons", Mode.BLOCK),))
    metrics.expect([policy], ["weapons", "fraud"])
    counted = {"policy": "default", "category": "weapons"}
    assert value(metrics, "guard_categories_total", **counted, decision="blocked") == 0
    found = [CategoryScore("weapons", 0.9, reached=True), CategoryScore("fraud", 0.1, reached=False)]
    metrics.decided(judged(Decision(Verdict.BLOCKED, 0.93, 0.0, found)))
    metrics.decided(judged(Decision(Verdict.STEERED, 0.93, 1.0)))
    metrics.decided(judged(Decision(Verdict.PASS, 0.1, 0.0, found)))
    assert value(metrics, "guard_categories_total", **counted, decision="blocked") == 1
    assert value(metrics, "guard_categories_total", policy="default", category="fraud", decision="blocked") == 0
    assert value(metrics, "guard_categories_total", policy="default", category="(none)", decision="steered") == 1
    families = text_string_to_metric_families(metrics.render().decode())
    counts = [each for family in families for each in family.samples if each.name == "autosteer_guard_categories_total"]
    assert sum(each.value for each in counts) == 2


def test_a_request_without_a_score_leaves_the_scores_alone() -> None:
    metrics = Metrics()
    metrics.decided(judged(Decision(Verdict.PASS, None, 0.0), mode=Mode.OFF))
    labels = {"policy": "default", "mode": "off", "decision": "pass", "modality": "text"}
    assert value(metrics, "guard_decisions_total", **labels) == 1
    assert value(metrics, "guard_score_count", policy="default") is None
    assert value(metrics, "guard_overhead_seconds_count") == 0


def test_a_request_that_ended_before_it_ran_has_no_decision_and_no_queue_time() -> None:
    metrics = Metrics()
    metrics.decided(request("r", [1]))
    assert value(metrics, "request_queue_time_seconds_count") == 0
    assert b"autosteer_guard_decisions_total{" not in metrics.render()


def test_the_first_token_is_timed_from_the_arrival_and_the_next_from_the_one_before() -> None:
    metrics = Metrics()
    metrics.token(None, 12.0, arrived=10.0)
    metrics.token(12.0, 12.25, arrived=10.0)
    assert value(metrics, "time_to_first_token_seconds_sum") == 2.0
    assert value(metrics, "inter_token_latency_seconds_sum") == 0.25
    assert value(metrics, "generation_tokens_total") == 2


def test_tokens_are_told_as_a_histogram_would_tell_them() -> None:
    metrics = Metrics()
    histogram = Histogram("autosteer_x", "", buckets=ITL_BUCKETS, registry=CollectorRegistry())
    for seconds in (0.0, 0.01, 0.0100001, 0.2, 80.0, 80.1, 1000.0):
        metrics.token(10.0, 10.0 + seconds, arrived=10.0)
        histogram.observe(10.0 + seconds - 10.0)
    (expected,) = histogram.collect()
    (found,) = [each for each in metrics.registry.collect() if each.name == "autosteer_inter_token_latency_seconds"]

    def told(metric: Metric) -> dict[tuple[str, str | None], float]:
        samples = [(s.name.removeprefix(metric.name), s.labels.get("le"), s.value) for s in metric.samples]
        return {(name, bound): value for name, bound, value in samples if name != "_created"}

    assert told(found) == told(expected)
    assert [s.name.removeprefix(found.name) for s in found.samples][-1] == "_created"


def test_every_outcome_is_there_from_the_start() -> None:
    """A rate over a series that appears only with its first failure misses that failure."""
    metrics = Metrics()
    for finish in Finish:
        assert value(metrics, "request_success_total", finished_reason=finish.value) == 0
        metrics.ended(finish, 1.0)
        assert value(metrics, "request_success_total", finished_reason=finish.value) == 1
    assert value(metrics, "e2e_request_latency_seconds_count") == len(Finish)
    for reason in rejection_reasons():
        assert value(metrics, "admission_rejections_total", reason=reason) == 0
    assert value(metrics, "config_reloads_total", outcome="error") == 0


def test_every_decision_that_a_policy_can_come_to_is_there_from_the_start() -> None:
    metrics = Metrics()
    metrics.expect([Policy("strict", Mode.BLOCK, 0.5, 1.0, "No."), Policy("free", Mode.OFF, 0.5, 1.0, "No.")])
    found = {
        (s.labels["policy"], s.labels["decision"], s.labels["modality"], s.value)
        for family in text_string_to_metric_families(metrics.render().decode())
        for s in family.samples
        if s.name == "autosteer_guard_decisions_total"
    }
    decisions = [("strict", "pass"), ("strict", "blocked"), ("free", "pass")]
    assert found == {(*each, modality, 0.0) for each in decisions for modality in ("text", "image")}


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.accepted([request("r", [1, 2, 3])])
    assert (value(first, "prompt_tokens_total"), value(second, "prompt_tokens_total")) == (3, 0)
