"""Metrics of answers that are watched, by a reader or, where they are steered, for a refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram

from server.watch.drift import DriftWatch
from steering.policy import AnswerDecision, Fallback, Mode, Policy, Verdict

SCORE_BUCKETS = tuple(step / 20 for step in range(1, 21))
SHOWN_BUCKETS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0)
_VERDICTS = {
    Mode.OFF: (),
    Mode.MONITOR: (Verdict.PASS, Verdict.MONITORED),
    Mode.STEER: (Verdict.PASS, Verdict.STEERED, Verdict.BLOCKED),
    Mode.BLOCK: (Verdict.PASS, Verdict.BLOCKED),
}
_LEAST_TOKENS = 2  # of which an answer's score comes to anything


class AnswerMetrics:
    """What became of answers, by policy; each is counted once, at its end."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"autosteer_answer_{name}", text, ("policy", *labels), registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"autosteer_answer_{name}", text, ("policy",), buckets=buckets, registry=registry)

        self._decisions = counter("decisions", "What became of watched answers.", "mode", "decision")
        self._fallbacks = counter("fallbacks", "Answers for which the policy's refusal text stands.", "reason")
        self._dropped = counter("dropped_tokens", "Tokens that were held back and never shown.")
        self._shown = histogram("shown_tokens", "Tokens of a flagged answer that had been shown.", SHOWN_BUCKETS)
        self._score = histogram("score", "The final score of an answer, 1 = toxic.", SCORE_BUCKETS)
        self.drift = DriftWatch("answer", "autosteer_answer_threshold")
        registry.register(self.drift)

    def watch_policies(self, policies: Mapping[str, Policy], calibration: Sequence[float]) -> None:
        """Watch the drift of the answers of those that watch any; `calibration`: scores to compare theirs with."""
        outputs = {name: policy.output for name, policy in policies.items()}
        watching = {name: each.threshold for name, each in outputs.items() if each.mode is not Mode.OFF}
        self.drift.configure(watching, calibration)

    def expect(self, policy: Policy) -> None:
        """Answers are going to be judged by this policy."""
        mode = policy.output.mode
        for verdict in _VERDICTS[mode]:
            self._decisions.labels(policy.name, mode.value, verdict.value)
        if mode is not Mode.OFF:
            self._shown.labels(policy.name)
        if policy.output.intervenes or Mode.STEER in policy.modes:
            self._dropped.labels(policy.name)
            for reason in Fallback:
                self._fallbacks.labels(policy.name, reason.value)

    def flagged(self, policy: Policy, shown: int) -> None:
        """An answer was flagged of which so many tokens had been shown."""
        self._shown.labels(policy.name).observe(shown)

    def dropped(self, policy: Policy, tokens: int) -> None:
        """Count tokens that were held back and are never shown."""
        self._dropped.labels(policy.name).inc(tokens)

    def ended(self, policy: Policy, answer: AnswerDecision | None, fallback: Fallback | None) -> None:
        """An answer has ended; of one that was watched, `answer` is None where the engine had not told of it yet."""
        verdict = Verdict.PASS if answer is None else answer.verdict
        if fallback is not None:
            verdict = Verdict.BLOCKED
            self._fallbacks.labels(policy.name, fallback.value).inc()
        if policy.output.mode is Mode.OFF:
            return
        self._decisions.labels(policy.name, policy.output.mode.value, verdict.value).inc()
        if answer is not None:
            self._score.labels(policy.name).observe(answer.score)
            if answer.tokens >= _LEAST_TOKENS:
                self.drift.add(policy.name, answer.score)
