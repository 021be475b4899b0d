"""What is kept in a backend proves itself: a header page before the object's bytes.

A record is one page of header and the object, padded to whole pages:

    magic 8 | format version u16 | 0 u16 | length of meta u32 | length of the object u64 |
    xxh3_128 of the object 16 | meta | zeros | xxh3_64 of all that, the page's last 8 |
    object | padding

Meta is a msgpack array: model name, world size, rank, salt, layout fingerprint, chunk hash,
and the KV groups whose blocks were null when it was stored. Integers are little-endian.
"""

import struct
from typing import NamedTuple

import msgspec
import numpy as np
import xxhash

from sidecar.cache.keys import SpaceKey
from sidecar.tiers.base import Bytes, Corrupt

HEADER_BYTES = 4096
_MAGIC = b"KVSIDECA"
_VERSION = 1
_FIXED = struct.Struct("<8sHHIQ16s")
_DIGEST_AT = HEADER_BYTES - 8


class Meta(msgspec.Struct, array_like=True, frozen=True):
    """The key of an object and what else must be known of it."""

    model_name: str
    world_size: int
    rank: int
    cache_salt: str
    fingerprint: bytes
    hash: bytes
    missing: list[int]


class Header(NamedTuple):
    """What a record's first page says of its object: xxh3_128, and missing KV groups."""

    digest: bytes
    missing: frozenset[int]


_decoder = msgspec.msgpack.Decoder(Meta)


def seal(record: Bytes, space: SpaceKey, hash: bytes, length: int, missing: frozenset[int]) -> None:
    """Write the header of the object of `length` bytes that `record` holds.

    Sealing it twice writes the same bytes.
    """
    digest = xxhash.xxh3_128_digest(record[HEADER_BYTES : HEADER_BYTES + length].data)
    head = write_header(Header(digest, missing), space, hash, length)
    record[:HEADER_BYTES] = np.frombuffer(head, np.uint8)


def write_header(header: Header, space: SpaceKey, hash: bytes, length: int) -> bytes:
    """The first page of the record of the object of `length` bytes."""
    meta = msgspec.msgpack.encode(Meta(*space, hash, sorted(header.missing)))
    fixed = _FIXED.pack(_MAGIC, _VERSION, 0, len(meta), length, header.digest)
    head = (fixed + meta).ljust(_DIGEST_AT, b"\0")
    return head + xxhash.xxh3_64_digest(head)


def verify(record: Bytes, space: SpaceKey, hash: bytes, length: int) -> frozenset[int]:
    """Check that `record` holds this very object, whole; returns its missing KV groups.

    Raises Corrupt; the cause is what was wrong: magic, version, header, key, length, checksum.
    """
    header = read_header(record[:HEADER_BYTES].tobytes(), space, hash, length)
    body = record[HEADER_BYTES : HEADER_BYTES + length].data
    if xxhash.xxh3_128_digest(body) != header.digest:
        raise Corrupt("checksum")
    return header.missing


def read_header(head: bytes, space: SpaceKey, hash: bytes, length: int) -> Header:
    """Check that this is the first page of the record of this very object.

    Raises Corrupt, like `verify`, but for the checksum of the object.
    """
    magic, version, _, meta_length, body_length, digest = _FIXED.unpack_from(head)
    end = _FIXED.size + meta_length
    if magic != _MAGIC:
        raise Corrupt("magic")
    if version != _VERSION:
        raise Corrupt("version", f"format {version}")
    if end > _DIGEST_AT or xxhash.xxh3_64_digest(head[:_DIGEST_AT]) != head[_DIGEST_AT:]:
        raise Corrupt("header")
    meta = _decode(head[_FIXED.size : end])
    if meta != Meta(*space, hash, meta.missing):
        raise Corrupt("key", f"it is a chunk of {meta.model_name}")
    if body_length != length:
        raise Corrupt("length", f"{body_length} bytes")
    return Header(digest, frozenset(meta.missing))


def _decode(data: bytes) -> Meta:
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise Corrupt("header", str(error)) from None
