"""Pickles that do something to whoever unpickles them, or cost something."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from tests.support.old_pickles import SHM, SHM_TENSOR, Named, pickled, state_of


class Canary:
    """Executed by whoever unpickles it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def hostile(canary: Path) -> dict[str, bytes]:
    """Pickles that do something, or cost something."""
    touch = Canary(canary)
    wrapper = (SHM, "CpuShmTensorWrapper")
    bomb = b"\x80\x04)" + b"\x94h\x00h\x00\x86" * 60 + b"."
    return {
        "reduce": pickle.dumps(touch, 4),
        "reduce as a value": pickled(wrapper, state_of(shm_name=touch, nbytes=1)),
        "reduce of protocol 0": pickle.dumps(touch, 0),
        "reduce of protocol 2": pickle.dumps(touch, 2),
        "build on another class": pickled(("builtins", "dict"), state_of(shm_name="a", nbytes=1)),
        "build on a callable": pickled(("os", "system"), {"a": 1}),
        "a foreign dtype": pickled(
            wrapper, state_of(dtype=Named("os", "system"), shm_name="a", nbytes=1)
        ),
        "an unknown key": pickled(
            wrapper, state_of(shm_name="/lmcache_kv_1", nbytes=1, __class__="x")
        ),
        "a persistent id": b"\x80\x04Pabc\n.",
        "an extension": b"\x80\x04\x82\x01.",
        "deep nesting": pickled(wrapper, {"shape": ((((),),),)}),
        "memo bomb": bomb,
        "a state within the state": pickled(wrapper, {"shape": {"a": 1}}),
        "a state that holds itself": b"\x80\x04\x8c\x01m\x8c\x01n\x93)\x81}\x94(\x8c\x01kh\x00ub.",
        "a huge length": b"\x80\x04\x8e" + (1 << 60).to_bytes(8, "little") + b"x.",
        "a huge number": b"\x80\x04\x8b" + (1 << 30).to_bytes(4, "little") + b"x.",
        "two objects": SHM_TENSOR[:-1] + SHM_TENSOR[2:],
        "more behind the end": SHM_TENSOR + b"\x80",
        "no end": SHM_TENSOR[:-1],
        "empty": b"\x80\x04.",
        "too long": SHM_TENSOR[:-1] + b"N" * 10_000 + b".",
        "too many opcodes": b"\x80\x04" + b"N" * 1_000 + b".",
    }
