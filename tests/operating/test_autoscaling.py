"""The autoscaler's metric, computed by Prometheus as the shipped rule of its adapter says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.operating.programs import DOCKER, ROOT, run

RULES = yaml.safe_load((DOCKER / "prometheus" / "adapter.yaml").read_text())["rules"]["custom"]
MAX_ROWS = 16


def autoscaler() -> dict[str, Any]:
    manifests = yaml.safe_load_all((ROOT / "deploy.yaml").read_text())
    spec: dict[str, Any] = next(each for each in manifests if each["kind"] == "HorizontalPodAutoscaler")["spec"]
    return spec


def filled(rule: dict[str, Any], pods: str) -> str:
    """The query as the adapter asks it about pods of our namespace."""
    query: str = rule["metricsQuery"]
    return query.replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", f'namespace="autosteer",pod=~"{pods}"')


def check(folder: Path, loads: list[tuple[int, int]], wanted: list[float]) -> None:
    """Prometheus' own unit test: pods with these (running, waiting), and what the adapter's rule makes of each."""
    labels = [f'{{namespace="autosteer",pod="p{n}"}}' for n in range(len(loads))]
    other = 'autosteer_num_requests_running{namespace="other",pod="p0"}'  # of somebody else's servers
    series = {other: 16}
    for label, (running, waiting) in zip(labels, loads, strict=True):
        series[f"autosteer_num_requests_running{label}"] = running
        series[f"autosteer_num_requests_waiting{label}"] = waiting
        series[f"autosteer_max_rows{label}"] = MAX_ROWS
    (rule,) = RULES
    expected = [{"labels": f'{{pod="p{n}"}}', "value": value} for n, value in enumerate(wanted)]
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": f"{value}x1"} for name, value in series.items()],
        "promql_expr_test": [{"expr": filled(rule, "p.*"), "eval_time": "1m", "exp_samples": expected}],
    }
    (folder / "test.yml").write_text(yaml.safe_dump({"rule_files": [], "evaluation_interval": "1m", "tests": [test]}))
    run("promtool", "test", "rules", folder / "test.yml")


def replicas(ratios: list[float]) -> int:
    """What the autoscaler makes of the pods' ratios: the sum over the target, unless that is within a tenth of now."""
    target = autoscaler()["metrics"][0]["pods"]["target"]["averageValue"]
    share = sum(ratios) / len(ratios) / (float(target.removesuffix("m")) / 1000)
    return len(ratios) if abs(share - 1) <= 0.1 else math.ceil(share * len(ratios))


def test_the_autoscaler_asks_for_what_the_adapter_makes() -> None:
    (metric,) = autoscaler()["metrics"]
    (rule,) = RULES
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}  # labels that the ServiceMonitor's scrapes have


@pytest.mark.parametrize(
    ("loads", "ratios", "then"),
    [
        ([(16, 0), (16, 0), (16, 0)], [1, 1, 1], 4),  # full, and nobody waits: none may go
        ([(16, 16), (16, 16)], [2, 2], 5),
        ([(13, 0), (13, 0), (13, 0)], [0.8125] * 3, 3),
        ([(4, 0), (4, 0), (4, 0), (4, 0)], [0.25] * 4, 2),
        ([(0, 0), (0, 0)], [0, 0], 0),  # `minReplicas` keeps two
    ],
)
def test_replicas_follow_running_and_waiting_requests(
    tmp_path: Path, loads: list[tuple[int, int]], ratios: list[float], then: int
) -> None:
    check(tmp_path, loads, ratios)
    assert replicas(ratios) == then


def test_a_wrong_value_is_found(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="promtool"):
        check(tmp_path, [(16, 0)], [0.0])
