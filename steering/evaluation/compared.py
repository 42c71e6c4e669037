"""A comparison for people: which run is better at what, what to do, and the tables that say why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from steering.evaluation.columns import CHANCE, Table
from steering.evaluation.compare import Compared, Comparison

SHOWN = 4  # figures that a sentence names


def names(first: Path, second: Path) -> tuple[str, str]:
    """What two runs are called: their folders' names, with as many parents as tell them apart."""
    one, other = first.resolve().parts, second.resolve().parts
    for length in range(1, max(len(one), len(other)) + 1):
        told = "/".join(one[-length:]), "/".join(other[-length:])
        if told[0] != told[1]:
            return told
    return f"{first.name} (first)", f"{second.name} (second)"


def sentences(found: Comparison) -> list[str]:
    """What the comparison comes to, and what to do."""
    first, second = _names(found)
    guarded = [each for each in found.figures if each.systems != "original"] or found.figures
    better = [each for each in guarded if each.verdict == "better"]
    worse = [each for each in guarded if each.verdict == "worse"]
    words = (("better", better), ("worse", worse))
    told = [f"{second} is {word} than {first}: {_listed(some)}." for word, some in words if some]
    told.append(_advice(found, guarded, better, worse))
    if any(each.systems == "original" and each.verdict != "no difference shown" for each in found.figures):
        told.append(
            "The column original differs, in which no guard acts: the runs are of different models, precisions or "
            "settings, and not of guards alone."
        )
    return told


def _listed(figures: Sequence[Compared]) -> str:
    largest = sorted(figures, key=lambda each: -abs(each.result.difference))
    told = [
        f"{each.figure} of {each.systems}, {each.set} ({100 * each.result.first:.1f} to {100 * each.result.second:.1f})"
        for each in largest[:SHOWN]
    ]
    more = f" and {len(figures) - SHOWN} more" if len(figures) > SHOWN else ""
    return "; ".join(told) + more


def _advice(
    found: Comparison, figures: Sequence[Compared], better: Sequence[Compared], worse: Sequence[Compared]
) -> str:
    first, second = _names(found)
    if better and not worse:
        return f"Take {second}."
    if worse and not better:
        return f"Keep {first}."
    if better:
        return (
            "It is a trade: decide what matters more. Another threshold (eval --target-fpr) or eps (--eps) may lie "
            "between the two."
        )
    if all(same == found.rows for same in found.identical.values()):
        return "All answers are the same: take the cheaper one."
    largest = {
        (each.figure, each.judge, each.systems): each for each in sorted(figures, key=lambda each: each.result.n)
    }
    edge = max(max(-each.result.low, each.result.high) for each in largest.values())
    room = f"these {found.rows} rows, which leave room for one of up to {100 * edge:.0f} points"
    return f"No difference is shown by {room}: take the cheaper one, or compare on more rows."


def comparison_table(found: Comparison) -> Table:
    """The figures that changed as rows of cells; the first row is the head."""
    first, second = _names(found)
    head = ["set", "figure", "by", "system", "rows", f"{first}, %", f"{second}, %", "difference, points"]
    head += [f"only {first} / only {second}", "p, corrected", f"{second} is"]
    body = []
    for each in found.changed:
        result = each.result
        rows = f"{result.n} ({each.missing} missing)" if each.missing else str(result.n)
        rates = [f"{100 * result.first:.1f}", f"{100 * result.second:.1f}"]
        change = f"{100 * result.difference:+.1f} [{100 * result.low:+.1f}, {100 * result.high:+.1f}]"
        counts = f"{result.only_first} / {result.only_second}" if each.figure != "AUROC" else ""
        verdict = each.verdict if each.p < CHANCE else "perhaps the same"
        body.append(
            [each.set, each.figure, each.judge, each.systems, rows, *rates, change, counts, f"{each.p:.3g}", verdict]
        )
    return [head, *body]


def detection_table(found: Comparison) -> Table:
    """What is caught at given false-positive rates."""
    head = ["system", "false-positive rate at most", *(f"caught by {name}, %" for name in _names(found))]
    return [
        head,
        *([each.systems, f"{each.fpr:.1%}", _share(each.first), _share(each.second)] for each in found.detected),
    ]


def _names(found: Comparison) -> tuple[str, str]:
    return names(found.first.folder, found.second.folder)


def _share(value: float | None) -> str:
    return "too few harmless rows" if value is None else f"{100 * value:.1f}"


_COSTS = (("first_token", 1000, "first token, ms"), ("between_tokens", 1000, "between tokens, ms"))
_SPEEDS = (*_COSTS, ("tokens_per_second", 1, "tokens/s"))


def cost_table(found: Comparison) -> Table:
    """What both runs measured of cost, and the ratio; the head alone where one measured nothing."""
    first, second = _names(found)
    body = []
    for mine, other in found.pairs:
        one, two = found.first.cost.get(mine), found.second.cost.get(other)
        for name, factor, title in _SPEEDS if one and two else ():
            assert one is not None
            assert two is not None
            if one[name] and two[name]:
                values = [f"{factor * each[name]:.4g}" for each in (one, two)]
                system = mine if mine == other else f"{mine} and {other}"
                body.append([system, title, *values, f"{two[name] / one[name]:.3f}x"])
    return [["system", "cost", first, second, f"{second} to {first}"], *body]


def cost_note(found: Comparison) -> str:
    """One sentence where the machines differ; else nothing."""
    if found.first.machine == found.second.machine:
        return ""
    return f"Cost was measured on different machines: {found.first.machine}; {found.second.machine}."
