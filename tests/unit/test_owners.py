"""Who may speak for a worker, and when the slots that it prepared are free again."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,
)

from sidecar.cache.segment import SHM_DIR
from tests.support.node import CHUNK
from tests.support.owner_site import Site
from tests.support.raw import make_key
from tests.support.tiers import OBJECT_BYTES

MODEL = "m"
SLOTS = 24
A, B, C = b"A", b"B", b"C"
GONE_SECONDS = 35


def registration(instance: int) -> dict[str, object]:
    return {
        "instance_id": instance, "model_name": MODEL, "world_size": 1, "block_size": CHUNK,
        "num_layers": 1, "hidden_dim_size": OBJECT_BYTES // 2 // CHUNK, "dtype_str": "float16",
        "use_mla": True, "num_physical_slots": CHUNK,
    }  # fmt: skip


def key_of(number: int, chunks: int) -> dict[str, object]:
    tokens = [number] * (CHUNK * chunks)
    return make_key(tokens, 0, len(tokens), model=MODEL, request=f"r{number}")


class EngineDriven:
    """What workers of this kind do, over the connections that a test gives them."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def register(self, client: bytes, instance: int) -> str:
        """The name by which the worker is to open the arena."""
        fields = registration(instance)
        name = self.site.call(client, "register_kv_cache_engine_driven_context", fields)["shm_name"]
        return str(name).removeprefix("/")

    def prepare(self, client: bytes, instance: int, number: int, chunks: int) -> list[int]:
        reply = self.site.call(client, "prepare_store", key_of(number, chunks), instance)
        return [slot["offset"] for slot in reply["context"]["slots"]]

    def commit(self, client: bytes, instance: int, number: int, chunks: int) -> bool:
        return bool(self.site.call(client, "commit_store", key_of(number, chunks), instance, b""))

    def unregister(self, client: bytes, instance: int) -> None:
        self.site.call(client, "unregister_kv_cache_engine_driven_context", instance)

    def registered(self) -> set[int]:
        return set(self.site.registry.instances)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site(SLOTS)
    yield made
    made.close()


@pytest.fixture
def workers(site: Site) -> EngineDriven:
    return EngineDriven(site)


def test_a_stranger_frees_no_slots(site: Site, workers: EngineDriven) -> None:
    workers.register(A, 1)
    mine = workers.prepare(A, 1, 1, 8)
    assert site.call(C, "ping", 1) is True
    workers.unregister(C, 1)
    workers.register(C, 1)
    assert not workers.commit(C, 1, 1, 8)
    assert workers.registered() == {1} and site.refused("not_owner") == 4
    workers.register(B, 2)
    others = workers.prepare(B, 2, 2, 8)
    assert len(others) == 8 and not set(mine) & set(others)
    assert workers.commit(A, 1, 1, 8) is True


def test_a_stranger_keeps_nobody_alive(site: Site, workers: EngineDriven) -> None:
    workers.register(A, 1)
    assert site.call(A, "ping", 1) is True
    for _ in range(140):
        site.pass_time(1)
        site.call(C, "ping", 1)
    assert workers.registered() == set()
    assert [site.call(A, "ping", 1) for _ in range(2)] == [False, True]


def test_a_worker_goes_on_over_a_new_connection(site: Site, workers: EngineDriven) -> None:
    workers.register(A, 1)
    site.gone.add(A)
    assert site.call(B, "ping", 1) is True
    assert len(workers.prepare(B, 1, 1, 2)) == 2
    assert workers.commit(B, 1, 1, 2) is True
    site.gone.remove(A)
    assert workers.prepare(A, 1, 2, 2) == [], "it is the new connection's now"


def test_a_connection_commits_only_what_it_has_prepared(site: Site, workers: EngineDriven) -> None:
    """Whether the bytes are complete only the one knows that was told where they go."""
    workers.register(A, 1)
    workers.prepare(A, 1, 1, 2)
    site.gone.add(A)
    assert not workers.commit(B, 1, 1, 2)
    workers.unregister(B, 1)
    assert site.held() == 2


