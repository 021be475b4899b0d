"""Neighbours at the native door that speak for others, or take and never give."""

from __future__ import annotations

import itertools
import secrets

import msgspec
import numpy as np

from tests.faults.campaign.target import Neighbour, Target
from tests.support.native import Engine, block_hash
from tests.support.raw import RawClient


def speaks_for_other_engines(target: Target) -> None:
    """Sessions and members are numbers that anybody can name."""
    pick = target.random
    with RawClient(target.url) as client:
        while target.goes_on():
            session, slots = pick.randrange(64), [pick.randrange(4096) for _ in range(64)]
            items = [(0, block_hash(pick.randrange(300)), slot) for slot in slots]
            ask = {"session": session}
            client.call("native_publish", {**ask, "request": "r", "items": items})
            client.call("native_return", {**ask, "slots": slots})
            client.call("native_finish", {**ask, "requests": [["r", False]]})
            client.call("native_resume", {**ask, "slots": [], "requests": []})
            client.call("native_detach", ask)
            client.call("native_mapped", {"member": session, "server": bytes(16)})
            client.call("native_ping", {"session": session, "member": session})


def takes_all_and_dies(target: Target) -> None:
    """Engines that reserve and pin what they can, lie about their slots, and end."""
    while target.goes_on():
        engine = Engine(target.url, model="honest-native", identity=secrets.token_bytes(32))
        try:
            engine.start()
            slots = engine.reserve(4096)
            engine.find("r", *range(64))
            engine.publish("r", range(len(slots[:64])), [slot + 1 for slot in slots[:64]])
            engine.find("r", *range(64), windowed=True, load=True)
        finally:
            engine.end_processes()


def crowds(target: Target) -> None:
    """As many engines and worker processes as the server lets it have."""
    with RawClient(target.url) as client:
        while target.goes_on():
            ask = {
                "version": 1, "engine": secrets.token_hex(8),
                "incarnation": secrets.token_bytes(16), "model": "m", "ranks": 1, "groups": 1,
                "chunk_tokens": 16, "object_bytes": 4096, "identity": bytes(32),
            }  # fmt: skip
            client.call("native_attach", ask)
            member = {"rank": 0, "layout": bytes(32)}
            kept = ("version", "engine", "incarnation", "ranks", "object_bytes")
            client.call("native_join", {**{k: ask[k] for k in kept}, **member})


def _lookups(target: Target, groups: int, hashes: int, **how: bool) -> None:
    """Each of a request of its own, which is finished at once, and of hashes that nobody stored."""
    head = b"\xdd" + hashes.to_bytes(4, "big")
    engine = Engine(target.url, groups=groups).start()
    try:
        for number in itertools.count():
            names = np.frombuffer(target.random.randbytes(18 * hashes), np.uint8).reshape(-1, 18)
            names = np.array(names)
            names[:, :2] = 0xC4, 16  # of 16 bytes each
            sequence = msgspec.Raw(head + names.tobytes())
            asked = [{"group": group, "hashes": sequence, **how} for group in range(groups)]
            if not target.goes_on():
                return
            engine.call("lookup", request=f"r{number}", budget_ms=1, groups=asked)
            engine.call("finish", requests=[(f"r{number}", False)])
    finally:
        engine.end_processes()


def long_sequences(target: Target) -> None:
    """Of 131,072 hashes, which is as many as a lookup may have."""
    _lookups(target, 2, 1 << 16, windowed=False, load=False)


def endless_sequences(target: Target) -> None:
    """Of as many hashes as a message takes."""
    _lookups(target, 50, 1 << 16, windowed=False, load=False)


def windows_to_load(target: Target) -> None:
    """As many, for which L2 has to be asked one by one."""
    _lookups(target, 2, 1 << 16, windowed=True, load=True)


ROWS: dict[str, Neighbour] = {
    "speaks for other engines": speaks_for_other_engines,
    "takes all and dies": takes_all_and_dies,
    "crowds the native door": crowds,
    "sequences of 131,072 hashes": long_sequences,
    "sequences of millions of hashes": endless_sequences,
    "loads of 131,072 objects": windows_to_load,
}
