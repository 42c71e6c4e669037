"""The rows that `fit` and `score` are given: read and checked before torch is imported; what `fit --check` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from server.cli.console import mistake
from server.cli.folders import given_folder

if TYPE_CHECKING:
    from steering.data.own_rows import Part
    from steering.fitting.items import Item
    from steering.fitting.problems import Problem

SHOWN = 10  # problems of one kind that are printed; the report has all


@dataclass(frozen=True)
class FitRows:
    """The parts of a fit's data, how they leak into each other, and the rate that they can promise."""

    parts: Mapping[Part, Sequence[Item]]
    leaks: Sequence[Problem]
    rate: float


def read_fit_rows(
    pairs: Sequence[Path],
    benign: Sequence[Path],
    hard: Sequence[Path],
    images: Path | None,
    *,
    text_only: bool,
    with_test: bool,
    drop_bad: bool,
    labelled: Sequence[Item] = (),
    seed: int,
    target_fpr: float | None,
) -> FitRows:
    """Read, check and divide the rows of a fit; `labelled`: those that reviewers gave. Raises DataError, FitError."""
    from steering.data.questions import PictureFiles
    from steering.fitting.enough import check_enough, threshold_rate
    from steering.fitting.items import read_hard, read_pairs, read_prompts
    from steering.fitting.parts import split
    from steering.fitting.problems import leaks

    given_folder("--images", images)
    if target_fpr is not None:
        threshold_rate(target_fpr, 10**9)  # whether there is such a rate, before anything is read
    files = PictureFiles()
    which = {"text_only": text_only, "with_test": with_test}
    items = [item for file in pairs for item in read_pairs(file, images, files, **which)]
    items += [item for file in benign for item in read_prompts(file, images, files, **which)]
    items += [item for file in hard for item in read_hard(file, images, files, **which)]
    items += labelled
    parts = split(without_errors(items, drop=drop_bad), seed=seed)
    rate = check_enough(parts, target_fpr)
    found = leaks(parts)
    _show_problems(found, "leaks between the parts (the fit goes on, the report says so)")
    return FitRows(parts, found, rate)


def without_errors(items: Sequence[Item], *, drop: bool) -> list[Item]:
    """The rows, once nothing is wrong with them; without the wrong ones where they may be dropped."""
    from steering.fitting.problems import check

    problems = check(items)
    if not problems:
        return list(items)
    _show_problems(problems, "bad rows")
    if not drop:
        fixes = "; ".join(dict.fromkeys(problem.fix for problem in problems))
        mistake(f"{len(problems)} problems in the data: {fixes}; --drop-bad leaves such rows out")
    bad = {problem.where for problem in problems}
    return [item for item in items if item.where not in bad]


def _show_problems(problems: Sequence[Problem], title: str) -> None:
    if not problems:
        return
    typer.echo(f"{len(problems)} {title}:", err=True)
    for problem in problems[:SHOWN]:
        typer.echo(f"  {problem}", err=True)
    if len(problems) > SHOWN:
        typer.echo(f"  ... and {len(problems) - SHOWN} more", err=True)


def show_fit_rows(rows: FitRows) -> None:
    """Print what a fit would be made of, and what it could promise."""
    from steering.fitting.enough import TARGET_FPRS, Counts, rows_that_do, samples_needed

    for part, items in rows.parts.items():
        each = Counts.of(items)
        typer.echo(f"{part}: {each.toxic} toxic and {each.safe} safe prompts, {each.pairs} pairs")
    typer.echo(f"leaks between the parts: {len(rows.leaks)}")
    safe = Counts.of(rows.parts["calibration"]).safe
    for rate in TARGET_FPRS:
        needed = samples_needed(rate)
        lacks = f"no: it needs {needed} safe calibration prompts, about {rows_that_do(needed)} harmless ones in all"
        typer.echo(f"a threshold for an FPR of {rate:.1%}: {'yes' if safe >= needed else lacks}")
    typer.echo(f"The rows are enough; the default threshold will aim at an FPR of {rows.rate:.0%} at most.")
