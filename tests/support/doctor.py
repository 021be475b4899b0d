"""What the checks of `kv-sidecar doctor` are given in tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from connectors.versions import Package
from sidecar.commands.doctor.finding import Finding
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.config import load
from tests.support.server import REPO, free_port

CURRENT: dict[Package, str | None] = {
    "vllm": "0.32.0+cpu",
    "lmcache": "0.5.6",
    "nixl": "1.5.1",
    "ai-dynamo": "1.6.1",
}


def around(
    *options: str,
    environ: Mapping[str, str] | None = None,
    installed: Mapping[Package, str | None] | None = None,
    server: Mapping[str, Any] | None = None,
) -> Surroundings:
    """For a server with these options of `serve`, and 1 GiB of L1 if they do not say."""
    config = load(["--l1-size-gb", "1", *options], {}).config
    return Surroundings(
        config=config,
        l1_bytes=config.l1_size_bytes,
        environ=environ or {},
        installed={**CURRENT, **(installed or {})},
        server=server,
    )


def only(findings: Iterable[Finding], level: str) -> list[Finding]:
    return [finding for finding in findings if finding.level == level]


def doctor(
    *arguments: str, before: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> tuple[int, dict[str, dict[str, str]]]:
    """Run `doctor --json` in a process: exit code, findings by check.

    `before` stands before the command. Where a check has several findings, the worst is kept.
    """
    nobodys = ["--port", str(free_port()), "--http-port", str(free_port())]
    done = subprocess.run(
        [*before, sys.executable, "-m", "sidecar", "doctor", "--json", *nobodys, *arguments],
        env=os.environ | {"PYTHONPATH": str(REPO)} | dict(environ or {}),
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, 1), done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] == (done.returncode == 0)
    order = ("ok", "warning", "problem")
    findings = sorted(document["findings"], key=lambda finding: order.index(finding["level"]))
    return done.returncode, {finding["check"]: finding for finding in findings}


def distribution(site: Path, name: str, version: str) -> None:
    """A package as importlib.metadata sees it, without the package."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / "METADATA").write_text(text)
