"""The drift of live scores: a bounded window for each policy, looked at every so many scores, on the event loop."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from steering.drift import LOOK_EVERY, MIN_SAMPLES, WINDOW, Drift, Reference

logger = logging.getLogger(__name__)


class ScoreWindow:
    """The last scores of one policy that lie below its threshold, and what the last look at them found."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.latest: Drift | None = None
        self._scores: deque[float] = deque(maxlen=WINDOW)
        self._unseen = 0

    def __len__(self) -> int:
        """How many scores there are."""
        return len(self._scores)

    def add(self, score: float) -> None:
        """Take a live score; one that is flagged, or is no number, is not compared."""
        if not score < self.reference.threshold:
            return
        self._scores.append(score)
        self._unseen += 1
        if self._unseen >= LOOK_EVERY:
            self._unseen = 0
            self.latest = self.reference.compare(self._scores)


class DriftWatch(Collector):
    """A window for each policy, and the gauges that tell of them.

    `of`: what the scores are of, as it stands in the gauges' names. `threshold`: the name of that of the thresholds.
    """

    def __init__(self, of: str, threshold: str) -> None:
        self._of = of
        self._threshold = threshold
        self._thresholds: Mapping[str, float] = {}
        self._windows: dict[str, ScoreWindow] = {}

    def configure(self, thresholds: Mapping[str, float], calibration: Sequence[float]) -> None:
        """Watch policies with these thresholds; the window of one whose threshold stays as it is goes on."""
        first = not self._thresholds
        self._thresholds = thresholds
        before, self._windows = self._windows, {}
        if not calibration:
            if first and thresholds:
                logger.warning(
                    "the guard's bundle keeps no calibration scores of its %s, so drift is not watched", self._of
                )
            return
        for name, threshold in self._thresholds.items():
            known = before.get(name)
            if known is not None and known.reference.threshold == threshold:
                self._windows[name] = known
                continue
            reference = Reference(calibration, threshold)
            if reference.usable:
                self._windows[name] = ScoreWindow(reference)
            else:
                logger.warning(
                    "policy %s: %d calibration scores of its %s lie below its threshold, %d are needed to watch drift",
                    name,
                    len(reference.scores),
                    self._of,
                    MIN_SAMPLES,
                )

    def add(self, policy: str, score: float) -> None:
        """Take the score of a request that was judged under a policy."""
        if (window := self._windows.get(policy)) is not None:
            window.add(score)

    @property
    def windows(self) -> Mapping[str, ScoreWindow]:
        """The window of each policy that is watched."""
        return self._windows

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """What the last look at every window found."""
        looked = {name: window.latest for name, window in self._windows.items() if window.latest is not None}
        sizes = {name: float(len(window)) for name, window in self._windows.items()}
        drift = f"autosteer_{self._of}_drift_"
        yield _by_policy(self._threshold, "The score from which a policy flags.", self._thresholds)
        yield _by_policy(drift + "window", "Scores that drift is computed from, at most.", sizes)
        yield _by_policy(
            drift + "psi",
            "Population stability index of live scores against the calibration's.",
            {name: each.psi for name, each in looked.items()},
        )
        yield _by_policy(
            drift + "ks",
            "Kolmogorov-Smirnov distance of live scores from the calibration's.",
            {name: each.ks for name, each in looked.items()},
        )
        yield _by_policy(
            drift + "p_value",
            "How likely a distance as large is by chance.",
            {name: each.p_value for name, each in looked.items()},
        )
        alarms = dict.fromkeys(self._windows, 0.0) | {name: float(each.alarm) for name, each in looked.items()}
        yield _by_policy(drift + "alarm", "Whether live scores have drifted from the calibration's.", alarms)


def _by_policy(name: str, text: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["policy"])
    for policy, value in values.items():
        family.add_metric([policy], value)
    return family
