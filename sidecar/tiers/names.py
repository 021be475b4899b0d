"""How an object is called in a backend: `space/hash`, readable, safe as a path and as a key.

    meta-llama=2FLlama-3.1-8B@1.0@<layout fingerprint>[@salt]/<chunk hash>

The space says model, world size and rank, layout and tenant: all that the hash does not
cover. Neither model names nor salts may contain "@".
"""

import hashlib
import re
from functools import lru_cache
from typing import NamedTuple

from sidecar.cache.keys import SpaceKey

_SAFE = re.compile(rb"[A-Za-z0-9._-]")
_MAX_COMPONENT = 240  # bytes; file systems allow 255
_HASH = re.compile(r"[0-9a-f]{64}")
_NAMED = re.compile(r"([^@]+)@(\d+)\.(\d+)@([0-9a-f]{32})(?:@([^@]+))?")
_DIGEST_MARK = "=="


class ObjectName(NamedTuple):
    """The name of one record."""

    space: str
    hash: bytes

    @property
    def path(self) -> str:
        """As one string."""
        return f"{self.space}/{self.hash.hex()}"


def parse_path(path: str) -> ObjectName | None:
    """The inverse of `ObjectName.path`; None for what is no such path."""
    space, _, digits = path.rpartition("/")
    if not space or "/" in space or not _HASH.fullmatch(digits):
        return None
    return ObjectName(space, bytes.fromhex(digits))


@lru_cache(maxsize=4096)
def space_name(key: SpaceKey) -> str:
    """The name of a space. One that would be too long is called by its digest."""
    parts = [_quote(key.model_name), f"{key.world_size}.{key.rank}", key.fingerprint.hex()]
    if key.cache_salt:
        parts.append(_quote(key.cache_salt))
    name = "@".join(parts)
    if len(name) <= _MAX_COMPONENT:
        return name
    return _DIGEST_MARK + hashlib.blake2b(name.encode(), digest_size=32).hexdigest()


def object_name(space: SpaceKey, chunk_hash: bytes) -> ObjectName:
    return ObjectName(space_name(space), chunk_hash)


def parse_space(name: str) -> SpaceKey | None:
    """The space that is called `name`; None if it is called by a digest, or is none."""
    match = _NAMED.fullmatch(name)
    if match is None:
        return None
    model, world, rank, fingerprint, salt = match.groups()
    try:
        return SpaceKey(
            _unquote(model), int(world), int(rank), _unquote(salt or ""), bytes.fromhex(fingerprint)
        )
    except ValueError:
        return None


def _quote(text: str) -> str:
    # "=" rather than "%": object stores and HTTP clients would quote that once more.
    data = text.encode("utf-8", "surrogatepass")
    return "".join(chr(b) if _SAFE.match(bytes([b])) else f"={b:02X}" for b in data)


def _unquote(text: str) -> str:
    data = re.sub(rb"=([0-9A-F]{2})", lambda m: bytes([int(m[1], 16)]), text.encode("ascii"))
    return data.decode("utf-8", "surrogatepass")
