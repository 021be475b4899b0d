"""What routers are told by engines at the native door: vLLM's own words, from every engine.

vLLM's tracker describes, our connector publishes, the server is real. With a real vLLM, and with
Dynamo's router: `tests/e2e`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/install.py engine")

from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVCacheEvent
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.events import (
    OffloadingEventGroupSpec,
    OffloadingEventsTracker,
)
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash
from vllm.v1.kv_offload.base import OffloadingKVEventsConfig, ReqContext

from connectors.native.connector import OffloadingConnector
from tests.conformance.test_native_client import CHUNKS, FOUND, Engine
from tests.support.l2 import clear_l1, fs_flags, wait_written
from tests.support.native import block_hash
from tests.support.server import Server, wait_until

BLOCKS = [maybe_convert_block_hash(block_hash(number)) for number in range(CHUNKS)]
GROUP = SimpleNamespace(
    hashes_per_chunk=1, tokens_per_chunk=16, tokens_per_block=16, group_idx=0,
    sliding_window_size_in_chunks=None,
    kv_event_group_spec=OffloadingEventGroupSpec("full_attention", None),
)  # fmt: skip
ADAPTER = SimpleNamespace(adapter_id=3, name="an adapter")
REQUEST = SimpleNamespace(
    block_hashes=[block_hash(number) for number in range(CHUNKS)],
    all_token_ids=list(range(16 * CHUNKS)),
    lora_request=ADAPTER,
)
Place = tuple[Any, str | None]
EVERYWHERE = {(block, medium) for block in BLOCKS for medium in ("CPU", "STORAGE")}


class Publisher:
    """An engine, vLLM's tracker and our connector; and what a router makes of the events."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.known: dict[Place, BlockStored] = {}
        self.tracker = OffloadingEventsTracker(OffloadingKVEventsConfig(True, True))
        announcements = engine.manager.announcements
        announcements.on = True
        self.connector = OffloadingConnector.__new__(OffloadingConnector)
        self.connector._announcements = announcements
        self.connector.connector_scheduler = SimpleNamespace(take_events=self._described)
        self.engine.manager.on_new_request(ReqContext(req_id="the first"))

    def _described(self) -> Iterator[KVCacheEvent]:
        return iter(self.tracker.take_events(self.engine.manager.take_events()))

    def step(self) -> None:
        self.engine.end_step()
        for event in self.connector.take_events():
            for block in event.block_hashes:
                if isinstance(event, BlockStored):
                    assert (block, event.medium) not in self.known, "told twice"
                    self.known[block, event.medium] = event
                else:
                    assert isinstance(event, BlockRemoved)
                    del self.known[block, event.medium]

    def learns(self, places: set[Place]) -> bool:
        self.step()
        return set(self.known) == places

    def store(self) -> None:
        """As vLLM: it records what it stores, once that is planned."""
        for chunk in range(CHUNKS):
            self.tracker.record_store(REQUEST, GROUP, chunk, block_hash(chunk) + bytes(4))
        self.engine.store()
        self.step()

    def finds(self) -> bool:
        found = self.engine.find() == FOUND
        for chunk in range(CHUNKS if found else 0):
            self.tracker.record_lookup(REQUEST, GROUP, chunk, block_hash(chunk) + bytes(4))
        return found


@contextmanager
def publishers(server: Server, count: int) -> Iterator[list[Publisher]]:
    with ExitStack() as stack:
        made = []
        for seed in range(count):
            engine = Engine(server.url, bytes(32), seed, events=True)
            stack.callback(engine.close)
            made.append(Publisher(engine))
            wait_until(lambda each=made[-1]: ready(each), "the engine is ready")
        yield made


def ready(publisher: Publisher) -> bool:
    publisher.step()
    return publisher.engine.manager._session.usable


def on(medium: str) -> set[Place]:
    return {(block, medium) for block in BLOCKS}


def test_every_engine_tells_what_one_has_stored(own_server: Server) -> None:
    with publishers(own_server, 2) as (first, second):
        first.store()
        for each in (first, second):
            wait_until(lambda each=each: each.learns(on("CPU")), "routers know of it")
            event = each.known[BLOCKS[1], "CPU"]
            assert event.token_ids == [*range(16, 32)] and event.block_size == 16
            assert event.parent_block_hash == BLOCKS[0] and event.group_idx == 0
            assert (event.lora_name, event.lora_id) == (ADAPTER.name, None)
        wait_until(lambda: not first.engine.manager.has_pending_work(), "the engine may rest")

        first.engine.manager.reset_cache()
        for each in (first, second):
            wait_until(lambda each=each: each.learns(set()), "routers know that it is gone")


def test_vllm_keeps_no_description_of_what_is_gone(own_server: Server) -> None:
    with publishers(own_server, 1) as (only,):
        only.store()
        wait_until(lambda: only.learns(on("CPU")), "routers know of it")
        assert len(only.tracker._pending_event_metadata) == CHUNKS
        clear_l1(own_server)
        wait_until(lambda: only.learns(set()), "routers know that it is gone")
        only.step()
        assert not only.tracker._pending_event_metadata
        # Nor does our client believe that the sidecar has it.
        only.store()
        wait_until(lambda: only.learns(on("CPU")), "routers know of it")


def test_an_engine_that_begins_tells_all_that_is_there(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    server = new_server(*fs_flags(tmp_path)).start()
    with publishers(server, 1) as (first,):
        first.store()
        wait_written(server)
    with publishers(server, 1) as (second,):
        wait_until(lambda: second.learns(EVERYWHERE), "routers know of it")
        clear_l1(server)
        wait_until(lambda: second.learns(on("STORAGE")), "routers know where it is")

        # The server that comes has the objects, and what is said of them once one is found.
        server.stop()
        server.start()
        wait_until(lambda: ready(second), "it is back")
        wait_until(second.finds, "it is found")
        wait_until(lambda: second.learns(EVERYWHERE), "routers know where it is")


def test_what_a_sidecar_had_that_died_is_taken_back(own_server: Server) -> None:
    with publishers(own_server, 1) as (only,):
        only.store()
        wait_until(lambda: only.learns(on("CPU")), "routers know of it")
        own_server.kill()
        own_server.start()
        wait_until(lambda: only.learns(set()), "routers know that it is gone")
