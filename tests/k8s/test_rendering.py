"""What kustomize makes of k8s/, and whether Kubernetes would accept it."""

import copy
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from k8s import configs, render, sizes
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
)
from tests.support.server import REPO

COMPONENT_KEYS = {"name", "type", "replicas", "sharedMemorySize", "podTemplate"}


def all_pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for overlay in render.OVERLAYS:
        for pod in render.pods(documents(overlay)):
            yield overlay, pod


@pytest.mark.parametrize("overlay", render.OVERLAYS)
def test_kubernetes_knows_every_field(overlay: str) -> None:
    render.check(documents(overlay))


@pytest.mark.parametrize("overlay", ["vllm-sidecar", "vllm-node", "dynamo-disagg"])
def test_a_field_that_kubernetes_does_not_know_is_found(overlay: str) -> None:
    wrong = copy.deepcopy(documents(overlay))
    (pod,) = [p for p in render.pods(wrong) if p["metadata"]["name"] == SERVERS[overlay]]
    probe = container(pod, "kv-sidecar")["startupProbe"]
    probe["failuresThreshold"] = probe.pop("failureThreshold")

    with pytest.raises(kubernetes_validate.ValidationError, match="failuresThreshold"):
        render.check(wrong)


@pytest.mark.parametrize("overlay", render.OVERLAYS)
def test_only_what_is_applied_is_rendered(overlay: str) -> None:
    names = {(each["kind"], each["metadata"]["name"]) for each in documents(overlay)}

    assert ("ConfigMap", "values") not in names
    assert "PodTemplate" not in {kind for kind, _ in names}
    assert len(names) == len(documents(overlay))


def test_every_image_is_ours_or_of_vllms_and_dynamos_releases_with_a_tag() -> None:
    for overlay, pod in all_pods():
        for each in containers(pod):
            stock = overlay in NATIVE and each["name"] == "main"
            assert each["image"].startswith("registry.example.com/kv-sidecar") != stock
            assert ":" in each["image"].rpartition("/")[2]


def test_images_of_others_are_those_that_ours_are_built_from() -> None:
    stock = {each["image"] for _, pod in all_pods() for each in containers(pod)}
    told = (REPO / "Dockerfile.worker").read_text()
    for image in stock:
        assert "kv-sidecar" in image or f"BASE={image}" in told, image


def test_the_caches_image_can_be_set_alone_in_a_pod(tmp_path: Path) -> None:
    """As docs/run.md says for an update that keeps the L1."""
    before, path = cached_worker("vllm-sidecar"), tmp_path / "pod.json"
    path.write_text(json.dumps(before))
    setting = ["set", "image", "--local", "-f", str(path), "kv-sidecar=new:1", "-o", "json"]
    command = [str(render.kubectl()), *setting]
    after = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    changed = [each for each in containers(after) if each not in containers(before)]
    assert changed == [{**container(before, "kv-sidecar"), "image": "new:1"}]


def test_every_mount_has_its_volume() -> None:
    """Dynamo's operator makes a PersistentVolumeClaim of one that is not declared."""
    for overlay, pod in all_pods():
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        mounts = [mount["name"] for c in containers(pod) for mount in c.get("volumeMounts", [])]
        assert volumes == set(mounts), (overlay, pod["metadata"]["name"])


@pytest.mark.parametrize("overlay", [name for name in render.OVERLAYS if "dynamo" in name])
def test_the_shape_that_dynamo_reads(overlay: str) -> None:
    """As in the examples of the ai-dynamo wheel, 1.6.1, `profiler/templates/dgd/vllm`."""
    (graph,) = of_kind(overlay, "DynamoGraphDeployment")
    assert graph["apiVersion"] == "nvidia.com/v1beta1"
    components = graph["spec"]["components"]
    second = "decode" if "disagg" in overlay else "worker"
    assert [each["type"] for each in components][:2] == ["frontend", second]
    for component in components:
        assert set(component) <= COMPONENT_KEYS
        (main,) = component["podTemplate"]["spec"]["containers"]
        assert main["name"] == "main"
        # Either would take the place of the operator's own, to which its probes refer by name.
        assert not {"ports", "livenessProbe", "readinessProbe", "startupProbe"} & set(main)
    for component in components:
        cached = component["name"] == CACHED[overlay]
        assert component.get("sharedMemorySize") == ("0" if cached else None)


