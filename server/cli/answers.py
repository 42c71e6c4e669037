"""What `fit` is told of a reader of answers: who labels the model's own answers, and files of labelled ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.cli.console import mistake

if TYPE_CHECKING:
    from steering.data.own_rows import Part
    from steering.fitting.answered import AnswersWanted, Label, Said
    from steering.fitting.items import Item


def answers_wanted(
    responses: Sequence[Path], images: Path | None, judge: str, tokens: int, *, own: bool, text_only: bool
) -> AnswersWanted | None:
    """What a reader of answers is fitted on; None where none is wanted. Raises DataError.

    `own`: on the model's own answers, which the judge of this name labels.
    """
    from steering.data.responses import read_responses
    from steering.errors import DataError
    from steering.evaluation.judges import SIMPLE
    from steering.fitting.answered import AnswersWanted

    if judge not in SIMPLE:
        mistake(f"--judge {judge} is not one of {', '.join(SIMPLE)}")
    if not own and not responses:
        return None
    found = [row for path in responses for row in read_responses(path, images, text_only=text_only)]
    kept = [row for row in found if not row.test]
    if found and not kept:
        raise DataError(f"--responses: all {len(found)} answers are kept for testing")
    return AnswersWanted(label_by(judge) if own else None, judge, kept, tokens)


def check_given(wanted: AnswersWanted | None, parts: Mapping[Part, Sequence[Item]], seed: int) -> None:
    """Raise FitError where the given answers are too few, and the model answers nothing itself."""
    from steering.fitting.answered import check_answers, parts_of

    if wanted is not None and wanted.label is None:
        divided = parts_of(wanted.responses, parts, seed)
        check_answers(zip([row.harmful for row in wanted.responses], divided, strict=True))


def label_by(judge: str) -> Label:
    """Labels by a judge of the evaluation."""
    from steering.evaluation.judges import SIMPLE, Case
    from steering.evaluation.sets import Row

    def label(said: Sequence[Said]) -> list[bool | None]:
        cases = [Case(Row("", each.question), "harmful" if each.asked_harm else "harmless", each.text) for each in said]
        return [found.harm for found in SIMPLE[judge]().judge(cases, lambda _: None)]

    return label
