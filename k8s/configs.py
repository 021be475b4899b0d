"""What workers with vLLM's own connector are configured by: native/configs.env."""

from pathlib import Path

from connectors.arguments import compact
from connectors.nixl import Nixl
from connectors.offloading import NativeServer
from connectors.roles import aggregated, prefill

FILE = Path(__file__).parent / "native" / "configs.env"
_SERVERS = {
    "IN_POD": NativeServer(host="ipc:///run/kv-sidecar/mp"),
    "ON_NODE": NativeServer(host="tcp://kv-cache"),
}


def lines() -> list[str]:
    """`NAME=JSON`, as `kv-sidecar connector --client native` prints it for the roles that cache."""
    return [
        line
        for place, server in _SERVERS.items()
        for line in (
            f"AGGREGATED_{place}={compact(aggregated(server))}",
            f"PREFILL_{place}={compact(prefill(server, Nixl()))}",
        )
    ]


def write() -> None:
    """Bring configs.env up to date."""
    text = "# Made by `make k8s`: kv-sidecar connector --client native --role ROLE --host HOST.\n"
    FILE.write_text(text + "\n".join(lines()) + "\n")
