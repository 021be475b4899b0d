"""All that is installed into .venv finds its shared libraries on a bare Debian.

A machine that people work on has some by chance: they came with something else. So every object is
resolved by the loader of a Debian that has nothing but what scripts/install.py brings.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.images.conftest import TIMEOUT
from tests.support.server import REPO

ENVIRONMENT = REPO / ".venv"
# For machines with a GPU and its driver.
LEFT_OUT = ENVIRONMENT / "gpu"
_BRING = """
import sys
sys.path[:0] = ["/source/scripts", "/source"]
from installer import groups, system
libraries = {name for group in groups.GROUPS.values() for name in group.needs if ".so." in name}
system.bring(sorted(libraries))
assert not system.missing(libraries)
"""
# The mount ends with this process.
_RESOLVE = """
mount --bind "$2" "$1/environment" && exec chroot "$1" sh -c '
    cd /environment && while read -r object; do
        echo "object $object"
        LD_TRACE_LOADED_OBJECTS=1 /lib64/ld-linux-x86-64.so.2 "./$object" 2>&1 ||
            echo "exit code $? => not found"
    done < /objects'
"""
_INTERPRETER = 3  # the type of a program header: who loads this


class Excuse(NamedTuple):
    """`libraries` that some of the `objects` do not find, and why nobody misses them."""

    objects: str
    libraries: set[str]
    why: str


class Unresolved(NamedTuple):
    object: str
    library: str


_DRIVER, _RUNTIME, _TORCH = "libcuda.so.1", "libcudart.so.12", "libtorch_cuda.so"
EXCUSES = (
    Excuse("*/libplugin_GDS.so", {_RUNTIME}, "NIXL on a GPU; docs/gpu.md names its libraries"),
    Excuse("*/libplugin_GDS_MT.so", {_RUNTIME}, "the same"),
    Excuse(
        "*/libplugin_GPUNETIO.so",
        {_DRIVER, _RUNTIME, "libdoca_common.so.2", "libdoca_gpunetio.so.2", "libdoca_verbs.so.2"},
        "a backend of NIXL that is not offered: NVIDIA DOCA",
    ),
    Excuse("*/libtelemetry_exporter_doca.so", {"libdoca_telemetry_exporter.so.2"}, "the same"),
    Excuse(
        "*/libplugin_INFINIA.so",
        {"libred_async.so", "libred_client.so.2"},
        "a backend of NIXL that is not offered: DDN Infinia",
    ),
    Excuse(
        "*/libplugin_LIBFABRIC.so",
        {_DRIVER, _RUNTIME, "libfabric.so.1", "libhwloc.so.15"},
        "a backend of NIXL that is not offered: libfabric",
    ),
    Excuse("*/ucx/libucm_cuda.so.*", {_DRIVER, _RUNTIME}, "UCX on a GPU"),
    Excuse("*/ucx/libuct_cuda.so.*", {_DRIVER, "libnvidia-ml.so.1"}, "UCX on a GPU"),
    Excuse("*/ucx/libuct_ib_mlx5_gda.so.*", {_DRIVER, "libnvidia-ml.so.1"}, "UCX on a GPU"),
    Excuse(
        "*/ucx/libuct_ib_mlx5_gdp.so.*",
        {_DRIVER, "libnvidia-ml.so.1", "libflexio.so"},
        "UCX on a GPU with a network card of NVIDIA's",
    ),
    Excuse("*/ucx/libuct_ib_efa.so.*", {"libefa.so.1"}, "UCX on a network card of AWS's"),
    Excuse("*/ucx/libucx_perftest_cuda.so.*", {_RUNTIME}, "UCX's benchmark on a GPU"),
    Excuse(
        "*/ucx/libucx_perftest_mad.so.*",
        {"libibmad.so.5", "libibumad.so.3"},
        "UCX's benchmark on InfiniBand",
    ),
    Excuse("*/nixl_ep_cpp_*", {_DRIVER, _RUNTIME, _TORCH}, "NIXL's expert parallelism, on GPUs"),
    Excuse(
        "*/lmcache/cuda_ops.*", {"libc10_cuda.so", "libcudart.so.13", _TORCH}, "lmcache on a GPU"
    ),
    Excuse(
        "*/nvidia/cufile/lib/libcufile_rdma.so.*",
        {"libmlx5.so.1", "librdmacm.so.1"},
        "cuFile on remote disks; the tests have local ones",
    ),
    Excuse("*/numba/*/omppool.*", {"libgomp.so.1.0.0"}, "numba takes another pool of threads"),
    Excuse("*/numba/*/tbbpool.*", {"libtbb.so.12"}, "numba takes another pool of threads"),
)
# With these the environment is the one that the excuses are for.
GROUPS = ("base", "engine", "storage", "browser", "dynamo")


def absent() -> str:
    if os.uname().machine != "x86_64":
        return "the excuses are those of x86_64"
    groups = [name for name in GROUPS if not (ENVIRONMENT / f".{name}.stamp").exists()]
    return f"needs `scripts/install.py {' '.join(groups)}`" if groups else ""


@pytest.mark.skipif(bool(absent()), reason=absent())
def test_every_object_finds_its_libraries(installed_debian: Path) -> None:
    objects = sorted(dynamic_objects(ENVIRONMENT))
    assert objects
    found = resolve(installed_debian, objects)
    unexcused = {each for each in found if not any(excuses(entry, each) for entry in EXCUSES)}
    assert not unexcused, "\n".join(map(str, sorted(unexcused)))
    for entry in EXCUSES:
        needed = {each.library for each in found if excuses(entry, each)}
        assert entry.libraries == needed, f"excused and found: {entry}"


@pytest.fixture(scope="module")
def installed_debian(bare_debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With the libraries that the installer brings there."""
    root = tmp_path_factory.mktemp("installed") / "root"
    run("cp", "-a", bare_debian, root)
    shutil.copytree(REPO / "scripts", root / "source" / "scripts")
    (root / "source" / "sidecar").mkdir()
    (root / "source" / "connectors").mkdir()
    shutil.copy(REPO / "connectors" / "__init__.py", root / "source" / "connectors")
    for name in ("__init__.py", "shared_libraries.py"):
        shutil.copy(REPO / "sidecar" / name, root / "source" / "sidecar")
    for folder in ("source/.venv", "environment"):
        (root / folder).mkdir()
    run("chroot", root, "python3", "-c", _BRING)
    yield root
    shutil.rmtree(root)


