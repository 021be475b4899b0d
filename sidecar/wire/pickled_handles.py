"""Tensor handles of lmcache up to 0.5.5, which come as pickles, read as data.

Nothing is unpickled: unpickling is code execution for whoever reaches the port. The standard
library's `pickletools` splits the bytes into opcodes, without doing what they say, and the few
opcodes that the released clients' handles are made of build ints, strings, bytes, tuples of these
and one dict. There is no import, no call and no object. Everything else is refused: other opcodes,
classes and keys, nested tuples, references to what may change, and whatever is too long.

Source: section 5.3 of the protocol notes, and the wrappers' state in the packages, 0.4.5 to 0.5.5.
"""

import pickletools
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sidecar.wire.messages import BadPayload

_MAX_BYTES: Final = 8_192
_MAX_OPCODES: Final = 512
_MAX_ITEMS: Final = 64  # of a tuple or of the state
_OLD, _NEW = "lmcache.v1.multiprocess.custom_types", "lmcache.v1.platform.cuda.ipc_wrapper"
# By class: the tag of its msgpack form (0.5.6), and the state's keys under their names there.
_TORCH = {"handle": "handle"}
_RAW = {"_ipc_handle_reserved": "ipc_handle", "_alloc_offset": "alloc_offset", "_nbytes": "nbytes"}
_SHM = {"shm_name": "shm_name", "nbytes": "nbytes"}
_CLASSES: Final[Mapping[tuple[str, str], tuple[str, Mapping[str, str]]]] = {
    (_OLD, "CudaIPCWrapper"): ("cuda", _TORCH),
    (_NEW, "CudaIPCWrapper"): ("cuda", _TORCH),
    (_OLD, "RawCudaIPCWrapper"): ("cuda_raw", _RAW),
    (_NEW, "RawCudaIPCWrapper"): ("cuda_raw", _RAW),
    (_NEW, "VmmCudaIPCWrapper"): ("cuda_vmm", {}),
    ("lmcache.v1.platform.cpu.shm", "CpuShmTensorWrapper"): ("cpu_shm", _SHM),
}
_METADATA = ("dtype", "shape", "stride", "storage_offset", "device_uuid")
# In some states, and without meaning for a reader.
_IGNORED = {"handle", "_opens", "_export_id", "_kind", "_fabric_blob", "_alloc_size"}


class Global(NamedTuple):
    """A name that unpickling would import."""

    module: str
    name: str


class _Mark(NamedTuple):
    """Where a tuple or the items of a dict begin on the stack."""


class Instance(NamedTuple):
    """An object without state, of a class that is only named."""

    of: Global


