"""The addresses that the server would listen on."""

import os
from collections.abc import Iterator
from pathlib import Path

from sidecar import listeners
from sidecar.addresses import in_url
from sidecar.commands.doctor.finding import Finding, ok, problem
from sidecar.commands.doctor.surroundings import Surroundings


def check(around: Surroundings) -> Iterator[Finding]:
    """Each port of the configuration."""
    config = around.config
    places = [("port", config.host, config.port), ("http port", config.http_host, config.http_port)]
    if config.prometheus_port:
        places.append(("metrics port", config.prometheus_host, config.prometheus_port))
    yield from filter(None, [all_different(places)])
    for name, host, port in places:
        if not port:
            continue
        if host.startswith("ipc://"):
            yield unix_socket(name, Path(f"{host.removeprefix('ipc://')}:{port}"))
        elif around.server:
            yield ok(name, f"{in_url(host)}:{port}, in use by a running kv-sidecar")
        else:
            yield free(name, host, port)


def all_different(places: list[tuple[str, str, int]]) -> Finding | None:
    """One port for two purposes."""
    taken: dict[int, str] = {}
    for name, host, port in places:
        if host.startswith("ipc://") or not port:
            continue
        if port in taken:
            return problem(
                name,
                f"{port} is the {taken[port]} too",
                "only one of them can listen there",
                "choose another",
            )
        taken[port] = name
    return None


def free(name: str, host: str, port: int) -> Finding:
    """Listen there for a moment."""
    try:
        listeners.close(listeners.listen(host, port))
    except OSError as error:
        return problem(
            name,
            str(error),
            "the server refuses to start",
            f"end what listens there (ss -ltnp 'sport = :{port}'), or choose another port",
        )
    return ok(name, f"{in_url(host)}:{port} is free")


def unix_socket(name: str, path: Path) -> Finding:
    """Whether the socket's directory is there and lets it be made."""
    if path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK):
        return ok(name, f"{path} can be made")
    return problem(
        name,
        f"{path.parent} is no directory that this user may write in",
        "the server refuses to start",
        "make the directory, or mount the volume that worker and sidecar share",
    )
