"""The directory under L2: what fio makes of it, what is in it, what the kernel has cached of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.client import CHUNK_TOKENS, LARGE
from bench.common import BenchError
from bench.figures import FIO_READ, FIO_WRITE, Samples

NEEDED_BYTES = 24 << 30
RECORD_BYTES = LARGE.nbytes(CHUNK_TOKENS) + 4096  # as ours: a page of header before the object
_SUFFIXES = (".kv", ".data")  # complete records of ours and of the peer's
_FILES = 32
# As many in flight as we have threads, or as one request of 2048 tokens has objects.
_ENGINES = {"psync": 1, "libaio": 2}
_READERS, _WRITERS = 4, 2


def check_room(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < NEEDED_BYTES:
        raise BenchError(
            f"{directory} has {free / 2**30:.0f} GiB free, the L2 cases need "
            f"{NEEDED_BYTES >> 30}: name another one with --l2-dir"
        )


def records(directory: Path) -> Iterator[Path]:
    """The complete objects of either server, one file each."""
    for folder, _, names in os.walk(directory):
        for name in names:
            if name.endswith(_SUFFIXES):
                yield Path(folder, name)


def remove_records(directory: Path) -> None:
    for record in records(directory):
        record.unlink(missing_ok=True)
    os.sync()


def forget_pages(directory: Path) -> None:
    """Writes everything to the disk and drops it from the page cache: L2 outlives both."""
    for folder, _, names in os.walk(directory):
        for name in names:
            fd = os.open(Path(folder, name), os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)


def fio(directory: Path) -> Samples:
    """GB/s of whole files as large as our records, by the faster engine; {} without fio."""
    if shutil.which("fio") is None:
        return {}
    folder = directory / "fio"
    folder.mkdir()
    try:
        writes = []
        for engine in _ENGINES:
            # New files, as both servers write them: overwriting is up to twice as fast.
            writes.append(_fio(folder, "write", engine, _WRITERS))
            _remove(folder)
        _fio(folder, "write", "psync", _READERS)
        reads = [_fio(folder, "read", engine, _READERS) for engine in _ENGINES]
    finally:
        shutil.rmtree(folder)
    return {FIO_READ: [max(reads)], FIO_WRITE: [max(writes)]}


def _fio(folder: Path, direction: str, engine: str, jobs: int) -> float:
    """Each job has files of its own and moves each of them with one call.

    Reads go on for a while: fio touches its buffers first in the measured time, we do not.
    """
    options = {
        "name": "bench",
        "directory": str(folder),
        "filename_format": "$jobnum.$filenum",
        "rw": direction,
        "ioengine": engine,
        "iodepth": _ENGINES[engine],
        "numjobs": jobs,
        "nrfiles": _FILES // jobs,
        "filesize": RECORD_BYTES,
        "bs": RECORD_BYTES,
        "file_service_type": "sequential",
        "direct": 1,
        **({"time_based": 1, "ramp_time": "400ms", "runtime": 1} if direction == "read" else {}),
        "fallocate": "none",
        "create_on_open": 1,
        "group_reporting": 1,
        "output-format": "json",
    }
    command = ["fio", *(f"--{key}={value}" for key, value in options.items())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"fio: {done.stderr.strip() or done.stdout.strip()}")
    report: dict[str, Any] = json.loads(done.stdout)
    return float(report["jobs"][0][direction]["bw_bytes"]) / 1e9


def _remove(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def about(directory: Path) -> dict[str, Any]:
    """What the figures of L2 depend on besides the machine."""
    version = None
    if shutil.which("fio") is not None:
        version = subprocess.run(["fio", "--version"], capture_output=True, text=True).stdout
    return {
        "directory": str(directory),
        "file_system": _file_system(directory.resolve()),
        "fio": version and version.strip(),
    }


def _file_system(directory: Path) -> str | None:
    """Its type, by the longest mount point above the directory."""
    best, kind = -1, None
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, name = line.split()[:3]
        if directory.is_relative_to(mount) and len(mount) > best:
            best, kind = len(mount), name
    return kind
