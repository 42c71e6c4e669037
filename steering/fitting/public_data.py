"""`python -m steering.fitting.public_data --data DIR --out DIR`: a fit's data out of public sets of words.

The sets are found under `--data` by the names of their files, wherever their authors' folders have them. A set that is
not there is left out, which is said. What is kept for the evaluation (`suite.yaml`) is in no part of the fit:
CatQA and HarmfulQA as a whole, the authors' own validation and test lists, and half of XSTest's focus words.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Annotated, Any

import typer

from steering.data.own_rows import Part
from steering.data.tables import read_table
from steering.data.texts import read_text
from steering.errors import FitError

WORDS = range(3, 80)  # of a row: longer ones are essays, shorter ones say nothing
PAIRS = {"vlsafe": 600, "ibm": 600, "refusal_direction": 260}
HARMLESS = 1700
HELD_OUT = 150  # rows of each set of the evaluation
# Thresholds want harmless rows more than probes do.
PARTS: Mapping[str, Sequence[tuple[Part, float]]] = {
    "pairs": (("train", 0.6), ("validation", 0.7), ("calibration", 1.0)),
    "benign": (("train", 0.35), ("validation", 0.45), ("calibration", 1.0)),
    "hard": (("train", 1.0),),  # too few to measure on what is not fitted
}
HARD = "xstest"

Pair = tuple[str, str]  # harmful and harmless
Row = Mapping[str, str]


@dataclass
class Found:
    """What the sets hold: pairs and harmless rows to fit on by set, and held-out rows by kind and set."""

    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    harmless: dict[str, list[str]] = field(default_factory=dict)
    held_out: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # of harmful rows that are held out: their category


def _vlsafe(path: Path, found: Found, chance: Random) -> None:
    rows = [row for _, row in read_table(path)]
    found.pairs["vlsafe"] = _shuffled([(row["orig_query"], row["safe_query"]) for row in rows], chance)


def _ibm(path: Path, found: Found, chance: Random) -> None:
    train, test = ([row for source, row in read_table(path) if source.part == part] for part in ("train", "test"))
    found.pairs["ibm"] = _shuffled([(row["harmful"], row["harmless"]) for row in train], chance)
    found.held_out["harmful", "ibm"] = _shuffled([row["harmful"] for row in test], chance)
    found.held_out["harmless", "ibm"] = _shuffled([row["harmless"] for row in test], chance)


def _refusal_direction(path: Path, found: Found, chance: Random) -> None:
    lists = {
        name: _shuffled([row["instruction"] for _, row in read_table(path.with_stem(name))], chance)
        for name in ("harmful_train", "harmless_train", "harmful_val", "harmless_val")
    }
    harmful, harmless = ([*filter(_fits, lists[f"{kind}_train"])] for kind in ("harmful", "harmless"))
    found.pairs["refusal_direction"] = list(zip(harmful, harmless, strict=False))
    found.harmless["alpaca"] = harmless[len(harmful) :]
    found.held_out["harmful", "refusal_direction"] = lists["harmful_val"]
    found.held_out["harmless", "alpaca"] = lists["harmless_val"]


def _xstest(path: Path, found: Found, chance: Random) -> None:
    rows = [row for _, row in read_table(path)]
    words = _shuffled(sorted({row["focus"] for row in rows}), chance)
    fitted = {*words[: len(words) // 2]}
    sides: dict[tuple[bool, bool], list[str]] = {(a, b): [] for a in (True, False) for b in (True, False)}
    for row in rows:
        sides[row["focus"] in fitted, row["label"] == "safe"].append(row["prompt"])
    found.pairs["xstest"] = list(zip(sides[True, False], sides[True, True], strict=False))
    found.harmless["xstest"] = sides[True, True][len(sides[True, False]) :]
    found.held_out["harmful", "xstest"], found.held_out["harmless", "xstest"] = sides[False, False], sides[False, True]


def _catqa(path: Path, found: Found, chance: Random) -> None:
    _questions("catqa")(path, found, chance)
    for category, questions in json.loads(read_text(path)).items():
        found.kinds |= dict.fromkeys(_texts(questions), category)


def _questions(name: str) -> Callable[[Path, Found, Random], None]:
    def read(path: Path, found: Found, chance: Random) -> None:
        texts = [text for text in _texts(json.loads(read_text(path))) if text.endswith("?")]
        found.held_out["harmful", name] = _shuffled(sorted({*texts}), chance)

    return read


SETS: Mapping[str, Callable[[Path, Found, Random], None]] = {
    "vlsafe_convert_safe.jsonl": _vlsafe,
    "condition_harmful.json": _ibm,
    "harmful_train.json": _refusal_direction,
    "xstest*.csv": _xstest,
    "catqa_english.json": _catqa,
    "harmfulqa.json": _questions("harmfulqa"),
}


def _texts(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Every text of a file, however deep its topics."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(inner)


def _fits(text: str) -> bool:
    return len(text.split()) in WORDS


def _shuffled(things: Iterable[Any], chance: Random) -> list[Any]:
    listed = [*things]
    chance.shuffle(listed)
    return listed


def read(data: Path, seed: int) -> tuple[Found, list[str]]:
    """What the sets under a folder hold, and the names of those that are not there. Raises FitError."""
    found, missing = Found(), []
    for name, take in SETS.items():
        path = next(iter(sorted(data.rglob(name))), None)
        if path is None:
            missing.append(name)
            continue
        try:
            take(path, found, Random(seed))  # noqa: S311
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FitError(f"{path} is not the set of that name: {type(error).__name__}: {error}") from error
    if not found.pairs or not found.harmless:
        raise FitError(f"{data} holds no pairs or no harmless rows; looked for {', '.join(SETS)}")
    return found, missing


def write(found: Found, out: Path, seed: int) -> dict[str, int]:
    """Write `pairs.jsonl`, `benign.jsonl`, `hard.jsonl`, and `suite.yaml` with its rows; how many rows each has.

    Where a set has categories, also `kinds.jsonl`: pairs of its rows with harmless ones, for a fit of its own.
    """
    out.mkdir(parents=True, exist_ok=True)
    known = set[str]()
    counts = {}
    for name, rows in _fitted_on(found, known, Random(seed)).items():  # noqa: S311
        parted = [{"id": f"{name}-{n}", **row, "split": _part(name, n / len(rows))} for n, row in enumerate(rows)]
        counts[name] = _write_rows(out / f"{name}.jsonl", parted)
    if rows := _of_kinds(found):
        parted = [{"id": f"kinds-{n}", **row, "split": _part("pairs", n / len(rows))} for n, row in enumerate(rows)]
        counts["kinds"] = _write_rows(out / "kinds.jsonl", parted)
    sets = []
    for (kind, name), texts in found.held_out.items():
        rows = [
            {"id": f"{name}-{n}", "text": text, **({"category": found.kinds[text]} if text in found.kinds else {})}
            for n, text in enumerate(texts)
            if _fits(text) and text not in known
        ]
        counts[f"{kind} {name}"] = _write_rows(out / f"{kind}-{name}.jsonl", rows[:HELD_OUT])
        sets.append({"name": f"{kind}-{name}", "kind": kind, "path": f"{kind}-{name}.jsonl"})
    # JSON is YAML.
    suite = {"name": "public", "max_tokens": 32, "judges": ["phrases"], "surrounded_rows": 20, "sets": sets}
    (out / "suite.yaml").write_text(json.dumps(suite, indent=1) + "\n")
    return counts


def _fitted_on(found: Found, known: set[str], chance: Random) -> Mapping[str, Sequence[Row]]:
    """The rows of each file of a fit, shuffled; their texts are `known` from then on."""
    pairs = [
        {"category": name, "toxic": toxic, "safe": safe}
        for name, members in found.pairs.items()
        for toxic, safe in members[: PAIRS.get(name)]
        if _fits(toxic) and _fits(safe) and toxic != safe and _new(known, toxic, safe)
    ]
    benign = [
        {"category": name, "text": text}
        for name, texts in found.harmless.items()
        for text in texts[:HARMLESS]
        if _fits(text) and _new(known, text)
    ]
    return {
        name: _shuffled([row for row in rows if (row["category"] == HARD) == (name == "hard")], chance)
        for name, rows in (("pairs", pairs), ("benign", benign), ("hard", [*pairs, *benign]))
    }


def _of_kinds(found: Found) -> Sequence[Row]:
    """Pairs of harmful rows that have a category with harmless ones that no other file has."""
    if not found.kinds:
        return ()
    spare = [text for text in found.harmless["alpaca"][HARMLESS:] if _fits(text)]
    return [
        {"category": found.kinds[toxic], "toxic": toxic, "safe": safe}
        for toxic, safe in zip(found.held_out["harmful", "catqa"], spare, strict=False)
        if toxic in found.kinds
    ]


def _new(known: set[str], *texts: str) -> bool:
    """Whether none of them was there; they are from now on."""
    if not known.isdisjoint(texts):
        return False
    known.update(texts)
    return True


def _part(name: str, place: float) -> Part:
    return next(part for part, edge in PARTS[name] if place < edge)


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> int:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def main(
    data: Annotated[Path, typer.Option(help="Folder that holds the sets, however deep.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.")],
    seed: Annotated[int, typer.Option(help="Of what is fitted on and what is held out.")] = 0,
) -> None:
    """Write the data of a fit on public sets, and the suite of its evaluation."""
    try:
        found, missing = read(data, seed)
        counts = write(found, out, seed)
    except (FitError, OSError) as error:
        typer.echo(f"public_data: {error}", err=True)
        raise typer.Exit(2) from error
    if missing:
        typer.echo(f"not found under {data}, left out: {', '.join(missing)}", err=True)
    typer.echo(f"{out}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))


if __name__ == "__main__":
    typer.run(main)
