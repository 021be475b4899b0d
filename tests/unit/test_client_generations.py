"""The tables of each generation, against the released packages."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.config.options import RELEASES as OPTION_RELEASES
from sidecar.wire.generations import GENERATIONS, NEWEST, generation_of
from sidecar.wire.native import NATIVE
from sidecar.wire.operations import OPERATIONS
from tests.support.releases import RELEASES, protocol, request_types

encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode
# The enumeration's names that the protocol's names of 0.5.6 do not follow.
RENAMED = {
    "register_kv_cache_non_gpu_context": "register_kv_cache_engine_driven_context",
    "unregister_kv_cache_non_gpu_context": "unregister_kv_cache_engine_driven_context",
    "cb_retrieve_pre_computed": "cb_retrieve_pre_computed_v1",
    "cb_register_rope_v3": "cb_register_rope",
    "cb_unregister_rope_v3": "cb_unregister_rope",
    "cb_retrieve_pre_computed_v3": "cb_retrieve_pre_computed",
}
# What a client decodes a negative into, by the reply's type in the source.
NEGATIVES = {
    "None": type(None),
    "bool": bool,
    "int": int,
    "int | None": int | None,
    "str": str,
    "list[str]": list[str],
    "tuple[bytes, bool]": tuple[bytes, bool],
    "tuple[int, bool]": tuple[int, bool],
    "list[tuple[int, int]]": list[tuple[int, int]],
    "list[CBMatchResult]": list[dict],
    "CBUnifiedLookupResult | None": dict | None,
    "list[TransferChannelAddress] | None": list[dict] | None,
    "PrepareStoreResponse": dict,
    "PrepareRetrieveResponse": dict,
    "RegisterNonGpuContextResponse": dict,
    "RegisterEngineDrivenContextResponse": dict,
}


def ours(release: str, name: str) -> str:
    """A name of the release's enumeration in the terms of our operations."""
    return name if generation_of(release) is NEWEST else RENAMED.get(name, name)


@pytest.mark.parametrize("release", RELEASES)
def test_the_ids_are_the_released_ones(release: str) -> None:
    table = generation_of(release).table
    released = {encode(n): ours(release, name) for name, n in request_types(release).items()}
    numbered = {f: op.name for f, op in table.operations().items() if isinstance(decode(f), int)}
    assert numbered == released


def test_the_newest_ids_are_those_that_the_client_froze() -> None:
    wire = pytest.importorskip("lmcache.v1.multiprocess.transport.zmq_impl.wire")
    table = NEWEST.table
    for name, number in wire.LEGACY_OPERATION_IDS.items():
        by_number, by_name = table.find(encode(number)), table.find(encode(name))
        assert by_number is by_name is not None and by_name.name == name


@pytest.mark.parametrize("release", RELEASES)
def test_payloads_and_negatives_are_of_the_released_types(release: str) -> None:
    table, ids = generation_of(release).table, request_types(release)
    for name, (payloads, reply) in protocol(release).items():
        operation = table.find(encode(ids[name]))
        assert operation is not None
        if operation.served:
            assert len(operation.decoders) - operation.optional <= len(payloads), name
            assert len(payloads) <= len(operation.decoders), name
        value = None if operation.negative is None else decode(operation.negative)
        msgspec.convert(value, NEGATIVES[reply])  # raises where a client could not decode it


def test_every_release_can_be_named() -> None:
    assert {"0.5.6", *RELEASES} == set(OPTION_RELEASES)
    assert {generation_of(release) for release in OPTION_RELEASES} == set(GENERATIONS)


def test_only_the_newest_generation_knows_operations_by_name() -> None:
    for generation in GENERATIONS:
        named = [f for f in generation.table.operations() if isinstance(decode(f), str)]
        assert bool(named) == (generation is NEWEST)
    ours = {operation.name for operation in NATIVE}
    assert {op.name for op in NEWEST.table.operations().values()} <= set(OPERATIONS) | ours
