"""Dashboards as the JSON that Grafana provisions."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.dashboards.panels import Dashboard, Panel

DATA_SOURCE = {"type": "prometheus", "uid": "autosteer-prometheus"}
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
        "links": [{"type": "dashboards", "tags": ["autosteer"], "title": "Autosteer", "asDropdown": False}],
        "panels": _panels(dashboard),
    }
    return json.dumps(whole, indent=2) + "\n"


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
        "datasource": DATA_SOURCE,
        "gridPos": grid,
        "targets": targets,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": OPTIONS[panel.kind],
    }


def _field(panel: Panel) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        field["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 30 if panel.stacked else 8,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        }
    return field


OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"]},
        "graphMode": "area",
        "colorMode": "value",
        "textMode": "auto",
    },
    "heatmap": {
        "calculate": False,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64},
        "yAxis": {"unit": "none"},
        "cellGap": 1,
        "tooltip": {"mode": "single"},
    },
}
