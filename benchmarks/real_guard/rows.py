"""What a real model's guard is fitted on, and what it is asked: rows that no fit has seen, in every surrounding."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from server.cli.rows import read_fit_rows
from steering.data.questions import Question
from steering.data.tables import read_table
from steering.evaluation.surroundings import CLEAN, OF_WORDS, SURROUNDINGS
from steering.fitting import public_data
from steering.fitting.dataset import Dataset
from steering.fitting.items import Item
from steering.fitting.surround import Row

FOLDS = 5  # of XSTest's focus words
XSTEST = "xstest"
TARGET = 0.01  # the lowest rate that thresholds are made for


@dataclass(frozen=True)
class Asked:
    """A prompt that no fit has seen, unless `fit` says by which alone it may be read."""

    question: Question
    label: int
    kind: str  # surrounding, or what it is for
    set: str
    fit: str = "all"


def dataset_of(data: Path, out: Path) -> tuple[Dataset, Mapping[str, frozenset[int]]]:
    """What `make real-guard` fits on, XSTest in the train part; and the places that each fit goes without."""
    found, _ = public_data.read(data, 0)
    public_data.write(found, out, 0)
    parts = read_fit_rows(
        [out / "pairs.jsonl"], [out / "benign.jsonl"], [], None,
        text_only=False, with_test=False, drop_bad=False, seed=0, target_fpr=TARGET,
    ).parts  # fmt: skip
    rows = [row for _, row in read_table(next(iter(sorted(data.rglob("xstest*.csv")))))]
    words = sorted({row["focus"] for row in rows})
    Random(5).shuffle(words)
    hard = [_hard(number, row, words.index(row["focus"]) * FOLDS // len(words)) for number, row in enumerate(rows)]
    dataset = Dataset.of({**parts, "train": [*parts["train"], *hard]})
    of = [dataset.items[owner] for owner in dataset.owners]
    sets = sorted({item.category for item in dataset.items if item.toxic is not None and not item.hard})
    groups = [*(f"{XSTEST} {fold}" for fold in range(FOLDS)), *sets]
    without = {
        name: frozenset(at for at, item in enumerate(of) if name in (item.category, item.group)) for name in groups
    }
    return dataset, {"all": frozenset(), **without}


def _hard(number: int, row: Mapping[str, str], fold: int) -> Item:
    asked, harmless = Question(row["prompt"]), row["label"] == "safe"
    return Item(
        f"{XSTEST}-{number}",
        None if harmless else asked,
        asked if harmless else None,
        category=XSTEST,
        group=f"{XSTEST} {fold}",
        split="train",
        hard=True,
    )


def asked_of(dataset: Dataset, fresh: Sequence[Row], folder: Path, limit: int) -> list[Asked]:
    """Fresh rows of the fit, XSTest's rows, and at most `limit` held-out rows of each label in every surrounding."""
    of = [dataset.items[owner].category for owner in dataset.owners]
    found = [Asked(row.question, int(dataset.labels[row.place]), row.surrounding, of[row.place]) for row in fresh]
    for owner, question, label in zip(dataset.owners, dataset.questions, dataset.labels.tolist(), strict=True):
        if (item := dataset.items[owner]).hard:
            found.append(Asked(question, label, XSTEST, XSTEST, item.group or ""))
    suite = json.loads((folder / "suite.yaml").read_text())
    for label, kind in enumerate(("harmless", "harmful")):
        sets = [each for each in suite["sets"] if each["kind"] == kind and XSTEST not in each["name"]]
        rows = [
            (json.loads(line)["text"], each["name"])
            for each in sets
            for line in (folder / each["path"]).read_text().splitlines()
        ]
        Random(1).shuffle(rows)
        for name in (CLEAN, *OF_WORDS):
            for text, of_set in rows if name == CLEAN else rows[:limit]:
                plain = Question(text)
                put = plain if name == CLEAN else SURROUNDINGS[name].put(plain)
                found.append(Asked(put, label, f"test {name}", of_set))
    return found
