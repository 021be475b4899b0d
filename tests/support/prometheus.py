"""A real Prometheus that scrapes servers under test and evaluates the rules in fast motion."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.server import DEADLINE, REPO, free_port, wait_until

MONITORING = REPO / "k8s" / "monitoring"
RULES = MONITORING / "rules.yaml"
INTERVAL = "1s"
# A rule's minutes pass in so many times less.
FASTER = 150
_SHORTEST_MS = 2000
_UNITS = {"m": 60, "h": 3600}


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}: scripts/install.py storage, or apt-get install prometheus")
    return found


def in_fast_motion(rules: str) -> str:
    """All durations of `rules`, and the age that an L2 queue may have, divided by FASTER.

    Other thresholds stay what they are, and no alert is for a single late scrape.
    """

    def shorter(match: re.Match[str]) -> str:
        milliseconds = int(match[2]) * _UNITS[match[3]] * 1000 // FASTER
        return f"{match[1]}{max(milliseconds, _SHORTEST_MS)}ms"

    rules = re.sub(r"(\[|offset |for: )(\d+)([mh])\b", shorter, rules)
    return rules.replace("l2_queue_age_seconds > 300", f"l2_queue_age_seconds > {300 // FASTER}")


class Prometheus:
    """`targets` maps the label `instance` to host:port."""

    def __init__(self, directory: Path, targets: dict[str, str]) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        (directory / "rules.yaml").write_text(in_fast_motion(RULES.read_text()))
        scraped = [{"targets": [t], "labels": {"instance": name}} for name, t in targets.items()]
        config = {
            "global": {"scrape_interval": INTERVAL, "evaluation_interval": INTERVAL},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "kv-sidecar", "static_configs": scraped}],
        }
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        command = [program("prometheus"), f"--config.file={directory / 'prometheus.yaml'}"]
        command += [f"--storage.tsdb.path={directory / 'data'}", "--log.level=warn"]
        command += [f"--web.listen-address={self.url.removeprefix('http://')}"]
        self._log = directory / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        wait_until(self._ready, "Prometheus ready")

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """What the HTTP API says; AssertionError with its message if that is an error."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series, now."""
        result = self.get("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def firing(self, name: str) -> list[Any]:
        """The firing alerts of this name, as the API describes them."""
        alerts = self.get("alerts")["alerts"]
        return [a for a in alerts if a["state"] == "firing" and a["labels"]["alertname"] == name]

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)
