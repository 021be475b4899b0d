"""The server's operations without a server: frames in, frames out, on a loop turned by hand.

Workers of both transfer modes hold their bytes here; a copy of handle mode happens when the test
says so. What is under the handlers is a `Bench`.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np

from sidecar.config import Config
from sidecar.engines.attachments import Attachments
from sidecar.engines.groups import KVGroup, WorkerLayout
from sidecar.engines.registry import Instance, Registry
from sidecar.engines.worker_memory import ChunkCopy
from sidecar.handlers import Service
from sidecar.handlers.core import Core
from sidecar.handlers.kv_events.chunks import Chunks
from sidecar.handlers.refusals import Refusals
from sidecar.wire.endpoint import Endpoint
from sidecar.wire.peers import Peers
from sidecar.wire.tokens import TokenLists
from sidecar.wire.zmtp import Message
from tests.support.raw import EVENT, OPERATIONS, decode, encode, make_key
from tests.support.tiers import OBJECT_BYTES, Bench

CHUNK = 16  # tokens
BLOCKS = 64  # of a worker, one a chunk
FINGERPRINT = bytes(16)


class Replies:
    """What was answered, by uid, to clients that are not `gone`."""

    def __init__(self) -> None:
        self.by_uid: dict[bytes, list[bytes]] = {}
        self.gone: set[bytes] = set()

    def send(self, client: bytes, frames: list[bytes]) -> bool:
        uid, *rest = frames
        if client not in self.gone:
            self.by_uid[uid] = rest
        return client not in self.gone

    def is_connected(self, client: bytes) -> bool:
        return client not in self.gone


class Copies:
    """Copies that have been asked for and have not happened yet."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []

    def run(self, index: int = 0) -> None:
        self.waiting.pop(index)()


class _NobodyElse:
    """No process but the test's own has the arena open."""

    def name(self, instance_id: int) -> str:
        return "none"

    def may_touch(self, instance_id: int) -> bool:
        return False

    def prune(self, keep: Collection[int]) -> None:
        pass


class BlockMemory:
    """A handle-mode worker's blocks; each holds one chunk."""

    on_gpu: ClassVar[bool] = False
    device = "cpu"
    near = None

    def __init__(self, arena: np.ndarray[Any, np.dtype[np.uint8]], copies: Copies) -> None:
        self.blocks = np.zeros((BLOCKS, OBJECT_BYTES), np.uint8)
        self.fails = False
        self._arena, self._copies = arena, copies

    def store(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None]
    ) -> None:
        def run() -> None:
            for copy in copies:
                self._slot(copy)[:] = self.blocks[int(copy.blocks[0][0])]
            on_done(not self.fails)

        self._copies.waiting.append(run)

    def load(
        self, copies: Sequence[ChunkCopy], event: bytes, on_done: Callable[[bool], None]
    ) -> None:
        def run() -> None:
            for copy in copies:
                self.blocks[int(copy.blocks[0][0])] = self._slot(copy)
            on_done(not self.fails)

        self._copies.waiting.append(run)

    def _slot(self, copy: ChunkCopy) -> np.ndarray[Any, np.dtype[np.uint8]]:
        return self._arena[copy.entry.offset : copy.entry.offset + copy.entry.size]

    done_event = None

    def close(self) -> None:
        pass


