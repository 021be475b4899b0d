"""The directories of L2, tried with a page of bytes, and the libraries that read them."""

import ctypes
import errno
import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sidecar.commands.doctor.finding import Finding, ok, problem, warning
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.commands.output import amount
from sidecar.tiers.adapters.fs import DirectorySettings
from sidecar.tiers.adapters.nixl_store import NixlSettings

_PAGE = 4096
_SETUP_IO_URING = 425  # of the system call, on every architecture
_PARAMS_BYTES = 120  # struct io_uring_params
_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs", "devtmpfs")

# Of NIXL for CUDA 12 and for CUDA 13.
_CUFILE, _RUNTIMES = "libcufile.so.0", ("libcudart.so.12", "libcudart.so.13")


class NoDirect(Exception):
    """A file system that opens no file with O_DIRECT."""


class ProbeFailed(Exception):
    """A page could not be written and read back; the text is the reason."""


def check(around: Surroundings, mounts: Path = Path("/proc/mounts")) -> Iterator[Finding]:
    """Each directory of each adapter; io_uring, and GDS's libraries if GPUs are to use them."""
    for spec in around.config.l2_adapter:
        settings = spec.settings
        if isinstance(settings, DirectorySettings) and settings.directory:
            yield from directory(settings, mounts)
    yield io_uring(around)
    if any(spec.settings.gpu_mover for spec in around.config.l2_adapter):
        yield gds_libraries()


def directory(settings: DirectorySettings, mounts: Path) -> Iterator[Finding]:
    """One directory; where this user may not even look, that is all that can be said."""
    path = Path(settings.directory)
    try:
        written = writable(path, settings.direct)
        yield written
        if written.level != "problem" and not settings.shared:
            yield lockable(path)
        yield room(path, settings)
        yield on_a_disk(path, mounts)
    except OSError as error:
        yield _unusable(path, str(error.strerror))


def writable(directory: Path, direct: bool) -> Finding:
    """Write a page there and read it back, past the page cache if the adapter would."""
    name = f"L2 {directory}"
    try:
        try:
            _probe(_existing(directory), direct)
        except NoDirect:
            _probe(_existing(directory), False)
            return warning(
                name,
                "no O_DIRECT here",
                "all I/O goes through the page cache, at several times the CPU",
                'take another file system, or "use_odirect": false ("use_direct_io" for NIXL) to '
                "say that it is meant",
            )
    except ProbeFailed as error:
        return _unusable(directory, str(error))
    return ok(name, "a page written and read back" + (" with O_DIRECT" if direct else ""))


def lockable(directory: Path) -> Finding:
    """Whether a server can keep others out, as it does with a directory of its own."""
    name = f"L2 {directory}"
    try:
        with _new_file(_existing(directory), 0) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return problem(
            name,
            f"no locks here: {error.strerror}",
            "the server refuses to start: it locks the directory, so that no other one uses it",
            'mount it with locks (Lustre: -o flock), or "shared": true, which takes none',
        )
    return ok(name, "locks work")


def room(directory: Path, settings: DirectorySettings) -> Finding:
    """Whether the file system can hold what the adapter may keep, and the rest that stays free."""
    name = f"L2 {directory}"
    found = os.statvfs(_existing(directory))
    total, free = found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    wanted = (settings.capacity_bytes or 0) + settings.floor_bytes
    if free < settings.floor_bytes:
        return problem(
            name,
            f"{amount(free)} free",
            f"min_free_gb keeps {amount(settings.floor_bytes)} free, so nothing is stored",
            "make room, or lower min_free_gb",
        )
    if wanted > total:
        return warning(
            name,
            f"the file system has {amount(total)}",
            f"max_capacity_gb and min_free_gb are {amount(wanted)} together: the disk fills first",
            "lower max_capacity_gb",
        )
    return ok(name, f"{amount(free)} free of {amount(total)}")


def on_a_disk(directory: Path, mounts: Path) -> Finding:
    """A directory in memory is no tier below memory."""
    name, kind = f"L2 {directory}", _file_system(_existing(directory), mounts)
    if kind not in _MEMORY_FILE_SYSTEMS:
        return ok(name, f"on {kind}")
    return warning(
        name,
        f"on {kind}, which is memory",
        "it costs what a larger L1 would cost, and is gone after a reboot",
        "take a disk for base_path, or a larger L1",
    )


