"""The guard's dashboard about answers that are watched: what is flagged, what follows, how much was seen."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.dashboards.expressions import DECISIONS, FLAGGED, heights, per_second, rate, share
from benchmarks.dashboards.panels import Levels, Panel, Query

ANSWERS = "autosteer_answer_decisions_total"
FALLBACKS = "autosteer_answer_fallbacks_total"
STEERED = 'decision="steered"'
NO_REFUSALS = per_second(FALLBACKS, 'reason=~"again|not_begun"')

ANSWERED: tuple[str, Sequence[Panel]] = (
    "Answers",
    [
        Panel(
            "Flagged answers",
            [Query(share(per_second(ANSWERS, FLAGGED), per_second(ANSWERS), "policy"), "{{policy}}")],
            "Share of watched answers that are flagged, or end with the policy's text. Answers to prompts that "
            "are steered are watched too.",
            unit="percentunit",
        ),
        Panel(
            "What became of flagged answers",
            [Query(f"sum by (decision) ({per_second(ANSWERS, FLAGGED)})", "{{decision}}")],
            "`steered` ended as a refusal in the model's words, `blocked` with the policy's text; `monitored` went on.",
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Why the policy's text stands",
            [rate(FALLBACKS, "reason")],
            "Answers a second that end with the policy's refusal text. `not_begun` and `again`: steering "
            "failed. `unreadable`: the reader did.",
            unit="reqps",
            stacked=True,
            alerts=["AutosteerAnswersUnreadable"],
        ),
        Panel(
            "Refusals that failed",
            [
                Query(
                    f"sum by (policy) ({NO_REFUSALS}) / (sum by (policy) ({NO_REFUSALS}) "
                    f"+ sum by (policy) ({per_second(ANSWERS, STEERED)}) "
                    f"+ sum by (policy) ({per_second(DECISIONS, STEERED)}) > 0)",
                    "{{policy}}",
                )
            ],
            "Share of steered answers that became no refusal, or were flagged again.",
            unit="percentunit",
            levels=Levels("green", [(0.1, "orange")]),
            alerts=["AutosteerRefusalsFail"],
        ),
        Panel(
            "Shown before it was flagged",
            [heights("autosteer_answer_shown_tokens")],
            "How many tokens of flagged answers had been shown. Many: hold more back.",
            kind="heatmap",
        ),
        Panel(
            "Tokens held back and dropped",
            [rate("autosteer_answer_dropped_tokens_total", "policy")],
            "What nobody saw, because its answer was flagged, or never came to its end.",
            unit="suffix: tokens/s",
            stacked=True,
        ),
        Panel(
            "Distribution of answers' scores",
            [heights("autosteer_answer_score")],
            "How many answers scored how high at their end, in 20 steps from 0 to 1.",
            kind="heatmap",
            width=24,
        ),
    ],
)
