"""Reads what `/metrics` says."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families


def metric_of(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples whose labels include `labels`."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
