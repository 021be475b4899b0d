"""The native door: the operations of our own connector for vLLM, on the same port.

vLLM's `OffloadingConnector` plans and copies; these operations tell its scheduler where objects
lie in the arena, and where to write new ones. They are named by strings that no release of lmcache
uses. Every reply is one value; the negative of each is written beside it. `docs/native.md` says
what the client does with them.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from sidecar.wire.messages import Count, ModelName, Rank, RequestId, WorldSize
from sidecar.wire.operations import operation

VERSION: Final = 1
SLOT_BYTES: Final = 4096  # a slot is named by its offset in the arena in these units
MISS: Final = -1
BELOW: Final = -2  # in L2, and not asked for
IN_L1: Final = 1
IN_L2: Final = 2
MOST_DESCRIPTION: Final = 2**15  # bytes

_MAX_HASHES = 2**16
_MAX_ITEMS = 2**14
_MAX_HELD = 2**20
Secret = Annotated[bytes, Meta(min_length=16, max_length=16)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
EngineId = Annotated[str, Meta(min_length=1, max_length=256)]
ObjectBytes = Annotated[int, Meta(ge=1, le=2**40)]
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
BlockHash = Annotated[bytes, Meta(min_length=16, max_length=32)]
Group = Annotated[int, Meta(ge=0, lt=256)]
Description = Annotated[bytes, Meta(max_length=MOST_DESCRIPTION)]
Slots = Annotated[list[Number], Meta(max_length=_MAX_ITEMS)]


class Attach(msgspec.Struct):
    """The scheduler process of an engine: what its objects are, `object_bytes` for all ranks.

    `identity` is a digest of all that gives the bytes and the hashes of an object their meaning.
    `incarnation` tells the process; one that attaches again has all that it had before.
    """

    version: Count
    engine: EngineId
    incarnation: Secret
    model: ModelName
    ranks: WorldSize
    groups: Annotated[int, Meta(ge=1, le=256)]
    object_bytes: ObjectBytes
    chunk_tokens: Count
    identity: Digest
    events: bool = False


class Attached(msgspec.Struct):
    """`session` 0: refused, `why` says for what. `server` changes when the server restarts.

    `arena_bytes`: no slot is behind it.
    """

    session: int = 0
    server: bytes = b""
    ready: bool = False
    why: str = ""
    arena_bytes: int = 0


class Join(msgspec.Struct):
    """One worker process of an engine; `layout` is a digest of the geometry of its KV tensors."""

    version: Count
    engine: EngineId
    incarnation: Secret
    rank: Rank
    ranks: WorldSize
    object_bytes: ObjectBytes
    layout: Digest


class Joined(msgspec.Struct):
    """The name in /dev/shm that this process alone opens, once. `member` 0: refused."""

    member: int = 0
    server: bytes = b""
    shm_name: str = ""
    arena_bytes: int = 0
    why: str = ""


class Mapped(msgspec.Struct):
    """The worker has the arena of `server` mapped."""

    member: Number
    server: Secret


class Ping(msgspec.Struct):
    """The heartbeat of a scheduler process (`session`) or of a worker process (`member`)."""

    session: Number = 0
    member: Number = 0


class Pong(msgspec.Struct):
    """`known` false: attach or join again. `ready`: all ranks have the arena mapped."""

    server: bytes = b""
    known: bool = False
    ready: bool = False


class Reserve(msgspec.Struct):
    """Ask for up to `count` slots to write objects to."""

    session: Number
    count: Annotated[int, Meta(ge=1, le=_MAX_ITEMS)]


class Publish(msgspec.Struct):
    """All ranks have written these objects: (group, hash, slot), in the order of the sequence."""

    session: Number
    request: RequestId
    items: Annotated[list[tuple[Group, BlockHash, Number]], Meta(max_length=_MAX_ITEMS)]


class Return(msgspec.Struct):
    """Slots that will not be published, and that nobody writes to any more."""

    session: Number
    slots: Slots


class GroupLookup(msgspec.Struct):
    """Which of `hashes` are there. Not `windowed`: as a prefix, up to the first that is not.

    `load`: bring windowed ones from L2; a prefix is always brought.
    """

    group: Group
    hashes: Annotated[list[BlockHash], Meta(max_length=_MAX_HASHES)]
    windowed: bool = False
    load: bool = False


class NativeLookup(msgspec.Struct):
    """One lookup of a request. What is found is pinned until the request is finished."""

    session: Number
    request: RequestId
    budget_ms: Annotated[int, Meta(ge=0, le=60_000)]
    groups: Annotated[list[GroupLookup], Meta(max_length=256)]


class Finish(msgspec.Struct):
    """No copy of what these requests found is under way any more; whether they `used` it."""

    session: Number
    requests: Annotated[list[tuple[RequestId, bool]], Meta(max_length=_MAX_ITEMS)]


class Resume(msgspec.Struct):
    """After it has attached again: all that the engine has. What is not named is free.

    It has not heard of that, or has said in vain that it is done with it.
    """

    session: Number
    slots: Annotated[list[Number], Meta(max_length=_MAX_HELD)]
    requests: Annotated[list[RequestId], Meta(max_length=_MAX_HELD)]


class Describe(msgspec.Struct):
    """What the KV events of other engines are to say of these objects: (group, hash, description).

    What a description is, is between the engines: they share objects, so they are of one kind.
    """

    session: Number
    items: Annotated[list[tuple[Group, BlockHash, Description]], Meta(max_length=_MAX_ITEMS)]


class ReadHoldings(msgspec.Struct):
    """Ask where the engine's objects are now, of those of which that has changed.

    `begin`: what was told before is lost, or void; tell of all that are there.
    """

    session: Number
    begin: bool = False


class Holdings(msgspec.Struct):
    """Where objects can be loaded from now: (group, padded hash, media, description).

    Media are the sum of IN_L1 and IN_L2, 0 for an object that is gone. `begun`: what was told
    before this answer is void; what is not told again until an answer that is `whole` is gone.
    `more`: the next answer has something, too.
    """

    items: list[tuple[int, bytes, int, bytes]] = []
    begun: bool = False
    whole: bool = False
    more: bool = False


class Detach(msgspec.Struct):
    """The engine ends. Its slots are free when its processes are gone."""

    session: Number


NATIVE: Final = (
    operation("native_attach", Attach, no=Attached()),
    operation("native_join", Join, no=Joined()),
    operation("native_mapped", Mapped, no=False),
    operation("native_ping", Ping, no=Pong()),
    operation("native_reserve", Reserve, no=[]),
    operation("native_publish", Publish, no=0),
    operation("native_return", Return, no=False),
    operation("native_lookup", NativeLookup, no=[]),
    operation("native_finish", Finish, no=False),
    operation("native_resume", Resume, no=False),
    operation("native_describe", Describe, no=0),
    operation("native_holdings", ReadHoldings, no=Holdings()),
    operation("native_detach", Detach, no=False),
)
