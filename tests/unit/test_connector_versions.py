"""What is refused for the versions in a worker's environment, and what the user is told."""

from pathlib import Path

import pytest

from connectors import roles
from connectors.errors import ConnectorError
from connectors.lmcache_mp import CacheServer
from connectors.nixl import Nixl
from connectors.roles import Handoff, Role
from connectors.versions import FACTS, GATES, Package, check
from connectors.worker import Program, needs

DOCS = Path(__file__).parents[2] / "docs" / "connectors.md"
CURRENT: dict[Package, str | None] = {
    "vllm": "0.31.0+cpu",
    "lmcache": "0.5.6",
    "nixl": "1.5.1",
    "ai-dynamo": "1.6.1",
}


def refusal(
    versions: dict[Package, str | None],
    role: Role,
    program: Program = "dynamo",
    handoff: Handoff = "nixl",
    server: CacheServer | None = None,
) -> str:
    config = roles.kv_transfer_config(role, server or CacheServer(), Nixl(), handoff)
    try:
        check(needs(config, program, role), {**CURRENT, **versions})
    except ConnectorError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("handoff", ["nixl", "cache"])
@pytest.mark.parametrize("role", ["aggregated", "prefill", "decode", "fallback"])
def test_current_versions_can_do_every_role(role: Role, handoff: Handoff) -> None:
    assert refusal({}, role, handoff=handoff) == ""


def test_old_lmcache_is_named_with_what_to_install() -> None:
    said = refusal({"lmcache": "0.5.4"}, "prefill")

    assert "0.5.4 is installed" in said
    assert said.endswith("pip install 'lmcache>=0.5.5'")


def test_transfers_by_the_sidecar_need_a_newer_client_than_those_by_the_worker() -> None:
    driven = CacheServer(transfer_mode="lmcache_driven")

    assert "0.5.6" in refusal({"lmcache": "0.5.5"}, "aggregated", server=driven)
    assert refusal({"lmcache": "0.5.5"}, "aggregated") == ""


def test_decode_does_not_need_what_it_does_not_use() -> None:
    assert refusal({"lmcache": None}, "decode") == ""
    assert "pip install nixl" in refusal({"nixl": None}, "decode")
    assert refusal({"nixl": None, "lmcache": None}, "fallback") == ""


def test_dynamo_is_only_needed_by_its_own_workers() -> None:
    assert "'ai-dynamo>=1.0.0'" in refusal({"ai-dynamo": "0.9.1"}, "decode")
    assert refusal({"ai-dynamo": None}, "decode", "vllm") == ""


def test_dynamo_hands_off_through_the_cache_since_1_6() -> None:
    assert "'ai-dynamo>=1.6.0'" in refusal({"ai-dynamo": "1.5.1"}, "decode", handoff="cache")
    assert refusal({"ai-dynamo": "1.5.1"}, "prefill") == ""
    assert refusal({"ai-dynamo": "1.5.1"}, "aggregated") == ""


def test_old_vllm_cannot_load_the_client() -> None:
    assert "'vllm>=0.22.0'" in refusal({"vllm": "0.21.0+cpu"}, "aggregated")
    assert refusal({"vllm": "0.22.0.post1"}, "aggregated") == ""


def test_nothing_is_refused_where_no_worker_runs() -> None:
    nothing: dict[Package, str | None] = dict.fromkeys(CURRENT)

    assert refusal(nothing, "prefill") == ""


def test_the_documentation_has_every_version() -> None:
    text = DOCS.read_text()

    for entry in (*GATES, *FACTS):
        assert entry.since in text, entry
