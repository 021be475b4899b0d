"""A GPU's child process without a server, a worker's blocks, and objects in files for them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import xxhash

from sidecar.engines.cuda import protocol
from sidecar.engines.cuda.protocol import Allocation, FileObject, Map, MoveFiles, Planes
from tests.support.fake_gpu import UUID
from tests.support.gpu_worker import DeviceMemory, Event

ARENA_BYTES = 1 << 20
PAGE = 4096
HEADER = PAGE
Answer = TypeVar("Answer", bound=protocol.ToServer)


class GpuChild:
    """Started as the server does it."""

    def __init__(
        self,
        module: str,
        environment: Mapping[str, str],
        prefix: Sequence[str] = (),
        log: Path | None = None,
    ) -> None:
        ours, theirs = socket.socketpair()
        arena = os.memfd_create("arena")
        os.truncate(arena, ARENA_BYTES)
        arguments = map(str, (theirs.fileno(), arena, ARENA_BYTES, "false"))
        with theirs, open(log or os.devnull, "wb") as stderr:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", module, *arguments],
                pass_fds=(theirs.fileno(), arena),
                env=os.environ | {"CUDA_VISIBLE_DEVICES": UUID} | dict(environment),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            )
        os.close(arena)
        self._pipe = Connection(ours.detach())
        self.answer(protocol.Pong)

    def tell(self, order: protocol.ToChild) -> None:
        protocol.send(self._pipe, order)

    def answer(self, kind: type[Answer], seconds: float = 60) -> Answer:
        """The next answer, which is of this kind. Raises EOFError if the child has ended."""
        assert self._pipe.poll(seconds), "the child does not answer"
        answer = protocol.receive_answer(self._pipe)
        assert isinstance(answer, kind), answer
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._pipe.close()


class Blocks:
    """Paged memory of a worker: [planes, blocks, run], in one allocation."""

    def __init__(self, number: int, planes: int = 2, blocks: int = 32, run: int = 512) -> None:
        self.number, self._run = number, run
        self._memory = DeviceMemory(planes * blocks * run)
        self.data = self._memory.bytes.reshape(planes, blocks, run)
        self.data[:] = 0xEE
        self._event = Event(done=True)
        self.name, self.event = self._memory.name, self._event.handle

    def map_order(self) -> Map:
        planes = [(0, plane * self.data[0].nbytes, self._run) for plane in range(len(self.data))]
        allocation = Allocation(self._memory.handle, self.data.nbytes)
        return Map(self.number, self.number, [allocation], [[Planes(self._run, planes)]])

    def move_files(
        self,
        job: int,
        objects: Sequence[FileObject],
        blocks: Sequence[Sequence[int]],
        wanted: Sequence[Sequence[bool]] | None = None,
        event: bytes | None = None,
        is_store: bool = False,
    ) -> MoveFiles:
        """Of each object, the blocks into which it goes, or from which it comes."""
        mask = None if wanted is None else np.array(wanted, bool).tobytes()
        ids = np.array(blocks, np.int64).tobytes()
        parts = event or self.event, list(objects), [ids], [mask]
        return MoveFiles(job, self.number, is_store, *parts)

    def object_bytes(self, blocks: int) -> int:
        return len(self.data) * blocks * self._run

    def expect(self, contents: Mapping[int, np.ndarray]) -> None:
        """These blocks hold this; all others are as they were made."""
        expected = np.full_like(self.data, 0xEE)
        for block, content in contents.items():
            expected[:, block] = content
        assert np.array_equal(self.data, expected)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.unlink()
        self._event.unlink()


def stored(path: Path, size: int, seed: int = 0) -> tuple[FileObject, np.ndarray]:
    """A record of random bytes: its object, and those bytes."""
    data = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    padding = bytes(-size % PAGE)
    path.write_bytes(bytes(HEADER) + data.tobytes() + padding)
    return FileObject(str(path), HEADER, size, xxhash.xxh3_128_digest(data.data)), data


def new_file(path: Path, size: int) -> FileObject:
    """A file for an object of `size` bytes that is to be written."""
    path.write_bytes(bytes(HEADER) + bytes([0xEE]) * size + bytes(-size % PAGE))
    return FileObject(str(path), HEADER, size, b"")


def expect_written(
    files: Sequence[FileObject], digests: Sequence[bytes], contents: Sequence[bytes]
) -> None:
    """These are in the files, where the objects are and nowhere else."""
    assert list(digests) == [xxhash.xxh3_128_digest(content) for content in contents]
    for file, content in zip(files, contents, strict=True):
        padding = bytes(-len(content) % PAGE)
        assert Path(file.path).read_bytes() == bytes(HEADER) + content + padding


def by_block(blocks: Blocks, ids: Sequence[int], data: np.ndarray) -> dict[int, np.ndarray]:
    """What an object's bytes are in each of its blocks."""
    planes = data.reshape(len(blocks.data), len(ids), -1)
    return {block: planes[:, nth] for nth, block in enumerate(ids)}
