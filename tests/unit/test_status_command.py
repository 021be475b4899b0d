"""`kv-sidecar status`: the table, and the loop."""

import copy
import signal
import socket
import subprocess
import sys
import threading
from typing import Any

import pytest

from sidecar.admin import status
from sidecar.cli import main
from sidecar.commands import status_table
from sidecar.commands.status_table import Hits, hits
from tests.support.admin_site import ADAPTER, SNAPSHOT, Site
from tests.support.server import REPO
from tests.support.signals import inherited


def table(found: Hits | None = None, unhealthy: str | None = None, **changes: Any) -> list[str]:
    document = status.document(
        {**copy.deepcopy(SNAPSHOT), **changes}, unhealthy, uptime_seconds=93_784
    )
    return status_table.lines(document, found)


def line(lines: list[str], begin: str) -> str:
    return next(text for text in lines if text.startswith(begin))


def url(site: Site) -> str:
    return f"http://127.0.0.1:{site.server.port}"


def test_tenants_and_what_is_protected() -> None:
    assert not [text for text in table() if text.startswith(("TENANT", "protected"))]
    tiers = {"l1": {"used": 2**20, "limit": 2**30}, "fs": {"used": 0, "limit": None}}
    protected = {"count": 2, "used_bytes": 2**20, "limit_bytes": 2**21}
    found = table(tenants=[{"name": "a", "tiers": tiers}], protected=protected)
    assert line(found, "protected").split("  ")[-1].strip() == "1 MiB of 2 MiB at most, 2 prompts"
    assert line(found, "TENANT").split() == ["TENANT", "L1", "FS"]
    assert line(found, "a ").split() == ["a", "1", "MiB", "of", "1", "GiB", "0", "B"]


def test_health_and_uptime() -> None:
    assert line(table(), "health").startswith("health    healthy, up 1d 2h, kv-sidecar ")
    assert "UNHEALTHY: the copy pool hangs, up" in line(table(unhealthy="the copy pool hangs"), "h")


def test_l1_hits_and_refusals() -> None:
    lines = table(Hits(requested=2000, l1=1000, l2=500))
    assert "256 B of 1 KiB (25%), 5 objects, 2 being read, 1 being written" in line(lines, "L1")
    assert line(lines, "L1").endswith(", 512 B usable so far")
    whole = {**SNAPSHOT["l1"], "populated_bytes": 1024}  # type: ignore[dict-item]
    assert line(table(l1=whole), "L1").endswith("being written")
    assert "75.0% of 2,000 tokens looked up" in line(lines, "hits")
    assert "(50.0% L1, 25.0% L2)" in line(lines, "hits")
    assert line(lines, "refused").endswith("2 bad_blocks")
    assert "no lookups yet" in line(table(), "hits")


def test_workers_with_models() -> None:
    lost = {**SNAPSHOT["workers"][0], "instance_id": 8, "connected": False}  # type: ignore[index]
    lines = table(workers=[*SNAPSHOT["workers"], lost])  # type: ignore[misc]
    assert line(lines, "7 ").split() == [
        *("7", "llama", "1", "lmcache_driven", "0.5.5-0.5.6", "cpu", "1s", "ago")
    ]
    assert "engine_driven" in line(lines, str(2**62))
    assert line(lines, "8 ").endswith("1s ago, connection lost")
    assert "no workers" in table(workers=[])


def test_engines_of_the_native_door() -> None:
    engine = {
        "session": 3, "model_name": "llama", "ranks": 2, "ready": False, "lost": False,
        "mapped_ranks": [1], "reserved_bytes": 4096, "pinned_bytes": 0, "connected": True,
    }  # fmt: skip
    ready = {**engine, "session": 4, "ready": True}
    away = {**ready, "session": 5, "connected": False}
    lines = table(engines=[engine, ready, away, {**away, "session": 6, "lost": True}])
    assert "1 of 2 ranks have mapped the L1" in line(lines, "3 ")
    assert line(lines, "4 ").split() == ["4", "llama", "2", "ready", "4", "KiB", "0", "B"]
    assert "connection lost" in line(lines, "5 ") and "gone" in line(lines, "6 ")
    assert not any("ENGINE" in text for text in table())


def test_a_model_name_does_not_steer_the_terminal() -> None:
    hostile = {**SNAPSHOT["workers"][0], "model_name": "a\x1b[2Jb\nc"}  # type: ignore[index]
    assert "a?[2Jb?c" in line(table(workers=[hostile]), "7 ")


def test_adapters_with_breakers() -> None:
    broken = copy.deepcopy(ADAPTER) | {"label": "bucket", "capacity_bytes": None}
    broken["breakers"]["store"] = {"state": "open", "last_failure": "ENOSPC"}  # type: ignore[index]
    lines = table(l2=[ADAPTER, broken])
    assert line(lines, "disk").split() == [
        "disk",
        "fs",
        "300",
        "B",
        "of",
        "1.172",
        "KiB",
        "3",
        "4",
        "ok",
        "ok",
    ]
    assert line(lines, "bucket").endswith("cut off (ENOSPC)")
    assert "no L2" in table()


def test_hits_are_summed_over_models_and_tenants() -> None:
    scrape = "".join(
        f'lmcache_mp_lookup_{name}_tokens_total{{model_name="{model}"}} {value}\n'
        for name, value in (("requested", 100), ("hit_l1", 30), ("hit_l2", 10))
        for model in ("a", "b")
    )
    assert hits(scrape) == Hits(200, 60, 20)
    assert hits("") is None


def test_the_command_prints_the_table_of_a_server(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.service.l2 = [ADAPTER]
    assert main(["status", "--url", url(site)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert line(lines, "health").startswith("health    healthy, up ")
    assert max(map(len, lines)) <= 100


def test_a_hung_server_is_one_line(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.loop.hung = True
    assert main(["status", "--url", url(site)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_server_without_metrics_has_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    site = Site(disable_metrics=True)
    assert main(["status", "--url", url(site)]) == 0
    site.close()
    assert "no lookups yet, or no metrics" in line(capsys.readouterr().out.splitlines(), "hits")


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b"", "http://localhost:abc: nonnumeric port: 'abc'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", "IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", "not a kv-sidecar of this version"),
        (b"SSH-2.0\r\n", "SSH-2.0"),
    ],
)
def test_what_is_no_admin_port_is_one_line(
    reply: bytes, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}" if reply else told[:20]
        answering = threading.Thread(target=_answer, args=(listener, reply), daemon=True)
        answering.start()
        assert main(["status", "--url", address]) == 1
    complaint = capsys.readouterr().err
    assert told in complaint
    assert complaint.count("\n") == 1


def _answer(listener: socket.socket, reply: bytes) -> None:
    if reply:
        peer, _ = listener.accept()
        with peer:
            peer.recv(1000)
            peer.sendall(reply)


def test_watch_goes_on_until_interrupted(site: Site) -> None:
    command = [sys.executable, "-m", "sidecar", "status", "--url", url(site), "--watch", "0.1"]
    with inherited(signal.SIGINT, signal.SIG_DFL):
        watching = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPO)
    assert watching.stdout is not None
    screens = 0
    for text in watching.stdout:
        screens += text.startswith("\x1b[H\x1b[2Jhealth")
        if screens == 2:
            break
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=30)
    assert watching.returncode == 0
