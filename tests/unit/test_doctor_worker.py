"""`kv-sidecar doctor -- WORKER COMMAND`: each trap is found, and our own commands have none."""

from __future__ import annotations

import importlib.util
import json
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from connectors import lmcache_v1, nixl, roles
from connectors.lmcache_mp import CacheServer, kv_transfer_config
from connectors.nixl import Nixl
from connectors.offloading import NativeServer
from connectors.roles import Role
from connectors.worker import DEFAULT_PORTS, Program, Worker, command
from sidecar.commands.doctor import worker
from sidecar.commands.doctor.finding import Finding
from sidecar.commands.doctor.worker.invocation import parse
from sidecar.commands.doctor.worker.reading import as_vllm_reads_it
from tests.support.doctor import CURRENT, around, doctor
from tests.support.models import DEEPSEEK_V3, FALCON_H1_1B, GEMMA3_4B, MAMBA2

Config = dict[str, Any]
CLIENT = kv_transfer_config(CacheServer())
PAIR = roles.prefill(CacheServer(), Nixl())
NATIVE = roles.aggregated(NativeServer())
SEED = {"PYTHONHASHSEED": "0"}
EVENTS = ("--kv-events-config", '{"enable_kv_cache_events": true, "publisher": "zmq"}')
NO_EVENTS = ("--kv-events-config", '{"enable_kv_cache_events": false}')
XXHASH = ("--prefix-caching-hash-algo", "xxhash")
MODULE = "kv_connector_module_path"


def vllm(config: Config | str | None, *more: str) -> list[str]:
    """`vllm serve`, with this config."""
    if config is None:
        return ["vllm", "serve", "m", *more]
    text = config if isinstance(config, str) else json.dumps(config)
    return ["vllm", "serve", "m", "--kv-transfer-config", text, *more]


def dynamo(config: Config | None, *more: str) -> list[str]:
    return ["python3", "-m", "dynamo.vllm", "--model", "m", *vllm(config, *more)[3:]]


def client(**changes: Any) -> Config:
    """The sidecar's client with other top-level keys; None removes one."""
    changed = {**CLIENT, **changes}
    return {key: value for key, value in changed.items() if value is not None}


def settings(**changes: Any) -> Config:
    """The sidecar's client with other settings of its own."""
    extra = {f"lmcache.mp.{key}": value for key, value in changes.items()}
    return client(kv_connector_extra_config={**CLIENT["kv_connector_extra_config"], **extra})


def native(**changes: Any) -> Config:
    """vLLM's own connector over the sidecar, with other settings."""
    extra = {**NATIVE["kv_connector_extra_config"], **changes}
    return {**NATIVE, "kv_connector_extra_config": extra}


def examined(
    line: list[str], *options: str, environ: Mapping[str, str] | None = None, **surroundings: Any
) -> list[Finding]:
    """What is wrong with a command."""
    inherited = SEED if environ is None else environ
    invocation = parse(line, inherited)
    found = worker.check(invocation, around(*options, environ=inherited, **surroundings))
    return [finding for finding in found if finding.level != "ok"]


def of_role(
    role: Role, program: Program, handoff: roles.Handoff, server: roles.Server
) -> list[str]:
    made = Worker(
        model="m",
        role=role,
        config=roles.kv_transfer_config(role, server, Nixl(), handoff),
        program=program,
        ports=DEFAULT_PORTS[role],
        nixl=Nixl(),
    )
    return shlex.split(command(made).shell())


@pytest.mark.parametrize("program", get_args(Program))
@pytest.mark.parametrize("handoff", get_args(roles.Handoff))
@pytest.mark.parametrize("role", ["aggregated", "prefill", "decode"])
@pytest.mark.parametrize("server", [CacheServer(), NativeServer()], ids=["lmcache", "native"])
def test_our_own_commands_have_no_trap(
    role: Role, handoff: roles.Handoff, program: Program, server: roles.Server
) -> None:
    if isinstance(server, NativeServer) and (handoff, program) == ("cache", "dynamo"):
        pytest.skip("Dynamo has no protocol for that")
    inherited = {"PROMETHEUS_MULTIPROC_DIR": "/tmp/x", "DYN_CONNECTOR": "lmcache"}
    found = examined(of_role(role, program, handoff, server), environ=inherited)
    # vLLM has no roles on its command line, so this one looks like a worker without a cache.
    if (role, handoff, program) == ("decode", "nixl", "vllm"):
        assert [f.why for f in found] == ["the worker does not use the sidecar"]
    else:
        assert [f for f in found if f.check != "PROMETHEUS_MULTIPROC_DIR"] == []


