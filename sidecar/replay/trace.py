"""Traces of requests: Mooncake's public format, which `--record-lookups` writes as well.

One request a line, as JSON: `input_length` (tokens) and `hash_ids`, a number for each
`tokens_per_id` tokens (512 where it is not said). Equal numbers behind an equal beginning mean
equal tokens. `tenant` is what tells tenants apart, if anything does.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

TOKENS_PER_ID = 512
_MIX = 0x9E3779B97F4A7C15  # spreads consecutive numbers over 64 bits


class TraceError(Exception):
    """It is no trace, with the reason as one line."""


class Line(msgspec.Struct):
    """One request as written."""

    input_length: Annotated[int, Meta(ge=0, le=2**31)]
    hash_ids: list[int]
    tokens_per_id: Annotated[int, Meta(ge=1, le=2**20)] = TOKENS_PER_ID
    tenant: str = ""


class Request(NamedTuple):
    """The chunks of a prompt, by their hashes, and all its tokens."""

    tenant: str
    hashes: list[bytes]
    tokens: int


_decoder = msgspec.json.Decoder(Line)


def read(path: Path) -> list[Line]:
    """All requests of a file, which may be gzipped. Raises TraceError."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            lines = [_line(number, text) for number, text in enumerate(file, 1) if text.strip()]
    except (OSError, EOFError) as error:
        raise TraceError(f"{path}: {error}") from None
    except ValueError as error:
        raise TraceError(f"{path}:{error}") from None
    if not lines:
        raise TraceError(f"{path}: no request in it")
    if len({line.tokens_per_id for line in lines}) > 1:
        raise TraceError(f"{path}: its lines differ in tokens_per_id")
    return lines


def _line(number: int, text: bytes) -> Line:
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{number}: {error}") from None


def in_chunks(lines: Sequence[Line], chunk_size: int) -> list[Request]:
    """The requests in chunks of so many tokens.

    Raises TraceError if that is neither a part nor a multiple of what an id stands for.
    """
    per_id = lines[0].tokens_per_id
    if per_id % chunk_size and chunk_size % per_id:
        raise TraceError(f"chunks of {chunk_size} tokens cannot be told from ids of {per_id}")
    known: dict[tuple[object, ...], int] = {}
    return [
        Request(line.tenant, _hashes(line, chunk_size, known), line.input_length) for line in lines
    ]


def _hashes(line: Line, chunk_size: int, known: dict[tuple[object, ...], int]) -> list[bytes]:
    found, parent = [], 0
    for ids in _ids(line, chunk_size):
        parent = known.setdefault((line.tenant, parent, *ids), len(known) + 1)
        found.append((parent * _MIX % 2**64).to_bytes(8, "little"))
    return found


def _ids(line: Line, chunk_size: int) -> Iterator[tuple[int, ...]]:
    """What tells each whole chunk from others behind the same beginning."""
    per_id, chunks = line.tokens_per_id, line.input_length // chunk_size
    if chunk_size >= per_id:
        width = chunk_size // per_id
        for at in range(0, min(chunks * width, len(line.hash_ids) // width * width), width):
            yield tuple(line.hash_ids[at : at + width])
    else:
        parts = per_id // chunk_size
        for chunk in range(min(chunks, len(line.hash_ids) * parts)):
            yield line.hash_ids[chunk // parts], chunk % parts


def written(request: Line, milliseconds: int) -> bytes:
    """A request as a line, `milliseconds` after the trace began."""
    line = {"timestamp": milliseconds, "output_length": 0, **msgspec.to_builtins(request)}
    return json.dumps(line).encode() + b"\n"
