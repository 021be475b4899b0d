"""``GET /metrics``, on the admin port and on a port of its own that changes nothing."""

import asyncio
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sidecar.admin.health import Health
from sidecar.telemetry import Telemetry

_CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def metrics_response(telemetry: Telemetry) -> Response:
    """All metrics as Prometheus text; 404 if they are disabled."""
    if not telemetry.enabled:
        return PlainTextResponse("metrics are disabled\n", HTTPStatus.NOT_FOUND)
    page = await asyncio.to_thread(telemetry.render)
    return Response(page, headers={"content-type": _CONTENT_TYPE})


def create_metrics_app(telemetry: Telemetry, health: Health) -> Starlette:
    """An application that knows ``/metrics`` and ``/healthcheck``, and nothing else.

    For scrapers and for the kubelet's probes: whoever reaches it can change nothing.
    """

    async def metrics(_: Request) -> Response:
        return await metrics_response(telemetry)

    async def healthcheck(_: Request) -> Response:
        return await health.response()

    return Starlette(routes=[Route("/metrics", metrics), Route("/healthcheck", healthcheck)])