def resolve(root: Path, objects: list[str]) -> set[Unresolved]:
    """What the loader in `root` does not find, and no package has loaded before.

    A package may load its own libraries before what needs them; the loader then takes those.
    """
    (root / "objects").write_text("".join(f"{name}\n" for name in objects))
    traced = run("unshare", "--mount", "sh", "-c", _RESOLVE, "sh", root, ENVIRONMENT)
    own = {os.path.basename(name) for name in objects}
    found = set()
    for line in traced.splitlines():
        if line.startswith("object "):
            current = line.removeprefix("object ")
        elif "not found" in line:
            library = line.partition("=>")[0].strip()
            found.add(Unresolved(current, library))
    return {each for each in found if each.library not in own}


def dynamic_objects(environment: Path) -> Iterator[str]:
    """Shared objects and programs that a loader loads, as paths in `environment`."""
    for folder, folders, names in os.walk(environment):
        folders[:] = [name for name in folders if Path(folder, name) != LEFT_OUT]
        for name in names:
            path = Path(folder, name)
            library = re.search(r"\.so(\.|$)", name) is not None
            if (library or os.access(path, os.X_OK)) and is_dynamic(path, library):
                yield str(path.relative_to(environment))


def is_dynamic(path: Path, library: bool) -> bool:
    """An ELF file of 64 bits; a program counts if it names its loader, else it is static."""
    if path.is_symlink():
        return False
    with path.open("rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            return False
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        file.seek(offset)
        headers = file.read(size * count)
    types = [struct.unpack_from("<I", headers, size * index)[0] for index in range(count)]
    return library or _INTERPRETER in types


def excuses(entry: Excuse, found: Unresolved) -> bool:
    return fnmatch(found.object, entry.objects) and found.library in entry.libraries


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout
