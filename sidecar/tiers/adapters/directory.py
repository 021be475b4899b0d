"""A directory as a backend: one file per record, in place only when it is complete.

<base>/objects[-<epoch>]/<space>/<first hash byte>/<hash>.kv    the records
<base>/epoch                                     the one that counts, if there was a clear
<base>/.tmp/                                          being written
<base>/quarantine/                                    bad ones, for inspection
<base>/.kv-sidecar.lock                               held by the one server that owns this
"""

import errno
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Literal

from sidecar.tiers.adapters.file_calls import (
    entries,
    in_directory,
    in_threads,
    open_regular,
    read_text,
    size_of,
    sync_directory,
    write_text,
)
from sidecar.tiers.adapters.file_io import FileIO, os_errors
from sidecar.tiers.adapters.place import Place
from sidecar.tiers.adapters.quarantine import Quarantine
from sidecar.tiers.adapters.temp_files import TempFiles
from sidecar.tiers.base import (
    AdapterUnusable,
    Bytes,
    Corrupt,
    Found,
    Missing,
    Relocated,
    TierError,
)
from sidecar.tiers.names import ObjectName, is_tag, parse_path

log = logging.getLogger(__name__)

Sync = Literal["none", "data", "full"]

_SUFFIX = ".kv"
_SCANNERS = 8


