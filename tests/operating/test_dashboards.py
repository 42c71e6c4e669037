"""Prometheus with the shipped config and rules, after a load: the dashboards' and alerts' queries have answers."""

from __future__ import annotations

import json
import math
import re

import pytest
import yaml

from benchmarks.dashboards.grafana import grafana_json
from benchmarks.dashboards.panels import DASHBOARDS, DECISIONS, REFUSED, Panel
from tests.operating.load import Watched
from tests.operating.programs import DOCKER

PANELS = {f"{name}: {panel.title}": panel for name, board in DASHBOARDS.items() for panel in board.panels}
SELECTOR = re.compile(r"(?:[a-z]+:)?autosteer[a-z0-9_:]*(?:\{[^}]*\})?|up\{[^}]*\}")


@pytest.mark.parametrize("name", DASHBOARDS)
def test_the_committed_dashboards_are_what_their_source_gives(name: str) -> None:
    """`python -m benchmarks.dashboards write`."""
    text = (DOCKER / "grafana" / f"{name}.json").read_text()
    assert text == grafana_json(DASHBOARDS[name])
    numbers = [panel["id"] for panel in json.loads(text)["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_the_data_source_of_the_panels_is_the_one_that_is_provisioned() -> None:
    provisioned = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    (source,) = provisioned["datasources"]
    panels = json.loads((DOCKER / "grafana" / "guard.json").read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {source["uid"]}


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_every_query_of_a_panel_returns_data(panel: Panel, watched: Watched) -> None:
    for query in panel.queries:
        values = [value for series in watched.ask(query.expr) for value in series.values]
        assert values, f"no series: {query.expr}"
        assert any(math.isfinite(value) for value in values), f"{values}: {query.expr}"


def test_every_rule_is_evaluated_without_an_error(watched: Watched) -> None:
    rules = watched.stack.prometheus.alerts()
    assert len(rules) == sum(len(group["rules"]) for group in shipped_groups())
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


@pytest.mark.parametrize(
    "rule",
    [
        rule
        for group in yaml.safe_load((DOCKER / "prometheus/rules.yml").read_text())["groups"]
        for rule in group["rules"]
    ],
    ids=lambda rule: rule.get("alert") or rule["record"],
)
def test_every_rule_reads_series_that_there_are(rule: dict[str, str], watched: Watched) -> None:
    """What a recording rule makes has data; of an alert, which is silent here, each series that it reads."""
    expressions = [rule["record"]] if "record" in rule else SELECTOR.findall(rule["expr"])
    assert expressions
    for expression in expressions:
        assert watched.ask(expression), expression


def test_no_alert_of_the_serving_side_fires_on_a_healthy_stack(watched: Watched) -> None:
    firing = [rule["name"] for rule in watched.stack.prometheus.alerts() if rule.get("state") == "firing"]
    assert firing == []


def test_the_refusal_rate_is_what_the_clients_counted(watched: Watched) -> None:
    """The panels' own queries, over a window that holds the whole load."""
    (overall,) = refusal_rate(watched, "Refusal rate")
    assert 0.05 < watched.seen.refusal_rate < 0.5
    print(f"refused: {overall[1]:.4f} by the panel, {watched.seen.refusal_rate:.4f} by the clients")
    assert overall[1] == pytest.approx(watched.seen.refusal_rate, abs=0.005)
    for labels, rate in refusal_rate(watched, "Refusal rate by policy"):
        assert rate == pytest.approx(watched.seen.rate_of(labels["policy"]), abs=0.01), labels


def test_the_counters_are_exactly_what_the_clients_counted(watched: Watched) -> None:
    for which, counted in [("", watched.seen.judged), (REFUSED, watched.seen.refused)]:
        found = watched.ask(f"sum by (policy, modality) ({DECISIONS}{which}) > 0")
        assert {(s.labels["policy"], s.labels["modality"]): s.values[-1] for s in found} == {
            key: count for key, count in counted.items() if count
        }


def refusal_rate(watched: Watched, title: str) -> list[tuple[dict[str, str], float]]:
    panel = PANELS[f"guard: {title}"]
    found = watched.ask(panel.queries[0].expr, rate_interval="30m")
    return [(series.labels, series.values[-1]) for series in found]


def shipped_groups() -> list[dict[str, list[dict[str, str]]]]:
    groups: list[dict[str, list[dict[str, str]]]] = yaml.safe_load((DOCKER / "prometheus/rules.yml").read_text())[
        "groups"
    ]
    return groups
