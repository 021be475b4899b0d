"""Data flows one way; the folders say which, and this holds them to it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What each part of `sidecar` may import of the others (besides itself).
ALLOWED = {
    "flow": set(),
    "cache": {"flow"},
    "addresses": set(),
    "outbox": set(),
    "listeners": {"addresses"},
    "wire": {"addresses", "flow", "limits", "listeners", "outbox"},
    "activity": set(),
    "loop": {"activity", "flow"},
    "limits": set(),
    "config": {"addresses", "tiers"},
    "telemetry": set(),
    "nixl": set(),
    "shared_libraries": set(),
    "engines": {"cache", "nixl"},
    "tiers": {"addresses", "cache", "flow", "nixl", "shared_libraries", "telemetry"},
    "handlers": {
        *("cache", "engines", "flow", "outbox", "replay", "tiers", "wire", "telemetry", "config"),
    },
    "replay": {"cache"},
    "gds": {"cache", "engines", "flow", "handlers", "telemetry", "tiers"},
    "admin": {"config", "handlers", "limits", "listeners", "loop", "telemetry", "tiers"},
    "app": {
        *("addresses", "admin", "cache", "config", "engines", "gds", "handlers", "limits"),
        *("loop", "telemetry", "tiers", "wire"),
    },
    "commands": {
        *("addresses", "app", "cache", "config", "listeners", "nixl", "shared_libraries"),
        *("replay", "tiers"),
    },
    "cli": {"commands", "config"},
    "__main__": {"cli"},
    "__init__": set(),
}
FILES = sorted((ROOT / "sidecar").rglob("*.py"))
# What each package of the repository may import of the others, beside itself.
PACKAGES = {"connectors", "sidecar", "launch", "examples", "bench", "k8s", "tests"}
MAY_IMPORT = {
    "connectors": set(),
    "sidecar": {"connectors"},
    "launch": {
        *("connectors", "sidecar.addresses", "sidecar.commands", "sidecar.config"),
        "sidecar.shared_libraries",
    },
}


def names(path: Path) -> set[str]:
    """What a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return found


def imported(path: Path) -> set[str]:
    """The parts of `sidecar` that a file imports."""
    return {n.split(".")[1] for n in names(path) if n.startswith("sidecar.")} - {"__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    part = path.relative_to(ROOT / "sidecar").parts[0].removesuffix(".py")
    assert imported(path) - {part} <= ALLOWED[part]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_only_those_below(package: str) -> None:
    allowed = {package, *MAY_IMPORT[package]}
    for path in (ROOT / package).rglob("*.py"):
        for name in names(path):
            if name.partition(".")[0] in PACKAGES:
                assert any(f"{name}.".startswith(f"{each}.") for each in allowed), (path, name)


def test_a_cpu_host_needs_neither_torch_nor_cuda() -> None:
    code = "import sys, sidecar.app, sidecar.admin.web; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "sidecar.app" in modules
    assert not {"torch", "cuda", "cupy", "lmcache", "vllm", "nixl", "sidecar.gds"} & set(modules)
    assert "zmq" not in modules, "the server speaks ZMTP itself; libzmq publishes KV events"
