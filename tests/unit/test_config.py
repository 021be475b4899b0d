"""What an operator sees of the configuration: values, precedence, origins, messages, exit codes."""

import json
from pathlib import Path

import pytest

from sidecar.cli import main
from sidecar.config import Config, ConfigError, load
from sidecar.config.options import OPTIONS, flag, variable
from sidecar.config.show import as_yaml, by_group
from sidecar.config.values import AdapterSpec
from sidecar.tiers.adapters.fs import FilesSettings

SIZE = ["--l1-size-gb", "1"]

# Per option: text that is valid and not the default, the value it means, and text that is wrong.
SAMPLES: dict[str, tuple[str, object, str]] = {
    "host": ("0.0.0.0", "0.0.0.0", "ipc://relative/path"),
    "port": ("5999", 5999, "65536"),
    "ipc_mode": ("0660", 0o660, "0999"),
    "instance_id": ("node-7", "node-7", "a\tb"),
    "chunk_size": ("16", 16, "0"),
    "null_block_id": ("3", 3, "-1"),
    "max_workers": ("7", 7, "0"),
    "gpu_batched_copies": ("no", "false", "some"),
    "hash_algorithm": ("blake3", "blake3", "sha256_cbor"),
    "supported_transfer_mode": ("engine_driven", "engine_driven", "pickle"),
    "client_generation": ("0.5.2", "0.5.2", "0.4.4"),
    "client_ports": ("5556=0.5.2", ((5556, "0.5.2"),), "5556=0.4.4"),
    "shm_name": ("pool.A-1_b", "pool.A-1_b", "../etc/passwd"),
    "worker_reap_timeout_seconds": ("0", 0.0, "-1"),
    "worker_registration_grace_seconds": ("7200.5", 7200.5, "never"),
    "l1_size_gb": ("0.25", 0.25, "0"),
    "l1_transparent_hugepages": ("yes", True, "2M"),
    "l1_keep_seconds": ("0", 0.0, "never"),
    "l1_write_ttl_seconds": ("1.5", 1.5, "0"),
    "l1_read_ttl_seconds": ("2", 2.0, "inf"),
    "l1_protect_ratio": ("0.25", 0.25, "0.6"),
    "eviction_policy": ("noop", "noop", "FIFO"),
    "eviction_trigger_watermark": ("1", 1.0, "1.01"),
    "eviction_ratio": ("0.5", 0.5, "nan"),
    "quotas": ("[]", (), '{"a": "101%"}'),
    "l2_adapter": (
        '{"type": "fs", "base_path": "/data/l2"}',
        (AdapterSpec(FilesSettings(type="fs", base_path="/data/l2"), ()),),
        '{"type": "fs"}',
    ),
    "kv_event_log_size": ("0", 0, "-1"),
    "kv_events_endpoint": ("tcp://*:5557", "tcp://*:5557", "5557"),
    "kv_events_replay_endpoint": ("", "", "http://localhost:5558"),
    "kv_events_pod": ("node-1", "node-1", ""),
    "record_lookups": ("/tmp/x.jsonl", "/tmp/x.jsonl", "/tmp/"),
    "l2_store_policy": ("reused", "reused", "skip"),
    "l2_prefetch_policy": ("retain", "retain", "keep"),
    "l2_prefetch_max_in_flight": ("1", 1, "0"),
    "l2_prefetch_timeout_seconds": ("0.5", 0.5, "0"),
    "l2_store_queue_ratio": ("0", 0.0, "2"),
    "http_host": ("::1", "::1", "http://localhost"),
    "http_port": ("0", 0, "eighty"),
    "disable_metrics": ("yes", True, "maybe"),
    "otlp_endpoint": ("", "", "localhost:4317"),
    "trace_sample_ratio": ("0", 0.0, "1.5"),
    "prometheus_host": ("10.0.0.1", "10.0.0.1", ""),
    "prometheus_port": ("9090", 9090, "-1"),
    "log_level": ("debug", "debug", "loud"),
    "max_message_mb": ("1", 1, "1.5"),
    "max_tokens": ("4096", 4096, "0"),
    "max_pending_lookups": ("1", 1, "0"),
    "max_queued_requests": ("1", 1, "0"),
}


