"""What a user sees of a fit that goes on for hours."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.cli.progress import ProgressLines
from steering.fitting.bars import Bars
from steering.fitting.stages import Stages


def test_each_line_says_which_stage_of_how_many_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressLines() as progress:
        stages = Stages(tmp_path)
        bars = Bars(progress, stages, 3)

        def work(folder: Path) -> None:
            tick = bars("states", 2)
            for _ in range(2):
                tick(1)

        stages.run("data", {}, lambda _: None)
        stages.run("states", {}, work)
        Stages(tmp_path).run("states", {}, work)  # is there: nothing is to be seen of it
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("stage 2 of 3: states: 1 of 2")
    assert last.startswith("stage 2 of 3: states: 2 of 2")
