"""`launch/status.sh`: programs, health, ports and the cache's hit rate in one table."""

import json
import time
import xmlrpc.client
from collections.abc import Iterator, Sequence
from typing import Any

from launch import choice, health
from launch.plan import Check
from launch.run_directory import RunDirectory
from sidecar.commands import admin
from sidecar.commands.counters import totals
from sidecar.commands.output import columns
from sidecar.commands.supervisor import Supervisor

_METRICS = (
    "lookup_requested_tokens_total",
    "lookup_hit_tokens_total",
    "l1_memory_usage_bytes",
)
# Supervisor's words for a program that has a process.
_ALIVE = ("STARTING", "RUNNING")
_COLUMNS = ("program", "state", "pid", "up", "restarts", "health", "ports")


def run(arguments: Sequence[str]) -> int:
    """0 when all programs are ready, and the launcher restarts what ends, else 1."""
    parser = choice.parser("status", "Show the programs of a running stack.")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(arguments)
    directory = choice.chosen(given.name)
    if directory is None:
        print("no stack is running")
        return 1
    record = directory.record()
    if not record:
        print(f"{directory.name} is being prepared: nothing of it runs yet")
        return 1
    found = report(directory, record)
    print(json.dumps(found, indent=2) if given.json else "\n".join(table(found)))
    ready = all(row["health"] == "ready" for row in found["programs"])
    return 0 if ready and found["complete"] else 1


def report(directory: RunDirectory, record: dict[str, Any]) -> dict[str, Any]:
    """What the stack's record, supervisord, the programs and the sidecar say."""
    try:
        running = Supervisor(str(directory.socket)).programs()
    except (OSError, xmlrpc.client.Error):
        running = {}
    programs = [_row(entry, running.get(entry["name"], {})) for entry in record["programs"]]
    sidecar = record["programs"][0]["check"]["base"]
    return {
        "stack": directory.name,
        "launcher": directory.launcher(),
        "url": record["url"],
        "model": record["model"],
        "complete": record["complete"],
        "programs": programs,
        "cache": _cache(sidecar),
        "logs": str(directory.logs),
    }


def _row(entry: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    state = info.get("statename", "GONE")
    return {
        "program": entry["name"],
        "state": state.lower(),
        "pid": info.get("pid", 0),
        "up": int(time.time() - info["start"]) if state == "RUNNING" else 0,
        "restarts": entry["restarts"],
        "health": said(health.unready(Check(**entry["check"])), state),
        "ports": entry["ports"],
    }


def said(unready: str, state: str) -> str:
    """A program's health in words: one that runs and does not listen yet is starting."""
    if unready == admin.REFUSED and state in _ALIVE:
        return "starting"
    return unready or "ready"


def _cache(url: str) -> dict[str, float]:
    """Empty where the sidecar does not answer."""
    try:
        found = totals(admin.get_text(url, "/metrics", timeout=2))
    except (OSError, ValueError):
        return {}
    return {name: found.get(f"lmcache_mp_{name}", 0.0) for name in _METRICS}


def table(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['stack']}: {found['model']} at {found['url']}/v1, logs in {found['logs']}"
    if not found["complete"]:
        yield "it is starting: what ends now ends the stack"
    if found["launcher"] is None:
        yield "its launcher was killed: nothing restarts; launch/stop.sh ends the rest"
    yield from columns([_COLUMNS, *map(_cells, found["programs"])])
    yield _hits(found["cache"])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    ports = " ".join(f"{name}:{port}" for name, port in row["ports"].items())
    texts = {**row, "ports": ports, "pid": row["pid"] or "-", "up": f"{row['up']} s"}
    return tuple(str(texts[column]) for column in _COLUMNS)


def _hits(cache: dict[str, float]) -> str:
    if not cache:
        return "cache: the sidecar does not answer"
    asked, hit = (cache[f"lookup_{what}_tokens_total"] for what in ("requested", "hit"))
    rate = f"{hit / asked:.0%} of {asked:,.0f} tokens" if asked else "nothing was asked for yet"
    return f"cache: hit rate {rate}, L1 {cache['l1_memory_usage_bytes'] / 2**30:.2f} GiB in use"
