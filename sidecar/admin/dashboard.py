"""The dashboard: a page at ``/``, the files that it consists of, and the state that it shows."""

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Response

from sidecar import __version__
from sidecar.admin.on_loop import OnLoop
from sidecar.config import Config
from sidecar.handlers import Service

_FOLDER = Path(__file__).with_name("page")
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # Names that came from the network are shown: nothing of them may run, or load, or be framed.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}


def add_routes(
    app: FastAPI,
    config: Config,
    service: Service,
    on_loop: OnLoop,
    unhealthy_reason: Callable[[], Awaitable[str | None]],
) -> None:
    """The page, and ``/page/state`` for its script. All of it GET, none of it in the schema."""

    async def state(after: Annotated[int, Query(ge=0)] = 0) -> Response:
        unhealthy = await unhealthy_reason()
        snapshot, history = await on_loop(
            lambda: (service.snapshot(), service.samples.since(after))
        )
        document = _document(config, snapshot, unhealthy) | {"history": history}
        return Response(json.dumps(document), media_type="application/json", headers=_HEADERS)

    app.add_api_route("/page/state", state, include_in_schema=False, response_model=None)
    files = [file for file in _FOLDER.iterdir() if file.suffix in _MEDIA_TYPES]
    for file in files:
        path = "/" if file.name == "index.html" else f"/page/{file.name}"
        app.add_api_route(path, _served(file), include_in_schema=False, response_model=None)


def _served(file: Path) -> Callable[[], Awaitable[Response]]:
    content = file.read_bytes()
    headers = {**_HEADERS, "content-type": _MEDIA_TYPES[file.suffix]}

    async def page() -> Response:
        return Response(content, headers=headers)

    return page


def _document(config: Config, snapshot: Mapping[str, Any], unhealthy: str | None) -> dict[str, Any]:
    """The state for the page; sizes in bytes, times in seconds."""
    return {
        "version": __version__,
        "unhealthy_reason": unhealthy,
        "listens_on": {"host": config.host, "port": config.port},
        # 63 bits, of which a number in JavaScript keeps 53.
        "workers": [
            {**worker, "instance_id": str(worker["instance_id"])} for worker in snapshot["workers"]
        ],
        "adapters": snapshot["l2"],
        "refusals": snapshot["latest_refusals"],
        **{
            key: snapshot[key]
            for key in (
                *("chunk_size", "l1", "kept", "protected", "kv_events"),
                *("eviction", "engines", "tenants", "queue_depth"),
            )
        },
    }
