"""The version before this one is stopped, this one is started: what was cached is found."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.cache.records import VERSION
from tests.support import native
from tests.support.kept import KEEP, Site
from tests.support.server import REPO, Server

MakeServer = Callable[..., Server]
OBJECTS = range(12)


def git(*arguments: str) -> str:
    """What git says of this repository, whoever owns it; "" where it cannot."""
    command = ["git", "-c", "safe.directory=*", "-C", str(REPO), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The tree of the last commit but one that changed the server."""
    commits = git("rev-list", "--max-count=2", "HEAD", "--", "sidecar").split()
    if len(commits) < 2:
        pytest.skip("the commit before is not here: a shallow clone, or no git")
    archive, tree = tmp_path / "older.tar", tmp_path / "older"
    git("archive", f"--output={archive}", commits[1], "sidecar", "connectors")
    tree.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", tree], check=True, timeout=60)
    return tree


def test_an_upgrade_keeps_what_both_doors_have_stored(new_server: MakeServer, older: Path) -> None:
    server = new_server(*KEEP)
    server.source = older
    server.start()
    assert server.process is not None
    assert Path(f"/proc/{server.process.pid}/cwd").readlink() == older
    site, engine = Site(server), native.Engine(server.url).start()
    for number in OBJECTS:
        site.store(number)
    assert engine.store("request", *OBJECTS) == len(OBJECTS)
    site.close()
    engine.end_processes()
    assert server.terminate() == 0

    server.source = REPO
    server.start()
    if f"VERSION = {VERSION}\n" not in (older / "sidecar/cache/records.py").read_text():
        assert "the L1 starts empty" in server.stderr()
        return
    site, engine = Site(server), native.Engine(server.url).start()
    for number in OBJECTS:
        site.check(number)
    # The engine checks the bytes of each hit.
    assert engine.hits("request", *OBJECTS) == len(OBJECTS)
    assert server.request("/cache/check", body={})[0] == 200
    site.close()
    engine.end_processes()
