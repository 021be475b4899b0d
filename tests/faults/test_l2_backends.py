"""L2 backends that fail, dawdle, hang, lie and vanish, with a whole server over them.

What the engine sees is a miss in time. `fault_inject` reads what goes wrong from a file while
the server runs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import storage
from tests.support.faulty_adapter import FAULTY
from tests.support.l2 import (
    CHUNKS,
    LONG,
    L2Worker,
    adapter_flags,
    adapter_status,
    clear_l1,
    counter,
    wait_counter,
    wait_written,
)
from tests.support.raw import RawClient
from tests.support.server import REPO, Server, wait_until

LOOKUP_SECONDS = 1.0
# A lookup is late when it takes this much longer than its deadline, on a busy machine.
GRACE_SECONDS = 20.0
NUMBERS = range(8)


class Faulty:
    """A server over an `fs` adapter whose faults are switched by `inject`."""

    def __init__(self, new_server: Callable[..., Server], base: Path, **settings: Any) -> None:
        self.directory, self._control = base / "l2", base / "faults.json"
        inner = {"type": "fs", "base_path": str(self.directory), "min_free_gb": 0}
        given = {"control_path": str(self._control), "inner": inner, "timeout_seconds": 1}
        flags = adapter_flags(type=FAULTY, **(given | settings))
        flags += ["--l2-prefetch-timeout-seconds", str(LOOKUP_SECONDS)]
        self.server = new_server(*flags)

    def inject(self, **faults: Any) -> None:
        """Replace the faults; none heals."""
        fresh = self._control.with_suffix(".new")
        fresh.write_text(json.dumps(faults))
        os.replace(fresh, self._control)

    def loads(self) -> str:
        return str(adapter_status(self.server)["breakers"]["load"]["state"])

    def stores(self) -> str:
        return str(adapter_status(self.server)["breakers"]["store"]["state"])


@pytest.fixture
def faulty(new_server: Callable[..., Server], tmp_path: Path) -> Faulty:
    made = Faulty(new_server, tmp_path)
    made.server.start()
    return made


@pytest.fixture
def worker(faulty: Faulty) -> Iterator[L2Worker]:
    """Whose sequences NUMBERS are in L2, and only there."""
    with RawClient(faulty.server.url) as client:
        made = L2Worker(client, faulty.server)
        fill(made)
        yield made
        made.pool.unlink()


def fill(worker: L2Worker) -> None:
    worker.store(*NUMBERS)
    wait_written(worker.server)
    clear_l1(worker.server)


def timely(worker: L2Worker, number: int) -> int:
    """The hit, which has been told in time."""
    began = time.monotonic()
    _, hits = worker.lookup(number)
    assert time.monotonic() - began < LOOKUP_SECONDS + GRACE_SECONDS
    return hits


@contextmanager
def pinged(server: Server) -> Iterator[None]:
    """Somebody else pings the server all the while, and is answered."""
    stop, failures, answers = threading.Event(), [], []

    def ping() -> None:
        with RawClient(server.url) as client:
            client.greet()
            while not stop.wait(0.05):
                try:
                    answers.append(client.call("ping", None))
                except Exception as error:
                    failures.append(error)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not failures
    assert all(answer is True for answer in answers)


def until_cut_off(faulty: Faulty, worker: L2Worker) -> None:
    """Misses, until loads are not tried any more."""

    def cut_off() -> bool:
        assert [timely(worker, n) for n in (1, 2, 3)] == [0, 0, 0]
        return faulty.loads() == "open"

    wait_until(cut_off, "loads cut off", LONG)


def until_hit(worker: L2Worker, number: int = 0) -> None:
    wait_until(lambda: worker.check(number) == CHUNKS, "a hit again", LONG)


def test_loads_that_fail(faulty: Faulty, worker: L2Worker) -> None:
    server = faulty.server
    with pinged(server):
        faulty.inject(errors={"load": "EIO"})
        until_cut_off(faulty, worker)
        assert counter(server, "l2_errors", operation="load", cause="EIO") >= 3
        assert counter(server, "l2_breaker_opened", kind="load") >= 1
        assert "EIO" in adapter_status(server)["breakers"]["load"]["last_failure"]
        worker.store(20)  # stores are another matter
        wait_written(server)
        assert faulty.stores() == "closed"
        faulty.inject()
        until_hit(worker)
    assert faulty.loads() == "closed"
    server.assert_no_leases()


def test_stores_that_fail(faulty: Faulty, worker: L2Worker) -> None:
    """They succeed for the worker; L2 has not kept them, and says so."""
    server = faulty.server
    faulty.inject(errors={"store": "EIO"})
    with pinged(server):
        wait_until(lambda: _store_again(worker, faulty), "stores cut off", LONG)
        worker.store(21)
        assert worker.check(21) == CHUNKS
        wait_counter(server, "l2_dropped_objects", CHUNKS, reason="breaker")
        assert counter(server, "l2_dropped_objects", reason="error") >= 3
        assert counter(server, "l2_errors", operation="store", cause="EIO") >= 3
        assert counter(server, "l2_breaker_opened", kind="store") >= 1
        clear_l1(server)
        assert worker.check(21) == 0
        assert worker.check(0) == CHUNKS  # loads are another matter
        faulty.inject()
        wait_until(lambda: _kept_again(worker), "stores are kept again", LONG)
    server.assert_no_leases()


def _store_again(worker: L2Worker, faulty: Faulty) -> bool:
    worker.store(20)
    wait_written(worker.server)
    clear_l1(worker.server)
    return faulty.stores() == "open"


def _kept_again(worker: L2Worker) -> bool:
    clear_l1(worker.server)
    worker.store(22)
    wait_written(worker.server)
    clear_l1(worker.server)
    return worker.check(22) == CHUNKS


def test_a_disk_that_takes_seconds(faulty: Faulty, worker: L2Worker) -> None:
    """Lookups get what has arrived; in the end L2 is not waited for at all."""
    server = faulty.server
    faulty.inject(delay_seconds={"load": 4})
    with pinged(server):
        assert timely(worker, 1) == 0
        assert counter(server, "l2_prefetch_deadline") == 1
        wait_until(lambda: faulty.loads() == "open", "loads cut off", LONG)
        assert counter(server, "l2_timeouts") >= 3
        deadlines = counter(server, "l2_prefetch_deadline")
        assert timely(worker, 2) == 0
        assert counter(server, "l2_prefetch_deadline") == deadlines
        faulty.inject()
        until_hit(worker, 3)
    server.assert_no_leases()


def test_loads_that_hang_for_ever(faulty: Faulty, worker: L2Worker) -> None:
    """Three threads: those that are left bring L2 back."""
    server = faulty.server
    faulty.inject(hang=["load"], first=3)
    with pinged(server):
        assert timely(worker, 1) == 0
        wait_until(lambda: counter(server, "l2_breaker_opened", kind="load") > 0, "open", LONG)
        assert counter(server, "l2_timeouts") >= 3
        until_hit(worker, 2)
        # What a stuck call was to load is not hostage to it: it is stored again, and found.
        worker.store(1)
        assert worker.check(1) == CHUNKS
    worker.close()
    assert server.terminate(LONG) == 0


def test_everything_hangs(faulty: Faulty, worker: L2Worker) -> None:
    """L2 is gone for good. The server serves from the L1, and can be stopped."""
    server = faulty.server
    faulty.inject(hang=["load", "store", "find", "delete", "scan"])
    with pinged(server):
        assert timely(worker, 1) == 0
        wait_until(lambda: faulty.loads() == "open", "loads cut off", LONG)
        for number in (2, 3, 4):
            assert timely(worker, number) == 0
        worker.store(1, 2, 20, 21)
        assert worker.check_all(1, 2, 20, 21) == [CHUNKS] * 4
        wait_until(lambda: faulty.stores() == "open", "stores cut off", LONG)
        worker.store(22)
        assert worker.check(22) == CHUNKS
    worker.close()
    assert server.terminate(LONG) == 0
    assert not server.segments()


def test_a_scan_that_hangs(new_server: Callable[..., Server], tmp_path: Path) -> None:
    """Ready at once all the same, and what is there from before is found."""
    faulty = Faulty(new_server, tmp_path)
    faulty.server.start()
    with RawClient(faulty.server.url) as client:
        fill(L2Worker(client, faulty.server))
        assert faulty.server.terminate(LONG) == 0
    faulty.inject(hang=["scan"])
    faulty.server.start()
    with RawClient(faulty.server.url) as client:
        worker = L2Worker(client, faulty.server)
        assert worker.check_all(*NUMBERS) == [CHUNKS] * len(NUMBERS)
        assert adapter_status(faulty.server)["scanned"] is False
        worker.close()
    assert faulty.server.terminate(LONG) == 0


def test_a_scan_that_a_disk_keeps_does_not_keep_the_process(tmp_path: Path) -> None:
    """A directory on a server that is gone: listing it never returns, but the end must come."""
    (tmp_path / "objects" / "space" / "00").mkdir(parents=True)
    program = f"""
