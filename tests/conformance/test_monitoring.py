"""A real Prometheus over real servers, some of them ill: every query has data, alerts fire."""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.faulty_adapter import FAULTY
from tests.support.l2 import L2Worker, adapter_flags, clear_l1, fs_flags, wait_counter, wait_written
from tests.support.prometheus import MONITORING, RULES, Prometheus
from tests.support.raw import RawClient
from tests.support.server import Metrics, Server, wait_until

# Enough for the half of what a worker of these tests stores.
SMALL_L1 = 0.0005
TARGET_LABELS = {"instance", "job"}
GRAFANA = {"$__rate_interval": "1m", "$instance": ".+"}
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    for target in panel.get("targets", [])
}
_GROUPS = yaml.safe_load(RULES.read_text())["groups"]
RECORDS = {rule["record"]: rule["expr"] for g in _GROUPS for rule in g["rules"] if "record" in rule}
ALERTS = {rule["alert"]: rule for g in _GROUPS for rule in g["rules"] if "alert" in rule}


@dataclass
class Site:
    """`well` serves all the time; the others are named for what will be wrong with them."""

    prometheus: Prometheus
    servers: dict[str, Server]
    workers: dict[str, L2Worker]
    directory: Path

    def control(self, **faults: Any) -> None:
        """From now on the L2 of `ill` does this."""
        (self.directory / "faults").write_text(json.dumps(faults))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("monitoring")
    with contextlib.ExitStack() as stack:
        servers = _servers(directory)
        for server in servers.values():
            stack.callback(server.stop)
            server.spawn()
        workers = {}
        for number, (name, server) in enumerate(servers.items()):
            wait_until(server.healthy, f"{name} ready")
            client = stack.enter_context(RawClient(server.url))
            workers[name] = L2Worker(client, server, instance=100 + number)
            stack.callback(workers[name].pool.unlink)
        targets = {name: server.http.removeprefix("http://") for name, server in servers.items()}
        prometheus = Prometheus(directory, targets)
        stack.callback(prometheus.stop)
        prometheus.wait_ready()
        # What happens before the first scrape, no rate knows of.
        first = f"count(instance:lmcache_mp_lookups_requests:sum) == {len(servers)}"
        wait_until(lambda: prometheus.query(first), "all servers scraped")
        stop = threading.Event()
        traffic = threading.Thread(target=_serve_well, args=(workers["well"], stop))
        traffic.start()
        stack.callback(traffic.join)
        stack.callback(stop.set)
        yield Site(prometheus, servers, workers, directory)


def _servers(directory: Path) -> dict[str, Server]:
    def fs(name: str) -> dict[str, Any]:
        return {"type": "fs", "base_path": str(directory / name), "min_free_gb": 0}

    sick = {
        "type": FAULTY,
        "name": "sick",
        "control_path": str(directory / "faults"),
    }
    slow = {
        "type": FAULTY,
        "name": "slow",
        "delay_seconds": {"store": 1},
    }
    soon = ("--worker-reap-timeout-seconds", "1", "--worker-registration-grace-seconds", "1")
    return {
        "well": Server(directory, *fs_flags(directory / "well", name="disk")),
        "ill": Server(
            directory, *adapter_flags(**sick, inner=fs("ill")), "--l1-read-ttl-seconds", "1",
            l1_size_gb=SMALL_L1,
        ),
        "full": Server(directory, "--eviction-policy", "noop", *soon, l1_size_gb=SMALL_L1),
        "slow": Server(directory, *adapter_flags(**slow, inner=fs("slow"), num_workers=1)),
    }  # fmt: skip


def _serve_well(worker: L2Worker, stop: threading.Event) -> None:
    """Half of what is asked for is there, some of it in L2 only."""
    worker.store(*range(8))
    turn = 0
    while not stop.wait(0.02):
        assert worker.check(turn % 16) == (worker.chunks if turn % 16 < 8 else 0)
        turn += 1
        if turn % 50 == 0:
            wait_written(worker.server)
            clear_l1(worker.server)


def test_alerts_fire_where_something_is_wrong_and_nowhere_else(site: Site) -> None:
    _good_times(site)
    _fault_of_full(site)
    _fault_of_slow(site)
    stop = threading.Event()
    faults = threading.Thread(target=_faults_of_ill, args=(site, stop))
    faults.start()
    try:
        _expect(site, "CorruptObjects", instance="ill")  # the first to be over
        for name in ("AllocationFailures", "WorkersLost"):
            _expect(site, name, instance="full")
        _expect(site, "L2QueueAge", instance="slow", l2_name="slow")
        site.servers["full"].kill()
        site.servers["slow"].process.terminate()  # type: ignore[union-attr]
        _expect(site, "Down", instance="full")
        _expect(site, "Unhealthy", instance="slow")
        _expect(site, "L2BreakerOpen", instance="ill", l2_name="sick", kind="store")
        for name in ("L2NotKept", "L1Thrashing", "LeasesNotReturned", "HitRateCollapsed"):
            _expect(site, name, instance="ill")
    finally:
        stop.set()
        faults.join()
    ever = site.prometheus.query('count_over_time(ALERTS{alertstate="firing"}[1h])')
    fired = {(labels["alertname"], labels.get("instance", "")) for labels, _ in ever}
    # Absent is heard until Prometheus has its targets, if that takes as long as `for`.
    known = {name for name, _ in fired} | {"KVSidecarAbsent"}
    # No transfer can be made to last on purpose: the age is tested in test_copier.py.
    assert known == set(ALERTS) - {"KVSidecarQueueAge"}
    assert not [name for name, instance in fired if instance == "well"]


