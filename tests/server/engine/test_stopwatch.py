"""How long a guard takes is what its own work takes, not what the device had still to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.engine import stopwatch
from server.engine.stopwatch import Stopwatch


def test_a_cpu_is_timed_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5.0, 5.25])
    monkeypatch.setattr(stopwatch, "monotonic", lambda: next(times))
    assert Stopwatch(torch.device("cpu")).stop() == 0.25


def test_a_gpu_is_timed_by_its_own_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is 10 s behind the host when the watch is made, and takes 2 ms from there."""
    queue = iter([10_000.0, 10_002.0])  # milliseconds, at which the device meets each event

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.met = False

        def record(self) -> None:
            self.at = next(queue)

        def synchronize(self) -> None:
            self.met = True

        def elapsed_time(self, other: Any) -> float:
            assert other.met, "the device has not come so far"
            return float(other.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert Stopwatch(torch.device("cuda")).stop() == pytest.approx(0.002)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_gpu_had_still_to_do_is_not_counted() -> None:
    device = torch.device("cuda")
    large, small = torch.rand(8192, 8192, device=device), torch.rand(8, 8, device=device)
    torch.cuda.synchronize()
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begun.record()
    for _ in range(20):
        large = large @ large * 0
    ended.record()
    watch = Stopwatch(device)
    (small @ small).sum().item()
    seconds = watch.stop()
    assert seconds < begun.elapsed_time(ended) / 1000 / 4
