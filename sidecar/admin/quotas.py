"""``/quota``, in the shape of LMCache 0.5.6. GB are GiB there, and so here."""

from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from sidecar.admin.on_loop import OnLoop
from sidecar.config.quotas import Amount, Quota, name_of, salt_of
from sidecar.handlers import Service
from sidecar.handlers.tenants import Usage

_Limit = Annotated[float, Field(ge=0, le=65536, allow_inf_nan=False)]


class QuotaRequest(BaseModel):
    """What a tenant may have of the L1, and of each L2 adapter (as much, if that is left out)."""

    model_config = ConfigDict(extra="forbid")

    limit_gb: _Limit
    l2_limit_gb: _Limit | None = None


def add_routes(app: FastAPI, service: Service, on_loop: OnLoop) -> None:
    """List, read, set and remove, over `service.tenants`."""
    tenants = service.tenants

    async def listing() -> dict[str, Any]:
        def users() -> dict[str, Any]:
            return {name_of(salt): _sizes(tenants.usages(salt)) for salt in tenants.salts()}

        return {"users": await on_loop(users)}

    async def get(cache_salt: str) -> dict[str, Any]:
        salt = _salt(cache_salt)

        def found() -> dict[str, Any]:
            exists = salt in tenants.salts()
            return {**_sizes(tenants.usages(salt)), "exists": exists}

        return {"cache_salt": name_of(salt), **await on_loop(found)}

    async def put(cache_salt: str, body: QuotaRequest) -> Response:
        l1, salt = _amount(body.limit_gb), _salt(cache_salt)
        l2 = l1 if body.l2_limit_gb is None else _amount(body.l2_limit_gb)
        try:
            await on_loop(partial(tenants.set, Quota(salt, l1, l2)))
        except LookupError as error:
            return JSONResponse({"error": str(error)}, HTTPStatus.CONFLICT)
        return JSONResponse(
            {"cache_salt": name_of(salt), "limit_gb": body.limit_gb, "status": "ok"}
        )

    async def delete(cache_salt: str) -> dict[str, Any]:
        salt = _salt(cache_salt)
        removed = await on_loop(partial(tenants.remove, salt))
        return {"cache_salt": name_of(salt), "status": "removed" if removed else "not_found"}

    app.add_api_route("/quota", listing, methods=["GET"], response_model=None)
    for method, handler in (("GET", get), ("PUT", put), ("DELETE", delete)):
        app.add_api_route("/quota/{cache_salt}", handler, methods=[method], response_model=None)


def _salt(name: str) -> str:
    try:
        return salt_of(name)
    except ValueError as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from None


def _amount(gib: float) -> Amount:
    return Amount(int(gib * 2**30))


def _sizes(usages: dict[str, Usage]) -> dict[str, Any]:
    """LMCache's two keys are of the L1; `l2` has those of the adapters that keep tenants apart."""
    by_tier = {
        tier: {
            "limit_gb": None if usage.limit is None else usage.limit / 2**30,
            "current_usage_gb": usage.used / 2**30,
        }
        for tier, usage in usages.items()
    }
    return {**by_tier.pop("l1"), "l2": by_tier}
