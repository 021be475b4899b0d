"""What the packages here need of the system, and the clients of the configured backends."""

import importlib.util
from collections.abc import Iterator

from connectors.versions import Installed
from sidecar import nixl, shared_libraries
from sidecar.commands.doctor.finding import Finding, problem
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.tiers.adapters.nixl_store import NixlSettings
from sidecar.tiers.base import AdapterUnusable
from sidecar.tiers.settings import AdapterSettings


def check(around: Surroundings) -> Iterator[Finding]:
    """Each package and each adapter that cannot be loaded."""
    here = importlib.util.find_spec("mooncake") is not None
    found = [of_vllm(around.installed), of_lmcache(around.installed, mooncake=here)]
    found += [of_adapter(spec.settings) for spec in around.config.l2_adapter]
    yield from filter(None, found)


def of_vllm(installed: Installed) -> Finding | None:
    """Only the CPU build needs something that is not everywhere."""
    lack = shared_libraries.lack("vllm") if "cpu" in (installed["vllm"] or "") else ""
    return _lacking("vllm", lack, "no worker starts") if lack else None


def of_lmcache(installed: Installed, *, mooncake: bool) -> Finding | None:
    """Its client and its server import Mooncake wherever that is."""
    lack = shared_libraries.lack("mooncake") if installed["lmcache"] and mooncake else ""
    why = "lmcache imports mooncake where it is installed, so no worker starts"
    return _lacking("lmcache", lack, why) if lack else None


def of_adapter(settings: AdapterSettings) -> Finding | None:
    """Whether the client of the backend can be loaded; nothing is connected to."""
    try:
        settings.build()
        if isinstance(settings, NixlSettings):
            nixl.load()
    except (AdapterUnusable, nixl.NixlMissing) as error:
        return problem(
            f"L2 {settings.type}",
            str(error),
            "the server refuses to start",
            "install what is missing, or leave the adapter out",
        )
    return None


def _lacking(check: str, lack: str, why: str) -> Finding:
    what, _, command = lack.rpartition(": ")
    return problem(check, what, why, command)
