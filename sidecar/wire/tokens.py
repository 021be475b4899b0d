"""Token lists, decoded once.

Every lookup, store and retrieve of a request repeats its whole token list, and requests share
long prefixes. Decoding 128k msgpack integers costs milliseconds on the only thread that
serves everyone; comparing bytes costs microseconds. So the encoded lists of recent requests
are kept, and a new list is decoded only from where it leaves the one that it resembles.
"""

import array
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated

import msgspec
import numpy as np
import numpy.typing as npt

from sidecar.wire.messages import BadPayload

_Token = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_HEAD_BYTES = 64
_CHAIN_ITEM_BYTES = 80  # a hash, as a bytes object in a list
_OVERHEAD_BYTES = 1024  # names and objects of one list


@dataclass(slots=True)
class Tokens:
    """A decoded list: big-endian u32 a token, the form that chunk hashes are made of.

    `chain` holds what has been derived of its leading whole chunks, one item a chunk, as far
    as anybody has. Lists that share chunks share what was derived of them.
    """

    data: bytes
    chain: list[bytes]


@dataclass(slots=True)
class _Known:
    """One list: its encoded elements, where each element ends in them, and the decoding."""

    body: bytes
    ends: npt.NDArray[np.int32]
    tokens: Tokens

    def shared_with(self, body: bytes) -> int:
        """How many leading tokens `body` encodes exactly as this list does."""
        n = min(len(body), len(self.body))
        ours, theirs = np.frombuffer(self.body, np.uint8, n), np.frombuffer(body, np.uint8, n)
        differs = ours != theirs
        at = int(differs.argmax()) if n else 0
        same_bytes = at if n and differs[at] else n
        return int(self.ends.searchsorted(same_bytes, side="right"))


_NOTHING = _Known(b"", np.empty(0, np.int32), Tokens(b"", []))


class TokenLists:
    """Decoder of msgpack token lists with a memory of recent ones.

    `max_tokens` bounds one list; `max_bytes` bounds what is remembered.
    """

    def __init__(self, max_tokens: int, chunk_size: int, max_bytes: int = 12 << 20) -> None:
        self._max_tokens = max_tokens
        self._chunk_size = chunk_size
        self._max_bytes = max_bytes
        self._known: OrderedDict[str | bytes, _Known] = OrderedDict()
        self.remembered_bytes = 0
        self._decoder = msgspec.msgpack.Decoder(list[_Token])

    def decode(self, request_id: str, raw: msgspec.Raw) -> Tokens:
        """The tokens of an encoded list.

        Raises BadPayload for a list that is too long or not made of 32-bit tokens.
        """
        encoded = bytes(raw)
        count, header = _array_header(encoded)
        if count > self._max_tokens:
            raise BadPayload(f"{count} tokens, the limit is {self._max_tokens}")
        body = encoded[header:]
        known = self._resembling(request_id, body) or _NOTHING
        if known.body == body:
            return known.tokens
        shared = min(known.shared_with(body), count)
        skip = int(known.ends[shared - 1]) if shared else 0
        chain = known.tokens.chain[: shared // self._chunk_size]
        if shared == count:  # the beginning of what is known: not worth remembering
            return Tokens(known.tokens.data[: 4 * shared], chain)
        tail = self._decode_tail(count - shared, body[skip:])
        ends = np.concatenate([known.ends[:shared], skip + _element_ends(tail)])
        tokens = Tokens(known.tokens.data[: 4 * shared] + tail, chain)
        if ends[-1] == len(body):  # else not the shortest encoding: it ends elsewhere
            self._remember(request_id, _Known(body, ends, tokens))
        return tokens

    def forget(self, request_id: str) -> None:
        """The request is over. What it shared with others is still known by its beginning."""
        known = self._known.pop(request_id, None)
        if known is not None:
            self.remembered_bytes -= self._cost(known)

    def _cost(self, known: _Known) -> int:
        chunks = len(known.ends) // self._chunk_size
        arrays = len(known.body) + len(known.tokens.data) + known.ends.nbytes
        return arrays + chunks * _CHAIN_ITEM_BYTES + _OVERHEAD_BYTES

    def _resembling(self, request_id: str, body: bytes) -> _Known | None:
        return self._known.get(request_id) or self._known.get(body[:_HEAD_BYTES])

    def _decode_tail(self, count: int, body: bytes) -> bytes:
        try:
            values = array.array("I", self._decoder.decode(_array_of(count) + body))
        except msgspec.DecodeError as error:
            raise BadPayload(f"token_ids: {error}") from None
        if sys.byteorder == "little":
            values.byteswap()
        return values.tobytes()

    def _remember(self, request_id: str, known: _Known) -> None:
        for name in (request_id, known.body[:_HEAD_BYTES]):
            old = self._known.pop(name, None)
            self.remembered_bytes += self._cost(known) - (self._cost(old) if old else 0)
            self._known[name] = known
        while self.remembered_bytes > self._max_bytes:
            self.remembered_bytes -= self._cost(self._known.popitem(last=False)[1])


def _array_header(encoded: bytes) -> tuple[int, int]:
    """Element count and header length of a msgpack array."""
    kind = encoded[0]
    if kind & 0xF0 == 0x90:
        return kind & 0x0F, 1
    if kind == 0xDC:
        return int.from_bytes(encoded[1:3], "big"), 3
    if kind == 0xDD:
        return int.from_bytes(encoded[1:5], "big"), 5
    raise BadPayload("token_ids is not an array")


def _array_of(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


def _element_ends(tokens: bytes) -> npt.NDArray[np.int32]:
    """Where each token would end if encoded in the shortest form (1, 2, 3 or 5 bytes)."""
    ids = np.frombuffer(tokens, ">u4")
    sizes = np.ones(len(ids), np.int32)
    sizes += ids > 0x7F
    sizes += ids > 0xFF
    sizes += (ids > 0xFFFF).astype(np.int32) * 2
    return np.cumsum(sizes, dtype=np.int32)
