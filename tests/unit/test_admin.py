"""The admin port as its clients see it: codes, shapes and messages over real HTTP."""

from collections.abc import Iterator

import pytest

from sidecar import __version__
from tests.support.admin_site import Site


@pytest.fixture(scope="module")
def running() -> Iterator[Site]:
    site = Site(otlp_endpoint="https://user:secret@collector:4317")
    yield site
    site.close()


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    yield running
    running.reset()


def test_root(site: Site) -> None:
    assert site.http.get("/").json()["status"] == "ok"


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
    assert (status["chunk_size"], status["active_sessions"]) == (256, 2)
    manager = status["storage_manager"]
    assert manager["l1_manager"] == manager["l1_managers"]["default"]
    assert manager["l1_manager"]["memory_total_bytes"] == 1024
    assert manager["l1_manager"]["memory_used_bytes"] == 256
    assert manager["l1_manager"]["memory_usage_ratio"] == 0.25
    assert manager["l1_manager"]["total_object_count"] == 5
    assert manager["eviction_controller"]["eviction_policy"] == "LRU"
    assert manager["l1_usage"] == [256, 1024]
    assert manager["l2_adapters"] == []
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
    assert status["refusals"] == {"store": 2}


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
    assert "secret" not in reply.text


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


def test_a_failing_route_does_not_end_the_server(site: Site) -> None:
    site.service.workers = [{"kind": "handle"}]
    assert site.http.get("/status").status_code == 500
    assert site.http.get("/healthcheck").status_code == 200
