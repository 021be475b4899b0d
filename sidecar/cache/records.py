"""The index beside the arena: what a server writes of its L1 for its successor.

A page of head, a table of spaces, and a record for each page of the arena, in which a slot may
begin. Most of the file is a hole. Whoever reads it trusts nothing: it was another process, and may
have been another version.

    head:   magic 8 | length u32 | msgpack of Head | xxh3_64 of all that
    space:  length u16 | msgpack of the key | xxh3_64 of all that
    record: kind u8 | read u8 | missing groups u16 | space u16 | size u32 | chunk hash 32 |
            first 12 bytes of the object's xxh3_128, zeros if not known | xxh32 u32 | age u48

Integers are little-endian. The xxh32 is of what stands before it, without `read`, and of the
page's number and the space's key: so a record counts in its own place only.
"""

import struct
from pathlib import Path
from typing import NamedTuple

import msgspec
import xxhash

from sidecar.cache.keys import SpaceKey

VERSION = 2
HEAD_BYTES, SPACE_BYTES, RECORD_BYTES = 4096, 1024, 64
MAX_SPACES = 1 << 16
TABLE_AT = HEAD_BYTES + MAX_SPACES * SPACE_BYTES
PAGE_BYTES = 4096  # of the arena, a record each
MAX_SIZE, MAX_GROUPS = (1 << 32) - 1, 16
READ_AT, AGE_AT = 1, 58  # in a record
AGE_BYTES = 6
# No check covers an age, so what is damaged may say anything: there is as much room above this.
MAX_AGE = 1 << 47
DIGEST_BYTES = 12
NO_DIGEST = bytes(DIGEST_BYTES)
# What a slot was: being written by whomever, an object that is complete, or one that is, too, and
# whose key has no place here.
TAKEN, READY, NAMELESS = 1, 2, 3

_MAGIC = b"KVSIDX\r\n"
_LENGTH, _SHORT = struct.Struct("<I"), struct.Struct("<H")
_FIXED = struct.Struct(f"<BxHHI32s{DIGEST_BYTES}s")
_CHECK = struct.Struct("<I")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Unusable(Exception):
    """There is nothing to go on with; the text says why."""


class Head(msgspec.Struct, array_like=True, frozen=True):
    """What must be the same for a successor, and how its predecessor has ended.

    `clean`: it has stopped in order, so what is READY is whole. `usable`: it was not in the midst
    of a change of everything. `shared`: others may have the arena open by its own name. `epochs`:
    those of its L2 to which all that is here belongs, and to none before them.
    """

    version: int
    boot_id: str
    arena_bytes: int
    headroom: int
    parts: list[int]
    chunk_size: int
    clean: bool = False
    usable: bool = True
    shared: bool = False
    epochs: list[str] = []


def head_of(arena_bytes: int, headroom: int, parts: list[int], chunk_size: int) -> Head:
    """That of this server, at its start."""
    boot_id = _BOOT_ID.read_text().strip()
    return Head(VERSION, boot_id, arena_bytes, headroom, parts, chunk_size)


def table_bytes(arena_bytes: int) -> int:
    return -(-arena_bytes // PAGE_BYTES) * RECORD_BYTES


def write_head(head: Head) -> bytes:
    body = msgspec.msgpack.encode(head)
    front = _MAGIC + _LENGTH.pack(len(body)) + body
    return (front + xxhash.xxh3_64_digest(front)).ljust(HEAD_BYTES, b"\0")


def read_head(data: bytes, ours: Head) -> Head:
    """The head of the predecessor of `ours`. Raises Unusable unless `ours` can go on with it."""
    end = len(_MAGIC) + _LENGTH.size
    if len(data) < HEAD_BYTES or not data.startswith(_MAGIC):
        raise Unusable("it has no valid index")
    end += _LENGTH.unpack_from(data, len(_MAGIC))[0]
    if end + 8 > HEAD_BYTES or xxhash.xxh3_64_digest(data[:end]) != data[end : end + 8]:
        raise Unusable("its index is damaged")
    try:
        head = msgspec.msgpack.decode(data[len(_MAGIC) + _LENGTH.size : end], type=Head)
    except msgspec.DecodeError:
        raise Unusable("its index has another format") from None
    for what, theirs, own in (
        ("its index has another version", head.version, ours.version),
        ("the machine was booted since", head.boot_id, ours.boot_id),
        ("it has another size", head.arena_bytes, ours.arena_bytes),
        ("one of both servers has an L2, the other has none", head.headroom, ours.headroom),
        ("it lies on other NUMA nodes", head.parts, ours.parts),
        ("its chunks have another size", head.chunk_size, ours.chunk_size),
        ("its last change is not complete", head.usable, True),
    ):
        if theirs != own:
            raise Unusable(f"{what} ({theirs}, not {own})")
    return head


def write_space(key: SpaceKey) -> bytes | None:
    """None if the key is too long to be kept."""
    body = msgspec.msgpack.encode(key)
    front = _SHORT.pack(len(body)) + body
    if len(front) + 8 > SPACE_BYTES:
        return None
    return front + xxhash.xxh3_64_digest(front)


def read_space(data: bytes) -> SpaceKey:
    """Raises Unusable."""
    end = _SHORT.size + _SHORT.unpack_from(data)[0]
    if end + 8 > SPACE_BYTES or xxhash.xxh3_64_digest(data[:end]) != data[end : end + 8]:
        raise Unusable("a space of its index is damaged")
    try:
        return msgspec.msgpack.decode(data[_SHORT.size : end], type=SpaceKey)
    except msgspec.DecodeError:
        raise Unusable("a space of its index is damaged") from None


def seed_of(space: SpaceKey | None) -> int:
    """What a space's key adds to the check of a record."""
    return xxhash.xxh32_intdigest(msgspec.msgpack.encode(space)) if space else 0


class Record(NamedTuple):
    """A slot: that of `page`, which is in the place of its record and not in it."""

    page: int
    kind: int
    missing: int
    space: int
    size: int
    hash: bytes
    digest: bytes
    age: int
    read: bool = False


def write_record(record: Record, seed: int) -> bytes:
    """`seed` is of its space; 0 without one. As `read` is never True of what is written whole."""
    _, kind, missing, space, size, chunk_hash, digest, age, _ = record
    fixed = _FIXED.pack(kind, missing, space, size, chunk_hash, digest)
    return fixed + _CHECK.pack(_check(fixed, record.page, seed)) + write_age(age)


def write_age(age: int) -> bytes:
    return age.to_bytes(AGE_BYTES, "little")


def read_record(data: bytes, page: int) -> tuple[Record, int, bytes]:
    """The record of `page`, and what `is_whole` needs to tell whether it is one."""
    kind, missing, space, size, chunk_hash, digest = _FIXED.unpack_from(data)
    check, age = _CHECK.unpack_from(data, _FIXED.size)[0], int.from_bytes(data[AGE_AT:], "little")
    fixed = data[:READ_AT] + b"\0" + data[READ_AT + 1 : _FIXED.size]
    record = Record(page, kind, missing, space, size, chunk_hash, digest, age, bool(data[READ_AT]))
    return record, check, fixed


def is_whole(record: Record, check: int, fixed: bytes, seed: int) -> bool:
    if record.kind not in (TAKEN, READY, NAMELESS) or record.age > MAX_AGE:
        return False
    return check == _check(fixed, record.page, seed)


def _check(fixed: bytes, page: int, seed: int) -> int:
    return xxhash.xxh32_intdigest(fixed, (seed ^ page) & 0xFFFFFFFF)
