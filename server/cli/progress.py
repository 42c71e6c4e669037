"""Progress where there is no terminal: a line when a stage begins and ends, and one a minute between."""

from __future__ import annotations

import sys
from time import monotonic

from rich.progress import Progress, TaskID

SECONDS = 60.0  # between two lines of one stage


class ProgressLines(Progress):
    """Prints to stderr what a bar would show."""

    def __init__(self, seconds: float = SECONDS) -> None:
        super().__init__(disable=True)
        self._seconds = seconds
        self._told: dict[TaskID, float] = {}  # when each task was told of last

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count some more of a task."""
        super().advance(task_id, advance)
        task = self._tasks[task_id]
        if task_id not in self._told or task.finished or monotonic() - self._told[task_id] >= self._seconds:
            self._told[task_id] = monotonic()
            left = "" if task.time_remaining is None else f", about {task.time_remaining:.0f} s left"
            print(f"{task.description}: {task.completed:g} of {task.total:g}{left}", file=sys.stderr, flush=True)
