"""The files in k8s/monitoring/ and the pages about them: valid, tested, current, not dangling."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.telemetry.table import Instruments
from tests.support.prometheus import RULES, in_fast_motion, program
from tests.support.server import REPO

RULE_TESTS = Path(__file__).parent / "monitoring" / "rules_test.yaml"
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load(RULES.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}


def promtool(*arguments: str) -> None:
    run = subprocess.run([program("promtool"), *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_nothing_is_declared_that_nobody_records() -> None:
    files = [path for path in (REPO / "sidecar").rglob("*.py") if path.name != "table.py"]
    source = "".join(path.read_text() for path in files)
    instruments = Instruments()
    recorded = [*instruments.counters, *instruments.histograms]
    names = [name for name, value in vars(instruments).items() if value in recorded]
    assert len(names) == len(recorded)
    assert [name for name in names if not re.search(rf"\.{name}\b", source)] == []
    assert [name for name in instruments.gauges if f'"{name}"' not in source] == []


def test_rules_are_valid_as_they_are_and_in_fast_motion(tmp_path: Path) -> None:
    fast = tmp_path / "fast.yaml"
    fast.write_text(in_fast_motion(RULES.read_text()))
    assert not re.search(r"\d[mh]\b", re.sub(r"\w*rate\d+m", "", fast.read_text()))
    promtool("check", "rules", str(RULES), str(fast))


def test_alerts_fire_and_stay_quiet_where_they_should() -> None:
    promtool("test", "rules", str(RULE_TESTS))


def test_each_alert_is_tested_both_firing_and_quiet() -> None:
    firing, quiet = set(), set()
    for case in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for check in case["promql_expr_test"]:
            names = re.findall(r'alertname="(\w+)"', check["expr"])
            (firing if check["exp_samples"] else quiet).update(names)
    assert firing == quiet == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_to_do_and_where_to_read_on(name: str) -> None:
    alert: dict[str, Any] = ALERTS[name]
    assert alert["labels"]["severity"] in ("warning", "critical")
    notes = alert["annotations"]
    assert notes["summary"]
    assert notes["description"]
    page, anchor = notes["runbook"].split("#")
    section = _sections((REPO / page).read_text())[anchor]
    for part in ("*Means.*", "*Look at.*", "*Do.*"):
        assert part in section


def test_the_runbook_has_no_alert_that_is_gone() -> None:
    text = (REPO / "docs" / "operate.md").read_text()
    assert set(re.findall(r"\bKVSidecar\w+", text)) == set(ALERTS)


def _sections(text: str) -> dict[str, str]:
    """Each heading's anchor, as GitHub makes it, and the text below."""
    parts = re.split(r"^#+ (.+)$", text, flags=re.MULTILINE)[1:]
    anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in parts[::2]]
    return dict(zip(anchors, parts[1::2], strict=True))


def test_what_kustomize_makes_of_it() -> None:
    ours = REPO / ".venv" / "bin" / "kubectl"
    kubectl = str(ours) if ours.exists() else shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl")
    command = [kubectl, "kustomize", str(RULES.parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    made = {each["kind"]: each for each in yaml.safe_load_all(run.stdout)}
    dashboard = made["ConfigMap"]
    assert dashboard["metadata"]["labels"] == {"grafana_dashboard": "1"}
    assert dashboard["data"]["dashboard.json"] == (RULES.parent / "dashboard.json").read_text()
    assert made["PrometheusRule"]["spec"] == yaml.safe_load(RULES.read_text())


def test_the_dashboard_is_tied_to_no_site() -> None:
    text = (RULES.parent / "dashboard.json").read_text()
    assert not re.search(r"https?://|job=\\\"", text)