V1 = lmcache_v1.kv_transfer_config()
TRAPS: list[tuple[str, list[str], dict[str, Any], str, str]] = [
    # the config
    ("not JSON", vllm("{kv_connector"), {}, "problem", "not valid JSON"),
    ("not a config", vllm("[]"), {}, "problem", "not an object with a kv_connector"),
    (
        "extra config of another type",
        vllm(client(kv_connector_extra_config=[])),
        {},
        "problem",
        "extra config",
    ),
    (
        "no children",
        vllm({"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": []}}),
        {},
        "problem",
        "not a list of connectors",
    ),
    ("none", vllm(None), {}, "warning", "no LMCacheMPConnector"),
    (
        "native, in the worker",
        vllm(native(spec_name="CPUOffloadingSpec")),
        {},
        "warning",
        "OffloadingConnector keeps its cache inside the worker",
    ),
    ("native, no module", vllm(native(spec_module_path=None)), {}, "problem", "it is None"),
    ("native, a typo", vllm(native(**{"kv_sidecar.ulr": "x"})), {}, "problem", "kv_sidecar.ulr"),
    (
        "native, elsewhere",
        vllm(roles.aggregated(NativeServer(port=6666))),
        {},
        "problem",
        "the worker connects to tcp://127.0.0.1:6666",
    ),
    (
        "native, events by vLLM's own class",
        [
            *vllm({**NATIVE, "kv_connector_module_path": None}),
            *("--kv-events-config", '{"enable_kv_cache_events": true}'),
        ],
        {},
        "warning",
        "without self_describing_kv_events",
    ),
    (
        "native, no seed",
        vllm(NATIVE, *XXHASH),
        {"environ": {}},
        "problem",
        "PYTHONHASHSEED is not set",
    ),
    (
        "native, second",
        vllm(
            {
                "kv_connector": "MultiConnector",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": {
                    "connectors": [nixl.kv_transfer_config("kv_producer", Nixl()), NATIVE]
                },
            }
        ),
        {},
        "warning",
        "comes before OffloadingConnector",
    ),
    ("in-process", vllm(V1), {}, "warning", "keeps its cache inside the worker"),
    ("no module", vllm(client(**{MODULE: None})), {}, "warning", f"no {MODULE}"),
    (
        "no module, old vLLM",
        vllm(client(**{MODULE: None})),
        {"installed": {"vllm": "0.21.0"}},
        "problem",
        f"no {MODULE}",
    ),
    ("other module", vllm(client(**{MODULE: "vllm.x"})), {}, "problem", "'vllm.x'"),
    (
        "no policy",
        vllm(client(kv_load_failure_policy=None)),
        {},
        "warning",
        "kv_load_failure_policy is not recompute",
    ),
    (
        "policy in the child only",
        vllm({k: v for k, v in PAIR.items() if k != "kv_load_failure_policy"}),
        {"environ": {"VLLM_NIXL_SIDE_CHANNEL_HOST": "h"}},
        "problem",
        "stands where vLLM does not read it",
    ),
    ("producer only", vllm(client(kv_role="kv_producer")), {}, "warning", "'kv_producer'"),
    (
        "nixl both ways",
        dynamo({"kv_connector": "NixlConnector", "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute"}, "--disaggregation-mode", "decode"),
        {},
        "warning",
        "kv_role 'kv_both'",
    ),
    (
        "nixl first",
        vllm({**PAIR, "kv_connector_extra_config": {
            "connectors": PAIR["kv_connector_extra_config"]["connectors"][::-1]}}),
        {"environ": {"VLLM_NIXL_SIDE_CHANNEL_HOST": "h"}},
        "warning",
        "NixlConnector comes before LMCacheMPConnector",
    ),
    # the client's settings
    (
        "beside kv_connector",
        vllm(client(**{"lmcache.mp.port": 5555})),
        {},
        "problem",
        "it stands where the client does not read it",
    ),
    (
        "in the MultiConnector",
        vllm({**PAIR, "kv_connector_extra_config": {
            **PAIR["kv_connector_extra_config"], "lmcache.mp.port": 5555}}),
        {"environ": {"VLLM_NIXL_SIDE_CHANNEL_HOST": "h"}},
        "problem",
        "it stands where the client does not read it",
    ),
    ("misspelt", vllm(settings(prot=5555)), {}, "warning", "no such key"),
    ("other port", vllm(settings(port=6555)), {}, "problem", "tcp://127.0.0.1:6555"),
    ("gRPC", vllm(settings(host="grpc://h")), {}, "problem", "grpc://h:5555"),
    ("other path", vllm(settings(host="ipc:///run/mp")), {}, "problem", "ipc:///run/mp:5555"),
    ("virtual memory", vllm(settings(use_vmm_api=True)), {}, "problem", "it is on"),
    ("slow", vllm(settings(mq_timeout=300)), {}, "warning", "300 s"),
    # flags
    (
        "blocks of 96",
        vllm(CLIENT, "--block-size", "96"),
        {},
        "problem",
        "chunks of 256 tokens, blocks of 96",
    ),
    (
        "context parallel",
        vllm(CLIENT, "--block-size=64", "--decode-context-parallel-size", "8"),
        {},
        "problem",
        "on each of 8 context-parallel ranks",
    ),
    (
        "context parallel, short",
        vllm(CLIENT, "--block-size", "64", "-dcp", "8"),
        {},
        "problem",
        "on each of 8 context-parallel ranks",
    ),
    (
        "events without prefix cache",
        vllm(CLIENT, *EVENTS, "--no-enable-prefix-caching"),
        {},
        "problem",
        "given together with --kv-events-config",
    ),
    (
        "lazy offload without prefix cache",
        vllm(settings(lazy_offload=True), "--no_enable_prefix_caching"),
        {},
        "problem",
        "given together with lmcache.mp.lazy_offload",
    ),
    ("--connector", dynamo(CLIENT, "--connector", "lmcache"), {}, "problem", "Dynamo rejects it"),
    (
        "prefill alone",
        dynamo(None, "--disaggregation-mode", "prefill"),
        {},
        "problem",
        "without --kv-transfer-config",
    ),
    (
        "hybrid manager",
        vllm(V1, "--no-disable-hybrid-kv-cache-manager"),
        {},
        "problem",
        "given together with LMCacheConnectorV1",
    ),
    ("sleep mode", vllm(CLIENT, "--enable-sleep-mode"), {}, "warning", "given"),
    ("pooling", vllm(CLIENT, "--runner", "pooling"), {}, "warning", "pooling models"),
    # what no key holds
    ("adapters", vllm(CLIENT, "--enable-lora"), {}, "problem", "wrong KV"),
    (
        "adapters, by vLLM's way",
        vllm(None, "--kv-offloading-backend", "lmcache", "--enable-lora"),
        {},
        "problem",
        "wrong KV",
    ),
    ("embeddings", vllm(CLIENT, "--enable-prompt-embeds"), {}, "problem", "wrong KV"),
    (
        "counted images",
        vllm(CLIENT, "--mm-processor-cache-gb", "0", "--no-enable-prefix-caching"),
        {},
        "problem",
        "wrong KV",
    ),
    # variables
    (
        "metrics folder",
        vllm(CLIENT),
        {"environ": {"PROMETHEUS_MULTIPROC_DIR": "/tmp/a"}},
        "warning",
        "inherited: /tmp/a",
    ),
    ("no seed, events", vllm(CLIENT, *EVENTS, *XXHASH), {"environ": {}}, "warning", "not set"),
    (
        "no seed, events, old vLLM",
        vllm(CLIENT, *EVENTS),
        {"environ": {}, "installed": {"vllm": "0.28.0"}},
        "warning",
        "not set",
    ),
    ("no seed, in-process", vllm(V1), {"environ": {}}, "problem", "not set"),
    ("no side channel", dynamo(PAIR), {}, "warning", "not set"),
    (
        "DYN_CONNECTOR",
        dynamo(CLIENT),
        {"environ": {"DYN_CONNECTOR": "lmcache"}},
        "problem",
        "inherited: lmcache",
    ),
    (
        "another role",
        dynamo(CLIENT),
        {"environ": {"DYN_VLLM_DISAGGREGATION_MODE": "prefill"}},
        "problem",
        "inherited: prefill",
    ),
    (
        "expandable segments",
        ["env", "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True", *vllm(CLIENT)],
        {},
        "warning",
        "expandable_segments:True",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "where", "level", "said"), [trap[1:] for trap in TRAPS], ids=[t[0] for t in TRAPS]
)
def test_a_trap_is_found(line: list[str], where: dict[str, Any], level: str, said: str) -> None:
    found = examined(line, **where)
    matching = [finding for finding in found if said in finding.what]
    assert [finding.level for finding in matching] == [level], found
    assert matching[0].why and matching[0].do


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (vllm(NATIVE), {}),
        (vllm(NATIVE, "--prefix-caching-hash-algo", "sha256_cbor"), {}),
        (vllm(NATIVE, *XXHASH), {"environ": SEED}),
        # A string like any other to vLLM.
        (vllm(NATIVE, *XXHASH), {"environ": {"PYTHONHASHSEED": "random"}}),
        (vllm(CLIENT, *EVENTS), {}),
        (vllm(CLIENT, *EVENTS), {"installed": {"vllm": None}}),
        (vllm(CLIENT, *NO_EVENTS, *XXHASH), {}),
        (vllm(CLIENT), {"installed": {"vllm": "0.28.0"}}),
    ],
)
def test_block_hashes_that_begin_alike_everywhere(line: list[str], where: dict[str, Any]) -> None:
    assert examined(line, **{"environ": {}, **where}) == []


