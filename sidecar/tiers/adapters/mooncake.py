"""Records in the memory pool of a Mooncake store, moved without a copy on this side.

The library holds the interpreter's lock while it sets up and while it closes, and either can
take long: set-up when the master is dead, closing too. So neither is done before something
answers on the master's port.
"""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from msgspec import Meta

from sidecar.addresses import unbracketed
from sidecar.tiers.adapters.client_library import library
from sidecar.tiers.base import (
    Adapter,
    AdapterUnusable,
    Bytes,
    Corrupt,
    Found,
    Missing,
    NoSpace,
    TierError,
)
from sidecar.tiers.names import ObjectName
from sidecar.tiers.settings import AdapterSettings, Name, adapter

log = logging.getLogger(__name__)

_PROBE_SECONDS = 1.0
_PROBE_AGAIN_SECONDS = 1.0
_SETUP_AGAIN_SECONDS = 30.0
_RPC_MILLISECONDS = 2000  # answers of the master, which are small; the library's own is 30 s
# Read by the library when it is loaded; whoever has set them knows better.
_ENVIRONMENT = {
    "MC_RPC_TIMEOUT_MS": str(_RPC_MILLISECONDS),
    "MC_STORE_CLIENT_SETUP_RETRIES": "2",  # each waits for the master anew; its own is 20
    "MC_STORE_CLIENT_METRIC": "0",
    "MC_LOG_LEVEL": "ERROR",
    "MC_YLT_LOG_LEVEL": "off",
    "GLOG_minloglevel": "2",
}
# Closing one whose master is dead takes 7 to 14 s, and so does dropping the last reference to it.
# It happens when the process ends, after everything else.
_left_open: list[Any] = []
_MARK = "kv-sidecar-epoch"
_EXISTS, _GONE = 1, -704
_SIZE = re.compile(r"(\d+)\s*([kmg]?)b?", re.IGNORECASE)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30}

Size = Annotated[int, Meta(ge=0)] | str


@adapter("mooncake_store")
class MooncakeSettings(AdapterSettings, frozen=True, kw_only=True):
    """The memory of a Mooncake cluster. Sizes are bytes, or like "4GB"."""

    local_hostname: Annotated[Name, Meta(description="how other nodes reach this one")]
    metadata_server: Annotated[
        Name, Meta(description="Mooncake's metadata server; the default needs none")
    ] = "P2PHANDSHAKE"
    master_server_address: Annotated[
        str, Meta(description="`host:port` of the master; this or the next is required")
    ] = ""
    master_server_addr: Annotated[str, Meta(description="the same as `master_server_address`")] = ""
    protocol: Annotated[Literal["tcp", "rdma"], Meta(description="of the transfers")] = "tcp"
    device_name: Annotated[str, Meta(description="the same as `rdma_devices`")] = ""
    rdma_devices: Annotated[str, Meta(description="with `rdma`: its devices")] = ""
    global_segment_size: Annotated[Size, Meta(description="what this node gives to the pool")] = (
        16 << 20
    )
    local_buffer_size: Annotated[Size, Meta(description="the library's own buffer")] = 16 << 20

    def __post_init__(self) -> None:
        self.master()
        _size(self.global_segment_size)
        _size(self.local_buffer_size)
        if self.max_capacity_gb:
            raise ValueError("max_capacity_gb cannot be enforced in a pool: its master evicts")

    def master(self) -> tuple[str, int]:
        """The master's host and port. Raises ValueError."""
        address = self.master_server_address or self.master_server_addr
        host, _, port = address.rpartition(":")
        if not host or "/" in host or not port.isdigit():
            raise ValueError("master_server_address is host:port (of one master)")
        return host, int(port)

    def setup(self) -> dict[str, str]:
        """What the library wants to be told."""
        return {
            "local_hostname": self.local_hostname,
            "metadata_server": self.metadata_server,
            "master_server_addr": "{}:{}".format(*self.master()),
            "protocol": self.protocol,
            "rdma_devices": self.rdma_devices or self.device_name,
            "global_segment_size": str(_size(self.global_segment_size)),
            "local_buffer_size": str(_size(self.local_buffer_size)),
        }

    def build(self) -> Adapter:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        return _Mooncake(self, library("mooncake.store", "mooncake"))


