"""The GPU's benchmark, its code tried on the CPU."""

from __future__ import annotations

import torch

from benchmarks.gpu import TINY, measure


def test_a_tiny_model_goes_through_all_of_it() -> None:
    report = measure(TINY, torch.device("cpu"), torch.float32)
    assert [goal.what.split(",")[0] for goal in report.goals] == ["one stream", "4 streams", "between tokens"]
    assert all(goal.found.value > 0 for goal in report.goals)
    assert report.data["one_stream"] > 0