def test_every_check_has_a_trap() -> None:
    triggered = set()
    for _, line, where, _, _ in TRAPS:
        inherited = where.get("environ", SEED)
        invocation = parse(line, inherited)
        looked = around(environ=inherited, installed=where.get("installed"))
        triggered |= {each for each in worker.CHECKS if each(invocation, looked)}
    # They depend on more than the command, and have tests of their own below.
    missing = {each.__name__ for each in set(worker.CHECKS) - triggered}
    alone = {"transfer_mode", "name_of_the_mode", "latent_on_a_cpu", "images", "recurrent"}
    assert missing == alone


def test_salts_make_adapters_right() -> None:
    invocation = parse(vllm(CLIENT, "--enable-lora"), SEED)
    found = worker.check(invocation, replace(around(environ=SEED), salted_requests=True))
    assert [finding.level for finding in found] == ["ok"]


def test_mla_in_handle_mode_on_a_cpu(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    line = ["vllm", "serve", str(tmp_path), *vllm(settings(mp_transfer_mode="lmcache_driven"))[3:]]
    (found,) = examined(line)
    assert (found.level, found.what) == ("problem", "wrong KV is loaded")
    assert examined(line, installed={"vllm": "0.32.0"}) == []
    assert examined(["vllm", "serve", str(tmp_path), *vllm(CLIENT)[3:]]) == []


def test_images_with_a_client_whose_keys_do_not_hold_them(tmp_path: Path) -> None:
    old = {"lmcache": "0.5.4"}
    (tmp_path / "config.json").write_text(json.dumps(GEMMA3_4B))
    line = ["vllm", "serve", str(tmp_path), *vllm(CLIENT)[3:]]
    (found,) = examined(line, installed=old)
    assert (found.check, found.level) == ("a multi-modal model with lmcache 0.5.4", "problem")
    assert examined(line) == []
    assert examined([*line, "--language-model-only"], installed=old) == []
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    assert examined(line, installed=old) == []


@pytest.mark.parametrize("config", [FALCON_H1_1B, MAMBA2], ids=["hybrid", "states alone"])
def test_recurrent_state_with_a_client_that_does_not_tell_it(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = ["vllm", "serve", str(tmp_path), *vllm(CLIENT)[3:]]
    (found,) = examined(line, installed={"lmcache": "0.5.4"})
    assert found.check == "a model with recurrent state with lmcache 0.5.4"
    assert found.level == "problem" and "0.5.5" in found.do
    assert examined(line) == []


def test_what_decides_weights_is_named() -> None:
    line = vllm(CLIENT, "--quantization", "fp8", "--revision", "x")
    _, said = worker.check(parse(line, SEED), around(environ=SEED))
    assert said.level == "ok"
    assert said.what.startswith("--revision, --quantization: ")


@pytest.mark.parametrize("hidden", [["--config", "vllm.yaml"], ["--kv-transfer-config.x", "y"]])
def test_without_vllm_a_file_and_dotted_options_are_not_checked(hidden: list[str]) -> None:
    given = parse(["vllm", "serve", "m", *hidden], SEED)
    read, finding = as_vllm_reads_it(given, {**CURRENT, "vllm": None})
    assert read is given
    assert finding and (finding.level, finding.what) == (
        "warning",
        "not checked: what --config and dotted options say",
    )
    # Nothing is concluded from what is not there.
    assert examined(["vllm", "serve", "m", *hidden]) == []
    assert examined(vllm(CLIENT, *hidden[:1], "x.yaml"), "--chunk-size", "64") == []


@pytest.mark.parametrize(
    ("wanted", "environ", "allowed", "found"),
    [
        ("engine_driven", {}, "lmcache_driven", 1),
        ("auto", {}, "lmcache_driven", 0),
        ("engine_driven", {}, "auto", 0),
        (None, {"LMCACHE_MP_TRANSFER_MODE": "engine_driven"}, "lmcache_driven", 1),
    ],
)
def test_who_copies(wanted: str | None, environ: dict[str, str], allowed: str, found: int) -> None:
    line = vllm(settings(mp_transfer_mode=wanted))
    options = ("--supported-transfer-mode", allowed)
    assert len(examined(line, *options, environ=environ)) == found


@pytest.mark.parametrize(
    ("release", "mode", "found"),
    [
        ("0.4.7", "lmcache_driven", 1),
        ("0.4.7", "handle", 0),
        ("0.5.0", "handle", 1),
        ("0.5.0", "lmcache_driven", 0),
    ],
)
def test_what_a_release_calls_the_modes(release: str, mode: str, found: int) -> None:
    line = vllm(settings(mp_transfer_mode=mode))
    options = ("--supported-transfer-mode", "lmcache_driven")
    assert len(examined(line, *options, installed={"lmcache": release})) == found


def test_a_command_in_one_word_or_behind_another() -> None:
    line = vllm(CLIENT, "--block-size", "96")
    for given in (line, [shlex.join(line)], ["uv", "run", "/opt/bin/vllm", *line[1:]]):
        assert [finding.check for finding in examined(given)] == ["chunk size"]


def test_addresses_that_meet() -> None:
    assert examined(vllm(settings(host="ipc:///run/kv/mp")), "--host", "ipc:///run/kv/mp") == []
    urls = "tcp://10.0.0.1:5555,tcp://10.0.0.2:5555"
    assert examined(vllm(settings(server_urls=urls))) == []
    assert examined(vllm(settings(port=7000)), "--port", "7000") == []


def test_blocks_of_the_cpu_build_are_larger() -> None:
    (found,) = examined(vllm(CLIENT), "--chunk-size", "64")
    assert found.what == "chunks of 64 tokens, blocks of 128, vLLM's default here"
    assert examined(vllm(CLIENT), "--chunk-size", "64", installed={"vllm": "0.32.0"}) == []
    assert examined(vllm(CLIENT, "--block-size", "32"), "--chunk-size", "64") == []


def test_a_running_server_counts_for_more_than_the_options() -> None:
    server = {"mp": {"chunk_size": 100, "supported_transfer_mode": "auto"}}
    (found,) = examined(vllm(CLIENT), server=server)
    assert "chunks of 100 tokens" in found.what


def test_the_whole_command(tmp_path: Path) -> None:
    file = tmp_path / "vllm.yaml"
    file.write_text("enable-lora: true\n")
    config = client(kv_load_failure_policy=None)
    bad = vllm(config, "--block-size", "96", "--config", str(file))
    code, findings = doctor("--", *bad)
    assert code == 1
    assert findings["chunk size"]["level"] == "problem"
    assert findings["--kv-transfer-config"]["level"] == "warning"
    if importlib.util.find_spec("vllm"):
        assert findings["--enable-lora"]["level"] == "problem"
    else:
        assert findings["arguments"]["what"].startswith("not checked: ")