import threading
from sidecar.tiers.adapters import directory
from sidecar.tiers.adapters.file_io import DirectIO
from sidecar.tiers.threads import Threads
from tests.support.tiers import page_aligned

files = directory.Files({str(tmp_path)!r}, DirectIO())
files.open(page_aligned(4096))
listing = threading.Event()

def hung(path):
    if path.endswith("/00"):
        listing.set()
        threading.Event().wait()
    yield from list_it(path)

list_it, directory.entries = directory.entries, hung
Threads("scan", 1, lambda callback: None).submit(lambda: list(files.scan()), lambda *_: None)
assert listing.wait(60)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60, cwd=REPO)


def test_every_load_flips_a_bit(faulty: Faulty, worker: L2Worker) -> None:
    """No byte of it ever comes near the worker: `check` compares what a retrieve has written.

    A third of a record this small is the header's padding, where a flip does no harm.
    """
    server = faulty.server
    faulty.inject(corrupt_rate=1.0)
    assert all(hits < CHUNKS for hits in worker.check_all(*NUMBERS))
    wait_counter(server, "l2_corrupt_objects", len(NUMBERS))
    wait_counter(server, "l2_quarantined_objects", len(NUMBERS))
    assert len(NUMBERS) <= len(list((faulty.directory / "quarantine").iterdir())) <= 16
    assert faulty.loads() == "closed"
    faulty.inject()
    fill(worker)
    assert worker.check_all(*NUMBERS) == [CHUNKS] * len(NUMBERS)
    server.assert_no_leases()