def test_a_second_worker_of_a_taken_id_is_served_once_the_first_has_left(
    site: Site, workers: EngineDriven
) -> None:
    workers.register(A, 1)
    workers.register(B, 1)
    assert [site.call(B, "ping", 1) for _ in range(3)] == [True] * 3
    assert workers.prepare(B, 1, 1, 2) == []
    workers.unregister(A, 1)
    assert [site.call(B, "ping", 1) for _ in range(2)] == [False, True]
    workers.register(B, 1)
    assert len(workers.prepare(B, 1, 1, 2)) == 2


def test_the_registration_of_who_took_an_id_is_not_taken_for_the_first_ones(
    site: Site, workers: EngineDriven
) -> None:
    """B is refused while A stands, and computes; A's geometry is not B's when A has gone."""
    workers.register(A, 1)
    workers.register(B, 1)
    site.gone.add(A)
    assert workers.prepare(B, 1, 1, 1) == []
    assert site.refused("unknown_instance")
    site.pass_time(2 * GONE_SECONDS)
    assert [site.call(B, "ping", 1) for _ in range(2)] == [False, True]
    workers.register(B, 1)
    assert len(workers.prepare(B, 1, 1, 1)) == 1


def test_others_pings_do_not_keep_a_worker_from_registering_again(site: Site) -> None:
    assert site.call(A, "ping", 1) is False
    for number in range(3000):
        site.call(C, "ping", number)
    assert site.call(A, "ping", 1) is True


def test_slots_wait_for_a_process_that_has_the_arena_open(
    site: Site, workers: EngineDriven
) -> None:
    """Its connection has broken, and nothing is heard of it; but it may still write."""
    mapped = os.open(SHM_DIR / workers.register(A, 1), os.O_RDWR)
    workers.prepare(A, 1, 1, 8)
    site.gone.add(A)
    site.pass_time(10 * GONE_SECONDS)
    assert workers.registered() == set()
    assert site.held() == 8
    os.close(mapped)
    site.pass_time(1)
    assert site.held() == 0
    assert not list(SHM_DIR.glob(site.segment.name + "@*")), "a name that nobody needs any more"


def test_slots_wait_for_ever_where_the_kernel_does_not_tell(
    site: Site, workers: EngineDriven, caplog: pytest.LogCaptureFixture
) -> None:
    site.attachments.close()  # as where inotify is not to be had
    workers.register(A, 1)
    workers.prepare(A, 1, 1, 8)
    site.gone.add(A)
    site.pass_time(10 * GONE_SECONDS)
    assert site.held() == 8
    assert caplog.text.count("until the server restarts") == 1


def test_a_worker_that_never_commits_leaves_half_of_the_l1(
    site: Site, workers: EngineDriven
) -> None:
    workers.register(A, 1)
    for number in range(SLOTS):
        workers.prepare(A, 1, number, 2)
    assert site.held() == SLOTS // 2
    assert site.refused("too_many_slots") > 0
    workers.register(B, 2)
    assert len(workers.prepare(B, 2, 100, 4)) == 4
    assert workers.commit(B, 2, 100, 4) is True


def test_many_that_never_commit_leave_a_share_for_the_next(
    site: Site, workers: EngineDriven
) -> None:
    for number in range(8):
        client = b"%d" % number
        workers.register(client, number)
        for request in range(SLOTS):
            workers.prepare(client, number, 100 * number + request, 1)
    assert site.held() < SLOTS


def test_a_worker_that_reads_without_end_leaves_half_of_the_l1(
    site: Site, workers: EngineDriven
) -> None:
    workers.register(A, 1)
    for number in range(SLOTS):
        workers.prepare(A, 1, number, 1)
        workers.commit(A, 1, number, 1)
    for number in range(SLOTS):
        site.call(A, "prepare_retrieve", key_of(number, 1), 1)
    assert site.held() == SLOTS // 2


def test_one_connection_registers_a_few_workers(site: Site, workers: EngineDriven) -> None:
    for number in range(100):
        workers.register(A, number)
    assert len(workers.registered()) == 16
    workers.register(B, 1000)
    assert 1000 in workers.registered()


def test_others_layouts_take_nobodys_hits(site: Site, workers: EngineDriven) -> None:
    """Once a scheduler's own workers are known: from its first request on."""
    workers.register(A, 1)
    lookup = {**key_of(1, 4), "worker_id": None}

    def hits() -> int:
        site.call(B, "lookup", lookup, 1)
        found: int = site.call(B, "query_prefetch_status", "r1")
        return found

    assert hits() == 0
    workers.prepare(A, 1, 1, 4)
    assert workers.commit(A, 1, 1, 4) is True
    other = {**registration(2), "hidden_dim_size": 64}
    site.call(C, "register_kv_cache_engine_driven_context", other)
    assert hits() == 4


