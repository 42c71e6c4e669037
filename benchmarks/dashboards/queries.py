"""Asks Prometheus, as Grafana does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from benchmarks.dashboards.expressions import RATE
from tests import plain_http


@dataclass(frozen=True)
class Series:
    """One line: its labels, and seconds and values."""

    labels: dict[str, str]
    times: list[float]
    values: list[float]


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus server. `rate_interval` stands for Grafana's variable of that name; of the others all is chosen."""

    url: str
    rate_interval: str = "40s"

    def now(self, expr: str, at: float | None = None) -> list[Series]:
        """The value of an expression now, or at a time. Raises ValueError with what Prometheus says against it."""
        when = {} if at is None else {"time": at}
        return self._ask("query", {"query": self._filled(expr), **when})

    def range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """The values of an expression over a time, in seconds since 1970. Raises ValueError."""
        return self._ask("query_range", {"query": self._filled(expr), "start": start, "end": end, "step": step})

    def alerts(self) -> list[dict[str, Any]]:
        """The rules as Prometheus evaluates them: name, state, health, last error."""
        groups = plain_http.get(f"{self.url}/api/v1/rules", timeout=30).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def _filled(self, expr: str) -> str:
        return re.sub(r"\$(instance|policy|model)\b", ".*", expr.replace(RATE, self.rate_interval))

    def _ask(self, path: str, parameters: dict[str, Any]) -> list[Series]:
        answer = plain_http.post(f"{self.url}/api/v1/{path}", data=parameters, timeout=30).json()
        if answer["status"] != "success":
            raise ValueError(f"{parameters['query']}: {answer['error']}")
        found = []
        for each in answer["data"]["result"]:
            points = each.get("values") or [each["value"]]
            times, values = zip(*((float(t), float(v)) for t, v in points), strict=True)
            found.append(Series(each["metric"], list(times), list(values)))
        return found
