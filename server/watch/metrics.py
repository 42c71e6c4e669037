"""Prometheus metrics: vLLM's names and buckets under our prefix, and the guard's own. Labels are bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

from models.progress import Stage
from server.errors import rejection_reasons
from server.request import Finish, Request
from server.watch.answers import SCORE_BUCKETS, AnswerMetrics
from server.watch.collectors import Gauges, LoadShares, Restarts, Tokens
from server.watch.drift import DriftWatch
from server.watch.recent import RecentDecisions
from steering.policy import Policy, Verdict
from steering.specs import NO_CATEGORY

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
)  # fmt: skip
LATENCY_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
GUARD_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1)
NEAR_THRESHOLD = 0.1  # how far from its threshold a score still counts as near
MODALITIES = ("text", "image")
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"


class Audit(Protocol):
    """What is read of an audit log."""

    failure: str | None

    @property
    def pending(self) -> int:
        """Records that wait."""


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._make_requests()
        self._make_guard()
        self._make_operations()
        # A series that is there before its first event: a rate does not see the step from nothing to one.
        for finish in Finish:
            self.finished.labels(finish.value)
        for reason in rejection_reasons():
            self.rejections.labels(reason)
        for outcome in ("ok", "error"):
            self.reloads.labels(outcome)
        self._put_in_effect()

    def _make_requests(self) -> None:
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From the arrival of a request to its first token.", TTFT_BUCKETS
        )
        self._tokens = Tokens()
        self.registry.register(self._tokens)
        self.e2e_latency = self._histogram(
            "e2e_request_latency_seconds", "From the arrival of a request to its end.", LATENCY_BUCKETS
        )
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "From the arrival of a request until its prompt is computed.", LATENCY_BUCKETS
        )
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of accepted requests.")
        self.finished = self._counter("request_success", "Accepted requests, by how each ended.", ("finished_reason",))
        self.rejections = self._counter(
            "admission_rejections", "Requests refused before they were accepted.", ("reason",)
        )

    def _make_guard(self) -> None:
        self.decisions = self._counter(
            "guard_decisions", "The guard's decisions.", ("policy", "mode", "decision", "modality")
        )
        self.categories = self._counter(
            "guard_categories",
            "Flagged requests, by each category that they count as.",
            ("policy", "category", "decision"),
        )
        self.score = self._histogram("guard_score", "The prober's score, 1 = toxic.", SCORE_BUCKETS, ("policy",))
        self.shadow_decisions = self._counter(
            "shadow_decisions",
            "What a shadow would have decided, beside what was.",
            ("policy", "shadow", "decision", "acting", "modality"),
        )
        self.shadow_score = self._histogram(
            "shadow_score", "The shadow's score, 1 = toxic.", SCORE_BUCKETS, ("policy", "shadow")
        )
        self.shadow_answers = self._counter(
            "shadow_answer_decisions",
            "What a shadow would have decided on answers, beside what became of them.",
            ("policy", "shadow", "decision", "acting"),
        )
        self.shadow_answer_score = self._histogram(
            "shadow_answer_score", "The shadow's score of an answer, 1 = toxic.", SCORE_BUCKETS, ("policy", "shadow")
        )
        self.near_threshold = self._counter(
            "guard_near_threshold", "Scores within 0.1 of the threshold that they were judged by.", ("policy",)
        )
        self.answers = AnswerMetrics(self.registry)
        self.recent = RecentDecisions()
        self.drift = DriftWatch("guard", "autosteer_policy_threshold")
        self.registry.register(self.drift)
        self.guard_overhead = self._histogram(
            "guard_overhead_seconds", "Time the guard took to score one prefill batch.", GUARD_BUCKETS
        )

    def _make_operations(self) -> None:
        self.reloads = self._counter(
            "config_reloads", "Settings read again, by whether they were put in effect.", ("outcome",)
        )
        self._last_reload = self._gauge(
            "config_last_reload_successful", "1 if the last settings read are in effect, else 0."
        )
        self._reload_time = self._gauge(
            "config_last_reload_success_timestamp_seconds", "When settings last took effect."
        )
        self.audit_records = self._counter("audit_records", "Audit records, by what became of them.", ("outcome",))
        self.model_info = Info("autosteer_model", "The loaded model and its guard.", registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(f"autosteer_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"autosteer_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"autosteer_{name}", text, registry=self.registry)

    def reloaded(self, *, successful: bool) -> None:
        """Settings were read again, and put in effect or not."""
        self.reloads.labels("ok" if successful else "error").inc()
        if successful:
            self._put_in_effect()
        else:
            self._last_reload.set(0)

    def _put_in_effect(self) -> None:
        self._last_reload.set(1)
        self._reload_time.set_to_current_time()

    def expect(self, policies: Iterable[Policy], categories: Sequence[str] = ()) -> None:
        """Requests are going to be judged by these policies, and told to be of these categories."""
        for policy in policies:
            self.answers.expect(policy)
            for verdict in policy.possible_verdicts:
                for modality in MODALITIES:
                    self.decisions.labels(policy.name, policy.mode.value, verdict.value, modality)
                for category in () if verdict is Verdict.PASS else (*categories, NO_CATEGORY):
                    self.categories.labels(policy.name, category, verdict.value)

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """Ask whether requests are accepted whenever the metrics are read."""
        self.registry.register(Gauges([("autosteer_ready", "Whether requests are accepted.", ready)]))

    def watch(
        self, running: Callable[[], int], waiting: Callable[[], int], cache_usage: Callable[[], float], max_rows: int
    ) -> None:
        """Read the engine's load whenever the metrics are; `max_rows`: how many requests it can run at once."""
        self.registry.register(
            Gauges(
                [
                    ("autosteer_num_requests_running", "Requests in the running batch.", running),
                    ("autosteer_num_requests_waiting", "Accepted requests that wait for a row.", waiting),
                    (
                        "autosteer_kv_cache_usage_ratio",
                        "Share of the key-value cache that is filled, 0 to 1.",
                        cache_usage,
                    ),
                    ("autosteer_max_rows", "Requests that can be in the running batch.", lambda: max_rows),
                ]
            )
        )

    def watch_restarts(self, restarts: Callable[[], int]) -> None:
        """Read how often the engine was started again whenever the metrics are."""
        self.registry.register(Restarts(restarts))

    def watch_loading(self, shares: Callable[[], Mapping[Stage, float]]) -> None:
        """Read how much of each stage of loading is done whenever the metrics are."""
        self.registry.register(LoadShares(shares))

    def watch_audit(self, audit: Audit) -> None:
        """Read the audit log's state whenever the metrics are."""
        self.registry.register(
            Gauges(
                [
                    ("autosteer_audit_sink_up", "Whether audit records can be written.", lambda: audit.failure is None),
                    ("autosteer_audit_pending", "Audit records that wait to be written.", lambda: audit.pending),
                ]
            )
        )
        for outcome in ("written", "dropped"):
            self.audit_records.labels(outcome)

    def watch_policies(
        self, policies: Mapping[str, Policy], calibration: Sequence[float], of_answers: Sequence[float] = ()
    ) -> None:
        """These are the policies that requests are judged by; `calibration`: scores to compare theirs with.

        `of_answers`: the same for the scores of answers.
        """
        self.drift.configure({name: policy.threshold for name, policy in policies.items()}, calibration)
        self.answers.watch_policies(policies, of_answers)
        for name in policies:
            self.near_threshold.labels(name)

    def audited(self, outcome: str, count: int) -> None:
        """Audit records were written, or dropped."""
        self.audit_records.labels(outcome).inc(count)

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def accepted(self, requests: Sequence[Request]) -> None:
        """Requests were handed to the engine, one for each prompt."""
        self.prompt_tokens.inc(sum(len(request.prompt.ids) for request in requests))

    def decided(self, request: Request) -> None:
        """The first event of a request is there, and with it the guard's decision."""
        if request.timings.scheduled is not None:
            self.queue_time.observe(request.timings.scheduled - request.timings.arrived)
        if (decision := request.decision) is None:
            return
        policy = request.policy
        modality = MODALITIES[bool(request.prompt.image_tokens)]
        self.decisions.labels(policy.name, policy.mode.value, decision.verdict.value, modality).inc()
        self.recent.add(policy.name, decision.verdict.value)
        for category in (decision.kinds or [NO_CATEGORY]) if decision.flagged else ():
            self.categories.labels(policy.name, category, decision.verdict.value).inc()
        if decision.score is not None:
            self.score.labels(policy.name).observe(decision.score)
            if abs(decision.score - policy.threshold) <= NEAR_THRESHOLD:
                self.near_threshold.labels(policy.name).inc()
            self.drift.add(policy.name, decision.score)
            self.guard_overhead.observe(request.timings.guard_seconds)
        if (shadow := request.shadow) is not None and shadow.score is not None:
            self.shadow_decisions.labels(
                policy.name, shadow.shadow, shadow.verdict.value, decision.verdict.value, modality
            ).inc()
            self.shadow_score.labels(policy.name, shadow.shadow).observe(shadow.score)

    def shadow_answered(self, request: Request) -> None:
        """An answer has ended of which a shadow has judged what was no refusal."""
        shadow, answer = request.shadow, request.shadow_answer
        if shadow is None or answer is None:
            return
        acting = "off" if request.answer is None else request.answer.verdict.value
        self.shadow_answers.labels(request.policy.name, shadow.shadow, answer.verdict.value, acting).inc()
        self.shadow_answer_score.labels(request.policy.name, shadow.shadow).observe(answer.score)

    def token(self, before: float | None, now: float, arrived: float) -> None:
        """Count one token of a request; `before` is when its previous one came."""
        if before is None:
            self.time_to_first_token.observe(now - arrived)
            self._tokens.first()
        else:
            self._tokens.another(now - before)

    def ended(self, finish: Finish, seconds: float) -> None:
        """An accepted request reached its one outcome."""
        self.finished.labels(finish.value).inc()
        self.e2e_latency.observe(seconds)
