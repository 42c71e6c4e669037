from __future__ import annotations

from pathlib import Path

import pytest

from steering.fitting.stages import DONE, Stages, load_json, save_json


class Work:
    """A stage's work that counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, folder: Path) -> None:
        self.runs += 1
        save_json(folder / "result.json", {"answer": 42})


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    work = Work()
    for _ in range(3):
        stages = Stages(tmp_path)
        folder = stages.run("a", {"seed": 1}, work)
    assert work.runs == 1
    assert load_json(folder / "result.json") == {"answer": 42}
    assert (stages.reused, stages.computed) == (["a"], [])


def test_other_inputs_are_another_stage(tmp_path: Path) -> None:
    work, stages = Work(), Stages(tmp_path)
    folders = {stages.run(name, {"seed": seed}, work) for name in ("a", "b") for seed in (1, 2)}
    assert len(folders) == work.runs == 4


@pytest.mark.parametrize("damage", ["changed", "missing", "unfinished", "no list"])
def test_a_damaged_stage_is_run_again(tmp_path: Path, damage: str) -> None:
    work = Work()
    folder = Stages(tmp_path).run("a", {}, work)
    if damage == "changed":
        (folder / "result.json").write_text('{"answer": 41}')
    elif damage == "missing":
        (folder / "result.json").unlink()
    elif damage == "unfinished":
        (folder / DONE).unlink()
    else:
        (folder / DONE).write_text("{")
    assert Stages(tmp_path).run("a", {}, work) == folder
    assert work.runs == 2
    assert load_json(folder / "result.json") == {"answer": 42}


def test_a_stage_that_fails_is_not_finished(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        save_json(folder / "half.json", {})
        raise RuntimeError("no more")

    stages = Stages(tmp_path)
    with pytest.raises(RuntimeError):
        stages.run("a", {}, fails)
    work = Work()
    stages.run("a", {}, work)
    assert work.runs == 1
