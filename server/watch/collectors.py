"""Metrics that are read at the time of a scrape, or counted in numbers of our own."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from time import time

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from models.progress import Stage

ITL_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip


class Tokens(Collector):
    """Counts every token, and the time between two of a request, in numbers of its own.

    `Counter` and `Histogram` are safe for threads, and take longer than the rest of a token's way to its reader.
    """

    def __init__(self) -> None:
        self._created = time()
        self._count = 0
        self._seconds = 0.0
        self._buckets = [0] * (len(ITL_BUCKETS) + 1)

    def first(self) -> None:
        """Count the first token of a request."""
        self._count += 1

    def another(self, seconds: float) -> None:
        """Count one more token, which came so long after the one before it."""
        self._count += 1
        self._seconds += seconds
        self._buckets[bisect_left(ITL_BUCKETS, seconds)] += 1

    def collect(self) -> list[Metric]:
        """The counts as a counter and a histogram would give them."""
        tokens = CounterMetricFamily(
            "autosteer_generation_tokens", "Generated tokens.", value=self._count, created=self._created
        )
        bounds = [*map(floatToGoString, ITL_BUCKETS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._buckets), strict=True))
        between = HistogramMetricFamily(
            "autosteer_inter_token_latency_seconds",
            "Between two tokens of a request.",
            buckets=buckets,
            sum_value=self._seconds,
        )
        between.add_sample(between.name + "_created", {}, self._created)
        return [tokens, between]


class Gauges(Collector):
    """What is read at the time of a scrape."""

    def __init__(self, gauges: Sequence[tuple[str, str, Callable[[], float]]]) -> None:
        self._gauges = gauges

    def collect(self) -> list[GaugeMetricFamily]:
        """Read all gauges now."""
        return [GaugeMetricFamily(name, text, value=read()) for name, text, read in self._gauges]


class LoadShares(Collector):
    """How far the model is loaded, read at the time of a scrape."""

    def __init__(self, shares: Callable[[], Mapping[Stage, float]]) -> None:
        self._shares = shares

    def collect(self) -> list[GaugeMetricFamily]:
        """Read them now."""
        text = "How much of fetching and of reading the weights is done, 0 to 1."
        family = GaugeMetricFamily("autosteer_load_progress_ratio", text, labels=["stage"])
        for stage, share in self._shares().items():
            family.add_metric([stage], share)
        return [family]


class Restarts(Collector):
    """Restarts of the engine, read at the time of a scrape."""

    def __init__(self, restarts: Callable[[], int]) -> None:
        self._restarts = restarts

    def collect(self) -> list[CounterMetricFamily]:
        """Read them now."""
        text = "How often the engine was started again after it had failed."
        return [CounterMetricFamily("autosteer_engine_restarts", text, value=self._restarts())]
