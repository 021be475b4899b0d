"""``GET`` and ``DELETE /cache/objects``, in the shape of LMCache 0.5.6."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from itertools import islice
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from sidecar.admin.on_loop import OnLoop
from sidecar.handlers import Service

_PAGE, _LARGEST_PAGE = 500, 5000
_LARGEST_BATCH = 5000
_DELETE_SECONDS = 30.0


class EncodedKey(BaseModel):
    """An object's key. The object group is always 0 here: no other is ever found."""

    model_config = ConfigDict(extra="forbid", strict=True)

    chunk_hash_hex: str = Field(pattern="^[0-9a-f]{64}$")
    model_name: str = Field(min_length=1, max_length=512)
    kv_rank: int = Field(ge=0)
    object_group_id: int = 0
    cache_salt: str = Field(default="", max_length=128)


class DeleteRequest(BaseModel):
    """Which objects to delete, from which tier."""

    model_config = ConfigDict(extra="forbid", strict=True)

    keys: list[EncodedKey] = Field(max_length=_LARGEST_BATCH)
    tier: Literal["l1", "l2", "all"] = "l2"
    force: bool = False
    adapter: str | None = None


def add_routes(app: FastAPI, service: Service, on_loop: OnLoop) -> None:
    """Listing and deletion, over `service.objects`."""

    async def listing(
        tier: str = "l2",
        adapter: str | None = None,
        model_name: str | None = None,
        page_size: Annotated[int, Query(ge=1, le=_LARGEST_PAGE)] = _PAGE,
        page_token: Annotated[str, Query(pattern="^[0-9]{1,18}$")] = "0",
    ) -> dict[str, Any]:
        if tier != "l2":
            raise HTTPException(HTTPStatus.BAD_REQUEST, f"tier {tier!r} cannot be listed")
        found = await _asked(on_loop, partial(service.objects.listing, adapter))
        # Beside the event loop: with a filter it may walk through millions of names.
        return await asyncio.to_thread(
            _page, service, found, model_name, page_size, int(page_token)
        )

    async def delete(body: DeleteRequest) -> Response:
        keys = [
            (bytes.fromhex(k.chunk_hash_hex), k.model_name, k.kv_rank, k.cache_salt)
            for k in body.keys
            if k.object_group_id == 0
        ]

        def begin() -> tuple[tuple[int, int], Future[tuple[int, int]] | None]:
            """In one turn: else what waits in the L1 could get into L2 between the two."""
            objects, in_l1, deleting = service.objects, (0, 0), None
            if body.tier in ("l2", "all"):
                deleting = objects.delete_from_l2(keys, body.adapter)
            if body.tier in ("l1", "all"):
                in_l1 = objects.delete_from_l1(keys, body.force)
            return in_l1, deleting

        failed = 0
        (deleted, skipped), deleting = await _asked(on_loop, begin)
        if deleting is not None:
            more, failed = await asyncio.wait_for(asyncio.wrap_future(deleting), _DELETE_SECONDS)
            deleted += more
        answer = {"deleted": deleted, "skipped": skipped, "ok": not failed}
        if failed:
            answer["error"] = f"{failed} objects could not be removed from L2"
        status = HTTPStatus.SERVICE_UNAVAILABLE if failed else HTTPStatus.OK
        return JSONResponse(answer, status)

    app.add_api_route("/cache/objects", listing, methods=["GET"], response_model=None)
    app.add_api_route("/cache/objects", delete, methods=["DELETE"], response_model=None)


def _page(
    service: Service, found: Any, model_name: str | None, size: int, start: int
) -> dict[str, Any]:
    """Entries from place `start` of the listing on; the next page begins behind the last."""
    entries: list[dict[str, Any]] = []
    end = start
    for name in islice(found.names, start, None):
        if len(entries) == size:
            break
        end += 1
        key = service.objects.key_of(name)
        if model_name is None or (key is not None and key[1] == model_name):
            entries.append({"key": _encoded(name, key), "size_bytes": found.size_of(name)})
    return {
        "adapter": found.adapter,
        "shared": found.shared,
        "entries": entries,
        "next_page_token": str(end) if end < len(found.names) else None,
    }


def _encoded(name: Any, key: tuple[bytes, str, int, str] | None) -> dict[str, Any]:
    """A key as JSON. Of a space whose name is a digest only the hash can be told."""
    if key is None:
        return {"chunk_hash_hex": name.hash.hex(), "object_group_id": 0}
    chunk_hash, model_name, kv_rank, cache_salt = key
    return {
        "chunk_hash_hex": chunk_hash.hex(),
        "model_name": model_name,
        "kv_rank": kv_rank,
        "object_group_id": 0,
        "cache_salt": cache_salt,
    }


async def _asked(on_loop: OnLoop, question: Callable[[], Any]) -> Any:
    try:
        return await on_loop(question)
    except KeyError as error:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"there is no adapter {error}") from None
    except LookupError as error:
        raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
