"""PromQL of our metrics, narrowed to what the reader of a dashboard has chosen."""

from __future__ import annotations

from benchmarks.dashboards.panels import Annotation, Query, Variable

RATE = "$__rate_interval"
DECISIONS = "autosteer_guard_decisions_total"
CATEGORIES = "autosteer_guard_categories_total"
SHADOW = "autosteer_shadow_decisions_total"
SHADOW_ANSWERS = "autosteer_shadow_answer_decisions_total"
REFUSED = 'decision=~"steered|blocked"'
FLAGGED = 'decision!="pass"'
# But for autosteer_guard_overhead.
BY_POLICY = ("autosteer_guard_", "autosteer_answer_", "autosteer_shadow_", "autosteer_policy_")
FAILED = 'reason=~"internal_error|not_ready|audit_failed|deadline_exceeded"'

MODEL = Variable("model", "Model", "autosteer_model_info", wild=True)
INSTANCE = Variable("instance", "Server", 'autosteer_model_info{model=~"$model"}', wild=False)
POLICY = Variable("policy", "Policy", 'autosteer_policy_threshold{instance=~"$instance"}', wild=True)


def series(name: str, *matchers: str) -> str:
    """A selector of the chosen servers, and of the chosen policies where the metric has that label."""
    chosen = ['instance=~"$instance"']
    if name.startswith(BY_POLICY) and "overhead" not in name:
        chosen.append('policy=~"$policy"')
    return f"{name}{{{','.join([*matchers, *chosen])}}}"


ANNOTATIONS = (
    Annotation(
        "Settings in effect",
        f"{series('autosteer_config_last_reload_success_timestamp_seconds')} * 1000",
        "{{instance}} was started, or read its settings again",
        "blue",
        timed=True,
    ),
    Annotation(
        "Settings refused",
        f"{series('autosteer_config_last_reload_successful')} == 0",
        "{{instance}} goes on with its old settings",
        "orange",
    ),
    Annotation(
        "Engine restarts", f"changes({series('autosteer_engine_restarts_total')}[1m]) > 0", "{{instance}}", "orange"
    ),
    Annotation(
        "Alerts",
        'ALERTS{alertname=~"Autosteer.*",alertstate="firing"}',
        "{{alertname}} {{policy}} {{instance}}",
        "red",
    ),
)


def per_second(name: str, *matchers: str) -> str:
    """The rate of a counter."""
    return f"rate({series(name, *matchers)}[{RATE}])"


def share(part: str, whole: str, by: str = "") -> str:
    """The share that one rate has of another; without traffic no value instead of a wrong one."""
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} ({part}) / (sum{grouped} ({whole}) > 0)"


def decided(which: str, by: str = "") -> str:
    """The share of judged requests that have this decision."""
    return share(per_second(DECISIONS, which), per_second(DECISIONS), by)


def differing(which: str, decisions: str = SHADOW) -> str:
    """The share of decisions on which shadow and acting policy differ in one way; 0 where they never did."""
    whole = f"sum by (shadow) ({per_second(decisions)})"
    return f"(sum by (shadow) ({per_second(decisions, which)}) or 0 * {whole}) / ({whole} > 0)"


def quantiles(metric: str) -> list[Query]:
    """Three quantiles of a histogram over all servers."""
    return [
        Query(f"histogram_quantile({q}, sum by (le) ({per_second(metric + '_bucket')}))", f"p{round(q * 100)}")
        for q in (0.5, 0.95, 0.99)
    ]


def heights(metric: str) -> Query:
    """How many fell into each bucket of a histogram, for a heatmap."""
    return Query(f"sum by (le) (increase({series(metric + '_bucket')}[{RATE}]))", "{{le}}")


def rate(metric: str, by: str, legend: str | None = None) -> Query:
    """Events per second, by a label."""
    return Query(f"sum by ({by}) ({per_second(metric)})", legend or f"{{{{{by}}}}}")


def worst(metric: str, by: str = "policy", lowest: bool = False) -> str:
    """The value of the server where it is highest, or lowest."""
    return f"{'min' if lowest else 'max'} by ({by}) ({series(metric)})"


def drift(figure: str, form: str = "{}", lowest: bool = False) -> list[Query]:
    """A figure of the drift of prompts' scores and of answers', of the server where it is highest, or lowest."""
    return [
        Query(form.format(worst(f"autosteer_{of}_drift_{figure}", lowest=lowest)), "{{policy}}" + told)
        for of, told in (("guard", ""), ("answer", ", answers"))
    ]
