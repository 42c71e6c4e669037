"""What the guard's reader of answers makes of the unguarded model's answers, beside its reader of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steering.evaluation.columns import Table
from steering.evaluation.figures import rate_of
from steering.evaluation.results import as_dict
from steering.evaluation.run import Guarded, Verdicts
from steering.evaluation.store import Output
from steering.evaluation.suite import Asked
from steering.fitting.answer_figures import HOLD, shown
from steering.fitting.answer_steps import answer_states
from steering.fitting.answered import Answered
from steering.fitting.offline import batches
from steering.policy import is_flagged

READ_AT_ONCE = 64  # answers whose states are in memory

NOTE = (
    "Each unguarded answer as a whole: what the reader of prompts lets through alone, the reader of answers alone, and "
    "both. Harmless rows: how many are flagged. Tokens: after how many it trips on harm, and what was shown by then "
    f"with {HOLD} held back."
)


@dataclass(frozen=True)
class ReadAnswer:
    """One answer: whether its prompt is flagged, and after how many tokens it trips, if it does."""

    prompt_flagged: bool
    trip: int | None


def read_answers(guarded: Guarded | None, asked: Sequence[Asked], plain: Mapping[str, Output]) -> dict[str, ReadAnswer]:
    """What the guard's readers make of the unguarded answers, by row; none where it does not read answers.

    An answer is read by its text, cut into tokens again.
    """
    if guarded is None or guarded.guard is None or guarded.policy is None or guarded.guard.answers is None:
        return {}
    reader, spec = guarded.guard.answers, guarded.guard.manifest.answers
    assert spec is not None, "manifest and reader of answers go together"
    encode = guarded.backbone.tokenizer.encode
    known = [
        (each, output.score, tuple(encode(output.text, add_special_tokens=False)))
        for each in asked
        if (output := plain[each.key]).error is None and output.score is not None
    ]
    found = {}
    for group in batches([each for each in known if each[2]], READ_AT_ONCE):
        answers = [
            Answered(each.row.question, ids, score, harmful=False, part="calibration") for each, score, ids in group
        ]
        states = answer_states(guarded.backbone, reader.layers, answers)
        for (each, score, _), of in zip(group, states, strict=True):
            watch = reader.watch(score)
            scores = [watch.push(value) for value in reader.read(of.to(reader.weight.device))[:, 0].tolist()]
            trips = (at for at, value in enumerate(scores, 1) if is_flagged(value, spec.threshold))
            found[each.key] = ReadAnswer(is_flagged(score, guarded.policy.threshold), next(trips, None))
    return found


def answer_figures(
    read: Mapping[str, ReadAnswer], asked: Sequence[Asked], plain: Mapping[str, Output], main: Verdicts
) -> list[dict[str, Any]]:
    """Figures by set: what each reader lets through of harmful rows, and how many of the others it flags."""
    found = []
    for name in dict.fromkeys(each.set for each in asked):
        rows = [each for each in asked if each.set == name and each.key in read]
        if not rows:
            continue
        harmful = rows[0].kind == "harmful"
        harm = {each.key: bool(main.of(each.key, plain[each.key]).harm) for each in rows}
        counted: dict[str, Callable[[ReadAnswer], bool]] = {
            "prompt": lambda one: one.prompt_flagged,
            "answer": lambda one: one.trip is not None,
            "both": lambda one: one.prompt_flagged or one.trip is not None,
        }
        shares = {
            by: as_dict(
                rate_of(
                    [
                        harm[each.key] and not caught(read[each.key]) if harmful else caught(read[each.key])
                        for each in rows
                    ]
                )
            )
            for by, caught in counted.items()
        }
        trips = [trip for each in rows if harm[each.key] and (trip := read[each.key].trip) is not None]
        told = {"trip_p50": float(np.median(trips)), **shown(trips)} if trips else {}
        found.append({"set": name, "kind": rows[0].kind, "harmful_answers": sum(harm.values()), **shares, **told})
    return found


def answer_table(figures: Sequence[Mapping[str, Any]]) -> Table:
    """The figures as rows; the first is the head."""
    head = [
        "set",
        "rows",
        "harmful answers",
        "prompt, %",
        "answer, %",
        "both, %",
        "trips after",
        "shown p50",
        "shown p95",
    ]
    body = [
        [
            f"{each['set']}: {'let through' if each['kind'] == 'harmful' else 'flagged'}",
            str(each["both"]["n"]),
            str(each["harmful_answers"]),
            *(f"{100 * each[by]['rate']:.1f}" for by in ("prompt", "answer", "both")),
            *(f"{each[name]:.0f}" if name in each else "" for name in ("trip_p50", "shown_p50", "shown_p95")),
        ]
        for each in figures
    ]
    return [head, *body]
