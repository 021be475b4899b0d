"""The admin port as its clients see it: codes, shapes and messages over real HTTP."""

from collections.abc import Iterator

import pytest

from sidecar import __version__
from sidecar.config.values import l2_adapters
from tests.support.admin_site import ADAPTER, Site

ADAPTERS = (
    '[{"type": "fs", "name": "disk", "base_path": "/data/l2"},'
    ' {"type": "resp", "host": "valkey", "password": "secret"}]'
)


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    site = Site(
        otlp_endpoint="https://user:secret@collector:4317", l2_adapter=l2_adapters(ADAPTERS)
    )
    yield site
    site.close()


@pytest.mark.parametrize("path", ["/healthcheck", "/api/healthcheck"])
def test_health_is_true_health(site: Site, path: str) -> None:
    reply = site.http.get(path)
    assert (reply.status_code, reply.json()) == (200, {"status": "healthy"})
    site.service.reason = "the copy pool has not answered for 5 s"
    reply = site.http.get(path)
    assert (reply.status_code, reply.json()) == (
        503,
        {"status": "unhealthy", "reason": "the copy pool has not answered for 5 s"},
    )
    site.service.reason = None
    site.loop.hung = True
    reply = site.http.get(path)
    assert (reply.status_code, reply.json()) == (
        503,
        {"status": "unhealthy", "reason": "the wire loop has not answered for 1 s"},
    )


@pytest.mark.parametrize("path", ["/status", "/api/status"])
def test_status_has_the_shape_that_lmcache_describe_reads(site: Site, path: str) -> None:
    status = site.http.get(path).json()
    assert status["is_healthy"] is True
    assert status["engine_type"] == "MPCacheServer"
    assert status["server"]["uptime_seconds"] >= 0
    assert (status["chunk_size"], status["active_sessions"]) == (256, 2)
    manager = status["storage_manager"]
    assert manager["l1_manager"] == manager["l1_managers"]["default"]
    assert manager["l1_manager"]["memory_total_bytes"] == 1024
    assert manager["l1_manager"]["memory_used_bytes"] == 256
    assert manager["l1_manager"]["memory_usage_ratio"] == 0.25
    assert manager["l1_manager"]["total_object_count"] == 5
    assert manager["eviction_controller"]["eviction_policy"] == "LRU"
    assert manager["l1_usage"] == [256, 1024]
    assert (manager["l2_adapters"], manager["num_l2_adapters"]) == ([], 0)
    assert status["registered_gpu_ids"] == [7]
    context = status["cache_context_meta"]["7"]
    assert (context["model_name"], context["world_size"]) == ("llama", 1)
    assert context["kv_cache_layout"]["cache_size_per_token"] == 4096
    (group,) = context["kv_cache_layout"]["kernel_groups"]
    assert (group["num_layers"], group["engine_kv_concrete_shape"]) == (2, "(100, 2, 16, 8, 64)")
    assert status["registered_non_cuda_instance_ids"] == [2**62]
    assert status["non_cuda_context_meta"][str(2**62)] == {
        "model_name": "llama",
        "world_size": 1,
        "block_size": 16,
        "use_mla": False,
    }
    assert status["worker_liveness"] == {
        "enabled": True,
        "reap_timeout_seconds": 120,
        "registration_grace_seconds": 3600,
        "tracked_instances": 2,
    }
    assert (status["live_leases"], status["queue_depth"]) == (3, 1)
    assert status["refusals"] == {"bad_blocks": 2}


def test_status_of_l2_adapters(site: Site) -> None:
    unlimited = {**ADAPTER, "label": "bucket", "index": 1, "type": "s3", "shared": True}
    site.service.l2 = [ADAPTER, {**unlimited, "capacity_bytes": None}]
    manager = site.http.get("/status").json()["storage_manager"]
    assert manager["num_l2_adapters"] == 2
    disk, bucket = manager["l2_adapters"]
    assert disk == {
        "is_healthy": True,
        "type": "fs",
        "name": "disk",
        "adapter_index": 0,
        "shared": False,
        "scanned": True,
        "stored_object_count": 3,
        "used_bytes": 300,
        "capacity_bytes": 1200,
        "usage_ratio": 0.25,
        "clear_lasts": True,
        "left_over_object_count": 0,
        "inflight_loads": 1,
        "inflight_load_bytes": 100,
        "inflight_stores": 2,
        "queued_stores": 4,
        "breakers": ADAPTER["breakers"],
    }
    assert (bucket["name"], bucket["adapter_index"], bucket["shared"]) == ("bucket", 1, True)
    assert (bucket["capacity_bytes"], bucket["usage_ratio"]) == (None, None)


