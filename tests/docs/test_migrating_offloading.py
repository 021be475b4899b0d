"""docs/native.md is about all that vLLM's own offloading reads, as the installed vLLM has it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.docs.pages import REPO

pytest.importorskip("vllm", reason="needs vLLM: scripts/install.py engine")

import vllm
from vllm import envs
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.kv_offload.cpu.policies.factory import CachePolicyFactory
from vllm.v1.kv_offload.factory import OffloadingSpecFactory
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

SECTION = (REPO / "docs" / "native.md").read_text().partition("\n## Moving from ")[2]
# Each row's first column.
THEIRS = re.findall(r"^\| (.*?`.+?) \|", SECTION, flags=re.MULTILINE)
NAMES = {name for column in THEIRS for name in re.findall(r"`([^`]+)`", column)}
PACKAGE = Path(vllm.__file__).parent
READERS = (
    *("v1/kv_offload/base.py", "v1/kv_offload/factory.py"),
    *("v1/kv_offload/cpu/spec.py", "v1/kv_offload/tiering/spec.py"),
    "distributed/kv_transfer/kv_connector/v1/offloading/config.py",
)
# Read in the wheel of 0.33.0.
NEWER = {"tier_poll_interval_s"}
# Of a tier in `secondary_tiers`, and of the connector that the environment selects.
DEEPER = {"root_dir", "store_config"}
SIMPLE = {"lazy_offload", "disk_path"}


def keys_of(source: str) -> set[str]:
    """What a module reads of `kv_connector_extra_config`."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return {
        ast.literal_eval(call.args[0])
        for call in calls
        if isinstance(call.func, ast.Attribute)
        and call.func.attr == "get"
        and ast.unparse(call.func.value).endswith("extra_config")
    }


def test_every_key_is_there() -> None:
    read = set[str]().union(*(keys_of((PACKAGE / each).read_text()) for each in READERS))
    assert "cpu_bytes_to_use" in read
    values = {*CachePolicyFactory._registry, *SecondaryTierFactory._registry}
    values |= {*OffloadingSpecFactory._registry, "native", "lmcache"}
    keys = {name for name in NAMES - values if re.fullmatch(r"[a-z_0-9]+", name)}
    assert keys - DEEPER - SIMPLE - NEWER == read - NEWER


def test_values_are_all_that_there_are() -> None:
    for registry in (CachePolicyFactory, SecondaryTierFactory, OffloadingSpecFactory):
        assert set(registry._registry) <= NAMES


def test_flags_and_variables_are_vllms() -> None:
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    flags = {name.split()[0] for name in NAMES if name.startswith("--")}
    assert {"--kv-offloading-size", "--kv-offloading-backend"} == flags
    assert flags <= set(parser._option_string_actions)
    variables = {name for name in NAMES if name.startswith("VLLM_")}
    assert variables and variables <= set(envs.environment_variables)
    assert "SimpleCPUOffloadConnector" in KVConnectorFactory._registry


def test_what_is_deeper_is_vllms() -> None:
    simple = PACKAGE / "distributed/kv_transfer/kv_connector/v1/simple_cpu_offload_connector.py"
    assert keys_of(simple.read_text()) >= SIMPLE
    for tier, parameter in (("fs", "root_dir"), ("obj", "store_config")):
        code = SecondaryTierFactory.get_tier_class({"type": tier}).__init__.__code__
        assert parameter in code.co_varnames


def test_the_size_flag_replaces_the_connector() -> None:
    """Which is why it has to go."""
    from vllm.config import CacheConfig, KVTransferConfig, VllmConfig

    pair = KVTransferConfig(kv_connector="MultiConnector", kv_role="kv_both")
    config = VllmConfig(cache_config=CacheConfig(kv_offloading_size=1), kv_transfer_config=pair)
    assert config.kv_transfer_config is not None
    assert config.kv_transfer_config.kv_connector == "OffloadingConnector"
    assert config.kv_transfer_config.kv_connector_extra_config["cpu_bytes_to_use"] == 2**30
