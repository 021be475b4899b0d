"""A hit reported stays a hit, and every lease ends exactly once."""

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cache.arena import ALIGNMENT
from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases, Lookup, Scope
from sidecar.cache.policies.lru import LRU

SCOPE = Scope("m", 2, "")
HASHES = [b"h0", b"h1", b"h2", b"h3"]


def setup(ranks: int = 2) -> tuple[L1, Leases, list[list[tuple[Entry, ...]]]]:
    l1 = L1(64 * ALIGNMENT, LRU())
    l1.grow(0, 64 * ALIGNMENT)
    objects = []
    for rank in range(ranks):
        entries = [l1.reserve(SpaceKey("m", 2, rank, "", b""), h, ALIGNMENT) for h in HASHES]
        for entry in entries:
            assert entry is not None
            l1.commit(entry)
        objects.append([(entry,) for entry in entries if entry])
    return l1, Leases(), objects


def lookup(objects, readers=1, client=b"c", deadline=10.0, request="r", hashes=HASHES):
    return Lookup(client, request, SCOPE, hashes, objects, readers, deadline)


def test_retrieves_of_all_ranks_end_the_leases() -> None:
    l1, leases, objects = setup()
    leases.add(lookup(objects))
    assert leases.live == 8 and leases.report("r", b"c") == 4
    for rank in (0, 1):
        assert l1.held > 0
        leases.release("r", SCOPE, HASHES, 0, 1, rank)
    assert (leases.live, l1.held, leases.pending) == (0, 0, 0)


def test_each_reader_of_a_shared_object_has_a_share() -> None:
    l1, leases, objects = setup(ranks=1)
    leases.add(lookup(objects, readers=2))
    leases.release("r", SCOPE, HASHES, 0, 1, 0)
    assert l1.held == 4
    leases.release("r", SCOPE, HASHES, 0, 1, 0)
    assert l1.held == 0
    leases.release("r", SCOPE, HASHES, 0, 1, 0)  # one too many changes nothing
    assert (leases.live, l1.held) == (0, 0)


def test_free_and_retrieve_partition_the_hit() -> None:
    l1, leases, objects = setup()
    leases.add(lookup(objects))
    leases.release("r", SCOPE, HASHES[:1], 0, 1)
    assert leases.live == 6
    for rank in (0, 1):
        leases.release("r", SCOPE, HASHES, 1, 1, rank)
    assert (leases.live, l1.held) == (0, 0)


def test_a_hit_is_reported_once_and_unknown_requests_have_none() -> None:
    _, leases, objects = setup()
    leases.add(lookup(objects))
    assert leases.report("r", b"c") == 4
    assert leases.report("r", b"c") == 0 == leases.report("nobody", b"c")


def test_a_hit_is_reported_to_who_asked_for_it() -> None:
    _, leases, objects = setup()
    leases.add(lookup(objects, client=b"one"))
    assert leases.report("r", b"two") == 0
    assert leases.report("r", b"one") == 4


def test_a_second_lookup_replaces_the_first() -> None:
    l1, leases, objects = setup()
    leases.add(lookup(objects))
    leases.add(lookup(objects))
    assert leases.live == 8 and leases.pending == 1
    leases.report("r", b"c")
    for rank in (0, 1):
        leases.release("r", SCOPE, HASHES, 0, 1, rank)
    assert l1.held == 0


def test_two_schedulers_may_use_one_request_id() -> None:
    l1, leases, objects = setup(ranks=1)
    leases.add(lookup(objects, client=b"one"))
    leases.add(lookup(objects, client=b"two"))
    assert leases.report("r", b"one") == leases.report("r", b"two") == 4
    leases.release("r", SCOPE, HASHES, 0, 1, 0)
    assert leases.live == 4 and l1.held == 4
    leases.release("r", SCOPE, HASHES, 0, 1, 0)
    assert leases.live == 0 == l1.held


def test_a_release_of_another_sequence_or_model_releases_nothing() -> None:
    _, leases, objects = setup()
    leases.add(lookup(objects))
    leases.release("r", SCOPE, [b"other"] * 4, 0, 1)
    leases.release("r", SCOPE._replace(model_name="n"), HASHES, 0, 1)
    leases.release("r", SCOPE._replace(cache_salt="s"), HASHES, 0, 1)
    assert leases.live == 8


def test_expiry_ends_what_nobody_came_for() -> None:
    l1, leases, objects = setup()
    leases.add(lookup(objects, deadline=10.0))
    assert leases.expire(9.9) == 0
    assert leases.expire(10.0) == 8
    assert (leases.live, l1.held, leases.pending) == (0, 0, 0)


def test_end_of_session_only_shortens_the_limit() -> None:
    l1, leases, objects = setup()
    leases.add(lookup(objects, deadline=100.0))
    leases.end_session("r", 20.0)
    leases.end_session("unknown", 20.0)
    assert l1.held == 8 and leases.expire(19.0) == 0
    assert leases.expire(20.0) == 8


def test_what_a_dead_client_held_is_released() -> None:
    l1, leases, objects = setup()
    leases.add(lookup(objects, client=b"dead"))
    assert leases.clients() == {b"dead"}
    leases.drop_clients({b"dead"})
    assert (leases.live, l1.held) == (0, 0)


def test_a_miss_is_not_kept() -> None:
    _, leases, objects = setup()
    leases.add(lookup(objects))
    leases.add(lookup([[], []], hashes=[]))
    assert (leases.open, leases.live, leases.pending) == (0, 0, 0)
    assert leases.report("r", b"c") == 0


