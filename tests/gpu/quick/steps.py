"""The steps in their order: what everything else rests on comes first."""

from __future__ import annotations

from dataclasses import dataclass

# What a server and a minimal client import.
SERVER = (
    *("blake3", "fastapi", "msgspec", "prometheus_client", "shtab", "uvicorn", "xxhash", "yaml"),
    "zmq",
)
_CHECKS = "tests.gpu.quick.checks"


@dataclass(frozen=True)
class Step:
    """`seconds` is what it may take; `needs` are the modules without which it cannot be done."""

    number: int
    what: str
    module: str
    seconds: float
    needs: tuple[str, ...] = ()
    is_of_batches: bool = False  # after it has hung or crashed no batch is begun any more


STEPS = (
    Step(0, "what there is: packages, /dev/shm, driver, GPU", f"{_CHECKS}.machine", 20),
    Step(1, "handles and events between two processes", f"{_CHECKS}.sharing", 30),
    Step(2, "the kernels", f"{_CHECKS}.kernels", 30),
    Step(3, "pinning, unpinned memory, invalid handles", f"{_CHECKS}.pinning", 30),
    Step(4, "batches of copies", f"{_CHECKS}.batches", 30, is_of_batches=True),
    Step(5, "the server: every byte, 384 B to 128 KiB", f"{_CHECKS}.round_trips", 60, SERVER),
    Step(6, "the order of copies and events", f"{_CHECKS}.order", 40, SERVER),
    Step(
        7, "the stock client: all layouts and types", f"{_CHECKS}.stock_client", 120,
        (*SERVER, "torch", "pytest", "lmcache"),
    ),
    Step(8, "workers and child killed, illegal address", f"{_CHECKS}.killed", 90, SERVER),
    Step(9, "a worker killed before its event", f"{_CHECKS}.stuck", 60, SERVER),
    Step(10, "link, pinning, batches by length of runs", f"{_CHECKS}.rates", 60),
    Step(11, "runs of 4 KiB, idle and beside prefill", f"{_CHECKS}.short_runs", 80, SERVER),
    Step(12, "decode beside transfers", f"{_CHECKS}.decode", 80, (*SERVER, "torch")),
)  # fmt: skip
