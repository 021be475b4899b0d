"""Start `kv-sidecar serve` on free ports."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from .process import Process, free_port

CHUNK_SIZE = 256
READY_SECONDS = 30


@dataclass(frozen=True)
class Sidecar:
    """A sidecar whose workers connect to `port` and whose admin HTTP is at `url`."""

    process: Process
    port: int
    url: str


def start_sidecar(log: Path) -> Sidecar:
    """Start a sidecar with an L1 of 1 GiB and wait until it serves. Raises ProcessFailed."""
    port, http_port = free_port(), free_port()
    command = [
        str(Path(sys.executable).with_name("kv-sidecar")),
        "serve",
        *("--port", str(port)),
        *("--http-port", str(http_port)),
        *("--l1-size-gb", "1"),
        *("--chunk-size", str(CHUNK_SIZE)),
        *("--supported-transfer-mode", "auto"),
        *("--shm-name", f"demo_{os.getpid()}"),
    ]
    url = f"http://127.0.0.1:{http_port}"
    process = Process("kv-sidecar", command, log, {})
    try:
        process.wait_ready(f"{url}/healthcheck", READY_SECONDS)
    except BaseException:
        process.stop(seconds=10)
        raise
    return Sidecar(process, port, url)
