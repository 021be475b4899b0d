"""`kv-sidecar lmcache-config`: the file that each kind of LMCacheConnectorV1 gets."""

from typing import Any

import pytest
import yaml

from connectors import lmcache_v1
from sidecar.cli import main

CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "in-process": (
        ["--cpu-gb", "20", "--disk", "/data", "--disk-gb", "100"],
        lmcache_v1.in_process(cpu_gb=20, disk="/data", disk_gb=100),
    ),
    "shared": (["redis://h:6379", "--cpu-gb", "2"], lmcache_v1.shared("redis://h:6379", cpu_gb=2)),
    "producer": (
        ["--proxy-host", "p", "--proxy-port", "7500", "--buffer-gb", "0.5"],
        lmcache_v1.producer(proxy_host="p", proxy_port=7500, buffer_bytes=1 << 29),
    ),
    "consumer": (
        [
            *("--host", "d", "--init-port", "7300", "--alloc-port", "7400"),
            *("--init-port", "7301", "--alloc-port", "7401", "--buffer-gb", "1"),
            *("--buffer-device", "cpu", "--nixl-backend", "UCX", "--nixl-backend", "GDS"),
        ],
        lmcache_v1.consumer(
            host="d",
            init_ports=[7300, 7301],
            alloc_ports=[7400, 7401],
            buffer_bytes=1 << 30,
            buffer_device="cpu",
            nixl_backends=["UCX", "GDS"],
        ),
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_the_file_has_the_settings(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, settings = CASES[kind]
    assert main(["lmcache-config", kind, *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert yaml.safe_load(out) == settings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "KIND"),
        (["in-process", "--disk", "/data"], "its size"),
        (["in-process", "--cpu-gb", "-1"], "'-1' is no size in GiB"),
        (["in-process", "--cpu-gb", "many"], "'many' is no size in GiB"),
        (["shared", "host:1"], "scheme"),
        (["producer", "--proxy-host", "p", "--proxy-port", "0"], "'0' is not a port"),
        (
            [
                *("consumer", "--host", "d", "--init-port", "1", "--init-port", "2"),
                *("--alloc-port", "3", "--buffer-gb", "1"),
            ],
            "each TP rank",
        ),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lmcache-config", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
