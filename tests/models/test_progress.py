"""What is told while a model is loaded."""

from __future__ import annotations

from transformers.utils import logging

from models.load import load_backbone
from models.progress import LoadProgress
from tests.tiny import TinyModels


def test_every_tensor_that_is_read_is_told(tiny_models: TinyModels) -> None:
    told: list[LoadProgress] = []
    load_backbone(tiny_models.folder("llava_onevision"), device="cpu", dtype="float32", tell=told.append)
    assert [each.done for each in told] == list(range(1, told[-1].total + 1))
    assert {(each.stage, each.total) for each in told} == {("weights", told[-1].total)}
    assert str(told[-1]) == f"{told[-1].total} of {told[-1].total} tensors are read (100%)"
    assert logging.set_tqdm_hook(None) is None  # bars are as before


def test_bytes_are_told_in_units_that_are_read() -> None:
    assert str(LoadProgress("download", 3_040_000_000, 15_200_000_000)).startswith("3.0 of 15.2 GB of the weights")
    assert str(LoadProgress("download", 0, 0)) == "0.0 of 0.0 MB of the weights are fetched (0%)"
