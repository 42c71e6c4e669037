"""Answers in process, in batches. An answer depends on its row and eps alone; a policy only chooses between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from rich.progress import Progress

from models.backbone import Backbone
from models.errors import PromptError
from steering.evaluation.store import Output, Store
from steering.evaluation.suite import Asked
from steering.fitting.offline import Reply, batches, reply
from steering.guard import Guard


def variant(eps: float) -> str:
    """Name of the answers at one steering strength; 0 is the unguarded model."""
    return f"eps={eps:g}"


def answer_all(
    backbone: Backbone, guard: Guard | None, asked: Sequence[Asked], eps: float, store: Store, progress: Progress
) -> dict[str, Output]:
    """The answers of all rows at one eps, with their scores; those that the store lacks are made.

    Batches are cut from all rows, whatever the store holds: an interrupted run computes what a whole one does.
    """
    name = variant(eps)
    known = store.outputs(name)
    # Like prompts end together, and those of a surrounding may begin alike, which is computed once for a batch.
    ordered = sorted(asked, key=_likeness)
    alike = [list(group) for _, group in groupby(ordered, key=lambda each: each.max_tokens)]
    groups = [group for each in alike for group in batches(each, backbone.max_rows)]
    task = progress.add_task(f"answers, {'unguarded' if eps == 0 else name}", total=len(ordered))
    for group in groups:
        if not all(each.key in known for each in group):
            made = _answer(backbone, guard, group, eps)
            store.put(name, made)
            known |= made
        progress.advance(task, len(group))
    wanted = {each.key for each in asked}
    return {key: output for key, output in known.items() if key in wanted}


def _likeness(each: Asked) -> tuple[int, int, str, int]:
    return each.max_tokens, len(each.row.question.images), each.surrounding, len(each.row.question.text)


def _answer(backbone: Backbone, guard: Guard | None, group: Sequence[Asked], eps: float) -> dict[str, Output]:
    """Answers of one batch; where a prompt cannot be made, of each row alone, so that one fails by itself."""
    questions = [each.row.question for each in group]
    backbone.forget_prompts()  # what earlier batches left would round otherwise where a run is started again
    try:
        replies = reply(backbone, questions, guard, lambda scores: [eps] * len(scores), group[0].max_tokens)
    except (PromptError, OSError) as error:  # too long, or an image that is gone
        if len(group) == 1:
            return {group[0].key: Output("", error=str(error))}
        return {key: output for each in group for key, output in _answer(backbone, guard, [each], eps).items()}
    return {each.key: _output(said) for each, said in zip(group, replies, strict=True)}


def _output(said: Reply) -> Output:
    output = Output(said.text, said.tokens, "stop" if said.ended else "length")
    if said.read is None:
        return output
    categories = {each.name: each.score for each in said.read.categories}
    return replace(output, score=said.read.score, categories=categories or None)
