"""Render every overlay with kubectl and check the result against Kubernetes' own schemas.

`python -m k8s.render` writes what is computed (values/sizes.env, native/configs.env) first, then
build/k8s/OVERLAY.yaml.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from k8s import configs, sizes

ROOT = Path(__file__).parent
OVERLAYS = sorted(path.name for path in (ROOT / "overlays").iterdir())
# The oldest that knows native sidecars without a feature gate, and the newest with a schema.
VERSIONS = ("1.29", kubernetes_validate.latest_version())
# Kinds of operators, whose schemas are not Kubernetes'.
CUSTOM = ("DynamoGraphDeployment", "PodMonitor")
_BUILT = ROOT.parent / "build" / "k8s"
_SECONDS = 60


def kubectl() -> str | None:
    """The one that `scripts/install.py k8s` brought, else one on PATH."""
    installed = ROOT.parent / ".venv" / "bin" / "kubectl"
    return str(installed) if installed.exists() else shutil.which("kubectl")


def render(overlay: str) -> str:
    """The YAML of an overlay. Raises CalledProcessError where kustomize refuses it."""
    program = kubectl()
    assert program is not None
    command = [program, "kustomize", str(ROOT / "overlays" / overlay)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=_SECONDS)
    return done.stdout


def pods(documents: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A Pod for each pod template, named as the workload, or as the component of a Dynamo graph."""
    for document in documents:
        spec, name = document.get("spec", {}), document["metadata"]["name"]
        if "template" in spec:
            yield _pod(name, spec["template"])
        for component in spec.get("components", []):
            yield _pod(component["name"], component["podTemplate"])


def check(documents: Iterable[dict[str, Any]]) -> None:
    """Raises kubernetes_validate.ValidationError for a field that Kubernetes does not know."""
    documents = list(documents)
    known = [document for document in documents if document["kind"] not in CUSTOM]
    for document in [*known, *pods(documents)]:
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)


def _pod(name: str, template: dict[str, Any]) -> dict[str, Any]:
    # Dynamo's names have capitals, which those of pods must not.
    metadata = {"name": name.lower(), **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def main() -> None:
    if kubectl() is None:
        sys.exit("kubectl is needed: install it, or npm, which brings one for x86_64")
    sizes.write()
    configs.write()
    _BUILT.mkdir(parents=True, exist_ok=True)
    for overlay in OVERLAYS:
        text = render(overlay)
        check(yaml.safe_load_all(text))
        path = _BUILT / f"{overlay}.yaml"
        path.write_text(text)
        print(path.relative_to(ROOT.parent))


if __name__ == "__main__":
    main()
