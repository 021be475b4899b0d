"""NIXL under the same contract: the files of `fs`, and objects that it can only put and get."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from sidecar.tiers.adapters.nixl_store import NixlSettings
from sidecar.tiers.base import (
    Adapter,
    AdapterUnusable,
    Bytes,
    Corrupt,
    Missing,
    NoSpace,
    TierError,
)
from tests.support.disks import MIB, files_below, name, settings
from tests.support.server import free_port

try:
    import nixl._api
except ImportError:
    pytest.skip("nixl is not installed", allow_module_level=True)


def nixl_settings(backend: str, params: dict[str, str], **more: Any) -> NixlSettings:
    spec = {"type": "nixl_store", "backend": backend, "backend_params": params, **more}
    return msgspec.convert(spec, NixlSettings, strict=False)


def on_files(base: Path, backend: str = "POSIX", **more: Any) -> NixlSettings:
    params = {"file_path": str(base), **more.pop("params", {})}
    return nixl_settings(backend, params, **more)


@pytest.fixture
def opened(arena: Bytes) -> Iterator[Any]:
    """Opens adapters and closes them at the end."""
    made: list[Adapter] = []

    def open_adapter(wanted: Any) -> Adapter:
        adapter = wanted.build()
        adapter.open(arena)
        made.append(adapter)
        return adapter

    yield open_adapter
    for adapter in made:
        adapter.close()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("sidecar")]


@pytest.mark.parametrize("params", [{}, {"use_aio": "true"}, {"use_direct_io": "false"}])
def test_what_was_stored_comes_back(
    tmp_path: Path,
    arena: Bytes,
    opened: Any,
    params: dict[str, str],
) -> None:
    before = arena.copy()
    adapter = opened(on_files(tmp_path, params=params))
    assert np.array_equal(arena, before)
    adapter.store(name(1), arena[:MIB])
    adapter.load(name(1), arena[MIB : 2 * MIB])
    assert np.array_equal(arena[MIB : 2 * MIB], before[:MIB])
    assert adapter.find([name(1), name(2)]) == [MIB, None]
    with pytest.raises(Missing):
        adapter.load(name(2), arena[:MIB])
    adapter.delete([name(1)])
    assert files_below(tmp_path) == [".kv-sidecar.lock"]


@pytest.mark.parametrize("first", ["fs", "nixl"])
def test_a_directory_changes_hands(
    tmp_path: Path,
    arena: Bytes,
    opened: Any,
    first: str,
) -> None:
    both = [settings(tmp_path), on_files(tmp_path)]
    one, two = both if first == "fs" else reversed(both)
    adapter = opened(one)
    adapter.store(name(1), arena[:MIB])
    with pytest.raises(AdapterUnusable, match="in use"):
        two.build().open(arena)
    adapter.close()
    adapter = opened(two)
    [[found]] = adapter.scan()
    assert (found.name, found.size) == (name(1), MIB)
    adapter.load(name(1), arena[MIB : 2 * MIB])
    assert np.array_equal(arena[:MIB], arena[MIB : 2 * MIB])


def test_a_shorter_file_is_not_loaded(
    tmp_path: Path,
    arena: Bytes,
    opened: Any,
) -> None:
    adapter = opened(on_files(tmp_path))
    adapter.store(name(1), arena[:MIB])
    [file] = (tmp_path / "objects").rglob("*.kv")
    os.truncate(file, 4096)
    with pytest.raises(Corrupt, match="length"):
        adapter.load(name(1), arena[:MIB])


def test_a_full_disk_is_said_to_be_full(
    small_disk: Path,
    arena: Bytes,
    opened: Any,
) -> None:
    adapter = opened(on_files(small_disk, min_free_gb=0))
    adapter.store(name(1), arena[: 2 * MIB])
    with pytest.raises(NoSpace):
        adapter.store(name(2), arena[: 2 * MIB])
    assert not list((small_disk / ".tmp").iterdir())
    adapter.delete([name(1)])
    adapter.store(name(2), arena[: 2 * MIB])
    adapter.load(name(2), arena[4 * MIB : 6 * MIB])
    assert np.array_equal(arena[: 2 * MIB], arena[4 * MIB : 6 * MIB])


def test_an_error_is_told_to_the_one_that_it_befell(
    tmp_path: Path,
    arena: Bytes,
    opened: Any,
) -> None:
    """With one queue for all threads, NIXL gives a failed read's error to another one."""
    adapter = opened(on_files(tmp_path))
    io = adapter._io
    (tmp_path / "good").write_bytes(arena[:MIB].tobytes())
    (tmp_path / "short").write_bytes(bytes(8192))
    flags = os.O_RDONLY | os.O_DIRECT
    good, short = os.open(tmp_path / "good", flags), os.open(tmp_path / "short", flags)
    outcomes: list[tuple[int, bool]] = []

    def read(thread: int) -> None:
        record = arena[(thread + 1) * MIB : (thread + 2) * MIB]
        for n in range(60):
            fd = (good, short)[(n + thread) % 2]
            record[:] = 0
            try:
                io.read(fd, record)
            except TierError:
                outcomes.append((fd, False))
            else:
                outcomes.append((fd, np.array_equal(record, arena[:MIB])))

    threads = [threading.Thread(target=read, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(good)
    os.close(short)
    assert len(outcomes) == 360 and set(outcomes) == {(good, True), (short, False)}


@pytest.mark.parametrize("backend", ["GDS", "GDS_MT"])
def test_the_server_itself_uses_no_gpu(
    tmp_path: Path,
    arena: Bytes,
    opened: Any,
    backend: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """GDS would make a context on every GPU: it is for the GPUs' own processes."""
    settings = on_files(tmp_path, backend)
    with caplog.at_level(logging.WARNING):
        adapter = opened(settings)
    assert not warnings(caplog)
    assert settings.gpu_mover is not None and settings.gpu_mover.backend == backend
    with pytest.raises(ValueError, match=f"fallback false does not go with {backend}"):
        on_files(tmp_path, backend, fallback=False)
    adapter.store(name(1), arena[:4096])
    adapter.load(name(1), arena[4096:8192])
    assert np.array_equal(arena[:4096], arena[4096:8192])


def test_libaio_where_io_uring_is_not_allowed(
    tmp_path: Path, arena: Bytes, opened: Any, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    create = nixl._api.nixl_agent.create_backend

    def refuse(self: Any, backend: str, params: dict[str, str]) -> None:
        if "use_uring" in params:
            raise nixl._api.nixlBind.nixlBackendError("NIXL_ERR_BACKEND")
        create(self, backend, params)

    monkeypatch.setattr(nixl._api.nixl_agent, "create_backend", refuse)
    adapter = opened(on_files(tmp_path))
    adapter.store(name(1), arena[:4096])
    [warning] = warnings(caplog)
    assert "io_uring does not work" in warning and "using POSIX with libaio" in warning
    with pytest.raises(AdapterUnusable, match="io_uring does not work"):
        on_files(tmp_path / "other", fallback=False).build().open(arena)


def test_hf3fs_is_not_replaced_unless_that_is_asked_for(
    tmp_path: Path,
    arena: Bytes,
    opened: Any,
) -> None:
    with pytest.raises(AdapterUnusable, match="HF3FS does not work, it needs a NIXL built with"):
        opened(on_files(tmp_path, "HF3FS", params={"mem_config": "dram"}))
    adapter = opened(on_files(tmp_path, "HF3FS", fallback=True))
    adapter.store(name(1), arena[:4096])
    assert adapter.find([name(1)]) == [4096]


def test_without_nixl_it_says_what_to_install(
    tmp_path: Path,
    arena: Bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "nixl._api", None)
    with pytest.raises(AdapterUnusable, match=r"install kv-sidecar\[nixl\]"):
        on_files(tmp_path).build().open(arena)

    adapter = settings(tmp_path).build()
    adapter.open(arena)  # the refused one has given up the lock
    adapter.close()


def test_nixl_keeps_the_log_clean(tmp_path: Path) -> None:
    code = f"""
import logging, mmap, numpy as np, sys
logging.basicConfig(level=logging.INFO)
from tests.unit.test_nixl_adapter import on_files
adapter = on_files({str(tmp_path)!r}).build()
adapter.open(np.frombuffer(mmap.mmap(-1, 1 << 20), np.uint8))
adapter.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_capacity_may_stand_where_lmcache_has_it() -> None:
    params = {"file_path": "/x", "max_capacity_gb": "10"}
    assert nixl_settings("POSIX", params).capacity_bytes == 10 << 30
    assert on_files(Path("/x"), max_capacity_gb=2).capacity_bytes == 2 << 30


@pytest.mark.parametrize(
    ("backend", "params", "more", "message"),
    [
        ("POSIX", {}, {}, "file_path '' is not absolute"),
        ("POSIX", {"file_path": "x"}, {}, "not absolute"),
        ("POSIX", {"file_path": "/x", "use_posix_aio": "true"}, {}, "after one error of the disk"),
        ("POSIX", {"file_path": "/x", "use_urnig": "true"}, {}, "use_urnig is unknown.*use_uring"),
        ("POSIX", {"file_path": "/x", "use_uring": "yes"}, {}, "not true or false"),
        ("POSIX", {"file_path": "/x", "bucket": "b"}, {}, "bucket is unknown to POSIX"),
        ("POSIX", {"file_path": "/x", "max_capacity_gb": "big"}, {}, "'big' is no size"),
        ("POSIX", {"file_path": "/x", "max_capacity_gb": "-1"}, {}, "is no size"),
        ("POSIX", {"file_path": "/x", "max_capacity_gb": "1"}, {"max_capacity_gb": 2}, "outside"),
        ("POSIX", {"file_path": "/x", "max_capacity_gb": "1"}, {"shared": True}, "with shared"),
        ("HF3FS", {"file_path": "/x", "mem_config": "vram"}, {}, "mem_config"),
        ("OBJ", {"bucket": "b", "max_capacity_gb": "1"}, {}, "lifecycle rule"),
        ("AZURE_BLOB", {"container_name": "c"}, {"max_capacity_gb": 1}, "lifecycle rule"),
        ("UCX", {}, {}, "backend"),
    ],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(
    backend: str, params: dict[str, str], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(msgspec.ValidationError, match=message) as error:
        nixl_settings(backend, params, **more)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def bucket() -> Iterator[dict[str, str]]:
    """Parameters of a bucket on a server of this test's own."""
    pytest.importorskip("moto.server")
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(port)
        urllib.request.urlopen(urllib.request.Request(f"{url}/kv-test", method="PUT"))
        yield {
            "bucket": "kv-test", "endpoint_override": url, "scheme": "http", "access_key": "k",
            "secret_key": "s", "region": "us-east-1", "use_virtual_addressing": "false",
            "req_checksum": "required", "key_prefix": "cache/",
        }  # fmt: skip
    finally:
        server.kill()
        server.wait()


def wait_for(port: int) -> None:
    for _ in range(300):
        with socket.socket() as attempt:
            if not attempt.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    pytest.fail("moto_server does not listen")


def test_objects_come_back(arena: Bytes, opened: Any, bucket: dict[str, str]) -> None:
    adapter = opened(nixl_settings("OBJ", bucket))
    assert adapter.shared and adapter.room() is None
    adapter.store(name(1), arena[:MIB])
    adapter.load(name(1), arena[MIB : 2 * MIB])
    assert np.array_equal(arena[:MIB], arena[MIB : 2 * MIB])
    assert adapter.find([name(2), name(1)]) == [None, 0]
    elsewhere = opened(nixl_settings("OBJ", {**bucket, "key_prefix": "other/"}))
    assert elsewhere.find([name(1)]) == [None]
    before = arena.copy()
    with pytest.raises(Missing):
        adapter.load(name(2), arena[:MIB])
    assert np.array_equal(arena, before)
    assert list(adapter.scan()) == []


def test_a_bad_object_is_not_found_until_it_is_stored_again(
    arena: Bytes,
    opened: Any,
    bucket: dict[str, str],
) -> None:
    adapter = opened(nixl_settings("OBJ", bucket))
    adapter.store(name(3), arena[:4096])
    assert not adapter.set_aside(name(3), "checksum")
    assert adapter.find([name(3)]) == [None]
    with pytest.raises(Missing):
        adapter.load(name(3), arena[:4096])
    adapter.store(name(3), arena[:4096])
    assert adapter.find([name(3)]) == [0]


def test_objects_without_a_bucket_are_refused(
    arena: Bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_DEFAULT_BUCKET", raising=False)
    with pytest.raises(AdapterUnusable, match=r"NIXL: nixl: OBJ: .*check backend_params"):
        nixl_settings("OBJ", {}).build().open(arena)
