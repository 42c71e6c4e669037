"""How far a fit is: which stage of how many runs, and how much of it is done."""

from __future__ import annotations

from dataclasses import dataclass

from rich.progress import Progress

from steering.fitting.collect import Tick
from steering.fitting.stages import Stages


@dataclass(frozen=True)
class Bars:
    """Shows the work of the stages; `total` of them make a fit."""

    progress: Progress
    stages: Stages
    total: int

    def __call__(self, name: str, total: int) -> Tick:
        """Show a piece of work of the stage that runs."""
        number = len(self.stages.reused) + len(self.stages.computed) + 1
        task = self.progress.add_task(f"stage {number} of {self.total}: {name}", total=total)
        return lambda count: self.progress.advance(task, count)
