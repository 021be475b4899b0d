"""The FastAPI application of the admin port."""

import asyncio
import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from sidecar import __version__
from sidecar.admin import checksums, dashboard, objects, prefetches, protections, quotas, status
from sidecar.admin.checksums import ChecksumRequest
from sidecar.admin.health import Health
from sidecar.admin.metrics import metrics_response
from sidecar.admin.on_loop import LOOP_SECONDS, OnLoop
from sidecar.config import Config
from sidecar.config.show import by_group
from sidecar.handlers import Service
from sidecar.loop import Loop
from sidecar.telemetry import Telemetry
from sidecar.tiers.clearing import Cleared

# The newest LMCache whose protocol is spoken.
LMCACHE_VERSION = "0.5.6"
_HASH_SECONDS = 60.0
_CLEAR_SECONDS = 30.0
_PROBLEMS_SHOWN = 100


class ClearRequest(BaseModel):
    """What to clear."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tier: Literal["l1", "l2", "all"] = "l1"
    force: bool = False


def create_app(
    config: Config, service: Service, loop: Loop, telemetry: Telemetry, health: Health
) -> FastAPI:
    """The application; it holds no state of its own."""
    # No pages that load scripts from elsewhere; /openapi.json tells the same.
    app = FastAPI(title="kv-sidecar", version=__version__, docs_url=None, redoc_url=None)
    routes = _Routes(config, service, loop, telemetry, health)
    for paths, method, handler in (
        (("/healthcheck", "/api/healthcheck"), "GET", routes.healthcheck),
        (("/status", "/api/status"), "GET", routes.status),
        (("/metrics",), "GET", routes.metrics),
        (("/config",), "GET", routes.config),
        (("/config/adapters",), "GET", routes.adapters),
        (("/version",), "GET", routes.version),
        (("/lmc_version",), "GET", routes.lmc_version),
        (("/cache/clear", "/clear-cache", "/api/clear-cache"), "POST", routes.clear),
        (("/cache/check",), "POST", routes.check),
        (("/cache/checksums",), "POST", routes.checksums),
    ):
        for path in paths:
            app.add_api_route(path, handler, methods=[method], response_model=None)
    dashboard.add_routes(app, config, service, routes.on_loop, health.reason)
    objects.add_routes(app, service, routes.on_loop)
    prefetches.add_routes(app, service, routes.on_loop)
    protections.add_routes(app, service, routes.on_loop)
    quotas.add_routes(app, service, routes.on_loop)
    app.add_exception_handler(RequestValidationError, _bad_input)
    app.add_exception_handler(TimeoutError, _no_answer)
    return app


class _Routes:
    def __init__(
        self,
        config: Config,
        service: Service,
        loop: Loop,
        telemetry: Telemetry,
        health: Health,
    ) -> None:
        self._config = config
        self._service = service
        self.on_loop = OnLoop(loop)
        self._telemetry = telemetry
        self._health = health
        self._began = time.monotonic()

    async def healthcheck(self) -> Response:
        return await self._health.response()

    async def status(self) -> Response:
        unhealthy = await self._health.reason()
        try:
            snapshot = await self.on_loop(self._service.snapshot)
        except TimeoutError:
            return _unavailable(unhealthy)
        uptime = time.monotonic() - self._began
        return JSONResponse(status.document(snapshot, unhealthy, uptime))

    async def metrics(self) -> Response:
        return await metrics_response(self._telemetry)

    async def config(self) -> Response:
        groups = by_group(self._config)
        sections = {"storage_manager": groups.pop("l1"), **groups, "coordinator": None}
        return Response(json.dumps(sections, indent=2), media_type="application/json")

    async def adapters(self) -> dict[str, object]:
        found = [
            {
                "index": index,
                "type_name": spec.settings.type,
                "tier": "l2",
                "primary": index == 0,
                "reconfigurable": False,
            }
            for index, spec in enumerate(self._config.l2_adapter)
        ]
        return {"adapters": found}

    async def version(self) -> str:
        return __version__

    async def lmc_version(self) -> str:
        return LMCACHE_VERSION

    async def clear(self, body: ClearRequest | None = None) -> Response:
        body = body or ClearRequest()
        tiers = ("l1", "l2") if body.tier == "all" else (body.tier,)
        clearing = await self.on_loop(partial(self._service.clear, tiers, force=body.force))
        try:
            adapters = await asyncio.wait_for(asyncio.wrap_future(clearing), _CLEAR_SECONDS)
        except TimeoutError:
            return _unavailable("L2 was not cleared in time")
        return _cleared(body.tier, adapters)

    async def check(self) -> Response:
        problems = await self.on_loop(self._service.problems)
        if not problems:
            return JSONResponse({"status": "ok"})
        status = HTTPStatus.INTERNAL_SERVER_ERROR
        return JSONResponse({"status": "broken", "problems": problems[:_PROBLEMS_SHOWN]}, status)

    async def checksums(self, body: ChecksumRequest) -> Response:
        hashing = partial(
            self._service.block_checksums,
            body.instance_id,
            body.block_ids,
            body.chunk_size,
            body.layerwise,
        )
        try:
            future = await self.on_loop(hashing)
            hashed = await asyncio.wait_for(asyncio.wrap_future(future), _HASH_SECONDS)
        except KeyError:
            detail = f"instance_id {body.instance_id} is not registered"
            raise HTTPException(HTTPStatus.NOT_FOUND, detail) from None
        except ValueError as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None
        except TimeoutError:
            return _unavailable("the blocks were not hashed in time")
        except RuntimeError as error:
            return _unavailable(str(error))
        return JSONResponse(checksums.reply(body, hashed))


def _cleared(tier: str, adapters: Sequence[Cleared]) -> Response:
    """LMCache's answer, with what came of it in each L2 adapter; 503 if that may not last."""
    outcome: dict[str, Any] = {"tier": tier}
    if tier != "l1":
        outcome["adapters"] = [dataclasses.asdict(each) for each in adapters]
    if all(each.lasts for each in adapters):
        return JSONResponse({"status": "ok", "cleared": outcome})
    return JSONResponse(
        {"status": "error", "error": "the clear does not last yet", "cleared": outcome},
        HTTPStatus.SERVICE_UNAVAILABLE,
    )


def _unavailable(reason: str | None) -> Response:
    """503 with the key that the lmcache command line shows."""
    error = reason or f"the wire loop has not answered for {LOOP_SECONDS:g} s"
    return JSONResponse({"error": error, "is_healthy": False}, HTTPStatus.SERVICE_UNAVAILABLE)


async def _no_answer(_: Request, error: Exception) -> Response:
    return _unavailable(None)


async def _bad_input(_: Request, error: Exception) -> Response:
    """400 and one line for each wrong field, as text."""
    assert isinstance(error, RequestValidationError)
    lines = [
        f"{'.'.join(str(part) for part in wrong['loc'])}: {wrong['msg']}"
        for wrong in error.errors()[:5]
    ]
    return JSONResponse({"detail": "; ".join(lines)}, HTTPStatus.BAD_REQUEST)
