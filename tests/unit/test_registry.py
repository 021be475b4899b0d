"""Workers are known by instance id; the forgotten are made to register again."""

from unittest.mock import Mock

import pytest

from sidecar.engines.registry import Instance, NotOwner, Registry

OWNER = b"client"


def instance(number: int = 1, fingerprint: bytes = b"f", model: str = "m") -> Instance:
    return Instance(number, model, 1, fingerprint, 4096, b"client", 0.0)


def test_only_its_owner_speaks_for_a_worker_while_its_connection_stands() -> None:
    registry = Registry()
    registry.add(instance())
    with pytest.raises(NotOwner):
        registry.speaker(1, b"another", 5.0, is_connected=lambda client: client == OWNER)
    assert registry.instances[1].last_seen == 0.0
    heard = registry.speaker(1, b"another", 5.0, is_connected=lambda client: False)
    assert heard is not None and heard.client == b"another" and heard.last_seen == 5.0


def test_an_id_for_which_two_have_registered_passes_to_nobody() -> None:
    """The memory that is registered may be the other's: it would be stored under this one's key."""
    registry = Registry()
    registry.add(instance())
    registry.contest(1)
    assert registry.speaker(1, b"another", 5.0, is_connected=lambda client: False) is None
    assert registry.speaker(1, OWNER, 5.0, is_connected=lambda client: True) is not None
    registry.add(instance())
    assert registry.speaker(1, b"another", 5.0, is_connected=lambda client: False) is not None


def test_only_what_its_owner_says_keeps_a_worker() -> None:
    registry = Registry()
    registry.add(instance())
    registry.touch(1, b"another", 5.0)
    assert registry.instances[1].last_seen == 0.0
    registry.touch(1, OWNER, 6.0)
    assert registry.instances[1].last_seen == 6.0


def test_a_forgotten_worker_sees_unhealthy_then_healthy_until_it_registers() -> None:
    registry = Registry()
    assert [registry.ping_answer(1, OWNER) for _ in range(4)] == [False, True, False, True]
    registry.add(instance())
    assert [registry.ping_answer(1, OWNER) for _ in range(3)] == [True] * 3
    registry.remove(1)
    assert [registry.ping_answer(1, OWNER) for _ in range(2)] == [False, True]


def test_a_forgotten_worker_is_not_told_while_its_blocks_are_moved() -> None:
    """It would use them for something else, and a load that is still running writes to them."""
    registry, worker = Registry(), instance()
    worker.memory, worker.transfers = Mock(), 2
    registry.add(worker)
    registry.remove(1)
    assert registry.ping_answer(1, OWNER) is True
    worker.transfers = 1
    assert registry.ping_answer(1, OWNER) is True
    worker.transfers = 0
    assert [registry.ping_answer(1, OWNER) for _ in range(2)] == [False, True]


def test_a_refused_worker_is_left_in_peace() -> None:
    registry = Registry()
    registry.add(instance())
    assert registry.refuse(1, OWNER) is not None
    assert registry.speaker(1, OWNER, 1.0, lambda client: True) is None
    assert [registry.ping_answer(1, OWNER) for _ in range(3)] == [True] * 3


def test_a_repeated_registration_replaces() -> None:
    registry = Registry()
    first, second = instance(), instance()
    assert registry.add(first) is None
    assert registry.add(second) is first
    assert registry.instances == {1: second}


def test_layouts_of_a_model_are_those_of_its_live_workers() -> None:
    registry = Registry()
    for number, fingerprint, model in (
        (1, b"f", "m"),
        (2, b"f", "m"),
        (3, b"g", "m"),
        (4, b"h", "n"),
    ):
        registry.add(instance(number, fingerprint, model))
    assert [i.fingerprint for i in registry.layouts("m", 1, OWNER)[0]] == [b"f", b"g"]
    assert registry.layouts("m", 2, OWNER) == []
    registry.remove(3)
    assert [i.fingerprint for i in registry.layouts("m", 1, OWNER)[0]] == [b"f"]


def test_a_rank_is_served_in_the_layouts_of_its_own_workers() -> None:
    registry = Registry()
    for number, fingerprint, rank in ((1, b"f", 0), (2, b"g", 1), (3, b"h", None)):
        worker = instance(number, fingerprint)
        worker.world_size, worker.rank = 2, rank
        registry.add(worker)
    by_rank = [{i.fingerprint for i in of_rank} for of_rank in registry.layouts("m", 2, OWNER)]
    assert by_rank == [{b"f", b"h"}, {b"g", b"h"}]


def test_a_scheduler_means_the_layouts_of_its_own_workers() -> None:
    registry = Registry()
    for number, fingerprint in ((1, b"f"), (2, b"g"), (3, b"h")):
        worker = instance(number, fingerprint)
        worker.world_size, worker.rank = 2, 0 if number < 3 else None
        registry.add(worker)
    registry.serves(registry.instances[1], b"scheduler")

    def fingerprints(scheduler: bytes) -> list[set[bytes]]:
        of_ranks = registry.layouts("m", 2, scheduler)
        return [{worker.fingerprint for worker in of_rank} for of_rank in of_ranks]

    assert fingerprints(b"scheduler") == [{b"f"}, {b"h"}], "nobody of rank 1 is known"
    assert fingerprints(b"another") == [{b"f", b"g", b"h"}, {b"h"}]
    registry.remove(1)
    assert fingerprints(b"scheduler") == [{b"g", b"h"}, {b"h"}]


def test_what_is_remembered_is_bounded() -> None:
    registry = Registry()
    for number in range(5000):
        registry.ping_answer(number, OWNER)
        registry.refuse(number + 10_000, b"%d" % number)
        registry.serves(instance(number), OWNER)
        registry.serves(instance(number), b"%d" % number)
    assert len(registry._told) <= 4096
    assert max(map(len, registry._told.values())) <= 16
    assert len(registry._workers_of) <= 4096
    assert max(map(len, registry._workers_of.values())) <= 1024
