"""docs/migrating.md is about every flag and every endpoint of `lmcache server`."""

import json
import re
from pathlib import Path

import pytest

from sidecar.config.options import OPTIONS, flag
from tests.docs.pages import REPO
from tests.support.server import Server
from tests.unit.test_stock_flags import STOCK_FLAGS

TEXT = (REPO / "docs" / "migrating.md").read_text()


def test_every_flag_is_there() -> None:
    named = set(re.findall(r"`(-[\w-]+)", TEXT))
    assert set(STOCK_FLAGS) | set(map(flag, OPTIONS)) <= named


def _endpoints() -> dict[str, bool]:
    """By path, whether we have it. A row's first column has paths, the second yes or no."""
    section = TEXT.partition("\n## Endpoints\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.+?`) \| (yes|no) \|", section, flags=re.MULTILINE)
    return {path: word == "yes" for row, word in rows for path in re.findall(r"/[\w/{}-]*", row)}


def test_our_endpoints_are_there(tmp_path: Path) -> None:
    server = Server(tmp_path, l1_size_gb=0.05)
    try:
        paths = json.loads(server.start().request("/openapi.json")[1])["paths"]
    finally:
        server.stop()
    # The page at / is in no schema.
    assert {"/", *paths} == {path for path, ours in _endpoints().items() if ours}


def test_every_endpoint_of_the_stock_server_is_there() -> None:
    registry = pytest.importorskip("lmcache.v1.multiprocess.http_api_registry")
    fastapi = pytest.importorskip("fastapi")
    app = fastapi.FastAPI()
    registry.HTTPAPIRegistry(app).register_all_apis()
    assert set(app.openapi()["paths"]) <= set(_endpoints())
