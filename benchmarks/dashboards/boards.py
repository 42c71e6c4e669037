"""All dashboards by the names of their files."""

from __future__ import annotations

from benchmarks.dashboards.guard import GUARD
from benchmarks.dashboards.serving import SERVING

DASHBOARDS = {"guard": GUARD, "serving": SERVING}
