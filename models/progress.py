"""How far a model is loaded: bytes of its weights that are fetched, tensors that are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

Stage = Literal["download", "weights"]
STAGES: tuple[Stage, ...] = get_args(Stage)
READING = "Loading weights"  # what transformers calls that bar


@dataclass(frozen=True)
class LoadProgress:
    """How much of a stage is done: bytes of `download`, tensors of `weights`. `total` may grow as files are found."""

    stage: Stage
    done: int
    total: int

    @property
    def share(self) -> float:
        """0 to 1."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    def __str__(self) -> str:
        if self.stage == "download":
            unit, size = ("GB", 1e9) if self.total >= 1e9 else ("MB", 1e6)
            done, total = f"{self.done / size:.1f}", f"{self.total / size:.1f} {unit}"
            return f"{done} of {total} of the weights are fetched ({self.share:.0%})"
        return f"{self.done} of {self.total} tensors are read ({self.share:.0%})"


Tell = Callable[[LoadProgress], None]


@contextmanager
def progress_bars(tell: Tell | None) -> Iterator[type | None]:
    """A class of progress bars for downloads, and all that transformers makes, which tell instead of drawing.

    `tell` is called for every step, in whatever thread makes it. Without it: None, and bars are drawn as ever.
    """
    if tell is None:
        yield None
        return
    from transformers.utils import logging

    bars = _telling(tell)
    before = logging.set_tqdm_hook(lambda _, args, options: bars(*args, **options))
    try:
        yield bars
    finally:
        logging.set_tqdm_hook(before)


def _telling(tell: Tell) -> type:
    from tqdm import tqdm

    files: dict[int, Bar] = {}  # by the bar's id

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401  as of the class
            self._stage: Stage | None = "download" if options.get("unit") == "B" else None
            if options.get("desc") == READING:
                self._stage = "weights"
            super().__init__(*args, **{**options, "disable": True})  # it draws nothing, and counts nothing by itself
            self.n = options.get("initial", 0)  # of a download that goes on
            if self._stage == "download":
                files[id(self)] = self

        def update(self, n: float | None = 1) -> None:
            self.n += n or 0
            self._tell()

        def __iter__(self) -> Iterator[Any]:
            for each in self.iterable:
                yield each
                self.update()

        def _tell(self) -> None:
            if self._stage == "download":  # several files at once
                bars = list(files.values())
                tell(LoadProgress("download", int(sum(b.n for b in bars)), int(sum(b.total or 0 for b in bars))))
            elif self._stage == "weights":
                tell(LoadProgress("weights", int(self.n), int(self.total or 0)))

    return Bar
