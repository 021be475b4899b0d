"""Pickles as lmcache up to 0.5.5 makes them of its tensor handles, without its classes."""

from __future__ import annotations

import io
import pickle
from typing import Any

OLD = "lmcache.v1.multiprocess.custom_types"
CUDA = "lmcache.v1.platform.cuda.ipc_wrapper"
SHM = "lmcache.v1.platform.cpu.shm"


class Named:
    """Pickled as a global of this name."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Made:
    """Pickled as an object of the class `of` whose state is a dict."""

    def __init__(self, of: Named, state: Any) -> None:
        self.of, self.state = of, state


class _Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    def save(self, obj: Any, save_persistent_id: bool = True) -> None:
        if isinstance(obj, Named):
            self.save(obj.module)
            self.save(obj.name)
            self.write(pickle.STACK_GLOBAL)
            self.memoize(obj)
        elif isinstance(obj, Made):
            self.save(obj.of)
            self.save(())
            self.write(pickle.NEWOBJ)
            self.memoize(obj)
            self.save(obj.state)
            self.write(pickle.BUILD)
        else:
            super().save(obj, save_persistent_id)


def pickled(of: tuple[str, str], state: Any) -> bytes:
    """The pickle (protocol 4) of an object of the class `of` (module, name)."""
    out = io.BytesIO()
    _Pickler(out, 4).dump(Made(Named(*of), state))
    return out.getvalue()


def state_of(**fields: Any) -> dict[str, Any]:
    """The state that all wrappers have in common: two blocks of 4 x 8 halves."""
    return {
        "handle": None,
        "dtype": Named("torch", "float16"),
        "shape": (2, 4, 8),
        "stride": (32, 8, 1),
        "storage_offset": 0,
        "device_uuid": "cpu",
        **fields,
    }


TORCH_HANDLE = (0, b"\x00c" + b"h" * 64, 1 << 32, 4096, b"/torch_1_2_3", 7, b"e" * 64, True)
SHM_TENSOR = pickled((SHM, "CpuShmTensorWrapper"), state_of(shm_name="/lmcache_kv_1_2", nbytes=128))
