"""Neighbours that register, and are not what they say or do not do what they should."""

from __future__ import annotations

import itertools

from tests.faults.campaign.requests import flood, packed
from tests.faults.campaign.target import CHUNK, Neighbour, Target
from tests.support.raw import RawClient, make_key

_REGISTER = "register_kv_cache_engine_driven_context"


def geometry(instance: int, model: str, hidden: int = 32, world: int = 1) -> dict[str, object]:
    """The registration of an engine-driven worker."""
    return {
        "instance_id": instance,
        "model_name": model,
        "world_size": world,
        "block_size": 16,
        "num_layers": 2,
        "hidden_dim_size": hidden,
        "dtype_str": "float16",
        "use_mla": True,
        "num_physical_slots": CHUNK,
    }


def layouts_by_the_hundred(target: Target) -> None:
    """256 layouts of one model with a world of 1,024, and lookups of it."""
    clients = [RawClient(target.url) for _ in range(16)]
    for client, number in zip(itertools.cycle(clients), range(256)):
        client.call(_REGISTER, geometry(3_000_000 + number, "crowd", 1 + number, world=1024))
    tokens = packed(range(256 * CHUNK))
    key = make_key([], 0, 256 * CHUNK, model="crowd", worker=None, world=1024)
    while target.goes_on():
        key["request_id"] = f"c{target.random.random()}"
        lookup = clients[0].frames("lookup", key | {"token_ids": tokens}, 1)
        flood(clients[0], [lookup], target)
    for client in clients:
        client.close()


ROWS: dict[str, Neighbour] = {
    "256 layouts of one model": layouts_by_the_hundred,
}
