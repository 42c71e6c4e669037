"""What the dashboards show: each panel's queries, unit and explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["timeseries", "stat", "heatmap"]
Unit = Literal["percentunit", "s", "short", "reqps", "none"]

RATE = "$__rate_interval"
DECISIONS = "autosteer_guard_decisions_total"
SHADOW = "autosteer_shadow_decisions_total"
REFUSED = '{decision=~"steered|blocked"}'


@dataclass(frozen=True)
class Query:
    """One PromQL expression, and how its series are called in the legend."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One panel. `text` says what it means to the reader of the dashboard."""

    title: str
    queries: Sequence[Query]
    text: str
    unit: Unit = "short"
    kind: Kind = "timeseries"
    width: int = 8
    stacked: bool = False


@dataclass(frozen=True)
class Dashboard:
    """A row of panels after another."""

    uid: str
    title: str
    rows: Sequence[tuple[str, Sequence[Panel]]]

    @property
    def panels(self) -> list[Panel]:
        """All panels, in the order in which they stand."""
        return [panel for _, panels in self.rows for panel in panels]


def share(part: str, whole: str, by: str = "") -> str:
    """The share that one rate has of another; without traffic no value instead of a wrong one."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({part}[{RATE}])) / (sum{grouped} (rate({whole}[{RATE}])) > 0)"


def differing(which: str) -> str:
    """The share of requests on which shadow and acting policy differ in one way; 0 where they never did."""
    whole = f"sum by (shadow) (rate({SHADOW}[{RATE}]))"
    return f"(sum by (shadow) (rate({SHADOW}{{{which}}}[{RATE}])) or 0 * {whole}) / ({whole} > 0)"


def quantiles(metric: str) -> list[Query]:
    """Three quantiles of a histogram over all servers."""
    return [
        Query(f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket[{RATE}])))", f"p{round(q * 100)}")
        for q in (0.5, 0.95, 0.99)
    ]


def rate(metric: str, by: str, legend: str | None = None) -> Query:
    """Events per second, by a label."""
    return Query(f"sum by ({by}) (rate({metric}[{RATE}]))", legend or f"{{{{{by}}}}}")


GUARD = Dashboard(
    uid="autosteer-guard",
    title="Autosteer: guard",
    rows=[
        (
            "Refusals",
            [
                Panel(
                    "Refusal rate",
                    [Query(share(DECISIONS + REFUSED, DECISIONS), "refused")],
                    "Share of judged requests that are refused.",
                    unit="percentunit",
                    kind="stat",
                    width=4,
                ),
                Panel(
                    "Refusal rate, all policies",
                    [
                        Query(share(DECISIONS + REFUSED, DECISIONS), "refused"),
                        Query(share(DECISIONS + '{decision!="pass"}', DECISIONS), "flagged, also where only monitored"),
                    ],
                    "Share of judged requests that are refused, and that are flagged.",
                    unit="percentunit",
                    width=10,
                ),
                Panel(
                    "Refusal rate by policy",
                    [Query(share(DECISIONS + REFUSED, DECISIONS, "policy"), "{{policy}}")],
                    "A key's requests are under the policy that the key names; those without keys under `default`.",
                    unit="percentunit",
                    width=10,
                ),
                Panel(
                    "Refusal rate by modality",
                    [Query(share(DECISIONS + REFUSED, DECISIONS, "modality"), "{{modality}}")],
                    "Requests with at least one image, and those of text alone.",
                    unit="percentunit",
                ),
                Panel(
                    "Refusal rate by policy and modality",
                    [Query(share(DECISIONS + REFUSED, DECISIONS, "policy, modality"), "{{policy}}, {{modality}}")],
                    "Where a change comes from.",
                    unit="percentunit",
                ),
                Panel(
                    "Decisions",
                    [rate(DECISIONS, "decision")],
                    "Decisions per second.",
                    unit="reqps",
                    stacked=True,
                ),
            ],
        ),
        (
            "Scores",
            [
                Panel(
                    "Distribution of scores",
                    [Query(f"sum by (le) (increase(autosteer_guard_score_bucket[{RATE}]))", "{{le}}")],
                    "How many requests scored how high, in 20 steps from 0 to 1. Two bands apart: the guard separates "
                    "well. A band that moves: drift.",
                    kind="heatmap",
                    width=12,
                ),
                Panel(
                    "Share near the threshold",
                    [
                        Query(
                            share("autosteer_guard_near_threshold_total", "autosteer_guard_score_count", "policy"),
                            "{{policy}}",
                        )
                    ],
                    "Share of scores within 0.1 of the threshold: decisions that a small change would turn.",
                    unit="percentunit",
                    width=6,
                ),
                Panel(
                    "Refusals that were close",
                    [
                        Query(
                            f"clamp_max(sum by (policy) (rate(autosteer_guard_near_threshold_total[{RATE}])) "
                            f"/ (sum by (policy) (rate({DECISIONS}{REFUSED}[{RATE}])) > 0), 1)",
                            "{{policy}}",
                        )
                    ],
                    "Stands in for false refusals, which nothing in live traffic tells: scores near the threshold "
                    "against refusals, at most 1. An upper bound of the share of refusals that were close.",
                    unit="percentunit",
                    width=6,
                ),
                Panel(
                    "Threshold",
                    [Query("max by (policy) (autosteer_policy_threshold)", "{{policy}}")],
                    "Scores from here on are flagged.",
                    unit="none",
                    width=6,
                ),
                Panel(
                    "Drift: population stability index",
                    [Query("max by (policy) (autosteer_guard_drift_psi)", "{{policy}}")],
                    "Live scores against the calibration's: 0.1 is a moderate shift, 0.25 a large one.",
                    unit="none",
                    width=6,
                ),
                Panel(
                    "Drift: two-sample test",
                    [
                        Query("max by (policy) (autosteer_guard_drift_ks)", "{{policy}}: largest distance"),
                        Query("min by (policy) (autosteer_guard_drift_p_value)", "{{policy}}: p"),
                    ],
                    "Kolmogorov-Smirnov distance of live and calibration scores, and how likely it is by chance.",
                    unit="none",
                    width=6,
                ),
                Panel(
                    "Drift: alarm and window",
                    [
                        Query("max by (policy) (autosteer_guard_drift_alarm)", "{{policy}}: alarm"),
                        Query("max by (policy) (autosteer_guard_drift_window)", "{{policy}}: scores in the window"),
                    ],
                    "1 while the scores have drifted; how many scores that is judged by.",
                    unit="none",
                    width=6,
                ),
            ],
        ),
        (
            "Shadow policy",
            [
                Panel(
                    "Decisions of the shadow policy",
                    [rate(SHADOW, "shadow, decision", "{{shadow}}: {{decision}}")],
                    "What the shadow policy would do. Nothing of it reaches an answer.",
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Shadow against acting",
                    [
                        Query(differing('decision!="pass",acting="pass"'), "{{shadow}}: flagged by the shadow only"),
                        Query(differing('decision="pass",acting!="pass"'), "{{shadow}}: by the acting policy only"),
                    ],
                    "Where the two disagree, as a share of all requests.",
                    unit="percentunit",
                ),
                Panel(
                    "Scores of the shadow policy",
                    [Query(f"sum by (le) (increase(autosteer_shadow_score_bucket[{RATE}]))", "{{le}}")],
                    "As the distribution of scores above, by the shadow's bundle.",
                    kind="heatmap",
                ),
            ],
        ),
        (
            "Cost",
            [
                Panel(
                    "Time to score a prefill batch",
                    quantiles("autosteer_guard_overhead_seconds"),
                    "What the guard adds to the first token.",
                    unit="s",
                    width=12,
                ),
                Panel(
                    "Requests judged, by mode",
                    [rate(DECISIONS, "mode")],
                    "`off` is not judged: requests that go past the guard on purpose.",
                    unit="reqps",
                    width=12,
                    stacked=True,
                ),
            ],
        ),
    ],
)

SERVING = Dashboard(
    uid="autosteer-serving",
    title="Autosteer: serving",
    rows=[
        (
            "Latency",
            [
                Panel(
                    "Time to first token",
                    quantiles("autosteer_time_to_first_token_seconds"),
                    "From the arrival of a request. Objective: p95 below 2 s.",
                    unit="s",
                ),
                Panel(
                    "Between two tokens",
                    quantiles("autosteer_inter_token_latency_seconds"),
                    "Of one request. Objective: p95 below 200 ms.",
                    unit="s",
                ),
                Panel(
                    "Whole request",
                    quantiles("autosteer_e2e_request_latency_seconds"),
                    "From the arrival of a request to its end.",
                    unit="s",
                ),
            ],
        ),
        (
            "Load",
            [
                Panel(
                    "Tokens per second",
                    [
                        Query(f"sum(rate(autosteer_generation_tokens_total[{RATE}]))", "generated"),
                        Query(f"sum(rate(autosteer_prompt_tokens_total[{RATE}]))", "of prompts"),
                    ],
                    "Of all servers together.",
                ),
                Panel(
                    "Requests by how they end",
                    [rate("autosteer_request_success_total", "finished_reason")],
                    "Accepted requests. `abort`: the client left, or the server stopped.",
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Requests running and waiting",
                    [
                        Query("sum(autosteer_num_requests_running)", "running"),
                        Query("sum(autosteer_num_requests_waiting)", "waiting"),
                    ],
                    "At the moment of each scrape.",
                ),
                Panel(
                    "Time in the queue",
                    quantiles("autosteer_request_queue_time_seconds"),
                    "From the arrival of a request until its prompt is computed.",
                    unit="s",
                ),
                Panel(
                    "Key-value cache",
                    [Query("autosteer_kv_cache_usage_ratio", "{{instance}}")],
                    "Share of the cache that is filled.",
                    unit="percentunit",
                ),
                Panel(
                    "Running, by server",
                    [Query("autosteer_num_requests_running", "{{instance}}")],
                    "Whether the load is balanced.",
                ),
            ],
        ),
        (
            "Errors",
            [
                Panel(
                    "Share of requests that fail",
                    [Query("job:autosteer_failures:ratio5m", "failed")],
                    "Over 5 minutes; requests that the client spoiled, and clients that left, are not failures.",
                    unit="percentunit",
                ),
                Panel(
                    "Errors",
                    [
                        Query(
                            "sum by (finished_reason) (rate(autosteer_request_success_total"
                            f'{{finished_reason=~"error|timeout"}}[{RATE}]))',
                            "while generating: {{finished_reason}}",
                        ),
                        Query(
                            "sum by (reason) (rate(autosteer_admission_rejections_total"
                            f'{{reason=~"internal_error|not_ready|audit_failed|deadline_exceeded"}}[{RATE}]))',
                            "before: {{reason}}",
                        ),
                    ],
                    "Failures of the server.",
                    unit="reqps",
                ),
                Panel(
                    "Rejections",
                    [rate("autosteer_admission_rejections_total", "reason")],
                    "Requests that were not accepted. `rate_limited` and `queue_full` are 429.",
                    unit="reqps",
                    stacked=True,
                ),
            ],
        ),
        (
            "State",
            [
                Panel(
                    "Servers that take requests",
                    [Query("sum(autosteer_ready)", "ready"), Query('count(up{job="autosteer"})', "known")],
                    "Known to Prometheus, and ready.",
                    kind="stat",
                    width=4,
                    unit="none",
                ),
                Panel(
                    "Audit records",
                    [
                        rate("autosteer_audit_records_total", "outcome"),
                        Query("sum(autosteer_audit_pending)", "waiting to be written"),
                    ],
                    "Written and dropped per second, and how many wait now.",
                    width=8,
                ),
                Panel(
                    "Audit sink",
                    [Query("autosteer_audit_sink_up", "{{instance}}")],
                    "1 while records can be written.",
                    unit="none",
                    width=6,
                ),
                Panel(
                    "Settings read again",
                    [Query("autosteer_config_last_reload_successful", "{{instance}}")],
                    "1 while the settings that were read last are in effect, 0 while they are refused.",
                    unit="none",
                    width=6,
                ),
            ],
        ),
    ],
)

DASHBOARDS = {"guard": GUARD, "serving": SERVING}