class Node:
    """Operations over a bench; `call` returns the uid under which the reply will be."""

    def __init__(self, bench: Bench, attachments: Attachments | None = None, **config: Any) -> None:
        self.bench, self.copies = bench, Copies()
        telemetry = bench.telemetry
        settings = Config(chunk_size=CHUNK, l1_size_gb=1.0, **config)
        self.core = Core(
            config=settings,
            arena=cast(
                "Any",
                SimpleNamespace(
                    bytes=bench.arena,
                    size=len(bench.arena),
                    parts=[range(len(bench.arena))],
                    segment=SimpleNamespace(name="none"),
                ),
            ),
            attachments=attachments or cast("Any", _NobodyElse()),
            l1=bench.l1,
            leases=bench.leases,
            registry=Registry(),
            copies=cast("Any", SimpleNamespace(depth=0, oldest_seconds=lambda: 0.0)),
            gpus=cast("Any", SimpleNamespace(watch=lambda: None)),
            telemetry=telemetry,
            tokens=TokenLists(settings.max_tokens, CHUNK),
            refusals=Refusals(telemetry),
            tiers=bench.tiers,
            flows=bench.flows,
            chunks=Chunks(CHUNK),
        )
        self.service = Service(self.core, bench.post, bench.later)
        self.replies = Replies()
        self._endpoint = Endpoint(
            Peers(), self.service.handlers(), 1 << 20, self.core.refusals.add,
            lambda operation, seconds: None, self.service.withhold, bench.post, bench.flows.start,
        )  # fmt: skip
        self._endpoint.send = self.replies.send
        self._endpoint.is_connected = self.replies.is_connected
        self.liveness = self.service.liveness(self.replies.is_connected)
        self._uids = itertools.count()

    def close(self) -> None:
        self._endpoint.close()

    def call(self, operation: str, *payloads: Any, client: bytes = b"client") -> bytes:
        uid = encode(next(self._uids))
        frames = [uid, encode(OPERATIONS.get(operation, operation)), *map(encode, payloads)]
        self._endpoint._serve(client, Message(frames, False))
        self.bench.flows.run()
        self.bench.check()
        return uid

    def answered(self, uid: bytes) -> bool:
        return uid in self.replies.by_uid

    def reply(self, uid: bytes) -> Any:
        """What was answered; None for a reply without a value."""
        _, *value = self.replies.by_uid[uid]
        return decode(value[0]) if value else None

    def ask(self, operation: str, *payloads: Any, client: bytes = b"client") -> Any:
        """The reply to an operation that is answered at once, or after one copy."""
        uid = self.call(operation, *payloads, client=client)
        while not self.answered(uid) and self.copies.waiting:
            self.copies.run()
            self.bench.flows.run()
        return self.reply(uid)

    def lookup(self, key: dict[str, Any]) -> int:
        """The chunks found, when that is known."""
        key = {**key, "worker_id": None}
        assert self.ask("lookup", key, 1) is None
        found: list[int] = []

        def known() -> bool:
            hits = self.ask("query_prefetch_status", key["request_id"])
            if hits is not None:
                found.append(hits)
            return hits is not None

        self.bench.run_until(known)
        return found[0]

    def order(self) -> list[bytes]:
        """The hashes of what may be evicted, the first to go first."""
        return [entry.hash for entry in self.bench.l1._policy.candidates()]


def fill(tokens: Sequence[int], chunk: int) -> int:
    """The byte that the object of this chunk is full of."""
    return sum(tokens[: (chunk + 1) * CHUNK]) % 251 + 1


class _Worker(ABC):
    """A range is in chunks. `write` and `read` run to their end; `read` checks each byte."""

    mode: ClassVar[str]

    def __init__(self, node: Node, number: int) -> None:
        self.node, self.number, self.model = node, number, f"{self.mode}-{number}"
        self.register()

    @abstractmethod
    def register(self) -> None:
        """Have it in the server's registry."""

    def key(self, tokens: Sequence[int], start: int, end: int, request: str) -> dict[str, Any]:
        """Of a range in chunks."""
        return make_key(tokens, start * CHUNK, end * CHUNK, model=self.model, request=request)

    @property
    def instance(self) -> Instance | None:
        return self.node.core.registry.instances.get(self.number)


