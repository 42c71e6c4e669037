"""Prometheus with the shipped config and rules, after a load: the dashboards' and alerts' queries have answers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from benchmarks.dashboards.boards import DASHBOARDS
from benchmarks.dashboards.expressions import ANNOTATIONS, DECISIONS, REFUSED
from benchmarks.dashboards.grafana import RUNBOOK, SOURCE_UID, grafana_json
from benchmarks.dashboards.panels import Annotation, Panel, Variable
from tests.operating.load import Watched
from tests.operating.programs import DOCKER

PANELS = {f"{name}: {panel.title}": panel for name, board in DASHBOARDS.items() for panel in board.panels}
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((DOCKER / "prometheus/rules.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
ABSENT = object()
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
    board = json.loads(grafana_json(DASHBOARDS["guard"]))
    variable = next(each for each in board["templating"]["list"] if each["type"] == "datasource")
    assert variable["current"]["value"] == source["uid"] == SOURCE_UID
    used = {panel["datasource"]["uid"] for panel in board["panels"] if panel["type"] != "row"}
    assert used == {f"${{{variable['name']}}}"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafanas_own_types_know_every_field(name: str) -> None:
    """What is misspelt is lost on the way through them; they leave out what is Prometheus' own of an annotation."""
    made = json.loads(grafana_json(DASHBOARDS[name]))
    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(made)))
    lost = {re.sub(r"\[\d+\]", "[]", path) for path in differing_fields(made, read, "")}
    assert lost == {f".annotations.list[].{field}" for field in ("titleFormat", "textFormat", "useValueForTime")}


def differing_fields(made: Any, read: Any, path: str) -> Iterator[str]:
    """Where what was read is not what was made; fields that were added do not count."""
    match made, read:
        case dict(), dict():
            for key, value in made.items():
                yield from differing_fields(value, read.get(key, ABSENT), f"{path}.{key}")
        case list(), list() if len(made) == len(read):
            for number, (one, other) in enumerate(zip(made, read, strict=True)):
                yield from differing_fields(one, other, f"{path}[{number}]")
        case _:
            if made != read:
                yield path


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_a_panel_is_understood_at_a_glance(panel: Panel) -> None:
    """What it shows has a unit that Grafana knows, or is told in words, and a sentence says what it means."""
    known = {value for name, value in vars(units).items() if name[0].isupper()}
    assert panel.unit in known or panel.unit.startswith("suffix: ")
    assert panel.text.endswith(".")
    if panel.kind == "state-timeline":
        assert set(panel.words) == {0, 1}
    assert set(panel.alerts) <= ALERTS.keys()


def test_every_alert_has_a_panel_that_links_to_its_runbook() -> None:
    linked = {
        link["url"]
        for board in DASHBOARDS.values()
        for panel in json.loads(grafana_json(board))["panels"]
        for link in panel.get("links", [])
    }
    assert linked == {rule["annotations"]["runbook_url"] for rule in ALERTS.values()}
    assert all(url.startswith(f"{RUNBOOK}#autosteer") for url in linked)


@pytest.mark.parametrize(
    ("title", "alert"),
    [
        ("guard: Refusal rate, all policies", "AutosteerRefusalRateSpike"),
        ("guard: Refusals that failed", "AutosteerRefusalsFail"),
        ("serving: Share of requests that fail", "AutosteerErrorRate"),
        ("serving: Time to first token", "AutosteerFirstTokenSlow"),
        ("serving: Between two tokens", "AutosteerTokensSlow"),
        ("serving: Time in the queue", "AutosteerSaturated"),
    ],
)
def test_a_panels_level_is_its_alerts(title: str, alert: str) -> None:
    levels = PANELS[title].levels
    assert levels is not None
    assert re.search(rf"> {levels.steps[0][0]:g}\b", ALERTS[alert]["expr"])
    assert alert in PANELS[title].alerts


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_query_is_narrowed_to_what_is_chosen(name: str) -> None:
    board = DASHBOARDS[name]
    for panel in board.panels:
        for query in panel.queries:
            selectors = SELECTOR.findall(query.expr)
            assert selectors
            for selector in selectors:
                assert 'instance=~"$instance"' in selector, query.expr
                if name == "guard" and "overhead" not in selector and "model_info" not in selector:
                    assert 'policy=~"$policy"' in selector, query.expr


@pytest.mark.parametrize("variable", {each.name: each for b in DASHBOARDS.values() for each in b.variables}.values())
def test_every_variable_has_values(variable: Variable, watched: Watched) -> None:
    found = {each.labels.get(variable.name) for each in watched.ask(variable.metric)}
    assert found
    assert None not in found


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=lambda each: each.title)
def test_every_annotation_is_a_query_and_marks_nothing_wrong_on_a_healthy_stack(
    annotation: Annotation, watched: Watched
) -> None:
    """Only the starts are marked, when they were; the tests of rules have what the others mark."""
    found = watched.ask(annotation.expr)
    assert len(found) == (len(watched.stack.servers) if annotation.timed else 0)
    for each in found:
        assert watched.at - 3600 < each.values[-1] / 1000 <= watched.at


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
        found = watched.ask(f"sum by (policy, modality) ({DECISIONS}{{{which}}}) > 0")
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
