"""One evaluation: ask, judge, count. What was asked and judged before is not done again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.progress import Progress

from models.backbone import Backbone
from steering.evaluation import local, remote
from steering.evaluation.columns import LocalMode
from steering.evaluation.judges import Case, Judge, Judgement
from steering.evaluation.remote import Remote
from steering.evaluation.store import Output, Store
from steering.evaluation.suite import Asked, Loaded
from steering.evaluation.surroundings import CLEAN
from steering.guard import Guard
from steering.policy import Policy, decide


@dataclass(frozen=True)
class System:
    """One column of the table: what every row was answered."""

    name: str
    about: str
    outputs: Mapping[str, Output]
    remote: Remote | None = None


@dataclass(frozen=True)
class Guarded:
    """A model in process, the guard and policy it is asked under, and which columns it fills."""

    name: str  # as it was asked for
    backbone: Backbone
    guard: Guard | None
    policy: Policy | None
    modes: Sequence[LocalMode]
    eps_sweep: Sequence[float] = ()


@dataclass(frozen=True)
class Answers:
    """All columns, and at each eps of the sweep what the flagged rows were answered."""

    systems: list[System]
    plain: Mapping[str, Output]  # in process: without the guard, with the scores
    steered: Mapping[str, Output]  # in process: of every row, or of the flagged ones
    flagged: frozenset[str]  # in process: rows over the policy's threshold
    sweep: Mapping[float, Mapping[str, Output]]


@dataclass(frozen=True)
class Verdicts:
    """Judgements of one judge, by row and text."""

    judge: Judge
    found: Mapping[tuple[str, str], Judgement]

    def of(self, key: str, output: Output) -> Judgement:
        """The judgement of an answer; one that failed is unjudged."""
        if output.error is not None:
            return Judgement(None, None, f"no answer: {output.error}")
        return self.found[key, output.text]


def ask(
    loaded: Loaded, guarded: Guarded | None, remotes: Sequence[Remote], store: Store, progress: Progress
) -> Answers:
    """Have every row answered by every system. Raises RunError."""
    answers = (
        Answers([], {}, {}, frozenset(), {})
        if guarded is None
        else _ask_locally(loaded.asked, guarded, store, progress)
    )
    for each in remotes:
        about = each.url + (f", asked for {each.mode}" if each.mode else "")
        outputs = remote.answer_all(each, loaded.asked, store, progress)
        answers.systems.append(System(each.name, about, outputs, remote=each))
    return answers


def _ask_locally(asked: Sequence[Asked], guarded: Guarded, store: Store, progress: Progress) -> Answers:
    guard, policy = guarded.guard, guarded.policy
    plain = local.answer_all(guarded.backbone, guard, asked, 0.0, store, progress)
    original = {key: replace(output, flagged=False) for key, output in plain.items()}
    if guard is None or policy is None:
        return Answers([System("original", "no guard", original)], plain, {}, frozenset(), {})
    scores = {key: output.score for key, output in plain.items() if output.score is not None}
    decisions = dict(zip(scores, decide(list(scores.values()), [policy] * len(scores)), strict=True))
    flagged = [each for each in asked if each.key in decisions and decisions[each.key].flagged]
    steered: Mapping[str, Output] = {}
    if "steer-always" in guarded.modes or "autosteer" in guarded.modes:
        wanted = asked if "steer-always" in guarded.modes else flagged
        steered = local.answer_all(guarded.backbone, guard, wanted, policy.eps, store, progress)
    swept = [each for each in flagged if each.surrounding == CLEAN]
    sweep = {eps: local.answer_all(guarded.backbone, guard, swept, eps, store, progress) for eps in guarded.eps_sweep}
    refusals = {each.key: Output(policy.refusal, 0, "content_filter", scores[each.key]) for each in flagged}
    from_score = f"from a score of {policy.threshold:.4g}"
    # Made only where they are asked for: the others lack answers.
    columns: Mapping[LocalMode, Callable[[], System]] = {
        "original": lambda: System("original", "guard off", original),
        "steer-always": lambda: System(
            "steer-always", f"every request steered, eps {policy.eps:g}", _replaced(original, steered)
        ),
        "autosteer": lambda: System(
            "autosteer", f"steered with eps {policy.eps:g} {from_score}", _replaced(original, steered, flagged)
        ),
        "block": lambda: System("block", f"answered with the refusal text {from_score}", _replaced(original, refusals)),
    }
    systems = [columns[mode]() for mode in guarded.modes]
    return Answers(systems, plain, steered, frozenset(each.key for each in flagged), sweep)


def _replaced(
    plain: Mapping[str, Output], guarded: Mapping[str, Output], rows: Sequence[Asked] | None = None
) -> dict[str, Output]:
    """The guarded answers of these rows, or of all that have one, and the plain answers of the others."""
    keys = guarded.keys() if rows is None else {each.key for each in rows}
    return {key: replace(guarded[key], flagged=True) if key in keys else output for key, output in plain.items()}


def judge_all(judge: Judge, loaded: Loaded, answers: Answers, progress: Progress) -> Verdicts:
    """Have one judge mark every answer; equal answers to a row are marked once."""
    by_key = {each.key: each for each in loaded.asked}
    cases = {
        (key, output.text): Case(by_key[key].row, by_key[key].kind, output.text)
        for outputs in _all_outputs(answers)
        for key, output in outputs.items()
        if output.error is None
    }
    task = progress.add_task(f"judge: {judge.name}", total=len(cases))
    judgements = judge.judge(list(cases.values()), lambda done: progress.advance(task, done))
    return Verdicts(judge, dict(zip(cases, judgements, strict=True)))


def _all_outputs(answers: Answers) -> Iterable[Mapping[str, Output]]:
    # The sweeps choose between plain and steered answers, whether or not a column of either is asked for.
    yield answers.plain
    yield answers.steered
    yield from (system.outputs for system in answers.systems)
    yield from answers.sweep.values()