class _Mooncake:
    shared = True

    def __init__(self, settings: MooncakeSettings, mooncake: Any) -> None:
        self._settings = settings
        self._mooncake = mooncake
        self._store: Any = None
        self._connecting = threading.Lock()
        self._not_before = 0.0
        self._cause = ""

    def open(self, arena: Bytes) -> None:
        """A master that is not up yet is tried again when it is needed."""
        self._arena = arena
        try:
            self._connected()
        except TierError as error:
            if error.cause != "master_down":
                raise AdapterUnusable(
                    f"mooncake_store: {error}; the library's own words are on stderr"
                ) from None
            log.warning("mooncake_store: %s; it will be tried again when it is needed", error)

    def close(self) -> None:
        if self._store is None:
            return
        if self._master_answers():
            self._store.close()
        else:
            _left_open.append(self._store)

    def store(self, name: ObjectName, record: Bytes) -> None:
        """Leaves what is there: it is the same object, and others may be reading it."""
        address = [record.ctypes.data]
        [code] = self._connected().batch_put_from([name.path], address, [record.nbytes])
        _check(code)

    def load(self, name: ObjectName, record: Bytes) -> None:
        address = [record.ctypes.data]
        [size] = self._connected().batch_get_into([name.path], address, [record.nbytes])
        _check(size)
        if size != record.nbytes:
            raise Corrupt("length", f"{size} bytes")

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        codes = self._connected().batch_is_exist([name.path for name in names])
        for code in codes:
            _check(code)
        return [0 if code == _EXISTS else None for code in codes]

    def delete(self, names: Sequence[ObjectName]) -> None:
        """Those that somebody has just read or looked up go later: their lease has not ended."""
        self._remove([name.path for name in names], force=False)

    def _remove(self, keys: list[str], force: bool) -> None:
        if not keys:
            return
        for code in self._connected().batch_remove(keys, force):
            if code != _GONE:
                _check(code)

    def read_mark(self) -> str | None:
        [exists] = self._connected().batch_is_exist([_MARK])
        _check(exists)
        if exists != _EXISTS:
            return None
        mark = self._connected().get(_MARK)
        if not mark:  # whatever has failed: only the master tells that there is none
            raise TierError("mark", "it is there and cannot be read")
        return str(mark, "ascii", "replace")

    def write_mark(self, mark: str) -> None:
        """What is there is not overwritten: between the two calls there is none, which is safe."""
        self._remove([_MARK], force=True)
        _check(self._connected().put(_MARK, mark.encode("ascii")))

    def scan(self) -> Iterator[list[Found]]:
        return iter(())  # the master cannot list keys, and it evicts by itself

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        self._remove([name.path], force=True)
        return False

    def room(self) -> int | None:
        return None

    def _connected(self) -> Any:
        """The store, set up. Raises TierError."""
        with self._connecting:
            if self._store is None:
                self._store = self._set_up()
            return self._store

    def _set_up(self) -> Any:
        if time.monotonic() < self._not_before:
            raise TierError(self._cause, "it will be tried again")
        if not self._master_answers():
            where = "{}:{}".format(*self._settings.master())
            raise self._later("master_down", _PROBE_AGAIN_SECONDS, f"nothing answers at {where}")
        store = self._mooncake.MooncakeDistributedStore()
        code = store.setup(self._settings.setup())
        if code == 0:
            code = store.register_buffer(self._arena.ctypes.data, self._arena.nbytes)
        if code != 0:
            raise self._later("setup", _SETUP_AGAIN_SECONDS, f"it failed with {code}")
        return store

    def _later(self, cause: str, seconds: float, detail: str) -> TierError:
        self._cause, self._not_before = cause, time.monotonic() + seconds
        return TierError(cause, detail)

    def _master_answers(self) -> bool:
        try:
            host, port = self._settings.master()
            socket.create_connection((unbracketed(host), port), _PROBE_SECONDS).close()
        except OSError:
            return False
        return True


def _check(code: int) -> None:
    """Raise what a negative `code` means."""
    if code >= 0:
        return
    if code == _GONE:
        raise Missing
    if code == -600:
        raise Corrupt("length", "it is larger than its record")
    if code == -200:
        raise NoSpace("pool_full")
    causes = {
        -706: "leased",
        -707: "lease_expired",
        -800: "segment_lost",
        -900: "master_down",
        -901: "timeout",
    }
    raise TierError(causes.get(code, f"code_{-code}"))


def _size(value: int | str) -> int:
    match = _SIZE.fullmatch(str(value).strip())
    if match is None:
        raise ValueError(f"{value!r} is no size")
    return int(match[1]) << _UNITS[match[2].lower()]
