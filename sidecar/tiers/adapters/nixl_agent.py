"""One NIXL agent with one backend, and the arena registered with it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal

from sidecar import nixl
from sidecar.tiers.base import AdapterUnusable, Bytes, TierError

_POLL_SECONDS = 2e-4

Kind = Literal["FILE", "OBJ"]


class Agent:
    """Moves records of the arena, and of `more` memory; thread-safe as far as its backend is.

    Raises AdapterUnusable without NIXL, TierError if the backend cannot be created.
    """

    def __init__(self, backend: str, params: Mapping[str, str], arena: Bytes, *more: Bytes) -> None:
        try:
            api = nixl.load()
        except nixl.NixlMissing as error:
            raise AdapterUnusable(str(error)) from error
        self._failures = nixl.failures(api)
        self._backend = backend
        with self._errors():
            self._agent = nixl.new_agent(api, backend, params)
            regions = [(_address(memory), memory.nbytes, 0, "") for memory in (arena, *more)]
            self._memory = self._agent.register_memory(regions, "DRAM")

    def write(self, record: Bytes, kind: Kind, device: int, key: str = "") -> None:
        """To the file whose descriptor is `device`, or to the object `key`."""
        self._move("WRITE", record, kind, device, key)

    def read(self, record: Bytes, kind: Kind, device: int, key: str = "") -> None:
        self._move("READ", record, kind, device, key)

    def exist(self, keys: Sequence[str]) -> list[bool]:
        """Which objects there are."""
        with self._errors():
            wanted = [(0, 0, 0, key) for key in keys]
            found = self._agent.query_memory(wanted, self._backend, "OBJ")
        return [answer is not None for answer in found]

    def close(self) -> None:
        with suppress(*self._failures):
            self._agent.deregister_memory(self._memory)
        del self._agent

    def _move(self, operation: str, record: Bytes, kind: Kind, device: int, key: str) -> None:
        size, agent = record.nbytes, self._agent
        with self._errors():
            registered = agent.register_memory([(0, size, device, key)], kind)
            try:
                here = agent.get_xfer_descs([(_address(record), size, 0)], "DRAM")
                there = agent.get_xfer_descs([(0, size, device)], kind)
                self._run(agent.initialize_xfer(operation, here, there, agent.name))
            finally:
                agent.deregister_memory(registered)

    def _run(self, transfer: Any) -> None:
        try:
            state = self._agent.transfer(transfer)
            while state == "PROC":
                time.sleep(_POLL_SECONDS)
                state = self._agent.check_xfer_state(transfer)
        finally:
            transfer.release()
        if state != "DONE":
            raise TierError("nixl", f"{self._backend}: transfer state {state}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            name = type(error).__name__
            raise TierError("nixl", f"{self._backend}: {name} {error}") from error


def _address(memory: Bytes) -> int:
    return int(memory.__array_interface__["data"][0])