def test_a_third_of_the_objects_is_lost(faulty: Faulty, worker: L2Worker) -> None:
    """Prefixes up to what is lost, and nothing behind it; what is lost is stored anew."""
    server = faulty.server
    faulty.inject(rate=0.3, seed=3)
    hits = worker.check_all(*NUMBERS)
    assert 0 < sum(hits) < CHUNKS * len(NUMBERS)
    assert faulty.loads() == "closed"
    assert counter(server, "l2_errors") == 0
    assert counter(server, "l2_prefetch_failure", reason="not_found") > 0
    faulty.inject()
    fill(worker)
    assert worker.check_all(*NUMBERS) == [CHUNKS] * len(NUMBERS)
    server.assert_no_leases()


# --- Redis ---


def resp_flags(port: int, **settings: Any) -> list[str]:
    given = {"type": "resp", "host": "127.0.0.1", "port": port, "timeout_seconds": 1}
    flags = adapter_flags(**(given | settings))
    return [*flags, "--l2-prefetch-timeout-seconds", str(LOOKUP_SECONDS)]


def test_a_redis_that_is_killed_and_comes_back(new_server: Callable[..., Server]) -> None:
    """What it had is gone with it, as it keeps nothing on disk."""
    with storage.redis() as redis:
        server = new_server(*resp_flags(redis.port)).start()
        with RawClient(server.url) as client, pinged(server):
            worker = L2Worker(client, server)
            fill(worker)
            assert worker.check(0) == CHUNKS
            clear_l1(server)
            redis.kill()
            assert [timely(worker, number) for number in NUMBERS] == [0] * len(NUMBERS)
            worker.store(*NUMBERS)
            clear_l1(server)
            for _ in range(3):
                assert [timely(worker, number) for number in NUMBERS] == [0] * len(NUMBERS)
            assert counter(server, "l2_errors", cause="connection") >= 3
            assert counter(server, "l2_breaker_opened") >= 1
            redis.start()
            wait_until(lambda: _kept_again(worker), "redis is used again", LONG)
            worker.close()
        server.assert_no_leases()
        assert server.terminate(LONG) == 0


def test_an_address_that_never_answers(new_server: Callable[..., Server]) -> None:
    with storage.silent_server() as port:
        server = new_server(*resp_flags(port)).start()
        with RawClient(server.url) as client, pinged(server):
            worker = L2Worker(client, server)
            worker.store(*NUMBERS)
            clear_l1(server)
            for number in NUMBERS:
                assert timely(worker, number) == 0
            wait_until(
                lambda: (
                    timely(worker, 0) == 0
                    and adapter_status(server)["breakers"]["load"]["state"] == "open"
                ),
                "loads cut off",
                LONG,
            )
            assert counter(server, "l2_errors", cause="timeout") >= 3
            worker.close()
        server.assert_no_leases()
        assert server.terminate(LONG) == 0


def test_wrong_credentials(new_server: Callable[..., Server]) -> None:
    with storage.redis("--requirepass", "right") as redis:
        server = new_server(*resp_flags(redis.port, password="wrong")).start()
        with RawClient(server.url) as client:
            worker = L2Worker(client, server)
            fill(worker)
            assert [timely(worker, number) for number in NUMBERS] == [0] * len(NUMBERS)
            assert counter(server, "l2_errors", cause="unauthenticated") >= 3
            worker.store(0)
            assert worker.check(0) == CHUNKS
            worker.close()
        server.assert_no_leases()
        assert "wrong" not in server.stderr().replace("WRONGPASS", "")
