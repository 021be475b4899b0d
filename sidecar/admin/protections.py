"""``/cache/protections``: what is not evicted for a time."""

import asyncio
import time
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, HTTPException, Request
from msgspec import Meta

from sidecar.admin.on_loop import OnLoop
from sidecar.admin.prefetches import LARGEST_WORLD, Token
from sidecar.handlers import Service
from sidecar.handlers.protecting import Shown

_LONGEST_SECONDS = 7 * 86_400


class ProtectionRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Either a sequence's tokens with all that tells it from others, or a request by its id."""

    ttl_seconds: Annotated[float, Meta(gt=0, le=_LONGEST_SECONDS)]
    request_id: Annotated[str, Meta(min_length=1, max_length=512)] | None = None
    token_ids: list[Token] | None = None
    model_name: Annotated[str, Meta(min_length=1, max_length=512)] | None = None
    world_size: Annotated[int, Meta(ge=1, le=LARGEST_WORLD)] = 1
    cache_salt: Annotated[str, Meta(max_length=128)] = ""

    def __post_init__(self) -> None:
        by_tokens = self.token_ids is not None and self.model_name is not None
        if (self.request_id is None) != by_tokens or (
            self.request_id is not None and self.token_ids is not None
        ):
            raise ValueError("either request_id, or token_ids and model_name")


_decoder = msgspec.json.Decoder(ProtectionRequest)


def add_routes(app: FastAPI, service: Service, on_loop: OnLoop) -> None:
    """Protect, list and remove, over `service.protecting`."""
    protecting = service.protecting

    async def protect(request: Request) -> dict[str, Any]:
        try:
            body = _decoder.decode(await request.body())
            shown = await on_loop(await _asked(body))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None
        except KeyError:
            what = "the request is not known, or nothing of the sequence is in the L1"
            raise HTTPException(HTTPStatus.NOT_FOUND, what) from None
        except LookupError as error:
            raise HTTPException(HTTPStatus.CONFLICT, str(error)) from None
        return shown._asdict()

    async def _asked(body: ProtectionRequest) -> "partial[Shown]":
        now, seconds = time.monotonic(), body.ttl_seconds
        if body.request_id is not None:
            return partial(protecting.protect_request, body.request_id, seconds, now)
        assert body.token_ids is not None and body.model_name is not None
        hashes = await asyncio.to_thread(service.prefetches.hashes, body.token_ids)
        return partial(
            protecting.protect_sequence,
            body.model_name, body.world_size, body.cache_salt, hashes, seconds, now,
        )  # fmt: skip

    async def listing() -> dict[str, Any]:
        return await on_loop(partial(protecting.report, time.monotonic()))

    async def remove(protection_id: str) -> dict[str, str]:
        if not await on_loop(partial(protecting.remove, protection_id)):
            raise HTTPException(HTTPStatus.NOT_FOUND, f"unknown protection {protection_id}")
        return {"id": protection_id, "status": "removed"}

    path = "/cache/protections"
    app.add_api_route(path, protect, methods=["POST"], response_model=None, status_code=201)
    app.add_api_route(path, listing, methods=["GET"], response_model=None)
    app.add_api_route(f"{path}/{{protection_id}}", remove, methods=["DELETE"], response_model=None)
