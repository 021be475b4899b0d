"""A clear lasts: whatever the backend refuses, and whoever is killed when."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.adapter_cases import (
    Spec,
    fs,
    mooncake,
    nixl_obj,
    resp,
    s3,
)
from tests.support import storage
from tests.support.faulty_adapter import FAULTY
from tests.support.l2 import (
    CHUNKS,
    LONG,
    L2Worker,
    adapter_flags,
    adapter_status,
    clear_l1,
    wait_written,
)
from tests.support.raw import RawClient
from tests.support.s3_front import s3_front
from tests.support.server import Server, wait_until

Backend = Callable[[Path], Any]  # a context manager that yields the adapter's JSON
NUMBERS = (1, 2)
# A Redis user that may do what a cache needs, but not delete.
_NO_DELETE = (
    "--user",
    "default",
    "on",
    "nopass",
    "~*",
    "&*",
    "+@all",
    "-del",
    "-unlink",
    "-rename",
)


@contextmanager
def on_moto(_: Path, *refused: str) -> Iterator[Spec]:
    with storage.moto() as server, s3_front(server.port) as front:
        front.refused.update(refused)
        yield s3(front.port, "clears")


def refusing(*refused: str) -> Backend:
    return lambda base: on_moto(base, *refused)


def server_of(
    server: Callable[..., Any], speak: Callable[[int, str], Spec], *flags: str
) -> Backend:
    @contextmanager
    def run(_: Path) -> Iterator[Spec]:
        with server(*flags) as started:
            yield speak(started.port, "clears")

    return run


def directory(speak: Callable[[Path, str], Spec], **more: Any) -> Backend:
    @contextmanager
    def run(base: Path) -> Iterator[Spec]:
        yield {**speak(base, "l2"), **more}

    return run


BACKENDS = {
    "fs": directory(fs),
    "s3 without bulk deletion": refusing("bulk"),
    "s3 without any rights but to read and write": refusing("delete", "list"),
    "nixl obj": server_of(storage.moto, nixl_obj),
    "redis without deletion": server_of(storage.redis, resp, *_NO_DELETE),
    "mooncake": server_of(storage.mooncake_master, mooncake),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_a_clear_holds_after_a_crash(
    new_server: Callable[..., Server], tmp_path: Path, name: str
) -> None:
    """Killed as soon as it has answered. What is stored after it is found, as ever."""
    with ExitStack() as stack:
        spec = stack.enter_context(BACKENDS[name](tmp_path))
        server = new_server(*adapter_flags(**spec)).start()
        with client(server) as worker:
            worker.store(*NUMBERS)
            wait_written(server)
            clear_l1(server)
            assert worker.check_all(*NUMBERS) == [CHUNKS] * 2
            assert clear(server)["lasts"]
            if name == "mooncake":  # the master would go on to store in a dead server's memory
                assert server.terminate() == 0
            else:
                server.kill()
        server.start()
        with client(server) as worker:
            assert worker.check_all(*NUMBERS) == [0, 0]
            worker.store(1)
            wait_written(server)
            clear_l1(server)
            assert worker.check_all(*NUMBERS) == [CHUNKS, 0]
            server.assert_no_leases()


def test_a_clear_reaches_the_others(new_server: Callable[..., Server], tmp_path: Path) -> None:
    """What they know to be in L2, and what is in their L1."""
    flags = adapter_flags(**fs(tmp_path, "l2"), shared=True)
    first, second = (new_server(*flags).start() for _ in range(2))
    with client(first) as worker, client(second) as other:
        worker.store(*NUMBERS)
        wait_written(first)
        assert other.check_all(*NUMBERS) == [CHUNKS] * 2
        assert clear(first)["lasts"]
        assert worker.check_all(*NUMBERS) == [0, 0]
        for number in NUMBERS:
            wait_until(lambda n=number: other.hits(n) == 0, "the other follows", LONG)
        other.store(1)
        wait_written(second)
        assert worker.check_all(*NUMBERS) == [CHUNKS, 0]  # they share it again
    assert not stale_folders(tmp_path / "l2")


def stale_folders(directory: Path) -> list[Path]:
    """Folders in which there is nothing."""
    records = [path for path in directory.glob("objects*/**") if path.is_dir()]
    return [path for path in records if not any(path.iterdir())]


def test_a_clear_that_does_not_last_is_told_and_tried_again(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    control = tmp_path / "faults.json"
    spec = {
        "type": FAULTY,
        "inner": fs(tmp_path, "l2"),
        "control_path": str(control),
    }
    server = new_server(*adapter_flags(**spec)).start()
    with client(server) as worker:
        worker.store(*NUMBERS)
        wait_written(server)
        inject(control, errors={"mark": "EIO"})
        status, text = server.request("/cache/clear", {"tier": "all", "force": True})
        [adapter] = json.loads(text)["cleared"]["adapters"]
        assert (status, adapter["lasts"]) == (503, False)
        assert "EIO" in adapter["detail"]
        assert adapter_status(server)["clear_lasts"] is False
        assert worker.check_all(*NUMBERS) == [0, 0]
        inject(control)
        wait_until(lambda: adapter_status(server)["clear_lasts"], "it lasts", LONG)
        server.kill()
    server.start()
    with client(server) as worker:
        assert worker.check_all(*NUMBERS) == [0, 0]


def inject(control: Path, **faults: Any) -> None:
    fresh = control.with_suffix(".new")
    fresh.write_text(json.dumps(faults))
    os.replace(fresh, control)


@contextmanager
def client(server: Server) -> Iterator[L2Worker]:
    with RawClient(server.url) as connection:
        worker = L2Worker(connection, server)
        try:
            yield worker
        finally:
            worker.pool.unlink()


def clear(server: Server) -> Any:
    """What the answer says of the only adapter."""
    status, text = server.request("/cache/clear", {"tier": "all", "force": True})
    assert status == 200, text
    [adapter] = json.loads(text)["cleared"]["adapters"]
    return adapter
