"""Another adapter that fails on demand, for tests: errors, delays, hangs, losses, flipped bits."""

import errno
import hashlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, field

from sidecar.tiers.base import Adapter, Bytes, Found, Missing, NoSpace, TierError
from sidecar.tiers.names import ObjectName
from sidecar.tiers.settings import AdapterSettings, NotNegative, Ratio
from sidecar.tiers.types import parse

log = logging.getLogger(__name__)
FAULTY = "tests.support.faulty_adapter:FaultInjectSettings"  # as --l2-adapter names it

Op = Literal["store", "load", "find", "delete", "scan", "mark"]
Count = Annotated[int, Meta(ge=0)]


class FaultInjectSettings(AdapterSettings, frozen=True, kw_only=True):
    """Another adapter with faults, for tests."""

    inner: Annotated[dict[str, Any], Meta(description="the JSON of the adapter that does the work")]
    rate: Annotated[Ratio, Meta(description="share of the names that lose their loads")] = 0.0
    seed: Annotated[int, Meta(description="one seed hits the same names each time")] = 0
    corrupt_rate: Annotated[
        Ratio, Meta(description="share of the names that get a bit flipped when loaded")
    ] = 0.0
    errors: Annotated[
        dict[Op, str], Meta(description="by operation, the errno with which it fails")
    ] = field(default_factory=dict)
    delay_seconds: Annotated[
        dict[Op, NotNegative], Meta(description="by operation, how long it waits before")
    ] = field(default_factory=dict)
    hang: Annotated[list[Op], Meta(description="operations that never return")] = field(
        default_factory=list
    )
    after: Annotated[Count, Meta(description="calls of each operation that pass at first")] = 0
    first: Annotated[Count, Meta(description="how many after them are hit; 0 = all")] = 0
    control_path: Annotated[
        str,
        Meta(
            description="a JSON file with these keys, which then says all of what goes wrong; it "
            "is read again, and calls are counted anew, when it changes"
        ),
    ] = ""

    ignored: ClassVar[dict[str, str]] = {
        "gap_indices": "what is loaded is one object; use rate",
        "gap_tail_ratios": "what is loaded is one object; use rate",
    }

    def __post_init__(self) -> None:
        if self.inner_settings().max_capacity_gb:
            raise ValueError("max_capacity_gb stands beside inner, not in it")
        for name in self.errors.values():
            if not hasattr(errno, name):
                raise ValueError(f"{name!r} is no errno")

    def inner_settings(self) -> AdapterSettings:
        """What `inner` says. Raises ValueError."""
        return parse(self.inner)[0]

    def with_faults(self, text: bytes) -> "FaultInjectSettings":
        """The same adapter with the faults of a control file. Raises msgspec.DecodeError."""
        faults = msgspec.json.decode(text, type=dict[str, Any])
        return msgspec.convert({**faults, "type": self.type, "inner": self.inner}, type(self))

    def build(self) -> Adapter:
        return _FaultInject(self, self.inner_settings().build())


class _FaultInject:
    def __init__(self, settings: FaultInjectSettings, inner: Adapter) -> None:
        self.shared = inner.shared
        self._given = self._faults = settings
        self._inner = inner
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._version: tuple[int, int] | None = None

    def open(self, arena: Bytes) -> None:
        self._inner.open(arena)

    def close(self) -> None:
        self._closed.set()
        self._inner.close()

    def store(self, name: ObjectName, record: Bytes) -> None:
        self._strike("store")
        self._inner.store(name, record)

    def load(self, name: ObjectName, record: Bytes) -> None:
        faults = self._strike("load")
        if faults is not None and _drawn(faults, "loss", name) < faults.rate:
            raise Missing
        self._inner.load(name, record)
        if faults is not None and (draw := _drawn(faults, "bit", name)) < faults.corrupt_rate:
            bit = int(draw / faults.corrupt_rate * record.nbytes * 8)
            record[bit // 8] ^= 1 << bit % 8

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        self._strike("find")
        return self._inner.find(names)

    def delete(self, names: Sequence[ObjectName]) -> None:
        self._strike("delete")
        self._inner.delete(names)

    def scan(self) -> Iterator[list[Found]]:
        self._strike("scan")
        return self._inner.scan()

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        return self._inner.set_aside(name, reason)

    def read_mark(self) -> str | None:
        self._strike("mark")
        return self._inner.read_mark()

    def write_mark(self, mark: str) -> None:
        self._strike("mark")
        self._inner.write_mark(mark)

    def room(self) -> int | None:
        return self._inner.room()

    def _strike(self, op: Op) -> FaultInjectSettings | None:
        """Do to a call of `op` what is to be done before it; its faults, None if it is spared."""
        with self._lock:
            faults = self._current()
            self._calls[op] += 1
            number = self._calls[op] - faults.after
        if number <= 0 or (faults.first and number > faults.first):
            return None
        time.sleep(faults.delay_seconds.get(op, 0.0))
        if op in faults.hang:
            self._closed.wait()
            raise TierError("closed")
        if op in faults.errors:
            raise _failure(faults.errors[op])
        return faults

    def _current(self) -> FaultInjectSettings:
        version = _version(self._given.control_path)
        if version != self._version:
            self._version = version
            self._calls.clear()
            self._faults = self._given if version is None else self._controlled()
        return self._faults

    def _controlled(self) -> FaultInjectSettings:
        try:
            with open(self._given.control_path, "rb") as file:
                return self._given.with_faults(file.read())
        except (OSError, msgspec.DecodeError) as error:
            log.warning("fault_inject: %s: %s", self._given.control_path, error)
            return self._faults


def _version(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino


def _drawn(faults: FaultInjectSettings, what: str, name: ObjectName) -> float:
    """A number in [0, 1) that is always the same for this name."""
    text = f"{faults.seed} {what} {name.path}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=6).digest()) / 2**48


def _failure(name: str) -> TierError:
    if name == "ENOENT":
        return Missing()
    return (NoSpace if name in ("ENOSPC", "EDQUOT") else TierError)(name)
