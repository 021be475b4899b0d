#!/usr/bin/env python3
"""Make the files of k8s/monitoring/ that are not written by hand.

    scripts/monitoring.py

dashboard.json        the Grafana dashboard, from the rows below
prometheus-rule.yaml  rules.yaml as an object of the Prometheus operator
"""

import json
from pathlib import Path
from typing import Any

import yaml
from dashboard_rows import ROWS, Panel

FOLDER = Path(__file__).resolve().parent.parent / "k8s" / "monitoring"
# kube-prometheus-stack takes only rules that bear its release's name.
RELEASE = "kube-prometheus-stack"
NOTICE = "# Made from rules.yaml by `make generate`.\n"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard() -> dict[str, Any]:
    """What Grafana imports."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS.items():
        panels.append({"type": "row", "title": title, "id": len(panels) + 1, "collapsed": False,
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}, "panels": []})  # fmt: skip
        y += 1
        width, height = (4, 4) if row[0].one_number else (8, 8)
        for index, each in enumerate(row):
            column, line = index % (24 // width), index // (24 // width)
            place = {"x": column * width, "y": y + line * height, "w": width, "h": height}
            panels.append({"id": len(panels) + 1, "gridPos": place, **panel(each)})
        y += -(-len(row) // (24 // width)) * height
    return {
        "uid": "kv-sidecar",
        "title": "kv-sidecar",
        "tags": ["kv-sidecar"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables()},
        "panels": panels,
    }


def panel(each: Panel) -> dict[str, Any]:
    custom = {"fillOpacity": 10, "stacking": {"mode": "normal" if each.stack else "none"}}
    return {
        "type": "stat" if each.one_number else "timeseries",
        "title": each.title,
        "description": each.text,
        "datasource": SOURCE,
        "fieldConfig": {
            "defaults": {"unit": each.unit} if each.one_number else
            {"unit": each.unit, "min": 0, "custom": custom},
            "overrides": [],
        },
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
            for i, (expr, legend) in enumerate(each.queries.items())
        ],
    }  # fmt: skip


def variables() -> list[dict[str, Any]]:
    instances = "label_values(lmcache_mp_healthy, instance)"
    return [
        {"name": "datasource", "type": "datasource", "query": "prometheus"},
        {"name": "instance", "type": "query", "datasource": SOURCE, "query": instances,
         "refresh": 2, "multi": True, "includeAll": True, "allValue": ".+",
         "current": {"text": "All", "value": "$__all"}},
    ]  # fmt: skip


def prometheus_rule(rules: str) -> str:
    """`rules`, a rule file of Prometheus, as a PrometheusRule."""
    head = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "kv-sidecar", "labels": {"release": RELEASE}},
        "spec": yaml.safe_load(rules),
    }
    text: str = yaml.safe_dump(head, sort_keys=False, width=100, allow_unicode=True)
    return NOTICE + text


def files() -> dict[Path, str]:
    """What this script writes."""
    return {
        FOLDER / "dashboard.json": json.dumps(dashboard(), indent=2) + "\n",
        FOLDER / "prometheus-rule.yaml": prometheus_rule((FOLDER / "rules.yaml").read_text()),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
