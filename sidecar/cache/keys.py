"""Token chunks -> chunk hashes, and the spaces in which a hash names an object."""

from typing import NamedTuple

from blake3 import blake3

BYTES_PER_TOKEN = 4
# h_{-1}: what the first chunk of every sequence is chained to (section 2.0 of the protocol
# notes; the same in every client release, and what KV events carry).
ROOT = blake3(bytes(8) + bytes(4)).digest()


def chunk_hashes(tokens: bytes, chunk_size: int, chunks: int) -> list[bytes]:
    """The 32-byte hashes of the first `chunks` whole chunks of `tokens`.

    `tokens` holds big-endian u32 a token, `chunk_size` tokens a chunk; each hash covers all
    tokens before it as well.
    """
    width = chunk_size * BYTES_PER_TOKEN
    parent, hashes = ROOT, []
    for at in range(0, chunks * width, width):
        parent = blake3(parent + tokens[at : at + width]).digest()
        hashes.append(parent)
    return hashes


class SpaceKey(NamedTuple):
    """What besides the chunk hash tells objects apart.

    `fingerprint` is the worker's layout: bytes are only ever given to a worker to which they
    mean the same as to the one that stored them.
    """

    model_name: str
    world_size: int
    rank: int
    cache_salt: str
    fingerprint: bytes
