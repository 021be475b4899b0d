"""The rendered manifests of k8s/, as Kubernetes would read them."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import yaml

from k8s.render import OVERLAYS, pods, render

Document = dict[str, Any]
_REFERENCE = re.compile(r"\$\((\w+)\)")
# Set by the kubelet from the running pod.
_FIELDS = {"metadata.name": "pod-1", "spec.nodeName": "node-1", "status.podIP": "10.0.0.7"}


@cache
def documents(overlay: str) -> list[Document]:
    """All objects of an overlay."""
    return list(yaml.safe_load_all(render(overlay)))


def of_kind(overlay: str, kind: str) -> list[Document]:
    return [document for document in documents(overlay) if document["kind"] == kind]


def pod(overlay: str, name: str) -> Document:
    """The Pod of a workload, or of a component of a Dynamo graph."""
    (found,) = [each for each in pods(documents(overlay)) if each["metadata"]["name"] == name]
    return found


def containers(pod: Document) -> list[Document]:
    """All of them, init containers first."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def container(pod: Document, name: str) -> Document:
    (found,) = [each for each in containers(pod) if each["name"] == name]
    return found


def environment(overlay: str, container: Document) -> dict[str, str]:
    """What the container's variables hold."""
    return {entry["name"]: _value(overlay, entry) for entry in container.get("env", [])}


def _value(overlay: str, entry: Document) -> str:
    if "value" in entry:
        return str(entry["value"])
    source = entry["valueFrom"]
    if "fieldRef" in source:
        return _FIELDS[source["fieldRef"]["fieldPath"]]
    key = source["configMapKeyRef"]
    (config_map,) = [
        each for each in of_kind(overlay, "ConfigMap") if each["metadata"]["name"] == key["name"]
    ]
    return str(config_map["data"][key["key"]])


def argv(overlay: str, container: Document) -> list[str]:
    """Command and arguments, with `$(NAME)` replaced as Kubernetes does."""
    variables = environment(overlay, container)
    words = [*container.get("command", []), *container.get("args", [])]
    return [_REFERENCE.sub(lambda found: variables[found[1]], word) for word in words]


CACHED = {
    "vllm-sidecar": "vllm-worker",
    "vllm-sidecar-native": "vllm-worker",
    "vllm-sidecar-persistent": "vllm-worker",
    "dynamo-agg": "worker",
    "dynamo-agg-native": "worker",
    "dynamo-disagg": "prefill",
    "dynamo-disagg-native": "prefill",
}
"""The pods with a cache of their own, by overlay."""

NODE = ("vllm-node", "vllm-node-native")
"""The overlays with one cache a node."""

SERVERS = {**CACHED, **dict.fromkeys(NODE, "kv-cache")}
"""The pods in which a kv-sidecar runs, by overlay."""

NATIVE = [overlay for overlay in OVERLAYS if overlay.endswith("-native")]
"""Those whose workers use vLLM's own connector."""

assert sorted(SERVERS) == OVERLAYS


def cached_worker(overlay: str) -> Document:
    """The pod of the worker that uses the cache, its own or the node's."""
    return pod(overlay, CACHED.get(overlay, "vllm-worker"))


def server(overlay: str) -> Document:
    """The container with the server."""
    return container(pod(overlay, SERVERS[overlay]), "kv-sidecar")