def config_of(*arguments: str, **environ: str) -> Config:
    return load([*SIZE, *arguments], environ).config


def file_with(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sidecar.yaml"
    path.write_text(text)
    return path


def problem(*arguments: str, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(arguments, environ)
    return str(caught.value)


def one_line_and_exit_2(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["serve", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("kv-sidecar: ")
    return captured.err


def test_defaults_are_those_of_the_stock_server() -> None:
    config = config_of()
    assert (config.host, config.port, config.http_host, config.http_port) == (
        "localhost",
        5555,
        "127.0.0.1",
        8080,
    )
    assert (config.chunk_size, config.null_block_id, config.hash_algorithm) == (256, 0, "blake3")
    assert config.eviction_policy == "LRU"
    assert (config.l1_write_ttl_seconds, config.l1_read_ttl_seconds) == (600, 300)
    assert config.worker_reap_timeout_seconds == 120
    assert config.worker_registration_grace_seconds == 3600
    assert config.supported_transfer_mode == "auto"
    assert config.l2_adapter == ()
    assert (config.l2_store_policy, config.l2_prefetch_policy) == ("default", "default")
    assert config.l2_prefetch_max_in_flight == 8
    assert config.ipc_mode == 0o600
    assert config.prometheus_port == 0
    assert 1 <= config.max_workers <= 4
    assert config.instance_id != config_of().instance_id
    assert config.l1_size_bytes == 2**30


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_a_flag_a_variable_and_a_key(name: str, tmp_path: Path) -> None:
    text, value, _ = SAMPLES[name]
    size = [] if name == "l1_size_gb" else SIZE
    dashed = file_with(tmp_path, f"{name.replace('_', '-')}: {json.dumps(text)}")
    assert getattr(load([*size, f"{flag(name)}={text}"], {}).config, name) == value
    assert getattr(load(size, {variable(name): text}).config, name) == value
    assert getattr(load([*size, "--config", str(dashed)], {}).config, name) == value
    underscored = file_with(tmp_path, f"{name}: {json.dumps(text)}")
    assert getattr(load([*size, "--config", str(underscored)], {}).config, name) == value


@pytest.mark.parametrize("name", OPTIONS)
def test_a_wrong_value_names_where_it_was_given(name: str, tmp_path: Path) -> None:
    wrong = SAMPLES[name][2]
    path = file_with(tmp_path, f"\n{name}: {json.dumps(wrong)}")
    assert problem(*SIZE, f"{flag(name)}={wrong}").startswith(f"{flag(name)}: ")
    assert problem(**{variable(name): wrong}).startswith(f"{variable(name)}: ")
    assert problem("--config", str(path)).startswith(f"{path}:2: {name}: ")


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    path = file_with(tmp_path, "port: 1001\nhttp-port: 1002\nchunk-size: 16\n")
    environ = {"KV_SIDECAR_PORT": "2001", "KV_SIDECAR_HTTP_PORT": "2002"}
    loaded = load([*SIZE, "--config", str(path), "--port", "3001"], environ)
    config = loaded.config
    assert (config.port, config.http_port, config.chunk_size) == (3001, 2002, 16)
    assert loaded.sources["port"] == "flag"
    assert loaded.sources["http_port"] == "env KV_SIDECAR_HTTP_PORT"
    assert loaded.sources["chunk_size"] == f"{path}:3"
    assert loaded.sources["host"] == "default"


def test_print_config_shows_values_and_origins_and_can_be_read_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KV_SIDECAR_CHUNK_SIZE", "64")
    assert main(["serve", *SIZE, "--shm-name", "mine", "--print-config"]) == 0
    printed = capsys.readouterr().out
    lines = {line.split(":")[0]: line for line in printed.splitlines()}
    assert lines["chunk-size"].split() == ["chunk-size:", "64", "#", "env", "KV_SIDECAR_CHUNK_SIZE"]
    assert lines["shm-name"].split() == ["shm-name:", "mine", "#", "flag"]
    assert lines["ipc-mode"].split() == ["ipc-mode:", "0600", "#", "default"]
    assert set(lines) == {name.replace("_", "-") for name in OPTIONS}
    again = load(["--config", str(file_with(tmp_path, printed))], {}).config
    assert again.chunk_size == 64
    assert (
        again
        == load(
            [*SIZE, "--shm-name=mine", f"--instance-id={again.instance_id}"],
            {"KV_SIDECAR_CHUNK_SIZE": "64"},
        ).config
    )


def test_credentials_of_a_url_are_never_shown() -> None:
    config = Config(l1_size_gb=1, otlp_endpoint="https://user:secret@host:4317/v1?token=secret")
    assert "secret" not in as_yaml(config, dict.fromkeys(OPTIONS, "flag"))
    assert "secret" not in str(by_group(config))
    assert by_group(config)["observability"]["otlp_endpoint"] == "https://host:4317/v1"


def test_wrong_usage_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        ([], "--l1-size-gb is required"),
        (["--prot", "1"], "unknown argument --prot; did you mean --port?"),
        (["--pot=1"], "unknown argument --pot"),
        (["extra"], "unknown argument extra"),
        (["--port"], "--port: expected one argument"),
        (["--port", "x"], "--port: 'x' is not a whole number"),
        (["--config", "/nonexistent.yaml"], "cannot read /nonexistent.yaml: No such file"),
        (["--eviction-policy", "FIFO"], "'FIFO' is not one of LRU, ARC"),
        (["--hash-algorithm", "builtin"], "builtin is not supported: chunk hashes are blake3"),
    ):
        assert expected in one_line_and_exit_2(capsys, *arguments)


def test_abbreviated_flags_are_not_guessed() -> None:
    assert problem(*SIZE, "--chunk", "16").startswith("unknown argument --chunk")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--worker-registration-grace-seconds", "60"],
            "--worker-registration-grace-seconds must not be less than "
            "--worker-reap-timeout-seconds (120)",
        ),
        (
            ["--disable-metrics", "--prometheus-port", "9090"],
            "--disable-metrics contradicts --prometheus-port and --otlp-endpoint",
        ),
        (
            ["--trace-sample-ratio", "0.1"],
            "--trace-sample-ratio needs --otlp-endpoint, where the traces go",
        ),
        (
            ["--host", "ipc:///" + "d" * 110],
            f"--host: the socket path /{'d' * 110}:5555 is longer than 107 bytes",
        ),
    ],
)
def test_values_that_contradict_each_other(arguments: list[str], message: str) -> None:
    assert problem(*SIZE, *arguments) == message


