"""Names: one for each object, readable, safe in paths and keys."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cache.keys import SpaceKey
from sidecar.tiers.names import ObjectName, parse_path, parse_space, space_name

SAFE = set(string.ascii_letters + string.digits + "._-@=/")
texts = st.text(st.characters(exclude_characters="@"), max_size=40)
spaces = st.builds(
    SpaceKey,
    model_name=texts.filter(bool),
    world_size=st.integers(1, 1024),
    rank=st.integers(0, 1023),
    cache_salt=texts,
    fingerprint=st.binary(min_size=16, max_size=16),
)


@given(spaces)
def test_a_name_is_read_back_or_is_a_digest(space: SpaceKey) -> None:
    name = space_name(space)
    assert set(name) <= SAFE - {"/"}
    assert len(name) <= 240
    assert parse_space(name) == (None if name.startswith("==") else space)


@given(spaces, spaces)
def test_spaces_have_names_of_their_own(one: SpaceKey, other: SpaceKey) -> None:
    assert (space_name(one) == space_name(other)) == (one == other)


def test_a_long_name_is_called_by_its_digest() -> None:
    space = SpaceKey("m" * 512, 1, 0, "s" * 128, bytes(16))
    assert len(space_name(space)) < 100
    assert space_name(space) != space_name(space._replace(rank=1))


def test_a_name_tells_the_model() -> None:
    space = SpaceKey("org/Model-8B", 4, 2, "a b", bytes(16))
    assert space_name(space) == f"org=2FModel-8B@4.2@{'00' * 16}@a=20b"


def test_paths_are_read_back() -> None:
    name = ObjectName("space@1.0@x", bytes(range(32)))
    assert parse_path(name.path) == name


@pytest.mark.parametrize(
    "path", ["", "x", "space/", "/" + "00" * 32, "space/" + "0" * 63, "a/b/" + "00" * 32,
             "space/" + "AB" * 32, "space/" + "00" * 32 + ".tmp"],
)  # fmt: skip
def test_what_is_no_path(path: str) -> None:
    assert parse_path(path) is None


@pytest.mark.parametrize("name", ["", "m@1.0", "m@1.0@short", "m@a.b@" + "00" * 16, "==00"])
def test_what_is_no_space(name: str) -> None:
    assert parse_space(name) is None
