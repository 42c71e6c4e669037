"""A small engine in a process of its own, as `autosteer serve` starts a large one."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from server.settings.schema import LogFormat

if TYPE_CHECKING:
    from server.engine.own import OwnEngine


@dataclass(frozen=True)
class FakeSpec:
    """Stands in for `LaunchSpec` in the engine's process."""

    log_format: LogFormat = "json"
    fault: BaseException | None = None
    signal: int | None = None  # it sends itself this instead of loading
    seconds: float = 0.0  # that loading takes
    slow: Path | None = None  # a file that is made when the first step begins, which does not end

    def load(self, tell: object) -> OwnEngine:
        time.sleep(self.seconds)
        if self.signal is not None:
            os.kill(os.getpid(), self.signal)
        if self.fault is not None:
            raise self.fault
        from server.engine.own import OwnEngine
        from server.engine.scheduler import Scheduler
        from tests.server.fakes import FakeBackbone, as_any

        slow = self.slow

        class Slow(FakeBackbone):
            def logits(self, hidden: object) -> object:  # type: ignore[override]
                assert slow is not None
                slow.touch()
                time.sleep(600)
                return hidden

        backbone = Slow() if slow else FakeBackbone()
        return OwnEngine(as_any(backbone), None, Scheduler(4, 1000))