def test_sizes_are_those_of_the_values() -> None:
    values = sizes.read(sizes.VALUES / "values.env")
    assert sizes.read(sizes.VALUES / "sizes.env") == sizes.derived(values)


def test_configs_are_those_of_the_connectors() -> None:
    assert configs.FILE.read_text().splitlines()[1:] == configs.lines()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """All overlays with other values."""
    copied = tmp_path_factory.mktemp("manifests") / "k8s"
    shutil.copytree(render.ROOT, copied)
    patch = pytest.MonkeyPatch()
    patch.setattr(render, "ROOT", copied)
    patch.setattr(sizes, "VALUES", copied / "values")
    values = "L1_SIZE_GB=1200\nL2_SIZE_GB=4000\nCHUNK_SIZE=512\nMODEL=other/model\n"
    (copied / "values" / "values.env").write_text(values)
    program = render.kubectl()
    patch.setattr(render, "kubectl", lambda: program)
    sizes.write()
    yield {name: list(yaml.safe_load_all(render.render(name))) for name in render.OVERLAYS}
    patch.undo()


@pytest.mark.parametrize("overlay", render.OVERLAYS)
def test_a_value_is_given_once(other: dict[str, Any], overlay: str) -> None:
    """1.2 TB of L1: 1 GB/s to be ready, and its memory for the server and for /dev/shm."""
    (pod,) = [p for p in render.pods(other[overlay]) if p["metadata"]["name"] == SERVERS[overlay]]
    server = container(pod, "kv-sidecar")

    variables = environment(overlay, server)
    assert variables["KV_SIDECAR_L1_SIZE_GB"] == "1200"
    assert variables["KV_SIDECAR_CHUNK_SIZE"] == "512"
    assert '"max_capacity_gb":4000' in variables["KV_SIDECAR_L2_ADAPTER"]
    assert server["resources"]["limits"]["memory"] == "1226Gi"
    assert server["resources"]["requests"]["memory"] == "1226Gi"
    assert server["startupProbe"]["failureThreshold"] * server["startupProbe"]["periodSeconds"] == (
        1200
    )
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    if overlay not in NODE:
        assert volumes["kv-shm"]["emptyDir"]["sizeLimit"] == "1208Gi"
    if overlay == "vllm-sidecar-persistent":
        (claim,) = [d for d in other[overlay] if d["kind"] == "PersistentVolumeClaim"]
        assert claim["spec"]["resources"]["requests"]["storage"] == "4201Gi"
    elif overlay not in NODE:
        assert volumes["kv-l2"]["emptyDir"]["sizeLimit"] == "4201Gi"
        assert server["resources"]["requests"]["ephemeral-storage"] == "4201Gi"
    assert "Qwen" not in str(other[overlay])


@pytest.mark.parametrize(
    ("l1", "l2", "expected"),
    [
        ("0.5", "0", {"MEMORY": "5Gi", "SHM_SIZE": "9Gi", "L2_ADAPTER": "[]", "L2_VOLUME": "1Gi"}),
        ("32", "10", {"MEMORY": "37Gi", "STARTUP_FAILURES": "30", "L2_VOLUME": "12Gi"}),
        # 18 GiB of page tables, and a node that populates 1 GB a second.
        ("1024", "0", {"MEMORY": "1046Gi", "SHM_SIZE": "1032Gi", "STARTUP_FAILURES": "205"}),
    ],
)
def test_what_follows_from_a_size(l1: str, l2: str, expected: dict[str, str]) -> None:
    found = sizes.derived({"L1_SIZE_GB": l1, "L2_SIZE_GB": l2})
    assert expected.items() <= found.items()
