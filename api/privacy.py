"""REST for personal data: the keys that open a call's sealed fields, and erasing it."""

import base64
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from api.erasure import Eraser, ErasureError, ForeignSessionError, LiveSessionError, UnknownSessionError
from api.problems import ProblemError
from api.session_router import SessionRouter
from api.visit import Asker
from processors.access.roles import Principal
from schemas.events import RefusalKind
from streams.keyring import Keyring
from streams.registry import keyring_for

NO_STORE = {"cache-control": "no-store"}


class ErasureBody(BaseModel):
    """What is asked for."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("", max_length=500, description="why; the certificate says so")
    force: bool = Field(False, description="also a call that is going on")


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type="application/json")


def _unknown() -> ProblemError:
    return ProblemError(
        404, "unknown_session", "There is no such session in the log.", "GET /v1/sessions lists the newest."
    )


def keys_of(keys: Keyring, asker: Principal, session_id: str) -> dict[str, str]:
    """The call's keys by class of data, in base64; raises ProblemError where it is unknown, foreign or erased."""
    found = keys.file(session_id)
    if found is None:
        raise _unknown()
    if not asker.sees(found.tenant_id):
        raise _unknown().as_refusal(RefusalKind.FOREIGN, "tenant")
    if found.erased_at:
        raise ProblemError(410, "erased", "The call was erased.", "Nobody can read its personal fields any more.")
    return {name: base64.b64encode(key.value).decode() for name, key in keys.known(session_id).items()}


def routes(router: SessionRouter) -> APIRouter:
    """For consumers of the topics, and for whoever answers callers' requests."""
    api = APIRouter(prefix="/v1", tags=["privacy"])
    keys, eraser = keyring_for(router.settings), Eraser(router.settings, router.clock)

    @api.get("/sessions/{session_id}/keys")
    async def session_keys(asker: Asker, session_id: str) -> Response:
        """The keys that open what is sealed in the call's events: AES-256-GCM, in base64, by class of data."""
        return _json({"session_id": session_id, "keys": keys_of(keys, asker, session_id)}, headers=NO_STORE)

    @api.post("/sessions/{session_id}/erase")
    async def erase(asker: Asker, session_id: str, body: ErasureBody | None = None) -> Response:
        """Erases the call for good; answers with the signed certificate once all stores have confirmed."""
        asked = body or ErasureBody.model_construct()
        try:
            erased = await eraser.erase(session_id, asked.reason, asked.force, asker.sees)
        except ForeignSessionError:
            raise _unknown().as_refusal(RefusalKind.FOREIGN, "tenant") from None
        except UnknownSessionError:
            raise _unknown() from None
        except LiveSessionError:
            hint = "End it first: POST /v1/sessions/{id}/hang_up."
            raise ProblemError(409, "session_live", "The call is going on.", hint) from None
        except ErasureError as error:
            raise ProblemError(503, "not_confirmed", str(error), "Ask again.", {"Retry-After": "30"}) from None
        return _json(erased.signed)

    return api
