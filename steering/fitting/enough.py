"""Whether rows are enough for a guard: counted before a model is loaded, all shortages at once. Holds no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from steering.data.own_rows import Part
from steering.errors import FitError
from steering.fitting.items import Item
from steering.fitting.parts import HELD_OUT

MIN_PROMPTS = 4  # of each label in each part
MIN_PAIRS = 2  # in the train part
TARGET_FPRS = (0.001, 0.01, 0.05)
DEFAULT_FPRS = (0.01, 0.05)  # the first that the rows can promise
PARTS: tuple[Part, ...] = ("train", "validation", "calibration")
SURE = 0.95  # share of divisions in which so many rows are enough

Parts = Mapping[Part, Sequence[Item]]


@dataclass(frozen=True)
class Counts:
    """How many prompts of each label a part has, and how many pairs."""

    toxic: int
    safe: int
    pairs: int

    @classmethod
    def of(cls, items: Sequence[Item]) -> Counts:
        """Count the sides of items."""
        toxic, safe = ([getattr(item, side) is not None for item in items] for side in ("toxic", "safe"))
        return cls(sum(toxic), sum(safe), sum(a and b for a, b in zip(toxic, safe, strict=True)))


def samples_needed(target_fpr: float) -> int:
    """Held-out safe scores without which no threshold can promise `target_fpr`: n >= 1 / a - 1."""
    return math.ceil(1 / target_fpr - 1 - 1e-9)


def rows_that_do(needed: int, share: float = HELD_OUT) -> int:
    """How many rows in all give a part of this share `needed` of them, in 19 of 20 divisions."""
    # The normal approximation of n rows, each in the part by chance: n s - z sqrt(n s (1 - s)) = needed.
    spread = NormalDist().inv_cdf(SURE) * math.sqrt(share * (1 - share))
    return math.ceil(((spread + math.sqrt(spread**2 + 4 * share * needed)) / (2 * share)) ** 2)


def threshold_rate(wanted: float | None, samples: int) -> float:
    """The false-positive rate of the default threshold. Raises FitError where `samples` cannot promise it."""
    if wanted is not None and wanted not in TARGET_FPRS:
        raise FitError(f"target FPR {wanted:g} is not one of {', '.join(f'{rate:g}' for rate in TARGET_FPRS)}")
    rates = DEFAULT_FPRS if wanted is None else (wanted,)
    for rate in rates:
        if samples >= samples_needed(rate):
            return rate
    raise FitError(
        f"{samples} safe calibration prompts cannot promise an FPR of {rates[-1]:g}; {samples_needed(rates[-1])} can"
    )


def check_enough(parts: Parts, wanted: float | None) -> float:
    """The false-positive rate of the default threshold. Raises FitError that names all that is lacking."""
    counts = {part: Counts.of(parts.get(part, ())) for part in PARTS}
    named = any(item.split is not None for items in parts.values() for item in items)
    lacking = [*_few(counts, "toxic", named=named), *_few(counts, "safe", named=named)]
    if (found := counts["train"].pairs) < MIN_PAIRS:
        lacking.append(f"the train part has {found} contrast pairs: the Safety Awareness Score needs {MIN_PAIRS} twins")
    rate = 0.0
    try:
        rate = threshold_rate(wanted, counts["calibration"].safe)
    except FitError as error:
        needed = samples_needed(wanted or DEFAULT_FPRS[-1])
        lacking.append(f"{error}, {_in_all(counts, 'safe', needed, named=named)}")
    if lacking:
        raise FitError("; ".join(lacking))
    return rate


def _few(counts: Mapping[Part, Counts], label: str, *, named: bool) -> list[str]:
    """What is said of the parts that have too few prompts of a label, if any has."""
    few = {part: found for part, each in counts.items() if (found := getattr(each, label)) < MIN_PROMPTS}
    if not few:
        return []
    told = ", ".join(f"the {part} part has {found} {label} prompts" for part, found in few.items())
    return [f"{told}, and each part needs {MIN_PROMPTS}, {_in_all(counts, label, MIN_PROMPTS, named=named)}"]


def _in_all(counts: Mapping[Part, Counts], label: str, needed: int, *, named: bool) -> str:
    """How many prompts of a label would do."""
    if named:
        return "and your rows name their parts: give more that name this one in `split`"
    there = sum(getattr(each, label) for each in counts.values())
    return f"which about {rows_that_do(needed)} {label} prompts in all would give (there are {there})"
