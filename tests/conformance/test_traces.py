"""What a collector is sent of requests to a real server with an L2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.l2 import CHUNKS, L2Worker, clear_l1, fs_flags, wait_written
from tests.support.otlp import attributes, collector
from tests.support.raw import RawClient, make_key
from tests.support.server import Server


def test_a_request_is_one_trace_from_lookup_to_l2(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    with collector() as received:
        traced = ("--otlp-endpoint", received.url, "--trace-sample-ratio", "1")
        server = new_server(*traced, *fs_flags(tmp_path / "objects", name="disk")).start()
        with RawClient(server.url) as client:
            worker = L2Worker(client, server)
            worker.store(1)
            wait_written(server)
            clear_l1(server)
            assert worker.check(1) == CHUNKS
            assert worker.check(2) == 0
            key = make_key([9] * 64, 0, 64, model="nobody", request="refused")
            client.call("store", key, 404, [[0]], b"")
            worker.close()
        assert server.terminate() == 0  # what is left is pushed at the end
    spans = received.spans()
    about = attributes(received.traces[0].resource_spans[0].resource)
    assert about["service.name"] == "kv-sidecar"
    stores, lookups = (_named(spans, n) for n in ("store", "lookup"))

    assert [attributes(s)["request_id"] for s in stores] == ["store", "refused"]
    written = [s for s in _children(spans, stores[0]) if s.name == "l2_store"]
    assert [attributes(s)["l2_name"] for s in written] == ["disk"] * CHUNKS
    assert all(s.end_time_unix_nano > s.start_time_unix_nano for s in written)
    assert stores[1].status.message == "unknown_instance"

    hit, miss = lookups
    assert attributes(hit)["hit_chunks"] == attributes(hit)["hit_l2_chunks"] == CHUNKS
    assert attributes(hit)["model_name"] == "l2-model"
    loaded = _children(spans, hit)
    assert [s.name for s in loaded] == ["l2_load"] * CHUNKS
    assert all(hit.start_time_unix_nano <= s.start_time_unix_nano for s in loaded)
    assert max(s.end_time_unix_nano for s in loaded) <= hit.end_time_unix_nano
    assert attributes(miss)["hit_chunks"] == 0
    assert not _children(spans, miss)

    (retrieve,) = _named(spans, "retrieve")
    assert attributes(retrieve)["request_id"] == attributes(hit)["request_id"]
    assert retrieve.trace_id == hit.trace_id
    assert retrieve.start_time_unix_nano > hit.end_time_unix_nano


def test_of_a_worker_that_copies_itself_too(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    pytest.importorskip("lmcache")
    from tests.conformance.rig import Rig

    with collector() as received:
        traced = ("--otlp-endpoint", received.url, "--trace-sample-ratio", "1")
        server = new_server(*traced, *fs_flags(tmp_path / "objects", name="disk")).start()
        rig = Rig(server, "traced")
        worker, scheduler, tokens = rig.worker(mode="engine_driven"), rig.scheduler(), rig.tokens(2)
        assert worker.store(tokens, rig.blocks(worker, 2), request="r")
        assert scheduler.lookup(tokens, "r") == 2
        assert worker.retrieve(tokens, rig.blocks(worker, 2, first=20), request="r")
        rig.close()
        assert server.terminate() == 0
    spans = received.spans()
    (commit,) = _named(spans, "commit_store")
    assert [s.name for s in _children(spans, commit)] == ["l2_store"] * 2
    order = ("prepare_store", "commit_store", "lookup", "prepare_retrieve", "commit_retrieve")
    requests = [span for name in order for span in _named(spans, name)]
    assert [span.name for span in requests] == list(order)
    assert [attributes(span)["request_id"] for span in requests] == ["r"] * len(order)
    assert {span.trace_id for span in spans} == {commit.trace_id}


def _named(spans: list[Any], name: str) -> list[Any]:
    found = [span for span in spans if span.name == name]
    return sorted(found, key=lambda span: int(span.start_time_unix_nano))


def _children(spans: list[Any], parent: Any) -> list[Any]:
    return [s for s in spans if s.parent_span_id == parent.span_id]
