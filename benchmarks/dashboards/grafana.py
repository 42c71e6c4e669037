"""Dashboards as the JSON that Grafana provisions."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.dashboards.expressions import ANNOTATIONS
from benchmarks.dashboards.panels import Annotation, Dashboard, Levels, Panel, Variable, Word

SOURCE_UID = "autosteer-prometheus"  # of docker/grafana/provisioning; another Grafana has others to choose from
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
RUNBOOK = "https://runbooks.example.com/autosteer/operations.md"  # docs/operations.md tells how to put yours there
COLUMNS = 24
HEIGHT = 8


def grafana_json(dashboard: Dashboard) -> str:
    """The whole file, with a newline at its end."""
    whole = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["autosteer"],
        "timezone": "browser",
        "schemaVersion": 39,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {"type": "dashboards", "tags": ["autosteer"], "title": "Autosteer", "asDropdown": False, "keepTime": True},
            _link("Runbook", RUNBOOK),
        ],
        "templating": {"list": [_source_variable(), *map(_variable, dashboard.variables)]},
        "annotations": {"list": [_annotation(each) for each in ANNOTATIONS]},
        "panels": _panels(dashboard),
    }
    return json.dumps(whole, indent=2) + "\n"


def _link(title: str, url: str) -> dict[str, Any]:
    return {"type": "link", "title": title, "url": url, "targetBlank": True}


def _source_variable() -> dict[str, Any]:
    chosen = {"text": "Prometheus", "value": SOURCE_UID}
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": chosen,
    }


def _variable(variable: Variable) -> dict[str, Any]:
    made = {
        "name": variable.name,
        "label": variable.title,
        "type": "query",
        "datasource": DATA_SOURCE,
        "query": variable.query,
        "refresh": 2,  # when the time changes
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }
    return made | ({"allValue": ".*"} if variable.wild else {})


def _annotation(annotation: Annotation) -> dict[str, Any]:
    return {
        "name": annotation.title,
        "datasource": DATA_SOURCE,
        "enable": True,
        "iconColor": annotation.colour,
        "expr": annotation.expr,
        "titleFormat": annotation.title,
        "textFormat": annotation.text,
        "useValueForTime": annotation.timed,
    }


def _panels(dashboard: Dashboard) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for title, panels in dashboard.rows:
        made.append(
            {"id": len(made) + 1, "type": "row", "title": title, "gridPos": _grid(0, y, COLUMNS, 1), "panels": []}
        )
        y += 1
        x = 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y = 0, y + HEIGHT
            made.append(_panel(panel, len(made) + 1, _grid(x, y, panel.width, HEIGHT)))
            x += panel.width
        y += HEIGHT
    return made


def _grid(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, number: int, grid: dict[str, int]) -> dict[str, Any]:
    heatmap = panel.kind == "heatmap"
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": DATA_SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
            "format": "heatmap" if heatmap else "time_series",
            "instant": False,
        }
        for index, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "links": [_link(f"Runbook: {alert}", f"{RUNBOOK}#{alert.lower()}") for alert in panel.alerts],
        "datasource": DATA_SOURCE,
        "gridPos": grid,
        "targets": targets,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": OPTIONS[panel.kind] | ({"textMode": "name", "colorMode": "none"} if panel.names else {}),
    }


def _field(panel: Panel) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel.unit}
    if not panel.logarithmic:
        field["min"] = 0
    if panel.maximum is not None:
        field["max"] = panel.maximum
    if panel.levels is not None:
        field["thresholds"] = _thresholds(panel.levels)
    if panel.words:
        field["mappings"] = [{"type": "value", "options": {str(key): _word(w) for key, w in panel.words.items()}}]
    if panel.kind == "timeseries":
        field["custom"] = _drawn(panel)
    elif panel.kind == "state-timeline":
        field["custom"] = {"lineWidth": 0, "fillOpacity": 70}
    return field


def _thresholds(levels: Levels) -> dict[str, Any]:
    steps = [{"value": None, "color": levels.base}, *({"value": value, "color": name} for value, name in levels.steps)]
    return {"mode": "absolute", "steps": steps}


def _word(word: Word) -> dict[str, Any]:
    return {"text": word.text, "color": word.colour}


def _drawn(panel: Panel) -> dict[str, Any]:
    return {
        "lineWidth": 1,
        "fillOpacity": 30 if panel.stacked else 8,
        "showPoints": "never",
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "off" if panel.levels is None else "dashed"},
        "scaleDistribution": {"type": "log", "log": 10} if panel.logarithmic else {"type": "linear"},
    }


OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"]},
        "graphMode": "none",
        "colorMode": "value",
        "textMode": "value_and_name",
    },
    "state-timeline": {
        "showValue": "auto",
        "mergeValues": True,
        "rowHeight": 0.8,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
        "tooltip": {"mode": "single"},
    },
    "heatmap": {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "yAxis": {"unit": "none"},
        "cellGap": 1,
        "tooltip": {"mode": "single"},
    },
}
