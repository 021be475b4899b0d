"""What the server and a GPU's child tell each other, as msgpack over a pipe."""

from multiprocessing.connection import Connection

import msgspec


class Allocation(msgspec.Struct, array_like=True, frozen=True):
    """Memory of a worker by its CUDA IPC handle (64 bytes). `reach` bytes of it are used."""

    handle: bytes
    reach: int


class Planes(msgspec.Struct, array_like=True, frozen=True):
    """Planes with equal runs: of each (allocation, offset in it, stride), in bytes."""

    run: int
    planes: list[tuple[int, int, int]]


class Map(msgspec.Struct, tag=True, frozen=True):
    """Map a worker's memory; answered by Mapped.

    `worker` is never used again for another registration, while an `instance` may register again.
    It `imports_events`: its client can be answered with events only, not with none.
    """

    worker: int
    instance: int
    allocations: list[Allocation]
    groups: list[list[Planes]]
    imports_events: bool = False


class Unmap(msgspec.Struct, tag=True, frozen=True):
    """Let go of a worker's memory when its transfers have ended; answered by Unmapped."""

    worker: int


class Move(msgspec.Struct, tag=True, frozen=True):
    """Copy chunks; answered by Moved. Offsets are places in the arena.

    By group: `blocks` is int64 [chunks, blocks a chunk], `wanted` bool of the same shape, or
    None for all. `event` is the worker's: nothing is touched before it.
    """

    job: int
    worker: int
    is_store: bool
    event: bytes
    offsets: list[int]
    blocks: list[bytes]
    wanted: list[bytes | None]


class FileObject(msgspec.Struct, array_like=True, frozen=True):
    """An object in a file: `size` bytes at `offset`, whose xxh3_128 is `digest` (16 bytes).

    Of one that is to be written nobody knows the digest yet: it is empty.
    """

    path: str
    offset: int
    size: int
    digest: bytes


class MoveFiles(msgspec.Struct, tag=True, frozen=True):
    """Like a Move, but between files and the worker's blocks, past the arena.

    Of a load nothing is written to the blocks unless its chunk's digest is right. The files of
    a store are there in full length. Answered by Moved.
    """

    job: int
    worker: int
    is_store: bool
    event: bytes
    objects: list[FileObject]
    blocks: list[bytes]
    wanted: list[bytes | None]


class OpenFiles(msgspec.Struct, tag=True, frozen=True):
    """Get ready to move files by this NIXL backend; answered by FilesOpened."""

    backend: str
    params: dict[str, str]


class Populated(msgspec.Struct, tag=True, frozen=True):
    """These pieces of the arena are resident, by number."""

    pieces: list[int]


class Ping(msgspec.Struct, tag=True, frozen=True):
    """Answered by Pong, by the thread that uses the driver."""


class End(msgspec.Struct, tag=True, frozen=True):
    """The last worker has left: the process ends after its copies. There is no answer."""


class Near(msgspec.Struct, tag=True, frozen=True):
    """Which part of the arena lies on the GPU's NUMA node. It comes first, if there is one."""

    part: int


class Mapped(msgspec.Struct, tag=True, frozen=True):
    """`error` is why the memory could not be mapped.

    `events` have happened, and the worker can import them (IPC handles of 64 bytes).
    """

    worker: int
    error: str | None
    events: list[bytes] = []


class Unmapped(msgspec.Struct, tag=True, frozen=True):
    """A worker's memory is not mapped any more."""

    worker: int


class Moved(msgspec.Struct, tag=True, frozen=True):
    """A transfer has ended: nobody touches its memory now. Times in seconds.

    It waited for the worker's event, then for its turn and the copies. `file_failed`: the error is
    one of its files. `digests` are those of the objects that were written to files.
    """

    job: int
    error: str | None
    waited: float
    copied: float
    file_failed: bool = False
    digests: list[bytes] = []


class FilesOpened(msgspec.Struct, tag=True, frozen=True):
    """`error` is why there are no copies between files and GPU memory.

    It comes once more, with an error, when that ends: no MoveFiles succeeds after it.
    """

    error: str | None


class Pong(msgspec.Struct, tag=True, frozen=True):
    """Bytes of the arena that are pinned."""

    pinned: int


class Unusable(msgspec.Struct, tag=True, frozen=True):
    """There is no driver or no such GPU; the child ends. With `is_final` that stays so."""

    reason: str
    is_final: bool


ToChild = Map | Unmap | Move | MoveFiles | OpenFiles | Populated | Ping | End
ToServer = Near | Mapped | Unmapped | Moved | FilesOpened | Pong | Unusable

_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_to_server: msgspec.msgpack.Decoder[ToServer] = msgspec.msgpack.Decoder(ToServer)


def send(pipe: Connection, message: ToChild | ToServer) -> None:
    """Raises OSError if the other side is gone."""
    pipe.send_bytes(msgspec.msgpack.encode(message))


def receive_order(pipe: Connection) -> ToChild:
    """What the server says. Raises EOFError or OSError when it is gone."""
    return _to_child.decode(pipe.recv_bytes())


def receive_answer(pipe: Connection) -> ToServer:
    """What the child says. Raises EOFError or OSError when it is gone."""
    return _to_server.decode(pipe.recv_bytes())
