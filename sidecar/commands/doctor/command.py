"""Runs the checks and prints what they find."""

import argparse
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from connectors import versions
from connectors.versions import Need
from sidecar.commands.doctor import (
    gpu,
    libraries,
    live,
    memory,
    packages,
    ports,
    storage,
    telemetry,
    worker,
)
from sidecar.commands.doctor.bounded import in_time
from sidecar.commands.doctor.finding import Finding
from sidecar.commands.doctor.surroundings import Surroundings, admin_url, running_server
from sidecar.commands.doctor.worker.invocation import Invocation, parse
from sidecar.commands.doctor.worker.reading import as_vllm_reads_it
from sidecar.commands.output import complain
from sidecar.config import flags
from sidecar.config.loading import resolve

_MARKS = {"ok": "ok", "warning": "WARNING", "problem": "PROBLEM"}
# What a worker of any kind that uses the sidecar needs.
_ASSUMED: set[Need] = {"the sidecar's client"}
# Only for checks that need some value; that it is no user's is seen from its source.
_ANY_SIZE = {"l1_size_gb": "1"}


def examine(given: argparse.Namespace, users: Sequence[str]) -> int:
    """Print each finding as it comes; 1 if one of them is a problem. Raises ConfigError."""
    invocation, unread = None, None
    if users:
        invocation, unread = as_vllm_reads_it(parse(users, os.environ), versions.installed())
    around = _surroundings(given, os.environ)
    findings = []
    for finding in _findings(around, invocation, unread):
        findings.append(finding)
        if not given.json:
            print(_text(finding), flush=True)
    counts = Counter(finding.level for finding in findings)
    if given.json:
        shown = [dataclasses.asdict(finding) for finding in findings]
        print(json.dumps({"ok": not counts["problem"], "findings": shown}, indent=2))
    else:
        print(f"problems: {counts['problem']}, warnings: {counts['warning']}")
    return 1 if counts["problem"] else 0


def _surroundings(given: argparse.Namespace, environ: Mapping[str, str]) -> Surroundings:
    loaded = resolve(flags.read(given), environ, _ANY_SIZE)
    for warning in loaded.warnings:
        complain(f"warning: {warning}")
    config = loaded.config
    return Surroundings(
        config=config,
        l1_bytes=None if loaded.sources["l1_size_gb"] == "default" else config.l1_size_bytes,
        environ=environ,
        installed=versions.installed(),
        server=running_server(config),
        salted_requests=given.salted_requests,
    )


def _findings(
    around: Surroundings, invocation: Invocation | None, unread: Finding | None
) -> Iterator[Finding]:
    needs = invocation.needs() if invocation else _ASSUMED
    yield from packages.check(around.installed, needs, named=invocation is not None)
    yield memory.shm(around)
    yield memory.kept()
    yield memory.available(around)
    yield memory.memlock(around)
    yield memory.huge_pages()
    yield from libraries.check(around)
    yield from in_time("L2", lambda: storage.check(around))
    yield from in_time("GPU", lambda: [gpu.visible(around.environ)])
    yield from ports.check(around)
    yield telemetry.check(around)
    if unread:
        yield unread
    if invocation:
        yield from worker.check(invocation, around)
    yield from live.check(around, admin_url(around.config))


def _text(finding: Finding) -> str:
    lines = [f"{_MARKS[finding.level]:8} {finding.check}: {finding.what}"]
    if finding.why:
        lines.append(f"{'':8}   why: {finding.why}")
    if finding.do:
        lines.append(f"{'':8}   do:  {finding.do}")
    return "\n".join(lines)
