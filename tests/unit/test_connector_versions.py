"""What is refused for the versions in a worker's environment, and what the user is told."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from connectors import roles
from connectors.errors import ConnectorError
from connectors.lmcache_mp import TRANSFER_MODE as MODE
from connectors.lmcache_mp import CacheServer, TransferMode
from connectors.nixl import Nixl
from connectors.offloading import NativeServer
from connectors.pairs import PAIRS, Pair, assumed
from connectors.roles import Handoff, Role
from connectors.versions import FACTS, GATES, Package, check
from connectors.worker import Program, needs
from sidecar.cli import main
from tests.support.releases import RELEASES, folder

DOCS = Path(__file__).parents[2] / "docs" / "reference.md"
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
    server: roles.Server | None = None,
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
    said = refusal({"lmcache": "0.4.4"}, "prefill")

    assert "the worker has 0.4.4" in said
    assert said.endswith("pip install 'lmcache>=0.4.5'")


@pytest.mark.parametrize("release", RELEASES)
def test_every_served_release_can_do_what_it_can(release: str) -> None:
    have: dict[Package, str | None] = {"vllm": "0.26.0", "lmcache": release}
    assert refusal(have, "aggregated") == ""
    # Without a GPU what older ones send is pickles.
    said = refusal({**have, "vllm": "0.26.0+cpu"}, "aggregated")
    assert ("'lmcache>=0.4.7'" in said) == (release < "0.4.7")


def test_what_a_client_does_not_read_cannot_be_asked_of_it() -> None:
    driven = CacheServer(transfer_mode="lmcache_driven")
    several = CacheServer(urls=("tcp://a:5555", "tcp://b:5555"))
    gpu: dict[Package, str | None] = {"vllm": "0.23.0"}

    assert "'lmcache>=0.4.7'" in refusal({**gpu, "lmcache": "0.4.6"}, "aggregated", server=driven)
    assert refusal({**gpu, "lmcache": "0.4.7"}, "aggregated", server=driven) == ""
    assert "'lmcache>=0.5.0'" in refusal({**gpu, "lmcache": "0.4.7"}, "aggregated", server=several)
    assert refusal({**gpu, "lmcache": "0.5.0"}, "aggregated", server=several) == ""


@pytest.mark.parametrize("vllm", ["0.30.0", "0.31.0+cpu", "0.33.1", "0.34.0", "1.0.0"])
def test_vllms_own_connector_is_known_in_some_releases_only(vllm: str) -> None:
    """And there no lmcache is needed."""
    said = refusal({"vllm": vllm, "lmcache": None}, "aggregated", server=NativeServer())

    assert (said == "") == (vllm in ("0.31.0+cpu", "0.33.1"))
    assert said == "" or said.endswith("pip install 'vllm>=0.31.0,<0.34.0'")


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


def test_nothing_is_refused_for_a_package_of_which_nothing_is_known() -> None:
    config = roles.kv_transfer_config("prefill", CacheServer(), Nixl())
    check(needs(config, "dynamo", "prefill"), {})
    with pytest.raises(ConnectorError, match=r"lmcache>=0\.4\.5"):
        check({"the sidecar's client"}, {"lmcache": "0.4.4"})


def config_for(*arguments: str) -> dict[str, Any]:
    """The client's settings that `connector` prints for a worker elsewhere."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["connector", "--role", "aggregated", *arguments]) == 0
    settings: dict[str, Any] = json.loads(out.getvalue())["kv_connector_extra_config"]
    return settings


@pytest.mark.parametrize("release", RELEASES)
def test_a_worker_elsewhere_gets_what_its_client_reads(release: str) -> None:
    package = folder(release) / "lmcache"
    client = "".join(file.read_text() for file in (package / "integration/vllm").glob("*.py"))
    source = package / "v1/multiprocess/transfer_context/worker_transfer.py"
    can_choose = release >= "0.4.7"
    for mode in get_args(TransferMode) if can_choose else ("auto",):
        settings = config_for("--for", f"lmcache=={release}", "--transfer-mode", mode)
        assert [key for key in settings if key not in client] == []
        assert (MODE in settings) == can_choose
        if can_choose:
            assert f' = "{settings[MODE]}"\n' in source.read_text()


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.vllm)
def test_lmcache_is_that_of_the_vllm_or_the_dynamo(pair: Pair) -> None:
    assert assumed({"vllm": f"{pair.vllm}.1"})["lmcache"] == pair.lmcache[0]
    if pair.dynamo:
        found = assumed({"ai-dynamo": f"{pair.dynamo}.1"})
        assert (found["vllm"], found["lmcache"]) == (f"{pair.vllm}.0", pair.lmcache[0])


def test_what_is_given_wins_and_what_is_unknown_is_left_out() -> None:
    assert assumed({"vllm": "0.26.0", "lmcache": "0.5.4"})["lmcache"] == "0.5.4"
    assert assumed({"vllm": "0.99.0"}) == {"vllm": "0.99.0"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--for", "vllm==0.23.0", "--server-url", "tcp://a:1"), "'lmcache>=0.5.0'"),
        (("--for", "vllm==0.22.0", "--transfer-mode", "lmcache_driven"), "'lmcache>=0.4.7'"),
        (("--for", "vllm==0.22.0+cpu"), "'lmcache>=0.4.7'"),
        (("--for", "vllm==0.21"), "'vllm>=0.22.0'"),
        (("--for", "lmcache==0.4.4"), "'lmcache>=0.4.5'"),
        (("--for", "torch==2.0"), "PACKAGE==VERSION"),
        (("--for", "vllm==new"), "PACKAGE==VERSION"),
        (("--for", "vllm==0.31.0", "--skip-version-check"), "not allowed with"),
    ],
)
def test_one_line_says_why_not(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["connector", "--role", "aggregated", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_documentation_has_every_pair() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| 0.")]
    told = [[cell.strip() for cell in row.strip("|").split("|")][:3] for row in rows]
    assert told == [[p.vllm, " or ".join(p.lmcache), p.dynamo] for p in PAIRS]


def test_the_documentation_has_every_version() -> None:
    text = DOCS.read_text()

    for entry in (*GATES, *FACTS):
        assert entry.since in text, entry