class Files:
    """The adapter over `base`. `floor` bytes of the file system stay free.

    `sync` says what survives a power failure (a crash of the server alone loses nothing that
    was stored): "none" leaves it to the kernel, "data" makes the bytes durable before they get
    their name, "full" the name too. What a power failure tears is found by size and checksum.
    """

    def __init__(
        self,
        base: str,
        mover: FileIO,
        *,
        temp: str = ".tmp",
        direct: bool = True,
        sync: Sync = "none",
        floor: int = 0,
        shared: bool = False,
    ) -> None:
        self.shared = shared
        self._base = base
        self._mark = f"{base}/epoch"
        self._temp = TempFiles(f"{base}/{temp}", shared)
        self._quarantine = Quarantine(f"{base}/quarantine")
        self._io = mover
        self._direct = self._wanted_direct = os.O_DIRECT if direct else 0
        self._sync_policy = sync
        self._floor = floor
        folders = (self._temp.directory, self._quarantine.directory)
        self._place = Place(base, folders, shared)

    def open(self, arena: Bytes) -> None:
        try:
            with os_errors():
                self._place.take()
                self._temp.remove_leftovers()
                self._open_io(arena)
        except AdapterUnusable:
            self._place.give_up()
            raise
        except TierError as error:
            self._place.give_up()
            raise AdapterUnusable(f"{self._base} cannot be used: {error}") from error

    def close(self) -> None:
        self._io.close()
        self._place.give_up()

    def store(self, name: ObjectName, record: Bytes) -> None:
        self._check_place()
        temp = self._temp.new_path()
        with self._temp.or_removed(temp):
            self._write_temp(temp, record)
            self._publish(temp, name)

    def load(self, name: ObjectName, record: Bytes) -> None:
        with self._reading(name, record.nbytes, self._direct) as file:
            self._io.read(file.fileno(), record)

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        with os_errors():
            sizes = [size_of(self._file(name)) for name in names]
        self._check_place()  # else it was another place that has them, and may have cleared them
        return sizes

    def delete(self, names: Sequence[ObjectName]) -> None:
        """And folders that are empty then; a store that is about to use one makes it again."""
        self._check_place()
        with os_errors():
            for name in names:
                with suppress(FileNotFoundError):
                    os.unlink(self._file(name))
            for folder in {os.path.dirname(self._file(name)) for name in names}:
                with suppress(OSError):
                    for path in (folder, *map(str, Path(folder).parents[:2])):
                        os.rmdir(path)

    def read_mark(self) -> str | None:
        """An earlier version wrote none, and had no records of epochs either."""
        with os_errors():
            mark = read_text(self._mark)
            if mark is None and all(not tag for tag, _ in self._epochs()):
                mark = ""
        self._check_place()
        return mark

    def write_mark(self, mark: str) -> None:
        self._check_place()
        temp = self._temp.new_path()
        with self._temp.or_removed(temp):
            in_directory(self._temp.directory, lambda: write_text(temp, mark))
            os.replace(temp, self._mark)
            sync_directory(self._base)

    def scan(self) -> Iterator[list[Found]]:
        """Several folders at a time: a cold disk answers one question about as soon as eight."""
        self._check_place()
        with os_errors():
            yield from in_threads(self._scan_folder, self._folders(), _SCANNERS)

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        self._check_place()
        with os_errors():
            return self._quarantine.take(self._file(name), f"{name.hash.hex()}.{reason}")

    def room(self) -> int:
        self._check_place()
        with os_errors():
            free = os.statvfs(self._base)
            return free.f_bavail * free.f_frsize - self._floor

    @contextmanager
    def _reading(self, name: ObjectName, size: int, flags: int) -> Iterator[io.FileIO]:
        with os_errors():
            try:
                fd = open_regular(self._file(name), os.O_RDONLY | flags)
            except FileNotFoundError:
                self._check_place()
                raise Missing() from None
            with io.FileIO(fd) as file:
                self._check_place()
                found = os.fstat(fd).st_size
                if found != size:
                    raise Corrupt("length", f"{found} bytes, not {size}")
                yield file
                # The order of use, for the next start. Not worth failing a load for: it works
                # on a file system that has become read-only.
                with suppress(OSError):
                    os.utime(fd)

    def _write_temp(self, temp: str, record: Bytes) -> None:
        with self._temp.create(temp, self._direct) as file:
            self._io.write(file.fileno(), record)
            self._sync(file.fileno())

    def _sync(self, fd: int) -> None:
        if self._sync_policy == "data":
            os.fdatasync(fd)
        elif self._sync_policy == "full":
            os.fsync(fd)

    def _publish(self, temp: str, name: ObjectName) -> None:
        file = self._file(name)
        folder = os.path.dirname(file)
        try:
            in_directory(folder, lambda: os.replace(temp, file))
        except IsADirectoryError:  # whoever made it: it is no record
            self.set_aside(name, "directory")
            os.replace(temp, file)
        if self._sync_policy == "full":
            # Its parents may be new, too.
            for directory in (folder, *map(str, Path(folder).parents[:3])):
                sync_directory(directory)

    def _check_place(self) -> None:
        """Raises Relocated once if another place has come under the path, TierError if it cannot be
        used.
        """
        try:
            self._place.check()
        except Relocated:
            self._direct = self._wanted_direct
            try:
                self._try_file()
            except OSError as error:  # any other comes again when it is written to
                if error.errno == errno.EINVAL:
                    self._direct = 0
            raise

    def _open_io(self, arena: Bytes) -> None:
        try:
            self._try_io(arena)
        except TierError as error:
            if not self._direct or error.cause != "EINVAL":
                raise
            log.warning(
                "%s: its file system has no O_DIRECT (EINVAL): I/O goes through the page cache, "
                "at several times the CPU",
                self._base,
            )
            self._direct = 0
            self._try_io(arena)

    def _try_io(self, arena: Bytes) -> None:
        with os_errors():
            self._try_file(lambda fd: self._io.open(arena, fd))

    def _try_file(self, use: Callable[[int], None] = lambda fd: None) -> None:
        """Make an empty file as those to come, and remove it again."""
        temp = self._temp.new_path()
        try:
            with self._temp.create(temp, self._direct) as file:
                use(file.fileno())
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temp)

    def _file(self, name: ObjectName) -> str:
        digits = name.hash.hex()
        objects = f"objects-{name.epoch}" if name.epoch else "objects"
        return f"{self._base}/{objects}/{name.space}/{digits[:2]}/{digits}{_SUFFIX}"

    def _epochs(self) -> Iterator[tuple[str, str]]:
        """The tag of each epoch that there are records of, and its folder."""
        for entry in entries(self._base):
            kind, _, tag = entry.name.partition("-")
            if kind == "objects" and is_tag(tag):
                yield tag, entry.path

    def _folders(self) -> Iterator[tuple[str, str]]:
        """Each folder of records: its epoch with its space, and its path."""
        for tag, objects in self._epochs():
            for space in entries(objects):
                for folder in entries(space.path):
                    yield f"{tag}/{space.name}" if tag else space.name, folder.path

    def _scan_folder(self, where: tuple[str, str]) -> list[Found]:
        space, path = where
        found = []
        for entry in entries(path):
            name = parse_path(f"{space}/{entry.name.removesuffix(_SUFFIX)}")
            if name is None or self._file(name) != entry.path:
                continue  # not ours
            with suppress(FileNotFoundError):
                stat = entry.stat(follow_symlinks=False)
                if S_ISREG(stat.st_mode):
                    found.append(Found(name, stat.st_size, stat.st_mtime))
        return found