class HandleWorker(_Worker):
    """The server copies its blocks; chunk n lies in block n + 1, behind the null block."""

    mode = "handle"

    def register(self) -> None:
        self.memory = BlockMemory(self.node.bench.arena, self.node.copies)
        group = KVGroup((), CHUNK, 1, BLOCKS, None)
        layout = WorkerLayout((group,), OBJECT_BYTES, FINGERPRINT)
        instance = Instance(
            self.number, self.model, 1, FINGERPRINT, OBJECT_BYTES, b"client", 0.0,
            layout=layout, memory=self.memory,
        )  # fmt: skip
        self.node.core.registry.add(instance)

    def begin(self, operation: str, tokens: Sequence[int], start: int, end: int, r: str) -> bytes:
        """A store or a retrieve whose copy has still to happen."""
        for chunk in range(start, end):
            self.memory.blocks[chunk + 1] = fill(tokens, chunk) if operation == "store" else 0
        blocks, skip = [list(range(start + 1, end + 1))], [0] if operation == "retrieve" else []
        key = self.key(tokens, start, end, r)
        return self.node.call(operation, key, self.number, blocks, EVENT, *skip)

    def holds(self, tokens: Sequence[int], start: int, end: int) -> bool:
        """Whether its blocks are what they should be."""
        blocks = self.memory.blocks
        return all((blocks[c + 1] == fill(tokens, c)).all() for c in range(start, end))

    def write(self, tokens: Sequence[int], start: int, end: int, request: str = "r") -> None:
        self._finish(self.begin("store", tokens, start, end, request))

    def read(self, tokens: Sequence[int], start: int, end: int, request: str = "r") -> None:
        self._finish(self.begin("retrieve", tokens, start, end, request))
        assert self.holds(tokens, start, end)

    def _finish(self, uid: bytes) -> None:
        while not self.node.answered(uid):
            self.node.copies.run()
            self.node.bench.flows.run()
        assert self.node.reply(uid)[1] is True


class EngineDrivenWorker(_Worker):
    """Copies between its memory and slots itself."""

    mode = "engine_driven"

    def register(self) -> None:
        registration = {
            "instance_id": self.number,
            "model_name": self.model,
            "world_size": 1,
            "block_size": CHUNK,
            "num_layers": 1,
            "hidden_dim_size": OBJECT_BYTES // (2 * CHUNK * 2),
            "dtype_str": "float16",
            "use_mla": False,
        }
        self.node.ask("register_kv_cache_engine_driven_context", registration)

    def prepare(
        self, operation: str, tokens: Sequence[int], start: int, end: int, request: str
    ) -> list[tuple[int, np.ndarray[Any, np.dtype[np.uint8]]]]:
        """The slots that it is given: (chunk, bytes)."""
        key = self.key(tokens, start, end, request)
        context = self.node.ask(operation, key, self.number)["context"]
        slots = context.get("slots", [])
        chunks = context.get("chunk_indices", range(len(slots)))
        arena = self.node.bench.arena
        return [
            (start + chunk, arena[slot["offset"] : slot["offset"] + slot["length"]])
            for chunk, slot in zip(chunks, slots, strict=True)
        ]

    def write(self, tokens: Sequence[int], start: int, end: int, request: str = "r") -> None:
        slots = self.prepare("prepare_store", tokens, start, end, request)
        for chunk, slot in slots:
            slot[:] = fill(tokens, chunk)
        if slots:
            key = self.key(tokens, start, end, request)
            assert self.node.ask("commit_store", key, self.number, b"") is True

    def read(self, tokens: Sequence[int], start: int, end: int, request: str = "r") -> None:
        slots = self.prepare("prepare_retrieve", tokens, start, end, request)
        assert [chunk for chunk, _ in slots] == list(range(start, end))
        assert all((slot == fill(tokens, chunk)).all() for chunk, slot in slots)
        key = self.key(tokens, start, end, request)
        assert self.node.ask("commit_retrieve", key, self.number) is True


WORKERS: dict[str, type[HandleWorker | EngineDrivenWorker]] = {
    "handle": HandleWorker,
    "engine_driven": EngineDrivenWorker,
}
