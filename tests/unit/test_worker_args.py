"""`kv-sidecar connector` and `kv-sidecar worker-args`, as a shell sees them."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from connectors import roles
from connectors.lmcache_mp import CacheServer
from connectors.nixl import Nixl
from sidecar.cli import main

ROOT = Path(__file__).parents[2]
NATIVE = ("connector", "--role", "aggregated", "--client", "native")
LMCACHE = ("connector", "--role", "aggregated")


def line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is printed where there is nothing to warn of."""
    assert main(["worker-args", "--model", "m", "--skip-version-check", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_vllms_own_connector_may_have_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    """Its keys tell them apart, so they are no hazard."""
    arguments = ("--role", "aggregated", "--client", "native", "--program", "vllm")

    made = line(capsys, *arguments, "--lookup-budget", "500", "--", "--enable-lora")

    assert "PYTHONHASHSEED=0" in made and '"kv_sidecar.budget_ms":500' in made


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a wrong usage: exit code 2, one line, and nothing for `eval`."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("kv-sidecar: ")
    assert err.count("\n") == 1
    return err


def sh(script: str) -> "subprocess.CompletedProcess[str]":
    """Runs `script` with a `kv-sidecar` command, and an `env` that shows its arguments."""
    functions = f"""
kv-sidecar() {{ {sys.executable!r} -m sidecar "$@"; }}
show() {{ {sys.executable!r} -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@"; }}
env() {{ show "$@"; }}
"""
    command = ["bash", "-c", functions + script]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_the_json_survives_the_shell() -> None:
    done = sh('show "$(kv-sidecar connector --role prefill --skip-version-check)"')

    (config,) = json.loads(done.stdout)
    assert json.loads(config) == roles.prefill(CacheServer(), Nixl())


def test_the_line_survives_eval() -> None:
    options = "--role decode --skip-version-check --model 'my model'"
    done = sh(f"eval \"$(kv-sidecar worker-args {options} -- --chat-template 'it'\\''s; $HOME')\"")

    argv = json.loads(done.stdout)
    assert argv[argv.index("--model") + 1] == "my model"
    assert json.loads(argv[argv.index("--kv-transfer-config") + 1]) == roles.decode(Nixl())
    assert argv[-2:] == ["--chat-template", "it's; $HOME"]


def test_wrong_usage_fails_the_assignment() -> None:
    done = sh('line=$(kv-sidecar worker-args --role decode) && eval "$line"')

    assert done.returncode == 2
    assert done.stdout == ""


def test_fallback_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connector", "--role", "fallback"]) == 0
    assert capsys.readouterr().out.strip() == ""
    assert "--kv-transfer-config" not in line(capsys, "--role", "fallback")


def test_a_pair_on_one_machine_does_not_clash(capsys: pytest.CaptureFixture[str]) -> None:
    def ports(role: str) -> set[str]:
        words = line(capsys, "--role", role).split()
        return {word for word in words if "_PORT=" in word}

    assert len(ports("prefill") | ports("decode")) == 4


def test_dynamo_environment(capsys: pytest.CaptureFixture[str]) -> None:
    words = line(
        capsys,
        *("--role", "prefill", "--system-port", "9001", "--side-channel-port", "9002"),
        *("--side-channel-host", "10.0.0.7", "--ucx-tls", "rc,cuda_copy"),
        *("--ucx-net-devices", "mlx5_0:1", "--python", "/opt/python"),
    ).split()

    unset = [name for flag, name in pairwise(words) if flag == "-u"]
    assert words[0] == "env"
    assert unset == ["PROMETHEUS_MULTIPROC_DIR", "DYN_CONNECTOR", "DYN_VLLM_DISAGGREGATION_MODE"]
    assert {
        "DYN_SYSTEM_PORT=9001",
        "VLLM_NIXL_SIDE_CHANNEL_HOST=10.0.0.7",
        "VLLM_NIXL_SIDE_CHANNEL_PORT=9002",
        "UCX_TLS=rc,cuda_copy",
        "UCX_NET_DEVICES=mlx5_0:1",
        "PYTHONHASHSEED=0",
    } <= set(words)
    start = words.index("/opt/python")
    assert words[start : start + 7] == [
        *("/opt/python", "-m", "dynamo.vllm", "--model", "m"),
        *("--disaggregation-mode", "prefill"),
    ]


def test_vllm_alone_gets_nothing_of_dynamo(capsys: pytest.CaptureFixture[str]) -> None:
    said = line(capsys, "--role", "prefill", "--program", "vllm")

    assert " vllm serve m " in said
    assert "DYN_" not in said
    assert "--disaggregation-mode" not in said


def test_an_aggregated_worker_has_no_side_channel(capsys: pytest.CaptureFixture[str]) -> None:
    said = line(capsys, "--role", "aggregated", "--ucx-tls", "tcp")

    assert "NIXL" not in said
    assert "UCX" not in said


@pytest.mark.parametrize("role", ["aggregated", "prefill", "decode", "fallback"])
def test_flags_stay_away_from_roles_that_do_not_need_them(
    capsys: pytest.CaptureFixture[str], role: str
) -> None:
    said = line(capsys, "--role", role)

    assert "prefix-caching" not in said
    assert "hybrid" not in said
    assert "kv-events" not in said


def test_kv_events_have_the_topic_that_their_reader_wants(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Dynamo's reads any topic of a worker's port; llm-d's finds pod and model in it."""
    port = ("--role", "aggregated", "--kv-events-port", "20081")
    assert '"topic":"kv-events"' in line(capsys, *port)
    topic = "kv@10.0.0.7@some/model"
    assert f'"topic":"{topic}"' in line(capsys, *port, "--kv-events-topic", topic)


def test_measurements_go_without_prefix_caching(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--no-enable-prefix-caching" in line(
        capsys, "--role", "aggregated", "--no-prefix-caching"
    )


def test_lmcache_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    said = line(capsys, "--role", "aggregated", "--lmcache-config", "/etc/lmcache.yaml")

    assert '"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"' in said
    assert " LMCACHE_CONFIG_FILE=/etc/lmcache.yaml " in said
    assert "--disable-hybrid-kv-cache-manager" in said


@pytest.mark.parametrize("spelling", [["--model", "x"], ["--model=x"]])
@pytest.mark.parametrize("program", ["dynamo", "vllm"])
def test_the_user_wins_and_is_told(
    capsys: pytest.CaptureFixture[str], program: str, spelling: list[str]
) -> None:
    arguments = ("worker-args", "--role", "aggregated", "--program", program, "--model", "m")
    assert main([*arguments, "--skip-version-check", "--", *spelling]) == 0

    out, err = capsys.readouterr()
    assert out.rstrip().endswith(" ".join(spelling))
    assert " m " not in out
    assert err.startswith(f"kv-sidecar: warning: {' '.join(spelling)} takes the place of ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "users",
    [
        ["--kv_transfer_config", "{}"],
        ["--kv-transfer-config.kv_role", "kv_both"],
        ["--no-disable-hybrid-kv-cache-manager"],
        ["--enable-prefix-caching"],
    ],
)
def test_other_spellings_of_an_option_conflict_too(
    capsys: pytest.CaptureFixture[str], users: list[str]
) -> None:
    role = ("--role", "aggregated", "--lmcache-config", "f", "--no-prefix-caching")
    arguments = ["worker-args", *role, "--model", "m", "--skip-version-check"]
    assert main([*arguments, "--", *users]) == 0

    out, err = capsys.readouterr()
    assert "takes the place of" in err
    assert sum(flag in out for flag in users) == len(users)


@pytest.mark.parametrize(
    ("role", "users", "said"),
    [
        ("aggregated --kv-events-port 20081", "--no-enable-prefix-caching", "no KV events"),
        ("aggregated --kv-events-port 20081", "--no_enable_prefix_caching", "no KV events"),
        ("aggregated", "--disaggregation-mode prefill", "another role than aggregated"),
        ("fallback", "--disaggregation-mode=decode", "another role than fallback"),
    ],
)
def test_what_spoils_an_option_is_told(
    capsys: pytest.CaptureFixture[str], role: str, users: str, said: str
) -> None:
    arguments = ["worker-args", "--role", *role.split(), "--model", "m", "--skip-version-check"]
    assert main([*arguments, "--", *users.split()]) == 0

    out, err = capsys.readouterr()
    assert err.startswith("kv-sidecar: warning: ")
    assert said in err
    assert err.count("\n") == 1
    assert out.rstrip().endswith(users)


def test_the_same_value_twice_is_no_conflict(capsys: pytest.CaptureFixture[str]) -> None:
    line(capsys, "--role", "aggregated", "--", "--disaggregation-mode=agg")
    users = ("--disaggregation-mode=decode", "-tp", "2", "--model", "m", "-q", "--seed", "-1")
    said = line(capsys, "--role", "decode", "--", *users)

    assert said.count("--disaggregation-mode") == 1
    assert said.rstrip().endswith(" ".join(users))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("connector",), "--role"),
        (("connector", "--role", "both"), "'both'"),
        (("connector", "--role", "prefill", "--port", "http"), "'http' is not a port"),
        (("connector", "--role", "prefill", "--host", "localhost"), "tcp://"),
        (("connector", "--role", "prefill", "--timeout", "0"), "timeout"),
        (("connector", "--role", "prefill", "--", "--max-model-len"), "--"),
        (("worker-args", "--role", "decode"), "--model"),
        ((*NATIVE, "--timeout", "9"), "--timeout is for --client lmcache"),
        ((*NATIVE, "--server-url", "tcp://a:1"), "--server-url is for --client lmcache"),
        ((*LMCACHE, "--lookup-budget", "5"), "--lookup-budget is for --client native"),
        ((*LMCACHE, "--blocks-per-chunk", "4"), "--blocks-per-chunk is for --client native"),
        ((*NATIVE, "--blocks-per-chunk", "0"), "at least one block"),
        ((*NATIVE, "--lookup-budget", "1e3"), "--lookup-budget"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused(capsys, *arguments)


def test_a_topic_without_a_port_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    prefix = ("worker-args", "--role", "aggregated", "--model", "m", "--skip-version-check")
    assert "--kv-events-port" in refused(capsys, *prefix, "--kv-events-topic", "kv@a@b")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--no-prefix-caching", "--kv-events-port", "20081"), "KV events"),
        (("--lmcache-config", "f"), "LMCacheConnectorV1"),
        (("--client", "native", "--handoff", "cache"), "OffloadingConnector"),
        (("--", "--connector", "nixl"), "--kv-transfer-config"),
    ],
)
def test_what_dynamo_would_refuse_is_refused_before(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    prefix = ("worker-args", "--role", "prefill", "--model", "m", "--skip-version-check")
    assert said in refused(capsys, *prefix, *arguments)


def test_missing_packages_are_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"vllm": "0.31.0", "lmcache": "0.4.4", "nixl": None, "ai-dynamo": "1.6.1"}
    monkeypatch.setattr("connectors.versions.installed", lambda: versions)

    assert "lmcache>=0.4.5" in refused(capsys, "connector", "--role", "aggregated")
    assert "nixl" in refused(capsys, "worker-args", "--role", "decode", "--model", "m")
