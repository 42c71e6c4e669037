"""Tables of what readers make of prompts that they were not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import binom
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.real_guard.fits import Array
from benchmarks.real_guard.rows import XSTEST, Asked
from models.layout import Layout
from steering.calibration import conformal_threshold
from steering.evaluation.surroundings import CLEAN, OF_WORDS
from steering.fitting.calibrate import calibrate, make_cells, scores
from steering.fitting.surround import ALONE
from steering.readers import Conversation

RATES = 0.05, 0.01
READ = ("conversation", "last token")
BUCKETS = 4  # of lengths


@dataclass(frozen=True)
class Judged:
    """What one fit's readers make of prompts: scores `[N]` each, and thresholds by rate."""

    scores: Mapping[str, Array]
    thresholds: Mapping[tuple[str, float], float]

    def flagged(self, reader: str, rate: float, at: Sequence[int]) -> NDArray[np.bool_]:
        """Which of the prompts at these places are flagged."""
        return self.scores[reader][[*at]] >= self.thresholds[reader, rate]


@dataclass(frozen=True)
class Study:
    """What was asked, and what each fit's readers read of it."""

    asked: Sequence[Asked]
    raw: Array  # `[N, fits, 5]`, see `read_all`
    layouts: Sequence[Layout]
    fits: Sequence[str]
    calibration: Sequence[bool]  # which of the fresh rows are of that part; they come first

    @property
    def labels(self) -> Tensor:
        """1 harmful `[N]`."""
        return torch.tensor([each.label for each in self.asked])

    def places(self, kind: str, label: int, of_set: str = "") -> list[int]:
        """Prompts of a kind and label, and of a set where one is named."""
        return [
            at
            for at, each in enumerate(self.asked)
            if (each.kind, each.label) == (kind, label) and of_set in ("", each.set)
        ]

    def judged(self, fit: str, scaled: Sequence[int] | None = None, safe: Sequence[int] | None = None) -> Judged:
        """What a fit's readers make of all prompts.

        `scaled`: those that make the scales, by default all fresh rows; `safe`: the harmless ones that make the
        thresholds, by default those of the calibration part. The last token's are made of those that are alone.
        """
        raw, labels = self.raw[:, self.fits.index(fit)], self.labels
        scaled = range(len(self.calibration)) if scaled is None else scaled
        kept = [at for at, is_kept in enumerate(self.calibration) if is_kept] if safe is None else safe
        harmless = [at for at in kept if labels[at] == 0]
        cells = make_cells([self.layouts[at] for at in scaled if labels[at] == 0])
        reader = Conversation(1, cells, together=True, spoken=True)
        numbers = raw[:, [0, 2, 3] if reader.apart else [0, 1]]
        calibrate(reader, numbers[[*scaled]], [self.layouts[at] for at in scaled], labels[[*scaled]])
        own = scores(reader, numbers, self.layouts)
        last = torch.sigmoid(torch.from_numpy(raw[:, 4]))
        alone = [at for at in harmless if self.asked[at].kind == ALONE]
        found = {READ[0]: (own, own[harmless]), READ[1]: (last, last[alone])}
        thresholds = {(name, rate): conformal_threshold(of, rate) for name, (_, of) in found.items() for rate in RATES}
        return Judged(
            {name: of.numpy() for name, (of, _) in found.items()},
            {which: np.inf if threshold is None else threshold for which, threshold in thresholds.items()},
        )


def shares(study: Study, judged: Judged, kind: str) -> list[str]:
    """Recall / false alarms of a kind of prompts by each reader at each rate."""
    of = [study.places(kind, label) for label in (1, 0)]
    return [
        " / ".join(f"{judged.flagged(reader, rate, at).mean():.2f}" for at in of) for rate in RATES for reader in READ
    ]


def surroundings(study: Study) -> Table:
    """Recall and false alarms on held-out rows in every surrounding, and on XSTest by the fits that lack its words."""
    table = Table("recall / false alarms", *(f"{reader}, {rate:.0%}" for rate in RATES for reader in READ), "rows")
    judged = study.judged("all")
    for name in (CLEAN, *OF_WORDS):
        count = " + ".join(str(len(study.places(f"test {name}", label))) for label in (1, 0))
        table.add_row(name, *shares(study, judged, f"test {name}"), count)
    flags: dict[tuple[str, float, int], list[bool]] = {}
    for fit in study.fits:
        by = study.judged(fit)
        for label in (1, 0):
            at = [place for place in study.places(XSTEST, label) if study.asked[place].fit == fit]
            for reader in READ:
                for rate in RATES:
                    flags.setdefault((reader, rate, label), []).extend(by.flagged(reader, rate, at).tolist())
    cells = [
        " / ".join(f"{np.mean(flags[reader, rate, label]):.2f}" for label in (1, 0))
        for rate in RATES
        for reader in READ
    ]
    table.add_row(
        f"{XSTEST}, cross-validated", *cells, " + ".join(str(len(study.places(XSTEST, label))) for label in (1, 0))
    )
    return table


def left_out(study: Study) -> Table:
    """AUROC of each set's fresh harmful rows against all fresh harmless ones, with the set in the fit and without."""
    table = Table("AUROC", *(f"{reader}, {fitted}" for reader in READ for fitted in ("fitted on it", "not")), "rows")
    harmless = study.places(ALONE, 0)
    for name in study.fits:
        harmful = study.places(ALONE, 1, name)
        if harmful:
            labels = [1] * len(harmful) + [0] * len(harmless)
            by = [study.judged(fit).scores for fit in ("all", name)]
            cells = [f"{roc_auc_score(labels, of[reader][harmful + harmless]):.3f}" for reader in READ for of in by]
            table.add_row(name, *cells, f"{len(harmful)} + {len(harmless)}")
    return table


def realised(study: Study) -> Table:
    """Of fresh harmless prompts, by length: the share flagged by thresholds of the other half of all fresh rows."""
    table = Table("tokens", *(f"{rate:.0%}: flagged (95 % of such counts)" for rate in RATES), "prompts")
    fresh = range(len(study.calibration))
    chance = np.random.default_rng(0).permutation(len(fresh)) % 2
    flags = {rate: np.zeros(len(fresh), dtype=bool) for rate in RATES}
    for half in (0, 1):
        others = [at for at in fresh if chance[at] != half]
        by = study.judged("all", others, others)
        for rate in RATES:
            flags[rate][chance == half] = by.flagged(READ[0], rate, np.flatnonzero(chance == half).tolist())
    tokens = np.array([study.layouts[at].tokens for at in fresh])
    harmless = study.labels[: len(fresh)].numpy() == 0
    edges = np.quantile(tokens[harmless], np.linspace(0, 1, BUCKETS + 1))
    for low, high in zip(edges[:-1], edges[1:] + (np.arange(BUCKETS) == BUCKETS - 1), strict=True):
        inside = harmless & (tokens >= low) & (tokens < high)
        count = int(inside.sum())
        cells = [
            f"{flags[rate][inside].mean():.3f} ({least / count:.3f} to {most / count:.3f})"
            for rate in RATES
            for least, most in [binom.interval(0.95, count, rate)]
        ]
        table.add_row(f"{low:.0f} to {high:.0f}", *cells, str(count))
    return table
