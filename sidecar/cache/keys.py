"""Token chunks -> chunk hashes, and the spaces in which a hash names an object."""

from typing import NamedTuple

from blake3 import blake3

BYTES_PER_TOKEN = 4
# h_{-1}: what the first chunk of every sequence is chained to (section 2.0 of the protocol
# notes; the same in every client release, and what KV events carry).
ROOT = blake3(bytes(8) + bytes(4)).digest()


def chunk_hashes(chain: list[bytes], tokens: bytes, chunk_size: int, chunks: int) -> list[bytes]:
    """The 32-byte hashes of the first `chunks` whole chunks of `tokens`.

    `tokens` holds big-endian u32 a token, `chunk_size` tokens a chunk; each hash covers all
    tokens before it as well. `chain` holds those already known and is extended.
    """
    width = chunk_size * BYTES_PER_TOKEN
    parent = chain[-1] if chain else ROOT
    for at in range(len(chain) * width, chunks * width, width):
        parent = blake3(parent + tokens[at : at + width]).digest()
        chain.append(parent)
    return chain[:chunks]


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


# Of slots that an earlier server has left, and that are no object: no tenant pays for them.
NOBODY = SpaceKey("", 0, 0, "", b"")
