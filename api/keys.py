"""REST for API keys: an admin makes, lists and revokes those of the own tenant, or as an admin of all tenants any.

The log is the store (`processors/access/keys.py`); every gateway follows it.
"""

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from api.problems import ProblemError, unknown_tenant
from api.session_router import SessionRouter
from api.visit import Asker
from processors.access.keys import KEYS_MAX, Key, new_key, revoked, stored_keys, write
from processors.access.roles import ALL_TENANTS, Principal, Role
from schemas.events import RefusalKind

_DAY_US = 24 * 3600 * 1_000_000


class NewKey(BaseModel):
    """A key to be made. `tenant`: the own one where it is left out; `*`: all of them."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=100)]
    role: Role
    tenant: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    days: Annotated[int, Field(ge=1, le=3650, description="after which it opens nothing more")] | None = None
    requests_per_s: Annotated[float, Field(gt=0, le=10_000)] | None = None


def shown(key: Key, now_us: int) -> dict[str, Any]:
    """As people get it: without what it is told by."""
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "tenant": ALL_TENANTS if key.tenant is None else key.tenant,
        "state": key.refusal(now_us).removesuffix("_key") or "valid",
        "requests_per_s": key.requests_per_s,
        "created_at": key.created_at,
        "created_by": key.created_by,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "revoked_by": key.revoked_by,
    }


def make(wanted: NewKey, own_tenant: str | None, now_us: int, by: str) -> tuple[Key, str]:
    """The key that is wanted, and its text; `own_tenant` where it names none."""
    tenant = wanted.tenant or own_tenant or ALL_TENANTS
    return new_key(
        wanted.name,
        wanted.role,
        None if tenant == ALL_TENANTS else tenant,
        now_us,
        by,
        wanted.requests_per_s,
        now_us + wanted.days * _DAY_US if wanted.days is not None else None,
    )


class Keys:
    """The keys of the platform, over the log."""

    def __init__(self, router: SessionRouter) -> None:
        self._router = router
        # One at a time: what is read before a change must still be so when it is written.
        self._turn = asyncio.Lock()

    async def all(self, asker: Principal) -> list[dict[str, Any]]:
        """Those of the asker's tenant, the oldest first; of all tenants for who is of all."""
        now_us = self._router.clock.now_us()
        found = [key for key in (await stored_keys(self._router.settings)).values() if _may_see(asker, key)]
        return [shown(key, now_us) for key in sorted(found, key=lambda key: (key.created_at, key.id))]

    async def add(self, asker: Principal, wanted: NewKey) -> dict[str, Any]:
        """Makes one; the answer holds it, and no other will."""
        key, text = make(wanted, asker.tenant or self._router.settings.tenant, self._router.clock.now_us(), asker.id)
        if not _may_see(asker, key):
            raise unknown_tenant()
        async with self._turn:
            if len(await stored_keys(self._router.settings)) >= KEYS_MAX:
                raise ProblemError(409, "too_many", f"There are {KEYS_MAX} keys already.", "Revoked ones count, too.")
            await write(self._router.producer, key)
        return {**shown(key, key.created_at), "key": text}

    async def revoke(self, asker: Principal, identity: str) -> dict[str, Any]:
        """It opens nothing from now on."""
        async with self._turn:
            key = (await stored_keys(self._router.settings)).get(identity)
            if key is None or not _may_see(asker, key):
                problem = ProblemError(404, "unknown_key", "There is no such key.", "GET /v1/keys lists them.")
                raise problem if key is None else problem.as_refusal(RefusalKind.FOREIGN, "tenant")
            now_us = self._router.clock.now_us()
            key = revoked(key, now_us, asker.id)
            await write(self._router.producer, key)
        return shown(key, now_us)


def _may_see(asker: Principal, key: Key) -> bool:
    """A key of all tenants is nobody's who is of one."""
    return asker.tenant is None or asker.tenant == key.tenant


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def routes(router: SessionRouter) -> APIRouter:
    """`/v1/keys`."""
    api = APIRouter(prefix="/v1/keys", tags=["keys"])
    keys = Keys(router)

    @api.post("")
    async def add(asker: Asker, wanted: NewKey) -> Response:
        """Makes a key, which is shown here alone."""
        return _json(await keys.add(asker, wanted), 201)

    @api.get("")
    async def listed(asker: Asker) -> Response:
        """All keys, revoked ones too."""
        return _json({"keys": await keys.all(asker)})

    @api.delete("/{identity}")
    async def revoke(asker: Asker, identity: str) -> Response:
        """Revokes a key; every gateway knows it within a moment."""
        return _json(await keys.revoke(asker, identity))

    return api
