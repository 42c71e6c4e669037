"""The reader of categories: fitted on the harmful prompts that name their category, and calibrated on fresh ones.

Each category is a Gaussian, harmless prompts are one, and so is harm of none of the categories; all share one shrunk
covariance, so that how much likelier a turn is of a category than harmless is linear in its states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steering.calibration import conformal_threshold
from steering.categories import Array, CategoryReader
from steering.data.columns import listed
from steering.data.formats import SET_NAMES
from steering.errors import FitError
from steering.fitting.calibrate import rising
from steering.fitting.dataset import Dataset
from steering.fitting.figures import EVEN_ODDS
from steering.fitting.layers import auroc
from steering.fitting.probes import SHRINKAGE, Linear, shrunk_covariance
from steering.specs import NO_CATEGORY, UNSAFE, CategoriesSpec, CategorySpec

TRAIN, FRESH = 8, 4  # harmful prompts that a category has at least, to be fitted on and to be calibrated on
MOST = 64  # categories; those with the most prompts
LONGEST = 64  # characters of a name
RATE = 0.05  # of fresh harmful prompts of other categories, the share that reaches a category's threshold at most
HARMLESS, UNKNOWN = -1, -2  # what a prompt is of that is of no category


@dataclass(frozen=True)
class Kinds:
    """The categories of a data set, and which of them each prompt is of.

    `of` `[N]`: the number of a prompt's category, `len(names)` where it is other harm, HARMLESS or UNKNOWN.
    """

    names: tuple[str, ...]
    of: Tensor
    left_out: Sequence[str]  # categories with too few prompts, or with a name that a bundle cannot have

    @classmethod
    def found_in(cls, dataset: Dataset) -> Kinds:
        """The categories that the rows name themselves; none where fewer than two have enough prompts.

        What a public set is called is no category. Hard negatives are of none that is known.
        """
        said = [_category(dataset, place) for place in range(len(dataset.questions))]
        counts = {
            part: Counter(said[place] for place in dataset.places(part, 1) if said[place])
            for part in ("train", "calibration")
        }
        enough = [
            name
            for name, count in counts["train"].most_common()
            if count >= TRAIN and counts["calibration"][name] >= FRESH and _can_be_told(name)
        ]
        names = sorted(enough[:MOST]) if len(enough) > 1 else []
        numbers = {name: number for number, name in enumerate(names)}
        of = torch.tensor([numbers.get(name, len(names)) for name in said])
        of[dataset.labels == 0] = HARMLESS
        of[dataset.hard(range(len(said))) & (dataset.labels == 1)] = UNKNOWN
        train = dataset.places("train")
        if int((of[train] == len(names)).sum()) < TRAIN:
            of[of == len(names)] = UNKNOWN
        left_out = {name for name in said if name} - {*names}
        return cls(tuple(names), of, sorted(left_out))

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.names)

    @classmethod
    def none(cls) -> Kinds:
        """No categories."""
        return cls((), torch.empty(0), ())

    @property
    def other(self) -> bool:
        """Whether there is enough harm of none of them to be told apart."""
        return bool((self.of == len(self.names)).any())

    @property
    def count(self) -> int:
        """How many kinds of harm are told apart."""
        return len(self.names) + self.other

    def fit(self, x: Tensor, places: Sequence[int]) -> Linear:
        """How much likelier each kind is than harmless: weight `[K, D]` and bias `[K]`.

        States `[n, D]` of these prompts of the data set. Raises FitError where there are no such numbers.
        """
        of = self.of[list(places)]
        x, of = x[of != UNKNOWN].float(), of[of != UNKNOWN]
        mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
        z = (x - mean) / scale
        means = torch.stack([z[of == kind].mean(0) for kind in range(HARMLESS, self.count)])
        harmful = of != HARMLESS
        weights = torch.where(harmful, 0.5 / harmful.sum(), 0.5 / (~harmful).sum())
        covariance = shrunk_covariance(z - means[of + 1], weights, SHRINKAGE)
        weight = torch.linalg.solve(covariance, (means[1:] - means[0]).T).T
        found = Linear.folded(weight, -((means[1:] + means[0]) * weight).sum(1) / 2, mean, scale)
        if not (found.weight.isfinite().all() and found.bias.isfinite().all()):
            raise FitError("the reader of categories is no number: it did not converge")
        return found

    def reader(self, linear: Linear) -> CategoryReader:
        """A reader that is not calibrated."""
        made = CategoryReader(linear.weight.shape[1], self.names, [1.0] * len(self.names), other=self.other)
        made.weight.copy_(linear.weight)
        made.bias.copy_(linear.bias)
        return made


def _category(dataset: Dataset, place: int) -> str:
    """The category of a harmful prompt; "" where its row names none, of a harmless prompt and of a hard negative."""
    item = dataset.items[dataset.owners[place]]
    said = item.category.strip()
    return said if dataset.labels[place] == 1 and not item.hard and said not in SET_NAMES else ""


def _can_be_told(name: str) -> bool:
    return len(name) <= LONGEST and name not in (UNSAFE, NO_CATEGORY)


@dataclass(frozen=True)
class CategoriesRead:
    """A calibrated reader of categories, and what the manifest says of it."""

    reader: CategoryReader
    spec: CategoriesSpec


@dataclass(frozen=True)
class FreshRows:
    """What was read of fresh rows: `raw` `[R, C]`, what speaks for each category, and the `kinds` of the rows `[R]`.

    `held_out` `[R]`: not those of the validation part. `alone` `[R]`: nothing stands around the prompt.
    """

    raw: Array
    kinds: Tensor
    held_out: Tensor
    alone: Tensor


def calibrated(kinds: Kinds, linear: Linear, fresh: FreshRows) -> CategoriesRead:
    """Set each category's score by fresh rows, and its threshold and figures by those that are held out.

    A category's score is a probability where it, harmless prompts and other harm weigh a half and two quarters.
    """
    reader = kinds.reader(linear)
    specs, logistics, harmless, alone = [], [], [], []
    for number, name in enumerate(kinds.names):
        known = fresh.kinds != UNKNOWN
        own = fresh.kinds == number
        is_harmless = fresh.kinds == HARMLESS
        groups = [own & known, is_harmless, known & ~own & ~is_harmless]
        shares = [share * each / max(1, int(each.sum())) for share, each in zip((2, 1, 1), groups, strict=True)]
        weights = torch.stack(shares).sum(0)
        slope, shift = rising(fresh.raw[known, number].tolist(), own[known].long().numpy(), weights[known].numpy())
        logistics.append((slope, shift))
        scores = torch.sigmoid(slope * torch.from_numpy(fresh.raw[:, number]) + shift)
        mine, quiet, others = (scores[each & fresh.held_out] for each in groups)
        threshold = max(conformal_threshold(others, RATE) or EVEN_ODDS, EVEN_ODDS)
        specs.append(
            CategorySpec(
                name=name,
                threshold=threshold,
                auroc=_told_apart(mine, others),
                recall=float((mine >= threshold).double().mean()),
                samples=int((groups[0] & fresh.held_out & fresh.alone).sum()),
            )
        )
        harmless.append(_told_apart(mine, quiet))
        alone.append(_told_apart(*(scores[each & fresh.held_out & fresh.alone] for each in (groups[0], groups[2]))))
    figures = {
        "macro_auroc": float(np.mean(alone)),
        "macro_auroc_surrounded": float(np.mean([spec.auroc for spec in specs])),
        "macro_auroc_harmless": float(np.mean(harmless)),
    }
    slopes, shifts = zip(*logistics, strict=True)
    reader.calibrate(slopes, shifts, [spec.threshold for spec in specs])
    return CategoriesRead(reader, CategoriesSpec(categories=specs, other=kinds.other, figures=figures))


def at_last_tokens(dataset: Dataset, kinds: Kinds, states: Tensor) -> CategoriesRead:
    """The reader of categories of prompts alone, of the states of all prompts at their last tokens `[N, D]`."""
    train, fresh = dataset.places("train"), [*dataset.places("validation"), *dataset.places("calibration")]
    linear = kinds.fit(states[train], train)
    reader = kinds.reader(linear)
    raw = np.array([reader.raw(notes[None]) for notes in reader.read(states[fresh, None]).double().numpy()])
    held_out = torch.tensor([dataset.parts[place] == "calibration" for place in fresh])
    return calibrated(kinds, linear, FreshRows(raw, kinds.of[fresh], held_out, torch.ones_like(held_out)))


def _told_apart(one: Tensor, other: Tensor) -> float:
    """AUROC of scores against others."""
    return auroc(torch.cat([one, other]), torch.cat([torch.ones(len(one)), torch.zeros(len(other))]))


def left_out_warning(kinds: Kinds) -> list[str]:
    """One warning that names the categories which the bundle does not tell apart, or none."""
    if not kinds.left_out:
        return []
    needed = f"{TRAIN} harmful prompts in the train part and {FRESH} in the calibration part"
    return [f"Not told apart: {listed(kinds.left_out)}. It takes two categories or more, each with {needed}."]
