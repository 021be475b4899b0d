"""Who may still touch the arena: the kernel tells when nobody has it open any more.

An engine-driven worker maps the arena and copies by itself, so its slots wait for its end, and
the end of a connection is not the end of a process. So each registration gets a name of its own
for the segment, a hard link. inotify reports by name that it is opened, and when what was opened
for writing is closed. A mapping keeps its file open, without a descriptor, too: once the name is
closed, it is open in no process of any container or PID namespace, however that has ended.
"""

import ctypes
import itertools
import logging
import os
import struct
from collections.abc import Collection
from dataclasses import dataclass, field

from sidecar.cache.segment import SHM_DIR, Segment

log = logging.getLogger(__name__)

_IN_CLOSE_WRITE, _IN_OPEN, _IN_Q_OVERFLOW = 0x08, 0x20, 0x4000  # inotify(7)
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name behind it
_READ_BYTES = 1 << 16
_READS_A_CALL = 256
_MAX_NAMES, _NAMES_A_WORKER = 8192, 16
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(slots=True)
class _Name:
    """A name of the segment, told to one registration.

    A client opens it once, so it is open from its opening to the end of a writer. (The kernel
    merges like events, so they cannot be counted.)
    """

    name: str
    was_opened: bool = False
    is_open: bool = False


@dataclass(slots=True)
class _Worker:
    """The names told to a worker; `unknown` if it may have the segment open by another one."""

    names: list[_Name] = field(default_factory=list)
    unknown: bool = False


class Attachments:
    """The names by which workers have the segment open. Loop thread only.

    `reliable`: whether the kernel tells who has it open. If not, every worker may have.
    An inherited segment may be open by names that an earlier server has told.

    `watch` is of `watch_shared_memory`, as early as can be: an earlier server's worker that closes
    the segment before is taken to have it open until nobody else has.
    """

    def __init__(self, segment: Segment, watch: int | None) -> None:
        self._segment = segment
        self._workers: dict[int, _Worker] = {}
        self._by_name: dict[bytes, _Name] = {}
        self._behind = self._unknown = False
        old = segment.links() if segment.is_inherited else []
        self._old = [_Name(name, was_opened=True, is_open=True) for name in old]
        self._by_name |= {name.name.encode(): name for name in self._old}
        # Not the workers' ids: everybody can list the names.
        self._numbers = itertools.count(1 + max(map(_number, old), default=0))
        self._inotify = watch

    @property
    def reliable(self) -> bool:
        return self._inotify is not None

    def name(self, instance_id: int) -> str:
        """The name by which a registration of this worker is to open the segment.

        The segment's own where there can be no other.
        """
        worker = self._workers.setdefault(instance_id, _Worker())
        if len(worker.names) < _NAMES_A_WORKER and len(self._by_name) < _MAX_NAMES:
            try:
                name = self._segment.link(str(next(self._numbers)))
            except OSError as error:
                log.warning("a worker gets no name of its own for the arena: %s", error)
            else:
                worker.names.append(_Name(name))
                self._by_name[name.encode()] = worker.names[-1]
                return name
        worker.unknown = True
        return self._segment.name

    def may_touch(self, instance_id: int) -> bool:
        """Whether a process may have the segment open by a name that was told to this worker.

        False only where the kernel has told that none has. Who never opened it has not.
        """
        if self._inotify is None:
            return True
        self._read(self._inotify)
        worker = self._workers.get(instance_id)
        if worker is None or worker.unknown or self._behind:
            return True
        return any(name.is_open for name in worker.names)

    def predecessors_gone(self, own_name_told: bool) -> bool:
        """Whether no process has the segment open any more that had it before this server.

        `own_name_told`: others may have it open by the segment's own name.
        """
        if self._inotify is not None:
            self._read(self._inotify)
        is_alone = self._segment.is_alone()
        for name in self._old if is_alone else ():
            name.is_open = False
        self._forget(self._old)
        unknown = self._inotify is None or own_name_told or self._unknown or self._behind
        return is_alone or not (self._old or unknown)

    def _forget(self, names: list[_Name]) -> None:
        """Give up those of `names` that are not open any more."""
        for name in [name for name in names if not name.is_open]:
            names.remove(name)
            del self._by_name[name.name.encode()]
            self._segment.unlink(name.name)

    def prune(self, keep: Collection[int]) -> None:
        """Give up names that are not needed: all of workers not to `keep`, unless they are open."""
        if self._inotify is not None:
            self._read(self._inotify)
        for instance_id, worker in list(self._workers.items()):
            kept = [
                n for n in worker.names if n.is_open or (not n.was_opened and instance_id in keep)
            ]
            for name in worker.names:
                if name not in kept:
                    del self._by_name[name.name.encode()]
                    self._segment.unlink(name.name)
            worker.names = kept
            if not (kept or instance_id in keep):
                del self._workers[instance_id]

    def close(self) -> None:
        if self._inotify is not None:
            os.close(self._inotify)
            self._inotify = None

    def _read(self, inotify: int) -> None:
        for _ in range(_READS_A_CALL):
            try:
                events = os.read(inotify, _READ_BYTES)
            except BlockingIOError:
                self._behind = False
                return
            self._count(events)
        self._behind = True

    def _count(self, events: bytes) -> None:
        at = 0
        while at < len(events):
            _, mask, _, length = _EVENT.unpack_from(events, at)
            at += _EVENT.size + length
            if mask & _IN_Q_OVERFLOW:
                log.warning("the inotify queue of %s has overflowed: events are lost", SHM_DIR)
                self._unknown = True
                for worker in self._workers.values():
                    worker.unknown = True
            name = self._by_name.get(events[at - length : at].rstrip(b"\0"))
            if name is not None:
                name.was_opened = True
                name.is_open = bool(mask & _IN_OPEN)


def _number(name: str) -> int:
    number = name.rpartition("@")[2]
    return int(number) if number.isascii() and number.isdigit() else 0


def watch_shared_memory() -> int | None:
    """A descriptor that tells of files in /dev/shm being opened and closed; None if none is had."""
    inotify = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if inotify >= 0:
        if _libc.inotify_add_watch(inotify, bytes(SHM_DIR), _IN_OPEN | _IN_CLOSE_WRITE) >= 0:
            return int(inotify)
        os.close(inotify)
    reason = os.strerror(ctypes.get_errno())
    log.warning("%s cannot be watched (%s): slots of lost workers stay taken", SHM_DIR, reason)
    return None
