"""The dashboard of the guard: what it refuses, how it scores, whether that drifts, what a shadow would do."""

from __future__ import annotations

from benchmarks.dashboards.answers import ANSWERED
from benchmarks.dashboards.expressions import (
    CATEGORIES,
    DECISIONS,
    FLAGGED,
    INSTANCE,
    MODEL,
    POLICY,
    REFUSED,
    SHADOW,
    SHADOW_ANSWERS,
    decided,
    differing,
    drift,
    heights,
    per_second,
    quantiles,
    rate,
    series,
    share,
    worst,
)
from benchmarks.dashboards.panels import Dashboard, Levels, Panel, Query, Word

REFUSALS = Levels("green", [(0.05, "orange")])
SPIKE, ZERO, DRIFT = "AutosteerRefusalRateSpike", "AutosteerRefusalRateZero", "AutosteerScoreDrift"

GUARD = Dashboard(
    uid="autosteer-guard",
    title="Autosteer: guard",
    variables=[MODEL, INSTANCE, POLICY],
    rows=[
        (
            "Refusals",
            [
                Panel(
                    "Refusal rate",
                    [Query(decided(REFUSED), "refused")],
                    "Share of judged requests that are refused. Over 5 %, and 3 times the day before, alerts.",
                    unit="percentunit",
                    kind="stat",
                    width=4,
                    levels=REFUSALS,
                    alerts=[SPIKE, ZERO],
                ),
                Panel(
                    "Guard in use",
                    [
                        Query(
                            f"count by (guard, guard_date, mode) ({series('autosteer_model_info')})",
                            "{{guard}} of {{guard_date}}: {{mode}}",
                        )
                    ],
                    "Which bundle judges, and what follows of it. More than one: servers differ.",
                    unit="none",
                    kind="stat",
                    width=4,
                    names=True,
                ),
                Panel(
                    "Refusal rate, all policies",
                    [
                        Query(decided(REFUSED), "refused"),
                        Query(decided(FLAGGED), "flagged, also where only monitored"),
                    ],
                    "Share of judged requests that are refused, and that are flagged. Line: the least that alerts.",
                    unit="percentunit",
                    levels=REFUSALS,
                    alerts=[SPIKE, ZERO],
                ),
                Panel(
                    "Refusal rate by policy",
                    [Query(decided(REFUSED, "policy"), "{{policy}}")],
                    "A key's requests are under the policy that the key names; those without keys under `default`.",
                    unit="percentunit",
                    levels=REFUSALS,
                    alerts=[SPIKE, ZERO],
                ),
                Panel(
                    "Refusal rate by modality",
                    [Query(decided(REFUSED, "modality"), "{{modality}}")],
                    "Requests with at least one image, and those of text alone.",
                    unit="percentunit",
                ),
                Panel(
                    "Refusal rate by policy and modality",
                    [Query(decided(REFUSED, "policy, modality"), "{{policy}}, {{modality}}")],
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
                    [heights("autosteer_guard_score")],
                    "How many requests scored how high, in 20 steps from 0 to 1. Two bands apart: the guard separates "
                    "well. A band that widens towards the threshold: it gets unsure.",
                    kind="heatmap",
                    width=12,
                ),
                Panel(
                    "Share near the threshold",
                    [
                        Query(
                            share(
                                per_second("autosteer_guard_near_threshold_total"),
                                per_second("autosteer_guard_score_count"),
                                "policy",
                            ),
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
                            f"clamp_max(sum by (policy) ({per_second('autosteer_guard_near_threshold_total')}) "
                            f"/ (sum by (policy) ({per_second(DECISIONS, REFUSED)}) > 0), 1)",
                            "{{policy}}",
                        )
                    ],
                    "Stands in for false refusals, which nothing in live traffic tells: scores near the threshold "
                    "against refusals, at most 1. An upper bound of the share of refusals that were close.",
                    unit="percentunit",
                    width=6,
                    maximum=1,
                ),
            ],
        ),
        ANSWERED,
        (
            "Categories",
            [
                Panel(
                    "Flagged, by category",
                    [rate(CATEGORIES, "category")],
                    "Flagged requests per second by each category of harm that they count as, which may be several. "
                    "Of none: all of them, where the bundle has no categories.",
                    unit="reqps",
                    width=12,
                    stacked=True,
                ),
                Panel(
                    "Flagged, by category and decision",
                    [rate(CATEGORIES, "category, decision", "{{category}}: {{decision}}")],
                    "What the policies made of them.",
                    unit="reqps",
                    width=12,
                    stacked=True,
                ),
            ],
        ),
        (
            "Drift",
            [
                Panel(
                    "Drift alarm",
                    drift("alarm"),
                    "Whether live scores are still distributed as in the calibration. Drifted: the promised rate of "
                    "false refusals no longer holds.",
                    unit="none",
                    kind="state-timeline",
                    words={0: Word("as calibrated", "green"), 1: Word("drifted", "red")},
                    alerts=[DRIFT],
                ),
                Panel(
                    "Population stability index",
                    drift("psi"),
                    "Live scores against the calibration's: 0.1 is a moderate shift, 0.25 a large one. Of few scores "
                    "it is high by chance: the p-value tells.",
                    unit="none",
                    levels=Levels("green", [(0.1, "orange"), (0.25, "red")]),
                    alerts=[DRIFT],
                ),
                Panel(
                    "Chance of such a shift",
                    drift("p_value", "clamp_min({}, 1e-12)", lowest=True),
                    "How likely scores as far from the calibration's are by chance (Kolmogorov-Smirnov, p-value). "
                    "Below the line it is no chance.",
                    unit="none",
                    levels=Levels("red", [(1e-5, "green")]),
                    maximum=1,
                    logarithmic=True,
                    alerts=[DRIFT],
                ),
                Panel(
                    "Distance from the calibration",
                    drift("ks"),
                    "The largest distance between the two distributions of scores, 0 to 1.",
                    unit="none",
                ),
                Panel(
                    "Scores that drift is judged by",
                    drift("window", lowest=True),
                    "The last 500 below the threshold, on the server that has fewest. Under 100 nothing is judged.",
                    levels=Levels("orange", [(100, "green")]),
                ),
                Panel(
                    "Threshold",
                    [
                        Query(worst("autosteer_policy_threshold"), "{{policy}}"),
                        Query(worst("autosteer_answer_threshold"), "{{policy}}, answers"),
                    ],
                    "Scores from here on are flagged.",
                    unit="none",
                    maximum=1,
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
                    [heights("autosteer_shadow_score")],
                    "As the distribution of scores above, by the shadow's bundle.",
                    kind="heatmap",
                ),
                Panel(
                    "Shadow against acting, answers",
                    [
                        Query(
                            differing('decision!="pass",acting=~"pass|off"', SHADOW_ANSWERS),
                            "{{shadow}}: flagged by the shadow only",
                        ),
                        Query(
                            differing('decision="pass",acting!~"pass|off"', SHADOW_ANSWERS),
                            "{{shadow}}: by the acting policy only",
                        ),
                    ],
                    "The same of answers that both watch, or the shadow alone, as a share of those that it judges.",
                    unit="percentunit",
                    width=12,
                ),
                Panel(
                    "Scores of answers, of the shadow policy",
                    [heights("autosteer_shadow_answer_score")],
                    "As the distribution of answers' scores above, by the shadow's bundle.",
                    kind="heatmap",
                    width=12,
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
