"""How much memory the control groups of this process leave it.

A limit of a group counts for all below it: of a container, a pod, a systemd unit (MemoryMax,
MemoryHigh), whatever of these this process is in. See cgroups(7), and in the kernel's
Documentation admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True)
class Left:
    """`bytes` that may still be used in `group`; without any limit infinite."""

    bytes: float
    group: str = ""


@dataclass(frozen=True)
class _Version:
    """The file system and the files of a version of control groups; smaller limits first."""

    file_system: str
    limits: tuple[str, ...]
    usage: str
    cached: tuple[str, str]


_V1 = _Version(
    "cgroup",
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
_V2 = _Version(
    "cgroup2", ("memory.high", "memory.max"), "memory.current", ("active_file", "inactive_file")
)
# "No limit" of version 1: the largest number of pages, in bytes.
_NO_LIMIT = 1 << 62


def memory_left(root: Path = Path("/")) -> Left:
    """The least that a group of this process, or one above it, leaves.

    Shared memory counts; what is cached of files counts too, but gives way. `root` is for tests.
    """
    lefts = [Left(math.inf)]
    for version, directory, top in _groups(root):
        while directory.is_relative_to(top):
            with suppress(OSError):  # the root of all groups has no limit
                group = str(PurePosixPath("/", directory.relative_to(top)))
                lefts.append(Left(_left(version, directory), group))
            directory = directory.parent
    return min(lefts, key=lambda left: left.bytes)


def _groups(root: Path) -> Iterator[tuple[_Version, Path, Path]]:
    """The groups of this process that account for memory, and where the mount begins."""
    mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        version = _V1 if controllers else _V2
        for mount in mounts:
            fields, _, rest = mount.partition(" - ")
            kind, _, options = rest.split(" ", 2)
            if kind == version.file_system and (not controllers or "memory" in options.split(",")):
                shown, where = fields.split(" ")[3:5]
                top = root / where.lstrip("/")
                yield version, top / _below(group, shown), top


def _below(group: str, shown: str) -> PurePosixPath:
    """Where a group lies in a mount that shows the groups from `shown` on.

    A container may see its own group as the top of all, and not know what is above it.
    """
    path = PurePosixPath(group)
    if ".." in path.parts or not path.is_relative_to(shown):
        return PurePosixPath()
    return path.relative_to(shown)


def _left(version: _Version, directory: Path) -> float:
    limit = min(_limit(directory / name) for name in version.limits)
    if limit >= _NO_LIMIT:
        return math.inf
    used = int((directory / version.usage).read_text())
    stat = dict(line.split() for line in (directory / "memory.stat").read_text().splitlines())
    return max(0, limit - used + sum(int(stat[kind]) for kind in version.cached))


def _limit(file: Path) -> float:
    text = file.read_text().strip()
    return math.inf if text == "max" else int(text)
