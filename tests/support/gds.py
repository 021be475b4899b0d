"""NIXL's GDS plugins and NVIDIA's libcufile for real, on a machine without a GPU.

Below them are stand-ins for the driver and the runtime library, whose device memory is the
process's own. libcufile reads and writes files through the kernel then, its compatibility mode.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fake_gpu import UUID
from tests.support.stub_libraries import SUPPORT, build_libcuda, compile

_SOURCES = SUPPORT / "cufile"
_CUFILE = "nvidia.cufile"
# Only with a type of file system from udev does libcufile accept a file of a block device. In a
# mount namespace of its own the process sees a /run where that stands.
_WITH_UDEV = """
mount -t tmpfs none /run && mkdir -p /run/udev/data || exit
printf 'E:ID_FS_USAGE=filesystem\\nE:ID_FS_TYPE=%s\\n' "$1" >/run/udev/data/"$2"
shift 2
exec "$@"
"""


@dataclass(frozen=True)
class Gds:
    """A command runs with `environment`, after `prefix`, on files in `directory`."""

    environment: dict[str, str]
    prefix: list[str]
    directory: Path


@contextmanager
def gds_in(folder: Path) -> Iterator[Gds]:
    """Its libraries and the log of libcufile are in `folder`. Skips where it cannot work."""
    library = _cufile()
    _build(folder, library / "libcufile.so.0")
    settings = folder / "cufile.json"
    settings.write_text(json.dumps(_settings(folder)))
    environment = {
        "LD_LIBRARY_PATH": f"{folder}:{library}",
        "LD_PRELOAD": str(folder / "proc_modules.so"),
        "CUFILE_ENV_PATH_JSON": str(settings),
        "CUDA_VISIBLE_DEVICES": UUID,
    }
    # Not in /tmp: that may be memory.
    with tempfile.TemporaryDirectory(prefix="kv-test-", dir="/var/tmp") as directory:
        yield Gds(environment, _prefix(Path(directory)), Path(directory))


def _cufile() -> Path:
    for module, package in (("nixl", "nixl"), (_CUFILE, "nvidia-cufile-cu12")):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            pytest.skip(f"needs {package}")
    assert found is not None and found.submodule_search_locations is not None
    return Path(next(iter(found.submodule_search_locations))) / "lib"


def _build(folder: Path, cufile: Path) -> None:
    # libcufile does not start without every function of the driver that it looks up by name.
    names = {name.decode() for name in re.findall(rb"\0(cu[A-Z]\w+)(?=\0)", cufile.read_bytes())}
    unused = folder / "unused.cpp"
    unused.write_text(
        "".join(
            f'extern "C" __attribute__((weak)) int {name}() {{ return 0; }}\n'
            for name in sorted(names)
            if not name.startswith("cuFile")
        )
    )
    build_libcuda(folder, _SOURCES / "libcuda.cpp", unused)
    compile(
        folder / "libcudart.so.12",
        _SOURCES / "libcudart.cpp",
        f"-Wl,--version-script={_SOURCES / 'libcudart.map'}",
    )
    compile(folder / "proc_modules.so", "-xc", _SOURCES / "proc_modules.c")


def _settings(folder: Path) -> dict[str, object]:
    return {
        "logging": {"dir": str(folder), "level": "ERROR"},
        "properties": {
            "allow_compat_mode": True,
            "force_compat_mode": True,
            # As in NVIDIA's own file. Without it the most is 1 MiB, and a batch of NIXL's GDS,
            # which asks for up to 16, is refused.
            "max_direct_io_size_kb": 16384,
        },
    }


def _prefix(directory: Path) -> list[str]:
    number = os.stat(directory).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    if not Path("/sys/dev/block", device).exists():
        pytest.skip(f"{directory} is not on a block device: libcufile refuses its files")
    known = Path("/run/udev/data", f"b{device}")
    if known.exists() and "ID_FS_TYPE" in known.read_text():
        return []
    find = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(directory)]
    kind = subprocess.check_output(find, text=True)
    return _in_namespace(kind.strip(), device)


def _in_namespace(kind: str, device: str) -> list[str]:
    prefix = ["unshare", "--mount", "sh", "-c", _WITH_UDEV, "sh", kind, f"b{device}"]
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount namespace for libcufile, which needs udev's data: {error}")
    return prefix
