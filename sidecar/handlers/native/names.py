"""How objects of the native door are called in the cache."""

_HASH_BYTES = 32


def padded(block_hash: bytes) -> bytes:
    """The name of the object with this hash, which may be shorter than names are."""
    return block_hash.ljust(_HASH_BYTES, b"\0")