def _good_times(site: Site) -> None:
    """Everybody finds what they ask for."""
    ill = site.workers["ill"]
    ill.store(1, 2)
    wait_written(site.servers["ill"])

    def seen() -> list[Any]:
        assert ill.check_all(1, 2) == [ill.chunks] * 2
        return site.prometheus.query('instance:lmcache_mp_hit_ratio:rate15m{instance="ill"} > 0.5')

    wait_until(seen, "Prometheus has seen hits")


def _fault_of_full(site: Site) -> None:
    """It cannot take what it is given, and then its worker is gone."""
    full = site.workers["full"]
    full.store(*range(32))
    wait_counter(site.servers["full"], "l1_allocation_failure", 1)
    wait_until(
        lambda: site.prometheus.query("instance:lmcache_mp_registered_workers:sum == 1"), "seen"
    )
    full.client.close()


def _fault_of_slow(site: Site) -> None:
    site.workers["slow"].store(*range(20))


def _faults_of_ill(site: Site, stop: threading.Event) -> None:
    """Bad bytes come back, nothing can be written, nobody comes for hits, all is evicted."""
    ill, server = site.workers["ill"], site.servers["ill"]
    site.control(corrupt_rate=1, errors={"store": "EIO"})
    clear_l1(server)
    assert ill.check_all(1, 2) == [0, 0]
    turn = 0
    while not stop.wait(0.02):
        ill.store(3 + turn % 28)
        if turn % 10 == 0:
            ill.lookup(3 + turn % 28)  # a hit that is never retrieved
        for missing in (1, 2):
            ill.lookup(missing)
        turn += 1


def _expect(site: Site, name: str, **labels: str) -> None:
    """Wait for an alert with these labels; what it says must be readable."""

    def found() -> list[Any]:
        firing = site.prometheus.firing(f"KVSidecar{name}")
        return [a for a in firing if labels.items() <= a["labels"].items()]

    wait_until(found, f"{name} fires")
    alert = found()[0]
    for text in alert["annotations"].values():
        assert "{{" not in text
        assert "<error" not in text
        assert "<no value>" not in text
    assert labels["instance"] in alert["annotations"]["summary"]


@pytest.mark.parametrize("title", QUERIES)
def test_a_query_of_the_dashboard_has_data(site: Site, title: str) -> None:
    expression = QUERIES[title]
    for variable, value in GRAFANA.items():
        expression = expression.replace(variable, value)

    def numbers() -> bool:
        return any(not math.isnan(value) for _, value in site.prometheus.query(expression))

    wait_until(numbers, expression, timeout=20)


@pytest.mark.parametrize("name", RECORDS)
def test_a_recorded_series_has_data(site: Site, name: str) -> None:
    wait_until(lambda: site.prometheus.query(name), name, timeout=20)
    ours = {label for labels, _ in site.prometheus.query(name) for label in labels}
    assert ours == {"__name__", *TARGET_LABELS}


def test_every_rule_can_be_evaluated(site: Site) -> None:
    for group in site.prometheus.get("rules")["groups"]:
        for rule in group["rules"]:
            assert rule["health"] == "ok", rule


def test_metrics_and_labels_in_queries_are_exported(site: Site) -> None:
    exported: dict[str, set[str]] = {}
    for server in site.servers.values():
        if server.running:
            for sample in Metrics(server.request("/metrics")[1]).samples:
                exported.setdefault(sample.name, set()).update(sample.labels)
    known = exported | {name: set() for name in RECORDS}
    known |= {"up": set(), "ALERTS": {"alertname", "alertstate"}}
    rules = {name: rule["expr"] for name, rule in ALERTS.items()}
    for title, expression in (QUERIES | RECORDS | rules).items():
        used = set(re.findall(r"\b(?:lmcache_mp_\w+|instance:[\w:]+|up\b|ALERTS)", expression))
        assert used, title
        assert used <= set(known), title
        of_these = set.union(TARGET_LABELS, *(known[name] for name in used))
        for name, selector in re.findall(r"([\w:]+)\{([^}]*)\}", expression):
            selected = set(re.findall(r"(\w+)\s*[=!]", selector))
            assert selected <= known[name] | TARGET_LABELS, title
        for names in re.findall(r"(?:by|without) \(([^)]*)\)", expression):
            assert set(re.split(r"\s*,\s*", names)) <= of_these, title
