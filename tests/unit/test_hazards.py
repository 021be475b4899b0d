"""Workers whose KV would be wrong: refused where they are put together, found by the doctor."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from connectors import hazards, vllm_options
from connectors.errors import ConnectorError
from connectors.lmcache_mp import CacheServer, kv_transfer_config
from connectors.nixl import Nixl
from connectors.worker import DEFAULT_PORTS, Worker, command
from launch import options as launch_options
from launch.build import build
from sidecar.cli import main
from tests.support.models import DEEPSEEK_V3, FALCON_H1_1B, GEMMA3_4B, LLAMA_8B
from tests.unit.test_launch import FREE, gpu_machine  # noqa: F401

CPU = {"vllm": "0.32.0+cpu", "lmcache": "0.5.6", "nixl": "1.5.1", "ai-dynamo": "1.6.1"}
AGGREGATED = ("worker-args", "--role", "aggregated", "--program", "vllm", "--skip-version-check")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code, and what stands on stderr: one line at most."""
    code = main(arguments)
    err = capsys.readouterr().err
    assert err.count("\n") <= 1
    return code, err


@pytest.mark.parametrize(
    ("users", "named"),
    [
        ("--enable-lora --max-loras 2", "--enable-lora"),
        ("--enable_lora", "--enable-lora"),
        ("--enable-prompt-embeds", "--enable-prompt-embeds"),
        (
            "--mm-processor-cache-gb 0 --no-enable-prefix-caching",
            "--mm-processor-cache-gb 0 with --no-enable-prefix-caching",
        ),
        (
            "--mm-processor-cache-gb=0.0 --no_enable_prefix_caching",
            "--mm-processor-cache-gb 0.0 with --no_enable_prefix_caching",
        ),
    ],
)
def test_what_no_key_holds_is_refused(
    capsys: pytest.CaptureFixture[str], users: str, named: str
) -> None:
    line = (*AGGREGATED, "--model", "m")
    code, said = printed(capsys, *line, "--", *users.split())
    assert code == 2
    assert f"kv-sidecar: {named}: " in said
    assert printed(capsys, *line, "--salted-requests", "--", *users.split()) == (0, "")
    no_cache = ("worker-args", "--role", "decode", "--skip-version-check", "--model", "m")
    assert printed(capsys, *no_cache, "--", *users.split()) == (0, "")


@pytest.mark.parametrize(
    "users",
    [
        "--no-enable-lora",
        "--mm-processor-cache-gb 0",
        "--mm-processor-cache-gb 1 --no-enable-prefix-caching",
        "--mm-processor-cache-gb x --no-enable-prefix-caching",
        "--no-enable-prompt-embeds",
    ],
)
def test_what_is_harmless_passes(capsys: pytest.CaptureFixture[str], users: str) -> None:
    assert printed(capsys, *AGGREGATED, "--model", "m", "--", *users.split()) == (0, "")


def test_another_way_to_the_client_is_seen(capsys: pytest.CaptureFixture[str]) -> None:
    way = ["--kv-offloading-backend", "lmcache", "--kv-offloading-size", "4", "--enable-lora"]
    fallback = ("worker-args", "--role", "fallback", "--skip-version-check", "--model", "m")
    assert printed(capsys, *fallback, "--", *way)[0] == 2


