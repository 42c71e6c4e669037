"""What a fitted guard is worth on prompts that it was not fitted on: thresholds, rates, categories, warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from steering.calibration import conformal_threshold
from steering.data.columns import listed
from steering.data.own_rows import Part
from steering.errors import FitError
from steering.fitting.dataset import Dataset
from steering.fitting.enough import TARGET_FPRS, samples_needed
from steering.fitting.layers import auroc, balanced_accuracy, calibration_error, no_signal
from steering.specs import NO_CATEGORY, LayerFigures, Threshold

EVEN_ODDS = 0.5  # below it a prompt is likelier safe: where the promise allows less, that is not used up
WORDS_GIVE_AWAY = 0.95  # AUROC of the words alone, from which the report warns


def calibrated_thresholds(safe_scores: Tensor) -> list[Threshold]:
    """A threshold for each rate of TARGET_FPRS that the safe calibration scores `[n]` can promise."""
    return [
        Threshold(target_fpr=rate, threshold=threshold, samples=len(safe_scores))
        for rate in TARGET_FPRS
        if (threshold := conformal_threshold(safe_scores, rate)) is not None
    ]


def default_threshold(thresholds: Sequence[Threshold], rate: float) -> float:
    """The threshold that promises `rate`, and at least even odds. Raises FitError where none promises it."""
    promised = next((known.threshold for known in thresholds if known.target_fpr == rate), None)
    if promised is None:
        raise FitError(f"safe calibration rows score as high as scores go: no threshold promises an FPR of {rate:g}")
    return max(promised, EVEN_ODDS)


def validation_figures(dataset: Dataset, scores: Tensor, threshold: float) -> dict[str, float]:
    """Figures on the calibration part, which neither prober nor layer has seen; its safe half set the threshold."""
    places = dataset.places("calibration")
    found, labels = scores[places], dataset.labels[places]
    return {
        "auroc": auroc(found, labels),
        "balanced_accuracy": balanced_accuracy(found > 0.5, labels),
        "calibration_error": calibration_error(found, labels),
        "tpr": share_flagged(found[labels == 1], threshold),
        "fpr": share_flagged(found[labels == 0], threshold),
    }


def share_flagged(scores: Tensor, threshold: float) -> float:
    """Share of scores that are flagged, as `steering.policy.is_flagged` does: what is no number is."""
    return float((~(scores < threshold)).double().mean())


def by_category(dataset: Dataset, scores: Tensor, threshold: float) -> dict[str, dict[str, float]]:
    """Per category, how many toxic and safe prompts the calibration part has, and the shares of them flagged.

    A category that the part has none of is empty: it was not measured.
    """
    table: dict[str, dict[str, float]] = {}
    names = {owner: item.category or NO_CATEGORY for owner, item in enumerate(dataset.items)}
    for category in sorted(set(names.values())):
        row: dict[str, float] = {}
        for label, name in ((1, "toxic"), (0, "safe")):
            at = [p for p in dataset.places("calibration", label) if names[dataset.owners[p]] == category]
            if at:
                row[name] = len(at)
                row[f"{name}_flagged"] = share_flagged(scores[at], threshold)
        table[category] = row
    return table


def unmeasured_warning(categories: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One warning that names the categories of which no fresh prompt was there, or none."""
    names = [name for name, row in categories.items() if not row and name != NO_CATEGORY]
    if not names:
        return []
    missing = "The calibration part has no prompt of these categories; give more rows of them, or a `split` of your own"
    return [f"Not measured: {listed(names)}. {missing}."]


def sizes(dataset: Dataset) -> dict[Part, dict[str, int]]:
    """How many toxic and safe prompts each part has."""
    return {
        part: {name: len(dataset.places(part, label)) for label, name in ((1, "toxic"), (0, "safe"))}
        for part in dict.fromkeys(dataset.parts)
    }


def warnings(
    dataset: Dataset,
    scores: Tensor,
    figures: Sequence[LayerFigures],
    layers: Sequence[int],
    rate: float,
    by_words: float,
) -> list[str]:
    """What a reader of the report must know first. `by_words`: AUROC of the words alone."""
    places = dataset.places("calibration")
    labels = dataset.labels[places]
    found = []
    by_prober = auroc(scores[places], labels)
    if no_signal(by_prober, labels):
        found.append(f"There is no signal: on fresh prompts the AUROC is {by_prober:.3f}, no better than chance.")
    if by_words >= WORDS_GIVE_AWAY:
        found.append(
            f"The words alone give the label away: a bag of words reaches AUROC {by_words:.3f} on fresh prompts. "
            "What the prober learnt may be words too."
        )
    return [*found, *_layer_warnings(figures, layers), *_sample_warnings(len(dataset.places("calibration", 0)), rate)]


def _layer_warnings(figures: Sequence[LayerFigures], layers: Sequence[int]) -> list[str]:
    best = max(figures, key=lambda each: each.auroc)
    chosen = max((each for each in figures if each.layer in layers), key=lambda each: each.auroc)
    if best.auroc - chosen.auroc <= 0.01:
        return []
    better = f"layer {best.layer} ({best.auroc:.3f})"
    separates = f"Layer {chosen.layer} separates worse (AUROC {chosen.auroc:.3f}) than {better}"
    return [f"{separates}; consider --select sas-among-best."]


def _sample_warnings(samples: int, rate: float) -> list[str]:
    found = [
        f"{samples} safe calibration prompts cannot promise an FPR of {target:g}: {samples_needed(target)} are needed."
        for target in TARGET_FPRS
        if samples < samples_needed(target)
    ]
    if rate == 0.05:
        found.append("The default threshold aims at an FPR of 5 %: there are too few safe prompts for 1 %.")
    return found