class Ownership(RuleBasedStateMachine):
    """Workers that come, go, stop and lose their connections, and strangers that name their ids.

    A worker writes to what it was told until it has committed or unregistered over the connection
    over which it was told, or closed the arena. None of it may be given to anybody else.
    """

    connections = Bundle("connections")

    def __init__(self) -> None:
        super().__init__()
        self.site = Site(8)
        self.workers = EngineDriven(self.site)
        self.numbers = iter(range(1, 1_000_000))
        # By connection and instance: the descriptor of the arena, and by request what is written.
        self.open: dict[tuple[bytes, int], int] = {}
        self.writing: dict[tuple[bytes, int], dict[tuple[int, int], list[int]]] = {}

    @rule(target=connections)
    def connect(self) -> bytes:
        return b"%d" % next(self.numbers)

    @rule(client=connections, seconds=st.sampled_from([0, 1, GONE_SECONDS]))
    def disconnect(self, client: bytes, seconds: int) -> None:
        self.site.gone.add(client)
        self.site.pass_time(seconds)

    @rule(client=connections, instance=st.integers(1, 2))
    def register(self, client: bytes, instance: int) -> None:
        if client not in self.site.gone:
            name = self.workers.register(client, instance)
            if (client, instance) not in self.open:
                self.open[client, instance] = os.open(SHM_DIR / name, os.O_RDWR)
                self.writing[client, instance] = {}

    @rule(client=connections, instance=st.integers(1, 2), chunks=st.integers(1, 2))
    def prepare(self, client: bytes, instance: int, chunks: int) -> None:
        if client not in self.site.gone:
            if (client, instance) not in self.open:
                self.register(client, instance)
            number = next(self.numbers)
            offsets = self.workers.prepare(client, instance, number, chunks)
            if offsets:
                self.writing[client, instance][number, chunks] = offsets

    @rule(client=connections, instance=st.integers(1, 2), data=st.data())
    def commit(self, client: bytes, instance: int, data: st.DataObject) -> None:
        """Of its own, or of somebody else's."""
        known = [(who, what) for who, writes in self.writing.items() for what in writes]
        if client not in self.site.gone and known:
            who, (number, chunks) = data.draw(st.sampled_from(sorted(known)))
            done = self.workers.commit(client, who[1], number, chunks)
            if client == who[0]:
                del self.writing[who][number, chunks]
            else:
                assert not done

    @rule(client=connections, instance=st.integers(1, 2))
    def unregister(self, client: bytes, instance: int) -> None:
        if client not in self.site.gone:
            self.workers.unregister(client, instance)
            if (client, instance) in self.writing:
                self.writing[client, instance].clear()

    @rule(client=connections, instance=st.integers(1, 2))
    def ping(self, client: bytes, instance: int) -> None:
        if client not in self.site.gone:
            self.site.call(client, "ping", instance)

    @rule(client=connections, instance=st.integers(1, 2))
    def end(self, client: bytes, instance: int) -> None:
        """The process ends, and with it its connection."""
        if (client, instance) in self.open:
            os.close(self.open.pop((client, instance)))
            del self.writing[client, instance]
            self.site.gone.add(client)

    @rule(seconds=st.sampled_from([1, GONE_SECONDS, 700]))
    def pass_time(self, seconds: int) -> None:
        self.site.pass_time(seconds)

    @invariant()
    def nothing_is_given_twice(self) -> None:
        offsets = [o for writes in self.writing.values() for w in writes.values() for o in w]
        assert len(offsets) == len(set(offsets))
        space = [s for s in self.site.node.core.l1.spaces() if s.ready]
        ready = {entry.offset for s in space for entry in s.ready.values()}
        assert not ready & set(offsets)

    def teardown(self) -> None:
        for mapped in self.open.values():
            os.close(mapped)
        self.site.gone.update(client for client, _ in self.open)
        self.site.pass_time(2 * GONE_SECONDS)
        assert self.site.held() == 0
        self.site.close()


TestOwnership = Ownership.TestCase
TestOwnership.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
