"""Limits that the system takes hold; one that it does not take stops nothing."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import pytest

from server.workers.limits import limit_this_process


def test_a_limit_holds() -> None:
    program = (
        "import resource; from server.workers.limits import limit_this_process as limit; kind = resource.RLIMIT_CORE\n"
    )
    program += "limit(kind, 0); print(resource.getrlimit(kind))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "(0, 0)\n"


@pytest.mark.parametrize("error", [ValueError("current limit exceeds maximum limit"), OSError("invalid argument")])
def test_a_limit_that_the_system_does_not_take_stops_nothing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(resource, "setrlimit", refuse)
    limit_this_process(resource.RLIMIT_AS, 2**31)
