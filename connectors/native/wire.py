"""The messages between an engine and its sidecar: vLLM's own connector is the client.

A request is the frames `[uid, operation, payload]`, its only reply `[uid, operation, value]`; all
are msgpack, the payload a map. A reply without a value, or with one that is not of its type, is a
"no". The server has the same definitions in a package of its own: nothing here imports it.
"""

from collections.abc import Sequence
from typing import Any, Final, TypeVar

import msgspec

VERSION: Final = 1
# A slot is an offset in the arena in units of this many bytes, so that vLLM's int32 ids hold it.
SLOT_BYTES: Final = 4096
LAST_SLOT: Final = 2**31 - 1
# What a lookup says of a hash beside its slot.
MISS: Final = -1
BELOW: Final = -2  # in L2, and not loaded
# The most of a list that the server reads.
MOST_HASHES: Final = 2**16
MOST_ITEMS: Final = 2**14
MOST_DESCRIPTION: Final = 2**15  # bytes
# Where an object is; 0 is nowhere.
IN_L1: Final = 1
IN_L2: Final = 2

ATTACH: Final = "native_attach"
JOIN: Final = "native_join"
MAPPED: Final = "native_mapped"
PING: Final = "native_ping"
RESERVE: Final = "native_reserve"
PUBLISH: Final = "native_publish"
RETURN: Final = "native_return"
LOOKUP: Final = "native_lookup"
FINISH: Final = "native_finish"
RESUME: Final = "native_resume"
DESCRIBE: Final = "native_describe"
HOLDINGS: Final = "native_holdings"
DETACH: Final = "native_detach"
CLEAR: Final = "clear"


class Attach(msgspec.Struct, frozen=True, kw_only=True):
    """The scheduler's process introduces its engine.

    `engine` is a secret of the engine's processes, `incarnation` (16 bytes) one of this process.
    `identity` is the digest of all that gives hashes and bytes their meaning, and `object_bytes`
    the size of a chunk with all its ranks, `chunk_tokens` how many tokens one is.
    """

    version: int = VERSION
    engine: str
    incarnation: bytes
    model: str
    ranks: int
    groups: int
    object_bytes: int
    chunk_tokens: int
    identity: bytes
    events: bool = False


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """`session` 0 is a refusal, and `why` its reason. `server` is another after a restart.

    `ready`: all ranks have the arena mapped. `arena_bytes` is not told by older servers.
    """

    session: int
    server: bytes
    ready: bool
    why: str = ""
    arena_bytes: int = SLOT_BYTES * (LAST_SLOT + 1)


class Join(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process introduces itself; `layout` is the digest of its tensors' geometry."""

    version: int = VERSION
    engine: str
    incarnation: bytes
    rank: int
    ranks: int
    object_bytes: int
    layout: bytes


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """`member` 0 is a refusal. The arena is `/dev/shm/<shm_name>`, of `arena_bytes`."""

    member: int
    server: bytes
    shm_name: str
    arena_bytes: int
    why: str = ""


class Mapped(msgspec.Struct, frozen=True, kw_only=True):
    """This member has the arena of `server` mapped."""

    member: int
    server: bytes


class Ping(msgspec.Struct, frozen=True, kw_only=True):
    """Asks whether the sidecar still knows the sender."""

    session: int = 0
    member: int = 0


class Pong(msgspec.Struct, frozen=True, kw_only=True):
    server: bytes
    known: bool
    ready: bool


class Reserve(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for up to `count` slots to write objects to; the answer is a list of them."""

    session: int
    count: int


class Publish(msgspec.Struct, frozen=True, kw_only=True):
    """All ranks have written these objects: (group, hash, slot), in the sequence's order."""

    session: int
    request: str
    items: Sequence[tuple[int, bytes, int]]


class Return(msgspec.Struct, frozen=True, kw_only=True):
    """Nobody will write to these slots any more."""

    session: int
    slots: Sequence[int]


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What a lookup asks of one group.

    The hashes are a prefix in its order, or, `windowed`, each is asked for itself; those in L2
    are then loaded only for `load`.
    """

    group: int
    windowed: bool
    load: bool
    hashes: Sequence[bytes]


class Lookup(msgspec.Struct, frozen=True, kw_only=True):
    """The answer has a list for each of `groups`: for each hash its pinned slot, MISS or BELOW."""

    session: int
    request: str
    budget_ms: int
    groups: Sequence[Wanted]


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """The pins of these requests end; with each, whether it has loaded from them."""

    session: int
    requests: Sequence[tuple[str, bool]]


class Resume(msgspec.Struct, frozen=True, kw_only=True):
    """All slots that the engine has, and all requests that have pins; nothing else is still used.

    Sent after a session went over to another connection: what was said on the one before, by either
    side, may be lost.
    """

    session: int
    slots: Sequence[int]
    requests: Sequence[str]


class Describe(msgspec.Struct, frozen=True, kw_only=True):
    """What others' KV events are to say of these objects: (group, hash, description)."""

    session: int
    items: Sequence[tuple[int, bytes, bytes]]


class ReadHoldings(msgspec.Struct, frozen=True, kw_only=True):
    """Asks of which objects it has changed where they are; `begin`: tell of all."""

    session: int
    begin: bool


class Holdings(msgspec.Struct, frozen=True, kw_only=True):
    """(group, hash padded to 32 bytes, media, description).

    Media are a sum of IN_L1 and IN_L2. `begun`: what was told before is void, and gone unless it
    is told again until an answer that is `whole`. `more`: the next answer has something, too.
    """

    items: Sequence[tuple[int, bytes, int, bytes]]
    begun: bool
    whole: bool
    more: bool


class Detach(msgspec.Struct, frozen=True, kw_only=True):
    session: int


Value = TypeVar("Value")


def request(uid: int, operation: str, payload: Any) -> list[bytes]:
    """The frames of a request."""
    encode = msgspec.msgpack.encode
    return [encode(uid), encode(operation), encode(payload)]


def reply_uid(frames: Sequence[bytes]) -> int | None:
    """Whose answer it is; None for what is no answer."""
    try:
        return msgspec.msgpack.decode(frames[0], type=int)
    except (IndexError, msgspec.DecodeError):
        return None


def value(frames: Sequence[bytes], kind: type[Value]) -> Value | None:
    """What an answer says; None for a "no", which is also what cannot be read."""
    try:
        return msgspec.msgpack.decode(frames[2], type=kind)
    except (IndexError, msgspec.DecodeError):
        return None
