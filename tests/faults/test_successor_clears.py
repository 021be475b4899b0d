"""What others cleared while a server was down is not served by its successor from a kept L1."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.faulty_adapter import FAULTY
from tests.support.kept import CHUNKS, KEEP, Site, finish
from tests.support.server import Server, wait_until

MakeServer = Callable[..., Server]
PROMPTS = range(1, 6)
ENDS = pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])


def adapter(**keys: Any) -> list[str]:
    return ["--l2-adapter", json.dumps(keys)]


def shared(tmp_path: Path, folder: str = "shared") -> dict[str, Any]:
    return {"type": "fs", "base_path": str(tmp_path / folder), "shared": True, "min_free_gb": 0}


def filled(server: Server) -> None:
    """It has stored the prompts, and all of it would survive a crash."""
    site = Site(server)
    for number in PROMPTS:
        site.store(number)
    site.close()
    wait_until(lambda: not server.status()["kept"]["undigested_objects"], "all has its digest")


def objects(server: Server) -> int:
    wait_until(lambda: not server.status()["kept"]["unproven_objects"], "all is proven")
    return int(server.l1()["total_object_count"])


def clear(server: Server) -> None:
    assert server.request("/cache/clear", {"tier": "all"})[0] == 200


def stores_and_finds(server: Server) -> None:
    site = Site(server)
    for number in PROMPTS:
        site.store(number)
        site.check(number)
    site.close()
    assert server.request("/cache/check", body={})[0] == 200


@ENDS
def test_a_clear_reaches_who_is_down(new_server: MakeServer, tmp_path: Path, end: str) -> None:
    flags = adapter(**shared(tmp_path))
    kept, other = new_server(*KEEP, *flags).start(), new_server(*flags).start()
    filled(kept)
    finish(kept, end)
    kept.start()
    assert objects(kept) == len(PROMPTS) * CHUNKS, "nobody has cleared anything"

    finish(kept, end)
    clear(other)
    kept.start()
    assert objects(kept) == 0
    assert "the L1 starts empty" in kept.stderr()
    site = Site(kept)
    assert [site.lookup(number) for number in PROMPTS] == [0] * len(PROMPTS)
    site.close()
    stores_and_finds(kept)

    wait_until(lambda: not kept.status()["kept"]["undigested_objects"], "all has its digest")
    finish(kept, end)
    kept.start()
    assert objects(kept) == len(PROMPTS) * CHUNKS, "what was stored since is kept"


def test_a_clear_of_its_own_does_not_cost_what_came_after(
    new_server: MakeServer, tmp_path: Path
) -> None:
    kept = new_server(*KEEP, *adapter(**shared(tmp_path))).start()
    filled(kept)
    clear(kept)
    filled(kept)
    assert kept.terminate() == 0
    kept.start()
    assert objects(kept) == len(PROMPTS) * CHUNKS


def test_another_l2_knows_nothing_of_what_was_cleared(
    new_server: MakeServer, tmp_path: Path
) -> None:
    """When others have cleared one that is new here, nobody knows."""
    kept = new_server(*KEEP, *adapter(**shared(tmp_path))).start()
    filled(kept)
    assert kept.terminate() == 0
    kept._flags += adapter(**shared(tmp_path, "another"))
    kept.start()
    assert objects(kept) == len(PROMPTS) * CHUNKS, "nobody has ever cleared it"
    assert kept.terminate() == 0
    kept._flags += adapter(**shared(tmp_path, "third"))
    other = new_server(*adapter(**shared(tmp_path, "third"))).start()
    clear(other)
    kept.start()
    assert objects(kept) == 0
    stores_and_finds(kept)


def test_an_l2_that_cannot_be_read_at_the_start(new_server: MakeServer, tmp_path: Path) -> None:
    """It may have been cleared. So may what is stored until it can be read."""
    faults = tmp_path / "faults.json"
    faults.write_text("{}")
    kept = new_server(
        *KEEP, *adapter(type=FAULTY, inner=shared(tmp_path), control_path=str(faults))
    ).start()
    filled(kept)
    assert kept.terminate() == 0
    faults.write_text(json.dumps({"errors": {"mark": "EIO"}}))
    kept.start()
    assert objects(kept) == 0
    filled(kept)
    assert objects(kept) == len(PROMPTS) * CHUNKS
    faults.write_text(json.dumps({"errors": {}}))
    wait_until(lambda: objects(kept) == 0, "its mark is read, and what was stored is given up")
    stores_and_finds(kept)
