"""PCI devices as the kernel shows them in sysfs, made up."""

from __future__ import annotations

from pathlib import Path

NVIDIA, DISPLAY = "0x10de", "0x030200"


def device(
    folder: Path, bus: str, node: int | None, vendor: str = NVIDIA, kind: str = DISPLAY
) -> None:
    """A device, and the NUMA node of its bus if the machine says it."""
    place = folder / bus
    place.mkdir()
    (place / "vendor").write_text(f"{vendor}\n")
    (place / "class").write_text(f"{kind}\n")
    if node is not None:
        (place / "numa_node").write_text(f"{node}\n")
