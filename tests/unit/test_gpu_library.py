"""What the child makes of a driver and its GPU, over the stub of libcuda."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.engines.cuda import library
from sidecar.engines.cuda.driver import DriverError, DriverMissing, plain_uuid
from tests.support.fake_gpu import UUID
from tests.support.server import REPO
from tests.support.stub_libraries import stub_driver

OPEN = """
import sys
from sidecar.engines.cuda.libcuda import LibCuda
driver = LibCuda()
about = driver.open(sys.argv[1])
print(about.has_batches, driver.kernel_blocks, driver.has_kernels, about.uuid)
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return stub_driver(tmp_path_factory.mktemp("stub"))


def opened(stub: dict[str, str], batches: str, *settings: str) -> list[str]:
    """Whether it has batches, the largest grid, whether it has kernels, the UUID; or the error."""
    Path(stub["LIBCUDA_STUB_FAULTS"]).write_text("\n".join(settings))
    environment = {**os.environ, **stub, "CUDA_VISIBLE_DEVICES": UUID}
    result = subprocess.run(
        [sys.executable, "-c", OPEN, batches],
        cwd=REPO, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return (result.stdout or result.stderr.splitlines()[-1]).split()


@pytest.mark.parametrize(
    ("setting", "auto"),
    [
        ("version 12070", "False"),
        ("version 12080", "True"),
        ("version 12090", "True"),
        ("version 13000", "False"),
        ("version 13010", "True"),
        ("capability 8", "True"),
        ("capability 10", "False"),
        ("capability 12", "False"),
    ],
)
def test_batches_are_off_where_they_are_known_to_crash(
    stub: dict[str, str], setting: str, auto: str
) -> None:
    assert opened(stub, "auto", setting)[0] == auto
    assert opened(stub, "false", setting)[0] == "False"
    assert opened(stub, "true", setting)[0] == str(setting != "version 12070")


def test_the_kernel_takes_all_multiprocessors_but_under_mps(stub: dict[str, str]) -> None:
    """Elsewhere inference has none while it runs, so it should not run for long."""
    assert opened(stub, "auto")[1] == "132"
    assert opened(stub, "auto", "mps 1")[1] == "6"


def test_an_error_after_which_all_calls_fail_is_not_one_of_the_kernels(
    stub: dict[str, str],
) -> None:
    assert opened(stub, "auto", "cuModuleLoadData 500")[2] == "False"
    for code in (214, 700, 719):
        assert opened(stub, "auto", f"cuModuleLoadData {code}")[-1] == f"({code})"


def test_uuids_are_the_same_however_they_are_written(stub: dict[str, str]) -> None:
    assert opened(stub, "auto")[3] == plain_uuid(UUID)
    assert plain_uuid("MIG-0A-b") == plain_uuid("0a-B") == "0ab"


@pytest.mark.parametrize(
    ("code", "harmless"),
    [
        (1, 1),
        (2, 1),
        (500, 1),
        (712, 1),
        (713, 1),
        (800, 1),
        (801, 1),
        (700, 0),
        (719, 0),
        (999, 0),
    ],
)
def test_codes_that_cost_the_process(code: int, harmless: int) -> None:
    assert DriverError("a call", code).is_fatal is not bool(harmless)


def test_a_driver_where_no_loader_looks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GKE, whose device plugin mounts it there."""
    there, not_there = tmp_path / "there", tmp_path / "not there"
    there.mkdir()
    (there / "libcuda.so.1").touch()
    monkeypatch.setattr(library, "OTHER_PLACES", (str(not_there), str(there)))

    def none(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(library.ctypes, "CDLL", none)
    with pytest.raises(DriverMissing, match=f"it is in {there}: add that to LD_LIBRARY_PATH"):
        library.Library()
    (there / "libcuda.so.1").unlink()
    with pytest.raises(DriverMissing, match=r"cannot open shared object file$"):
        library.Library()