_Scalar = int | str | bytes | None
_SCALARS = (int, str, bytes, type(None))  # bool is an int
_PUSH_ARGUMENT = {
    "SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES",
    "BININT", "BININT1", "BININT2", "LONG1",
}  # fmt: skip
_PUSH_CONSTANT: Mapping[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLE_OF = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickled_handle(body: bytes) -> dict[str, Any]:
    """The handle in its msgpack form of 0.5.6, as a map; its values are still to be checked.

    Raises BadPayload for anything but a handle that a released client makes.
    """
    if len(body) > _MAX_BYTES:
        raise BadPayload(f"pickled tensor handle: {len(body)} bytes")
    try:
        of, state = _Reader().read(body)
    # IndexError: an opcode that takes more from the stack than is there.
    except (ValueError, IndexError) as error:
        raise BadPayload(f"pickled tensor handle: {str(error)[:200]}") from None
    return _descriptor(of, state)


class _Reader:
    """The stack machine of pickle's protocol 4, without the opcodes that do something."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: list[Any] = []

    def read(self, body: bytes) -> tuple[Global, dict[str, Any]]:
        """The class's name and the state of the one object. Raises ValueError or IndexError."""
        built: tuple[Global, dict[str, Any]] | None = None
        for count, (opcode, argument, position) in enumerate(pickletools.genops(body)):
            if count >= _MAX_OPCODES:
                raise ValueError("too many opcodes")
            if built is not None:
                if opcode.name == "STOP" and position == len(body) - 1 and not self._stack:
                    return built
                raise ValueError(f"{opcode.name} behind the object")
            if opcode.name == "BUILD":
                built = self._build()
            else:
                self._step(opcode.name, argument)
        raise ValueError("no object")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _PUSH_ARGUMENT:
            stack.append(argument)
        elif name in _PUSH_CONSTANT:
            stack.append(_PUSH_CONSTANT[name])
        elif name in _TUPLE_OF:
            self._tuple(_TUPLE_OF[name])
        elif name in ("PROTO", "FRAME"):
            pass  # what they say of lengths is nothing to rely on
        elif name == "MARK":
            stack.append(_Mark())
        elif name == "TUPLE":
            self._tuple(self._above_mark())
            del stack[-2]
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "SETITEMS":
            self._set_items(self._above_mark())
        elif name == "MEMOIZE":
            self._memo.append(stack[-1])
        elif name in ("BINGET", "LONG_BINGET"):
            self._get(argument)
        elif name == "STACK_GLOBAL":
            self._global()
        elif name == "NEWOBJ":
            self._new()
        else:
            raise ValueError(f"opcode {name}")

    def _above_mark(self) -> int:
        """How many items are above the last mark."""
        for count, item in enumerate(reversed(self._stack)):
            if isinstance(item, _Mark):
                return count
        raise ValueError("no mark")

    def _tuple(self, size: int) -> None:
        items = tuple(self._take(size))
        if not all(isinstance(item, _SCALARS) for item in items):
            raise ValueError("a tuple of other than numbers, strings and bytes")
        self._stack.append(items)

    def _set_items(self, size: int) -> None:
        items = self._take(size)
        self._stack.pop()  # the mark
        state = self._stack[-1]
        if not isinstance(state, dict) or state or size % 2:
            raise ValueError("items that belong to no new dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str) or key in state:
                raise ValueError("a key that is no string, or is there twice")
            if isinstance(value, (dict, Instance, _Mark)):
                raise ValueError("a state within the state")
            state[key] = value

    def _get(self, index: int) -> None:
        item = self._memo[index]
        if isinstance(item, (dict, Instance, _Mark)):
            raise ValueError("a reference to what may change")
        self._stack.append(item)

    def _global(self) -> None:
        module, name = self._take(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a global whose name is no string")
        self._stack.append(Global(module, name))

    def _new(self) -> None:
        of, arguments = self._take(2)
        if not isinstance(of, Global) or arguments != ():
            raise ValueError("an object made with arguments")
        self._stack.append(Instance(of))

    def _build(self) -> tuple[Global, dict[str, Any]]:
        instance, state = self._take(2)
        if not (isinstance(instance, Instance) and isinstance(state, dict)):
            raise ValueError("a state that is no dict")
        return instance.of, state

    def _take(self, size: int) -> list[Any]:
        if size > _MAX_ITEMS:
            raise ValueError(f"{size} items")
        if size > len(self._stack):
            raise IndexError("the stack is empty")
        at = len(self._stack) - size
        taken = self._stack[at:]
        del self._stack[at:]
        return taken


def _descriptor(of: Global, state: dict[str, Any]) -> dict[str, Any]:
    """The map that a 0.5.6 client would send. Raises BadPayload."""
    if of not in _CLASSES:
        raise BadPayload(f"pickled tensor handle: class {of.module[:64]}.{of.name[:64]}")
    tag, fields = _CLASSES[of]
    missing = [key for key in (*_METADATA, *fields) if key not in state]
    unknown = state.keys() - {*_METADATA, *fields, *_IGNORED}
    if missing or (unknown and tag != "cuda_vmm"):
        wrong = ", ".join(sorted([*missing, *(key[:64] for key in unknown)]))
        raise BadPayload(f"pickled tensor handle: {of.name} without or with {wrong}")
    dtype = state["dtype"]
    if not isinstance(dtype, Global) or dtype.module != "torch":
        raise BadPayload("pickled tensor handle: dtype is not torch's")
    metadata = {key: state[key] for key in _METADATA} | {"dtype": dtype.name}
    values = {name: state[key] for key, name in fields.items()}
    return {"type": tag, "version": 1, "metadata": metadata, **values}
