"""How an object is called in a backend: `[epoch/]space/hash`, readable, safe as a path and
as a key.

    g20261130T101500-<12 digits>/meta-llama=2FLlama-3.1-8B@1.0@<layout fingerprint>[@salt]/<hash>

The space says model, world size and rank, layout and tenant: all that the hash does not
cover. Neither model names nor salts may contain "@".
"""

import hashlib
import re
from functools import lru_cache

from msgspec import Struct

from sidecar.cache.keys import SpaceKey

_SAFE = re.compile(rb"[A-Za-z0-9._-]")
_MAX_COMPONENT = 240  # bytes; file systems allow 255
_HASH = re.compile(r"[0-9a-f]{64}")
_NAMED = re.compile(r"([^@]+)@(\d+)\.(\d+)@([0-9a-f]{32})(?:@([^@]+))?")
_DIGEST_MARK = "=="
_TAG = re.compile(r"g\d{8}T\d{6}-[0-9a-f]{12}")


class ObjectName(Struct, frozen=True, gc=False):
    """The name of one record. Only adapters are given an epoch (`epochs`).

    There may be millions, so the garbage collector does not see them, as it would see tuples.
    """

    space: str
    hash: bytes
    epoch: str = ""

    def in_epoch(self, epoch: str) -> "ObjectName":
        """The name of the same object's record in another one."""
        return ObjectName(self.space, self.hash, epoch)

    @property
    def path(self) -> str:
        """As one string."""
        path = f"{self.space}/{self.hash.hex()}"
        return f"{self.epoch}/{path}" if self.epoch else path


def is_tag(text: str) -> bool:
    """Whether it is an epoch's tag; "" is that of the records of earlier versions."""
    return not text or _TAG.fullmatch(text) is not None


def parse_path(path: str) -> ObjectName | None:
    """The inverse of `ObjectName.path`; None for what is no such path."""
    rest, _, digits = path.rpartition("/")
    epoch, slash, space = rest.rpartition("/")
    if not space or not _HASH.fullmatch(digits) or bool(slash) != bool(epoch):
        return None
    return ObjectName(space, bytes.fromhex(digits), epoch) if is_tag(epoch) else None


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


@lru_cache(maxsize=4096)
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
