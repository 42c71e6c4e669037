"""How two bundles judge the labels that were held out of the second one's fit; kept beside it. Holds no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError

from steering.errors import BundleError
from steering.files import write_whole
from steering.policy import is_flagged
from steering.specs import Frozen

FILE = "held-out.json"


class Judged(Frozen):
    """A bundle by its id, and the threshold that its scores are compared with."""

    guard: str
    threshold: float


class HeldOutRow(Frozen):
    """A labelled prompt by the id of its record, and its scores; null is a score that is no number."""

    id: str
    harmful: bool
    old: float | None
    new: float | None


class Figures(NamedTuple):
    """How many of the harmful prompts of some labels are caught, and how many of the harmless ones are flagged."""

    harmful: int
    caught: int
    harmless: int
    false_alarms: int


class HeldOut(Frozen):
    """What a bundle and its successor make of labels that neither was fitted on; no texts."""

    format_version: int = Field(default=1, ge=1, le=1)
    old: Judged
    new: Judged
    rows: Sequence[HeldOutRow]
    fitted: int = 0  # labels held out that ask what a fit's rows ask, word for word: not among `rows`

    def flagged(self, row: HeldOutRow) -> tuple[bool, bool]:
        """Whether the old bundle flags a prompt, and whether the new one does."""
        return _flags(row.old, self.old), _flags(row.new, self.new)

    @property
    def figures(self) -> tuple[Figures, Figures]:
        """Figures of the old bundle and of the new one."""
        verdicts = [(row.harmful, self.flagged(row)) for row in self.rows]
        old, new = (_figures([(harmful, flagged[side]) for harmful, flagged in verdicts]) for side in (0, 1))
        return old, new

    @property
    def flips(self) -> list[HeldOutRow]:
        """The prompts that the two judge differently."""
        return [row for row in self.rows if len(set(self.flagged(row))) > 1]


def _flags(score: float | None, by: Judged) -> bool:
    return is_flagged(float("nan") if score is None else score, by.threshold)


def _figures(verdicts: Sequence[tuple[bool, bool]]) -> Figures:
    of_harmful = [flagged for harmful, flagged in verdicts if harmful]
    of_harmless = [flagged for harmful, flagged in verdicts if not harmful]
    return Figures(len(of_harmful), sum(of_harmful), len(of_harmless), sum(of_harmless))


def save_held_out(folder: Path, held_out: HeldOut) -> None:
    """Write it into a bundle's folder, whole or not at all. Raises OSError."""
    write_whole(folder / FILE, (held_out.model_dump_json(indent=1) + "\n").encode())


def load_held_out(folder: Path) -> HeldOut | None:
    """What is kept beside a bundle; None where it was not made with labels. Raises BundleError."""
    try:
        return HeldOut.model_validate_json((folder / FILE).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise BundleError(f"{folder / FILE} cannot be read: {' '.join(str(error).split())[:200]}") from error
