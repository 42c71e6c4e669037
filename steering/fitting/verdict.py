"""What a fitted guard is worth, in one sentence, and what to do where that is little."""

from __future__ import annotations

from torch import Tensor

from steering.fitting.dataset import Dataset
from steering.manifest import Manifest
from steering.policy import WEAK

SWAPPED_SHARE = 0.7  # of pairs whose toxic side is nearer to the harmless prompts, from which they look swapped
FEW = 10  # pairs, or harmless prompts of their own, of which a share says little
WORDS_MARGIN = 0.01  # AUROC by which the words must beat the guard to be told of


def headline(manifest: Manifest, rate: float) -> str:
    """The first line for whoever has fitted a guard. `rate`: the default threshold's false-positive rate."""
    promise = f"{manifest.recall:.1%} of harm like yours at its default threshold (false positives {rate:.1%} at most)"
    if manifest.recall >= WEAK:
        return f"The guard catches {promise}."
    return (
        f"DO NOT SERVE THIS GUARD: it catches {promise}. More harmless rows allow a lower threshold, --target-fpr 0.05 "
        "takes more false positives for more recall, and closer twins teach harm instead of words."
    )


def words_warning(by_prober: float, by_words: float) -> list[str]:
    """One warning where a bag of words tells harm better than the guard does."""
    if by_words <= by_prober + WORDS_MARGIN:
        return []
    beaten = f"a bag of words reaches AUROC {by_words:.3f} on fresh prompts, the guard {by_prober:.3f}"
    return [f"Words beat the guard: {beaten}. Try another layer (--select auroc), more pairs, or closer twins."]


def swapped_warning(dataset: Dataset, states: Tensor) -> list[str]:
    """One warning where pairs look swapped, by the states `[N, d]` of all prompts at the guarded layer.

    Harmless prompts that are no pair's side are harmless for certain: the safe sides should be the nearer ones.
    """
    toxic, safe = dataset.twins("train")
    alone = sorted({*dataset.places("train", 0)} - {*safe})
    if min(len(toxic), len(alone)) < FEW:
        return []
    spread = states.std(0).clamp_min(1e-6)
    centre = states[alone].mean(0)
    far_toxic, far_safe = (((states[places] - centre) / spread).norm(dim=1) for places in (toxic, safe))
    share = float((far_toxic < far_safe).double().mean())
    if share < SWAPPED_SHARE:
        return []
    nearer = f"in {share:.0%} of them the toxic side is nearer to the harmless prompts than the safe side"
    return [f"The pairs look swapped: {nearer}. Check that the columns are not exchanged."]
