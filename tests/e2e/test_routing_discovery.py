"""Dynamo over etcd and NATS: its programs find each other, and the KV router knows the same."""

from __future__ import annotations

from pathlib import Path

from tests.support.storage import etcd, nats

from .test_routing import BLOCK, BLOCKS, TEXT, pytestmark, running_node

__all__ = ["pytestmark"]


def test_a_router_over_etcd_and_nats_goes_on_below_the_gpu(tmp_path: Path) -> None:
    with etcd(tmp_path) as found, nats(tmp_path) as events:
        flags = ("--etcd", found.url, "--nats", f"nats://{events.host_port}")
        with running_node(1, *flags) as node:
            assert node.ask(TEXT).below == 0
            node.fill_gpus()
            again = node.ask(TEXT)
            assert (again.on_gpu, again.below, again.loaded) == (0, BLOCKS, BLOCKS * BLOCK)
            # Nothing was left to the files.
            assert not (node.stack.run_dir / "s" / "discovery").exists()