@pytest.mark.parametrize("kind", ["load", "store"])
@pytest.mark.parametrize("state", ["open", "half-open"])
def test_an_adapter_that_is_cut_off_does_not_make_the_server_unhealthy(
    site: Site, kind: str, state: str
) -> None:
    breakers = {**ADAPTER["breakers"], kind: {"state": state, "last_failure": "timeout"}}
    site.service.l2 = [{**ADAPTER, "breakers": breakers}]
    status = site.http.get("/status").json()
    (adapter,) = status["storage_manager"]["l2_adapters"]
    assert adapter["is_healthy"] is False
    assert adapter["breakers"][kind] == {"state": state, "last_failure": "timeout"}
    # Who restarts an unhealthy server would lose its L1 too, and not mend the backend.
    assert status["is_healthy"] is True
    assert status["storage_manager"]["is_healthy"] is True
    assert site.http.get("/healthcheck").status_code == 200


def test_status_without_workers(site: Site) -> None:
    site.service.workers = []
    status = site.http.get("/status").json()
    assert status["cache_context_meta"] == {}
    assert status["worker_liveness"]["tracked_instances"] == 0


def test_status_says_what_is_wrong(site: Site) -> None:
    site.service.reason = "the copy pool hangs"
    status = site.http.get("/status").json()
    assert (status["is_healthy"], status["unhealthy_reason"]) == (False, "the copy pool hangs")
    site.service.reason = None
    site.loop.hung = True
    reply = site.http.get("/status")
    assert reply.status_code == 503
    assert reply.json()["error"] == "the wire loop has not answered for 1 s"


def test_config_in_the_sections_of_lmcache_and_without_secrets(site: Site) -> None:
    reply = site.http.get("/config")
    sections = reply.json()
    assert {"mp", "storage_manager", "observability", "http", "coordinator"} <= set(sections)
    assert sections["storage_manager"]["l1_size_gb"] == 1
    assert sections["mp"]["port"] == 5555
    assert sections["mp"]["ipc_mode"] == "0600"
    assert sections["observability"]["otlp_endpoint"] == "https://collector:4317"
    assert sections["l2"]["l2_adapter"] == [
        {"type": "fs", "name": "disk", "base_path": "/data/l2"},
        {"type": "resp", "host": "valkey", "password": "***"},
    ]
    assert "secret" not in reply.text


def test_adapters_in_their_order(site: Site) -> None:
    site.loop.hung = True  # they are known without it
    reply = site.http.get("/config/adapters")
    assert reply.json() == {
        "adapters": [
            {
                "index": index,
                "type_name": type_name,
                "tier": "l2",
                "primary": index == 0,
                "reconfigurable": False,
            }
            for index, type_name in enumerate(("fs", "resp"))
        ]
    }


def test_versions(site: Site) -> None:
    assert site.http.get("/version").json() == __version__
    assert site.http.get("/lmc_version").json() == "0.5.6"


def test_metrics_are_prometheus_text(site: Site) -> None:
    site.telemetry.l1_write_chunks.add(4)
    reply = site.http.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    line = next(x for x in reply.text.splitlines() if x.startswith("lmcache_mp_l1_write_chunks_t"))
    assert line.endswith(" 4.0")


@pytest.mark.parametrize(
    "path", ["/env", "/run_script", "/loglevel?level=DEBUG", "/docs", "/threads"]
)
def test_what_does_not_exist_here(site: Site, path: str) -> None:
    assert site.http.get(path).status_code == 404
    assert site.http.post(path).status_code == 404


def test_answers_carry_a_date_and_are_not_cached(site: Site) -> None:
    headers = site.http.get("/healthcheck").headers
    assert headers["date"].endswith(" GMT")
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", ["/healthcheck", "/status", "/metrics", "/", "/version"])
def test_head_is_get_without_the_body(site: Site, path: str) -> None:
    head, got = site.http.head(path), site.http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


def test_a_failing_route_does_not_end_the_server(site: Site) -> None:
    site.service.workers = [{"kind": "handle"}]
    assert site.http.get("/status").status_code == 500
    assert site.http.get("/healthcheck").status_code == 200
