"""Room for the L1: /dev/shm, what may be locked, and pages set aside."""

import os
import re
import resource
from pathlib import Path

from sidecar.cache import segment
from sidecar.cache.room import room_in
from sidecar.cache.segment import SHM_DIR
from sidecar.commands.doctor.cgroups import memory_left
from sidecar.commands.doctor.finding import Finding, ok, problem, warning
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.commands.output import amount
from sidecar.tiers.adapters.mooncake import MooncakeSettings

_MEMINFO = Path("/proc/meminfo")
_LARGER = "mount a larger one: docker --shm-size, Kubernetes emptyDir with medium: Memory"


def shm(around: Surroundings) -> Finding:
    """Whether /dev/shm can hold the L1. A running server has taken its part already."""
    if not os.access(SHM_DIR, os.W_OK | os.X_OK):
        return problem(
            "/dev/shm",
            "this user may not write in it, or it is mounted read-only",
            "the server refuses to start",
            "its mode is 1777; look for ro in its line of /proc/mounts",
        )
    room, wanted = room_in(SHM_DIR), around.l1_bytes
    what = f"{amount(room.free)} free of {amount(room.total)}"
    if wanted is None:
        return ok("/dev/shm", f"{what} (--l1-size-gb N to compare)")
    # What an earlier server of the name has left is taken over, or removed.
    left = sum(one.bytes for one in segment.kept() if one.name == around.config.shm_name)
    if wanted <= (room.total if around.server else room.free + left):
        return ok("/dev/shm", f"{what}, for an L1 of {amount(wanted)}")
    if wanted <= room.free + left + room.nameless:
        return warning(
            "/dev/shm",
            f"{what}, for an L1 of {amount(wanted)}; processes map {amount(room.nameless)} of "
            "removed files",
            "the L1 starts smaller, and grows as they let go of it",
            "workers let go of an earlier server's L1 when they use the next one's, or end",
        )
    return problem(
        "/dev/shm",
        f"{what}; the L1 needs {amount(wanted)}",
        "the server refuses to start",
        f"{_LARGER}; or lower --l1-size-gb",
    )


def kept() -> Finding:
    """What servers that have ended have left there for their successors (`--l1-keep-seconds`)."""
    found = segment.kept()
    if not found:
        return ok("kept L1", "none")
    each = [f"{one.name}: {amount(one.bytes)}, {one.seconds_left:.0f} s more" for one in found]
    return ok("kept L1", "; ".join(each))


def available(around: Surroundings, root: Path = Path("/")) -> Finding:
    """Whether there is memory behind it: a tmpfs promises more than machine and groups have."""
    machine = _kib(root / "proc/meminfo", "MemAvailable") * 1024
    left = memory_left(root)
    there = int(min(machine, left.bytes))
    what = f"{amount(there)} available"
    if left.bytes < machine:
        what += f" to the control group {left.group}"
    wanted = around.l1_bytes
    if wanted is None or around.server or wanted <= there:
        return ok("memory", what)
    return problem(
        "memory",
        f"{what}; the L1 needs {amount(wanted)}",
        "the kernel kills a process while the L1 fills up",
        "lower --l1-size-gb, or raise the memory limit of the container, the pod or the unit",
    )


def memlock(around: Surroundings) -> Finding:
    """Whether the L1 may be locked, where an L2 adapter registers it with a network card."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else amount(soft)
    settings = [spec.settings for spec in around.config.l2_adapter]
    if not any(isinstance(s, MooncakeSettings) and s.protocol == "rdma" for s in settings):
        return ok("memlock", f"{limit}; nothing in this configuration locks the L1")
    wanted = around.l1_bytes
    if wanted is None:
        return ok("memlock", f"{limit} (--l1-size-gb N to compare)")
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ok("memlock", limit)
    return problem(
        "memlock",
        f"{limit}; mooncake_store registers the whole L1, {amount(wanted)}, for RDMA",
        "what a network card reads must be locked, and the kernel refuses more than the limit",
        "ulimit -l unlimited; docker --ulimit memlock=-1; systemd LimitMEMLOCK=infinity",
    )


def huge_pages(meminfo: Path = _MEMINFO) -> Finding:
    """Memory set aside as huge pages, which the L1 does not use."""
    unused = _kib(meminfo, "Hugepagesize") * 1024 * _kib(meminfo, "HugePages_Free")
    if not unused:
        return ok("huge pages", "none set aside")
    return warning(
        "huge pages",
        f"{amount(unused)} set aside as huge pages and unused",
        "the L1 is ordinary shared memory, and that memory is lost to it",
        "sysctl vm.nr_hugepages=0, unless another program here wants them",
    )


def _kib(meminfo: Path, name: str) -> int:
    """A line of /proc/meminfo; most are in KiB, HugePages_* are counts."""
    found = re.search(rf"^{name}:\s+(\d+)", meminfo.read_text(), re.MULTILINE)
    return int(found[1]) if found else 0
