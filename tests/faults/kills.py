"""A server that is ended and started again and again under load: no wrong byte, nothing left.

Usage: python -m tests.faults.kills [ROUNDS] [SEED]. Prints what was found at the end.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from tests.support.kept import CHUNKS, KEEP, SOURCE, TARGET, Site, finish, key_of
from tests.support.raw import NoReply
from tests.support.server import Server, wait_until

PROMPTS = 60  # they all fit, so that what is missing was not kept
LOADED_SECONDS = (0.05, 0.8)


class Load(Site):
    """Stores and loads prompts until the server is gone; every byte that comes back is checked."""

    def __init__(self, server: Server, chance: random.Random) -> None:
        super().__init__(server)
        self._chance = chance
        self.hits, self.wrong = 0, list[int]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def first_hits(self) -> int:
        """How many prompts are there now, whole and with the right bytes."""
        before = self.hits
        for number in range(PROMPTS):
            self._load(number)
        return self.hits - before

    def start(self) -> None:
        self._thread.start()

    def wait_for_hit(self) -> None:
        """Until something that was stored has been loaded."""
        before = self.hits
        wait_until(lambda: self.hits > before, "a hit")

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        self.close()

    def _run(self) -> None:
        with contextlib.suppress(NoReply):
            while not self._ended.is_set():
                number = self._chance.randrange(PROMPTS)
                if self._chance.random() < 0.5:
                    self.worker.pool.data[:, SOURCE] = self.fill(number)
                    self._call("store", number, SOURCE)
                else:
                    self._load(number)

    def _load(self, number: int) -> None:
        self.worker.pool.data[:, TARGET] = 0
        key = key_of(number, worker=None)
        self._ask("lookup", key, 1)
        while (found := self._ask("query_prefetch_status", key["request_id"])) is None:
            time.sleep(0.01)
        if found == CHUNKS and self._call("retrieve", number, TARGET, 0):
            self.hits += 1
            if not np.array_equal(self.worker.pool.data[:, TARGET], self.fill(number)):
                self.wrong.append(number)
        self._ask("end_session", key["request_id"])

    def _call(self, operation: str, number: int, blocks: list[int], *more: int) -> bool:
        event = b""
        reply = self._ask(operation, key_of(number), 7, [blocks], event, *more)
        return bool(reply[1])

    def _ask(self, operation: str, *payloads: object) -> object:
        frames = self.client.frames(operation, *payloads)
        self.client.send(frames)
        while True:
            if self._ended.is_set():
                raise NoReply
            with contextlib.suppress(NoReply):
                reply = self.client.receive(0.2)
                if reply[0] == frames[0]:
                    return self.client.value(reply)


def run(server: Server, rounds: int, chance: random.Random) -> tuple[int, int]:
    """(hits, those that a successor served before it had stored anything itself).

    AssertionError for what is wrong.
    """
    hits = inherited = 0
    for number in range(rounds):
        server.start()
        load = Load(server, chance)
        inherited += load.first_hits()
        load.start()
        load.wait_for_hit()
        time.sleep(chance.uniform(*LOADED_SECONDS))
        if number % 10 == 0:
            assert server.request("/cache/check", body={})[0] == 200
        # What a killed server keeps depends on the pauses that it had for digests; what one that
        # was told to stop keeps does not.
        finish(server, "SIGTERM" if number % 3 == 0 else "SIGKILL")
        load.stop()
        hits += load.hits
        assert not load.wrong, f"round {number}: other bytes of {load.wrong}"
        assert "Traceback" not in server.stderr()
        if number % 10 == 9:
            print(f"{number + 1} rounds: {hits} hits, {inherited} first ones", flush=True)
    server._flags += ["--l1-keep-seconds", "0"]
    server.start()
    assert server.terminate() == 0
    assert server.segments() == []
    return hits, inherited


def main() -> None:
    rounds, seed = (int(x) for x in [*sys.argv[1:], *("20", "1")[len(sys.argv) - 1 :]])
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), *KEEP, l1_size_gb=0.0625)
        try:
            run(server, rounds, random.Random(seed))
        finally:
            server.stop()
    print(f"{rounds} rounds: no wrong byte, and nothing left behind")


if __name__ == "__main__":
    main()
