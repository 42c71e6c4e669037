"""The dashboard of serving: latency, load, errors, and the state of each server."""

from __future__ import annotations

from benchmarks.dashboards.expressions import (
    FAILED,
    INSTANCE,
    MODEL,
    per_second,
    quantiles,
    rate,
    series,
)
from benchmarks.dashboards.panels import Dashboard, Levels, Panel, Query, Word

READY = ["AutosteerReplicaNotReady", "AutosteerNoReplicaReady"]
ENDS, REJECTIONS = "autosteer_request_success_total", "autosteer_admission_rejections_total"
SPOILED, NOT_LEFT, OURS = 'finished_reason=~"error|timeout"', 'finished_reason!="abort"', 'job="autosteer"'


def over_5_minutes(name: str, matcher: str) -> str:
    """As the recording rules have it, of the chosen servers."""
    return f"sum(rate({series(name, matcher)}[5m]))"


SERVING = Dashboard(
    uid="autosteer-serving",
    title="Autosteer: serving",
    variables=[MODEL, INSTANCE],
    rows=[
        (
            "Latency",
            [
                Panel(
                    "Time to first token",
                    quantiles("autosteer_time_to_first_token_seconds"),
                    "From the arrival of a request. Objective: p95 below 2 s.",
                    unit="s",
                    levels=Levels("green", [(2, "orange")]),
                    alerts=["AutosteerFirstTokenSlow"],
                ),
                Panel(
                    "Between two tokens",
                    quantiles("autosteer_inter_token_latency_seconds"),
                    "Of one request. Objective: p95 below 400 ms.",
                    unit="s",
                    levels=Levels("green", [(0.4, "orange")]),
                    alerts=["AutosteerTokensSlow"],
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
                        Query(f"sum({per_second('autosteer_generation_tokens_total')})", "generated"),
                        Query(f"sum({per_second('autosteer_prompt_tokens_total')})", "of prompts"),
                    ],
                    "Of all chosen servers together.",
                    unit="suffix: tokens/s",
                ),
                Panel(
                    "Requests by how they end",
                    [rate(ENDS, "finished_reason")],
                    "Accepted requests. `abort`: the client left, or the server stopped.",
                    unit="reqps",
                    stacked=True,
                ),
                Panel(
                    "Requests running and waiting",
                    [
                        Query(f"sum({series('autosteer_num_requests_running')})", "running"),
                        Query(f"sum({series('autosteer_num_requests_waiting')})", "waiting"),
                    ],
                    "At the moment of each scrape.",
                ),
                Panel(
                    "Time in the queue",
                    quantiles("autosteer_request_queue_time_seconds"),
                    "From the arrival of a request until its prompt is computed.",
                    unit="s",
                    levels=Levels("green", [(5, "orange")]),
                    alerts=["AutosteerSaturated"],
                ),
                Panel(
                    "Key-value cache",
                    [Query(series("autosteer_kv_cache_usage_ratio"), "{{instance}}")],
                    "Share of the cache that is filled. Full: the youngest requests are computed again.",
                    unit="percentunit",
                    maximum=1,
                    levels=Levels("green", [(0.95, "orange")]),
                ),
                Panel(
                    "Rows wanted, by server",
                    [
                        Query(
                            f"({series('autosteer_num_requests_running')} + {series('autosteer_num_requests_waiting')})"
                            f" / {series('autosteer_max_rows')}",
                            "{{instance}}",
                        )
                    ],
                    "Running and waiting requests over `max_rows`: is the load balanced? Over 100 % requests wait.",
                    unit="percentunit",
                    levels=Levels("green", [(1, "orange")]),
                    alerts=["AutosteerSaturated", "AutosteerQueueFull"],
                ),
            ],
        ),
        (
            "Errors",
            [
                Panel(
                    "Share of requests that fail",
                    [
                        Query(
                            f"({over_5_minutes(ENDS, SPOILED)} + {over_5_minutes(REJECTIONS, FAILED)}) / "
                            f"({over_5_minutes(ENDS, NOT_LEFT)} + {over_5_minutes(REJECTIONS, FAILED)} > 0)",
                            "failed",
                        )
                    ],
                    "Over 5 minutes; requests that the client spoiled, and clients that left, are not failures.",
                    unit="percentunit",
                    levels=Levels("green", [(0.02, "red")]),
                    alerts=["AutosteerErrorRate"],
                ),
                Panel(
                    "Errors",
                    [
                        Query(
                            f"sum by (finished_reason) ({per_second(ENDS, SPOILED)})",
                            "while generating: {{finished_reason}}",
                        ),
                        Query(f"sum by (reason) ({per_second(REJECTIONS, FAILED)})", "before: {{reason}}"),
                    ],
                    "Failures of the server.",
                    unit="reqps",
                    alerts=["AutosteerErrorRate"],
                ),
                Panel(
                    "Rejections",
                    [rate(REJECTIONS, "reason")],
                    "Requests that were not accepted. `rate_limited` and `queue_full` are 429.",
                    unit="reqps",
                    stacked=True,
                    alerts=["AutosteerQueueFull"],
                ),
            ],
        ),
        (
            "State",
            [
                Panel(
                    "Servers that take requests",
                    [
                        Query(f"sum({series('autosteer_ready')})", "ready"),
                        Query(f"count({series('up', OURS)})", "known"),
                    ],
                    "Known to Prometheus, and ready. The two should be equal.",
                    kind="stat",
                    width=6,
                    unit="none",
                    levels=Levels("red", [(1, "green")]),
                    alerts=READY,
                ),
                Panel(
                    "Ready, by server",
                    [Query(series("autosteer_ready"), "{{instance}}")],
                    "One that loads, drains or has failed takes no requests. No value: Prometheus does not reach it.",
                    unit="none",
                    kind="state-timeline",
                    width=9,
                    words={0: Word("not ready", "red"), 1: Word("takes requests", "green")},
                    alerts=READY,
                ),
                Panel(
                    "Settings",
                    [Query(series("autosteer_config_last_reload_successful"), "{{instance}}")],
                    "Whether the settings that were read last are in effect.",
                    unit="none",
                    kind="state-timeline",
                    width=9,
                    words={0: Word("refused, the old stay", "orange"), 1: Word("in effect", "green")},
                    alerts=["AutosteerReloadFailed"],
                ),
                Panel(
                    "Restarts of the engine",
                    [Query(f"sum(increase({series('autosteer_engine_restarts_total')}[1h]))", "in an hour")],
                    "How often it failed and was started again in the last hour.",
                    kind="stat",
                    width=6,
                    unit="short",
                    levels=Levels("green", [(0.5, "red")]),
                    alerts=["AutosteerReplicaNotReady"],
                ),
                Panel(
                    "Loading, by server",
                    [
                        Query(
                            f"min by (instance, stage) ({series('autosteer_load_progress_ratio')})",
                            "{{instance}}: {{stage}}",
                        )
                    ],
                    "How much of the weights is fetched, and read. 100 %: the model is there.",
                    unit="percentunit",
                    width=6,
                    maximum=1,
                    alerts=["AutosteerReplicaNotReady"],
                ),
                Panel(
                    "Audit log",
                    [Query(series("autosteer_audit_sink_up"), "{{instance}}")],
                    "Whether records can be written.",
                    unit="none",
                    kind="state-timeline",
                    width=6,
                    words={0: Word("fails", "red"), 1: Word("is written", "green")},
                    alerts=["AutosteerAuditSinkFailing"],
                ),
                Panel(
                    "Audit records",
                    [rate("autosteer_audit_records_total", "outcome")],
                    "Written per second. Dropped ones are lost for good.",
                    unit="cps",
                    width=6,
                    alerts=["AutosteerAuditRecordsDropped"],
                ),
                Panel(
                    "Audit records that wait",
                    [Query(series("autosteer_audit_pending"), "{{instance}}")],
                    "Not written yet. It grows while the log cannot be written.",
                    width=6,
                    alerts=["AutosteerAuditSinkFailing"],
                ),
            ],
        ),
    ],
)
