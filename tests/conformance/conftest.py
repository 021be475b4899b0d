"""Workers and schedulers of the shared server, closed when the test ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.gpu_site import gpu_server, gpu_site
from tests.support.server import Server

if TYPE_CHECKING:
    from tests.conformance.rig import Rig

__all__ = ["gpu_server", "gpu_site", "mode", "rig"]


@pytest.fixture
def rig(server: Server, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """A model name of this test's own on the shared server."""
    # Here, not above: it needs torch and lmcache, and a conftest cannot be skipped.
    from tests.conformance.rig import Rig

    made = Rig(server, request.node.nodeid.split("::")[-1])
    yield made
    made.close()


@pytest.fixture(params=["lmcache_driven", "engine_driven"])
def mode(request: pytest.FixtureRequest) -> str:
    """Each transfer mode in turn."""
    return str(request.param)
