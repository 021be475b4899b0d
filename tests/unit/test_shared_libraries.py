"""Libraries of the system that are missing are named, by serve's adapters and by doctor."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar import shared_libraries
from sidecar.commands.doctor import libraries
from sidecar.tiers.adapters.client_library import library
from sidecar.tiers.base import AdapterUnusable
from tests.support.doctor import CURRENT, around

LOADERS_WORDS = "libibverbs.so.1: cannot open shared object file: No such file or directory"
LACK = "mooncake needs libibverbs.so.1: apt-get install libibverbs1"
ADAPTER = {"type": "mooncake_store", "local_hostname": "n", "master_server_address": "m:50051"}


@pytest.fixture
def no_infiniband(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that lacks nothing else."""
    monkeypatch.setattr(shared_libraries, "loads", lambda name: "ibverbs" not in name)


def test_the_loader_is_asked() -> None:
    assert shared_libraries.loads("libc.so.6")
    assert not shared_libraries.loads("libnobody.so.9")


def test_each_library_has_its_package() -> None:
    needed = {name for names in shared_libraries.NEEDED.values() for name in names}
    assert needed == shared_libraries.DEBIAN.keys()


@pytest.mark.usefixtures("no_infiniband")
def test_what_is_missing_is_named_with_its_package() -> None:
    assert shared_libraries.lack("mooncake") == LACK
    assert shared_libraries.lack("obstore") == ""


@pytest.fixture
def unloadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package `mooncake` whose shared object is not loaded."""
    (tmp_path / "mooncake").mkdir()
    (tmp_path / "mooncake" / "__init__.py").touch()
    (tmp_path / "mooncake" / "store.py").write_text(f"raise ImportError({LOADERS_WORDS!r})")
    for name in [name for name in sys.modules if name.partition(".")[0] == "mooncake"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("mooncake", "mooncake.store"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("unloadable", "no_infiniband")
def test_an_adapter_whose_client_cannot_be_loaded_names_what_is_missing() -> None:
    with pytest.raises(AdapterUnusable) as refused:
        library("mooncake.store", "mooncake")
    assert str(refused.value) == LACK


@pytest.mark.usefixtures("unloadable")
def test_without_a_known_library_missing_the_loader_has_the_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shared_libraries, "loads", lambda name: True)
    with pytest.raises(AdapterUnusable) as refused:
        library("mooncake.store", "mooncake")
    assert str(refused.value) == f"mooncake.store cannot be loaded: {LOADERS_WORDS}"


@pytest.mark.usefixtures("unloadable", "no_infiniband")
def test_doctor_names_what_is_missing() -> None:
    """Of a worker's lmcache, which breaks with Mooncake, and of the server's own adapter."""
    surroundings = around("--l2-adapter", json.dumps(ADAPTER), installed={"vllm": "0.32.0"})
    worker, server = libraries.check(surroundings)
    assert (worker.check, worker.level, worker.do) == (
        *("lmcache", "problem", "apt-get install libibverbs1"),
    )
    assert worker.what == "mooncake needs libibverbs.so.1"
    assert (server.check, server.level, server.what) == ("L2 mooncake_store", "problem", LACK)
    # Without lmcache nothing imports Mooncake but its adapter.
    assert not list(libraries.check(around(installed={"vllm": "0.32.0", "lmcache": None})))


def test_doctor_knows_what_the_cpu_build_of_vllm_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_libraries, "loads", lambda name: "numa" not in name)
    assert libraries.of_vllm({**CURRENT, "vllm": "0.32.0"}) is None
    finding = libraries.of_vllm({**CURRENT, "vllm": "0.32.0+cpu"})
    assert finding and finding.do == "apt-get install libnuma1"
