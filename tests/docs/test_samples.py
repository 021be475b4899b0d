"""The samples of output in the pages are what the programs print."""

import re

from sidecar.commands import status_table
from sidecar.commands.status_table import Hits
from tests.docs.pages import REPO, blocks
from tests.docs.sandbox import Sandbox
from tests.docs.test_messages import is_said, texts


def sample(command: str) -> tuple[str, list[str]]:
    """What is typed in the one block that begins with `$ command`, and what is printed."""
    (found,) = (
        block.text
        for page in (REPO / "docs").glob("*.md")
        for block in blocks(page)
        if block.text.startswith(f"$ {command}")
    )
    typed, _, printed = found.partition("\n")
    return typed.removeprefix("$ "), printed.splitlines()


def test_size(sandbox: Sandbox) -> None:
    typed, printed = sample("kv-sidecar size ")
    assert sandbox.run(typed).output.splitlines() == printed


def test_doctor(sandbox: Sandbox) -> None:
    """Which checks there are, and how a finding looks; what they find depends on the machine."""
    typed, printed = sample("kv-sidecar doctor ")
    made = [_check(line) for line in sandbox.run(typed).output.splitlines()]
    wanted = [_check(line.replace("/data/l2", f"{sandbox.root}/data/l2")) for line in printed]
    assert [check for check in wanted if check != "..." and check not in made] == []


def _check(line: str) -> str:
    """Of a finding its check; of another line its words, without numbers."""
    return re.sub(r"^(ok|WARNING|PROBLEM) +([^:]+:).*|\d+", r"\2", line)


def test_status() -> None:
    typed, printed = sample("kv-sidecar status")
    assert typed == "kv-sidecar status"
    assert status_table.lines(_STATUS, Hits(5120, 3840, 0)) == printed


def test_launch() -> None:
    said = texts((REPO / "launch",))
    _, printed = sample("launch/disagg.sh")
    for line in printed:
        words = re.sub(
            r"\d+|http\S+/v1|http\S+|small|\S+(?= is ready)", "...", line.partition("| ")[2]
        )
        assert is_said(words, said), line


_BREAKER = {"state": "closed", "last_failure": ""}
_STATUS = {
    "is_healthy": True,
    "server": {"name": "kv-sidecar", "version": "0.1.0", "uptime_seconds": 305.0},
    "storage_manager": {
        "l1_manager": {
            "memory_used_bytes": 10_506_240,
            "memory_populated_bytes": 2**30,
            "memory_total_bytes": 2**30,
            "memory_usage_ratio": 0.00978,
            "total_object_count": 5,
            "read_locked_count": 0,
            "write_locked_count": 0,
        },
        "l2_adapters": [
            {
                "name": "fs",
                "type": "fs",
                "used_bytes": 10_506_240,
                "capacity_bytes": 5 * 2**30,
                "stored_object_count": 5,
                "scanned": True,
                "queued_stores": 0,
                "breakers": {"load": _BREAKER, "store": _BREAKER},
            }
        ],
    },
    "kept": {"seconds": 0},
    "protected": {"count": 0},
    "active_sessions": 0,
    "queue_depth": 0,
    "live_leases": 0,
    "refusals": {},
    "workers": [
        {
            "instance_id": 235565298,
            "model_name": "/tmp/kv-sidecar-0/docs/model",
            "world_size": 1,
            "kind": "engine_driven",
            "lmcache": "0.5.5-0.5.6",
            "device": "cpu",
            "last_seen_seconds": 4.2,
            "connected": True,
        }
    ],
    "engines": [],
    "tenants": [],
}
