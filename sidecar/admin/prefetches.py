"""``POST /cache/prefetches`` and its poll, in the shape of LMCache 0.5.6."""

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from fastapi import FastAPI, HTTPException, Request
from msgspec import Meta

from sidecar.admin.on_loop import OnLoop
from sidecar.handlers import Service

LARGEST_WORLD = 1024
Token = Annotated[int, Meta(ge=0, lt=2**32)]


class PrefetchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A sequence to bring from L2 into L1; its whole chunks count.

    Not a pydantic model: that takes a second for a few million tokens, in which no other thread
    runs, the wire's among them.
    """

    model_name: Annotated[str, Meta(min_length=1, max_length=512)]
    world_size: Annotated[int, Meta(ge=1, le=LARGEST_WORLD)]
    token_ids: list[Token]
    cache_salt: Annotated[str, Meta(max_length=128)] = ""
    source_tier: Literal["l2"] = "l2"
    target_tier: Literal["l1"] = "l1"


_decoder = msgspec.json.Decoder(PrefetchRequest)


def add_routes(app: FastAPI, service: Service, on_loop: OnLoop) -> None:
    """Submission and poll, over `service.prefetches`."""

    async def submit(request: Request) -> dict[str, Any]:
        try:
            body = _decoder.decode(await request.body())
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None
        try:
            hashes = await asyncio.to_thread(service.prefetches.hashes, body.token_ids)
            submit = partial(
                service.prefetches.submit,
                body.model_name, body.world_size, hashes, body.cache_salt,
            )  # fmt: skip
            request_id = await on_loop(submit)
        except LookupError as error:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        except ValueError as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None
        if not hashes:
            return {"chunks": 0, "status": "noop"}
        return {"request_id": request_id, "chunks": len(hashes), "status": "submitted"}

    async def poll(request_id: str) -> dict[str, Any]:
        try:
            job = await on_loop(partial(service.prefetches.take, request_id))
        except KeyError:
            detail = f"unknown prefetch {request_id}"
            raise HTTPException(HTTPStatus.NOT_FOUND, detail) from None
        if job.found_keys is None:
            return {"request_id": request_id, "status": "pending"}
        return {
            "request_id": request_id,
            "status": "completed",
            "found_keys": job.found_keys,
            "total_keys": job.total_keys,
        }

    path = "/cache/prefetches"
    app.add_api_route(path, submit, methods=["POST"], response_model=None, status_code=202)
    app.add_api_route(f"{path}/{{request_id}}", poll, methods=["GET"], response_model=None)
