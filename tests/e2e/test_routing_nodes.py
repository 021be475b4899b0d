"""Dynamo's KV router before two nodes: it knows whose sidecar has a prompt, and when none has.

Each node is a network namespace: a worker reaches its own sidecar, on 127.0.0.1, and no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.routing.decisions import Decision
from bench.routing.load import ask, pass_others, prompt
from bench.routing.nodes import BLOCK, Cluster, Plan, running
from examples.counters import counter
from tests.support import namespaces
from tests.support.server import REPO, wait_until

OBSTACLE = namespaces.obstacle()
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        not (REPO / ".venv" / "dynamo").exists(), reason="needs `scripts/install.py dynamo`"
    ),
    pytest.mark.skipif(bool(OBSTACLE), reason=OBSTACLE),
]

BLOCKS = 11
TOKENS = BLOCKS * BLOCK
TEXT = prompt("asked again", TOKENS + 92)
# Room for 256 blocks, of which a worker reserves up to half. Another prompt has 31: the text stays
# behind one of those, and goes behind nine.
L1_GB = 0.25
MANY = 9


@pytest.fixture(scope="module")
def cluster(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    plan = Plan(model=model, gpu_blocks=33, l1_gb=L1_GB)
    directory = tmp_path_factory.mktemp("nodes") / "run"
    with namespaces.places(2) as places, running(plan, directory, places) as cluster:
        yield cluster


def each(cluster: Cluster, name: str) -> list[int]:
    """A counter of each sidecar."""
    return [counter(node.sidecar, name) for node in cluster.nodes]


def routed(cluster: Cluster) -> tuple[Decision, list[int]]:
    """Ask for the text: what the router decides, and the tokens that each sidecar gives."""
    made, before = len(cluster.decisions()), each(cluster, "lmcache_mp_lookup_hit_tokens_total")
    ask(cluster.url, TEXT)
    after = each(cluster, "lmcache_mp_lookup_hit_tokens_total")
    given = [now - then for now, then in zip(after, before, strict=True)]
    return cluster.wait_decided(made + 1)[made], given


def test_a_router_finds_the_node_until_its_sidecar_has_evicted(cluster: Cluster) -> None:
    first, given = routed(cluster)
    assert (first.host_blocks, given) == (0, [0, 0])
    stored = "lmcache_mp_l1_write_chunks_total"
    wait_until(lambda: sum(each(cluster, stored)) == BLOCKS, "it is stored")
    has_it = [chunks > 0 for chunks in each(cluster, stored)]
    assert sorted(has_it) == [False, True]

    pass_others(cluster, "first")  # nothing is left of it on the GPU
    found, given = routed(cluster)
    assert (found.worker, found.host_blocks, found.holders) == (first.worker, BLOCKS, 1)
    assert given == [TOKENS * has for has in has_it]

    for number in range(MANY):
        pass_others(cluster, f"{number}")
    lost, given = routed(cluster)
    assert (lost.host_blocks, lost.holders, given) == (0, 0, [0, 0])
