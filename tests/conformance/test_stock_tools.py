"""The stock command line against this server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sidecar.cli import main
from tests.support.server import Server, wait_until

pytest.importorskip("lmcache", reason="the stock client is not installed")

MAIN = "import sys; from lmcache.cli.main import main; sys.exit(main())"
QUIET = {
    "LMCACHE_DISABLE_BANNER": "1",
    "LMCACHE_TRACK_USAGE": "false",
    "LMCACHE_LOG_LEVEL": "ERROR",
}


def lmcache(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `lmcache ...`."""
    command = [sys.executable, "-c", MAIN, *arguments]
    return subprocess.run(
        command, env=os.environ | QUIET, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """With the default chunk size, and no null block: the benchmark stores block 0."""
    folder = tmp_path_factory.mktemp("tools")
    flags = ("--eviction-policy", "IsolatedLRU", "--record-lookups", str(folder / "lookups"))
    flags += ("--null-block-id", str(2**31 - 1))
    made = Server(folder, *flags, l1_size_gb=1.0, chunk_size=256)
    yield made.start()
    made.stop()


def bench(server: Server, output: Path, mode: str, shape: str, ranks: int = 1) -> None:
    """Run `lmcache bench server`: every one of its checks must pass."""
    assert server.request("/clear-cache", {}, "POST")[0] == 200
    done = lmcache(
        *("bench", "server", "--rpc-url", server.url, "--url", server.http),
        *("--mode", "cpu", "--transfer-mode", mode, "--tp-size", str(ranks)),
        *("--num-tokens", "1024", "--kvcache-shape-spec", shape),
        *("--start", "0", "--end", "5", "--interval", "0"),
        *("--format", "json", "--output", str(output)),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(output.read_text())["metrics"]["results"]
    expected = {"total_requests": 5, "checksum_ok": 5, "checksum_fail": 0, "pass_rate": 100.0}
    assert results.items() >= expected.items(), done.stdout
    server.assert_no_leases()


@pytest.mark.parametrize("mode", ["lmcache_driven", "engine_driven"])
@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        ("(2,128,16,2,32):float16:4", 1),
        ("(2,128,16,2,32):bfloat16:4", 2),
        ("(1,128,16,1,64):float16:4", 2),
    ],
    ids=["one-rank", "two-ranks", "mla-two-readers"],
)
def test_bench_server(server: Server, tmp_path: Path, mode: str, shape: str, ranks: int) -> None:
    bench(server, tmp_path / "bench.json", mode, shape, ranks)


def test_what_was_looked_up_can_be_replayed(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench(server, tmp_path / "bench.json", "lmcache_driven", "(2,128,16,2,32):float16:4")
    recorded = server.log.parent / "lookups"
    wait_until(lambda: recorded.stat().st_size > 0, "the log is written")
    assert main(["replay", str(recorded), "--json", "--policies", "LRU"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert {curve["chunk_size"] for curve in figures["curves"]} == {256}


def test_bench_server_with_two_groups(server: Server, tmp_path: Path) -> None:
    shape = "(2,128,16,2,32):float16:2;(2,128,16,4,32):float16:2"
    bench(server, tmp_path / "bench.json", "lmcache_driven", shape)


def test_ping(server: Server) -> None:
    done = lmcache("ping", "kvcache", "--url", server.http)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK" in done.stdout


def test_describe(server: Server) -> None:
    done = lmcache("describe", "kvcache", "--url", server.http)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "256" in done.stdout


def test_clear(server: Server) -> None:
    done = lmcache("kvcache", "clear", "--url", server.http)
    assert done.returncode == 0, done.stdout + done.stderr
    assert server.l1()["total_object_count"] == 0


def test_quotas(server: Server) -> None:
    def quota(*arguments: str) -> str:
        done = lmcache("quota", *arguments, "--url", server.http)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "No quotas" in quota("list")
    assert "ok" in quota("set", "team", "--limit-gb", "0.25")
    assert "ok" in quota("set", "_default", "--limit-gb", "0.5")
    assert "0.25" in quota("get", "team") and "True" in quota("get", "team")
    assert "team" in quota("list") and "_default" in quota("list")
    assert "removed" in quota("delete", "team")
    assert "not_found" in quota("delete", "team")
    assert "removed" in quota("delete", "_default")


def test_quotas_where_nothing_keeps_tenants_apart(new_server: Callable[..., Server]) -> None:
    url = new_server().start().http
    done = lmcache("quota", "set", "team", "--limit-gb", "1", "--url", url)
    assert done.returncode != 0 and "--eviction-policy IsolatedLRU" in done.stdout + done.stderr


def test_ping_of_nobody(new_server: Callable[..., Server]) -> None:
    """The stock command fails where there is no server: the checks above mean something."""
    assert lmcache("ping", "kvcache", "--url", new_server().http).returncode != 0