def test_otlp_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    message = problem(*SIZE, "--otlp-endpoint", "http://localhost:4317")
    assert message == "--otlp-endpoint needs the OTLP exporter: install kv-sidecar[otlp]"


def test_switches_need_no_value_and_can_be_undone() -> None:
    assert config_of("--disable-metrics").disable_metrics
    assert not config_of("--disable-metrics=false", KV_SIDECAR_DISABLE_METRICS="1").disable_metrics


def test_ipc_path_and_mode() -> None:
    config = config_of("--host", "ipc:///run/kv/wire", "--ipc-mode", "660")
    assert config.host == "ipc:///run/kv/wire"
    assert config.ipc_mode == 0o660


def test_a_kubernetes_service_link_is_not_taken_for_the_port() -> None:
    links = {
        "KV_SIDECAR_PORT": "tcp://10.0.0.1:5555",
        "KV_SIDECAR_SERVICE_HOST": "10.0.0.1",
        "KV_SIDECAR_SERVICE_PORT_WIRE": "5555",
        "KV_SIDECAR_PORT_5555_TCP_ADDR": "10.0.0.1",
    }
    loaded = load(SIZE, links)
    assert loaded.config.port == 5555
    assert loaded.sources["port"] == "default"
    assert len(loaded.warnings) == 1
    assert "Kubernetes service link" in loaded.warnings[0]


def test_a_misspelt_variable_is_warned_about(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KV_SIDECAR_CHUNKSIZE", "16")
    assert main(["serve", *SIZE, "--print-config"]) == 0
    assert capsys.readouterr().err == (
        "kv-sidecar: warning: KV_SIDECAR_CHUNKSIZE is no option; "
        "did you mean KV_SIDECAR_CHUNK_SIZE?\n"
    )


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for name in OPTIONS:
        assert f"{flag(name)} " in text