@pytest.mark.parametrize(
    ("config", "mode", "vllm", "code"),
    [
        (DEEPSEEK_V3, "lmcache_driven", "0.32.0+cpu", 2),
        (DEEPSEEK_V3, "auto", "0.32.0+cpu", 0),
        (DEEPSEEK_V3, "lmcache_driven", "0.32.0", 0),
        (LLAMA_8B, "lmcache_driven", "0.32.0+cpu", 0),
    ],
)
def test_mla_in_handle_mode_on_a_cpu_is_refused(
    config: dict[str, Any],
    mode: str,
    vllm: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("connectors.versions.installed", lambda: {**CPU, "vllm": vllm})
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = ("worker-args", "--role", "aggregated", "--model", str(tmp_path))
    found, said = printed(capsys, *line, "--transfer-mode", mode)
    assert found == code
    assert ("MLA" in said) == bool(code)


@pytest.mark.parametrize(("client", "refused"), [("0.5.2", 1), ("0.5.4", 1), ("0.5.5", 0)])
@pytest.mark.parametrize(
    ("config", "why", "salts_help"),
    [(GEMMA3_4B, "one image", True), (FALCON_H1_1B, "which layers are recurrent", False)],
    ids=["images", "recurrent"],
)
def test_what_old_clients_do_not_tell_is_refused(
    client: str, refused: int, config: dict[str, Any], why: str, salts_help: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    made = Worker(
        model=str(tmp_path),
        role="aggregated",
        config=kv_transfer_config(CacheServer()),
        program="vllm",
        ports=DEFAULT_PORTS["aggregated"],
        nixl=Nixl(),
    )
    have = {**CPU, "lmcache": client}
    for salted in (False, True):
        refuses = refused and not (salted and salts_help)
        with pytest.raises(ConnectorError, match=why) if refuses else nullcontext():
            assert hazards.check(made, command(made), have, salted=salted, python="") == []


@pytest.mark.usefixtures("gpu_machine")
def test_the_launchers_refuse_too() -> None:
    asked = [*FREE, "--", "--enable-lora"]
    with pytest.raises(ConnectorError, match=r"--enable-lora.*cache_salt.*--salted-requests"):
        build(launch_options.parse("vllm", asked, {}), Path("/run/s"))
    salted = launch_options.parse("vllm", ["--salted-requests", *asked], {})
    assert "--enable-lora" in build(salted, Path("/run/s")).programs[1].argv


def test_what_cannot_be_read_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for users in (["--config", "vllm.yaml"], ["--config=vllm.yaml"], ["--x-config.y", "1"]):
        code, said = printed(capsys, *AGGREGATED, "--model", "m", "--", *users)
        assert code == 0
        assert "warning: not checked: what --config and dotted options say" in said


def test_values_with_dots_hide_nothing() -> None:
    assert not vllm_options.hidden(
        ["m", "--gpu-memory-utilization", "0.9", "--revision=v1.0", "-tp", "2", "--config-format"]
    )


def stub_of_python(folder: Path, script: str) -> str:
    stub = folder / "python"
    stub.write_text(f"#!/bin/sh\n{script}\n")
    stub.chmod(0o755)
    return str(stub)


def test_what_vllm_refuses_is_refused(tmp_path: Path) -> None:
    told = {"tokens": ["m", "--speed", "9"], "refused": "unrecognized arguments: --speed 9"}
    python = stub_of_python(tmp_path, f"echo a line of a library; echo '{json.dumps(told)}'")
    with pytest.raises(ConnectorError, match="vLLM refuses these arguments: unrecognized"):
        vllm_options.written_out(["m", "--speed", "9"], python=python)
    others = vllm_options.written_out(["m", "--speed", "9"], vllm_only=False, python=python)
    assert others == ("m", "--speed", "9")


def test_an_interpreter_without_vllm_is_no_parser(tmp_path: Path) -> None:
    for python in (stub_of_python(tmp_path, "exit 1"), str(tmp_path / "none")):
        with pytest.raises(vllm_options.NotChecked, match="has no vLLM whose parser answers"):
            vllm_options.written_out(["m"], python=python)


def test_a_file_and_dotted_options_are_read_by_vllm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("vllm")
    file = tmp_path / "vllm.yaml"
    file.write_text("enable-lora: true\nenable-prefix-caching: false\n")
    dotted = ["--kv-transfer-config.kv_connector", "X", "--kv-transfer-config.kv_role=kv_both"]
    dynamos = ["--disaggregation-mode", "decode"]
    given = ["m", "--config", str(file), *dotted, "--max_loras=2", "--max-lora-r", "8", *dynamos]
    assert vllm_options.written_out(given, vllm_only=False) == (
        *("m", "--enable-lora", "--no-enable-prefix-caching", "--max-loras=2"),
        *("--max-lora-rank", "8", *dynamos),
        *("--kv-transfer-config", '{"kv_connector": "X", "kv_role": "kv_both"}'),
    )
