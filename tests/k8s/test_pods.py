"""What the pods may do, what they share, and who reaches them."""

from typing import Any

import pytest

from k8s.render import OVERLAYS, pods
from sidecar import app
from tests.support.manifests import (
    CACHED,
    NATIVE,
    NODE,
    SERVERS,
    cached_worker,
    container,
    containers,
    documents,
    environment,
    of_kind,
    pod,
)

RESTRICTED_VOLUMES = {"emptyDir", "persistentVolumeClaim", "configMap", "secret", "projected"}


def volume_of(pod: dict[str, Any], container: dict[str, Any], path: str) -> dict[str, Any]:
    """The volume that the container has at `path`."""
    (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == path]
    (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == mount["name"]]
    return dict(volume)


def context(pod: dict[str, Any], container: dict[str, Any]) -> dict[str, Any]:
    """The security context that holds for a container."""
    return {**pod["spec"].get("securityContext", {}), **container.get("securityContext", {})}


@pytest.mark.parametrize("overlay", CACHED)
def test_pod_security_restricted_admits_a_pod_with_its_own_cache(overlay: str) -> None:
    """The rules of Kubernetes' Pod Security Standards, level restricted."""
    cached = pod(overlay, CACHED[overlay])
    spec = cached["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for volume in spec["volumes"]:
        assert set(volume) - {"name"} <= RESTRICTED_VOLUMES
    for each in containers(cached):
        security = context(cached, each)
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["runAsNonRoot"] is True and security["runAsUser"] != 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not any("hostPort" in port for port in each.get("ports", []))


@pytest.mark.parametrize("overlay", NODE)
def test_the_nodes_cache_has_of_the_host_what_cuda_needs_and_its_disk(overlay: str) -> None:
    cache = pod(overlay, "kv-cache")
    spec = cache["spec"]
    assert not {"hostNetwork", "hostIPC"} & set(spec)
    assert ("hostPID" in spec) == (overlay not in NATIVE)
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"]}
    assert paths == {"/dev/shm", "/var/lib/kv-sidecar"}
    for each in containers(cache):
        security = context(cache, each)
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"]["drop"] == ["ALL"]
    assert context(cache, container(cache, "kv-sidecar"))["runAsUser"] == 1000


@pytest.mark.parametrize("overlay", CACHED)
def test_worker_and_cache_share_memory_socket_user_and_process_numbers(overlay: str) -> None:
    cached = pod(overlay, CACHED[overlay])
    main, server = container(cached, "main"), container(cached, "kv-sidecar")

    assert volume_of(cached, main, "/dev/shm") == volume_of(cached, server, "/dev/shm")
    assert volume_of(cached, main, "/dev/shm")["emptyDir"]["medium"] == "Memory"
    assert volume_of(cached, main, "/run/kv-sidecar") == volume_of(
        cached, server, "/run/kv-sidecar"
    )
    assert context(cached, main)["runAsUser"] == context(cached, server)["runAsUser"]
    assert cached["spec"]["shareProcessNamespace"] is True


@pytest.mark.parametrize("overlay", NODE)
def test_worker_and_cache_of_a_node_share_its_memory_and_the_user(overlay: str) -> None:
    cache, worker = pod(overlay, "kv-cache"), pod(overlay, "vllm-worker")
    server, main = container(cache, "kv-sidecar"), container(worker, "main")

    host = {"hostPath": {"path": "/dev/shm", "type": "Directory"}, "name": "dev-shm"}
    assert volume_of(cache, server, "/dev/shm") == volume_of(worker, main, "/dev/shm") == host
    assert context(worker, main)["runAsUser"] == context(cache, server)["runAsUser"]


@pytest.mark.parametrize("overlay", sorted({*OVERLAYS} - {*NATIVE}))
def test_a_cache_sees_gpus_and_takes_none(overlay: str) -> None:
    carrier = pod(overlay, SERVERS[overlay])
    server = container(carrier, "kv-sidecar")
    variables = {entry["name"]: entry.get("value") for entry in server["env"]}

    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert carrier["spec"]["runtimeClassName"] == "nvidia"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in (
        carrier["spec"]["tolerations"]
    )
    for amounts in server["resources"].values():
        assert "nvidia.com/gpu" not in amounts


@pytest.mark.parametrize("overlay", NATIVE)
def test_beside_workers_that_copy_themselves_a_cache_sees_no_gpu(overlay: str) -> None:
    carrier = pod(overlay, SERVERS[overlay])
    server = container(carrier, "kv-sidecar")
    assert not [name for name in environment(overlay, server) if name.startswith("NVIDIA")]
    assert "nvidia" not in str(server["resources"])
    assert ("runtimeClassName" in carrier["spec"]) == (overlay in CACHED)  # the worker's


@pytest.mark.parametrize("overlay", NATIVE)
def test_the_client_comes_into_the_worker_before_it_starts(overlay: str) -> None:
    worker = cached_worker(overlay)
    main, client = container(worker, "main"), container(worker, "kv-connector")
    path = environment(overlay, main)["PYTHONPATH"]

    assert client in worker["spec"]["initContainers"] and "restartPolicy" not in client
    assert client["command"][-1] == f"{path}/"
    assert volume_of(worker, main, path) == volume_of(worker, client, path)
    assert client["image"] == container(pod(overlay, SERVERS[overlay]), "kv-sidecar")["image"]


@pytest.mark.parametrize("overlay", CACHED)
def test_a_cache_in_a_pod_is_a_native_sidecar(overlay: str) -> None:
    server = container(pod(overlay, CACHED[overlay]), "kv-sidecar")
    assert server in pod(overlay, CACHED[overlay])["spec"]["initContainers"]
    assert server["restartPolicy"] == "Always"
    # It would end the worker's readiness with the cache's.
    assert "readinessProbe" not in server


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_time_to_stop(overlay: str) -> None:
    """The server's own limits, after a worker that is given Kubernetes' usual 30 s."""
    needed = max(2 * app._DRAIN_SECONDS, app._L2_DRAIN_SECONDS) + app._DRAIN_SECONDS
    grace = pod(overlay, SERVERS[overlay])["spec"]["terminationGracePeriodSeconds"]
    assert grace >= needed + (30 if overlay in CACHED else 0)
    assert "lifecycle" not in container(pod(overlay, SERVERS[overlay]), "kv-sidecar")


def selected(overlay: str, selector: dict[str, Any]) -> list[dict[str, Any]]:
    """The pods that a label selector finds."""
    wanted = selector.get("matchLabels", {}).items()
    found = []
    for each in pods(documents(overlay)):
        labels = each["metadata"].get("labels", {})
        expressions = selector.get("matchExpressions", [])
        if wanted <= labels.items() and all(
            labels.get(one["key"]) in one["values"] for one in expressions
        ):
            found.append(each)
    return found


def ports_of(pod: dict[str, Any]) -> set[str | int]:
    """Names and numbers."""
    ports = [port for each in containers(pod) for port in each.get("ports", [])]
    return {port["name"] for port in ports} | {port["containerPort"] for port in ports}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_their_pods_and_ports_are_theirs(overlay: str) -> None:
    for monitor in of_kind(overlay, "PodMonitor"):
        (found,) = selected(overlay, monitor["spec"]["selector"])
        assert found == pod(overlay, SERVERS[overlay])
        assert {end["port"] for end in monitor["spec"]["podMetricsEndpoints"]} <= ports_of(found)
    for service in of_kind(overlay, "Service"):
        (found,) = selected(overlay, {"matchLabels": service["spec"]["selector"]})
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports_of(found)
    for policy in of_kind(overlay, "NetworkPolicy"):
        (found,) = selected(overlay, policy["spec"]["podSelector"])
        for rule in policy["spec"]["ingress"]:
            assert {port["port"] for port in rule["ports"]} <= ports_of(found)
    assert of_kind(overlay, "PodMonitor")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_worker_has_one_disruption_budget(overlay: str) -> None:
    """Of two that match a pod, the API refuses every eviction."""
    budgets = of_kind(overlay, "PodDisruptionBudget")
    matching = [b for b in budgets if selected(overlay, b["spec"]["selector"])]
    assert len(matching) == len(budgets) == 1
    assert selected(overlay, matching[0]["spec"]["selector"]) == [cached_worker(overlay)]


def test_the_nodes_cache_serves_its_own_workers_alone() -> None:
    (service,) = [s for s in of_kind("vllm-node", "Service") if s["metadata"]["name"] == "kv-cache"]
    assert service["spec"]["internalTrafficPolicy"] == "Local"
    (policy,) = [
        p for p in of_kind("vllm-node", "NetworkPolicy") if p["metadata"]["name"] == "kv-cache"
    ]
    (rule,) = [r for r in policy["spec"]["ingress"] if {"port": "kv-mp"} in r["ports"]]
    (peer,) = rule["from"]
    assert selected("vllm-node", peer["podSelector"]) == [pod("vllm-node", "vllm-worker")]
    (daemon,) = of_kind("vllm-node", "DaemonSet")
    assert daemon["spec"]["updateStrategy"] == {"type": "OnDelete"}
    (priority,) = of_kind("vllm-node", "PriorityClass")
    assert daemon["spec"]["template"]["spec"]["priorityClassName"] == priority["metadata"]["name"]
