"""All neighbours by name. A new attack is a function and a row in its file."""

from __future__ import annotations

from tests.faults.campaign import connections, files, http, native, requests, workers
from tests.faults.campaign.target import Neighbour

NEIGHBOURS: dict[str, Neighbour] = {
    **connections.ROWS,
    **requests.ROWS,
    **workers.ROWS,
    **http.ROWS,
    **files.ROWS,
    **native.ROWS,
}
