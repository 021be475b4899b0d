"""What the checks look at: a configuration, an environment, and a server that may be running."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from connectors.versions import Installed
from sidecar.addresses import local
from sidecar.commands import admin
from sidecar.config import Config

_TIMEOUT_SECONDS = 2.0


@dataclass(frozen=True)
class Surroundings:
    """`l1_bytes` is None where nobody has said how large the L1 is to be.

    `server` is the configuration that a running sidecar tells (`GET /config`), None without one.
    `salted_requests`: what the user says of the worker's requests.
    """

    config: Config
    l1_bytes: int | None
    environ: Mapping[str, str]
    installed: Installed
    server: Mapping[str, Any] | None
    salted_requests: bool = False

    @property
    def chunk_size(self) -> int:
        """Tokens; the running server's word counts for more than the configuration's."""
        return int(self.server["mp"]["chunk_size"]) if self.server else self.config.chunk_size

    @property
    def transfer_mode(self) -> str:
        mode = self.server["mp"]["supported_transfer_mode"] if self.server else None
        return str(mode or self.config.supported_transfer_mode)


def admin_url(config: Config) -> str:
    """Where the configured server's admin port is, for a client on this machine."""
    return f"http://{local(config.http_host)}:{config.http_port}"


def wire_url(config: Config) -> str:
    """Where the configured server listens for workers, for a client on this machine."""
    if config.host.startswith("ipc://"):
        return f"{config.host}:{config.port}"
    return f"tcp://{local(config.host)}:{config.port}"


def running_server(config: Config) -> Mapping[str, Any] | None:
    """What the server tells that has the admin port of `config`.

    None if there is none, or if it is another one, with another port for workers.
    """
    try:
        told = admin.get(admin_url(config), "/config", _TIMEOUT_SECONDS)
    except (OSError, ValueError):
        return None
    match told:
        case {"mp": {"port": config.port, "chunk_size": int(), "supported_transfer_mode": str()}}:
            return dict(told)
    return None