def test_room_is_made_by_who_has_waited_longest_to_be_asked() -> None:
    _, leases, objects = setup(ranks=1)
    for request in ("reported", "old", "new"):
        leases.add(lookup(objects, request=request))
    leases.report("reported", b"c")
    assert leases.make_room(b"c", 1, 6)
    assert (leases.report("old", b"c"), leases.report("new", b"c")) == (0, 4)
    assert not leases.make_room(b"c", 1, 4), "what was reported is a promise"
    assert leases.open == 2


def test_who_has_most_gives_way_and_nobody_has_more_than_half() -> None:
    _, leases, objects = setup(ranks=1)
    leases.add(lookup(objects, client=b"small", request="first"))
    for number in range(9):
        assert leases.make_room(b"large", 1, 10)
        leases.add(lookup(objects, client=b"large", request=f"r{number}"))
    assert leases.open == 1 + 5
    for number in range(9):
        assert leases.make_room(b"small", 1, 10)
        leases.add(lookup(objects, client=b"small", request=f"s{number}"))
    assert leases.open == 10
    assert leases.make_room(b"third", 1, 10)
    assert leases.open == 9


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"c", b"d", b"e"]), st.integers(1, 12), st.sampled_from("alr"),
            st.integers(0, 9),
        )
    )
)  # fmt: skip
def test_weights_are_bounded_and_come_back_to_nothing(steps: list) -> None:
    """`a`dd if there is room, end by `l`imit, `r`eport."""
    _, leases, objects = setup(ranks=1)
    limit, held = 24, {}
    for client, weight, what, number in steps:
        request = str(number)
        if what == "a" and leases.make_room(client, weight, limit):
            new = lookup(objects, client=client, request=request)
            new.weight = weight
            leases.add(new)
            held[client, request] = new
        elif what == "l" and (client, request) in held:
            leases.end(held[client, request])
        elif what == "r":
            leases.report(request, client)
        weights = {c: 0 for c, _ in held}
        for (c, _), each in held.items():
            weights[c] += 0 if each.ended else each.weight
        assert max(weights.values(), default=0) <= limit // 2
        assert sum(weights.values()) <= limit
    leases.expire(100.0)
    assert not leases._weights and leases.open == leases.live == 0


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.sampled_from(["r", "s"]), st.sampled_from([b"c", b"d"]),
                      st.integers(0, 4), st.integers(1, 3)),
            st.tuples(st.just("release"), st.sampled_from(["r", "s"]), st.integers(0, 4),
                      st.integers(0, 4), st.integers(1, 4), st.sampled_from([None, 0, 1])),
            st.tuples(st.just("report"), st.sampled_from("rs"), st.sampled_from([b"c", b"x"])),
            st.tuples(st.just("drop"), st.sampled_from([b"c", b"d"])),
            st.tuples(st.just("expire"), st.integers(0, 30)),
        ),
        max_size=40,
    )
)  # fmt: skip
def test_whatever_happens_the_books_balance(steps: list[tuple]) -> None:
    l1, leases, objects = setup()
    for number, (what, *args) in enumerate(steps):
        if what == "add":
            request, client, hits, readers = args
            cut = [of_rank[:hits] for of_rank in objects]
            leases.add(lookup(cut, readers, client, 5.0 + number, request, HASHES[:hits]))
        elif what == "release":
            request, start, end, readers, rank = args
            leases.release(request, SCOPE, HASHES[:end], start, readers, rank)
        elif what == "report":
            assert 0 <= leases.report(*args) <= 4
        elif what == "drop":
            leases.drop_clients({*args})
        else:
            leases.expire(*args)
        assert leases.live >= 0 and leases.pending >= 0
        assert (leases.live == 0) == (l1.held == 0)
    leases.expire(1e9)
    assert (leases.live, leases.pending, leases.open, l1.held) == (0, 0, 0, 0)
    assert all(e.leases == 0 for of_rank in objects for (e,) in of_rank)


def loading(l1: L1, leases: Leases, objects: list[list[tuple[Entry, ...]]]) -> Lookup:
    """A lookup that has found its first chunk and waits for more."""
    made = lookup([chunks[:1] for chunks in objects], hashes=HASHES[:1])
    made.loading = True
    leases.add(made)
    return made


def test_a_lookup_that_is_loading_is_not_reported() -> None:
    l1, leases, objects = setup()
    made = loading(l1, leases, objects)
    assert leases.report("r", b"c") is None
    for chunk in (1, 2):
        leases.extend(made, HASHES[chunk], [chunks[chunk] for chunks in objects])
    assert (leases.live, l1.held) == (6, 6)
    leases.end_loading(made, 2)
    assert (leases.live, l1.held) == (4, 4)
    assert leases.report("r", b"c") == 2
    leases.release("r", SCOPE, HASHES[:2], 0, 1)
    assert (leases.live, l1.held, leases.open) == (0, 0, 0)


def test_a_miss_after_loading_is_not_kept() -> None:
    l1, leases, objects = setup()
    made = loading(l1, leases, objects)
    leases.end_loading(made, 0)
    assert (leases.open, leases.live, l1.held) == (0, 0, 0)
    assert leases.report("r", b"c") == 0


def test_who_loads_is_told_that_nobody_waits() -> None:
    l1, leases, objects = setup()
    made = loading(l1, leases, objects)
    assert not made.ended.done
    leases.add(lookup(objects))  # the request asks again
    assert made.ended.done
    leases.end_loading(made, 1)  # comes too late, and changes nothing
    assert leases.live == 8
    assert leases.report("r", b"c") == 4