def io_uring(around: Surroundings) -> Finding:
    """Whether this process may use it, and whether anything wants to."""
    settings = [spec.settings for spec in around.config.l2_adapter]
    wanting = [s for s in settings if isinstance(s, NixlSettings) and s.wants_uring]
    code = _try_io_uring()
    if not code:
        return ok("io_uring", "works")
    what = f"refused: {os.strerror(code)}"
    if not wanting:
        return ok("io_uring", f"{what}; nothing in this configuration uses it")
    do = "allow it: sysctl kernel.io_uring_disabled=0, and a seccomp profile with io_uring_setup"
    if not wanting[0].may_fall_back:
        return problem("io_uring", what, f'{wanting[0].type} has "fallback": false', do)
    return warning("io_uring", what, f"{wanting[0].type} takes libaio instead", do)


def gds_libraries() -> Finding:
    """Whether NIXL's GDS finds what it is linked with; loading it touches no GPU."""
    runtimes = [library for library in _RUNTIMES if _can_be_loaded(library)]
    if not (runtimes and _can_be_loaded(_CUFILE)):
        return warning(
            "GDS",
            f"the loader does not find {_CUFILE}, and one of {', '.join(_RUNTIMES)}",
            "GPUs cannot move files themselves: everything goes through the L1",
            "install a CUDA toolkit with cuFile, or put the folders of nvidia-cufile and "
            "nvidia-cuda-runtime into LD_LIBRARY_PATH",
        )
    return ok("GDS", f"{_CUFILE} and {runtimes[0]} found")


def _can_be_loaded(library: str) -> bool:
    with suppress(OSError):
        ctypes.CDLL(library)
        return True
    return False


def _existing(directory: Path) -> Path:
    """The directory, or the nearest above it that there is: the server makes the rest."""
    while not directory.exists():
        directory = directory.parent
    return directory


def _probe(directory: Path, direct: bool) -> None:
    """Raises NoDirect or ProbeFailed. Leaves nothing behind."""
    try:
        with _new_file(directory, os.O_DIRECT if direct else 0) as fd:
            _write_and_read(fd)
    except OSError as error:
        raise ProbeFailed(str(error.strerror)) from error


@contextmanager
def _new_file(directory: Path, flags: int) -> Iterator[int]:
    """A file that is there for the `with` block. Raises NoDirect or OSError."""
    path = directory / f".kv-sidecar-doctor-{secrets.token_hex(8)}"
    flags |= os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        try:
            fd = os.open(path, flags, 0o600)
        except OSError as error:
            if flags & os.O_DIRECT and error.errno == errno.EINVAL:
                raise NoDirect from error
            raise
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        with suppress(OSError):
            path.unlink()


def _write_and_read(fd: int) -> None:
    written, read = mmap.mmap(-1, _PAGE), mmap.mmap(-1, _PAGE)
    written.write(secrets.token_bytes(_PAGE))
    os.pwrite(fd, written, 0)
    os.preadv(fd, [read], 0)
    if written[:] != read[:]:
        raise ProbeFailed("a page came back with other bytes")


def _unusable(directory: Path, reason: str) -> Finding:
    do = "make sure that this user may write there, and that the disk is not full or broken"
    return problem(f"L2 {directory}", reason, "the server refuses to start", do)


def _file_system(directory: Path, mounts: Path) -> str:
    """The type of the mount that a path lies in, of /proc/mounts."""
    path, best, kind = directory.resolve(), Path("/"), "unknown"
    for line in mounts.read_text().splitlines():
        _, where, found, *_ = line.split()
        if path.is_relative_to(where) and Path(where).is_relative_to(best):
            best, kind = Path(where), found
    return kind


def _try_io_uring() -> int:
    """0, or the errno with which the kernel refuses a queue."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd: int = libc.syscall(_SETUP_IO_URING, 1, ctypes.create_string_buffer(_PARAMS_BYTES))
    if fd < 0:
        return ctypes.get_errno()
    os.close(fd)
    return 0
