"""Every layout that shapes and hints can tell apart comes back byte for byte, in both modes."""

from __future__ import annotations

import pytest
import torch

from tests.conformance.padded import padded_pool
from tests.conformance.rig import Rig, round_trip
from tests.support.client import ENGINE, HANDLE, Worker
from tests.support.layouts import (
    FUSED,
    FUSED_NHD,
    KV_FIRST_HND,
    KV_FIRST_NHD,
    LAYOUTS,
    MLA,
    Group,
    KVCache,
    Layout,
    one_group,
)
from tests.support.server import shown


def reported_format(rig: Rig, worker: Worker) -> str:
    """The layout name that /status gives for the worker's first group."""
    (number,) = shown(worker.instance)
    entry = rig.server.status()["cache_context_meta"][str(number)]
    return str(entry["kv_cache_layout"]["kernel_groups"][0]["engine_kv_format"])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_round_trip(rig: Rig, layout: Layout, mode: str) -> None:
    round_trip(rig, rig.worker(one_group(layout, seed=layout.format_id), mode))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "uint8"])
@pytest.mark.parametrize("layout", [FUSED, MLA, KV_FIRST_NHD], ids=lambda layout: layout.name)
def test_element_types(rig: Rig, layout: Layout, dtype: str, mode: str) -> None:
    round_trip(rig, rig.worker(one_group(layout, dtype=dtype), mode))


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("layout", [FUSED, MLA, KV_FIRST_NHD], ids=lambda layout: layout.name)
def test_eight_bit_floats(rig: Rig, layout: Layout, dtype: str) -> None:
    """Handle mode only: torch cannot scatter these types on a CPU, so the stock client fails."""
    round_trip(rig, rig.worker(one_group(layout, dtype=dtype)))


@pytest.mark.parametrize("slots", [8, 32, 64])
def test_blocks_of_other_sizes(rig: Rig, slots: int, mode: str) -> None:
    """Down to eight blocks a chunk, up to one."""
    round_trip(rig, rig.worker(one_group(FUSED, slots=slots, blocks=60), mode))


def test_one_layer_and_odd_sizes(rig: Rig, mode: str) -> None:
    round_trip(rig, rig.worker(one_group(FUSED, layers=1, heads=3, size=5), mode))


def test_two_blocks_only_is_taken_as_keys_and_values_first(rig: Rig) -> None:
    """A 5-D tensor whose first axis is 2 has K and V there, even if a block axis would fit."""
    worker = rig.worker(one_group(KV_FIRST_HND, blocks=9))
    round_trip(rig, worker, chunks=1)


def test_a_view_with_swapped_axes(rig: Rig) -> None:
    """vLLM shows an NHD view of HND memory; the client sends the physical order."""
    cache = one_group(KV_FIRST_HND)
    views = {name: tensor.permute(0, 1, 3, 2, 4) for name, tensor in cache.tensors.items()}
    round_trip(rig, rig.worker(KVCache(views, "HND", cache.groups)))


def test_layers_fused_in_one_storage(rig: Rig, mode: str) -> None:
    """All layers are views of one allocation at different offsets, with a gap in front."""
    base = one_group(FUSED).tensors
    shape = base["layer.0"].shape
    size = base["layer.0"].numel()
    pool = torch.zeros(len(base) * size + 96, dtype=torch.float16)
    tensors = {}
    for number, (name, tensor) in enumerate(base.items()):
        view = pool[96 + number * size : 96 + (number + 1) * size].view(shape)
        view.view(torch.uint8).copy_(tensor.view(torch.uint8))
        tensors[name] = view
    round_trip(rig, rig.worker(KVCache(tensors, "HND", [Group(list(tensors))]), mode))


@pytest.mark.parametrize("layout", [FUSED, FUSED_NHD, MLA], ids=lambda layout: layout.name)
def test_fused_pool_with_padded_blocks(
    rig: Rig, layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks first: a block holds all layers and padding, so each layer's stride has gaps."""
    cache = padded_pool(layout, monkeypatch)
    round_trip(rig, rig.worker(cache))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_status_names_the_format(rig: Rig, layout: Layout) -> None:
    names = {
        1: "NL_X_TWO_NB_BS_NH_HS",
        2: "NL_X_NB_TWO_BS_NH_HS",
        3: "NL_X_NB_BS_HS",
        6: "NL_X_TWO_NB_NH_BS_HS",
        7: "NL_X_NB_TWO_NH_BS_HS",
        12: "NL_X_NB_NH_BS_CS",
        13: "NL_X_NB_BS_NH_CS",
        14: "NL_X_NB_BSV_BSS",
    }
    worker = rig.worker(one_group(layout))
    assert names[layout.format_id] in reported_format(rig, worker)


def test_both_modes_of_one_model_stay_apart_or_agree(rig: Rig) -> None:
    """A chunk that one mode stored may be missed by the other, but never misread."""
    handle, engine = rig.worker(mode=HANDLE), rig.worker(mode=ENGINE)
    tokens, blocks = rig.tokens(2), rig.blocks(handle, 2)
    origin = handle.cache.image()
    assert handle.store(tokens, blocks)
    engine.cache.wipe(blocks)
    if engine.retrieve(tokens, blocks):
        for layer, image in engine.cache.image().items():
            assert torch.equal(image[blocks[0]], origin[layer][blocks[0]])
