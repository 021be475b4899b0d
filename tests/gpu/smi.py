"""What nvidia-smi tells of GPUs and their processes."""

from __future__ import annotations

import subprocess


def gpus() -> list[str]:
    """The UUIDs of all GPUs, with their prefix."""
    return [uuid for (uuid,) in _rows("--query-gpu=uuid")]


def processes() -> dict[int, set[str]]:
    """The GPUs that each process has a context on, by process id.

    Empty in a container that hides processes.
    """
    found: dict[int, set[str]] = {}
    for pid, uuid in _rows("--query-compute-apps=pid,gpu_uuid"):
        found.setdefault(int(pid), set()).add(uuid)
    return found


def _rows(query: str) -> list[list[str]]:
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split(", ") for line in text.splitlines() if line.strip()]
