"""No flag of `lmcache server` is unknown here: it is ours, changes nothing, or is refused."""

import pytest

from sidecar.cli import main
from sidecar.config import load
from sidecar.config.options import OPTIONS, flag
from sidecar.config.stock_flags import IGNORED, REFUSED

SIZE = ["--l1-size-gb", "1"]

# `lmcache server --help` of 0.5.6.
_HELP = """
--instance-id --transport --host --port --chunk-size --null-block-id --max-workers
--max-gpu-workers --max-cpu-workers --grpc-server-workers --hash-algorithm --engine-type
--supported-transfer-mode --isolated-ipc --no-isolated-ipc --runtime-plugin-locations
--runtime-plugin-config --shm-name --script-allowed-imports --run-script-api-enabled
--no-run-script-api-enabled --separate-object-groups --no-separate-object-groups
--worker-reap-timeout-seconds --session-ttl-seconds --worker-registration-grace-seconds
--enable-segmented-prefix --enable-dedup-content --enable-blend-reorder --enable
--kv-event-log-size --server-module --p2p-advertise-url --p2p-listen-url --p2p-lookup-timeout
--p2p-load-timeout --p2p-transfer-engine --l1-manager --l1-size-gb --l1-use-lazy
--no-l1-use-lazy --l1-init-size-gb --l1-align-bytes --l1-use-hugepages --no-l1-use-hugepages
--l1-devdax-path --gds-l1-path --gds-l1-use-direct-io --no-gds-l1-use-direct-io
--gds-l1-backend --l1-write-ttl-seconds --l1-read-ttl-seconds --eviction-policy
--eviction-trigger-watermark --eviction-ratio --l2-store-policy --l2-prefetch-policy
--l2-prefetch-max-in-flight --periodic-notifier-interval-ms --l2-adapter --http-host --http-port
--disable-observability --disable-metrics --disable-grpc-metrics --disable-logging
--enable-tracing --otlp-endpoint --event-bus-queue-size --prometheus-port --metrics-sample-rate
--lookup-hash-log-dir --lookup-hash-log-rotation-interval --lookup-hash-log-rotation-max-size
--lookup-hash-log-max-files --enable-gc-monitor --gc-monitor-min-pause-ms
--gc-monitor-top-objects --enable-extra-logging --extra-logging-interval --trace-level
--trace-output --coordinator-url --coordinator-advertise-ip --coordinator-heartbeat-interval
--coordinator-event-reporting --coordinator-event-flush-interval --coordinator-event-transport
--coordinator-kafka-bootstrap-servers --coordinator-kafka-topic
--coordinator-kafka-delivery-timeout --coordinator-blend-timeout
--coordinator-blend-match-concurrency --format --output -q --quiet
"""
STOCK_FLAGS = _HELP.split()


def test_every_stock_flag_is_known() -> None:
    ours = {flag(name) for name in OPTIONS}
    for spelling in STOCK_FLAGS:
        name = "quiet" if spelling == "-q" else spelling.removeprefix("--").removeprefix("no-")
        places = [f"--{name}" in ours, name in IGNORED, name in REFUSED]
        assert sum(places) == 1, spelling


@pytest.mark.parametrize("spelling", [s for s in STOCK_FLAGS if s.removeprefix("--") in IGNORED])
def test_stock_flags_without_effect_are_one_warning(
    spelling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *SIZE, spelling, "1", "--print-config"]) == 0
    captured = capsys.readouterr()
    assert captured.err.startswith(f"kv-sidecar: warning: {spelling} changes nothing here: ")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("spelling", [s for s in STOCK_FLAGS if s.removeprefix("--") in REFUSED])
def test_stock_flags_that_cannot_be_honoured_are_refused(
    spelling: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *SIZE, spelling, "something"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"kv-sidecar: {spelling} is not supported: ")
    assert captured.err.count("\n") == 1


def test_the_flags_of_l2_mean_here_what_they_mean_there() -> None:
    stock = {
        "--l2-adapter": '{"type": "fs", "base_path": "/data/l2"}',
        "--l2-store-policy": "skip_l1",
        "--l2-prefetch-policy": "retain",
        "--l2-prefetch-max-in-flight": "16",
    }
    assert set(stock) == {spelling for spelling in STOCK_FLAGS if spelling.startswith("--l2-")}
    loaded = load([*SIZE, *(word for pair in stock.items() for word in pair)], {})
    config = loaded.config
    assert [spec.settings.type for spec in config.l2_adapter] == ["fs"]
    assert (config.l2_store_policy, config.l2_prefetch_policy) == ("skip_l1", "retain")
    assert config.l2_prefetch_max_in_flight == 16
    assert loaded.warnings == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--transport", "zmq"],
        ["--engine-type", "default"],
        ["--no-isolated-ipc"],
        ["--no-separate-object-groups"],
        ["--no-l1-use-hugepages"],
        ["--gds-l1-path", ""],
        ["--l1-devdax-path="],
    ],
)
def test_refused_stock_flags_may_ask_for_nothing(arguments: list[str]) -> None:
    loaded = load([*SIZE, *arguments], {})
    assert len(loaded.warnings) == 1
    assert "changes nothing here" in loaded.warnings[0]
